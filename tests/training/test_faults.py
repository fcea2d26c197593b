"""What goes wrong outside of the program: data, weights, numbers. Each gives one clear last line and no traceback."""

import os
import shutil
import signal
from pathlib import Path

import cv2
import pytest


def last_line(said: str) -> str:
    assert "Traceback" not in said
    line = said.splitlines()[-1]
    assert line.startswith("dlgsanet: error: ")
    return line


@pytest.fixture
def own_images(workplace):
    """The data sets as files that a test may change."""
    for part in ("train", "val"):
        source = (workplace.folder / part).resolve()
        (workplace.folder / part).unlink()
        shutil.copytree(source, workplace.folder / part)
    return workplace.folder


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("data_set", ["CachedPairedImageDataset", "PairedImageDataset"])
def test_truncated_training_image(workplace, own_images, data_set):
    workplace.options["datasets"]["train"]["type"] = data_set
    truncate(own_images / "train/X2/chelseax2.png")
    assert "chelseax2.png" in last_line(workplace.train(code=2))


def test_truncated_validation_image(workplace, own_images):
    truncate(own_images / "val/HR/crop1.png")
    assert "crop1.png" in last_line(workplace.train(code=2))


@pytest.mark.parametrize("part", ["train", "val"])
def test_pair_whose_sizes_do_not_fit(workplace, own_images, part):
    path = next((own_images / part / "X2").iterdir())
    cv2.imwrite(str(path), cv2.imread(str(path))[:-3])
    line = last_line(workplace.train(code=2))
    assert path.name in line
    assert "not 1/2" in line
    assert not list(workplace.folder.glob("experiments/*/training_states/*"))


def test_weights_of_another_size_of_network(trained):
    trained.options |= {"name": "other"}
    trained.options["network_g"]["dim"] = 24
    trained.options["path"]["pretrain_network_g"] = "experiments/run/models/net_g_best.pth"
    line = last_line(trained.train(code=2))
    assert "net_g_best.pth" in line
    assert "overlap_embed.0.proj.weight is [12, 3, 3, 3] in the file, [24, 3, 3, 3] in the network" in line


def test_data_worker_that_dies(workplace):
    workplace.options["train"]["total_iter"] = 100_000
    run = workplace.start()
    run.wait_for(" 4/")
    workers = Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children").read_text().split()
    os.kill(int(workers[0]), signal.SIGKILL)
    line = last_line(run.end(2))
    assert "a process that loads data has died" in line
    assert "the last good checkpoint is" in line


def test_loss_that_stays_infinite_stops_the_run(workplace):
    workplace.options["train"] |= {"optim_g": {"type": "SGD", "lr": 1e30}, "total_iter": 1000, "max_bad_steps": 5}
    workplace.options["logger"]["save_checkpoint_freq"] = 1
    line = last_line(workplace.train(code=2))
    assert "not finite 5 times in a row" in line
    assert "the last good checkpoint is" in line

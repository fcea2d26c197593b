"""What goes wrong outside of the program: data, weights, numbers. Each gives one clear last line and no traceback."""

import signal

import cv2
import pytest
import torch

from tests.training.conftest import identical, last_line, resumed


@pytest.fixture
def own_images(workplace):
    """The data sets as files that a test may change."""
    workplace.own_images()
    return workplace.folder


@pytest.mark.parametrize("data_set", ["CachedPairedImageDataset", "PairedImageDataset"])
@pytest.mark.parametrize("image", ["train/X2/chelseax2.png", "val/HR/crop1.png"])
def test_truncated_image(workplace, own_images, data_set, image):
    workplace.options["datasets"][image.partition("/")[0]]["type"] = data_set
    path = own_images / image
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert path.name in workplace.fault()


def test_validation_image_that_is_removed_while_training_runs(workplace, own_images):
    workplace.options["train"]["total_iter"] = 100_000
    run = workplace.start()
    run.wait_for(" 1/")
    (own_images / "val/HR/crop1.png").unlink()
    assert "crop1.png" in last_line(run.end(2))


@pytest.mark.parametrize("part", ["train", "val"])
def test_files_that_are_no_images(workplace, own_images, part):
    """BasicSR's data set takes them for images; ours skips them, and so do hidden files."""
    workplace.options["train"]["total_iter"] = 1
    workplace.options["datasets"]["train"] |= {"type": "PairedImageDataset"}
    (own_images / part / "HR/.DS_Store").write_bytes(b"x")
    workplace.train()
    (own_images / part / "HR/Thumbs.db").write_bytes(b"x")
    line = workplace.fault()
    assert f"datasets.{part}" in line
    assert "Thumbs.db" in line
    for data_set in workplace.options["datasets"].values():
        data_set["type"] = "CachedPairedImageDataset"
    workplace.train()


@pytest.mark.parametrize("part", ["train", "val"])
def test_pair_whose_sizes_do_not_fit(workplace, own_images, part):
    path = next((own_images / part / "X2").iterdir())
    cv2.imwrite(str(path), cv2.imread(str(path))[:-3])
    line = workplace.fault()
    assert path.name in line
    assert not list(workplace.folder.glob("experiments/*/training_states/*"))


def test_an_original_with_a_row_that_basicsr_does_not_crop(workplace, own_images):
    """BasicSR's data set refuses it when its turn comes, perhaps after hours."""
    workplace.options["train"]["total_iter"] = 3
    path = own_images / "train/HR/coffee.png"
    image = cv2.imread(str(path))
    cv2.imwrite(str(path), cv2.copyMakeBorder(image, 0, 1, 0, 0, cv2.BORDER_REPLICATE))
    workplace.train()
    workplace.options["datasets"]["train"]["type"] = "PairedImageDataset"
    line = workplace.fault()
    assert "coffee.png" in line
    assert "set type: CachedPairedImageDataset" in line
    assert [path.name for path in workplace.experiment().parent.glob("run*")] == ["run"]


def test_weights_of_another_size_of_network(trained):
    trained.options |= {"name": "other"}
    trained.options["network_g"]["dim"] = 24
    trained.options["path"]["pretrain_network_g"] = "experiments/run/models/net_g_best.pth"
    line = trained.fault()
    assert "net_g_best.pth" in line
    assert "overlap_embed.0.proj.weight" in line
    assert "network_g" in line


@pytest.mark.parametrize(
    ("section", "change"), [("network_g", {"dim": 24}), ("datasets", {"train": {"gt_size": 4000}})]
)
def test_a_start_that_fails_leaves_an_older_run_of_the_name_in_place(trained, section, change):
    """Else --auto-resume, after the mistake is put right, would begin from nothing."""
    if section == "network_g":
        trained.options["network_g"] |= change
        trained.options["path"]["pretrain_network_g"] = "experiments/run/models/net_g_best.pth"
    else:
        trained.options["datasets"]["train"] |= change["train"]
    before = sorted(trained.folder.rglob("*"))
    trained.fault()
    new = [path.name for path in trained.folder.rglob("*") if path not in before]
    assert [name for name in new if not name.startswith(("options_", "said_"))] == []


def test_loss_that_stays_infinite_stops_the_run(workplace):
    """The named checkpoint is of the weights before the step that ruined them, not of those saved after it."""
    growing = {"optim_g": {"type": "SGD", "lr": 1e-3}, "scheduler": {"type": "StepLR", "step_size": 6, "gamma": 1e17}}
    workplace.options["train"] |= growing | {"total_iter": 1000, "max_bad_steps": 5}
    workplace.options["logger"]["save_checkpoint_freq"] = 1
    said = workplace.train(code=2)
    assert all(f" {iteration}: " in said for iteration in range(8, 12))  # each skipped step
    assert "train.grad_clip" in last_line(said)
    assert "training_states/6.state" in last_line(said)
    workplace.options["train"]["total_iter"] = 6
    assert resumed(workplace.train("--auto_resume")) == (6, True)


def test_short_run_without_any_step_is_an_error(workplace):
    """It ends before `max_bad_steps`, and has no weights to show."""
    torch.save({"upsample.0.weight": torch.full((12, 12, 3, 3), 3e38)}, workplace.folder / "broken.pth")
    workplace.options["path"] |= {"pretrain_network_g": "broken.pth", "strict_load_g": False}
    workplace.options["train"]["total_iter"] = 3
    line = workplace.fault()
    assert "no step was taken" in line
    assert "train.optim_g.lr" in line
    assert not list(workplace.folder.glob("experiments/run/models/*"))


def test_basicsr_model_stops_at_the_first_loss_that_is_not_finite(workplace):
    workplace.options["model_type"] = "SRModel"
    workplace.options["train"]["optim_g"]["lr"] = 1e17
    assert "SRModel" in workplace.fault()


OWN_LOSS = """
from basicsr.utils.registry import LOSS_REGISTRY
from torch import nn

@LOSS_REGISTRY.register()
class FailsInTraining(nn.Module):
    def forward(self, output, target):
        if output.requires_grad:
            raise RuntimeError("as nobody foresaw")
        return (output - target).abs().mean()
"""


def test_error_that_nobody_foresaw_ends_the_run(workplace):
    """With a traceback, and although data workers are at work."""
    workplace.options["datasets"]["train"]["num_worker_per_gpu"] = 1
    workplace.import_own(OWN_LOSS)
    workplace.options["train"]["pixel_opt"] = {"type": "FailsInTraining"}
    assert "Traceback" in workplace.train(code=1)


def test_second_run_in_the_folder_stops_before_it_touches_anything(workplace):
    workplace.options["train"]["total_iter"] = 100_000
    first = workplace.start()
    first.wait_for(" 2/")
    line = workplace.fault()
    assert str(first.process.pid) in line
    assert [path.name for path in workplace.experiment().parent.glob("[!.]*")] == ["run"]  # none was archived
    assert str(first.process.pid) in workplace.fault_of_ranks()
    first.signal(signal.SIGKILL)
    first.end(-signal.SIGKILL)
    workplace.options["train"]["total_iter"] = 3
    workplace.train("--auto_resume")


CLOSED = {"stdin": "<&-", "stdout": ">&-", "stderr": "2>&-", "all": "<&- >&- 2>&-"}


@pytest.mark.parametrize(
    "streams", ["all", *(pytest.param(name, marks=pytest.mark.long) for name in ("stdin", "stdout", "stderr"))]
)
def test_closed_standard_streams(workplace, finished, streams):
    """No file of the run takes the place of one, whose messages it would then get."""
    done = workplace.run_apart("sh", "-c", f'exec "$@" {CLOSED[streams]}', "sh", capture_output=False)
    assert done.returncode == 0
    assert identical(workplace.checkpoint(12), finished.checkpoint(12))
    (log,) = workplace.experiment().glob("train_*.log")
    assert "End of training" in log.read_text()


def test_few_open_files(workplace):
    """Enough of them for a run without data workers, but not for one with two."""
    workplace.options["train"]["total_iter"] = 2
    for workers, code in ((0, 0), (2, 2)):
        workplace.options["datasets"]["train"]["num_worker_per_gpu"] = workers
        ended = workplace.run_apart("sh", "-c", 'ulimit -n 20; exec "$@"', "sh")
        assert ended.returncode == code, ended.stderr
    line = last_line(ended.stderr)
    assert "ulimit -n" in line
    assert "num_worker_per_gpu" in line

"""What a run reports while it goes, and what it leaves: first lines, progress, TensorBoard, the record."""

import contextlib
import errno
import io
import json
import os
import re
import resource
import signal
import time

import pytest
import yaml

from dlgsanet.training.messages import ProgressLine
from tests.training.conftest import identical, last_line, tensorboard_steps


def test_first_lines_and_plain_lines_in_the_file(workplace):
    said = workplace.train()
    for line in (
        "Training   Photos: 3 samples an epoch",
        "Validation Crops (3), every 6 iterations",
        "Iterations 1 to 12 of 4 samples",
        "Precision  fp32",
        "Estimated  00:00:0",
    ):
        assert line in said
    assert len(re.findall(r" cpu: \w+ backend", said)) == 1
    assert "no such layer" not in said
    (log,) = workplace.experiment().glob("train_*.log")
    written = log.read_text()
    assert "\r" not in written
    assert "12/12  00:00:00 left  l_pix 0." in written
    assert "psnr 1" in written


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_that_wait_for_cores_are_named_once(workplace, threads):
    """The run gets its cores for a sixth of the time, as next to other programs."""
    workplace.options["train"]["total_iter"] = 24
    run = workplace.start(OMP_NUM_THREADS=str(threads))
    run.wait_for(" 10/24")  # the mean of all steps counts, from the 21st on
    with contextlib.suppress(ProcessLookupError):  # it has ended
        while True:
            os.kill(run.process.pid, signal.SIGSTOP)
            time.sleep(0.05)
            os.kill(run.process.pid, signal.SIGCONT)
            time.sleep(0.01)
    assert run.end().count("OMP_NUM_THREADS") == threads - 1


def test_progress_line_only_in_a_terminal():
    terminal, file = io.StringIO(), io.StringIO()
    ProgressLine(terminal, enabled=True).show("5/10")
    ProgressLine(file).show("5/10")
    assert terminal.getvalue().endswith("5/10")
    assert file.getvalue() == ""


def test_progress_line_stays_one_line_of_a_narrow_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    terminal = io.StringIO()
    ProgressLine(terminal, enabled=True).show("5/10" + " word" * 20)
    assert len(terminal.getvalue().removeprefix("\r\033[K")) == 39


def test_a_terminal_that_was_closed_does_not_end_a_run():
    class Closed(io.StringIO):
        def write(self, text):
            raise OSError(errno.EIO, "Input/output error")

    line = ProgressLine(Closed(), enabled=True)
    line.show("5/10")
    line.clear()
    assert not line.enabled


def test_tensorboard_has_every_step_once_after_kills(workplace):
    """Also as other programs read it, which know nothing of steps that count as taken back."""
    workplace.options["logger"] |= {"use_tb_logger": True, "save_checkpoint_freq": 6}
    for iteration, arguments in ((7, []), (8, ["--auto_resume"]), (7, ["--auto_resume"])):
        workplace.start(*arguments, stop=(iteration, signal.SIGKILL)).end(-signal.SIGKILL)
    workplace.train("--auto_resume")
    steps = tensorboard_steps(workplace.folder / "tb_logger/run")
    scalars = {"losses/l_pix", "learning_rate", "grad_norm", "images_per_second", "memory_gb"}
    validation = {"metrics/Crops/psnr", "metrics/Crops/ssim", "metrics/Crops/below_bicubic", "pictures/Crops"}
    assert steps == {tag: list(range(1, 13)) for tag in scalars} | {tag: [6, 12] for tag in validation}


def test_tensorboard_on_a_full_disk_ends_the_run_with_one_line(workplace):
    """Here with files that may not grow."""
    workplace.options["logger"] |= {"use_tb_logger": True, "save_checkpoint_freq": 24}  # it is flushed before
    workplace.options["train"]["total_iter"] = 100_000
    run = workplace.start()
    run.wait_for(" 1/")
    size = run.said.stat().st_size + 8000  # enough for what is logged until then
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (size, size))
    said = run.end(2)
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("dlgsanet: error: ")
    assert not list(workplace.experiment().glob("training_states/*"))


RISING_METRIC = """
from itertools import count
from basicsr.utils.registry import METRIC_REGISTRY
calls = count(1)
@METRIC_REGISTRY.register()
def rising(img, img2):
    return 0 if (img == img2).all() else next(calls)
"""


def test_best_weights_are_chosen_by_the_set_and_the_metric_that_options_name(workplace):
    workplace.import_own(RISING_METRIC)
    workplace.options["datasets"]["val_2"] = workplace.options["datasets"]["val"] | {"name": "Others"}
    workplace.options["val"] |= {"val_freq": 3, "best": {"dataset": "Others", "metric": "rising"}}
    workplace.options["val"]["metrics"]["rising"] = {"type": "rising", "better": "lower"}
    said = workplace.train()
    found = re.findall(r"Validation at (\d+) on Others: .*  rising ([0-9.]+)", said)
    assert [int(at) for at, _ in found] == [3, 6, 9, 12]
    value, at = min((float(value), int(at)) for at, value in found)
    best = workplace.checkpoint(12)["position"]["best"]
    assert (pytest.approx(best["value"], rel=1e-3), best["iteration"]) == (value, at)


WANDB = """
from json import dumps
from pathlib import Path
def init(**given):
    if given["project"] == "of nobody":
        raise RuntimeError("api_key not configured (no-tty)")
    Path("wandb.json").write_text(dumps([given["project"], given["name"], given["sync_tensorboard"]]))
"""


def test_wandb_follows_tensorboard_where_it_is_installed(workplace):
    """With a stand-in for it."""
    workplace.options["logger"] |= {"use_tb_logger": True, "wandb": {"project": "photographs"}}
    workplace.options["train"]["total_iter"] = 1
    (workplace.folder / "wandb.py").write_text(WANDB)  # `python -m` looks in the working folder first
    assert workplace.run_apart().returncode == 0
    assert json.loads((workplace.folder / "wandb.json").read_text()) == ["photographs", "run", True]
    workplace.options["logger"]["wandb"]["project"] = "of nobody"
    assert "error: logger.wandb: api_key not configured" in last_line(workplace.run_apart().stderr)
    assert [path.name for path in workplace.experiment().parent.glob("run*")] == ["run"]  # it was not set aside


def test_record_is_enough_to_do_it_again(workplace):
    workplace.train("--force_yml", "train:optim_g:lr=0.002")
    record = yaml.safe_load((workplace.experiment() / "record_0.yml").read_text())
    assert record["options"]["train"]["optim_g"]["lr"] == 0.002
    assert record["versions"]["torch"]
    assert record["git"] is None or len(record["git"]["revision"]) == 40
    again = {key: record["options"][key] for key in workplace.options}
    again["path"] = {"pretrain_network_g": None}
    for data_set in again["datasets"].values():
        for filled_in in ("phase", "scale", "manual_seed"):
            del data_set[filled_in]
    workplace.options = again | {"name": "again"}
    workplace.train()
    assert identical(workplace.checkpoint(12, "again"), workplace.checkpoint(12))


@pytest.mark.parametrize("model_type", ["SRModel", "DLGSANetModel"])
def test_published_files_run_and_resume(workplace, model_type):
    """Published files name BasicSR's own model and data set."""
    workplace.options["model_type"] = model_type
    workplace.options["datasets"]["train"] |= {"type": "PairedImageDataset", "use_shuffle": True}
    workplace.train()
    workplace.options["name"] = "stopped"
    workplace.start(stop=(5, signal.SIGTERM)).end(75)
    workplace.train("--auto_resume")
    assert identical(workplace.checkpoint(12, "stopped"), workplace.checkpoint(12))

"""Several processes with gloo follow the single process; a rank that dies or hangs stops all, and the run resumes.

Two and four ranks sum the same gradients in another order: weights after 12 iterations of Adam agree to `TOLERANCE`.
"""

import math
import resource
import shutil
import signal
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from basicsr.data import build_dataset
from basicsr.models import build_model

from dlgsanet.extensions import import_all
from dlgsanet.training.validation import ValidationSet
from tests.conftest import python
from tests.training.conftest import NORMALISED, OPTIONS, Workplace, identical, run_as_ranks

TOLERANCE = 1e-5  # absolute; weights are of the order of 0.1


def batch_per_rank(workplace, ranks: int) -> None:
    workplace.options["datasets"]["train"] |= {"batch_size_per_gpu": 4 // ranks, "num_worker_per_gpu": 0}


def train_on(workplace, ranks: int, *arguments: str) -> str:
    batch_per_rank(workplace, ranks)
    said = [run.end() for run in workplace.start_ranks(ranks, *arguments)]
    return said[0]


def difference(workplace, finished) -> float:
    a, b = (place.weights(12)["params_ema"] for place in (workplace, finished))
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize(
    ("ranks", "changes"),
    [
        (2, {}),
        pytest.param(4, {}, marks=pytest.mark.long),
        (2, {"find_unused_parameters": True}),
        (2, {"model_type": "SRModel", "dist_params": {"backend": "nccl"}}),  # as BasicSR's files, without a GPU
    ],
)
def test_ranks_follow_the_single_process(workplace, finished, ranks, changes):
    workplace.options |= changes
    train_on(workplace, ranks)
    assert 0 < difference(workplace, finished) < TOLERANCE


def test_ranks_follow_the_single_process_with_muon(workplace):
    workplace.options["train"]["optim_g"] = {"type": "Muon", "lr": 1e-3, "adam_lr": 5e-4}
    batch_per_rank(workplace, 1)
    workplace.train()
    alone = workplace.weights(12)["params_ema"]
    workplace.options["name"] = "shared"
    train_on(workplace, 2)
    shared = workplace.weights(12, "shared")["params_ema"]
    assert 0 < max(float((alone[name] - shared[name]).abs().max()) for name in alone) < TOLERANCE


# Has buffers, which DistributedDataParallel sends around in every pass.
SWINIR = {
    "type": "SwinIR", "upscale": 2, "window_size": 1, "img_size": 12, "embed_dim": 12, "depths": [2], "num_heads": [2],
    "mlp_ratio": 2, "upsampler": "pixelshuffledirect",
}  # fmt: skip


def test_ranks_validate_with_the_statistics_that_are_saved(workplace, monkeypatch):
    workplace.import_own(NORMALISED, network_g={"type": "Normalised"})
    workplace.options["manual_seed"] = 2**32 - 1  # the largest; that of the second rank follows it
    workplace.options["train"]["total_iter"] = 2
    said = train_on(workplace, 2)
    monkeypatch.chdir(workplace.folder)
    import_all(["own.py"])
    options = deepcopy(workplace.options) | {"is_train": False, "dist": False}
    options["path"]["pretrain_network_g"] = "experiments/run/models/net_g_latest.pth"
    images = build_dataset(options["datasets"]["val"] | {"phase": "val", "scale": 2})
    scores, _ = ValidationSet(images, "Crops", 0, 0, 1).run(
        build_model(options), options["val"]["metrics"], None, None, lambda: False
    )
    assert f"Best psnr on Crops: {scores['psnr']:.4f} at 2" in said


@pytest.mark.parametrize(
    ("ranks", "changes"), [(2, {}), (4, {"network_g": SWINIR})], ids=["averages", "network with buffers"]
)
def test_shared_validation_gives_the_figures_of_a_single_process(workplace, ranks, changes):
    workplace.options |= changes
    workplace.options["train"] |= {"ema_decay": 0 if changes else 0.9, "total_iter": 7}
    workplace.options["train"]["optim_g"]["lr"] = 0.0  # the same weights in both
    workplace.options["val"]["best"] = {"metric": "ssim"}
    batch_per_rank(workplace, 1)
    workplace.train()
    workplace.options["name"] = "shared"
    train_on(workplace, ranks)
    best = [workplace.checkpoint(7, name)["position"]["best"] for name in ("run", "shared")]
    assert best[0] == best[1]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
def test_lost_rank_stops_the_run_which_resumes_on_another_number_of_ranks(workplace, finished, how):
    batch_per_rank(workplace, 2)
    # On a busy machine a rank may be slow to answer. One that has died is noticed earlier.
    workplace.options["dist_params"] = {"timeout": 15 if how == signal.SIGSTOP else 600}
    first, second = workplace.start_ranks(2, stop=(7, how))
    last = first.end(2).splitlines()[-1]
    assert ("has not answered" if how == signal.SIGSTOP else "another rank has died") in last
    assert ".state" in last
    second.process.kill()
    batch_per_rank(workplace, 1)
    workplace.train("--auto_resume")
    assert difference(workplace, finished) < TOLERANCE


def test_a_checkpoint_that_cannot_be_written_is_reported_once(workplace):
    """Here it is larger than a file may be; a full disk is the same error to a program."""
    batch_per_rank(workplace, 2)
    workplace.options["train"]["total_iter"] = 100_000
    runs = workplace.start_ranks(2)
    runs[0].wait_for(" 3/")
    size = (workplace.experiment() / "models/net_g_2.pth").stat().st_size
    resource.prlimit(runs[0].process.pid, resource.RLIMIT_FSIZE, (size - 1, size - 1))
    lines = [line for run in runs for line in run.end(2).splitlines() if line.startswith("dlgsanet: ")]
    assert ["net_g_" in line for line in lines] == [True]


def _step_on_a_bad_batch(rank: int, folder: Path) -> None:
    torch.manual_seed(0)
    model = build_model(deepcopy(OPTIONS) | {"is_train": True, "dist": True, "rank": rank})
    before = deepcopy(model.net_g.state_dict())
    model.feed_data({"lq": torch.full((2, 3, 12, 12), math.nan if rank else 0.5), "gt": torch.rand(2, 3, 24, 24)})
    model.update_learning_rate(1)
    model.optimize_parameters(1)
    assert identical(before, model.net_g.state_dict())
    assert model.bad_steps_in_row == 1


def test_bad_batch_of_one_rank_makes_all_skip_the_step(tmp_path):
    run_as_ranks(_step_on_a_bad_batch, tmp_path)


def test_signal_to_one_rank_stops_all_at_the_same_iteration(workplace):
    batch_per_rank(workplace, 2)
    first, second = workplace.start_ranks(2, stop=(3, signal.SIGUSR1))
    assert "SIGUSR1" in first.end(75)
    second.end(75)
    assert workplace.checkpoint(3)["position"]["samples"] == 3 * 4


OVERFLOWS = """
import math
from torch import nn
from basicsr.utils.registry import ARCH_REGISTRY

@ARCH_REGISTRY.register()
class OverflowsAtHeight25(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x):
        return super().forward(x) * (math.inf if x.shape[2] == 25 else 1)
"""


def test_output_of_one_rank_that_is_not_finite_sets_the_checkpoint_aside(workplace):
    workplace.import_own(OVERFLOWS, network_g={"type": "OverflowsAtHeight25"})
    batch_per_rank(workplace, 2)
    assert "crop1x2.png: the output is not finite" in workplace.fault_of_ranks()  # the second rank validates it
    assert (workplace.experiment() / "training_states/6.state.aside").exists()


UNUSED = """
from torch import nn
from basicsr.utils.registry import ARCH_REGISTRY

@ARCH_REGISTRY.register()
class WithAnUnusedLayer(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2))
        self.unused = nn.Conv2d(3, 3, 3)

    def forward(self, x):
        return self[1](self[0](x))
"""


def test_parameters_that_are_not_used(workplace):
    workplace.import_own(UNUSED, network_g={"type": "WithAnUnusedLayer"})
    workplace.options["train"]["total_iter"] = 2
    batch_per_rank(workplace, 2)
    said = "".join(run.end(2) for run in workplace.start_ranks(2))  # one may see that the other has ended
    assert "find_unused_parameters: true" in said
    workplace.options["find_unused_parameters"] = True
    train_on(workplace, 2)


@pytest.mark.parametrize("what", ["the checkpoint to resume", "image files", "train.optim_g.betas"])
def test_hosts_that_see_other_files(trained, tmp_path, photographs, what):
    """Ranks would train on, each with weights or images of its own."""
    (tmp_path / "other").mkdir()
    other = Workplace(tmp_path / "other")
    for part in ("train", "val"):
        shutil.copytree(photographs / part, other.folder / part)
    if what == "image files":
        shutil.copytree(trained.experiment(), other.experiment())
        (other.folder / "train/HR/coffee.png").rename(other.folder / "train/HR/cups.png")
        (other.folder / "train/X2/coffeex2.png").rename(other.folder / "train/X2/cupsx2.png")
    if what == "train.optim_g.betas":
        shutil.copytree(trained.experiment(), other.experiment())
        del other.options["train"]["optim_g"]["betas"]
    for place in (trained, other):
        batch_per_rank(place, 2)
        place.options["train"]["total_iter"] = 14
    line = trained.fault_of_ranks("--auto-resume", last=other)
    assert line.startswith("dlgsanet: error: rank 1 has another value of")
    assert what in line


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--force-yml", "network_g:upscale=3"], "network_g.upscale: is 3, but scale is 2"),
        (["--force-yml", "path:pretrain_network_g=train/HR/coffee.png"], "coffee.png: damaged or not a checkpoint"),
        (["--decay-now", "4"], "there is no checkpoint in "),
    ],
    ids=["before they meet", "of all", "of the first"],
)
def test_a_fault_ends_all_ranks(workplace, arguments, what):
    batch_per_rank(workplace, 2)
    assert what in workplace.fault_of_ranks(*arguments)


def test_a_fault_of_another_host_is_said(workplace, tmp_path):
    (tmp_path / "other").mkdir()
    other = Workplace(tmp_path / "other")
    batch_per_rank(workplace, 2)
    (other.folder / "train").symlink_to(workplace.folder / "train")
    (other.folder / "val").mkdir()
    for part in ("HR", "X2"):
        shutil.copytree(workplace.folder / "val" / part, other.folder / "val" / part)
    (other.folder / "val/X2/crop1x2.png").write_bytes(b"")
    batch_per_rank(other, 2)
    assert "crop1x2.png" in workplace.fault_of_ranks(last=other)


# Two ranks with the same fault. The first one stays until the second one has ended.
TWO_WITH_ONE_FAULT = """
import os
from dlgsanet import distributed
from dlgsanet.errors import UserError

def start(stay):
    if os.fork() == 0:
        distributed.time.sleep = stay
        with distributed.as_rank("pytorch"):
            raise UserError("no such file")

(said, say), (ended, end) = os.pipe(), os.pipe()
start(lambda seconds: (os.write(say, b"."), os.read(ended, 1)))
os.read(said, 1)
start(None)
print(os.waitstatus_to_exitcode(os.wait()[1]))
os.write(end, b".")
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_a_fault_of_several_ranks_is_said_once():
    done = python(TWO_WITH_ONE_FAULT)
    assert (done.stdout, done.stderr) == ("2\n2\n", "dlgsanet: error: no such file\n")

"""Runs that start as a linear filter, runs with a teacher, and what validation says about bicubic interpolation."""

from pathlib import Path

import cv2
import pytest
import torch

from dlgsanet.archs.checkpoint import write_checkpoint
from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.data.resize import imresize
from dlgsanet.metrics import psnr
from tests.training.conftest import OPTIONS, identical, resumed

LINEAR = {"network_init": "linear", "ema_decay": 0.9}


def start_weights(workplace) -> dict:
    """Weights after one iteration that changes nothing."""
    workplace.options["train"] |= {"total_iter": 1, "optim_g": {"type": "SGD", "lr": 0.0}}
    workplace.options["val"]["val_freq"] = 1
    said = workplace.train()
    return workplace.weights(1) | {"said": said}


def test_linear_start_is_far_above_random_weights_in_the_first_validation(workplace):
    workplace.options["train"] |= LINEAR
    found = start_weights(workplace)
    assert identical(found["params"], found["params_ema"])
    workplace.options["train"]["network_init"] = "random"
    workplace.options["name"] = "random"
    workplace.train()
    assert "linear filter of the training set (train.network_init)" in found["said"]
    linear, random = (workplace.checkpoint(1, name)["position"]["best"]["value"] for name in ("run", "random"))
    assert linear > random + 10


def test_last_convolution_alone_is_computed(workplace):
    workplace.options["train"] |= LINEAR | {"network_init": "last"}
    body = DLGSANet(**{key: value for key, value in workplace.options["network_g"].items() if key != "type"})
    write_checkpoint(workplace.folder / "body.safetensors", body.state_dict())
    workplace.options["path"] |= {"pretrain_network_g": "body.safetensors", "strict_load_g": False}
    found = start_weights(workplace)
    assert identical(found["params"], found["params_ema"])
    same = {name for name, tensor in body.state_dict().items() if torch.equal(tensor, found["params"][name])}
    assert body.state_dict().keys() - same == {"upsample.0.weight", "upsample.0.bias"}
    assert workplace.checkpoint(1)["position"]["best"]["value"] > 15


def test_linear_start_is_for_the_first_start_only_and_is_alike_on_all_ranks(workplace, finished):
    workplace.options["train"] |= LINEAR | {"total_iter": 4}
    workplace.options["datasets"]["train"] |= {"batch_size_per_gpu": 4, "num_worker_per_gpu": 0}
    workplace.train()
    alone = workplace.weights(4)["params"]
    workplace.options["train"]["total_iter"] = 6
    assert resumed(workplace.train("--auto-resume")) == (4, True)
    workplace.options |= {"name": "shared"}
    workplace.options["train"]["total_iter"] = 4
    workplace.options["datasets"]["train"]["batch_size_per_gpu"] = 2
    for run in workplace.start_ranks(2):
        run.end()
    shared = workplace.weights(4, "shared")["params"]
    assert max(float((alone[name] - shared[name]).abs().max()) for name in alone) < 1e-4


def test_pictures_below_bicubic_are_counted_by_the_metric_that_chooses(workplace):
    workplace.options["val"]["save_img"] = True
    workplace.options["logger"]["use_tb_logger"] = True
    workplace.options["train"] |= LINEAR
    found = start_weights(workplace)
    below = 0
    for path in sorted((workplace.folder / "val/HR").iterdir()):
        made = next(Path(workplace.experiment() / "visualization/Crops/1").glob(f"{path.stem}x2*.png"))
        hr, lr, sr = (cv2.imread(str(p)) for p in (path, workplace.folder / f"val/X2/{path.stem}x2.png", made))
        below += psnr(sr[..., ::-1], hr[..., ::-1], 2) < psnr(imresize(lr, 2)[..., ::-1], hr[..., ::-1], 2)
    assert f"below bicubic {below} of 3" in found["said"]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(workplace.folder / "tb_logger/run")).Reload()
    assert [event.value for event in events.Scalars("metrics/Crops/below_bicubic")] == [below]


def teacher_file(folder: Path, **options) -> str:
    torch.manual_seed(5)
    network = DLGSANet(**{k: v for k, v in OPTIONS["network_g"].items() if k != "type"} | options)
    torch.save({"params": network.state_dict()}, folder / "teacher.pth")
    return "teacher.pth"


@pytest.mark.parametrize("named", [False, True])
def test_teacher_is_a_second_target_and_is_saved_nowhere(workplace, named):
    teacher = {"path": teacher_file(workplace.folder), "share": 1.0}
    if named:
        teacher["network"] = dict(OPTIONS["network_g"])
    workplace.options["train"]["teacher_opt"] = teacher
    workplace.options["path"]["pretrain_network_g"] = "teacher.pth"
    said = workplace.train()
    (log,) = workplace.experiment().glob("train_*.log")
    assert "Teacher: DLGSANet, teacher.pth" in said
    assert "Teacher: DLGSANet, teacher.pth" in log.read_text()  # though the folder was made later
    lines = [line for line in said.splitlines() if "l_teacher" in line]
    first = float(lines[0].split("l_teacher ")[1].split()[0])
    assert first == pytest.approx(0, abs=1e-6)  # the network began as its teacher
    files = {path.name.split("_")[0] for path in (workplace.experiment() / "models").iterdir()}
    assert files == {"net"}
    assert set(workplace.weights(12)) == {"params", "params_ema"}


def test_teacher_of_spandrel(workplace):
    spandrel = pytest.importorskip("spandrel")
    network = spandrel.architectures.Compact.Compact(num_feat=8, num_conv=1, upscale=2)
    torch.save({"params": network.state_dict()}, workplace.folder / "teacher.pth")
    workplace.options["train"]["teacher_opt"] = {"path": "teacher.pth", "share": 0.25}
    assert "Teacher: RealESRGAN Compact, teacher.pth" in workplace.train()


def test_teachers_that_do_not_fit(workplace):
    workplace.options["train"]["teacher_opt"] = {"path": teacher_file(workplace.folder, upscale=4)}
    last = workplace.fault()
    assert all(name in last for name in ("teacher.pth", "train.teacher_opt", "scale"))
    torch.save({"params": {"weight": torch.ones(3)}}, workplace.folder / "teacher.pth")
    last = workplace.fault()
    assert "teacher.pth" in last
    assert "train.teacher_opt.network" in last


OWN_TEACHER = """
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

@ARCH_REGISTRY.register()
class TakesOneSize(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(nn.Conv2d(1, 1, 1).weight)

    def forward(self, x):
        assert x.shape[-1] == 16
        return nn.functional.interpolate(x, scale_factor=2)
"""


def test_a_teacher_that_refuses_the_size_of_the_crops_is_named_before_training(workplace):
    workplace.import_own(OWN_TEACHER)
    torch.save({"params": {"weight": torch.ones(1, 1, 1, 1)}}, workplace.folder / "teacher.pth")
    workplace.options["train"]["teacher_opt"] = {"path": "teacher.pth", "network": {"type": "TakesOneSize"}}
    last = workplace.fault()
    assert all(name in last for name in ("train.teacher_opt: teacher.pth", "TakesOneSize", "12x12"))
    assert not workplace.experiment().exists()

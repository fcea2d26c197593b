"""Networks of one's own in `dlgsanet train`, as the trained network and as the teacher: docs/examples/smfanet.py."""

import shutil
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from dlgsanet.extensions import import_all
from tests.conftest import REPOSITORY
from tests.training.conftest import NORMALISED

EXAMPLE = REPOSITORY / "docs/examples/smfanet.py"
NETWORK = {"type": "SMFANet", "dim": 8, "n_blocks": 1, "upscaling_factor": 2}


def weights(path: Path, **more) -> str:
    """Weights of random values, as a file named relative to the workplace."""
    import_all([str(EXAMPLE)])
    from basicsr.utils.registry import ARCH_REGISTRY

    torch.manual_seed(1)
    network = ARCH_REGISTRY.get("SMFANet")(**{k: v for k, v in (NETWORK | more).items() if k != "type"})
    torch.save({"params": network.state_dict()}, path)
    return path.name


@pytest.fixture
def own(workplace):
    shutil.copy(EXAMPLE, workplace.folder / "smfanet.py")
    workplace.options["train"]["total_iter"] = 2
    return workplace


def give(workplace, by: str) -> list[str]:
    """Import the example by the option file or by the command: the arguments for `dlgsanet train`."""
    if by == "command":
        return ["--import", "smfanet.py"]
    workplace.options["import"] = "smfanet.py" if by == "file" else ["smfanet"]
    return []


@pytest.mark.parametrize("by", ["file", "module", "command"])
def test_it_teaches(own, by):
    own.options["train"]["teacher_opt"] = {"path": weights(own.folder / "t.pth"), "network": NETWORK, "share": 0.5}
    said = own.train(*give(own, by))
    assert "Teacher: SMFANet, t.pth" in said
    assert "l_teacher" in said


@pytest.mark.parametrize("by", ["file", "command"])
def test_it_is_trained_and_teaches_its_like(own, by):
    own.options["network_g"] = NETWORK
    own.options["path"]["pretrain_network_g"] = weights(own.folder / "t.pth")
    own.options["train"]["teacher_opt"] = {"path": "t.pth", "network": NETWORK, "share": 1.0}
    own.options["datasets"]["train"]["num_worker_per_gpu"] = int(by == "command")
    own.options["logger"]["save_safetensors"] = True
    said = own.train(*give(own, by))
    lines = [line for line in said.splitlines() if "l_teacher" in line]
    assert float(lines[0].split("l_teacher ")[1].split()[0]) == pytest.approx(0, abs=1e-6)  # it began as its teacher
    assert own.weights(2)["params"].keys() == torch.load(own.folder / "t.pth")["params"].keys()


def test_averaged_weights_have_the_statistics_of_batch_normalisation(own):
    own.import_own(NORMALISED, network_g={"type": "Normalised"})
    own.train()
    weights = own.weights("latest")
    for name in ("1.running_mean", "1.running_var"):
        assert torch.equal(weights["params_ema"][name], weights["params"][name])
    assert not torch.equal(weights["params_ema"]["1.weight"], weights["params"]["1.weight"])


def test_without_the_import_the_class_is_unknown(own):
    own.options["network_g"] = NETWORK
    assert "unknown type 'SMFANet'" in own.fault()
    own.options["import"] = ["smfanet.py", 3]
    assert "import" in own.fault()


@pytest.mark.parametrize("where", ["network_g", "teacher", "SRModel"])
def test_an_enlargement_by_another_factor_is_one_clear_line(own, where):
    """It is found before work begins."""
    own.options["import"] = "smfanet.py"
    other = NETWORK | {"upscaling_factor": 3}
    if where == "teacher":
        path = weights(own.folder / "t.pth", upscaling_factor=3)
        own.options["train"]["teacher_opt"] = {"path": path, "network": other}
    else:
        own.options["network_g"] = other
    if where == "SRModel":
        own.options |= {
            "model_type": "SRModel",
            "train": {k: v for k, v in own.options["train"].items() if k[0] != "e"},
        }
    line = own.fault()
    assert ("train.teacher_opt" if where == "teacher" else "network_g") in line
    assert "scale is 2" in line
    assert not own.experiment().exists()


def test_a_network_that_does_not_take_the_crops_is_one_clear_line(own):
    own.options["network_g"] = {"type": "SwinIR", "upscale": 2, "window_size": 8, "img_size": 12, "depths": [1],
                                "embed_dim": 8, "num_heads": [1], "upsampler": "pixelshuffledirect"}  # fmt: skip
    own.options["model_type"] = "SwinIRModel"
    del own.options["train"]["ema_decay"]
    line = own.fault()
    assert "network_g: SwinIR" in line
    assert "12x12" in line


def test_a_branch_of_a_run_imports_what_the_run_imported(own):
    """The file to import is next to the option file, and not where the branch's option file is."""
    own.options |= {"network_g": NETWORK, "import": "smfanet.py"}
    own.options["train"] |= {"total_iter": 100, "scheduler": {"type": "WSD"}}
    (own.folder / "files").mkdir()
    (own.folder / "smfanet.py").rename(own.folder / "files/smfanet.py")
    (own.folder / "files/options.yml").write_text(yaml.safe_dump(own.options))
    own.start("-opt", "files/options.yml", stop=(2, signal.SIGTERM)).end(75)
    own.train("-opt", "files/options.yml", "--decay-now", "2")
    branch = "experiments/run_decay_2/run_decay_2.yml"
    for path in own.experiment("run_decay_2").glob("training_states/4*"):
        path.unlink()
    assert "from iteration 2" in own.train("-opt", branch, "--auto-resume")


WRONG = """
import torch
from torch import nn
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY

@ARCH_REGISTRY.register()
class Several(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2))
    def forward(self, x):
        return [super().forward(x)] * 2

@ARCH_REGISTRY.register()
class SeveralInTraining(Several):
    def forward(self, x):
        return super().forward(x) if self.training else super().forward(x)[0]

@ARCH_REGISTRY.register()
class MultiplesOf4(Several):
    def forward(self, x):
        return super().forward(nn.functional.pixel_shuffle(nn.functional.pixel_unshuffle(x, 4), 4))[0]

@DATASET_REGISTRY.register()
class Alone(PairedImageDataset):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        del sample["gt"]
        return sample

@DATASET_REGISTRY.register()
class Larger(PairedImageDataset):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return sample | {"gt": nn.functional.pad(sample["gt"], (0, 1, 0, 1))}

@DATASET_REGISTRY.register()
class Tuples(PairedImageDataset):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return sample["lq"], sample["gt"]

@DATASET_REGISTRY.register()
class Nothing(PairedImageDataset):
    def __getitem__(self, index):
        return super().__getitem__(index) | {"more": None}

@DATASET_REGISTRY.register()
class Endless(torch.utils.data.IterableDataset):
    def __init__(self, opt):
        super().__init__()
    def __iter__(self):
        yield from ()
"""


@pytest.mark.parametrize(
    ("where", "name", "message"),
    [
        ("network_g", "Several", "network_g: Several returns a list"),
        ("network_g", "SeveralInTraining", "network_g: SeveralInTraining returns a list in training mode"),
        ("network_g", "MultiplesOf4", "network_g: MultiplesOf4 cannot take the 22x25 pixels of an image of Crops"),
        ("train", "Alone", "datasets.train: its samples must be dictionaries with lq and gt, [C, H, W]; gt is not"),
        ("val", "Alone", "datasets.val: its samples must be dictionaries with lq and gt, [C, H, W]; gt is not"),
        ("val", "Larger", "datasets.val: a sample has lq of "),
        ("train", "Tuples", "datasets.train: its samples must be dictionaries"),
        ("val", "Nothing", "datasets.val: no batch can be made of its samples"),
        ("train", "Endless", "datasets.train: Endless: object of type 'Endless' has no len()"),
    ],
)
def test_a_class_that_does_not_fit_is_found_before_work_begins(own, where, name, message):
    own.import_own(WRONG)
    if where == "network_g":
        own.options["network_g"] = {"type": name}
    else:
        own.options["datasets"][where]["type"] = name
    assert message in own.fault()
    assert not own.experiment().exists()


def test_a_crop_of_a_large_image_is_tried(own):
    """Its sides have the same remainders, and it takes less time than the whole image."""
    own.own_images()
    for part, shape in (("HR/crop1.png", (804, 800, 3)), ("X2/crop1x2.png", (402, 400, 3))):
        assert cv2.imwrite(str(own.folder / "val" / part), np.zeros(shape, np.uint8))
    own.import_own(WRONG, network_g={"type": "MultiplesOf4"})
    for crop in ("crop0", "crop2"):
        (own.folder / f"val/HR/{crop}.png").unlink()
        (own.folder / f"val/X2/{crop}x2.png").unlink()
    assert "cannot take the 400x402 pixels of an image of Crops (tried with 208x210; " in own.fault()


NORM_OF_WEIGHTS = """
from torch import nn
from basicsr.utils.registry import ARCH_REGISTRY

@ARCH_REGISTRY.register()
class NormOfWeights(nn.Sequential):
    def __init__(self):
        super().__init__(nn.utils.weight_norm(nn.Conv2d(3, 12, 3, padding=1)), nn.PixelShuffle(2))
"""


def test_weight_norm(own):
    own.import_own(NORM_OF_WEIGHTS, network_g={"type": "NormOfWeights"})
    own.train()
    weights = own.weights("latest")
    for name in ("0.weight_g", "0.weight_v"):
        assert not torch.equal(weights["params_ema"][name], weights["params"][name])


OWN_MODEL = """
from basicsr.utils.registry import MODEL_REGISTRY
from dlgsanet.models.dlgsanet_model import DLGSANetModel

@MODEL_REGISTRY.register()
class OwnModel(DLGSANetModel):
    def _loss_terms(self, output, gt, teacher_output):
        return {"l_own": ((output - gt) ** 2).mean()}
"""


def test_a_model_that_is_derived_from_ours_has_its_options(own):
    own.import_own(OWN_MODEL, model_type="OwnModel")
    own.options["train"] |= {"precision": "bf16", "accumulate": 2, "scheduler": {"type": "WSD"}}
    said = own.train()
    assert "l_own" in said
    assert "Precision  bf16" in said


OWN_SRMODEL = """
from basicsr.archs import build_network
from basicsr.losses import build_loss
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import MODEL_REGISTRY

@MODEL_REGISTRY.register()
class OwnSRModel(SRModel):
    def init_training_settings(self):
        self.net_d = build_network(self.opt["network_d"])
        self.own_loss = build_loss(self.opt["train"]["own_opt"])
        super().init_training_settings()

    def optimize_parameters(self, iteration):
        self.optimizer_g.zero_grad()
        loss = self.own_loss(self.net_g(self.lq), self.gt)
        loss.backward()
        self.optimizer_g.step()
        self.model_ema(self.ema_decay)
        self.log_dict = {"l_own": loss.item()}
"""


def test_a_model_that_is_derived_from_basicsr_has_options_of_its_own(own):
    own.import_own(OWN_SRMODEL, model_type="OwnSRModel", network_d={"type": "UNetDiscriminatorSN", "num_in_ch": 3})
    own.options["train"] |= {"own_opt": own.options["train"]["pixel_opt"], "grad_clip": 1}
    own.options["path"]["pretrain_network_d"] = None
    said = own.train()
    assert "train.own_opt" in said
    assert "l_own" in said
    assert (own.experiment() / "models/net_d_2.pth").exists()


METRIC = """
import math
from basicsr.utils.registry import METRIC_REGISTRY

calls = 0

@METRIC_REGISTRY.register()
def late(img, img2):
    global calls
    if len(img) > 100 or (img == img2).all():  # when it is tried
        return float((img == img2).all())
    calls += 1
    return math.nan if calls <= 6 else calls  # three images, and bicubic interpolation of each
"""


def test_a_score_that_is_not_a_number_is_not_the_best(own):
    own.import_own(METRIC)
    own.options["val"] |= {"val_freq": 1, "metrics": {"late": {"type": "late"}}}
    said = own.train()
    assert "late nan" in said
    assert "Best late on Crops: 8.0000 at 2" in said
    assert (own.experiment() / "models/net_g_best.pth").exists()

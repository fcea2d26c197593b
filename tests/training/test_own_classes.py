"""Networks of one's own in `dlgsanet train`, as the trained network and as the teacher: docs/examples/smfanet.py."""

import shutil
import signal
from pathlib import Path

import pytest
import torch

from dlgsanet.extensions import import_all
from tests.conftest import REPOSITORY

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


NORMALISED = """
from torch import nn
from basicsr.utils.registry import ARCH_REGISTRY

@ARCH_REGISTRY.register()
class Normalised(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.PixelShuffle(2))
"""


def test_averaged_weights_have_the_statistics_of_batch_normalisation(own):
    (own.folder / "normalised.py").write_text(NORMALISED)
    own.options |= {"network_g": {"type": "Normalised"}, "import": "normalised.py"}
    own.train()
    weights = own.weights("latest")
    for name in ("1.running_mean", "1.running_var"):
        assert torch.equal(weights["params_ema"][name], weights["params"][name])
    assert not torch.equal(weights["params_ema"]["1.weight"], weights["params"]["1.weight"])


def test_without_the_import_the_class_is_unknown(own):
    own.options["network_g"] = NETWORK
    assert "unknown type 'SMFANet'" in own.train(code=2).splitlines()[-1]
    own.options["import"] = ["smfanet.py", 3]
    assert "import" in own.train(code=2).splitlines()[-1]


@pytest.mark.parametrize("where", ["network_g", "teacher", "SRModel"])
def test_an_enlargement_by_another_factor_is_one_clear_line(own, where):
    """It is found before work begins: there is no iteration yet."""
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
    said = own.train(code=2)
    assert "Traceback" not in said
    assert ("train.teacher_opt" if where == "teacher" else "network_g") in said.splitlines()[-1]
    assert "scale is 2" in said.splitlines()[-1]
    assert " 1/" not in said


def test_a_network_that_does_not_take_the_crops_is_one_clear_line(own):
    own.options["network_g"] = {"type": "SwinIR", "upscale": 2, "window_size": 8, "img_size": 12, "depths": [1],
                                "embed_dim": 8, "num_heads": [1], "upsampler": "pixelshuffledirect"}  # fmt: skip
    own.options["model_type"] = "SwinIRModel"
    del own.options["train"]["ema_decay"]
    said = own.train(code=2)
    assert "Traceback" not in said
    assert "network_g: SwinIR" in said.splitlines()[-1]
    assert "12x12" in said.splitlines()[-1]


def test_a_branch_of_a_run_imports_what_the_run_imported(own):
    """The file to import is next to the option file, and not where the branch's option file is."""
    own.options |= {"network_g": NETWORK, "import": "smfanet.py"}
    own.options["train"] |= {"total_iter": 100, "scheduler": {"type": "WSD"}}
    (own.folder / "files").mkdir()
    (own.folder / "smfanet.py").rename(own.folder / "files/smfanet.py")
    start = own.start

    def start_of_folder(*arguments, **more):
        """The option file is files/options.yml."""
        own.starts += 1
        import yaml

        (own.folder / "files/options.yml").write_text(yaml.safe_dump(own.options))
        return start("-opt", "files/options.yml", *arguments, **more)

    start_of_folder(stop=(2, signal.SIGTERM)).end(75)
    start_of_folder("--decay-now", "2").end()
    branch = "experiments/run_decay_2/run_decay_2.yml"
    for path in own.experiment("run_decay_2").glob("training_states/4*"):
        path.unlink()
    assert "from iteration 2" in start("-opt", branch, "--auto-resume").end()

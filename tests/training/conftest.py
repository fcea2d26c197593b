"""A small run on scikit-image's photographs: data sets, an option file, and a way to start `dlgsanet train`."""

import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from copy import deepcopy
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import pytest
import skimage.data
import torch
import yaml
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event

import dlgsanet.plugin  # noqa: F401  # here, before any test imports BasicSR
from dlgsanet.cli import run
from dlgsanet.data.resize import downscale
from dlgsanet.training.loop import Loop
from tests.conftest import REPOSITORY


def _data_set(name: str, folder: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "PairedImageDataset",
        "dataroot_gt": f"{folder}/HR",
        "dataroot_lq": f"{folder}/X2",
        "filename_tmpl": "{}x2",
        "io_backend": {"type": "disk"},
    }


def _metric(name: str) -> dict[str, Any]:
    return {"type": f"calculate_{name}", "crop_border": 2, "test_y_channel": True}


OPTIONS: dict[str, Any] = {
    "name": "run",
    "model_type": "DLGSANetModel",
    "scale": 2,
    "num_gpu": 0,
    "manual_seed": 10,
    "datasets": {
        "train": _data_set("Photos", "train")
        | {"type": "CachedPairedImageDataset", "gt_size": 24, "use_hflip": True, "use_rot": True}
        | {"num_worker_per_gpu": 0, "batch_size_per_gpu": 4},
        "val": _data_set("Crops", "val"),
    },
    "network_g": {
        "type": "DLGSANet",
        "dim": 12,
        "groups": 1,
        "blocks": 1,
        "window_size": 3,
        "buildblock_type": "sparseedge",
        "upsampler": "pixelshuffledirect",
        "upscale": 2,
    },
    "path": {"pretrain_network_g": None},
    "train": {
        "ema_decay": 0.9,
        "optim_g": {"type": "Adam", "lr": 0.001, "betas": [0.9, 0.99]},
        "scheduler": {"type": "MultiStepLR", "milestones": [8], "gamma": 0.5},
        "total_iter": 12,
        "pixel_opt": {"type": "L1Loss"},
    },
    "val": {"val_freq": 6, "save_img": False, "metrics": {"psnr": _metric("psnr"), "ssim": _metric("ssim")}},
    "logger": {"print_freq": 1, "save_checkpoint_freq": 2, "use_tb_logger": False},
}


# A run that is not a `Start`, with the options in `options.yml`: see `Workplace.run_apart`.
COMMAND = [sys.executable, "-m", "dlgsanet", "train", "-opt", "options.yml"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}

FORKSERVER = multiprocessing.get_context("forkserver")
# A start then takes no seconds for imports, of what a run needs and of this file.
FORKSERVER.set_forkserver_preload(["dlgsanet.training.run", "dlgsanet.commands.train", __name__])


def run_as_ranks(work: Callable[[int, Path], None], folder: Path) -> None:
    """Call work(rank, folder) in a process for each of two ranks, which meet in the folder."""
    processes = [FORKSERVER.Process(target=_as_rank, args=(work, rank, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
        assert process.exitcode == 0


def _as_rank(work: Callable[[int, Path], None], rank: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    work(rank, folder)


def pytest_collection_finish() -> None:
    """Start the server before a test of something else starts one that imports less: a process has only one."""
    forkserver.ensure_running()


class Start:
    """A run of `dlgsanet train` in a process of its own; what it says on stderr goes to a file."""

    def __init__(self, said: Path, *more: Any):
        self.said = said
        said.touch()  # a run may be killed before it opens it
        self.process = FORKSERVER.Process(target=_train, args=(said, *more))
        self.process.start()

    def wait_for(self, text: str) -> None:
        """Wait until the run has said something."""
        while text not in self.said.read_text():
            assert self.process.exitcode is None, self.said.read_text()
            time.sleep(0.005)

    def signal(self, number: int) -> None:
        """Send a signal to the run and all its workers, as slurm and a terminal do."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:  # it has only just begun, and is not yet a group of its own
            os.kill(self.process.pid, number)

    def end(self, code: int = 0) -> str:
        """Wait for the end, whose exit code must be `code`; what the run said."""
        self.process.join(600)
        said = self.said.read_text()
        assert self.process.exitcode == code, said
        return said


class Stop(NamedTuple):
    """A signal that a run gets.

    With `steps`, a real number, it and its workers get it up to so many steps later, in the middle of whatever they do.
    """

    iteration: int
    number: int
    steps: float | None = None


def _train(said: Path, folder: Path, arguments: list[str], environment: dict[str, str], stop: Stop | None) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ.update(environment)
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", 1)))
    with open(said, "w") as file:
        os.dup2(file.fileno(), 2)
    if stop:
        report = Loop._report

        def report_and_stop(loop: Loop) -> None:
            report(loop)
            after = loop.position.iteration - stop.iteration
            if after == 0 and stop.steps is None:
                loop.board.flush()  # otherwise only its thread knows when it writes
                os.kill(os.getpid(), stop.number)
            elif after == 0:
                delay = stop.steps * loop.pace.seconds_per_iteration
                threading.Timer(delay, os.killpg, (0, stop.number)).start()
            elif stop.steps is not None and after > stop.steps:  # the step before took longer than those since
                os.killpg(0, stop.number)

        Loop._report = report_and_stop
    sys.exit(run("dlgsanet.commands.train:main", arguments))


class Workplace:
    """A folder with data sets and option files; its methods start training there.

    Attributes:
        folder: where `experiments/` comes to be.
        options: of the next run; a test changes them as it likes.
    """

    def __init__(self, folder: Path):
        self.folder, self.options = folder, deepcopy(OPTIONS)
        self.starts = 0

    def own_images(self) -> None:
        """Make the data sets files that a test may change."""
        for part in ("train", "val"):
            shared = (self.folder / part).resolve()
            (self.folder / part).unlink()
            shutil.copytree(shared, self.folder / part)

    def start(self, *arguments: str, stop: tuple[int, int] | Stop | None = None, **environment: str) -> Start:
        """Start training with the options as they are now; `stop`: an iteration after which it gets a signal."""
        self.starts += 1
        content = yaml.safe_dump(self.options)
        file = self.folder / f"options_{zlib.crc32(content.encode()):08x}.yml"  # the same one for all ranks
        if not file.exists():  # another rank may be reading it
            file.write_text(content)
        said = self.folder / f"said_{self.starts}.txt"
        return Start(said, self.folder, ["-opt", file.name, *arguments], environment, stop and Stop(*stop))

    def run_apart(self, *before: str, **settings: Any) -> subprocess.CompletedProcess:
        """Train in a process that is not a `Start`, by a command of which COMMAND is the end."""
        (self.folder / "options.yml").write_text(yaml.safe_dump(self.options))
        settings = {"env": ENVIRONMENT, "capture_output": True, "text": True} | settings
        return subprocess.run([*before, *COMMAND], cwd=self.folder, **settings)

    def train(self, *arguments: str, code: int = 0) -> str:
        """Train to the end, which must come with an exit code; what was said."""
        return self.start(*arguments).end(code)

    def fault(self, *arguments: str) -> str:
        """Start training, which must end with a UserError; its line."""
        return last_line(self.train(*arguments, code=2))

    def import_own(self, code: str, **options: Any) -> None:
        """Have the option file import a file of the user's own, and set options."""
        (self.folder / "own.py").write_text(code)
        self.options |= {"import": "own.py"} | options

    def start_ranks(
        self, count: int, *arguments: str, stop: tuple[int, int] | None = None, last: "Workplace | None" = None
    ) -> list[Start]:
        """Start training on so many ranks of this machine, as torchrun does; `stop` is for the last one, which starts
        in the workplace `last`, as if it were on another host."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
        arguments = ("--launcher", "pytorch", *arguments)
        return [
            place.start(
                *arguments, stop=stop if rank == count - 1 else None, **shared, RANK=str(rank), LOCAL_RANK=str(rank)
            )
            for rank, place in enumerate([*[self] * (count - 1), last or self])
        ]

    def fault_of_ranks(self, *arguments: str, last: "Workplace | None" = None) -> str:
        """Start training on two ranks, both of which must end with one UserError; its line.

        One of them says it. On a busy machine the other may be so late that it says it too.
        """
        said = "".join(run.end(2) for run in self.start_ranks(2, *arguments, last=last))
        assert "Traceback" not in said
        (line,) = {line for line in said.splitlines() if line.startswith("dlgsanet: ")}
        return line

    def experiment(self, name: str = "run") -> Path:
        return self.folder / "experiments" / name

    def weights(self, which: int | str, name: str = "run") -> dict[str, Any]:
        """The content of a weights file: of an iteration, `best` or `latest`."""
        return torch.load(self.experiment(name) / f"models/net_g_{which}.pth", weights_only=True)

    def checkpoint(self, iteration: int, name: str = "run") -> dict[str, Any]:
        """All that a checkpoint holds, except for the seconds and the conditions of the run."""
        state = torch.load(self.experiment(name) / f"training_states/{iteration}.state", weights_only=True)
        del state["position"]["seconds"], state["conditions"]
        return state | {"weights": self.weights(iteration, name)}


def identical(a: Any, b: Any) -> bool:
    """Whether two nested structures are equal, tensors bit by bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(identical(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(identical, a, b))
    return a == b


def tensorboard_steps(folder: Path) -> dict[str, list[int]]:
    """The steps of every tag, in their order, as they are in the files."""
    steps: dict[str, list[int]] = {}
    for path in sorted(folder.glob("events.*")):
        for record in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(record)
            for value in event.summary.value:
                steps.setdefault(value.tag, []).append(event.step)
    return steps


def last_line(said: str) -> str:
    """What a run has said that ended with a UserError."""
    assert "Traceback" not in said
    line = said.splitlines()[-1]
    assert line.startswith("dlgsanet: error: ")
    return line


def resumed(said: str) -> tuple[int, bool]:
    """The iteration from which a run has continued, and whether it calls that exact."""
    (line,) = (line for line in said.splitlines() if " Resume " in line)
    words = line.replace(",", "").split()
    return int(words[words.index("iteration") + 1]), "not exact" not in line and "exact" in words


# A network with batch normalisation, for `Workplace.import_own`.
NORMALISED = """
from torch import nn
from basicsr.utils.registry import ARCH_REGISTRY

@ARCH_REGISTRY.register()
class Normalised(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.PixelShuffle(2))
"""
OWN_DATA_SET = """
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.utils.registry import DATASET_REGISTRY

@DATASET_REGISTRY.register()
class OwnDataSet(PairedImageDataset):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return sample | {"lq": 1 - sample["lq"], "gt": 1 - sample["gt"]}
"""


def own_data_set(workplace: Workplace) -> None:
    """Have the training set be of a class that only `own.py` defines."""
    (workplace.folder / "own.py").write_text(OWN_DATA_SET)
    workplace.options["datasets"]["train"]["type"] = "OwnDataSet"


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> Path:
    """Pairs at x2: three photographs to train on, three crops of another to validate on."""
    root = tmp_path_factory.mktemp("photographs")
    rocket = skimage.data.rocket()
    images = {f"train/{name}": getattr(skimage.data, name)()[:96, :128] for name in ("astronaut", "chelsea", "coffee")}
    images |= {f"val/crop{i}": rocket[100 : 148 + 2 * i, 250 : 290 + 4 * i] for i in range(3)}
    for name, image in images.items():
        folder, stem = name.split("/")
        for part, pixels, suffix in (("HR", image, ""), ("X2", downscale(image, 2), "x2")):
            path = root / folder / part / f"{stem}{suffix}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), pixels[..., ::-1])
    return root


def _workplace(folder: Path, photographs: Path) -> Workplace:
    for part in ("train", "val"):
        (folder / part).symlink_to(photographs / part)
    return Workplace(folder)


@pytest.fixture
def workplace(tmp_path, photographs) -> Workplace:
    return _workplace(tmp_path, photographs)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, photographs) -> Workplace:
    """A workplace with a run that has come to its end undisturbed; not to be changed."""
    finished = _workplace(tmp_path_factory.mktemp("finished"), photographs)
    finished.train()
    return finished


@pytest.fixture
def trained(workplace, finished) -> Workplace:
    """A workplace of this test's own with the finished run in it."""
    shutil.copytree(finished.folder / "experiments", workplace.folder / "experiments")
    return workplace

"""Commands that only run a network import what they need for it, and nothing else."""

import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY, python

# Slow to import, and of no use to `dlgsanet upscale` of a PNG on a CPU.
UNUSED = [
    "basicsr", "cupy", "cv2", "lmdb", "matplotlib", "onnx", "pandas", "scipy", "skimage", "spandrel", "tensorboard",
    "tifffile", "torchvision", "triton", "yaml", "torch._decomp", "torch._dynamo", "torch._inductor",
    "torch._meta_registrations", "torch._refs", "dlgsanet.basicsr_compat", "dlgsanet.data", "dlgsanet.evaluation",
    "dlgsanet.models", "dlgsanet.options", "dlgsanet.plugin", "dlgsanet.training",
]  # fmt: skip


@pytest.fixture
def picture(tmp_path):
    from PIL import Image

    path = tmp_path / "small.png"
    Image.effect_mandelbrot((24, 16), (-2, -1, 1, 1), 20).convert("RGB").save(path)
    return path


def test_upscale_imports_nothing_that_it_does_not_use(picture, tmp_path):
    code = "import sys; from dlgsanet.cli import main; code = main(sys.argv[1:]); print(*sys.modules); sys.exit(code)"
    done = python(code, "upscale", picture, "-o", tmp_path / "large.png", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    imported = done.stdout.split()
    assert "torch" in imported
    assert (tmp_path / "large.png").exists()
    assert not [name for name in UNUSED if name in imported]


def test_what_was_not_imported_is_there_when_it_is_used():
    """torch.compile and export follow graphs with functions that `quick_imports` leaves for later."""
    code = """
import sys
from dlgsanet.startup import quick_imports
with quick_imports():
    import torch
assert "torch._meta_registrations" not in sys.modules
from torch._subclasses.fake_tensor import FakeTensorMode
with FakeTensorMode():
    out = torch.nn.functional.conv2d(torch.empty(1, 3, 8, 8), torch.empty(4, 3, 3, 3), padding=1)
print(list(out.shape), torch._meta_registrations.__file__ is not None)
"""
    done = python(code)
    assert done.stdout == "[1, 4, 8, 8] True\n", done.stderr


def test_the_first_access_inside_imports_what_was_put_off():
    code = """
from dlgsanet.startup import quick_imports
with quick_imports():
    import torch
    from torch._meta_registrations import meta_embedding_bag
print(callable(meta_embedding_bag), len(dir(torch._meta_registrations)) > 100)
"""
    done = python(code)
    assert done.stdout == "True True\n", done.stderr


def test_a_process_that_leaves_at_once_has_flushed_and_run_its_exit_functions(tmp_path):
    code = """
import atexit, sys
from dlgsanet.startup import leave
atexit.register(print, "at exit")
print("x" * 100_000)
print("error", file=sys.stderr)
leave(3)
"""
    done = python(code)
    assert done.returncode == 3
    assert done.stdout == "x" * 100_000 + "\nat exit\n"
    assert done.stderr == "error\n"


def test_standard_streams_block():
    """Else a picture from a slow program would be cut off, and one to it lost."""
    read, write = os.pipe()
    for number in (read, write):
        os.set_blocking(number, False)
    code = """
import os, sys
from dlgsanet.startup import prepare_standard_streams
prepare_standard_streams()
sys.exit(not (os.get_blocking(0) and os.get_blocking(1)))
"""
    assert subprocess.run([sys.executable, "-c", code], stdin=read, stdout=write, cwd=REPOSITORY).returncode == 0
    os.close(read)
    os.close(write)


def test_lost_output_is_an_exit_code():
    code = "import sys; from dlgsanet.startup import leave; sys.stdout = open('/dev/full', 'w'); print('x'); leave(0)"
    assert python(code).returncode == 120


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "10000 None"), ({"GOMP_SPINCOUNT": "5"}, "5 None"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None ACTIVE")],
)
def test_idle_threads_sleep_early_unless_the_environment_says_otherwise(given, expected):
    """It must be set before torch loads libgomp, which reads it once."""
    code = """
import os, sys, types
def main(argv):
    assert "torch" not in sys.modules
    print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY"))
    return 0
sys.modules["probe"] = types.SimpleNamespace(main=main)
from dlgsanet.cli import run
sys.exit(run("probe:main", []))
"""
    kept = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = python(code, env=kept | given)
    assert done.stdout.strip() == expected, done.stderr

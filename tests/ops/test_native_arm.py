"""The compiled layers on ARM: cross-compiled for aarch64 (NEON), emulated, compared with those of this machine."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import torch

from dlgsanet.ops.backends.native import BACKEND as native  # noqa: N811
from dlgsanet.ops.backends.native import build, library
from dlgsanet.ops.backends.native.signatures import SIGNATURES
from tests.ops import calls

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not (shutil.which(COMPILER) and shutil.which(EMULATOR)), reason=f"{COMPILER} and {EMULATOR} are not installed"
    ),
    pytest.mark.skipif(not library.library_path().exists(), reason="the native libraries are not built"),
]

Recorded = tuple[str, dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, int]]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """All functions and the program that calls them. The registers have 4 floats, as those of NEON have."""
    path = tmp_path_factory.mktemp("arm") / "recorded_calls"
    flags = [f for f in build._FLAGS.split() if f not in ("-shared", "-fPIC")]
    options = [*flags, *build._DEFINITIONS, build._PORTABLE["portable"], "-static"]
    sources = [HERE / "recorded_calls.cpp", *sorted(build.HERE.glob("*.cpp"))]
    subprocess.run([COMPILER, *options, *map(str, sources), "-o", str(path)], check=True)
    return path


def record(call: calls.Call, monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    """The library's calls, forward and backward: function, tensors before, tensors after, sizes."""
    recorded: list[Recorded] = []
    compute = library.call

    def recording(function: str, **arguments: torch.Tensor | int) -> None:
        signature = SIGNATURES[function]
        sizes = {name: int(arguments[name]) for name in signature.sizes}
        tensors = {name: arguments[name] for name in signature.shapes(**sizes)}
        for tensor in tensors.values():
            tensor.nan_to_num_(0)  # memory that only results are written to may hold anything
        before = {name: tensor.clone() for name, tensor in tensors.items()}
        compute(function, **arguments)
        after = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        # A result may take the place of an input. In the recording they are two tensors.
        out = tensors.get("out")
        for name, tensor in tensors.items():
            if out is not None and name != "out" and tensor.data_ptr() == out.data_ptr():
                after[name] = before[name]
        recorded.append((function, before, after, sizes))

    with monkeypatch.context() as patched:
        patched.setattr(library, "call", recording)
        calls.results(native, call)
    return recorded


def content(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


def written(recorded: list[Recorded]) -> bytes:
    parts = []
    for function, before, _, sizes in recorded:
        parts += [struct.pack("<q", len(function)), function.encode(), struct.pack("<q", len(before))]
        for tensor in before.values():
            parts += [struct.pack("<q", tensor.numel() * tensor.element_size()), content(tensor)]
        parts.append(struct.pack(f"<{1 + len(sizes)}q", len(sizes), *sizes.values()))
    return b"".join(parts)


@pytest.mark.parametrize("name", calls.one_of_each())
def test_results_on_arm_are_those_of_this_machine(name, program, tmp_path, monkeypatch):
    recorded = record(calls.one_of_each()[name], monkeypatch)
    assert recorded
    (tmp_path / "calls").write_bytes(written(recorded))
    subprocess.run([EMULATOR, str(program), str(tmp_path / "calls"), str(tmp_path / "results")], check=True)
    results = (tmp_path / "results").read_bytes()
    for function, before, after, sizes in recorded:
        for argument, expected in after.items():
            size = expected.numel() * expected.element_size()
            if not size:
                continue  # nothing is kept
            found = torch.frombuffer(bytearray(results[:size]), dtype=expected.dtype).view(expected.shape)
            results = results[size:]
            changed = not torch.equal(before[argument], expected)
            if argument == "projected":  # rows in whole registers, of which nothing reads the end
                found, expected = found[..., : sizes["width"]], expected[..., : sizes["width"]]
            scale = expected.abs().max() if changed and expected.is_floating_point() else 1
            where = f"{function}: {argument}"
            torch.testing.assert_close(
                found, expected, rtol=1e-4, atol=float(2e-5 * scale), msg=lambda m, w=where: f"{w}: {m}"
            )
    assert not results

"""The compiled layers in a process: memory, arguments, threads, forks, and calls that they do not support."""

import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from dlgsanet.ops import dispatch
from dlgsanet.ops.backends.native import BACKEND as native  # noqa: N811
from dlgsanet.ops.backends.native import build, library
from tests.ops import calls

REPOSITORY = Path(__file__).parents[2]
CALLS = calls.one_of_each()


@pytest.fixture(scope="module", autouse=True)
def _built():
    if problem := build.build(build.HERE):
        pytest.skip(problem)


@pytest.mark.parametrize("name", CALLS)
def test_nothing_outside_of_a_tensor_is_read_or_written(name, monkeypatch):
    """Every tensor lies between bands of NaN, which must not change and must not affect the result."""
    band = 64
    call = library.call

    def call_between_bands(function, **arguments):
        tensors = {name: a for name, a in arguments.items() if isinstance(a, torch.Tensor)}
        buffers = {}
        for name, t in tensors.items():
            nothing = float("nan") if t.is_floating_point() else -(2**62)
            buffers[name] = torch.full((t.numel() + 2 * band,), nothing, dtype=t.dtype)
            buffers[name][band:-band] = t.flatten()
        before = {name: torch.cat([b[:band], b[-band:]]) for name, b in buffers.items()}
        inside = {name: b[band:-band].view(tensors[name].shape) for name, b in buffers.items()}
        call(function, **arguments | inside)
        for name, buffer in buffers.items():
            after = torch.cat([buffer[:band], buffer[-band:]])
            assert after.view(torch.uint8).equal(before[name].view(torch.uint8))  # bit by bit, as NaN differs from NaN
            tensors[name].view(-1).copy_(buffer[band:-band])

    want = calls.results(native, CALLS[name])
    monkeypatch.setattr(library, "call", call_between_bands)
    for g, w in zip(calls.results(native, CALLS[name]), want, strict=True):
        assert g.equal(w)


def check_threads(call: calls.Call) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        want = calls.results(native, call)
        for count in (2, 3, 7):
            torch.set_num_threads(count)
            for g, w in zip(calls.results(native, call), want, strict=True):
                assert g.equal(w)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", CALLS)
def test_results_do_not_depend_on_the_threads(name):
    check_threads(calls.one_of_each((1, 100, 37))[name])  # tall: more threads get more tiles


# A BLAS divides long sums over pixels among its threads: few channels, many pixels.
@pytest.mark.parametrize("size", [(1, 21, 60), (2, 48, 48), (1, 100, 200), (1, 31, 1000)])
@pytest.mark.parametrize("share", [4, 8, 15])
@pytest.mark.parametrize("kind", ["local", "global"])
def test_sums_over_pixels_do_not_depend_on_the_threads(kind, share, size):
    if kind == "local":
        call = calls.local_attention(size, 2, share, squeezed=4, window_size=3, seed=0, training=True)
    else:
        call = calls.channel_attention(size, 3, share, "relu", None, seed=0, training=True)
    check_threads(call)


def arguments(function: str) -> dict:
    """Small arguments that fit each other: sizes of 1."""
    signature = library.SIGNATURES[function]
    sizes = dict.fromkeys(signature.sizes, 1)
    shapes = {name: [n or 1 for n in shape] for name, shape in signature.shapes(**sizes).items()}
    dtypes = {"band_pieces": torch.int64, "column_pieces": torch.int64}
    return {name: torch.zeros(shape, dtype=dtypes.get(name)) for name, shape in shapes.items()} | sizes


@pytest.fixture
def _compiled_functions_are_not_called(monkeypatch):
    monkeypatch.setattr(library, "_entry", lambda *_: pytest.fail("the compiled function was called"))


@pytest.mark.usefixtures("_compiled_functions_are_not_called")
@pytest.mark.parametrize("function", library.SIGNATURES)
def test_wrong_arguments_of_compiled_functions_are_errors(function):
    right = arguments(function)
    tensor, size = next(iter(right)), library.SIGNATURES[function].sizes[0]
    strided = torch.zeros(*right[tensor].shape[:-1], 2, 2)[..., 0]
    wrong = {
        tensor: [right[tensor].double(), right[tensor].to("meta"), strided, 3, None],
        size: [1.5, "1", torch.zeros(2)],
    }
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(TypeError, match=name):
                library.call(function, **right | {name: value})
        with pytest.raises(TypeError, match=name):
            library.call(function, **{n: a for n, a in right.items() if n != name})
    with pytest.raises(TypeError, match="surplus"):
        library.call(function, **right, surplus=1)


@pytest.mark.usefixtures("_compiled_functions_are_not_called")
@pytest.mark.parametrize("function", library.SIGNATURES)
def test_wrong_shapes_for_compiled_functions_are_errors(function):
    right = arguments(function)
    for name, tensor in right.items():
        if isinstance(tensor, torch.Tensor):
            longer = [torch.cat([tensor, tensor], dim) for dim in range(tensor.dim()) if name not in FREE or dim == 0]
            for wrong in (*longer, tensor[:0], tensor[None], tensor.flatten()[0]):
                with pytest.raises(ValueError, match=name):
                    library.call(function, **right | {name: wrong})


FREE = ("cosines", "norms", "weights")  # how many windows there are follows from the pieces


@pytest.mark.usefixtures("_compiled_functions_are_not_called")
@pytest.mark.parametrize(
    ("function", "sizes"),
    [
        ("dynamic_local_attention", {"window_size": 2}),
        ("fused_dynamic_depthwise_conv", {"groups": 0}),
        ("fused_dynamic_depthwise_conv", {"channels": 3, "groups": 2}),
        ("channel_attention_sums", {"head_count": 2}),
        ("channel_attention_sums", {"kept": 2}),
        ("dynamic_local_attention", {"batch": 2}),
        ("convolution", {"factor": 3}),
    ],
)
def test_sizes_that_do_not_fit_each_other_are_errors(function, sizes):
    with pytest.raises(ValueError, match=r"must be odd|cannot be divided|kept must be|does not fit"):
        library.call(function, **arguments(function) | sizes)


@pytest.mark.parametrize("name", CALLS)
def test_a_record_of_wrong_shapes_is_an_error(name):
    """One tensor of a record, or x, has a wrong shape."""
    call = CALLS[name]
    for field in ("x", *call.record._fields):
        tensor = call.x if field == "x" else getattr(call.record, field)
        if not isinstance(tensor, torch.Tensor):
            continue
        # x may have any batch, height and width; a convolution's groups may have any number of channels.
        of_x = () if name.startswith("fused") else (1,)
        dims = of_x if field == "x" else range(tensor.dim())
        doubled = [torch.cat([tensor, tensor], dim) for dim in dims]
        shorter = tensor[:, 1:] if field == "x" else tensor[1:]
        for wrong in (*doubled, shorter, tensor[None]):
            record = call.record if field == "x" else call.record._replace(**{field: wrong})
            changed = call._replace(x=wrong if field == "x" else call.x, record=record)
            with pytest.raises((ValueError, RuntimeError, IndexError)):
                calls.results(native, changed)


def test_signatures_are_those_of_the_sources():
    """Every exported C++ function has the arguments of the table, by name, kind and order."""
    declared = {}
    for path in build.HERE.glob("*.cpp"):
        for name, declaration in re.findall(r"DLGSANET_API bool dlgsanet_(\w+)\(([^)]*)\)", path.read_text()):
            declared[name] = [" ".join(a.split()).replace("const ", "") for a in declaration.split(",")]
    assert declared.keys() == library.SIGNATURES.keys()
    for name, signature in library.SIGNATURES.items():
        tensors = [n for n, value in arguments(name).items() if isinstance(value, torch.Tensor)]
        pointers = [f"{'Piece' if t in library._INTEGERS else 'float'}* {t}" for t in tensors]
        assert declared[name] == [*pointers, *(f"Index {s}" for s in signature.sizes), "int threads"]


def test_shared_constants_have_one_source(monkeypatch):
    """The sources have them as macros only, and a library with other constants is never loaded."""
    sources = "".join(p.read_text() for p in [*build.HERE.glob("*.cpp"), *build.HERE.glob("*.h")])
    assert {f"DLGSANET_{name}" for name in build.CONSTANTS} <= set(re.findall(r"DLGSANET_\w+", sources))
    name = build.library_name("avx2")
    build._fingerprint.cache_clear()
    monkeypatch.setitem(build.CONSTANTS, "STRIP_ROWS", 32)
    assert build.library_name("avx2") != name
    build._fingerprint.cache_clear()


@pytest.fixture(scope="module", params=["", "-fsanitize=thread"], ids=["plain", "sanitized"])
def pool(request, tmp_path_factory):
    """The program `pool.cpp`, compiled as on a system without OpenMP."""
    program = tmp_path_factory.mktemp("pool") / "pool"
    flags = [f for f in build._FLAGS.split() if f not in ("-shared", "-fno-exceptions", "-fno-rtti")]
    options = [*flags, *build._DEFINITIONS, build._PORTABLE["portable"], WITHOUT_OPENMP, *request.param.split()]
    source = REPOSITORY / "tests/ops/pool.cpp"
    command = [*build.compiler(), *options, f"-I{build.HERE}", str(source), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    if request.param and (done.returncode or subprocess.run([program, "1", "1", "1"], capture_output=True).returncode):
        pytest.skip("the thread sanitizer does not work here")
    assert done.returncode == 0, done.stderr
    return program


WITHOUT_OPENMP = "-DDLGSANET_NO_OPENMP"


@pytest.mark.parametrize(("threads", "callers"), [(1, 1), (2, 1), (7, 3)])
def test_threads_without_openmp(pool, threads, callers):
    """Every task is done once and none waits for another thread's, with several threads that call at the same time."""
    done = subprocess.run([pool, str(threads), str(callers), "200"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[:3000]


@pytest.mark.long
def test_results_without_openmp_are_the_same(monkeypatch, tmp_path):
    """To the last bit, for every number of threads; after a fork too."""
    here = library.instruction_set()
    want = {name: calls.results(native, call) for name, call in CALLS.items()}
    flags = {here: build.instruction_sets()[here]}
    monkeypatch.setattr(build, "instruction_sets", lambda: flags)
    assert build.build(tmp_path, WITHOUT_OPENMP) is None
    path = tmp_path / build.library_name(here)
    assert b"GOMP_parallel" not in path.read_bytes()
    monkeypatch.setattr(library, "library_path", lambda: path)
    for name, call in CALLS.items():
        assert all(g.equal(w) for g, w in zip(calls.results(native, call), want[name], strict=True))
        check_threads(call)
    loader = DataLoader(_Layer(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=600)
    assert all(got.equal(_compute_one()) for got in loader)


def test_a_library_that_cannot_be_loaded_is_not_used(monkeypatch, tmp_path, caplog):
    """As one that a machine with another processor or a newer C library has built in a shared folder."""
    path = tmp_path / "library.so"
    path.write_bytes(build.HERE.joinpath("convolution.cpp").read_bytes())
    monkeypatch.setattr(library, "library_path", lambda: path)
    for call in CALLS.values():
        answers = dict(dispatch.explain(call.record, call.x))
        assert "its library cannot be loaded" in answers.pop("native")
        assert None in answers.values()
    assert len(caplog.records) == 1


@pytest.mark.long
def test_the_sources_compile_for_windows(tmp_path):
    """With MinGW and registers of 4 floats. Nothing runs the library."""
    compiler = shutil.which("x86_64-w64-mingw32-g++-posix")
    if compiler is None:
        pytest.skip("g++-mingw-w64-x86-64-posix is not installed")
    flags = [flag for flag in build._FLAGS.split() if flag != "-Wl,--as-needed"]
    options = [*flags, *build._DEFINITIONS, build._PORTABLE["portable"], "-O1"]
    sources = map(str, sorted(build.HERE.glob("*.cpp")))
    subprocess.run([compiler, *options, *sources, "-o", str(tmp_path / "portable.dll")], check=True)
    content = (tmp_path / "portable.dll").read_bytes()
    assert all(f"dlgsanet_{function}".encode() in content for function in library.SIGNATURES)


def _compute_one() -> torch.Tensor:
    return calls.results(native, CALLS["gated_feed_forward"])[0]


class _Layer(Dataset):
    """A data set that computes a layer in its workers, which are forked from a process that has computed one."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return _compute_one()


def test_data_loader_workers_compute_layers():
    want = _compute_one()
    loader = DataLoader(_Layer(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=600)
    assert all(got.equal(want) for got in loader)


def _compute_with_two_threads(queue):
    # torch has not set this child to one thread.
    torch.set_num_threads(2)
    queue.put(_compute_one().numpy())


def test_a_fork_computes_layers_without_the_threads_it_lost():
    want = _compute_one()
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    child = fork.Process(target=_compute_with_two_threads, args=(queue,))
    child.start()
    try:
        assert torch.from_numpy(queue.get(timeout=600)).equal(want)
    finally:
        child.kill()
        child.join()


def test_calls_that_it_does_not_support():
    call = CALLS["gated_feed_forward"]
    assert "float32" in native.refuses(*call.map(torch.Tensor.double))
    assert "meta" in native.refuses(*call.map(lambda t: t.to("meta")))
    assert "empty" in native.refuses(*call._replace(x=call.x[:0]))
    with torch.autocast("cpu", torch.bfloat16):
        assert "autocast" in native.refuses(*call)
    assert "windows" in native.refuses(*CALLS["channel_attention"]._replace(training=True))


def test_without_its_library_the_next_backend_serves(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "library_path", lambda: tmp_path / "_avx2.so")
    call = CALLS["gated_feed_forward"]
    assert "not built" in native.refuses(*call)
    assert dispatch.select(*call) is not native


def test_building_without_a_compiler_is_reported_in_one_line(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    problem = build.build(tmp_path)
    assert "no C++ compiler" in problem
    assert "\n" not in problem
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setenv("PATH", os.defpath)
    assert "false failed" in build.build(tmp_path)
    assert not list(tmp_path.iterdir())


COMPILER = """
import os, sys, time
from pathlib import Path
begun = Path(sys.argv[1])
with open(sys.argv[-1], "wb") as library:
    for _ in range(2):
        library.write(b"%20d" % os.getpid() * 1000)
        library.flush()
        (begun / str(os.getpid())).touch()
        while len(list(begun.iterdir())) < 2:
            time.sleep(0.01)
"""


def test_two_builds_at_the_same_time_and_one_that_was_killed(monkeypatch, tmp_path):
    """Two threads have the same process id, as two processes of different hosts may have."""
    (tmp_path / "compiler.py").write_text(COMPILER)
    for name in ("begun", "built", "built/.build-killed", "built/.build-of-another"):
        (tmp_path / name).mkdir()
    os.utime(tmp_path / "built/.build-killed", (0, 0))
    monkeypatch.setenv("CXX", f"{sys.executable} {tmp_path}/compiler.py {tmp_path}/begun")
    monkeypatch.setattr(build, "instruction_sets", lambda: {"avx2": ""})
    with ThreadPoolExecutor() as threads:
        assert [*threads.map(build.build, [tmp_path / "built"] * 2)] == [None, None]
    assert {path.name for path in (tmp_path / "built").iterdir()} == {".build-of-another", build.library_name("avx2")}
    content = (tmp_path / "built" / build.library_name("avx2")).read_bytes()
    assert content == content[:20] * 2000


@pytest.mark.long
def test_random_calls_under_sanitizers(tmp_path):
    """Random calls of every operation on every instruction set, with address and undefined-behaviour sanitizers."""
    sanitize = "-O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all"
    if problem := build.build(tmp_path, sanitize):
        pytest.skip(problem)
    find = [*build.compiler(), "-print-file-name=libasan.so"]
    asan = subprocess.run(find, capture_output=True, text=True, check=True).stdout.strip()
    script = (
        "import sys; from pathlib import Path\n"
        "from dlgsanet.ops.backends.native import library; from tests.ops import test_native\n"
        "library.library_path = lambda: Path(sys.argv[1], library.library_name(library.instruction_set()))\n"
        "for name in test_native.calls.RANDOM: test_native.check_random_calls(name, 50)\n"
        "print('clean')\n"
    )
    environment = {**os.environ, "LD_PRELOAD": asan, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=3600
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.strip() == "clean"

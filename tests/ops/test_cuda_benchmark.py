"""`scripts/benchmark_gpu.py` where there is no GPU: all it does but measure, on a CPU, kernels in the emulator."""

import functools
import importlib.util
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.ops import dispatch
from dlgsanet.ops.backends import Backend, LayerFunctions
from dlgsanet.ops.backends.cuda import feed_forward
from dlgsanet.ops.backends.cuda import modules as cuda_modules
from dlgsanet.ops.backends.torch import planar
from tests.conftest import script
from tests.ops.emulator import COMPILER, EmulatedModule
from tests.ops.test_cuda_kernels import TOLERANCE, expected_results, fused_arguments, normal, relative_error

PARTS = ["tiny", "large", "feed-forward", "inference", "training", "graphs", "graphs-inference"]


def benchmark_gpu():
    """The script as a module."""
    return script("benchmark_gpu")


@pytest.fixture
def benchmark(monkeypatch):
    """The script with compiled functions traced and differentiated, but run as they are; nothing set in PyTorch."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    module = benchmark_gpu()
    monkeypatch.setattr(module, "set_tf32", lambda on: None)
    return module


def _with_options(kind, fixed):
    """Build a class as it is asked for, except for some options."""
    return lambda *arguments, **options: kind(*arguments, **(options | fixed))


@pytest.fixture
def on_cpu(benchmark, monkeypatch):
    """All of it small, on the CPU, in one unit of time and memory: where the published kernel is in use, in six."""

    def measured() -> float:
        return 6.0 if benchmark.dispatch.candidates() == ["published"] else 1.0

    def milliseconds(run, prepare=tuple, head_start=1):
        for _ in range(2):
            run(*prepare())
        return measured()

    def megabytes(run):
        return 1000 * measured(), run()

    import dlgsanet.plugin  # noqa: F401, I001  # before BasicSR
    from basicsr.archs import edsr_arch, swinir_arch

    small = {"dim": 12, "groups": 1, "blocks": 1, "window_size": 3}
    for module, name, fewer in (
        (edsr_arch, "EDSR", {"num_feat": 8, "num_block": 1}),
        (swinir_arch, "SwinIR", {"depths": [1], "embed_dim": 6, "num_heads": [1]}),
    ):
        # Another module, since the class uses its own name in `super()`.
        small_one = SimpleNamespace(**{name: _with_options(getattr(module, name), fewer)})
        monkeypatch.setitem(sys.modules, module.__name__, small_one)
    for name, value in {
        "DEVICE": "cpu",
        "SIZES_OF_LAYERS": [(1, 3, 5), (2, 4, 4)],
        "COMPILED_SIZES": [(1, 3, 5)],
        "SCALES": (4,),
        "PICTURE": (32, 48),
        "PATCHES": (1, 8),
        "why_not": lambda: None,
        "describe_machine": lambda: "a machine",
        "milliseconds": milliseconds,
        "peak_megabytes": megabytes,
        "captured": benchmark.warmed_up,
        "DLGSANet": _with_options(DLGSANet, small),
        "WINDOW": 3,
    }.items():
        monkeypatch.setattr(benchmark, name, value)
    monkeypatch.setattr(cuda_modules, "load", lambda instance, device: EmulatedModule(instance, "ascending"))
    monkeypatch.setattr(torch.optim, "Adam", lambda parameters, rate, capturable: torch.optim.SGD(parameters, rate))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return benchmark


def run(benchmark, monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["benchmark_gpu.py", *arguments])
    return benchmark.main()


def test_networks_as_published_use_the_published_kernel(on_cpu, monkeypatch):
    """And only then."""
    network = on_cpu.DLGSANet(dim=12, upscale=4, upsampler="pixelshuffledirect").eval()
    image, used = torch.rand(1, 3, 9, 8), []
    ours = network(image)
    published = on_cpu.published
    monkeypatch.setattr(on_cpu, "published", lambda *arguments: used.append(1) or published(*arguments))
    for way in (on_cpu.PUBLISHED, on_cpu.PLAIN, on_cpu.OURS):
        with on_cpu.served(way):
            torch.testing.assert_close(network(image), ours)
        assert used == [1]


@pytest.mark.parametrize("part", ["test", "inference", "tiny"])
def test_missing_packages_are_named(benchmark, monkeypatch, capsys, part):
    find = importlib.util.find_spec
    gone = {"basicsr", "pytest_timeout", "cupy"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *of: None if name in gone else find(name, *of))
    assert run(benchmark, monkeypatch, "needs", *([part] if part != "tiny" else [])) == 2
    message = capsys.readouterr().err
    assert "cupy" in message
    assert ("basicsr" in message) == (part == "inference")
    assert ("pytest_timeout" in message) == (part == "test")


def test_the_networks_of_the_gpu_tests_are_right():
    from tests.ops.test_cuda_gpu import small_network

    assert small_network()(torch.rand(1, 3, 8, 8)).shape == (1, 3, 16, 16)


@pytest.mark.skipif(COMPILER is None, reason="the emulator needs g++")
def test_rows_after_the_time_of_a_part_are_not_begun(on_cpu, monkeypatch, capsys, tmp_path):
    """What was measured before is kept."""
    monkeypatch.setattr(on_cpu, "SIZES_OF_LAYERS", [(1, 3, 5)])
    monkeypatch.setattr(on_cpu, "PRECISIONS", {"fp32": (torch.float32, False)})
    slow = functools.partial(on_cpu.LIMITS.__setitem__, 0, 0.0)
    fused = on_cpu.WAYS["1x1 convolution, plain kernel"]
    monkeypatch.setitem(on_cpu.WAYS, "1x1 convolution, plain kernel", lambda *tensors: slow() or fused(*tensors))
    monkeypatch.setitem(on_cpu.WAYS, "fused kernel", lambda *tensors: time.sleep(60))  # until it is interrupted
    assert run(on_cpu, monkeypatch, "tiny", "--append", str(tmp_path / "results.md")) == 1
    cells = {row["way"]: row["forward"] for row in table((tmp_path / "results.md").read_text())}
    assert cells["1x1 convolution, plain kernel"].startswith("1.000")
    assert cells["fused kernel"].startswith("not begun")


def test_a_precision_that_fails_leaves_the_other(on_cpu, monkeypatch, capsys):
    def measure(network, scale, dtype, way):
        if dtype == torch.float32:
            raise ValueError
        return 2.0, 3.0

    entry = ("network", 4, torch.nn.Identity(), ["ours"])
    on_cpu.print_networks(iter([entry]), measure, lambda cells: True)
    (row,) = table(capsys.readouterr().out)
    assert row["fp32 ms"] == "failed: ValueError"
    assert row["bf16 ms"] == "2.000"


def table(text: str) -> list[dict[str, str]]:
    """The rows of the Markdown table in a text."""
    head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line)
    return [dict(zip(head, row, strict=True)) for row in rows]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("part", PARTS)
def test_without_a_gpu_it_says_so_and_exits_with_2(benchmark, monkeypatch, capsys, tmp_path, part):
    assert run(benchmark, monkeypatch, part, "--append", str(tmp_path / "results.md")) == 2
    assert capsys.readouterr() == ("", "no NVIDIA GPU is present: nothing was measured\n")
    assert not (tmp_path / "results.md").exists()


@pytest.mark.skipif(COMPILER is None, reason="the emulator needs g++")
@pytest.mark.parametrize("part", ["tiny", "large"])
def test_layers(on_cpu, monkeypatch, capsys, tmp_path, part):
    results = tmp_path / "results.md"
    results.write_text("Before.\n")
    assert run(on_cpu, monkeypatch, part, "--append", str(results)) == 0
    printed = capsys.readouterr().out
    assert results.read_text() == "Before.\n" + printed
    assert "Tiny and Light" in printed or part == "large"
    rows = table(printed)
    assert len(rows) == 6 * 4 + 1  # two sizes in three precisions; torch.compile of one size in one precision
    goals = {"tiny": ("8", "2.4"), "large": ("6", "2")}[part]
    fused = next(row for row in rows if row["way"] == "fused kernel")
    assert (fused["forward"], fused["backward"]) == tuple(f"1.000 (1.00; goal {goal}: not met)" for goal in goals)


@pytest.mark.skipif(COMPILER is None, reason="the emulator needs g++")
def test_the_feed_forward_layer(on_cpu, monkeypatch, capsys):
    backends = {"triton": planar.gated_feed_forward, "cuda": feed_forward.gated_feed_forward}
    stand_ins = [Backend(name, gated_feed_forward=LayerFunctions(f, None)) for name, f in backends.items()]
    monkeypatch.setattr(on_cpu, "LAYERS", {"tiny": ("Tiny and Light", 4, 0, 0)})
    monkeypatch.setattr(on_cpu, "PRECISIONS", {"fp32": (torch.float32, False), "bf16": (torch.bfloat16, False)})
    feed_forward.plan.cache_clear()
    with dispatch.using(*stand_ins, "torch", "reference"):
        assert run(on_cpu, monkeypatch, "feed-forward") == 0
    feed_forward.plan.cache_clear()
    rows = table(capsys.readouterr().out)
    assert [row["way"] for row in rows] == 2 * ["plain definition", "PyTorch", "Triton kernels", "one kernel"]
    assert {row[precision] for row in rows for precision in ("fp32", "bf16")} == {"1.000 (1.00)"}


@pytest.mark.skipif(COMPILER is None, reason="the emulator needs g++")
@pytest.mark.parametrize("part", [pytest.param(p, marks=[pytest.mark.long] * (p == "graphs")) for p in PARTS[3:]])
def test_networks(on_cpu, monkeypatch, capsys, part):
    fewer = {name: on_cpu.PRECISIONS[name] for name in ("fp32", "bf16")}  # two are enough to see, and both compile
    monkeypatch.setattr(on_cpu, "PRECISIONS", fewer)
    assert run(on_cpu, monkeypatch, part) == 0
    rows = {(row["network"], row["way"]): row for row in table(capsys.readouterr().out)}
    ways = [way for network, way in rows if network == "DLGSANet Tiny"]
    ours = rows["DLGSANet Tiny", "ours"]
    assert ours["bf16 MB"] == "1000 (5000 less)"
    assert rows["DLGSANet Tiny", "plain definition"]["bf16 ms"] == "1.000 (6.00)"
    if part.startswith("graphs"):
        assert len(ways) == len(rows) == 6
        assert ways[4:] == ["plain definition, torch.compile", "ours, torch.compile"]
    else:
        assert len(rows) == 3 * len(ways) + 2  # three networks, and two others
        assert rows["EDSR", "BasicSR"]["fp32 ms"] == "1.000"
        goal = "; goal 2500: met" if part == "training" else ""
        assert rows["DLGSANet Large", "ours"]["fp32 MB"] == f"1000 (5000 less{goal})"
    if "inference" in part:
        replayed = rows["DLGSANet Tiny", "ours, CUDA graph of a call"]
        assert (replayed["fp32 ms"], replayed["bf16 ms"]) == ("1.000 (6.00; goal 4: met)", "1.000 (6.00; goal 6: met)")
    else:
        assert ours["fp32 ms"] == "1.000 (6.00; goal 1.3: met)"


@pytest.mark.skipif(COMPILER is None, reason="the emulator needs g++")
def test_rows_can_be_chosen(on_cpu, monkeypatch, capsys):
    assert run(on_cpu, monkeypatch, "tiny", "--rows", "1x3x5 TF32.*(published|fused)") == 0
    rows = table(capsys.readouterr().out)
    assert [row["way"] for row in rows] == ["1x1 convolution, kernel as published", "fused kernel"]
    assert {row["precision"] for row in rows} == {"TF32"}
    assert run(on_cpu, monkeypatch, "inference", "--rows", "^(EDSR|DLGSANet Tiny) x4 (BasicSR|ours$)") == 0
    rows = table(capsys.readouterr().out)
    assert [(row["network"], row["way"]) for row in rows] == [("DLGSANet Tiny", "ours"), ("EDSR", "BasicSR")]


@pytest.mark.skipif(COMPILER is None, reason="the emulator needs g++")
@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError(), RuntimeError("CUDNN_STATUS_ALLOC_FAILED")])
def test_out_of_memory_is_a_row(on_cpu, monkeypatch, capsys, error):
    def too_large(*arguments):
        raise error

    monkeypatch.setattr(on_cpu, "published", too_large)
    monkeypatch.setitem(on_cpu.WAYS, "1x1 convolution, kernel as published", too_large)
    assert run(on_cpu, monkeypatch, "tiny") == 0
    rows = table(capsys.readouterr().out)
    assert list(rows[0].values())[3:] == ["out of memory", "-", "-"]
    assert rows[-1]["forward"] == "1.000"  # no published kernel to compare with


@pytest.mark.skipif(COMPILER is None, reason="the emulator needs g++")
@pytest.mark.parametrize(("error", "word"), [(None, "more than 1 s"), (ValueError, "failed: ValueError")])
def test_the_other_rows_go_on(on_cpu, monkeypatch, capsys, error, word):
    def cannot(*arguments):
        if error:
            raise error
        time.sleep(9)

    monkeypatch.setattr(on_cpu, "SIZES_OF_LAYERS", [(1, 3, 5)])
    monkeypatch.setattr(on_cpu, "PRECISIONS", {"fp32": (torch.float32, False)})
    assert run(on_cpu, monkeypatch, "tiny") == 0  # compiles the emulator, which takes more than a second
    capsys.readouterr()
    monkeypatch.setattr(on_cpu, "PATIENCE", {"layer": 1})
    monkeypatch.setitem(on_cpu.WAYS, "1x1 convolution, unfold", cannot)
    assert run(on_cpu, monkeypatch, "tiny") == 1
    printed = capsys.readouterr()
    assert "cannot" in printed.err
    cells = {row["way"]: row["forward"] for row in table(printed.out)}
    assert cells["1x1 convolution, unfold"] == word
    assert cells["fused kernel"].startswith("1.000 (1.00; goal 8")


@pytest.mark.skipif(COMPILER is None, reason="the emulator needs g++")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_way_computes_the_definition(on_cpu, monkeypatch, dtype):
    monkeypatch.setattr(on_cpu, "WINDOW", 7)
    *tensors, window = fused_arguments((2, 12, 2, 5, 7, 9, 11), dtype)
    expected = expected_results("fused_dynamic_depthwise_conv", (*tensors, window))
    for way, function in on_cpu.WAYS.items():
        inputs = [t.clone().requires_grad_() for t in tensors]
        out = function(*inputs)
        actual = (out.detach(), *torch.autograd.grad(out, inputs, tensors[0].roll(1, dims=1)))
        assert relative_error(actual, expected) <= 20 * TOLERANCE[dtype], way  # filters and weights in the dtype too


def test_the_published_kernel_compiles(benchmark, monkeypatch):
    pytest.importorskip("cupy", reason="compiling kernels needs CuPy")
    compiled = []

    class Compiled:
        def __init__(self, instance, device):
            compiled.append(cuda_modules.compile_instance(instance, "sm_90")[0])
            self.kernels = instance.kernels

        def launch(self, kernel, *arguments):
            assert kernel in self.kernels

    monkeypatch.setattr(cuda_modules, "load", functools.cache(Compiled))
    for dtype in (torch.float32, torch.bfloat16):
        x = normal(1, 6, 4, 5, dtype=dtype).requires_grad_()
        z = normal(1, 2, 4, 5, dtype=dtype).requires_grad_()
        weight, bias = normal(49, 2, dtype=torch.float32), normal(49, dtype=torch.float32)
        benchmark.published(x, z, weight, bias).sum().backward()
    assert len(compiled) == 2

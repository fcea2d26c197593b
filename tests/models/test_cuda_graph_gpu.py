"""`train.cuda_graph`, and replayed calls of frozen networks, on a GPU: `make test-gpu`."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

if find_spec("basicsr") is None:  # not imported: that is for dlgsanet.plugin
    pytest.skip("training needs basicsr, which is not installed", allow_module_level=True)

import dlgsanet.plugin  # noqa: F401
from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.archs.replays import TOLERANCE, _graphs
from dlgsanet.models import cuda_graph
from dlgsanet.models.dlgsanet_model import DLGSANetModel
from dlgsanet.ops import freeze
from dlgsanet.training.resume import restore
from tests.models.checkpoint_file import checkpoint_file
from tests.training.conftest import run_as_ranks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or bool(torch.version.hip),
        reason="no NVIDIA GPU is present: nothing was tested on one",
    ),
]

ADAM = {"type": "Adam", "lr": 1e-3, "betas": [0.9, 0.99]}
MUON = {"type": "Muon", "lr": 1e-3, "adam_lr": 5e-4}
ITERATIONS = 12
BAD = (2, 8)  # one while steps are eager, one among the replays


@pytest.fixture(autouse=True)
def the_same_numbers_every_time(monkeypatch):
    """Adam would show other roundings of gradients that are 0 in signs of its steps."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


def built(optimizer: dict[str, Any], graph: bool | str, rank: int | None = None, **train: Any) -> DLGSANetModel:
    network = {"type": "DLGSANet", "dim": 48, "groups": 1, "blocks": 1, "upscale": 2}
    options = {"ema_decay": 0.99, "ema_warmup": True, "accumulate": 2, "grad_clip": 0.05, "warmup_iter": 3}
    options |= {"scheduler": {"type": "CosineAnnealingLR", "T_max": 14}, "total_iter": 14}
    options |= {"pixel_opt": {"type": "L1Loss"}, "optim_g": dict(optimizer), "cuda_graph": graph}
    torch.manual_seed(rank or 0)
    return DLGSANetModel(
        {
            "scale": 2,
            "num_gpu": 1,
            "is_train": True,
            "dist": rank is not None,
            "rank": rank or 0,
            "path": {"pretrain_network_g": None},
            "network_g": network | {"upsampler": "pixelshuffledirect"},
            "train": options | train,
        }
    )


def train(trained: DLGSANetModel, first: int = 1, last: int = ITERATIONS, images: slice = slice(None)) -> None:
    """With a bad step among the eager ones and one among the replays, and pictures of other sizes in between."""
    for number in range(first, last + 1):
        generator = torch.Generator().manual_seed(number)
        lq = torch.rand(4, 3, 24, 24, generator=generator)
        gt = lq.repeat_interleave(2, 2).repeat_interleave(2, 3) ** 2
        if number in BAD:
            lq[0, 0, 0, 0] = math.nan
        trained.update_learning_rate(number)
        trained.feed_data({"lq": lq[images].pin_memory(), "gt": gt[images].pin_memory()})
        trained.optimize_parameters(number)
        if number % 3 == 0:
            trained.feed_data({"lq": torch.rand(1, 3, 20 + number, 33)})
            trained.test()
            assert trained.output.isfinite().all()


def parameters(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def difference(of: DLGSANetModel, expected: DLGSANetModel) -> float:
    """Of two trainings, in weights or averages, relative to how far they have come."""
    start = parameters(built(ADAM, graph=False).net_g)
    errors = []
    for name in ("net_g", "net_g_ema"):
        a, b = parameters(getattr(of, name)), parameters(getattr(expected, name))
        errors.append(float((a - b).norm() / (b - start).norm()))
    return max(errors)


@contextmanager
def a_thread_that_pins_memory():
    """As that of a data loader."""
    end = threading.Event()

    def pin() -> None:
        size = 1
        while not end.is_set():
            torch.empty(size % 2**22).pin_memory()
            size = size * 3 + 1

    thread = threading.Thread(target=pin)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-2), ("bf16", 5e-2)])
@pytest.mark.parametrize("optimizer", [ADAM, ADAM | {"type": "AdamW"}, MUON], ids=lambda options: options["type"])
def test_replayed_iterations_train_as_eager_ones(optimizer, precision, tolerance):
    eager, replayed = built(optimizer, False, precision=precision), built(optimizer, True, precision=precision)
    train(eager)
    with a_thread_that_pins_memory():
        train(replayed)
    assert len(replayed._graphed._graphs) == 2
    assert (replayed.bad_steps, replayed.bad_steps_in_row) == (2, 0)
    assert replayed.log_dict == pytest.approx(eager.log_dict, rel=tolerance)
    assert difference(replayed, eager) < tolerance
    if precision == "fp32":
        torch.testing.assert_close(parameters(replayed.net_g), parameters(eager.net_g), rtol=1e-3, atol=1e-5)


def _train_as_rank(rank: int, folder: Path) -> None:
    """Train on every second image of the batches, from weights of this rank's own."""
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    trained = built(MUON, True, rank)
    train(trained, images=slice(rank, None, 2))
    assert len(trained._graphed._graphs) == 2
    torch.save(parameters(trained.net_g).cpu(), folder / f"{rank}.pt")


def test_ranks_that_replay_train_as_the_eager_single_process(tmp_path):
    """Both on this GPU."""
    run_as_ranks(_train_as_rank, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(first, second)
    eager = built(MUON, graph=False)
    train(eager)
    torch.testing.assert_close(first, parameters(eager.net_g).cpu(), rtol=1e-3, atol=1e-5)


def test_a_capture_and_a_bad_step_change_nothing(monkeypatch):
    trained = built(MUON, graph=True)
    train(trained, last=4)
    assert len(trained._graphed._graphs) == 2
    before = [parameters(trained.net_g), parameters(trained.net_g_ema)]
    train(trained, 8, 8)
    assert all(map(torch.equal, before, [parameters(trained.net_g), parameters(trained.net_g_ema)]))
    train(trained, 9, 9)
    assert not torch.equal(before[0], parameters(trained.net_g))

    monkeypatch.setattr(cuda_graph, "EAGER_STEPS", ITERATIONS)
    never_captured = built(MUON, graph=True)
    train(never_captured, last=4)
    torch.testing.assert_close(before[0], parameters(never_captured.net_g), rtol=1e-3, atol=1e-5)


def test_validation_of_many_sizes_takes_nothing_from_the_graphs():
    expected, trained = built(MUON, graph=True), built(MUON, graph="auto")
    train(expected)
    train(trained, last=5)
    assert len(trained._graphed._graphs) == 2
    for side in range(40):  # more than the caches hold
        trained.feed_data({"lq": torch.rand(1, 3, 24 + side, 31)})
        trained.test()
    torch.cuda.empty_cache()
    rubbish = [torch.full((2**16,), -(2**30), dtype=torch.int32, device="cuda") for _ in range(200)]
    train(trained, 6)
    del rubbish
    torch.testing.assert_close(parameters(trained.net_g), parameters(expected.net_g), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("optimizer", [ADAM, MUON], ids=lambda options: options["type"])
@pytest.mark.parametrize(("first", "then"), [(True, True), (True, False), (False, True)])
def test_runs_resume_with_the_option_switched_on_or_off(optimizer, first, then):
    straight = built(optimizer, first)
    train(straight, last=6)
    checkpoint = checkpoint_file(straight, 6)
    train(straight, 7)
    resumed = built(optimizer, then)
    restore(resumed, checkpoint, 0, 1)
    train(resumed, 7)
    assert difference(resumed, straight) < 1e-2


@pytest.mark.parametrize("losses", [{"fft_opt": {"type": "FFTLoss", "loss_weight": 0.1}}, {"compile": True}], ids=str)
def test_what_may_be_captured_too(losses):
    eager, replayed = built(MUON, False, **losses), built(MUON, True, **losses)
    train(eager)
    train(replayed)
    assert len(replayed._graphed._graphs) == 2
    assert difference(replayed, eager) < 2e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("by_rows", [False, True])
def test_a_frozen_network_replays_what_it_computes_otherwise(dtype, by_rows, caplog):
    torch.manual_seed(0)
    network = DLGSANet(dim=48, groups=1, blocks=1, upscale=2, upsampler="pixelshuffledirect").eval().cuda().to(dtype)
    frozen = deepcopy(network)
    freeze(frozen)

    def result(of: DLGSANet, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([part for _, part in of.by_rows(image)], 2) if by_rows else of(image)

    with torch.inference_mode():
        for height, width in [(60, 90)] * 4 + [(90, 60)] * 3:
            image = torch.rand(1, 3, height, width, device="cuda", dtype=dtype)
            torch.testing.assert_close(result(frozen, image), result(network, image), rtol=0, atol=TOLERANCE[dtype])
    assert [graph is not None for graph in _graphs[frozen]._graphs.values()] == [True, True]
    assert caplog.messages == []


def test_replays_in_threads_with_streams_of_their_own():
    """They share memory, so they must run in turn."""
    torch.manual_seed(0)
    networks = [DLGSANet(dim=48, groups=2, blocks=1, upscale=2, upsampler="pixelshuffledirect") for _ in range(2)]
    frozen = [network.eval().cuda() for network in networks]
    pictures = [torch.rand(1, 3, 64, 80, device="cuda") for _ in range(3)]
    with torch.inference_mode():
        expected = [[network(picture) for picture in pictures] for network in frozen]
        for network in frozen:
            freeze(network)
            for picture in pictures:
                network(picture)
    torch.cuda.synchronize()

    def difference(number: int) -> float:
        network, worst = frozen[number % 2], 0.0
        with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):
            for n in range(30):
                result = network(pictures[n % 3])
                worst = max(worst, (result - expected[number % 2][n % 3]).abs().max().item())
        return worst

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(difference, range(4))) < TOLERANCE[torch.float32]

"""`train.cuda_graph` on emulated CUDA graphs: replayed iterations train as eager ones do."""

import math
import os
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from dlgsanet.errors import UserError
from dlgsanet.models import cuda_graph
from dlgsanet.models.dlgsanet_model import DivergedError, DLGSANetModel
from dlgsanet.options.table import TRAIN
from dlgsanet.training.checkpoints import Checkpoint
from dlgsanet.training.resume import Position, restore, state_of, weights_of
from tests.models.checkpoint_file import checkpoint_file
from tests.models.graph_emulator import graphs_on_the_cpu
from tests.training.conftest import identical, run_as_ranks
from tests.training.test_step import model, step, weights

OPTIMIZERS = {
    "Adam": {"type": "Adam", "lr": 3e-3, "betas": [0.9, 0.99]},
    "AdamW": {"type": "AdamW", "lr": 3e-3, "weight_decay": 0.1, "amsgrad": True},
    "Muon": {"type": "Muon", "lr": 3e-3, "adam_lr": 2e-3, "weight_decay": 0.1},
}
ITERATIONS = 12
BAD = (2, 8)  # one while steps are eager, one among the replays


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    monkeypatch.setenv("DLGSANET_BACKEND", "torch")  # operators of PyTorch, which the emulator sees
    with graphs_on_the_cpu() as tapes:
        yield tapes


def batch(number: int) -> dict[str, torch.Tensor]:
    """Of an iteration; of some of them, with an input that makes the loss NaN."""
    generator = torch.Generator().manual_seed(number)
    lq, gt = (torch.rand(4, 3, side, side, generator=generator) for side in (12, 24))
    lq[0, 0, 0, 0] = math.nan if number in BAD else 0
    return {"lq": lq, "gt": gt}


def built(optimizer: str = "Adam", graph: bool = True, rank: int | None = None, **train) -> DLGSANetModel:
    options = {"ema_decay": 0.99, "ema_warmup": True, "accumulate": 2, "grad_clip": 0.05, "warmup_iter": 3}
    options |= {"scheduler": {"type": "CosineAnnealingLR", "T_max": 14}, "total_iter": 14}
    return model(rank, optim_g=OPTIMIZERS[optimizer], cuda_graph=graph, **options | train)


def train(trained: DLGSANetModel, first: int = 1, last: int = ITERATIONS) -> list[dict[str, float]]:
    """What is logged in these iterations."""
    return [dict(step(trained, batch(number), number).log_dict) for number in range(first, last + 1)]


def averages(of: DLGSANetModel) -> torch.Tensor:
    return torch.cat([p.flatten() for p in of.net_g_ema.parameters()])


def difference(of: DLGSANetModel, expected: DLGSANetModel) -> float:
    """Of two trainings, in weights or averages, relative to how far they have come."""
    start = weights(built())
    pairs = [(f(of), f(expected)) for f in (weights, averages)]
    return max(float((a - b).norm() / (b - start).norm()) for a, b in pairs)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_replayed_iterations_train_as_eager_ones(optimizer, precision, graphs, monkeypatch):
    replayed = built(optimizer, precision=precision)
    logs = train(replayed)
    good = ITERATIONS - cuda_graph.EAGER_STEPS - len(BAD)
    assert [graph.replays for graph in graphs] == [good + 1, good]
    assert (replayed.bad_steps, replayed.bad_steps_in_row) == (2, 0)

    eager = built(optimizer, graph=False, precision=precision)
    for log, expected in zip(logs, train(eager), strict=True):
        assert log == pytest.approx(expected, rel=5e-3, nan_ok=True)
    assert difference(replayed, eager) < (1e-3 if precision == "fp32" else 5e-3)

    # Without the rounding of rates to float32, which both have, nothing differs.
    monkeypatch.setattr(cuda_graph, "EAGER_STEPS", ITERATIONS)
    never_captured = built(optimizer, precision=precision)
    train(never_captured)
    assert len(graphs) == 2
    assert torch.equal(weights(replayed), weights(never_captured))
    assert torch.equal(averages(replayed), averages(never_captured))


def _train_as_rank(rank: int, folder: Path) -> None:
    """Train on every second image of the batches, from weights of this rank's own."""
    os.environ["DLGSANET_BACKEND"] = "torch"
    with graphs_on_the_cpu() as graphs:
        trained = built("Muon", rank=rank)
        logs = [
            dict(step(trained, {name: image[rank::2] for name, image in batch(number).items()}, number).log_dict)
            for number in range(1, ITERATIONS + 1)
        ]
        replays = [graph.replays for graph in graphs]
    torch.save((weights(trained), averages(trained), logs, replays), folder / f"{rank}.pt")


def test_ranks_that_replay_train_as_the_eager_single_process(tmp_path):
    run_as_ranks(_train_as_rank, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    good = ITERATIONS - cuda_graph.EAGER_STEPS - len(BAD)
    assert first[3] == [good + 1, good]

    eager = built("Muon", graph=False)
    for log, other, expected in zip(first[2], second[2], train(eager), strict=True):
        assert log == pytest.approx(other, nan_ok=True)
        assert log == pytest.approx(expected, rel=5e-3, nan_ok=True)
    start = weights(built())
    for got, want in zip(first[:2], (weights(eager), averages(eager)), strict=True):
        assert (got - want).norm() < 1e-3 * (want - start).norm()


def state(of: DLGSANetModel) -> dict:
    return deepcopy([of.net_g.state_dict(), of.net_g_ema.state_dict(), of.optimizer_g.state_dict()["state"]])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_bad_step_changes_nothing_and_too_many_stop_the_run(optimizer, graphs):
    trained = built(optimizer, max_bad_steps=2)
    train(trained, last=7)
    before = state(trained)
    train(trained, 8, 8)  # a bad one, as a replay
    assert graphs[0].replays == 4
    assert identical(before, state(trained))
    with pytest.raises(DivergedError):
        step(trained, batch(8), 9)


def test_the_capture_itself_changes_nothing(graphs, monkeypatch):
    captured = built("Muon")
    train(captured, last=4)
    assert [graph.replays for graph in graphs] == [0, 0]
    monkeypatch.setattr(cuda_graph, "EAGER_STEPS", ITERATIONS)
    expected = built("Muon")
    train(expected, last=4)
    assert len(graphs) == 2
    assert identical(state(captured), state(expected))


def test_images_of_other_sizes_are_validated_between_replays(graphs):
    disturbed, undisturbed = built(), built()
    for number in range(1, ITERATIONS + 1):
        step(disturbed, batch(number), number)
        step(undisturbed, batch(number), number)
        disturbed.feed_data({"lq": torch.rand(1, 3, 9 + number, 17)})
        disturbed.test()
        assert disturbed.output.shape == (1, 3, 18 + 2 * number, 34)
    assert torch.equal(weights(disturbed), weights(undisturbed))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("first", "then"), [(True, True), (True, False), (False, True)])
def test_runs_resume_with_the_option_switched_on_or_off(optimizer, first, then):
    straight = built(optimizer, first)
    train(straight, last=6)
    checkpoint = checkpoint_file(straight, 6)
    train(straight, 7)
    resumed = built(optimizer, then)
    for group in checkpoint.state["optimizers"][0]["param_groups"]:
        assert isinstance(group["lr"], float)
        assert not group.get("capturable")
        assert group["fused"] == straight.optimizer_g.defaults["fused"]
    restore(resumed, checkpoint, 0, 1)
    train(resumed, 7)
    if first == then:
        assert torch.equal(weights(resumed), weights(straight))
        assert torch.equal(averages(resumed), averages(straight))
    assert difference(resumed, straight) < 1e-3


def test_a_model_that_is_resumed_after_the_capture_captures_again(graphs):
    trained = built("Muon")
    train(trained, last=6)
    saved, kept = deepcopy(state_of(trained, Position(6), 0, {})), deepcopy(weights_of(trained))
    train(trained, 7)
    expected = weights(trained)
    restore(trained, Checkpoint(6, kept, saved), 0, 1)
    train(trained, 7)
    assert len(graphs) == 4
    assert torch.equal(weights(trained), expected)


def test_phases_of_an_iteration_that_is_captured_are_not_timed():
    trained, phases = built(accumulate=1), []
    trained.mark = phases.append
    train(trained)
    eager = cuda_graph.EAGER_STEPS + 1  # with a bad one
    assert phases == ["forward", "backward", "step"] * eager + ["step"] * (ITERATIONS - eager)


def test_another_shape_of_the_batch_is_an_error():
    trained = built()
    train(trained, last=6)
    with pytest.raises(UserError, match=r"train\.cuda_graph"):
        step(trained, {name: image[:2] for name, image in batch(7).items()}, 7)


def test_what_cannot_be_captured_is_named(monkeypatch):
    trained = built()
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *given: torch.full((), clip(*given).item()))
    with pytest.raises(UserError, match=r"train\.cuda_graph.*not permitted when stream is capturing"):
        train(trained)


@pytest.mark.parametrize("what", ["cannot be captured", "all batches must have one shape"])
def test_auto_goes_on_without_graphs(what, graphs, monkeypatch, caplog):
    def run(captured: bool) -> DLGSANetModel:
        trained = built("Muon")
        trained._graphed._required = False
        with monkeypatch.context() as patch:
            if not captured:
                patch.setattr(cuda_graph, "EAGER_STEPS", math.inf)
            elif what == "cannot be captured":
                clip = torch.nn.utils.clip_grad_norm_
                patch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *given: torch.full((), clip(*given).item()))
            train(trained, last=6)
            if "shape" in what:
                step(trained, {name: image[:2] for name, image in batch(7).items()}, 7)
            train(trained, 8)
        return trained

    trained = run(captured=True)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert what in warning
    assert trained._graphed._graphs == []
    assert torch.equal(weights(trained), weights(run(captured=False)))


@pytest.mark.parametrize(
    ("change", "captured"),
    [
        ({}, True),
        ({"precision": "bf16"}, True),
        ({"precision": "fp16"}, False),
        ({"optim_g": {"type": "SGD", "lr": 0.1}}, False),
        ({"scheduler": {"type": "OneCycleLR", "max_lr": 0.1, "total_steps": 99}}, False),
        ({"compile": True}, False),
        ({"cuda_graph": False}, False),
    ],
    ids=str,
)
def test_auto_captures_what_it_knows(change, captured):
    one_gpu = {"num_gpu": 1, "dist": False}
    given = TRAIN.completed({"optim_g": OPTIMIZERS["Muon"], "scheduler": {"type": "WSD"}, "total_iter": 99} | change)
    trained = built(graph=False)
    ours = [trained, trained.net_g, *trained.losses.values()]
    assert cuda_graph.captures(one_gpu, given, ours) is captured
    assert not cuda_graph.captures(one_gpu, given, [*ours, torch.nn.Identity()])  # another's may do anything
    assert cuda_graph.captures(one_gpu | {"dist": True}, given, ours) is captured
    assert not cuda_graph.captures(one_gpu | {"num_gpu": 0}, given, ours)


def test_auto_must_know_the_model_too(monkeypatch):
    """One of the user's own may compute its losses from tensors that a graph does not know."""
    asked = []
    monkeypatch.setattr("dlgsanet.models.dlgsanet_model.captures", lambda options, train, parts: asked.extend(parts))
    trained = built(graph="auto")
    assert any(part is trained for part in asked)


def test_gradients_laid_out_in_other_ways(monkeypatch):
    """Axes of length 1 may have any stride."""
    expected, trained = built("Muon"), built("Muon")
    train(expected)
    gradients = trained._graphed._gradients

    def laid_out(lq, gt):
        values = gradients(lq, gt)
        for p in trained.parameters:
            if p.dim() == 4:
                p.grad = p.grad.to(memory_format=torch.channels_last)
        return values

    monkeypatch.setattr(trained._graphed, "_gradients", laid_out)
    train(trained)
    torch.testing.assert_close(weights(trained), weights(expected))


def test_the_emulator_notices_numbers_that_a_capture_keeps(graphs):
    weight, rate = torch.ones(3), torch.tensor(0.5)
    for factor, tape in ((0.5, torch.cuda.CUDAGraph()), (rate, torch.cuda.CUDAGraph())):
        with torch.cuda.graph(tape):
            made = weight * 2
            weight += made * factor
        assert weight.tolist() == [1, 1, 1]
        assert made.isnan().all()
    rate.fill_(2)
    graphs[0].replay()
    assert weight.tolist() == [2, 2, 2]  # with 0.5
    graphs[1].replay()
    assert weight.tolist() == [10, 10, 10]
    assert made.tolist() == [4, 4, 4]

"""The training step by itself: accumulation, clipping, precisions, bad steps, schedules."""

import math
from copy import deepcopy

import pytest
import torch
from basicsr.models import build_model
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from dlgsanet.models.dlgsanet_model import DivergedError
from tests.training.conftest import OPTIONS, identical


def model(rank=None, network_g=OPTIONS["network_g"], **train):
    options = deepcopy(OPTIONS) | {"is_train": True, "dist": rank is not None, "rank": rank or 0}
    options["network_g"] = network_g
    options["train"] |= {"optim_g": {"type": "SGD", "lr": 0.1}} | train
    torch.manual_seed(rank or 0)
    return build_model(options)


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return {"lq": torch.rand(4, 3, 12, 12), "gt": torch.rand(4, 3, 24, 24)}


def step(trained, batch, iteration=1):
    trained.update_learning_rate(iteration)
    trained.feed_data(batch)
    trained.optimize_parameters(iteration)
    return trained


def weights(trained) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trained.net_g.parameters()])


def test_accumulated_parts_are_one_batch(batch):
    whole, parts = step(model(), batch), step(model(accumulate=4), batch)
    torch.testing.assert_close(weights(parts), weights(whole), atol=1e-6, rtol=0)
    assert parts.log_dict["l_pix"] == pytest.approx(whole.log_dict["l_pix"], rel=1e-5)


def test_a_smaller_last_part_counts_for_its_samples(batch):
    """Of a batch that `accumulate` does not divide, as BasicSR's own training has at the end of an epoch."""
    three = {key: images[:3] for key, images in batch.items()}
    whole, parts = step(model(), three), step(model(accumulate=2), three)
    torch.testing.assert_close(weights(parts), weights(whole), atol=1e-6, rtol=0)
    assert parts.log_dict["l_pix"] == pytest.approx(whole.log_dict["l_pix"], rel=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_gradient_of_all_parts_is_clipped_without_the_loss_scale(batch, precision):
    start, whole = weights(model()), step(model(), batch)
    clipped = step(model(grad_clip=0.01, accumulate=2, precision=precision), batch)
    assert clipped.log_dict["grad_norm"] == pytest.approx(whole.log_dict["grad_norm"], rel=0.05)
    assert float((weights(clipped) - start).norm()) == pytest.approx(0.1 * 0.01, rel=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_muon_learns_in_every_precision(batch, precision):
    trained = model(optim_g={"type": "Muon", "lr": 1e-3, "adam_lr": 5e-4}, precision=precision, grad_clip=1.0)
    batch["gt"] = batch["lq"].repeat_interleave(2, 2).repeat_interleave(2, 3)
    losses = [step(trained, batch, iteration).log_dict["l_pix"] for iteration in range(1, 31)]
    assert losses[-1] < 0.9 * losses[0]
    assert weights(trained).dtype == torch.float32


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_keeps_weights_in_fp32_and_follows_fp32(batch, precision):
    low, full = step(model(precision=precision), batch), step(model(), batch)
    assert weights(low).dtype == torch.float32
    start = weights(model())
    moved, expected = weights(low) - start, weights(full) - start
    assert float((moved - expected).norm() / expected.norm()) < 0.1
    assert low.scaler.is_enabled() == (precision == "fp16")


@pytest.fixture
def tf32_settings():
    """Where PyTorch keeps them; they are off in the test, and afterwards as they were."""
    places = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = False
    yield places
    for place, allowed in zip(places, before, strict=True):
        place.allow_tf32 = allowed


def test_tf32_is_allowed_and_everything_stays_in_fp32(batch, tf32_settings):
    trained = step(model(precision="tf32"), batch)
    assert all(place.allow_tf32 for place in tf32_settings)
    assert torch.equal(weights(trained), weights(step(model(), batch)))  # a CPU has no TF32


def test_channels_last_computes_the_same(batch):
    torch.testing.assert_close(weights(step(model(channels_last=True), batch)), weights(step(model(), batch)))


@pytest.mark.long
def test_compiled_step_computes_the_same(batch):
    compiled, eager = step(model(compile=True), batch), step(model(), batch)
    torch.testing.assert_close(weights(compiled), weights(eager))
    torch.testing.assert_close(compiled.net_g_ema.state_dict(), eager.net_g_ema.state_dict())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("optimizer", ["AdamW", "Muon"])
def test_bad_step_is_skipped_and_counted(batch, precision, optimizer):
    trained = step(model(precision=precision, optim_g={"type": optimizer, "lr": 1e-3}, max_bad_steps=2), batch)
    before = deepcopy([trained.net_g.state_dict(), trained.net_g_ema.state_dict(), trained.optimizer_g.state_dict()])
    bad = batch | {"lq": torch.full_like(batch["lq"], math.nan)}
    step(trained, bad, 2)
    after = [trained.net_g.state_dict(), trained.net_g_ema.state_dict(), trained.optimizer_g.state_dict()]
    assert identical(before, after)
    step(trained, batch, 3)
    assert (trained.bad_steps, trained.bad_steps_in_row) == (1, 0)
    step(trained, bad, 4)
    with pytest.raises(DivergedError, match=r"train\.grad_clip"):
        step(trained, bad, 5)


def test_a_skipped_first_step_gives_no_warning_about_rates(batch, recwarn):
    trained = step(model(), batch | {"lq": torch.full_like(batch["lq"], math.nan)})
    step(trained, batch, 2)
    assert not [str(warning.message) for warning in recwarn]


def rates(trained, iterations: int) -> list[float]:
    found = []
    for iteration in range(1, iterations + 1):
        trained.update_learning_rate(iteration)
        trained.optimizer_g.step()
        found += trained.get_current_learning_rate()
    return found


def test_cosine_with_warm_up():
    found = rates(model(scheduler={"type": "CosineAnnealingLR", "T_max": 10}, warmup_iter=4), 10)
    cosine = [0.05 * (1 + math.cos(math.pi * i / 10)) for i in range(10)]
    expected = [rate * min(1, (i + 1) / 4) for i, rate in enumerate(cosine)]
    assert found == pytest.approx(expected)


def test_published_schedule_halves_after_its_milestones():
    found = rates(model(scheduler={"type": "MultiStepLR", "milestones": [3, 5], "gamma": 0.5}, warmup_iter=2), 7)
    assert found == pytest.approx([0.05, 0.1, 0.1, 0.05, 0.05, 0.025, 0.025])


def test_constant_rates_decay_over_the_last_iterations():
    muon = {"type": "Muon", "lr": 0.1, "adam_lr": 0.01}
    wsd = {"type": "WSD", "decay_iter": 4}
    found = rates(model(optim_g=muon, scheduler=wsd, total_iter=10, warmup_iter=2), 10)
    expected = [0.5, 1, 1, 1, 1, 1, *(1 - math.sqrt(share) for share in (0, 0.25, 0.5, 0.75))]
    assert found[::2] == pytest.approx([0.1 * factor for factor in expected])
    assert found[1::2] == pytest.approx([0.01 * factor for factor in expected])


def test_averages_warm_up_and_skipped_steps_do_not_count(batch):
    trained, decay = model(ema_decay=0.3, ema_warmup=True), [0.1, 2 / 11, 3 / 12, 0.3, 0.3]
    average = weights(trained)
    for iteration, bad in enumerate([False, False, True, False, False, False], 1):
        step(trained, batch | {"lq": batch["lq"] * math.nan} if bad else batch, iteration)
        if not bad:
            average = torch.lerp(average, weights(trained), 1 - decay.pop(0))
    found = torch.cat([p.flatten() for p in trained.net_g_ema.parameters()])
    torch.testing.assert_close(found, average)


def test_frequency_loss_added_to_the_pixel_loss(batch):
    trained = step(model(fft_opt={"type": "FFTLoss", "loss_weight": 0.1}, pixel_opt={"type": "CharbonnierLoss"}), batch)
    assert set(trained.log_dict) == {"l_pix", "l_fft", "grad_norm"}
    difference = torch.fft.rfft2(model().net_g(batch["lq"]) - batch["gt"], norm="ortho")
    expected = (0.1 * (difference.real.abs().mean() + difference.imag.abs().mean()) / 2).detach()
    assert trained.log_dict["l_fft"] == pytest.approx(float(expected), rel=1e-4)


@ARCH_REGISTRY.register()
class WithStatistics(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.PixelShuffle(2))


def test_a_skipped_step_keeps_the_statistics_of_batch_normalisation(batch):
    trained = step(model(network_g={"type": "WithStatistics"}), batch)
    before = deepcopy(trained.net_g.state_dict())
    batch["lq"][0, 0, 0, 0] = math.nan
    assert identical(step(trained, batch, 2).net_g.state_dict(), before)

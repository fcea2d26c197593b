"""`dlgsanet complexity`: published numbers of parameters and multiply-accumulates, to the last given digit."""

import pytest
import torch
import yaml
from torch import nn

from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.archs.sizes import size_of, size_options
from dlgsanet.cli import main
from dlgsanet.evaluation import ablation, complexity, memory
from dlgsanet.evaluation.complexity import input_size, measure, multiply_accumulates, parameters
from dlgsanet.evaluation.memory import least_memory
from dlgsanet.pictures.tile_sizes import OTHER_MEMORY, needed_memory
from tests.evaluation.conftest import EDSR, SMALL, small_weights


@pytest.mark.parametrize(
    ("size", "scale", "weights", "gmacs"),
    [
        ("Tiny", 2, 565_710, 135.3),
        ("Tiny", 3, 572_205, 60.8),
        ("Tiny", 4, 581_298, 34.7),
        ("Light", 2, 745_188, 178.3),
        ("Light", 3, 751_683, 79.9),
        ("Light", 4, 760_776, 45.5),
        ("Large", 2, 4_733_724, 1123.3),
        ("Large", 3, 4_745_889, 500.3),
        ("Large", 4, 4_762_920, 282.5),
    ],
)
def test_published_networks(size, scale, weights, gmacs):
    options = size_options(size, scale)
    network = DLGSANet(**options)
    assert parameters(network) == weights
    assert round(multiply_accumulates(network, *input_size(scale)) / 1e9, 1) == gmacs
    assert size_of(options) == size
    assert size_of(options | {"activation": "topk"}) is None


def test_the_command_counts_any_option_file(option_file, capsys):
    assert main(["complexity", "Tiny", str(option_file), "--scales", "4", "--runs", "0"]) == 0
    out = capsys.readouterr().out
    assert "581,298" in out
    assert "34.7" in out
    assert "small" in out


def test_weight_norm_costs_nothing():
    """Its weights are computed, and PyTorch does not copy them."""
    plain, normed = (nn.Sequential(nn.Conv2d(3, 4, 3)) for _ in range(2))
    nn.utils.weight_norm(normed[0])
    assert multiply_accumulates(normed, 8, 8) == multiply_accumulates(plain, 8, 8) > 0


def test_a_network_on_luma(tmp_path, capsys):
    of_rgb, of_luma = (DLGSANet(**SMALL | {"upscale": 2, "in_chans": channels}).eval() for channels in (3, 1))
    fewer = 2 * 9 * SMALL["dim"] * (1 + 2**2) * 24 * 32  # of the first and of the last convolution
    assert multiply_accumulates(of_rgb, 24, 32) - multiply_accumulates(of_luma, 24, 32, channels=1) == fewer
    path = small_weights(tmp_path / "luma.pth", in_chans=1)
    assert main(["complexity", str(path), "--size", "64x48", "--runs", "1"]) == 0
    assert "luma" in capsys.readouterr().out


def test_another_network_on_luma(option_file, capsys):
    options = {"type": "MSRResNet", "num_in_ch": 1, "num_out_ch": 1, "num_feat": 8, "num_block": 1, "upscale": 2}
    option_file.write_text(yaml.safe_dump({"name": "other", "scale": 2, "network_g": options}))
    assert main(["complexity", str(option_file), "--size", "64x48", "--runs", "1", "--device", "cpu"]) == 0
    assert float(ablation._costs(options, 2)[1]) > 0


def test_latency_and_memory_are_measured():
    network = torch.nn.Conv2d(3, 64, 3, padding=1)
    cost = measure(network, 256, 512, torch.device("cpu"), runs=3)
    assert 0 < cost.seconds < 10
    output = 64 * 256 * 512 * 4
    assert cost.peak_bytes is None or 0.9 * output < cost.peak_bytes < 6 * output


def test_memory_that_was_kept_by_calls_before_is_counted():
    network = DLGSANet(**size_options("Tiny", 2) | {"groups": 1, "blocks": 1}).eval().requires_grad_(False)
    with torch.inference_mode():
        network(torch.rand(1, 3, 200, 200))
    cost = measure(network, 200, 200, torch.device("cpu"), runs=1)
    assert cost.peak_bytes is None or cost.peak_bytes > 2 * 4 * 48 * 200**2


def test_the_memory_of_a_gpu_is_not_that_of_the_process():
    class OnGpu(torch.Tensor):
        is_cpu = False
        waits = 0

        def item(self):
            OnGpu.waits += 1

    x = torch.rand(1, 3, 8, 8).as_subclass(OnGpu)
    assert complexity._measure_by_clock(torch.nn.ReLU(), x, runs=2).peak_bytes is None
    assert OnGpu.waits == 3


def test_tensors_that_are_alive_at_once_are_counted():
    layers = [torch.nn.Conv2d(3, 64, 3, padding=1), torch.nn.ReLU(inplace=True), torch.nn.Conv2d(64, 5, 3, padding=1)]
    pixels = 4 * 4000 * 3000
    assert least_memory(torch.nn.Sequential(*layers[:2]), (1, 3, 4000, 3000)) == (3 + 64) * pixels
    assert least_memory(torch.nn.Sequential(*layers), (1, 3, 4000, 3000)) == (3 + 64 + 5) * pixels
    assert least_memory(torch.nn.Sequential(*layers), (2, 3, 4000, 3000)) == 2 * (3 + 64 + 5) * pixels


@pytest.mark.parametrize("own", [False, True])
def test_sizes_that_do_not_fit_are_refused(own, option_file, monkeypatch, capsys):
    if own:
        option_file.write_text(yaml.safe_dump({"name": "own", "scale": 2, "network_g": EDSR}))
    run = ["complexity", str(option_file), "--size", "160x120", "--runs", "1", "--device", "cpu"]
    monkeypatch.setattr(complexity, "_measure_by_clock", lambda *_: complexity.Cost(1, 1))
    assert main(run) == 0
    monkeypatch.setattr(memory, "free_memory", lambda device: 10**5)
    assert main(run) == 2
    assert "80x60 pixels need more memory than cpu has; --runs 0" in capsys.readouterr().err


@pytest.mark.long
def test_the_memory_of_a_network_is_planned():
    network = DLGSANet(**size_options("Tiny", 2)).eval().requires_grad_(False)
    cost = measure(network, 500, 600, torch.device("cpu"), runs=1)
    needed = needed_memory(network, 500, 600, None) + 12 * 4 * 500 * 600  # of the features, and the result
    assert cost.peak_bytes < needed < 1.15 * cost.peak_bytes + OTHER_MEMORY


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["Huge"], "network 'Huge'"),
        (["Tiny", "--scales", "8"], "scale 8"),
        (["Tiny", "--device", "nonsense"], "nonsense"),
        (["missing.yml"], "missing.yml"),
    ],
)
def test_errors_name_the_argument(arguments, named, capsys):
    assert main(["complexity", *arguments]) == 2
    assert named in capsys.readouterr().err.splitlines()[-1]

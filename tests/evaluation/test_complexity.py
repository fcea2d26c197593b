"""`dlgsanet complexity`: published numbers of parameters and multiply-accumulates, to the last given digit."""

import pytest
import torch

from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.archs.sizes import SCALES, dlgsanet_large, dlgsanet_light, dlgsanet_tiny, size_of, size_options
from dlgsanet.cli import main
from dlgsanet.evaluation.complexity import input_size, measure, multiply_accumulates, parameters


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


@pytest.mark.parametrize("scale", SCALES)
def test_sizes_are_functions_of_the_scale(scale):
    for size, build in {"Tiny": dlgsanet_tiny, "Light": dlgsanet_light, "Large": dlgsanet_large}.items():
        network, expected = build(scale), DLGSANet(**size_options(size, scale))
        assert network.upscale == scale
        shapes = {name: value.shape for name, value in network.state_dict().items()}
        assert shapes == {name: value.shape for name, value in expected.state_dict().items()}
    with pytest.raises(ValueError, match="scale 8"):
        dlgsanet_tiny(8)


def test_the_command_counts_any_option_file(option_file, capsys):
    assert main(["complexity", "Tiny", str(option_file), "--scales", "4", "--runs", "0"]) == 0
    out = capsys.readouterr().out
    assert "581,298" in out
    assert "34.7" in out
    assert "small" in out


def test_latency_and_memory_are_measured():
    network = torch.nn.Conv2d(3, 64, 3, padding=1)
    cost = measure(network, torch.rand(1, 3, 256, 512), runs=3)
    assert 0 < cost.seconds < 10
    output = 64 * 256 * 512 * 4
    assert cost.peak_bytes is None or 0.9 * output < cost.peak_bytes < 6 * output


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

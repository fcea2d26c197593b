"""Attribution maps, kept similarities and filters, compared with their definitions."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from dlgsanet import ops
from dlgsanet.archs.checkpoint import build_network, network_options, read_checkpoint, write_checkpoint
from dlgsanet.archs.mhdlsa import MHDLSA
from dlgsanet.cli import main
from dlgsanet.evaluation.attention import filters_at, kept_shares
from dlgsanet.evaluation.attribution import Attribution, attribute
from tests.evaluation.conftest import save, small_weights


@pytest.fixture
def image():
    return torch.from_numpy(data.astronaut()[40:72, 200:240]).permute(2, 0, 1)[None].float() / 255


def network(path, **options):
    return build_network(read_checkpoint(small_weights(path, **options)))


def test_shares_add_up_to_the_gain(tmp_path, image):
    """Integrated gradients are complete: with enough steps their sum is the gain."""
    found = attribute(network(tmp_path / "A.pth"), image[..., :16, :20], 12, 10, window=12, steps=12)
    assert found.map.sum() == pytest.approx(found.gain, rel=0.05)
    assert found.map.shape == (16, 20)
    assert found.output.shape == (3, 32, 40)


def test_only_the_receptive_field_is_attributed(image):
    """For a 3x3 convolution and a pixel shuffle, it is the window and one pixel around it."""
    convolution = torch.nn.Sequential(torch.nn.Conv2d(3, 12, 3, padding=1), torch.nn.PixelShuffle(2))
    found = attribute(convolution, image, 20, 16, window=8, steps=4)
    rows, columns = np.nonzero(found.map)
    assert rows.min() >= 7
    assert rows.max() <= 12
    assert columns.min() >= 9
    assert columns.max() <= 14
    far = attribute(
        torch.nn.Sequential(torch.nn.Conv2d(3, 12, 9, padding=4), torch.nn.PixelShuffle(2)), image, 20, 16, 8
    )
    assert far.diffusion_index > found.diffusion_index


def test_diffusion_index_is_one_minus_gini():
    shares = np.random.default_rng(0).normal(size=(5, 6)) ** 3
    g = np.abs(shares).ravel()
    gini = sum(abs(a - b) for a, b in itertools.product(g, g)) / (2 * len(g) ** 2 * g.mean())
    assert Attribution(shares, shares, 0).diffusion_index == pytest.approx(100 * (1 - gini))
    assert Attribution(np.ones((4, 4)), shares, 0).diffusion_index == pytest.approx(100)


@pytest.mark.parametrize(
    ("activation", "expected"), [("softmax", 1.0), ("sigmoid", 1.0), ("topk", 0.5), ("relu", None)]
)
def test_kept_shares(tmp_path, image, activation, expected):
    shares = kept_shares(network(tmp_path / "A.pth", activation=activation, blocks=2, tlc_kernel=16), image)
    assert shares.shape == (2, 6)  # SMALL has dim 12: two channels a head
    if expected:
        torch.testing.assert_close(shares, torch.full((2, 6), expected))
    else:
        assert 0 < shares.min() <= shares.max() < 1


def test_filters_are_those_that_the_layer_uses(tmp_path, image):
    """A dynamic convolution with these filters gives the output of MHDLSA at that pixel."""
    net = network(tmp_path / "A.pth")
    filters = filters_at(net, image, [(7, 5), (20, 30)])
    assert filters.shape == (2, 1, 2, 7, 7)
    layer = next(m for m in net.modules() if isinstance(m, MHDLSA))
    x = net.shallow(image - torch.tensor(net.mean).view(1, 3, 1, 1))
    y = layer.proj_in(layer.norm(x))
    everywhere = filters[0, 0][None, ..., None, None].expand(-1, -1, -1, -1, *x.shape[2:]).contiguous()
    expected = x + layer.proj_out(ops.dynamic_depthwise_conv(y, everywhere))
    torch.testing.assert_close(layer(x)[..., 5, 7], expected[..., 5, 7])


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_weights(tmp_path / "A.pth")
    small_weights(tmp_path / "global.pth", buildblock_type="restormer")
    small_weights(tmp_path / "local.pth", buildblock_type="idynamic")
    small_weights(tmp_path / "luma.pth", in_chans=1)
    save(tmp_path / "lr.png", data.astronaut()[40:64, 200:230])
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ["lam", "A.pth", "Local=local.pth", "--steps", "3", "--at", "10", "8"],
        ["kept", "A.pth"],
        ["filters", "A.pth", "--points", "3,4", "20,10"],
    ],
)
def test_each_command_draws_its_picture(place, arguments):
    assert main(["explain", *arguments, "--image", "lr.png", "-o", "out.png"]) == 0
    assert np.array(Image.open("out.png").convert("L")).std() > 10


def test_a_window_of_one_pixel_has_no_edges(place, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["explain", "lam", "A.pth", "--image", "lr.png", "--window", "1"])
    assert "--window: '1' is not a whole number from 2 up" in capsys.readouterr().err


def test_output_that_cannot_be_written_is_found_before_the_image_is_read(place, capsys):
    assert main(["explain", "kept", "A.pth", "--image", "none.png", "-o", "A.pth/out.png"]) == 2
    assert "A.pth/out.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "large"),
    [
        (["lam", "A.pth", "big.pth", "--steps", "2"], ("upsample", "deep_feature_extraction.1")),
        (["lam", "A.pth", "big.pth", "--steps", "2"], ("upsample",)),  # only the square of its edges overflows
        (["kept", "big.pth"], ("upsample", "deep_feature_extraction.1")),
        (["filters", "big.pth", "--points", "3,4"], ("upsample", "deep_feature_extraction.1")),
    ],
)
def test_weights_that_overflow_are_named(place, arguments, large, capsys):
    content = read_checkpoint(place / "A.pth")
    state = {name: value * 1e30 if name.startswith(large) else value for name, value in content.state.items()}
    write_checkpoint(place / "big.pth", state, network_options(content))
    assert main(["explain", *arguments, "--image", "lr.png", "-o", "out.png"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "big.pth: the " in line
    assert "not finite" in line
    assert not (place / "out.png").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["lam", "A.pth", "--at", "50", "8"], "60x48"),
        (["lam", "A.pth", "A.pth"], "'A'"),
        (["kept", "local.pth"], "SparseGSA"),
        (["filters", "global.pth", "--points", "1,1"], "MHDLSA"),
        (["filters", "A.pth", "--points", "30,1"], "--points 30,1"),
        (["lam", "A.pth", "luma.pth"], "luma.pth: is for images of 1 channel,"),
    ],
)
def test_errors_name_the_argument(place, arguments, named, capsys):
    assert main(["explain", *arguments, "--image", "lr.png", "-o", "out.png"]) == 2
    assert named in capsys.readouterr().err
    assert not (place / "out.png").exists()

"""`from dlgsanet import load_model, upscale`: the same kind back."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from dlgsanet import load_model, upscale
from dlgsanet.errors import UserError
from tests.small_network import small_network


def test_importing_the_package_loads_no_torch():
    code = "import sys, dlgsanet; assert 'torch' not in sys.modules; dlgsanet.upscale; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_load_model_needs_nothing_but_the_file(weights, network):
    loaded = load_model(weights)
    x = torch.rand(1, 3, 9, 7)
    assert torch.equal(loaded(x), network(x))
    assert load_model(weights, precision="bf16").shallow.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 3}, "x2, not x3"),
        ({"device": "abacus"}, "^device: "),
        ({"device": "meta"}, "^device: "),
        ({"precision": "fp8"}, "fp32, fp16, bf16"),
    ],
)
def test_load_model_names_what_is_wrong(weights, arguments, message):
    with pytest.raises(UserError, match=message):
        load_model(weights, **arguments)


def test_included_weights_are_found_by_name_and_scale(tmp_path, monkeypatch):
    from dlgsanet.inference import weights

    monkeypatch.setattr(weights, "FOLDERS", (tmp_path,))
    for scale in (2, 4):
        (tmp_path / f"DLGSANet_Tiny_x{scale}.safetensors").touch()
    for arguments, found in [
        (("Tiny",), 2), (("tiny", 4), 4), (("Tiny", None, 3), 4), (("Tiny", None, 8), 4), (("dlgsanet_tiny_X4",), 4),
    ]:  # fmt: skip
        assert weights.find_weights(*arguments).stem == f"DLGSANet_Tiny_x{found}"
    with pytest.raises(UserError, match=r"^weights: .*'Huge'.*choose from Tiny, DLGSANet_Tiny_x2, DLGSANet_Tiny_x4"):
        weights.find_weights("Huge")
    with pytest.raises(UserError, match="'Tiny' at x3"):
        weights.find_weights("Tiny", 3)
    for name, value in (("scale", "2"), ("scale", 2.5), ("scale", True), ("outscale", "2")):
        with pytest.raises(UserError, match=rf"^{name}: .* is not a "):
            weights.find_weights("Tiny", **{name: value})
    with pytest.raises(UserError, match=r"no file .*none\.pth"):
        weights.find_weights(tmp_path / "none.pth")


def test_tensors_are_what_the_network_gives(network, photo):
    x = torch.from_numpy(photo.copy()).permute(2, 0, 1).float() / 255
    torch.testing.assert_close(upscale(x, network), network(x[None])[0].clamp(0, 1), rtol=0, atol=1e-6)
    batch = torch.stack([x, x.flip(2)])
    assert torch.equal(upscale(batch, network)[0], upscale(x, network))
    assert upscale(x.bfloat16(), network).dtype == torch.bfloat16
    assert upscale(x[:1], network).shape == (1, 120, 168)
    assert upscale((x * 255).byte(), network).dtype == torch.uint8


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2", np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("channels", [None, 1, 2, 3, 4])
def test_arrays_keep_dtype_and_channels(network, photo, dtype, channels):
    most = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
    four = np.dstack([photo, photo[..., :1]])
    pixels = (four / 255 * most).astype(dtype)
    pixels = pixels[..., 0] if channels is None else pixels[..., :channels]
    out = upscale(pixels, network)
    assert out.shape == (120, 168, *pixels.shape[2:])
    assert out.dtype == dtype
    eight_bits = upscale(four[..., 0] if channels is None else four[..., :channels], network)
    assert np.abs(out / most - eight_bits / 255).max() < 1.5 / 255


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_images_keep_mode_and_profile(network, photo, mode):
    image = Image.fromarray(photo)
    image = Image.fromarray(photo[..., 0].astype(np.uint16)) if mode == "I;16" else image.convert(mode)
    image.info["icc_profile"] = b"profile"
    out = upscale(image, network)
    assert out.mode == {"1": "L", "P": "RGB"}.get(mode, mode)
    assert out.size == (168, 120)
    assert out.info["icc_profile"] == b"profile"


def test_paths_are_written(network, photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "a.png")
    target = upscale(tmp_path / "a.png", network, output=tmp_path / "new" / "b.png")
    assert np.array_equal(np.array(Image.open(target)), upscale(photo, network))
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"output: .*link\.png is the picture itself"):
        upscale(tmp_path / "a.png", network, output=tmp_path / "link.png")
    assert np.array_equal(np.array(Image.open(tmp_path / "a.png")), photo)


@pytest.mark.parametrize("factor", [0.5, 1.5, 2, 3.3])
def test_outscale_resizes_the_result(network, photo, factor):
    out = upscale(photo, network, outscale=factor)
    assert out.shape == (round(60 * factor), round(84 * factor), 3)
    assert abs(out.mean() - upscale(photo, network).mean()) < 1


def test_gray_networks_take_color_and_the_other_way_round(photo):
    from tests.small_network import small_network

    gray = small_network(in_chans=1)
    out = upscale(photo, gray)
    assert np.array_equal(out[..., 1], upscale(photo[..., 1], gray))


@pytest.mark.parametrize(
    ("image", "error"),
    [
        ([1, 2], TypeError),
        (np.zeros(5, np.uint8), ValueError),
        (np.zeros((4, 4, 5), np.uint8), ValueError),
        (np.zeros((0, 4, 3), np.uint8), ValueError),
        (np.zeros((4, 4), np.int32), ValueError),
        (np.full((4, 4), np.nan, np.float32), ValueError),
        (np.full((4, 4), 255, np.float32), ValueError),
        (torch.zeros(4, 4), ValueError),
        (torch.zeros(0, 3, 4, 4), ValueError),
        (torch.zeros(3, 4, 4, dtype=torch.int32), ValueError),
        (Image.new("F", (4, 4)), ValueError),
        ("none.png", ValueError),
    ],
)
def test_what_is_no_picture_is_refused(network, image, error):
    with pytest.raises(error):
        upscale(image, network)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tile": "big"}, ValueError, "tile 'big'"),
        ({"tile": -5}, ValueError, "tile -5"),
        ({"outscale": "2"}, UserError, "^outscale: "),
        ({"outscale": -1}, UserError, "^outscale: "),
        ({"outscale": True}, UserError, "^outscale: "),
        ({"outscale": 1e9}, UserError, "^outscale: "),
        ({"model": torch.nn.Identity()}, TypeError, "model must be"),
        ({"model": small_network().train()}, ValueError, r"training mode; call model\.eval"),
    ],
)
def test_impossible_arguments_are_refused(network, photo, arguments, error, message):
    with pytest.raises(error, match=message):
        upscale(photo, **{"model": network} | arguments)


def test_edges_do_not_depend_on_a_hidden_colour():
    network = load_model("Tiny")  # a small random network makes nothing transparent
    pixels = np.full((24, 40, 4), (20, 160, 60, 255), np.uint8)
    pixels[:, :20, 3], pixels[:, 20, 3] = 0, 90
    for color in ((0, 0, 0), (255, 0, 255)):
        pixels[:, :20, :3] = color
        result = upscale(pixels, network)
        visible = result[..., 3] > 0
        assert np.abs(result[visible, :3].astype(int) - (20, 160, 60)).max() <= 10
        assert not visible.all()
        assert (result[~visible, :3] == color).all()
    # Where they differ they may mean something, as in textures of games.
    pixels[0, 0, :3] = 9
    assert np.array_equal(upscale(pixels, network)[..., :3], upscale(pixels[..., :3].copy(), network))


@pytest.mark.parametrize("ensemble", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 2), (3, 40)])
def test_narrow_strips_keep_their_colors(shape, ensemble):
    network = load_model("Tiny")  # a small random network has no colours
    out = upscale(np.full((*shape, 3), (200, 100, 50), np.uint8), network, self_ensemble=ensemble)
    assert out.shape == (2 * shape[0], 2 * shape[1], 3)
    assert np.abs(out.astype(int) - (200, 100, 50)).max() <= 5


@pytest.mark.parametrize("outscale", [None, 1.5])
@pytest.mark.parametrize(("dtype", "most"), [(np.uint8, 255), (np.uint16, 65535), (np.float16, 1)])
def test_what_is_wholly_transparent_or_opaque_stays_so(network, dtype, most, outscale):
    pixels = np.full((24, 40, 4), most, dtype)
    pixels[:, :20, 3] = 0
    alpha = upscale(pixels, network, outscale=outscale)[..., 3]
    factor = outscale or network.upscale
    assert (alpha[:, : int(18 * factor)] == 0).all()
    assert (alpha[:, -int(18 * factor) :] == most).all()
    assert len(np.unique(alpha)) > 2  # between them it is the network's

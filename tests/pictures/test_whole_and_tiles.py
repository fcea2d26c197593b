"""Big pictures: strips give the result of the whole network, tiles nearly; smaller tiles if memory runs out."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dlgsanet.archs import dlgsanet, strips
from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.errors import UserError
from dlgsanet.ops import kept_memory
from dlgsanet.ops.windows import window_starts
from dlgsanet.pictures import tile_sizes
from dlgsanet.pictures.tile_layout import spans
from dlgsanet.pictures.upscale_pixels import upscale_pixels
from tests.conftest import REPOSITORY
from tests.small_network import in_turn, small_network

VARIANTS = {
    "published": {},
    "x4 in stages, norms": {"upsampler": "pixelshuffle", "upscale": 4, "body_norm": True},
    "x3 in stages": {"upsampler": "pixelshuffle", "upscale": 3, "img_range": 255.0},
    "static, base feed-forward": {"idynamic": False, "idynamic_ffn_type": "BaseFFN", "window_size": 7},
    "global alone, no TLC": {"buildblock_type": "restormer", "tlc_flag": False},
    "local alone": {"buildblock_type": "idynamic", "blocks": 2},
    "no change of size": {"upsampler": "", "upscale": 1},
}


@pytest.mark.parametrize("size", [(1, 1), (23, 70), (100, 41)])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("backend", ["native", "torch"])
def test_strips_give_what_the_whole_network_gives(variant, size, backend, monkeypatch):
    for name in ("STRIP_PIXELS", "CONVOLUTION_PIXELS"):
        monkeypatch.setattr(strips, name, 900)
        monkeypatch.setattr(dlgsanet, name, 900, raising=False)
    monkeypatch.setenv("DLGSANET_BACKEND", backend)
    network = small_network(**variant)
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
    ticks = []
    parts = list(network.by_rows(image, lambda: ticks.append(1)))
    assert [top for top, _ in parts] == np.cumsum([0, *(p.shape[2] for _, p in parts)])[:-1].tolist()
    torch.testing.assert_close(torch.cat([p for _, p in parts], 2), in_turn(network, image), rtol=0, atol=1e-6)
    assert len(ticks) == network.steps()


def test_few_feature_maps_live_at_once(monkeypatch):
    """Features of the whole image: those that a group starts from, and those under way; a global layer's result too."""
    monkeypatch.setenv("DLGSANET_BACKEND", "torch")
    monkeypatch.setattr(kept_memory, "LEAST", 2**60)  # all memory is PyTorch's, which the profiler counts
    monkeypatch.setattr(strips, "STRIP_PIXELS", 16 * 200)
    network, image = small_network(buildblock_type="idynamic", blocks=3), torch.rand(1, 3, 1000, 200)
    map_bytes = 4 * 8 * 1000 * 200
    with torch.profiler.profile(profile_memory=True) as profile:
        for _ in network.by_rows(image):
            pass
    changes = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = np.cumsum([e.nbytes() for e in sorted(changes, key=lambda e: e.start_ns())])
    assert live.max() < 2.7 * map_bytes


@given(st.integers(1, 3000), st.sampled_from([24, 48, 72, 96]), st.integers(1, 3000))
def test_tiles_cover_an_axis_with_the_windows_of_the_whole(size, window, tile):
    tiles = spans(size, window, tile)
    assert tiles[0].start == tiles[0].first == 0
    assert tiles[-1].stop == tiles[-1].last == size
    assert all(a.stop == b.start for a, b in itertools.pairwise(tiles))
    whole = window_starts(size, window)
    for t in tiles:
        assert t.first <= t.start < t.stop <= t.last
        if t.last < size:  # see the module's docstring for the last one
            inside = [w for w in whole if t.first <= w and w + window <= t.last]
            assert [t.first + w for w in window_starts(t.last - t.first, window)] == inside


def test_tiles_are_nearly_exact_and_their_borders_do_not_show(network):
    photo = skimage.data.chelsea()[:200, :300].astype(np.float32) / 255
    whole, tiled = (
        upscale_pixels(network, photo, "exact"),
        upscale_pixels(network, photo, 60),
    )
    assert not np.array_equal(whole, tiled)  # or these were no tiles
    difference = np.abs(tiled - whole)
    assert 10 * np.log10(1 / (difference**2).mean()) > 60
    border = spans(300, 24, 60)[1].start * 2
    step = np.abs(np.diff(difference, axis=1))
    assert step[:, border - 1].mean() < 0.001


def test_auto_goes_smaller_when_memory_runs_out(network, monkeypatch):
    photo = skimage.data.chelsea()[:160, :220]
    small_enough = 130 * 130

    by_rows = DLGSANet.by_rows

    def starved(network, image, tick):
        if image.shape[2] * image.shape[3] > small_enough:
            tick()
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return by_rows(network, image, tick)

    monkeypatch.setattr(DLGSANet, "by_rows", starved)
    shares = []
    out = upscale_pixels(network, photo, "auto", progress=shares.append)
    assert out.shape == (320, 440, 3)
    assert shares[-1] == pytest.approx(1)
    assert any(after < before for before, after in itertools.pairwise(shares))  # memory ran out: it begins again
    with pytest.raises(UserError, match="out of memory for 220x160 pixels"):
        upscale_pixels(network, photo, "exact")


def test_auto_takes_exact_if_it_fits_and_else_the_largest_tile_that_does(network, monkeypatch):
    monkeypatch.setattr(tile_sizes, "free_memory", lambda device: None)
    assert next(tile_sizes.tile_sizes_to_try(network, 3000, 4000, "auto")) is None
    sides = []
    for free in (2**29, 2**30, 2**32):
        monkeypatch.setattr(tile_sizes, "free_memory", lambda device, free=free: free)
        side = next(tile_sizes.tile_sizes_to_try(network, 6000, 8000, "auto"))
        assert side is not None
        assert tile_sizes.needed_memory(network, 6000, 8000, side) < free
        sides.append(side)
    assert sides == sorted(set(sides))


@pytest.mark.parametrize("tile", ["exact", "auto", 48])
@pytest.mark.parametrize("ensemble", [False, True])
def test_what_does_not_fit_is_refused_before_any_work(network, monkeypatch, tile, ensemble):
    photo = skimage.data.chelsea()[:60, :50]
    smallest = {"exact": None, "auto": None, 48: 48}[tile]
    needed = tile_sizes.needed_memory(network, 60, 50, smallest) + (3 * 4 if ensemble else 1) * 3 * 4 * 60 * 50
    monkeypatch.setattr(tile_sizes, "free_memory", lambda device: needed)
    upscale_pixels(network, photo, tile, ensemble)
    monkeypatch.setattr(tile_sizes, "free_memory", lambda device: needed - 1)
    monkeypatch.setattr(DLGSANet, "by_rows", None)  # a call would be a TypeError
    with pytest.raises(UserError, match=rf"50x60 pixels \(tile: {tile}\) need 0.0 GiB of memory, and 0.0 GiB are free"):
        upscale_pixels(network, photo, tile, ensemble)


def test_tiles_stay_large_where_little_memory_is_free(monkeypatch):
    """A network of Tiny's width in 500 MB: what strips need follows the size of the tile."""
    monkeypatch.setenv("DLGSANET_BACKEND", "torch")
    monkeypatch.setattr(tile_sizes, "free_memory", lambda device: 500 * 2**20)
    network = small_network(dim=48, tlc_kernel=96)
    side = next(tile_sizes.tile_sizes_to_try(network, 1000, 1500, "auto"))
    assert side >= 256
    assert tile_sizes.needed_memory(network, 1000, 1500, side) < 400 * 2**20


def test_no_tiles_where_attention_spans_the_image():
    network = small_network(tlc_flag=False)
    with pytest.raises(UserError, match="spans the whole image"):
        upscale_pixels(network, np.zeros((40, 40, 3), np.uint8), 24)
    assert upscale_pixels(network, np.zeros((40, 40, 3), np.uint8), "auto").shape == (80, 80, 3)


def test_self_ensemble_commutes_with_flips_and_turns(network, photo):
    whole = upscale_pixels(network, photo, self_ensemble=True)
    assert not np.array_equal(whole, upscale_pixels(network, photo))
    turned = upscale_pixels(network, np.rot90(photo[:, ::-1]), self_ensemble=True)
    assert np.abs(turned.astype(int) - np.rot90(whole[:, ::-1])).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--ways", "1o24"], "--ways"),
        (["--markdown", "no.md/table.md"], "no.md"),
        (["--photo", "small.png", "--ways", "48"], "small.png is smaller than 64x64; give --size 50x60"),
    ],
)
def test_the_measurement_names_what_is_wrong(weights, tmp_path, arguments, named):
    """A photograph that is too small was measured with black below it."""
    Image.fromarray(skimage.data.chelsea()[:60, :50]).save(tmp_path / "small.png")
    (tmp_path / "no.md").touch()
    command = [sys.executable, str(REPOSITORY / "scripts/benchmark_upscale.py"), "--size", "64x64"]
    command += ["--weights", str(weights), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert named in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr

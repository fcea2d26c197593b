"""PSNR of bicubic on the standard test sets (needs the folder that DLGSANET_SHARED names)."""

import os
from pathlib import Path

import numpy as np
import pytest
import yaml

from dlgsanet.cli import main
from dlgsanet.data.pairs import find_pairs_in
from dlgsanet.evaluation.scoring import bicubic
from dlgsanet.metrics import psnr
from tests.evaluation.conftest import small_weights

BENCHMARK = Path(os.environ.get("DLGSANET_SHARED", "."), "data/benchmark")
pytestmark = pytest.mark.skipif(not BENCHMARK.is_dir(), reason="DLGSANET_SHARED names no folder with data/benchmark")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Set5", (33.673, 30.403, 28.429)),
        ("Set14", (30.325, 27.631, 26.088)),
        ("Urban10", (23.972, 21.712, 20.576)),
    ],
)
def test_bicubic(name, expected):
    """Mean PSNR on Y. Images are read as three channels, as BasicSR reads them."""
    for scale, value in zip((2, 3, 4), expected, strict=True):
        folder = BENCHMARK / name
        scores = []
        for pair in find_pairs_in(folder, scale):
            lr, hr = pair.read(scale)
            scores.append(psnr(bicubic(lr, scale), hr, scale))
        assert np.mean(scores) == pytest.approx(value, abs=0.005)


@pytest.mark.long
def test_a_page_of_two_sets_stays_below_20_mb(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = [str(small_weights(tmp_path / f"{seed}.pth", scale=4, seed=seed)) for seed in (1, 2)]
    network = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1, "upscale": 4}
    dataset = {"name": "Set5", "type": "PairedImageDataset", "dataroot_gt": "a", "dataroot_lq": "b"}
    options = {
        "name": "EDSR",
        "model_type": "SRModel",
        "scale": 4,
        "datasets": {"test": dataset | {"io_backend": {"type": "disk"}}},
        "network_g": network,
        "path": {"pretrain_network_g": None},
        "val": {"save_img": False},
    }
    (tmp_path / "edsr.yml").write_text(yaml.safe_dump(options))
    sets = [str(BENCHMARK / name) for name in ("Set5", "Urban10")]
    arguments = ["--random-weights", "--runs", "0", "-o", "out", "--data", *sets]
    assert main(["benchmark", *weights, "edsr.yml", *arguments]) == 0
    assert 1e6 < (tmp_path / "out/x4.html").stat().st_size < 20e6

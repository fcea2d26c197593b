"""A small test set of real photographs, and a small network."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from skimage import data

from dlgsanet.archs.checkpoint import write_checkpoint
from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.data.resize import downscale

SMALL = {"dim": 12, "groups": 1, "blocks": 1, "buildblock_type": "sparseedge", "upsampler": "pixelshuffledirect"}
EDSR = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1, "upscale": 2}


def write_set(root: Path, name: str, scales=(2,), size=(64, 48)) -> Path:
    """ROOT/NAME/HR and LR_bicubic of three photographs, two of them of the same size."""
    height, width = size
    photographs = {
        "astronaut": data.astronaut()[20 : 20 + height, 180 : 180 + width],
        "chelsea": data.chelsea()[80 : 80 + height, 100 : 100 + width],
        "coffee": data.coffee()[100 : 100 + height - 8, 200 : 200 + width + 5],
    }
    for stem, image in photographs.items():
        save(root / name / "HR" / f"{stem}.png", image)
        for scale in scales:
            save(root / name / "LR_bicubic" / f"X{scale}" / f"{stem}x{scale}.png", downscale(image, scale))
    return root / name


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


@pytest.fixture
def photographs(tmp_path) -> Path:
    """`tmp_path/datasets`, with the set `Photos` at x2."""
    write_set(tmp_path / "datasets", "Photos")
    return tmp_path / "datasets"


def small_weights(path: Path, scale=2, seed=0, **options) -> Path:
    """Random weights of a small network. Its output is close to a blurred enlargement of the input."""
    torch.manual_seed(seed)
    options = SMALL | {"upscale": scale} | options
    write_checkpoint(path, DLGSANet(**options).state_dict(), options)
    return path


def data_set(name: str = "Photos") -> dict[str, Any]:
    """A data set of an option file: what `write_set` writes at x2."""
    return {
        "name": name,
        "type": "PairedImageDataset",
        "dataroot_gt": f"datasets/{name}/HR",
        "dataroot_lq": f"datasets/{name}/LR_bicubic/X2",
        "filename_tmpl": "{}x2",
        "io_backend": {"type": "disk"},
    }


@pytest.fixture
def option_file(tmp_path, photographs) -> Path:
    """A test option file, and the weights that it names."""
    options = {
        "name": "small",
        "model_type": "DLGSANetModel",
        "scale": 2,
        "num_gpu": 1,
        "datasets": {"test_1": data_set()},
        "network_g": {"type": "DLGSANet", "upscale": 2, **SMALL},
        "path": {"pretrain_network_g": str(small_weights(tmp_path / "small.pth"))},
        "val": {
            "save_img": True,
            "metrics": {
                "psnr": {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True},
                "ssim": {"type": "calculate_ssim", "crop_border": 2, "test_y_channel": True},
            },
        },
    }
    path = tmp_path / "test.yml"
    path.write_text(yaml.safe_dump(options))
    return path

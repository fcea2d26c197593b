"""The degraded training data set: choices depend on (seed, epoch, index) alone, and strengths are what options say."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.random import RandomState
from PIL import Image
from torch.utils.data import DataLoader

from dlgsanet.cli import main
from dlgsanet.commands.arguments import file_of
from dlgsanet.data.degradation import KERNELS, Degradation, degrade, degraded_crop, draw
from dlgsanet.data.degraded_paired_dataset import DegradedPairedImageDataset
from dlgsanet.errors import UserError
from dlgsanet.options.table import DEGRADED_TRAINING_SET
from tests.conftest import REPOSITORY
from tests.data.test_cached_paired_dataset import in_first_epoch, options

NOTHING = Degradation(None, (0.5, 0.5), 0.0, 1.0, 1.0, ("bicubic", "bicubic"), 0.0, False, False, None, (0, 0))
STRENGTHS = DEGRADED_TRAINING_SET.completed(options(REPOSITORY))["degradations"]


@pytest.fixture(scope="module")
def dataset(photo_root):
    return in_first_epoch(options(photo_root), DegradedPairedImageDataset)


@pytest.fixture(scope="module")
def original(photo_root):
    """uint8 RGB [3, 192, 200]."""
    return np.ascontiguousarray(np.asarray(Image.open(photo_root / "HR/astronaut.png")).transpose(2, 0, 1))


def psnr(a, b):
    return -10 * np.log10(((np.float64(a) - np.float64(b)) ** 2).mean() / 255**2)


def test_a_sample_depends_on_seed_epoch_and_index_alone(dataset, photo_root):
    again = in_first_epoch(options(photo_root), DegradedPairedImageDataset)
    for index in (31, 3, 17):  # in another order, after other samples
        one, two = dataset.sample(2, index), again.sample(2, index)
        assert one["lq"].equal(two["lq"])
        assert one["gt"].equal(two["gt"])
    other_seed = in_first_epoch(options(photo_root, manual_seed=8), DegradedPairedImageDataset)
    for other in (dataset.sample(3, 3), dataset.sample(2, 4), other_seed.sample(2, 3)):
        assert not other["lq"].equal(dataset.sample(2, 3)["lq"])
    what, random = dataset.degradation(2, 3)
    assert str(what) == str(again.degradation(2, 3)[0]) != str(dataset.degradation(3, 3)[0])
    # Numbers of the platform and of NumPy's version would change resumed runs.
    assert random.uniform() == pytest.approx(again.degradation(2, 3)[1].uniform(), abs=0)


def test_workers_make_the_same_samples(dataset):
    loader = DataLoader(torch.utils.data.Subset(dataset, range(8)), num_workers=2, multiprocessing_context="fork")
    for index, batch in enumerate(loader):
        assert batch["lq"][0].equal(dataset[index]["lq"])


def test_crops_and_flips_are_those_of_the_set_without_degradations(dataset, photo_root):
    plain = in_first_epoch(options(photo_root))
    for index in range(20):
        one, other = plain[index], dataset[index]
        assert one["gt"].equal(other["gt"])
        assert one["lq"].shape == other["lq"].shape == (3, 8, 8)
        assert (one["gt_path"], one["lq_path"]) == (other["gt_path"], other["lq_path"])
    clean = in_first_epoch(options(photo_root, degradations={"clean_share": 1}), DegradedPairedImageDataset)
    assert all(plain[index]["lq"].equal(clean[index]["lq"]) for index in range(20))


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("kernel", [None, *KERNELS])
@pytest.mark.parametrize("resize", ["area", "bilinear", "bicubic"])
def test_a_crop_is_degraded_as_the_whole_image(original, scale, kernel, resize):
    what = replace(NOTHING, kernel=kernel, sigmas=(0.5, 0.8), angle=0.4, beta=1.5, resizes=(resize, resize))
    image = original[:, :192, :200]
    whole = degrade(image.transpose(1, 2, 0), scale, what, RandomState(0))
    crop = degraded_crop(image, 20, 19, 8, scale, replace(what, shift=(5, 2)), RandomState(0))
    assert np.abs(crop.transpose(1, 2, 0).astype(int) - whole[20:28, 19:27]).max() <= 1  # sums in another order


@pytest.mark.parametrize("place", [(0, 0), (30, 0), (0, 42), (40, 42), (21, 17)])
def test_it_lies_where_the_clean_one_lies(original, photo_root, place):
    """Also at the borders of the image, and resized on the way."""
    top, left = place
    lq = np.asarray(Image.open(photo_root / "LR_bicubic/X4/astronautx4.png"))
    for factor in (0.8, 1.0, 1.3):
        made = degraded_crop(original, top, left, 8, 4, replace(NOTHING, factor=factor), RandomState(0))
        at_place = psnr(made.transpose(1, 2, 0), lq[top : top + 8, left : left + 8])
        assert at_place > (45 if factor == 1 else 22)
        for down, right in ((1, 0), (0, 1)):
            shifted = lq[top : top + 8, left : left + 8][: 8 - down, : 8 - right]
            assert at_place > psnr(made.transpose(1, 2, 0)[down:, right:], shifted) or np.ptp(shifted) < 20


def test_strengths(original):
    image = original.transpose(1, 2, 0)
    clean = degrade(image, 2, NOTHING, RandomState(0))

    def distance(**changes):
        return psnr(degrade(image, 2, replace(NOTHING, **changes), RandomState(0)), clean)

    assert distance(quality=95) > distance(quality=60) > distance(quality=30) > 20
    assert distance(noise=1.0) > distance(noise=5.0) > 30
    assert distance(kernel="gaussian", sigmas=(0.3, 0.3)) > distance(kernel="gaussian", sigmas=(0.8, 0.8))
    assert distance(factor=1.2) > distance(factor=0.7)


@pytest.mark.parametrize("gray", [False, True])
def test_noise_has_the_standard_deviation_that_it_says(gray):
    flat = np.full((256, 256, 3), 200, np.uint8)
    for poisson, expected in ((False, 4), (True, 4 * np.sqrt(200 / 255))):
        noisy = degrade(flat, 2, replace(NOTHING, noise=4.0, poisson=poisson, gray=gray), RandomState(1)).astype(float)
        assert noisy.mean() == pytest.approx(200, abs=0.2)
        assert noisy.std() == pytest.approx(expected, rel=0.05)
        assert (np.ptp(noisy, axis=2).max() == 0) == gray


def test_jpeg_blocks_lie_anywhere_on_the_crop():
    """Where the crop begins within a block is random: a network must not learn one place."""
    drawn = [draw(STRENGTHS, RandomState(seed)).shift for seed in range(200)]
    assert {row for row, _ in drawn} == {column for _, column in drawn} == set(range(8))


def test_shares_and_ranges(dataset):
    drawn = [dataset.degradation(0, index)[0] for index in range(60)]
    drawn += [dataset.degradation(epoch, index)[0] for epoch in range(1, 20) for index in range(60)]
    assert 0.07 < sum(what is None for what in drawn) / len(drawn) < 0.13
    drawn = [what for what in drawn if what]
    for used, share in (("kernel", 0.5), ("noise", 0.5), ("quality", 0.9)):
        assert sum(bool(getattr(what, used)) for what in drawn) / len(drawn) == pytest.approx(share, abs=0.05)
    qualities = [what.quality for what in drawn if what.quality]
    assert (min(qualities), max(qualities)) == (30, 95)
    assert 0.2 <= min(what.sigmas[0] for what in drawn) < max(what.sigmas[1] for what in drawn) <= 0.8
    assert 0.7 <= min(what.factor for what in drawn) < max(what.factor for what in drawn) <= 1.3
    kernels = Counter(what.kernel for what in drawn if what.kernel)
    assert kernels.most_common(1)[0][0] == "gaussian"
    assert set(kernels) == set(KERNELS)


def test_what_is_not_resized_twice_is_shrunk_at_once(photo_root):
    plain = in_first_epoch(options(photo_root))
    none = {"clean_share": 0, "blur_share": 0, "noise_share": 0, "jpeg_share": 0}
    once = in_first_epoch(options(photo_root, degradations=none | {"resize_share": 0}), DegradedPairedImageDataset)
    for index in range(20):
        assert psnr(255 * once[index]["lq"], 255 * plain[index]["lq"]) > 48  # Pillow's bicubic and MATLAB's
    drawn = [[draw(STRENGTHS | {"resize_share": share}, RandomState(n)) for n in range(300)] for share in (1, 0.3)]
    assert sum(what.factor != 1 for what in drawn[1]) / 300 == pytest.approx(0.3, abs=0.06)
    unchanged = [replace(what, factor=1, resizes=("bicubic", "bicubic")) for what in drawn[0]]
    assert all(what in (one, other) for one, other, what in zip(drawn[0], unchanged, drawn[1], strict=True))


def test_errors(photo_root):
    with pytest.raises(UserError, match="PairedImageDataset"):
        DegradedPairedImageDataset(options(photo_root, phase="val"))


FILE = REPOSITORY / "options/train/train_SISR_Compressed_Tiny_48C3G3B_DLGSANet_SRx4_finetune_img_size_48_lr1e_4.yml"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("jpeg_quality=[95, 30]", "jpeg_quality"),
        ("jpeg_quality=[0, 30]", "jpeg_quality"),
        ("jpeg_quality=30", "jpeg_quality"),
        ("blur_share=1.5", "blur_share"),
        ("blurr_share=0.5", "blurr_share"),
    ],
)
def test_bad_strengths_are_named(change, named, capsys):
    assert main(["data", "sheet", "-opt", str(FILE), "--force-yml", f"datasets:train:degradations:{change}"]) == 2
    error = capsys.readouterr().err
    assert "datasets.train.degradations" in error
    assert named in error


def test_validation_sets_of_this_type_are_refused(capsys):
    assert (
        main(["data", "sheet", "-opt", str(FILE), "--force-yml", "datasets:val:type=DegradedPairedImageDataset"]) == 2
    )
    assert "datasets.val.type" in capsys.readouterr().err


def test_a_sheet_of_samples(photo_root, tmp_path, capsys):
    roots = [f"datasets:train:dataroot_gt={photo_root}/HR", f"datasets:train:dataroot_lq={photo_root}/LR_bicubic/X4"]
    roots += [f"datasets:val:dataroot_gt={photo_root}/HR", f"datasets:val:dataroot_lq={photo_root}/LR_bicubic/X4"]
    roots += ["train:precision=tf32"]  # needs a GPU, but nothing is trained
    arguments = ["data", "sheet", "-opt", str(FILE), "--samples", "5", "-o", str(tmp_path / "sheet.png"), "--force-yml"]
    assert main([*arguments, *roots, "datasets:train:gt_size=112"]) == 0
    width, height = Image.open(tmp_path / "sheet.png").size
    assert width == 8 + 4 * (2 * 224 + 8)
    assert height > 2 * 224
    first = (tmp_path / "sheet.png").read_bytes()
    assert main([*arguments[:-1], "--epoch", "1", "--force-yml", *roots, "datasets:train:gt_size=112"]) == 0
    assert (tmp_path / "sheet.png").read_bytes() != first
    assert main([*arguments, *roots, "datasets:train:type=PairedImageDataset"]) == 2
    assert "datasets.train" in capsys.readouterr().err


def test_a_sheet_is_a_png(capsys):
    with pytest.raises(SystemExit):
        main(["data", "sheet", "-opt", str(FILE), "-o", "sheet.jpg"])
    assert "sheet.jpg: must end in .png" in capsys.readouterr().err
    assert file_of(".png")("SHEET.PNG").name == "SHEET.PNG"

"""The training data set: what a sample is, that crops hang on (seed, epoch, index) alone, decoding once, and errors."""

import multiprocessing
import os
import resource
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dlgsanet.data import pixel_cache
from dlgsanet.data.cached_paired_dataset import CachedPairedImageDataset
from dlgsanet.data.images import png_bytes, read_image
from dlgsanet.data.layout import lay_out
from dlgsanet.data.sheet import sheet_of_samples
from dlgsanet.data.sources import images_of
from dlgsanet.errors import UserError
from dlgsanet.files import write_whole


def options(root: Path, **changes) -> dict:
    return {
        "name": "Photos",
        "phase": "train",
        "scale": 4,
        "dataroot_gt": str(root / "HR"),
        "dataroot_lq": str(root / "LR_bicubic/X4"),
        "filename_tmpl": "{}x4",
        "io_backend": {"type": "disk"},
        "gt_size": 32,
        "use_hflip": True,
        "use_rot": True,
        "manual_seed": 7,
        "patches_per_image": 20,
        **changes,
    }


def in_first_epoch(options: dict, kind: type = CachedPairedImageDataset) -> CachedPairedImageDataset:
    dataset = kind(options)
    dataset.set_epoch(0)
    return dataset


@pytest.fixture(scope="module")
def dataset(photo_root) -> CachedPairedImageDataset:
    return in_first_epoch(options(photo_root))


def as_tensor(path: str) -> torch.Tensor:
    return torch.from_numpy(read_image(Path(path))).permute(2, 0, 1).float() / 255


def symmetries(image: torch.Tensor) -> list[torch.Tensor]:
    """The eight flips and transpositions of an image [C, H, W]."""
    flips = [image, image.flip(2), image.flip(1), image.flip(1, 2)]
    return flips + [flip.transpose(1, 2) for flip in flips]


def places(crop: torch.Tensor, image: torch.Tensor) -> list[tuple[int, int]]:
    """Where a crop [C, h, w] lies in an image [C, H, W], to the bit."""
    windows = image.unfold(1, crop.shape[1], 1).unfold(2, crop.shape[2], 1)
    return [tuple(place) for place in (windows == crop[:, None, None]).all(-1).all(-1).all(0).nonzero().tolist()]


def test_a_sample_is_the_same_window_of_both_images_turned_alike(dataset):
    assert len(dataset) == 3 * 20
    used = set()
    for index in range(0, 60, 2):
        sample = dataset[index]
        assert sample["lq"].shape == (3, 8, 8)
        assert sample["gt"].shape == (3, 32, 32)
        assert sample["lq"].dtype == sample["gt"].dtype == torch.float32
        lq, gt = as_tensor(sample["lq_path"]), as_tensor(sample["gt_path"])
        found = [
            (number, row, column)
            for number, turned in enumerate(symmetries(sample["lq"]))
            for row, column in places(turned, lq)
        ]
        matching = [
            number
            for number, row, column in found
            if symmetries(sample["gt"])[number].equal(gt[:, 4 * row : 4 * row + 32, 4 * column : 4 * column + 32])
        ]
        assert matching, f"sample {index} is no window of its pair"
        used.add(matching[0])
    assert len(used) == 8


def test_without_augmentation_a_sample_lies_as_in_the_image(photo_root):
    plain = in_first_epoch(options(photo_root, use_hflip=False, use_rot=False))
    for index in range(6):
        assert places(plain[index]["lq"], as_tensor(plain[index]["lq_path"]))


def test_crops_reach_all_borders(photo_root):
    plain = in_first_epoch(options(photo_root, gt_size=144, patches_per_image=100))
    chelsea = as_tensor(plain[1]["lq_path"])  # 37x37, so that there are 2x2 places
    assert chelsea.shape == (3, 37, 37)
    seen = {
        place for i in range(1, 300, 3) for turned in symmetries(plain[i]["lq"]) for place in places(turned, chelsea)
    }
    assert seen == {(0, 0), (0, 1), (1, 0), (1, 1)}


def batches(dataset, workers, epochs=(0,), **loader_options) -> list[torch.Tensor]:
    loader = DataLoader(dataset, 10, num_workers=workers, **loader_options)
    found = []
    for epoch in epochs:
        dataset.set_epoch(epoch)
        found.append(torch.cat([batch["gt"] for batch in loader]))
    dataset.set_epoch(0)
    return found


def test_crops_do_not_depend_on_workers(dataset):
    (alone,) = batches(dataset, 0)
    assert torch.equal(alone, batches(dataset, 1)[0])
    assert torch.equal(alone, batches(dataset, 2)[0])


@pytest.mark.parametrize("workers", [0, 1])
def test_epochs_differ_where_nobody_sets_them(photo_root, workers):
    """BasicSR's own training does not."""
    loader = DataLoader(CachedPairedImageDataset(options(photo_root)), 60, num_workers=workers)
    first, second = (next(iter(loader))["gt"] for _ in range(2))
    assert (first != second).flatten(1).any(1).float().mean() > 0.9


@pytest.mark.parametrize("persistent", [False, True])
def test_epochs_differ_and_come_again(dataset, persistent):
    expected = batches(dataset, 0, epochs=(0, 1, 2))
    found = batches(dataset, 2, epochs=(0, 1, 2, 0), persistent_workers=persistent)
    for epoch in range(3):
        assert torch.equal(found[epoch], expected[epoch])
    assert torch.equal(found[3], found[0])
    assert not any(torch.equal(first, second) for first, second in zip(found[0], found[1], strict=True))


def test_no_crop_comes_twice_in_an_epoch(photo_root):
    plain = in_first_epoch(options(photo_root, use_hflip=False, use_rot=False))
    assert len({plain[i]["gt"].numpy().tobytes() for i in range(len(plain))}) > 0.9 * len(plain)


def detail(crop: torch.Tensor) -> float:
    return float(crop[1].diff(dim=0).abs().mean() + crop[1].diff(dim=1).abs().mean())


def test_of_several_candidates_the_most_detailed_is_taken_and_the_first_is_the_usual_one(photo_root, dataset):
    plain = {"use_hflip": False, "use_rot": False}
    one, few = (in_first_epoch(options(photo_root, crop_candidates=n, **plain)) for n in (1, 3))
    pairs = [(detail(one[i]["gt"]), detail(few[i]["gt"])) for i in range(len(one))]
    assert all(chosen >= first for first, chosen in pairs)
    kept = sum(chosen == first for first, chosen in pairs)
    assert len(pairs) / 6 < kept < len(pairs) / 2  # a third of the time the first is the best of three
    assert in_first_epoch(options(photo_root, crop_candidates=1))[5]["gt"].equal(dataset[5]["gt"])
    assert places(few[4]["lq"], as_tensor(few[4]["lq_path"]))


def test_draws_stay_what_they_were(dataset):
    """Else no earlier run could be resumed or made again."""
    samples = [dataset.sample(epoch, index)["gt"] for epoch, index in ((0, 0), (0, 7), (1, 0), (5, 59))]
    assert [int((gt * 255).round().long().sum()) for gt in samples] == [479780, 401955, 569994, 45564]


def test_several_roots_are_as_one_without_shares_and_mixed_by_them(photo_root, originals, tmp_path):
    other = lay_out({"brick": images_of(originals)["chelsea"]}, tmp_path / "Bricks", [4]).root
    roots = {
        "dataroot_gt": [str(root / "HR") for root in (photo_root, other)],
        "dataroot_lq": [str(root / "LR_bicubic/X4") for root in (photo_root, other)],
    }
    alike = in_first_epoch(options(photo_root, **roots))
    assert len(alike) == 4 * 20
    assert Counter(Path(alike[i]["gt_path"]).stem for i in range(80)) == dict.fromkeys(
        ("astronaut", "chelsea", "coffee", "brick"), 20
    )
    mixed = in_first_epoch(options(photo_root, **roots, shares=[0.9, 0.1]))
    assert len(mixed) == 80
    counts = Counter(Path(mixed[i]["gt_path"]).stem for i in range(80))
    assert counts == {"astronaut": 24, "chelsea": 24, "coffee": 24, "brick": 8}
    assert len({mixed[i]["gt"].numpy().tobytes() for i in range(80)}) == 80
    one = {key: value[:1] for key, value in roots.items()}
    single, alone = in_first_epoch(options(photo_root, **one)), in_first_epoch(options(photo_root))
    assert all(single[i]["gt"].equal(alone[i]["gt"]) for i in (0, 17, 59))


def test_every_image_of_a_root_with_a_small_share_is_used(photo_root, originals, tmp_path):
    """One of six samples of an epoch is from the second root, which has three images."""
    other = lay_out(images_of(originals), tmp_path / "Others", [4]).root
    roots = {
        "dataroot_gt": [str(root / "HR") for root in (photo_root, other)],
        "dataroot_lq": [str(root / "LR_bicubic/X4") for root in (photo_root, other)],
    }
    data_set = CachedPairedImageDataset(options(photo_root, **roots, patches_per_image=1, shares=[5 / 6, 1 / 6]))
    last = [Path(data_set.sample(epoch, 5)["gt_path"]) for epoch in range(6)]
    assert Counter(path.stem for path in last) == dict.fromkeys(("astronaut", "chelsea", "coffee"), 2)
    assert {path.parents[1] for path in last} == {other}
    with pytest.raises(UserError, match=r"shares: 0\.01 of an epoch of 6 samples is none; set more patches_per_image"):
        CachedPairedImageDataset(options(photo_root, **roots, patches_per_image=1, shares=[0.99, 0.01]))


def test_the_seed_matters(photo_root, dataset):
    other = in_first_epoch(options(photo_root, manual_seed=8))
    assert not torch.equal(other[0]["gt"], dataset[0]["gt"])


def test_mean_and_std(photo_root, dataset):
    mean, std = [0.4, 0.5, 0.6], [0.5, 0.25, 1.0]
    normalised = in_first_epoch(options(photo_root, mean=mean, std=std))[3]["lq"]
    expected = (dataset[3]["lq"] - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(normalised, expected)


def test_validation_gives_whole_images(photo_root):
    whole = in_first_epoch(options(photo_root, phase="val"))
    assert len(whole) == 3
    assert whole[1]["lq"].equal(as_tensor(whole[1]["lq_path"]))
    assert whole[1]["gt"].equal(as_tensor(whole[1]["gt_path"])[:, :148, :148])  # of 150x151


def test_meta_info_file_selects(photo_root, tmp_path):
    write_whole(tmp_path / "meta.txt", b"coffee.png (200,150,3)\n")
    chosen = in_first_epoch(options(photo_root, meta_info_file=str(tmp_path / "meta.txt")))
    assert {sample["gt_path"] for sample in chosen} == {str(photo_root / "HR/coffee.png")}


def test_cache_file_gives_the_same_and_is_made_once(photo_root, dataset, tmp_path, monkeypatch):
    cached = options(photo_root, cache_dir=str(tmp_path / "cache"))
    first = in_first_epoch(cached)
    assert [file.suffix for file in sorted((tmp_path / "cache").iterdir())] == [".lock", ".rgb"]

    def refuse(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(pixel_cache, "read_rgb", refuse)
    second = in_first_epoch(cached)
    for index in range(0, 60, 7):
        assert first[index]["gt"].equal(dataset[index]["gt"])
        assert second[index]["lq"].equal(dataset[index]["lq"])


def test_changed_images_are_decoded_again(photo_root, tmp_path):
    root = Path(shutil.copytree(photo_root, tmp_path / "Photos"))
    cached = options(root, cache_dir=str(tmp_path / "cache"))
    before = in_first_epoch(cached)[0]["gt"]
    path = root / "HR/astronaut.png"
    write_whole(path, png_bytes(255 - read_image(path)))
    after = in_first_epoch(cached)[0]["gt"]
    torch.testing.assert_close(after, 1 - before)


def test_a_damaged_cache_file_is_made_again(photo_root, dataset, tmp_path):
    cached = options(photo_root, cache_dir=str(tmp_path))
    in_first_epoch(cached)
    (file,) = tmp_path.glob("*.rgb")
    os.truncate(file, 1000)
    assert in_first_epoch(cached)[4]["gt"].equal(dataset[4]["gt"])


@pytest.mark.parametrize("place", [0.0, 0.99, 1.0])
def test_a_damaged_image_of_the_cache_file_is_decoded_again(photo_root, dataset, tmp_path, place, capfd):
    """The first byte of the file, one of the last image, or the last byte of the checksums; the size is right."""
    cached = options(photo_root, cache_dir=str(tmp_path))
    in_first_epoch(cached)
    (file,) = tmp_path.glob("*.rgb")
    whole = file.read_bytes()
    at = min(int(place * len(whole)), len(whole) - 1)
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    damaged = in_first_epoch(cached)
    for index in range(60):
        assert damaged[index]["gt"].equal(dataset[index]["gt"])
        assert damaged[index]["lq"].equal(dataset[index]["lq"])
    assert file.read_bytes() == whole
    assert capfd.readouterr().err.count("is damaged; its images are decoded again") == 1


def test_pairs_may_differ_in_format(photo_root, dataset, tmp_path):
    root = Path(shutil.copytree(photo_root, tmp_path / "Photos"))
    for path in (root / "HR").iterdir():
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    assert in_first_epoch(options(root))[8]["gt"].equal(dataset[8]["gt"])


def test_ranks_that_come_together_make_one_cache(photo_root, tmp_path):
    cached = options(photo_root, cache_dir=str(tmp_path / "cache"))
    with ThreadPoolExecutor(4) as pool:
        samples = [one[5]["gt"] for one in pool.map(in_first_epoch, [cached] * 4)]
    assert all(sample.equal(samples[0]) for sample in samples)
    assert len(list((tmp_path / "cache").glob("*.rgb"))) == 1


def test_spawned_workers_share_the_cache_file(photo_root, dataset, tmp_path):
    cached = in_first_epoch(options(photo_root, cache_dir=str(tmp_path / "cache")))
    loader = DataLoader(cached, 60, num_workers=1, multiprocessing_context=multiprocessing.get_context("spawn"))
    assert next(iter(loader))["gt"].equal(batches(dataset, 0)[0])


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on file sizes")
def test_no_room_for_the_cache_is_an_error_and_leaves_nothing(photo_root, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(UserError, match=r"cache_dir: cannot keep 0\.0 GiB"):
            in_first_epoch(options(photo_root, cache_dir=str(tmp_path)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.suffix for file in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataroot_gt": "nowhere"}, "dataroot_gt: there is no folder nowhere"),
        ({"dataroot_lq": None}, "dataroot_lq: missing from the options"),
        ({"filename_tmpl": "{}x3"}, "filename_tmpl: 3 of 3 .*astronautx3"),
        ({"scale": 2}, r"3 of 3 pairs .*astronautx4.png: 50x48 .* 1/2 of 200x192 .*astronaut.png"),
        ({"gt_size": 160}, r"2 of 3 pairs .*chelsea.png is 151x150, smaller than gt_size; .*coffee.png"),
        ({"gt_size": 30}, "gt_size: must be a multiple of the scale 4, not 30"),
        ({"gt_size": None}, "gt_size: must be a multiple of the scale 4, not None"),
        ({"manual_seed": None}, "manual_seed: must be a whole number"),
        ({"crop_candidates": 0}, "crop_candidates: must be a whole number from 1, not 0"),
        ({"patches_per_image": 0}, "patches_per_image: must be a whole number from 1, not 0"),
        ({"dataset_enlarge_ratio": 100}, "dataset_enlarge_ratio: .* use patches_per_image"),
        ({"io_backend": {"type": "petrel"}}, "io_backend.type: unknown backend 'petrel'; choose from disk, lmdb"),
        ({"io_backend": {"type": "lmdb"}}, "dataroot_gt: .*meta_info.txt"),
        ({"meta_info_file": "nowhere.txt"}, "meta_info_file: cannot read nowhere.txt"),
        ({"mean": [0.5, 0.5, 0.5]}, "mean, std: give both"),
    ],
)
def test_impossible_options_are_named(photo_root, changes, message):
    with pytest.raises(UserError, match=message):
        in_first_epoch(options(photo_root, **changes))


def test_damaged_images_are_named_all_at_once(photo_root, tmp_path):
    root = Path(shutil.copytree(photo_root, tmp_path / "Photos"))
    truncated, empty = root / "HR/astronaut.png", root / "LR_bicubic/X4/coffeex4.png"
    truncated.write_bytes(truncated.read_bytes()[:20_000])
    with pytest.raises(UserError, match=r"1 of 3 pairs .*astronaut.png: .*truncated"):
        in_first_epoch(options(root))
    empty.write_bytes(b"")
    write_whole(root / "HR/chelsea.png", b"not a picture")
    with pytest.raises(
        UserError,
        match=r"3 of 3 pairs .*astronaut.png: .*; .*chelsea.png: not an image; .*coffeex4.png: .*empty",
    ):
        in_first_epoch(options(root))


def test_a_missing_or_surplus_lr_image_is_named(photo_root, tmp_path):
    root = Path(shutil.copytree(photo_root, tmp_path / "Photos"))
    (root / "HR/chelsea.png").unlink()
    with pytest.raises(UserError, match=r"dataroot_gt: 1 image of .*X4 .*HR: chelseax4"):
        in_first_epoch(options(root))
    (root / "LR_bicubic/X4/coffeex4.png").unlink()
    with pytest.raises(UserError, match=r"dataroot_lq.*1 of 2 .*coffeex4"):
        in_first_epoch(options(root))


def test_gray_photographs_have_three_channels(photo_root, tmp_path):
    root = Path(shutil.copytree(photo_root, tmp_path / "Photos"))
    for path in (root / "HR/coffee.png", root / "LR_bicubic/X4/coffeex4.png"):
        write_whole(path, png_bytes(np.ascontiguousarray(read_image(path)[..., 1])))
    sample = in_first_epoch(options(root))[2]
    assert sample["gt"].shape == (3, 32, 32)
    assert sample["gt"][0].equal(sample["gt"][2])


def test_names_that_are_not_utf8_can_be_cached(photo_root, tmp_path):
    root = tmp_path / os.fsdecode(b"\xe9")
    shutil.copytree(photo_root, root)
    cached = options(root, cache_dir=str(tmp_path / "cache"))
    assert torch.equal(in_first_epoch(cached)[0]["gt"], in_first_epoch(options(photo_root))[0]["gt"])


def test_more_images_than_free_memory_are_refused(photo_root, monkeypatch):
    monkeypatch.setattr(pixel_cache, "free_memory", lambda device: 1000)
    with pytest.raises(UserError, match="set cache_dir"):
        in_first_epoch(options(photo_root))


def test_a_sheet_shows_normalised_samples_as_images(photo_root, dataset):
    mean, std = [0.5, 0.4, 0.3], [0.5, 0.25, 0.2]
    normalised = in_first_epoch(options(photo_root, mean=mean, std=std))
    assert (sheet_of_samples(normalised, 4) == sheet_of_samples(dataset, 4)).all()


def test_home_folder_in_cache_dir(photo_root, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    in_first_epoch(options(photo_root, cache_dir="~/decoded"))
    assert [path.name for path in tmp_path.iterdir()] == ["decoded"]


def test_limit_of_file_sizes_is_not_called_lack_of_memory(photo_root):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(UserError, match="ulimit -f"):
            in_first_epoch(options(photo_root))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

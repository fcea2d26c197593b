"""What BasicSR reads besides folders: meta-info files and LMDB databases."""

from pathlib import Path

from dlgsanet.data.images import list_images, png_bytes, read_image
from dlgsanet.data.pairs import by_stem
from dlgsanet.data.parallel import for_each, in_one_line
from dlgsanet.errors import UserError
from dlgsanet.files import check_can_write, folder_written_aside, printable, write_whole
from dlgsanet.pictures.reading import UnreadableImageError, opened
from dlgsanet.progress import stage

PAGE = 4096
COMPRESS_LEVEL = 1  # as BasicSR's own script: files a little larger, written much faster


def write_meta_info(folder: Path, target: Path, workers: int | None = None) -> int:
    """Write `0001.png (1404,2040,3)` for each image of a folder; returns how many.

    Raises:
        UserError: no images, some cannot be read, a name that such a file cannot have, or `target` cannot be written.
            The message names the images.
    """
    check_can_write(target)
    paths = list_images(folder, "FOLDER")
    # A meta-info file is text in UTF-8. Its lines begin with a name, which ends at the first space.
    if unfit := [printable(path.name) for path in paths if not _fits_meta_info(path.name)]:
        raise UserError(f"a meta-info file needs names in UTF-8 without spaces; rename {in_one_line(unfit)}")

    def line(path: Path) -> str:
        with opened(path) as image:
            image.load()
            return f"{path.name} ({image.height},{image.width},{len(image.getbands())})\n"

    lines, failures = for_each(line, paths, target.name, workers)
    if failures:
        raise UserError(f"images cannot be read ({len(failures)}): {in_one_line(failures)}")
    write_whole(target, "".join(lines).encode())
    return len(lines)


def _fits_meta_info(name: str) -> bool:
    return printable(name) == name and " " not in name and _is_a_line(name)


def _is_a_line(name: str) -> bool:
    return len(name.splitlines()) == 1


def write_lmdb(folder: Path, target: Path, suffix: str = "", workers: int | None = None) -> int:
    """Write the images of a folder as the LMDB database that BasicSR's `io_backend: lmdb` reads; returns how many.

    Args:
        target: the folder of the database; its name ends in `.lmdb`.
        suffix: taken off the names of the images to make their keys, which must be the same for HR and LR (`x4`).

    Raises:
        UserError: no images, some cannot be used (names them), or `target` cannot be written.
    """
    paths = list_images(folder, "ROOT")
    if unfit := [printable(p.name) for p in paths if "." in p.stem or not p.name.isascii() or not _is_a_line(p.name)]:
        raise UserError(f"LMDB keys are ASCII names of one line without dots; rename {in_one_line(unfit)}")
    by_stem(paths, "ROOT", suffix)
    with folder_written_aside(target) as aside:
        lines = _fill(aside, paths, suffix, target.name, workers)
        write_whole(aside / "meta_info.txt", "".join(lines).encode())
    return len(lines)


def _fill(base_folder: Path, paths: list[Path], suffix: str, title: str, workers: int | None) -> list[str]:
    """Put the images into a new database; returns the lines of its meta-info file."""
    import lmdb

    def put(path: Path) -> str:
        key, image = path.stem.removesuffix(suffix), read_image(path)
        with base.begin(write=True) as transaction:  # threads wait for each other here
            transaction.put(key.encode("ascii"), png_bytes(image, COMPRESS_LEVEL))
        height, width, channels = (*image.shape, 1)[:3]
        return f"{key}.png ({height},{width},{channels}) {COMPRESS_LEVEL}\n"

    # Room to grow to, not the file's size: a PNG is hardly larger than its pixels.
    sizes, _ = for_each(_header_size, paths, f"{title}, headers", workers)
    room = sum(3 * height * width + 16 * PAGE for height, width in sizes)
    try:
        with lmdb.open(str(base_folder), map_size=room + (1 << 24), sync=False) as base:
            lines, failures = for_each(put, paths, title, workers)
            with stage(f"writing {title} to disk", at_once=False):
                base.sync(True)
    except lmdb.Error as error:
        raise UserError(f"cannot write {title}: {error}") from None
    if failures:
        raise UserError(f"images cannot be used ({len(failures)}): {in_one_line(failures)}")
    return lines


def _header_size(path: Path) -> tuple[int, int]:
    try:
        with opened(path) as image:
            return image.height, image.width
    except UnreadableImageError:
        return 0, 0  # reported with all others when they are decoded

"""Where images come from: files in a folder, or members of a ZIP or tar archive, read without unpacking it."""

import tarfile
import threading
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from dlgsanet.data.images import UnreadableImageError, is_image_name
from dlgsanet.errors import UserError


@dataclass(frozen=True)
class Source:
    """One image: the name to call it by, the file that holds it, and how to get its bytes."""

    name: str
    file: Path
    read: Callable[[], bytes]


def file_source(path: Path) -> Source:
    def read() -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise UnreadableImageError(f"{path}: {error.strerror}") from None

    return Source(str(path), path, read)


def images_by_folder(root: Path) -> dict[PurePosixPath, dict[str, Source]]:
    """All images of a folder or archive, at any depth: for each folder inside it, name without extension -> image.

    Raises:
        UserError: there is no such folder or file, it is no archive or a damaged one, it has no images, or two images
            differ in their extension alone.
    """
    if root.is_dir():
        members = _files(root)
    elif zipfile.is_zipfile(root):
        members = _zip_members(root)
    elif root.is_file():
        members = _tar_members(root)
    else:
        raise UserError(f"there is no folder or archive {root}")
    folders: dict[PurePosixPath, dict[str, Source]] = defaultdict(dict)
    for member, source in members:
        twin = folders[member.parent].setdefault(member.stem, source)
        if twin is not source:
            raise UserError(f"{twin.name} and {source.name} would become one PNG; rename one")
    if not folders:
        raise UserError(f"no images in {root}")
    return dict(folders)


def images_of(root: Path) -> dict[str, Source]:
    """The images lying directly in a folder or archive, or else in the only folder inside it that has any.

    Raises:
        UserError: as `images_by_folder`, or there are images in several folders inside it.
    """
    folders = images_by_folder(root)
    if PurePosixPath() in folders:
        return folders[PurePosixPath()]
    if len(folders) > 1:
        names = ", ".join(f"{folder} ({len(images)})" for folder, images in list(folders.items())[:10])
        raise UserError(f"{root} has images in several folders, name one of them: {names}")
    return next(iter(folders.values()))


Members = Iterator[tuple[PurePosixPath, Source]]


def _files(root: Path) -> Members:
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root)
        if _is_image(PurePosixPath(inside)) and path.is_file():
            yield PurePosixPath(inside), file_source(path)


def _zip_members(root: Path) -> Members:
    try:
        archive = zipfile.ZipFile(root)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{root}: a damaged ZIP archive: {error}") from None

    def read(name: str) -> bytes:
        try:
            return archive.read(name)
        except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, zlib.error) as error:  # RuntimeError: encrypted
            raise UnreadableImageError(f"{root}: {name}: {error}") from None

    for name in sorted(archive.namelist()):
        if _is_image(PurePosixPath(name)):
            yield PurePosixPath(name), Source(f"{root}: {name}", root, partial(read, name))


def _tar_members(root: Path) -> Members:
    try:
        archive = tarfile.open(root)  # noqa: SIM115  # open as long as its members may be read
        members = archive.getmembers()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{root}: not a folder, ZIP or tar archive, or a damaged one: {error}") from None
    lock = threading.Lock()

    def read(member: tarfile.TarInfo) -> bytes:
        try:
            with lock:
                file = archive.extractfile(member)
                return file.read() if file else b""
        except (tarfile.TarError, EOFError, OSError) as error:
            raise UnreadableImageError(f"{root}: {member.name}: {error}") from None

    for member in members:
        path = PurePosixPath(member.name)
        if member.isfile() and _is_image(path):
            yield path, Source(f"{root}: {path}", root, partial(read, member))


def _is_image(path: PurePosixPath) -> bool:
    """Hidden files and folders hold none, nor does what macOS adds to archives."""
    return is_image_name(path.name) and not any(part.startswith((".", "__MACOSX")) for part in path.parts)

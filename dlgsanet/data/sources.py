"""Where images come from: files in a folder, or members of a ZIP or tar archive, read without unpacking it."""

import lzma
import os
import tarfile
import threading
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from dlgsanet.data.images import is_image_name
from dlgsanet.errors import UserError
from dlgsanet.files import printable
from dlgsanet.pictures.bounds import LARGEST_FILE
from dlgsanet.pictures.reading import UnreadableImageError, content_of
from dlgsanet.progress import Counter

# Deflate shrinks image files, which are compressed themselves, by a few per cent; uncompressed ones by less than this.
LARGEST_RATIO = 200
# Long names and comments of a tar archive, which are read into memory.
LARGEST_HEADER = 1 << 20
# A compressed tar archive has at least so many bytes for each member, and a list of members needs far more memory.
LEAST_MEMBER = 32


@dataclass(frozen=True)
class Source:
    """One image.

    Attributes:
        name: what to call it in messages and tables: printable, even where a file's name is not UTF-8.
        file: the file that holds it.
        read: returns its bytes.
        alone: whether `file` holds this image and nothing else.
        start, length: where in an LMDB database its bytes are.
    """

    name: str
    file: Path
    read: Callable[[], bytes] = field(compare=False, repr=False)
    alone: bool = False
    start: int = 0
    length: int = 0


def file_source(path: Path) -> Source:
    return Source(printable(path), path, partial(_read_file, path), alone=True)


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return content_of(file, printable(path))
    except OSError as error:
        raise UnreadableImageError(f"{printable(path)}: {error.strerror}") from None


def images_by_folder(root: Path) -> dict[PurePosixPath, dict[str, Source]]:
    """All images of a folder or archive, at any depth: for each folder inside it, name without extension -> image.

    Raises:
        UserError: there is no such folder or file, it is not an archive or a damaged one, it has no images, or two
            images differ in their extension alone.
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
            raise UserError(f"{twin.name} and {source.name} would become the same PNG; rename one of them")
    if not folders:
        raise UserError(f"no images in {root}")
    return dict(folders)


def images_of(root: Path) -> dict[str, Source]:
    """The images directly in a folder or archive, or else in the only folder inside it that has any.

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
    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: {error.strerror}") from None

    with Counter(f"listing {root}", None, "files") as counter:
        names = (Path(parent, name) for parent, _, files in os.walk(root, onerror=refuse) for name in files)
        paths = sorted(counter.each(names))
    for path in paths:
        inside = path.relative_to(root)
        if _is_image(PurePosixPath(inside)) and path.is_file():
            yield PurePosixPath(inside), file_source(path)


def _zip_members(root: Path) -> Members:
    try:
        archive = zipfile.ZipFile(root)
        members = sorted(archive.infolist(), key=lambda member: member.filename)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        raise UserError(f"{root}: a damaged ZIP archive, or of a kind that cannot be read: {error}") from None

    def read(member: zipfile.ZipInfo) -> bytes:
        name = f"{root}: {member.filename}"
        if member.file_size > min(LARGEST_FILE, LARGEST_RATIO * max(member.compress_size, 1 << 16)):
            raise UnreadableImageError(f"{name}: {member.file_size} bytes when unpacked; no image is so large")
        try:
            return archive.read(member)
        # RuntimeError: encrypted; NotImplementedError: a method of compression or a ZIP version that Python lacks.
        except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError, zlib.error) as error:
            raise UnreadableImageError(f"{name}: {error}") from None

    for member in members:
        path = PurePosixPath(member.filename)
        if _is_image(path):
            yield path, Source(f"{root}: {path}", root, partial(read, member))


class _TarMember(tarfile.TarInfo):
    """A header of a tar archive. tarfile reads long names and comments into memory, however large they say they are."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_TarMember":
        member = super().frombuf(buf, encoding, errors)
        if member.type in _TEXT_TYPES and member.size > LARGEST_HEADER:
            raise ValueError(f"it has a name or comment of {member.size} bytes; no archive of images has one")
        return member


_TEXT_TYPES = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
               tarfile.GNUTYPE_LONGLINK)  # fmt: skip


def _open_tar(root: Path) -> tuple[tarfile.TarFile, list[tarfile.TarInfo]]:
    """A tar archive and its members.

    Raises:
        UserError: it unpacks to far more than an archive of images.
        Exception: what tarfile and the decompressors raise for a damaged file.
    """
    size = max(root.stat().st_size, 1 << 18)
    members = []
    with Counter(f"listing {root.name}", None, "members") as counter:
        archive = tarfile.open(root, tarinfo=_TarMember)  # noqa: SIM115  # open as long as members may be read
        for member in counter.each(archive):
            members.append(member)
            # Found before tarfile unpacks the member to get to the next one.
            too_large = member.offset_data + member.size > LARGEST_RATIO * size
            if too_large or len(members) > size // LEAST_MEMBER:
                raise UserError(f"{root}: would unpack to far more than its size; no archive of images does")
    return archive, members


def _tar_members(root: Path) -> Members:
    try:
        archive, members = _open_tar(root)
    # Whatever a damaged stream raises: tarfile knows gzip, bzip2 and LZMA.
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:
        reason = str(error).partition(":")[0]  # a list of what each of them says may follow
        raise UserError(f"{root}: not a folder, ZIP or tar archive, or a damaged one ({reason})") from None
    lock = threading.Lock()

    def read(member: tarfile.TarInfo) -> bytes:
        name = f"{root}: {printable(member.name)}"
        if member.size > LARGEST_FILE:
            raise UnreadableImageError(f"{name}: {member.size} bytes; no image is so large")
        try:
            with lock:
                file = archive.extractfile(member)
                return file.read() if file else b""
        except (tarfile.TarError, EOFError, OSError, KeyError, zlib.error, lzma.LZMAError) as error:
            raise UnreadableImageError(f"{name}: {error}") from None

    for member in members:
        path = PurePosixPath(member.name)
        if member.isfile() and _is_image(path):
            yield path, Source(f"{root}: {printable(member.name)}", root, partial(read, member))


def _is_image(path: PurePosixPath) -> bool:
    """Whether a member should hold an image: not in hidden folders, nor in those that macOS adds to archives."""
    return is_image_name(path.name) and not any(part.startswith((".", "__MACOSX")) for part in path.parts)

"""Reading the images of an LMDB database as BasicSR lays it out: `data.mdb`, and `meta_info.txt` with the keys.

The file is read here, not by the package `lmdb`: that maps the file into memory and trusts it, so that a truncated or
damaged database kills the process (SIGBUS, SIGSEGV). It also must not be opened twice in a process, nor used after a
fork. The format is that of LMDB 0.9 on 64-bit machines: http://www.lmdb.tech/doc, `mdb.c`, structs MDB_meta, MDB_page
and MDB_node.
"""

import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from dlgsanet.data.sources import Source
from dlgsanet.errors import UserError
from dlgsanet.pictures.reading import UnreadableImageError

_PAGE_HEADER = 16
_META = struct.Struct(
    "=16xII16xIHHQQQQQIHHQQQQQQQ"
)  # page header, magic ... free tree, main tree, last page, transaction
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_PAGE_SIZES = [1 << bits for bits in range(9, 17)]
_BRANCH, _LEAF = 1, 2  # flags of pages
_BIG, _NO_VALUE = 1, 6  # flags of nodes: the value is on pages of its own; it is another tree
_NO_PAGE = 2**64 - 1

Value = tuple[int, int]  # offset and length in the file


class _DamagedError(Exception):
    """What is wrong with the file."""


def lmdb_images(root: Path, option: str) -> dict[str, Source]:
    """The images by key, in the order of `meta_info.txt`.

    Raises:
        UserError: `root` is not such a database, it is damaged, or it lacks a key that its `meta_info.txt` names; the
            message names `option`.
    """
    lines = meta_info_lines(root / "meta_info.txt", option)
    file = root / "data.mdb"
    try:
        with open(file, "rb") as opened:
            values = dict(_values(opened, file.stat().st_size))
    except (OSError, _DamagedError, struct.error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{option}: {file} is not a whole LMDB database: {reason}; make it again") from None
    images = {}
    for key in (line.split(".")[0] for line in lines):
        if key.encode() not in values:
            raise UserError(f"{option}: {root} has no image {key!r}, which its meta_info.txt names; make it again")
        start, length = values[key.encode()]
        images[key] = Source(key, file, partial(_read, file, start, length), start=start, length=length)
    return images


def meta_info_lines(path: Path, option: str) -> list[str]:
    """The lines of a meta-info file that are not empty.

    Raises:
        UserError: it cannot be read or is not text; the message names `option`.
    """
    try:
        return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"{option}: cannot read {path}: {error.strerror}") from None
    except ValueError:
        raise UserError(f"{option}: {path} is not a text file in UTF-8") from None


def _read(file: Path, offset: int, length: int) -> bytes:
    try:
        with open(file, "rb") as opened:
            opened.seek(offset)
            return opened.read(length)
    except OSError as error:
        raise UnreadableImageError(f"{file}: {error.strerror}") from None


def _values(file: BinaryIO, size: int) -> Iterator[tuple[bytes, Value]]:
    """Every key of the main tree, and where its value lies."""
    page_size, pages, depth, root = _newest_meta(file)
    if root == _NO_PAGE:
        return
    short = f"it has {size} bytes, its header says {pages * page_size}"
    if size % page_size:  # fewer whole pages may be right: LMDB does not write pages at the end that it does not use
        raise _DamagedError(short)
    waiting, seen = [(root, 1)], 0
    while waiting:
        number, level = waiting.pop()
        seen += 1
        if not 1 < number < pages or level > depth or seen > pages:
            raise _DamagedError(f"page {number} cannot be part of its tree")
        file.seek(number * page_size)
        page = file.read(page_size)
        if len(page) < page_size:
            raise _DamagedError(short)
        flags, nodes = _nodes(page, number)
        if flags == _BRANCH:
            waiting += [(low | high << 16 | more << 32, level + 1) for low, high, more, _, _ in nodes]
            continue
        for low, high, node_flags, key, start in nodes:
            if not node_flags & _NO_VALUE:
                length, offset = low | high << 16, number * page_size + start
                if node_flags & _BIG:
                    (first,) = struct.unpack_from("=Q", page, start)
                    offset = first * page_size + _PAGE_HEADER
                elif start + length > page_size:
                    raise _DamagedError(f"page {number}: a value ends behind it")
                if offset + length > size:
                    raise _DamagedError(short)
                yield key, (offset, length)


def _newest_meta(file: BinaryIO) -> tuple[int, int, int, int]:
    """Page size, number of pages, depth and root of the main tree, of the last transaction that was completed."""
    found = []
    page_size = 0
    for number in (0, 1):
        file.seek(number * page_size)
        magic, version, page_size, *_, flags, depth, _, _, _, _, root, last, transaction = _META.unpack(
            file.read(_META.size)
        )
        if magic != _MAGIC or version != _VERSION or page_size not in _PAGE_SIZES or flags:
            raise _DamagedError("its header is not that of LMDB 0.9 on 64 bits")
        found.append((transaction, (page_size, last + 1, depth, root)))
    page_size, pages, depth, root = max(found)[1]
    return page_size, pages, depth, root


def _nodes(page: bytes, number: int) -> tuple[int, list[tuple[int, int, int, bytes, int]]]:
    """A page's kind and nodes: the two halves of their size, flags, key, and where on the page their value begins."""
    at, flags, lower = struct.unpack_from("=Q2xHH", page)
    count = (lower - _PAGE_HEADER) // 2
    if at != number or flags not in (_BRANCH, _LEAF) or not 0 < count <= len(page) // 2:
        raise _DamagedError(f"page {number} is not one of its tree")
    nodes = []
    for start in struct.unpack_from(f"={count}H", page, _PAGE_HEADER):
        low, high, node_flags, key_size = struct.unpack_from("=4H", page, start)
        value = start + 8 + key_size
        if value > len(page):
            raise _DamagedError(f"page {number}: a key ends behind it")
        nodes.append((low, high, node_flags, page[start + 8 : value], value))
    return flags, nodes

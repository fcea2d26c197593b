"""Read damaged LMDB databases until the time is up: `python -m tests.data.fuzz_lmdb FIRST_SEED SECONDS`."""

import random
import struct
import sys
import tempfile
from pathlib import Path

import skimage.data

from dlgsanet.data.images import png_bytes
from dlgsanet.data.pairs import check_sizes, find_pairs
from dlgsanet.data.storage import write_lmdb
from dlgsanet.files import write_whole
from tests import fuzz

PAGE = 4096


def damaged(whole: bytes, seed: int) -> bytes:
    """Bytes or words changed, most of them where the pages of the trees have their fields, or the end cut off."""
    chosen = random.Random(seed)
    trees = [at for at in range(2 * PAGE, len(whole), PAGE) if struct.unpack_from("=H", whole, at + 10)[0] in (1, 2)]
    pages = [0, PAGE, *trees]
    content = bytearray(whole)
    for _ in range(chosen.choice([1, 1, 2, 8])):
        page = chosen.choice([*pages, chosen.randrange(0, len(whole), PAGE)])
        at = min(page + chosen.choice([chosen.randrange(160), chosen.randrange(PAGE)]), len(whole) - 8)
        size = chosen.choice([1, 2, 4, 8])
        content[at : at + size] = chosen.choice([bytes(size), b"\xff" * size, chosen.randbytes(size)])
    return bytes(content[: chosen.choice([len(content)] * 3 + [chosen.randrange(len(content))])])


def main(seed: int, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder, base, copy = (Path(place, name) for name in ("in", "whole.lmdb", "damaged.lmdb"))
        for number in range(12):  # of small and large values
            side = 12 + 8 * number
            write_whole(folder / f"{number}.png", png_bytes(skimage.data.astronaut()[:side, 100 : 100 + side]))
        write_lmdb(folder, base)
        copy.mkdir()
        whole, lines = ((base / name).read_bytes() for name in ("data.mdb", "meta_info.txt"))
        opt = {"dataroot_gt": str(copy), "dataroot_lq": str(base), "io_backend": {"type": "lmdb"}}

        def read(seed: int) -> None:
            (copy / "data.mdb").write_bytes(damaged(whole, seed))
            (copy / "meta_info.txt").write_bytes(fuzz.damaged(lines, seed) if seed % 4 == 0 else lines)
            pairs = find_pairs(opt)
            check_sizes(pairs, 1)
            for pair in pairs:
                pair.read(1)

        fuzz.run(read, seed, seconds)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))

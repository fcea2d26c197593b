"""Reading the images of an LMDB data base as BasicSR lays it out: `data.mdb`, and `meta_info.txt` with the keys."""

from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

from dlgsanet.data.sources import Source
from dlgsanet.errors import UserError


def lmdb_images(root: Path, option: str) -> dict[str, Source]:
    """The images by key.

    Raises:
        UserError: `root` is no such data base; the message names `option`. So does reading a key that is not there.
    """
    import lmdb

    try:
        keys = [line.split(".")[0] for line in (root / "meta_info.txt").read_text().splitlines()]
        base = _open.get(root.resolve()) or _Base(root)
    except (OSError, lmdb.Error) as error:
        raise UserError(f"{option}: {root} is not an LMDB data base of BasicSR's kind: {error}") from None
    return {key: Source(key, root / "data.mdb", partial(base.read, key, option)) for key in keys}


class _Base:
    """A data base as long as any of its images is in use: a process must not open one twice."""

    def __init__(self, root: Path) -> None:
        import lmdb

        self.root = root
        self.environment = lmdb.open(str(root), readonly=True, lock=False, readahead=False)
        _open[root.resolve()] = self

    def read(self, key: str, option: str) -> bytes:
        with self.environment.begin() as transaction:
            content = transaction.get(key.encode("ascii"))
        if content is None:
            raise UserError(f"{option}: {self.root} has no image {key!r}, which its meta_info.txt names")
        return content


_open: WeakValueDictionary[Path, _Base] = WeakValueDictionary()

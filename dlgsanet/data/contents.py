"""A fingerprint of images, which shows when one was replaced. It reads a small part of them."""

import hashlib
from collections.abc import Sequence

from dlgsanet.data.parallel import for_each, in_one_line
from dlgsanet.data.sources import Source
from dlgsanet.errors import UserError
from dlgsanet.pictures.reading import UnreadableImageError

BLOCK, BLOCKS = 4096, 16  # bytes; an image of up to `BLOCK * BLOCKS` bytes is read whole


def fingerprint(sources: Sequence[Source]) -> str:
    """A digest of samples of the bytes of each image, in their order, wherever their folder is.

    The samples are blocks at equal distances, with the first and the last one. The last bytes of a PNG are checksums of
    all of its pixels. In files that are not compressed, a change is seen if it is longer than the distance.

    Raises:
        UserError: images cannot be read; it names the first ones.
    """
    samples, faults = for_each(_sampled, sources, "sampling the images")
    if faults:
        raise UserError(f"images cannot be read ({len(faults)}): {in_one_line(faults)}")
    return hashlib.sha256(b"".join(samples)).hexdigest()[:16]


def _sampled(source: Source) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with open(source.file, "rb") as file:
            size = file.seek(0, 2) if source.alone else source.length
            places = [number * (size - BLOCK) // (BLOCKS - 1) for number in range(BLOCKS)]
            for place in places if size > BLOCK * BLOCKS else range(0, size, BLOCK):
                file.seek(source.start + place)
                digest.update(file.read(min(BLOCK, size - place)))
    except OSError as error:
        raise UnreadableImageError(f"{source.name}: {error.strerror}") from None
    return digest.digest()

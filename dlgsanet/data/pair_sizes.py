"""Whether the images of pairs have sizes that fit, told from their headers."""

from collections.abc import Sequence

from dlgsanet.data.pairs import Source
from dlgsanet.data.pixel_cache import read_sizes
from dlgsanet.errors import UserError


def check_sizes(pairs: Sequence[tuple[Source, Source]], scale: int, lq_size: int = 1) -> list[tuple[int, int]]:
    """Check every (GT, LQ) pair.

    Args:
        pairs: of `dlgsanet.data.pairs.find_pairs`.
        scale: what the GT must measure over the LQ; rows and columns beyond a multiple of it do not count.
        lq_size: height and width that the LQ must have at least.

    Returns:
        (height, width) of every image: GT, LQ, GT, LQ, ...

    Raises:
        UserError: an image cannot be read, or pairs do not fit; all of them are counted, and many named.
    """
    sizes = read_sizes([source for pair in pairs for source in pair])
    complaints = []
    for (gt, lq), gt_size, size in zip(pairs, sizes[::2], sizes[1::2], strict=True):
        if any(long // scale != short for long, short in zip(gt_size, size, strict=True)):
            complaints.append(
                f"{gt.name} is {gt_size[1]}x{gt_size[0]} and {lq.name} {size[1]}x{size[0]}, not 1/{scale}"
            )
        elif min(size) < lq_size:
            complaints.append(f"{gt.name} is {gt_size[1]}x{gt_size[0]}, smaller than gt_size")
    if complaints:
        raise UserError(f"{len(complaints)} of {len(pairs)} pairs do not fit: " + "; ".join(complaints[:20]))
    return sizes

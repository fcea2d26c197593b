"""One picture at a time on the device: pictures of all visitors wait in one queue, in the order in which they came."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.errors import UserError
from dlgsanet.inference.loading import load_model
from dlgsanet.inference.weights import find_weights, for_jpeg
from dlgsanet.ops import freeze
from dlgsanet.pictures.find_files import result_name
from dlgsanet.pictures.picture import Picture
from dlgsanet.pictures.reading import read_picture
from dlgsanet.pictures.upscale import check_result, upscale_picture
from dlgsanet.pictures.upscale_files import failure_line, is_of_low_quality
from dlgsanet.pictures.writing import LARGEST_SIDE, encode
from dlgsanet.progress import duration
from dlgsanet.web.visits import Entry, Limits, Visit

PREVIEW_PIXELS = 16e6  # more is slow in a phone's browser; the download has all of them
PREVIEW_QUALITY = 92


class StoppedError(Exception):
    """The visitor stopped the work or closed the page."""


@dataclass(frozen=True)
class Choices:
    """What a visitor chose, as the options of `dlgsanet upscale`.

    Attributes:
        weights: a name of included weights, such as ``Tiny``, or a file.
        scale: scale factor of the network.
        extension: of the results, such as ``.png``; None: as the input's.
        quality: 1 to 100, for JPEG and WebP.
        self_ensemble: average over the 8 flips and transposes.
    """

    weights: str
    scale: int
    extension: str | None = None
    quality: int = 95
    self_ensemble: bool = False


class DeviceQueue:
    """The queue before one device.

    Args:
        limits: what is accepted.
        device, precision: as for `load_model`.
    """

    def __init__(self, limits: Limits, device: str | None = None, precision: str = "fp32"):
        self.limits = limits
        self._thread = ThreadPoolExecutor(1, "upscale")
        self._waiting: list[Entry] = []

        def network(weights: Path) -> DLGSANet:
            loaded = load_model(weights, None, device, precision)
            freeze(loaded)
            return loaded

        self._network: Callable[[Path], DLGSANet] = cache(network)

    def add(self, visit: Visit, choices: Choices) -> None:
        """Put every picture of a visit that is not upscaled yet into the queue."""
        visit.stopped.clear()
        for entry in visit.entries:
            if entry.state in ("added", "stopped"):
                entry.wait()
                self._waiting.append(entry)
                entry.work = self._thread.submit(self._do, visit, entry, choices)

    def stop(self, visit: Visit) -> None:
        """End the work of a visit. What waits leaves the queue now: it may be put there again with other choices."""
        visit.stopped.set()
        for entry in visit.entries:
            if entry.work and entry.work.cancel() and entry in self._waiting:
                self._waiting.remove(entry)
                entry.end("stopped")

    def ahead(self, entry: Entry) -> int:
        """How many pictures are worked on before this one."""
        waiting = self._waiting.copy()
        return waiting.index(entry) if entry in waiting else 0

    def close(self) -> None:
        """Drop what waits, and wait for the picture that is being worked on; it ends with its visit."""
        self._thread.shutdown(cancel_futures=True)

    def _do(self, visit: Visit, entry: Entry, choices: Choices) -> None:
        try:
            if visit.over:
                raise StoppedError
            self._upscale(visit, entry, choices)
        except StoppedError:
            entry.end("stopped")
        # Whatever went wrong with one picture, the queue goes on.
        except Exception as error:
            entry.end("failed", failure_line(entry.name, error))
        finally:
            self._waiting.remove(entry)

    def _upscale(self, visit: Visit, entry: Entry, choices: Choices) -> None:
        """The steps of `dlgsanet upscale`, with a limit of time; the file is the same, bit by bit."""
        entry.begin()
        picture = read_picture(Path(entry.name), entry.source.read_bytes(), int(self.limits.megapixels * 1e6))
        weights = find_weights(choices.weights, choices.scale)
        better = for_jpeg(weights, choices.weights) if is_of_low_quality(picture) else None
        entry.hint = f"a JPEG of quality {picture.jpeg_quality}; {better} is made for compressed photographs" * bool(
            better
        )
        network = self._network(weights)
        name = result_name(Path(entry.name), choices.extension, f"_x{network.upscale}")
        extension = Path(name).suffix
        check_result(network, picture, None, entry.name, extension)

        def progress(share: float) -> None:
            if visit.over:
                raise StoppedError
            if time.monotonic() - entry.begun > self.limits.seconds:
                most = duration(self.limits.seconds)
                raise UserError(f"{entry.name}: stopped after {most}, the most allowed here; use a smaller picture")
            entry.share = share

        progress(0)
        result = upscale_picture(network, picture, self_ensemble=choices.self_ensemble, progress=progress)
        files = {name: encode(result, extension, choices.quality)}
        files |= {f"{part}.{kind}": data for part, (kind, data) in previews(picture, result).items()}
        visit.store(entry, name, files)
        entry.sizes = picture.size, result.size
        entry.end("done")


def previews(before: Picture, after: Picture) -> dict[str, tuple[str, bytes]]:
    """The input and the result as browsers show them: ``before`` and ``after``, each its extension and bytes."""
    return {"before": _preview(before), "after": _preview(after)}


def _preview(picture: Picture) -> tuple[str, bytes]:
    picture = picture.in_8_bits()
    height, width = picture.size
    factor = int(np.ceil(max(np.sqrt(height * width / PREVIEW_PIXELS), max(height, width) / LARGEST_SIDE["WEBP"])))
    if factor > 1:
        pixels = picture.pixels[..., 0] if picture.pixels.shape[2] == 1 else picture.pixels
        pixels = np.asarray(Image.fromarray(pixels).reduce(factor))
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        colors = picture.color.shape[2]
        picture = picture.with_pixels(pixels[..., :colors], None if picture.alpha is None else pixels[..., -1])
    kind = "webp" if picture.transparent else "jpg"
    bare = Picture(picture.color, picture.alpha, picture.icc_profile)
    return kind, encode(bare, f".{kind}", PREVIEW_QUALITY)

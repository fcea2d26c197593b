"""Run a network on a test set and score its pictures."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlgsanet.data.images import luma
from dlgsanet.data.pairs import Pair
from dlgsanet.data.resize import imresize
from dlgsanet.errors import NOT_FINITE, UserError, reason_of
from dlgsanet.memory import is_out_of_memory
from dlgsanet.metrics import psnr, ssim

Network = Callable[[Tensor], Tensor]  # [B, 3, H, W] in [0, 1] -> [B, 3, scale * H, scale * W]
Metric = Callable[[np.ndarray, np.ndarray], float]  # of a picture and its original, uint8 [H, W, 3] RGB

_OURS = {"calculate_psnr": psnr, "calculate_ssim": ssim}


@dataclass(frozen=True)
class Picture:
    """A pair of a test set read into memory, and what the network made of it; uint8 RGB [H, W, 3] or luma [H, W, 1]."""

    pair: Pair
    lr: np.ndarray
    hr: np.ndarray
    output: np.ndarray


def metric(options: Mapping[str, Any]) -> Metric:
    """The metric that an entry of `val: metrics:` describes: ours for PSNR and SSIM, else BasicSR's of that name."""
    if options["type"] in _OURS:
        return partial(
            _OURS[options["type"]],
            crop_border=options["crop_border"],
            y_channel=options.get("test_y_channel", False),
        )
    import dlgsanet.plugin  # noqa: F401, I001  # before BasicSR
    from basicsr.metrics import calculate_metric

    arguments = {key: value for key, value in options.items() if key != "better"}

    def of_basicsr(image: np.ndarray, reference: np.ndarray) -> float:
        return float(calculate_metric({"img": image[..., ::-1], "img2": reference[..., ::-1]}, arguments))

    return of_basicsr


def standard_metrics(scale: int) -> dict[str, Metric]:
    """PSNR and SSIM of the field's tables: on Y, leaving out as many pixels along the edges as the scale."""
    return {"psnr": partial(psnr, crop_border=scale), "ssim": partial(ssim, crop_border=scale)}


def score(picture: Picture, image: np.ndarray, metrics: Mapping[str, Metric]) -> dict[str, float]:
    """Every metric of an image, compared with the picture's original.

    Raises:
        UserError: the picture is too small for a metric.
    """
    try:
        return {name: of(image, picture.hr) for name, of in metrics.items()}
    except ValueError as error:
        raise UserError(f"{picture.pair.gt.name}: cannot be scored: {error}") from error


def bicubic(lr: np.ndarray, scale: int) -> np.ndarray:
    """The baseline of all comparisons: `lr` uint8 [H, W, 3] upscaled as MATLAB's imresize does."""
    return imresize(lr, scale)


def super_resolve(
    network: Network,
    pairs: Sequence[Pair],
    scale: int,
    device: torch.device | str,
    batch: int = 1,
    color: str | None = None,
) -> Iterator[Picture]:
    """Upscale the LR image of every pair. Up to `batch` consecutive images of equal size are one batch.

    With `color="y"` the network has one channel and its input is luma. As in training, the input is not rounded; the
    pictures that are returned are rounded to 8 bits.

    Raises:
        UserError: an image cannot be read, the network upscales by another factor or gives values that are not finite,
            or there is too little memory.
    """
    network = _on_luma(network) if color == "y" else network
    for some in batches(pairs, scale, batch):
        images = [pair.read(scale) for pair in some]
        outputs = _upscaled(network, [lr for lr, _ in images], device, some)
        for pair, (lr, hr), output in zip(some, images, outputs, strict=True):
            if output.shape[:2] != hr.shape[:2]:
                raise UserError(
                    f"the network makes {output.shape[1]}x{output.shape[0]} of the {lr.shape[1]}x{lr.shape[0]} "
                    f"pixels of {pair.lq.name}; scale: {scale} does not fit it"
                )
            if color == "y":
                lr, hr = _luma_image(lr), _luma_image(hr)
            yield Picture(pair, lr, hr, output)


def batches(pairs: Iterable[Pair], scale: int, most: int) -> Iterator[list[Pair]]:
    """Up to `most` consecutive pairs of equal size at a time."""
    for _, group in groupby(pairs, key=lambda pair: pair.sizes(scale)[1]):
        while some := list(islice(group, most)):
            yield some


def _on_luma(network: Network) -> Network:
    """A network [B, 1, H, W] -> [B, 1, scale * H, scale * W] as one that takes RGB."""

    def upscale(lq: Tensor) -> Tensor:
        y = np.stack([luma(image) for image in lq.cpu().numpy()])
        return network(torch.from_numpy(y).to(lq.device))

    return upscale


def _luma_image(image: np.ndarray) -> np.ndarray:
    y = luma(to_tensor([image], "cpu")[0].numpy())
    return to_images(torch.from_numpy(y)[None])[0]


def _upscaled(
    network: Network, images: Sequence[np.ndarray], device: torch.device | str, pairs: Sequence[Pair]
) -> list[np.ndarray]:
    try:
        output = network_output(network, to_tensor(images, device))
        for pair, finite in zip(pairs, output.isfinite().flatten(1).all(1).tolist(), strict=True):
            if not finite:
                raise UserError(f"{pair.lq.name}: {NOT_FINITE}")
        return to_images(output)
    except UserError:
        raise
    except Exception as error:  # networks of other projects may raise any exception for sizes that they do not take
        height, width = images[0].shape[:2]
        if not is_out_of_memory(error):
            what = f"the network cannot take its {width}x{height} pixels"
            raise UserError(f"{pairs[0].lq.name}: {what}: {reason_of(error, 200)}") from error
        if len(images) == 1:
            raise UserError(f"{pairs[0].lq.name}: {width}x{height} pixels need more memory than {device} has") from None
    half = len(images) // 2  # outside of the handler, which keeps the failed attempt's tensors alive
    return [
        *_upscaled(network, images[:half], device, pairs[:half]),
        *_upscaled(network, images[half:], device, pairs[half:]),
    ]


@torch.inference_mode()
def network_output(network: Network, x: Tensor) -> Tensor:
    return network(x)


def to_tensor(images: Sequence[np.ndarray], device: torch.device | str) -> Tensor:
    """uint8 images [H, W, 3] of one size as [B, 3, H, W] in [0, 1]."""
    stacked = torch.from_numpy(np.stack(images)).to(device)
    return stacked.permute(0, 3, 1, 2).float().div_(255).contiguous()


def to_images(x: Tensor) -> list[np.ndarray]:
    """[B, C, H, W] as uint8 images [H, W, C], clipped and rounded as BasicSR's `tensor2img` does."""
    rounded = x.float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return list(rounded.permute(0, 2, 3, 1).contiguous().cpu().numpy())

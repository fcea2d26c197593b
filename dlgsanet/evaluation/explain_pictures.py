"""Attribution maps, kept similarities and dynamic filters as pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from dlgsanet.evaluation.attribution import Attribution
from dlgsanet.evaluation.plotting import FRAME, INK, new_figure, write_figure


def attribution_picture(
    path: Path, lr: np.ndarray, box: tuple[int, int, int], found: Mapping[str, Attribution]
) -> None:
    """For each network: the input with the window, the attribution map on it, and the output around the window.

    Args:
        path: .png or .pdf.
        lr: uint8 [H, W, 3].
        box: x, y and side of the window in output pixels.
        found: attribution by name of the network.
    """
    from matplotlib.patches import Rectangle

    x, y, side = box
    height, width = lr.shape[:2]
    figure = new_figure(7.2, 0.4 + len(found) * 2.4 * min(1.0, height / width), layout="constrained")
    axes = figure.subplots(len(found), 3, squeeze=False)
    gray = lr.astype(float).mean(2) / 255
    for row, (name, attribution) in zip(axes, found.items(), strict=True):
        scale = attribution.output.shape[1] / height
        strength = np.abs(attribution.map)
        # The square root makes weak contributions visible; these are the distant ones.
        strength = np.sqrt(strength / max(strength.max(), 1e-30))
        for axis in row:
            axis.set_axis_off()
        row[0].imshow(lr, interpolation="nearest")
        row[0].set_title(name)
        row[1].imshow(0.25 + 0.75 * gray, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        row[1].imshow(strength, cmap="Reds", alpha=0.15 + 0.85 * strength, vmin=0, vmax=1, interpolation="nearest")
        row[1].set_title(f"diffusion index {attribution.diffusion_index:.1f}")
        for axis in row[:2]:
            place = (x / scale - 0.5, y / scale - 0.5)
            axis.add_patch(Rectangle(place, side / scale, side / scale, fill=False, edgecolor=FRAME, linewidth=1.5))
        output = attribution.output.transpose(1, 2, 0)
        row[2].imshow(output[max(0, y - side) : y + 2 * side, max(0, x - side) : x + 2 * side], interpolation="nearest")
        place = (min(x, side) - 0.5, min(y, side) - 0.5)
        row[2].add_patch(Rectangle(place, side, side, fill=False, edgecolor=FRAME, linewidth=1.5))
        row[2].set_title("output around the window")
    write_figure(figure, path)


def kept_picture(path: Path, name: str, shares: Tensor) -> None:
    """The shares of kept similarities [layers, heads] as a coloured table."""
    layers, heads = shares.shape
    figure = new_figure(1.5 + 0.62 * heads, 1.1 + 0.3 * layers, layout="constrained")
    axis = figure.subplots()
    values = shares.numpy() * 100
    image = axis.imshow(values, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for layer, head in np.ndindex(*shares.shape):
        value = values[layer, head]
        axis.text(head, layer, f"{value:.0f}", ha="center", va="center", color="white" if value > 60 else INK)
    axis.set_xticks(range(heads), [str(h + 1) for h in range(heads)])
    axis.set_yticks(range(layers), [str(layer + 1) for layer in range(layers)])
    axis.set_xlabel("head")
    axis.set_ylabel("SparseGSA layer")
    axis.set_title(f"{name}: similarities kept [%]")
    axis.tick_params(length=0)
    figure.colorbar(image, ax=axis, label="%")
    write_figure(figure, path)


def filters_picture(path: Path, lr: np.ndarray, points: Sequence[tuple[int, int]], filters: Tensor) -> None:
    """The filters [points, layers, G, K, K] of each point: one row per layer, one filter per group of channels.

    Each layer has its own range of colours, the same for all points, symmetric about 0 (white).
    """
    count, layers, groups, window, _ = filters.shape
    figure = new_figure(2.4 + 2.5 * count, max(2.6, 0.7 + 0.36 * layers), layout="constrained")
    axes = figure.subplots(1, count + 1, width_ratios=[1.0] + [1.15] * count)
    axes[0].imshow(lr, interpolation="nearest")
    for number, (x, y) in enumerate(points, 1):
        axes[0].plot(x, y, "o", markersize=9, markerfacecolor="none", markeredgecolor=FRAME, markeredgewidth=1.5)
        label = {"facecolor": INK, "edgecolor": "none", "boxstyle": "round,pad=0.15"}
        axes[0].annotate(str(number), (x, y), (7, 5), textcoords="offset points", color="white", size=8, bbox=label)
    axes[0].set_title("points")
    axes[0].set_axis_off()
    largest = filters.abs().amax((0, 2, 3, 4), keepdim=True)
    padded = np.full((count, layers, groups, window + 1, window + 1), np.nan)
    padded[..., :window, :window] = (filters / largest.clamp_min(1e-30)).numpy()
    for number, axis in enumerate(axes[1:]):
        sheet = padded[number].transpose(0, 2, 1, 3).reshape(layers * (window + 1), -1)[:-1, :-1]
        axis.imshow(sheet, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        centres = [layer * (window + 1) + window // 2 for layer in range(layers)]
        axis.set_yticks(centres, [str(layer + 1) for layer in range(layers)] if number == 0 else [""] * layers)
        axis.set_xticks([])
        axis.tick_params(length=0)
        for edge in axis.spines.values():
            edge.set_visible(False)
        axis.set_title(f"point {number + 1} ({points[number][0]}, {points[number][1]})")
        axis.set_xlabel("groups of channels")
    axes[1].set_ylabel("MHDLSA layer")
    write_figure(figure, path)

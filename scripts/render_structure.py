"""Render pictures of regular structure to train on: facades, bricks, tiles, blinds, fences and text, in perspective.

  python scripts/render_structure.py structure --count 100 --seed 0
  dlgsanet data folder structure --name Structure --scales 2 3 4

Photographs have little of it, and networks that saw little of it draw windows and lines wrong. Each picture is a
function of the seed and its number. A ray through each sample meets the nearest of a few planes; a pattern gives the
plane's colour there, in linear light. 16 samples per pixel are averaged, and a pattern fades out where it becomes finer
than the pixels.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from dlgsanet.cli import run
from dlgsanet.commands.arguments import whole_number
from dlgsanet.data.images import png_bytes
from dlgsanet.files import write_whole

Array = np.ndarray
Pattern = Callable[[Array, Array], Array]  # positions u and v on a plane, in metres -> linear RGB [..., 3]
SAMPLES = 4  # per pixel and axis
FOCAL = 1.0  # focal length over the picture's width


@dataclass
class Plane:
    """A plane at `origin` with unit axes `right` and `up`, covered with a pattern whose details have size `period`."""

    origin: Array
    right: Array
    up: Array
    pattern: Pattern
    period: float
    limits: tuple[float, float] = (-np.inf, np.inf)  # of u


def hashed(seed: int, *cells: Array) -> Array:
    """A number in [0, 1) for each cell, the same for the same cell."""
    mixed = np.full(np.broadcast(*cells).shape, seed * 0x9E3779B9 & 0xFFFFFFFF, np.uint64)
    for cell in cells:
        mixed = (mixed ^ (np.asarray(cell, np.int64).astype(np.uint64) & 0xFFFFFFFF)) * 0x85EBCA6B & 0xFFFFFFFF
        mixed = (mixed ^ mixed >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
        mixed ^= mixed >> 16
    return mixed / 2**32


def grain(seed: int, u: Array, v: Array, size: float) -> Array:
    """Smooth noise in [-1, 1] of three octaves, the coarsest of this size."""
    total = np.zeros_like(u)
    for octave in range(3):
        x, y = u / size * 2**octave, v / size * 2**octave
        column, row = np.floor(x), np.floor(y)
        a, b = (t * t * (3 - 2 * t) for t in (x - column, y - row))
        corners = [hashed(seed + octave, column + i, row + j) for j in (0, 1) for i in (0, 1)]
        top, bottom = (corners[k] * (1 - a) + corners[k + 1] * a for k in (0, 2))
        total += (top * (1 - b) + bottom * b - 0.5) / 2**octave
    return total


def colour(rng: np.random.Generator, low: float = 0.03, high: float = 0.8, tint: float = 0.25) -> Array:
    """A random colour, more or less gray, in linear light."""
    return np.clip(np.exp(rng.uniform(np.log(low), np.log(high))) * (1 + rng.uniform(-tint, tint, 3)), 0, 1)


def two_colours(rng: np.random.Generator) -> tuple[Array, Array]:
    """Two colours that differ by a factor of 2.5 or more, in any order."""
    dark = colour(rng, 0.02, 0.2)
    bright = np.clip(dark * rng.uniform(2.5, 8), 0, 0.9) * (1 + rng.uniform(-0.1, 0.1, 3))
    return (dark, np.clip(bright, 0, 1)) if rng.random() < 0.5 else (np.clip(bright, 0, 1), dark)


def choose(mask: Array, inside: Array, outside: Array) -> Array:
    return np.where(mask[..., None], inside, outside)


def stripes(rng: np.random.Generator) -> tuple[Pattern, float]:
    """Blinds, cladding or a fence: bars of equal width, some with a shaded edge."""
    (bar, gap), period, share = two_colours(rng), rng.uniform(0.08, 0.5), rng.uniform(0.3, 0.7)
    upright, seed, shading = rng.random() < 0.5, int(rng.integers(2**31)), rng.uniform(0, 0.5)

    def pattern(u: Array, v: Array) -> Array:
        place = (u if upright else v) / period
        inside = place - np.floor(place)
        vary = 1 + 0.15 * (hashed(seed, np.floor(place)) - 0.5)
        lit = vary * (1 - shading * inside / share)
        return choose(inside < share, bar * lit[..., None], gap)

    return pattern, period


def grid(rng: np.random.Generator) -> tuple[Pattern, float]:
    """Tiles with joints, checkered or of slightly different shades."""
    (tile, joint), width = two_colours(rng), rng.uniform(0.15, 0.8)
    height, line = width * rng.choice([1, 1, 0.5, 2]), rng.uniform(0.03, 0.12) * width
    seed, checkered = int(rng.integers(2**31)), rng.random() < 0.3
    other = colour(rng)

    def pattern(u: Array, v: Array) -> Array:
        column, row = np.floor(u / width), np.floor(v / height)
        face = tile * (1 + 0.3 * (hashed(seed, column, row) - 0.5))[..., None]
        if checkered:
            face = choose((column + row) % 2 == 0, face, other)
        return choose((u - column * width < line) | (v - row * height < line), joint, face)

    return pattern, min(width, height)


def bricks(rng: np.random.Generator) -> tuple[Pattern, float]:
    """A wall in running bond, each brick of its own shade, with rough surfaces."""
    base = np.array([0.3, 0.1, 0.06]) * rng.uniform(0.5, 1.6) if rng.random() < 0.6 else colour(rng, 0.1, 0.6)
    mortar = colour(rng, 0.15, 0.6, 0.1)
    width, height, line = (np.array([0.25, 0.08, 0.012]) * rng.uniform(0.8, 2.5)).tolist()
    seed = int(rng.integers(2**31))

    def pattern(u: Array, v: Array) -> Array:
        row = np.floor(v / height)
        shifted = u + width / 2 * (row % 2)
        column = np.floor(shifted / width)
        shade = 1 + 0.7 * (hashed(seed, column, row) - 0.5) + 0.25 * grain(seed, u, v, height)
        joint = (shifted - column * width < line) | (v - row * height < line)
        return choose(joint, mortar * (1 + 0.2 * grain(seed + 9, u, v, height))[..., None], base * shade[..., None])

    return pattern, height


def windows(rng: np.random.Generator) -> tuple[Pattern, float]:
    """A facade: rows of framed windows with bars, sills and panes that reflect, some of them lit or with blinds."""
    wall, frame = colour(rng, 0.08, 0.7), colour(rng, 0.02, 0.8, 0.05)
    width, height = rng.uniform(1.2, 3), rng.uniform(1.5, 3.5)
    left, low = rng.uniform(0.08, 0.3, 2)
    bars = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    edge, seed = rng.uniform(0.03, 0.09), int(rng.integers(2**31))
    sky, sill = colour(rng, 0.05, 0.5, 0.3), rng.random() < 0.5

    def pattern(u: Array, v: Array) -> Array:
        column, row = np.floor(u / width), np.floor(v / height)
        x, y = (u / width - column - left) / (1 - 2 * left), (v / height - row - low) / (1 - 2 * low)
        inside = (x > 0) & (x < 1) & (y > 0) & (y < 1)
        pane_x, pane_y = np.floor(x * bars[0]), np.floor(y * bars[1])
        to_x = np.abs(x * bars[0] - np.round(x * bars[0])) * width * (1 - 2 * left) / bars[0]
        to_y = np.abs(y * bars[1] - np.round(y * bars[1])) * height * (1 - 2 * low) / bars[1]
        mood = hashed(seed, column, row)
        glass = (
            sky
            * (0.25 + 0.9 * y * (0.5 + mood) + 0.15 * hashed(seed + 1, column * 7 + pane_x, row * 7 + pane_y))[
                ..., None
            ]
        )
        lit = (mood > 0.85)[..., None]
        glass = np.where(lit, np.array([0.7, 0.5, 0.25]) * (0.5 + 0.5 * y)[..., None], glass)
        blind = (mood < 0.2) & (y > 0.5) & (np.floor(v * 25) % 2 == 0)
        glass = choose(blind, frame * 0.7 + 0.1, glass)
        face = choose(inside, choose(np.minimum(to_x, to_y) < edge, frame, glass), wall)
        face = np.where(inside[..., None], face, face * (1 + 0.12 * grain(seed, u, v, 0.5))[..., None])
        ledge = sill & (y < 0) & (y > -0.07) & (x > -0.05) & (x < 1.05)
        return choose(ledge, np.clip(frame * 1.3, 0, 1), face)

    return pattern, width * (1 - 2 * left) / bars[0]


def lattice(rng: np.random.Generator) -> tuple[Pattern, float]:
    """A fence of crossing wires, or a perforated sheet."""
    (wire, behind), period = two_colours(rng), rng.uniform(0.1, 0.4)
    thick, holes = rng.uniform(0.1, 0.25), rng.random() < 0.4

    def pattern(u: Array, v: Array) -> Array:
        a, b = (u + v) / period, (u - v) / period
        da, db = np.abs(a - np.round(a)), np.abs(b - np.round(b))
        if holes:
            return choose(np.hypot(da, db) < 0.2 + thick, behind, wire)
        return choose(np.minimum(da, db) < thick / 2, wire * (1.2 - da - db)[..., None], behind)

    return pattern, period * 0.7


LETTERS = "abcdefghijklmnopqrstuvwxyzaeiouaeioustrnl"


def text(rng: np.random.Generator) -> tuple[Pattern, float]:
    """Lines of words and numbers on a sign or page, repeated every 12 m."""
    fonts = [cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_TRIPLEX, cv2.FONT_HERSHEY_COMPLEX]
    ink, paper = two_colours(rng)
    sheet = np.zeros((2048, 2048), np.uint8)
    font, size = fonts[int(rng.integers(4))], rng.uniform(1.2, 4)
    step = int(size * 34)
    for line in range(step, 2048, step):
        words = ["".join(rng.choice(list(LETTERS), int(rng.integers(1, 9)))) for _ in range(30)]
        words = [w.upper() if rng.random() < 0.1 else w.title() if rng.random() < 0.2 else w for w in words]
        words = [str(int(rng.integers(10000))) if rng.random() < 0.12 else w for w in words]
        thickness = int(size * rng.choice([1, 1, 1.7])) or 1
        cv2.putText(sheet, " ".join(words), (20, line), font, size, 255, thickness, cv2.LINE_AA)
    metres = 12.0

    def pattern(u: Array, v: Array) -> Array:
        column, row = (np.floor(place / metres % 1 * 2048).astype(np.int64) % 2048 for place in (u, -v))
        covered = sheet[row, column][..., None] / 255
        return ink * covered + paper * (1 - covered)

    return pattern, metres / 2048 * size * 6


WALLS = (stripes, grid, bricks, windows, windows, lattice, text)
GROUNDS = (stripes, grid, bricks, lattice)


def rotation(yaw: float, pitch: float, roll: float) -> Array:
    """Camera to world, angles in radians; x is right, y up, z ahead."""
    (cy, cp, cr), (sy, sp, sr) = np.cos([yaw, pitch, roll]), np.sin([yaw, pitch, roll])
    turn = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    tilt = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    lean = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return turn @ tilt @ lean


def scene(rng: np.random.Generator) -> tuple[list[Plane], Array]:
    """Planes around a camera at the origin, and how the camera is turned."""
    x, y, z = np.eye(3)

    def plane(origin: Array, right: Array, up: Array, near: float, patterns=WALLS, **more) -> Plane:
        """With a pattern whose period has 5 to 50 pixels of 480 at the distance `near`."""
        pattern, period = patterns[int(rng.integers(len(patterns)))](rng)
        k = np.exp(rng.uniform(np.log(5), np.log(50))) / 480 / FOCAL * near / period
        return Plane(np.asarray(origin, float), right, up, lambda u, v: pattern(u / k, v / k), period * k, **more)

    kind = rng.choice(["facade", "corner", "street", "floor"], p=[0.4, 0.25, 0.2, 0.15])
    turn = np.radians([rng.uniform(-45, 45), rng.uniform(-10, 30), rng.uniform(-6, 6)])
    far = 10.0
    if kind == "facade":
        planes = [plane(far * z, x, y, far)]
    elif kind == "corner":
        angle = np.radians(rng.uniform(-10, 10) + 45)
        one, two = np.array([np.sin(angle), 0, np.cos(angle)]), np.array([np.cos(angle), 0, -np.sin(angle)])
        planes = [plane(far * z, one, y, far, limits=(0, np.inf)), plane(far * z, two, y, far, limits=(-np.inf, 0))]
        turn[0] *= 0.3
    elif kind == "street":
        width = rng.uniform(3, 8)
        planes = [plane(side * width * x, -side * z, y, 1.5 * width) for side in (-1, 1)]
        planes += [plane(-1.7 * y, x, z, 4, GROUNDS), plane(60 * z, x, y, 60)]
        turn[0] *= 0.6
    else:
        planes = [plane(-2 * y, x, z, 4, GROUNDS), plane(far * z, x, y, far)]
        turn[1] = np.radians(rng.uniform(-35, -10))
    return planes, rotation(*turn)


def render(seed: int, number: int, height: int, width: int) -> Array:
    """Picture `number` of a seed: uint8 RGB `[height, width, 3]`."""
    rng = np.random.default_rng((seed, number))
    planes, camera = scene(rng)
    rows, columns = (np.arange(n * SAMPLES) / SAMPLES + 0.5 / SAMPLES for n in (height, width))
    v, u = np.meshgrid((height / 2 - rows) / width, (columns - width / 2) / width, indexing="ij")
    rays = np.stack([u, v, np.full_like(u, FOCAL)], -1) @ camera.T
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)

    sun = np.array([rng.uniform(-1, 1), rng.uniform(0.3, 1), rng.uniform(-1, 0.2)])
    sun /= np.linalg.norm(sun)
    haze = colour(rng, 0.3, 0.8, 0.15)
    up = np.clip(rays[..., 1:2], -0.2, 1)
    picture = haze * (1 - 0.5 * up) + np.array([-0.05, 0, 0.1]) * up  # the sky
    nearest = np.full(u.shape, np.inf)
    for plane in planes:
        normal = np.cross(plane.right, plane.up)
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = (plane.origin @ normal) / (rays @ normal)
        points = rays * np.where(np.isfinite(distance), distance, -1)[..., None] - plane.origin
        a, b = points @ plane.right, points @ plane.up
        seen = (distance > 0) & (distance < nearest) & (a >= plane.limits[0]) & (a <= plane.limits[1])
        if not seen.any():
            continue
        nearest[seen] = distance[seen]
        pixels = plane.period * FOCAL * width / distance[seen] * np.abs(rays[seen] @ normal)
        face = lit(faded(plane.pattern(a[seen], b[seen]), pixels), a[seen], b[seen], abs(float(normal @ sun)), rng)
        through = np.exp(-distance[seen] / rng.uniform(40, 300))[:, None]
        picture[seen] = face * through + haze * (1 - through)
    light = picture.reshape(height, SAMPLES, width, SAMPLES, 3).mean((1, 3))
    light *= rng.uniform(0.5, 0.95) / np.quantile(light, 0.98)
    light = np.clip(light, 0, 1)
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)  # sRGB
    return np.rint(encoded * 255).astype(np.uint8)


def faded(face: Array, pixels: Array) -> Array:
    """A pattern [N, 3] that approaches its mean where a period has less than 1.4 pixels."""
    mean = face.mean(0)
    return mean + np.clip((pixels - 0.7) / 0.7, 0, 1)[:, None] * (face - mean)


def lit(face: Array, u: Array, v: Array, facing: float, rng: np.random.Generator) -> Array:
    """Light from a plane [N, 3]: dirt on it, sun from a direction of this cosine, now and then a shadow."""
    face = np.clip(face, 0, 1)
    face *= 1 + rng.uniform(0.02, 0.15) * grain(int(rng.integers(2**31)), u, v, rng.uniform(0.5, 3))[..., None]
    if rng.random() < 0.4:
        angle = rng.uniform(0, 2 * np.pi)
        side = np.cos(angle) * u + np.sin(angle) * v - rng.uniform(-2, 2)
        face *= 1 - 0.5 * np.clip(side / 0.1 + 0.5, 0, 1)[..., None]
    return face * (0.35 + 0.75 * facing)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the PNG files go")
    parser.add_argument("--count", type=whole_number(), default=100, help="pictures; default: 100")
    parser.add_argument("--seed", type=whole_number(0), default=0)
    parser.add_argument("--size", type=whole_number(), nargs=2, default=(480, 480), metavar=("HEIGHT", "WIDTH"))
    arguments = parser.parse_args(argv)
    for number in range(arguments.count):
        picture = render(arguments.seed, number, *arguments.size)
        write_whole(arguments.folder / f"structure_{number:04d}.png", png_bytes(picture))
    return 0


if __name__ == "__main__":
    sys.exit(run("__main__:main", sys.argv[1:]))

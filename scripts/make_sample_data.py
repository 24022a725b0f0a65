"""Draw the sample pictures in data/flowers: 210 small drawn flowers of 10 kinds, and their labels.

The project started from the Kaggle set "Flower Color Images", whose photographs cannot be shipped here.
This script draws a stand-in with the same layout (`0001.png` to `0210.png`, 128x128, and a
`flower_labels.csv`), so that the examples and the tests run on a fresh checkout. The flowers are drawn
shapes, not photographs, and the labels name the shape that was drawn.

A kind is defined by its shape (petals, layers, centre, top or side view, single or in a head) and not by
its colour, because all kinds share one palette. Scale, rotation, tilt, neighbours, background, occlusion,
focus and light vary from picture to picture, so that the kinds are neither too easy nor too hard to
distinguish.

The seed of every picture is its own number, so it does not depend on the others. With the same version of
Pillow the files are byte-identical when they are drawn again: `--check` draws them again and compares.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw, ImageFilter, ImageOps

SEED = 1978
PER_KIND = 21
SIDE = 128
GOLDEN = math.pi * (3 - math.sqrt(5))  # the angle from one leaf or floret to the next
# Everything is drawn four times too large and reduced at the end, because Pillow's polygons are not anti-aliased.
OVERSAMPLE = 4
FULL = SIDE * OVERSAMPLE
LABELS_FILE = "flower_labels.csv"
DEFAULT_OUT = Path(__file__).resolve().parent.parent / "data" / "flowers"

Colour = tuple[int, int, int]
Shades = tuple[Colour, Colour]  # at the base of a petal, at its tip
Point = tuple[float, float]

PALETTE: dict[str, Shades] = {
    "white": ((214, 214, 190), (253, 251, 244)),
    "cream": ((226, 196, 110), (252, 238, 196)),
    "yellow": ((226, 150, 16), (253, 218, 66)),
    "orange": ((196, 74, 12), (248, 158, 54)),
    "red": ((128, 10, 24), (220, 48, 46)),
    "pink": ((196, 62, 116), (248, 176, 200)),
    "magenta": ((120, 14, 92), (214, 74, 160)),
    "violet": ((70, 34, 128), (166, 122, 214)),
    "blue": ((40, 60, 150), (128, 156, 232)),
}
GREENS: tuple[Colour, ...] = ((58, 110, 48), (84, 138, 58), (70, 120, 84), (104, 140, 66))


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """Return the colour `share` of the way from the first to the second."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def shade(colour: Colour, factor: float) -> Colour:
    """Return the colour made darker (factor below 1) or lighter."""
    red, green, blue = (min(255, max(0, round(part * factor))) for part in colour)
    return red, green, blue


@dataclass(frozen=True)
class Frame:
    """An affine frame: x to the right and y down in units of a flower's radius, mapped to pixels."""

    xx: float
    xy: float
    yx: float
    yy: float
    x0: float
    y0: float

    def at(self, x: float, y: float) -> Point:
        return self.xx * x + self.xy * y + self.x0, self.yx * x + self.yy * y + self.y0

    def child(self, x: float = 0.0, y: float = 0.0, turn: float = 0.0, size: float = 1.0, tilt: float = 1.0) -> Frame:
        """Return the frame at (x, y) of this one: foreshortened by a tilt below 1, turned and scaled."""
        cos, sin = math.cos(turn) * size, math.sin(turn) * size
        x0, y0 = self.at(x, y)
        return Frame(
            self.xx * cos + self.xy * sin,
            (self.xy * cos - self.xx * sin) * tilt,
            self.yx * cos + self.yy * sin,
            (self.yy * cos - self.yx * sin) * tilt,
            x0,
            y0,
        )

    @property
    def unit(self) -> float:
        """Pixels to one unit, for the width of lines."""
        return math.sqrt(abs(self.xx * self.yy - self.xy * self.yx))


PAGE = Frame(1.0, 0.0, 0.0, 1.0, 0.0, 0.0)  # in pixels


@dataclass(frozen=True)
class Petal:
    """The outline of a petal that grows upwards (towards -y) from its frame's origin."""

    length: float
    width: float
    peak: float = 1.0  # above 1 the widest place moves to the tip, below 1 to the base
    blunt: float = 0.7  # towards 0 the ends are square, above 1 they are pointed
    start: float = 0.0
    bend: float = 0.0
    frill: float = 0.0
    notch: float = 0.0
    fade: float = 0.8  # above 1 the base's colour reaches further towards the tip
    detail: int = 16

    def point(self, along: float, across: float) -> Point:
        """Return the place `along` (0..1) the petal and `across` it (-1..1)."""
        half = self.width / 2 * math.sin(math.pi * min(along, 0.999) ** self.peak) ** self.blunt
        wave = self.frill * math.sin(9 * across) + self.notch * (abs(across) - 1)
        x = half * across + self.bend * along**2
        return x, -(self.start + self.length * along + wave * along**3)


@dataclass
class Brush:
    """Draws on one transparent layer, with the light from one side."""

    layer: Image.Image
    rng: Random
    light: float

    def __post_init__(self) -> None:
        self.pen = ImageDraw.Draw(self.layer)

    def petal(self, frame: Frame, petal: Petal, base: Colour, tip: Colour) -> None:
        """Draw a petal in cells, shaded from base to tip, from side to side and along its veins."""
        rows = [(1 - math.cos(math.pi * i / petal.detail)) / 2 for i in range(petal.detail + 1)]
        columns = max(2, petal.detail // 2) * 2
        sides = [2 * j / columns - 1 for j in range(columns + 1)]
        grid = [[frame.at(*petal.point(along, across)) for across in sides] for along in rows]
        lit = 1 + 0.1 * math.cos(math.atan2(-frame.yy, -frame.xy) - self.light)
        for i, along in enumerate(rows[:-1]):
            colour = mix(base, tip, along**petal.fade)
            for j in range(columns):
                fold = 1 - 0.16 * abs(sides[j] + 1 / columns) - (0.05 if j % 2 else 0.0)
                corners = (grid[i][j], grid[i][j + 1], grid[i + 1][j + 1], grid[i + 1][j])
                self.pen.polygon(corners, fill=shade(colour, lit * fold * 1.06))
        edge = [row[0] for row in grid] + [row[-1] for row in reversed(grid)]
        self.pen.line(edge, fill=shade(mix(base, tip, 0.45), 0.74), width=2)

    def ring(self, frame: Frame, petal: Petal, count: int, colours: Shades) -> None:
        """Draw petals around the frame's origin, none quite like the next."""
        first = self.rng.uniform(0, math.tau)
        for i in range(count):
            turn = first + math.tau * i / count + self.rng.uniform(-0.35, 0.35) / count
            own = replace(petal, length=petal.length * self.rng.uniform(0.9, 1.06))
            light = self.rng.uniform(0.94, 1.05)
            self.petal(frame.child(turn=turn), own, shade(colours[0], light), shade(colours[1], light))

    def disc(self, frame: Frame, radius: float, colour: Colour) -> None:
        """Draw a ball: circles that shrink towards the light and grow lighter."""
        rim = [(math.cos(math.tau * k / 28), math.sin(math.tau * k / 28)) for k in range(28)]
        for i in range(6):
            size, shift = radius * (1 - 0.15 * i), radius * frame.unit * 0.03 * i
            # In pixels, as the light does not turn with the flower.
            right, down = shift * math.cos(self.light), shift * math.sin(self.light)
            outline = [frame.at(size * x, size * y) for x, y in rim]
            moved = [(x + right, y + down) for x, y in outline]
            self.pen.polygon(moved, fill=shade(colour, 0.72 + 0.08 * i))

    def dot(self, frame: Frame, x: float, y: float, radius: float, colour: Colour) -> None:
        (px, py), size = frame.at(x, y), radius * frame.unit
        self.pen.ellipse((px - size, py - size, px + size, py + size), fill=colour)

    def seeds(self, frame: Frame, radius: float, count: int, inner: Colour, outer: Colour) -> None:
        """Dot a disc along the spiral in which florets really grow (by the golden angle)."""
        for i in range(count):
            far = math.sqrt((i + 0.5) / count)
            turn = i * GOLDEN
            x, y = radius * far * math.cos(turn), radius * far * math.sin(turn)
            self.dot(frame, x, y, radius * 0.07, mix(inner, outer, far))

    def stem(self, frame: Frame, path: Sequence[Point], widths: Point, colour: Colour) -> list[Point]:
        """Draw a tapering curve (quadratic, through three control points); return its spine."""
        (ax, ay), (bx, by), (cx, cy) = path
        steps = [i / 14 for i in range(15)]
        spine = [
            (
                (1 - t) ** 2 * ax + 2 * t * (1 - t) * bx + t * t * cx,
                (1 - t) ** 2 * ay + 2 * t * (1 - t) * by + t * t * cy,
            )
            for t in steps
        ]
        left, right = [], []
        for i, (t, (x, y)) in enumerate(zip(steps, spine, strict=True)):
            (px, py), (qx, qy) = spine[max(0, i - 1)], spine[min(14, i + 1)]
            norm = math.hypot(qx - px, qy - py) or 1.0
            half = (widths[0] + (widths[1] - widths[0]) * t) / 2
            dx, dy = -(qy - py) / norm * half, (qx - px) / norm * half
            left.append(frame.at(x + dx, y + dy))
            right.append(frame.at(x - dx, y - dy))
        middle = [frame.at(x, y) for x, y in spine]
        self.pen.polygon(left + right[::-1], fill=shade(colour, 0.82))
        self.pen.polygon(left + middle[::-1], fill=shade(colour, 1.1))
        return spine

    def leaf(self, frame: Frame, length: float, width: float) -> None:
        """Draw a green leaf with a midrib, pointing up from the frame's origin."""
        green = shade(self.rng.choice(GREENS), self.rng.uniform(0.75, 1.15))
        bend = self.rng.uniform(-0.3, 0.3) * length
        blade = Petal(length, width, peak=0.8, blunt=1.1, bend=bend)
        self.petal(frame, blade, shade(green, 0.75), shade(green, 1.15))
        rib = [frame.at(*blade.point(t / 8, 0.0)) for t in range(8)]
        self.pen.line(rib, fill=shade(green, 1.35), width=3)


# The kinds. Each function draws one plant around the origin of its frame, with a radius of about one unit.


def daisy(brush: Brush, frame: Frame, colours: Shades) -> None:
    """Many narrow blunt rays in one layer around a yellow disc."""
    rng = brush.rng
    ray = Petal(0.84, rng.uniform(0.2, 0.27), peak=1.5, blunt=0.6, start=0.16, notch=0.04)
    brush.ring(frame, ray, rng.randint(12, 19), colours)
    radius = rng.uniform(0.24, 0.32)
    brush.disc(frame, radius, (236, 178, 34))
    brush.seeds(frame, radius * 0.95, 60, (206, 150, 30), (250, 210, 80))


def sunflower(brush: Brush, frame: Frame, colours: Shades) -> None:
    """Two layers of pointed rays around a large dark disc of seeds."""
    rng = brush.rng
    ray = Petal(0.62, rng.uniform(0.24, 0.32), peak=0.9, blunt=0.9, start=0.38)
    count = rng.randint(13, 18)
    brush.ring(frame, ray, count, (shade(colours[0], 0.85), shade(colours[1], 0.85)))
    brush.ring(frame, replace(ray, length=0.52), count, colours)
    radius = rng.uniform(0.44, 0.54)
    brush.disc(frame, radius, (92, 56, 30))
    brush.seeds(frame, radius * 0.96, 130, (70, 60, 24), (140, 88, 40))


def rose(brush: Brush, frame: Frame, colours: Shades) -> None:
    """Broad petals in a spiral, each smaller than the one before, around a whorl."""
    rng = brush.rng
    count, first = rng.randint(19, 24), rng.uniform(0, math.tau)
    for i in range(count):
        far = 1 - 0.84 * (i / count) ** 0.9
        turn = first + i * GOLDEN + rng.uniform(-0.2, 0.2)
        own = frame.child(turn=turn, size=far * rng.uniform(0.94, 1.06))
        petal = Petal(1.0, rng.uniform(1.2, 1.5), peak=1.9, blunt=0.42, frill=0.015, fade=3.2)
        light = rng.uniform(0.92, 1.04)
        tip = mix(colours[1], colours[0], 0.5 * i / count)
        brush.petal(own, petal, shade(colours[0], 0.85 * light), shade(tip, light))
    for i in range(3):
        whorl = ((-0.1 + 0.03 * i, 0.05), (0.0, -0.18 + 0.06 * i), (0.12 - 0.04 * i, 0.04))
        brush.stem(frame.child(turn=first + 2 * i), whorl, (0.02, 0.05), shade(colours[0], 0.75 + 0.2 * i))


def poppy(brush: Brush, frame: Frame, colours: Shades) -> None:
    """Five or six very broad crinkled petals, dark at the base, around a pod in a ring of stamens."""
    rng = brush.rng
    broad = Petal(0.98, rng.uniform(1.5, 1.8), peak=1.9, blunt=0.42, frill=rng.uniform(0.03, 0.06))
    brush.ring(frame, broad, 3, (shade(colours[0], 0.9), shade(colours[1], 0.9)))
    brush.ring(frame, replace(broad, length=0.86, width=1.4), rng.choice((2, 3)), colours)
    dark = (46, 26, 40)
    brush.ring(frame, Petal(0.36, 0.3, peak=1.4), 4, (dark, mix(dark, colours[0], 0.5)))
    for i in range(34):
        stamen = frame.child(turn=math.tau * i / 34)
        brush.dot(stamen, 0, rng.uniform(0.2, 0.36), 0.025, shade(dark, rng.uniform(0.6, 1.6)))
    brush.disc(frame, 0.16, (150, 170, 96))
    brush.ring(frame, Petal(0.13, 0.03, detail=4), 8, ((70, 84, 40), (70, 84, 40)))


def lily(brush: Brush, frame: Frame, colours: Shades) -> None:
    """Six pointed petals in two whorls of three, freckled, with long stamens."""
    rng = brush.rng
    first, bend = rng.uniform(0, math.tau), rng.uniform(-0.15, 0.15)
    for i in (0, 2, 4, 1, 3, 5):
        width = (0.36, 0.46)[i % 2]
        own = frame.child(turn=first + math.tau * i / 6 + rng.uniform(-0.06, 0.06))
        petal = Petal(rng.uniform(0.98, 1.08), width, peak=0.95, blunt=0.95, bend=bend)
        brush.petal(own, petal, mix(colours[0], (206, 214, 120), 0.35), colours[1])
        brush.pen.line([own.at(*petal.point(t / 8, 0.0)) for t in range(8)], shade(colours[0], 1.1), 4)
        for _ in range(9):
            x, y = petal.point(rng.uniform(0.2, 0.55), rng.uniform(-0.7, 0.7))
            brush.dot(own, x, y, 0.017, shade(colours[0], 0.62))
    for i in range(6):
        own = frame.child(turn=first + math.tau * (i + 0.5) / 6 + rng.uniform(-0.2, 0.2))
        brush.stem(own, ((0, 0), (0.06, -0.25), (0.02, -0.5)), (0.035, 0.02), (196, 206, 130))
        anther = Petal(0.18, 0.07, start=-0.09, detail=6)
        brush.petal(own.child(0.02, -0.5, turn=1.3), anther, (96, 40, 16), (150, 74, 24))


def pansy(brush: Brush, frame: Frame, colours: Shades) -> None:
    """Five rounded petals, two up and three down, with a dark face and a yellow eye."""
    rng = brush.rng
    upper = rng.choice((colours, PALETTE["violet"], PALETTE["magenta"]))
    round_petal = Petal(0.95, 0.98, peak=1.5, blunt=0.5, notch=0.05)
    face = shade(PALETTE["violet"][0], 0.55)
    for turn in (-0.55, 0.5):
        brush.petal(frame.child(turn=turn), round_petal, shade(upper[0], 0.9), upper[1])
    for turn, size in ((-1.75, 0.82), (1.75, 0.82), (math.pi, 0.92)):
        own = frame.child(turn=turn + rng.uniform(-0.08, 0.08), size=size)
        brush.petal(own, replace(round_petal, width=1.1), colours[0], colours[1])
        brush.petal(own, Petal(0.58, 0.56, peak=1.5, blunt=0.6), face, mix(face, colours[0], 0.3))
        for ray in (-0.5, -0.25, 0.0, 0.25, 0.5):
            whisker = own.child(turn=ray)
            brush.stem(whisker, ((0, -0.4), (0, -0.5), (0, -0.68)), (0.04, 0.0), face)
    brush.disc(frame, 0.1, (248, 206, 50))


def tulip(brush: Brush, frame: Frame, colours: Shades) -> None:
    """A closed cup from the side, on a stem with long leaves."""
    rng = brush.rng
    sway = rng.uniform(-0.2, 0.2)
    brush.stem(frame, ((0, 0.6), (sway, 2.0), (2 * sway, 4.5)), (0.12, 0.2), rng.choice(GREENS))
    for side in (-1, 1):
        foot = frame.child(0.1 * side, 3.0, turn=side * rng.uniform(0.12, 0.4))
        brush.leaf(foot, rng.uniform(1.6, 2.4), 0.5)
    base, open_by = frame.child(0, 0.8), rng.uniform(0.0, 0.14)
    deep = (shade(colours[0], 0.85), shade(colours[1], 0.85))
    petal = Petal(1.6, 0.85, peak=0.8, blunt=0.75)
    for turn in (-0.1, 0.12):
        brush.petal(base.child(turn=turn), replace(petal, length=1.65), *deep)
    for side in (-1, 1):
        outer = replace(petal, bend=-0.12 * side)
        brush.petal(base.child(0.05 * side, 0, turn=side * (0.3 + open_by)), outer, *colours)
    brush.petal(base, replace(petal, length=1.45, width=0.9), colours[0], shade(colours[1], 1.04))


def lupin(brush: Brush, frame: Frame, colours: Shades) -> None:
    """A tall spike of whorls of small florets, buds at the top, over fingered leaves."""
    rng = brush.rng
    sway = rng.uniform(-0.25, 0.25)
    brush.stem(frame, ((0, -1.3), (sway, 1.2), (sway, 4.5)), (0.05, 0.1), rng.choice(GREENS))
    for side in (-1, 1):
        hand = frame.child(sway * 0.5 + 0.55 * side, 1.6 + rng.uniform(-0.2, 0.2))
        for finger in range(7):
            brush.leaf(hand.child(turn=0.8 * (finger - 3) + 0.5 * side), 0.6, 0.17)
    for whorl in range(11):
        y = 1.0 - whorl * 0.22
        size = 0.4 * (1 - (whorl / 12) ** 2)
        for turn in (-1.5, 1.45, -0.95, 1.0, -0.45, 0.5, 0.0):
            lean = turn + rng.uniform(-0.2, 0.2)
            own = frame.child(turn * 0.06 + sway * 0.1, y, turn=lean, size=size * rng.uniform(0.85, 1.1))
            light = rng.uniform(0.8, 1.12)
            floret = Petal(1.0, 0.52, peak=1.4, blunt=0.6, detail=6)
            brush.petal(own, floret, shade(colours[0], light), shade(colours[1], light))


def bellflower(brush: Brush, frame: Frame, colours: Shades) -> None:
    """An arching stem with bells that hang from it on short stalks."""
    rng, green = brush.rng, brush.rng.choice(GREENS)
    side = rng.choice((-1, 1))
    path = ((-0.35 * side, 4.0), (-0.5 * side, -1.8), (0.75 * side, -0.75))
    spine = brush.stem(frame, path, (0.14, 0.05), green)
    lobe = Petal(0.95, 0.42, peak=0.75, blunt=0.6, detail=10)
    for index, (x, y) in enumerate(spine[7:]):
        reach = (0.2, -0.12)[index % 2] * side
        brush.stem(frame, ((x, y), (x + reach, y - 0.04), (x + reach, y + 0.22)), (0.05, 0.04), green)
        hang = math.pi - 0.5 * reach + rng.uniform(-0.2, 0.2)
        bell = frame.child(x + reach, y + 0.22, turn=hang, size=0.62 - 0.022 * index)
        # Two lobes behind, two that curl outwards, one in front.
        for turn, bend in ((-0.16, 0.0), (0.16, 0.0), (-0.2, -0.26), (0.2, 0.26), (0.0, 0.0)):
            brush.petal(bell.child(turn=turn), replace(lobe, bend=bend), *colours)


def allium(brush: Brush, frame: Frame, colours: Shades) -> None:
    """A globe of small six-pointed stars on a bare stem."""
    rng = brush.rng
    green = rng.choice(GREENS)
    sway = rng.uniform(-0.4, 0.4)
    brush.stem(frame, ((0, 0), (sway, 2), (sway, 4.5)), (0.1, 0.14), green)
    count = rng.randint(50, 70)
    star = Petal(1.0, 0.42, blunt=0.9, detail=4)
    for i in range(count):
        # A spiral from the rim of the globe to its middle, so that the near stars cover the far ones.
        far = math.sqrt(1 - (i + 0.5) / count)
        turn = i * GOLDEN
        x, y = 0.88 * far * math.cos(turn), 0.88 * far * math.sin(turn)
        brush.stem(frame, ((0, 0), (x / 2, y / 2), (x, y)), (0.015, 0.02), shade(green, 1.2))
        light = 1.1 - 0.3 * far + rng.uniform(-0.08, 0.08)
        floret = frame.child(x, y, size=0.2 * (1.15 - 0.35 * far))
        brush.ring(floret, star, 6, (shade(colours[0], light), shade(colours[1], light)))
        brush.dot(floret, 0, 0, 0.2, shade(green, 1.1))


@dataclass(frozen=True)
class Kind:
    """How a kind is drawn, in which colours, and how it stands in the picture."""

    draw: Callable[[Brush, Frame, Shades], None]
    colours: tuple[str, ...]
    size: tuple[float, float]  # the radius, as a share of the picture's side
    upright: bool = False
    company: tuple[int, ...] = (0, 0, 0, 1, 2)


KINDS: dict[str, Kind] = {
    "allium": Kind(allium, ("violet", "magenta", "white", "pink"), (0.24, 0.36), True, (0, 0, 1, 1, 2)),
    "bellflower": Kind(bellflower, ("blue", "violet", "white", "pink"), (0.26, 0.38), True, (0, 0, 1, 2)),
    "daisy": Kind(daisy, ("white", "yellow", "pink", "orange"), (0.26, 0.46)),
    "lily": Kind(lily, ("white", "orange", "pink", "yellow"), (0.3, 0.5)),
    "lupin": Kind(lupin, ("violet", "blue", "pink"), (0.22, 0.36), True, (1, 2, 3, 4)),
    "pansy": Kind(pansy, ("violet", "yellow", "white", "blue", "orange"), (0.24, 0.42)),
    "poppy": Kind(poppy, ("red", "orange", "pink", "cream"), (0.27, 0.44)),
    "rose": Kind(rose, ("red", "pink", "cream", "white", "yellow"), (0.28, 0.44)),
    "sunflower": Kind(sunflower, ("yellow", "orange", "red", "cream"), (0.3, 0.48)),
    "tulip": Kind(tulip, ("red", "yellow", "pink", "violet", "white"), (0.18, 0.3), True, (0, 0, 1, 2, 3)),
}


# The backgrounds. Each function returns the picture that the plants are drawn on.


def gradient(rng: Random, top: Colour, bottom: Colour, tilt: float = 0.0) -> Image.Image:
    """Return a soft gradient, slightly lighter or darker each time, turned by up to `tilt` degrees."""
    light = rng.uniform(0.85, 1.12)
    ramp = Image.linear_gradient("L").rotate(rng.uniform(-tilt, tilt), Image.Resampling.BICUBIC)
    # The rotated gradient has empty corners, so only its middle is used.
    ramp = ramp.crop((48, 48, 208, 208)).resize((FULL, FULL), Image.Resampling.BICUBIC)
    return ImageOps.colorize(ramp, shade(top, light), shade(bottom, light))


def blobs(image: Image.Image, rng: Random, colours: Sequence[Colour], count: int, size: Point) -> None:
    """Lay round translucent spots over the image."""
    pen = ImageDraw.Draw(image, "RGBA")
    for _ in range(count):
        x, y, radius = rng.uniform(0, FULL), rng.uniform(0, FULL), rng.uniform(*size)
        colour = (*rng.choice(colours), rng.randint(60, 150))
        pen.ellipse((x - radius, y - radius * 0.9, x + radius, y + radius * 0.9), fill=colour)


def blur(image: Image.Image, radius: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius))


def sky(rng: Random) -> Image.Image:
    image = gradient(rng, (96, 150, 214), (206, 226, 240))
    blobs(image, rng, ((255, 255, 255), (236, 242, 250)), 9, (30, 90))
    return blur(image, 28)


def meadow(rng: Random) -> Image.Image:
    image = gradient(rng, (176, 200, 120), (64, 108, 50))
    brush = Brush(image, rng, 0.0)
    for _ in range(60):
        blade(brush, rng.uniform(8, 18))
    return blur(image, rng.uniform(4, 9))


def soil(rng: Random) -> Image.Image:
    image = gradient(rng, (134, 106, 82), (92, 66, 48), 90)
    blobs(image, rng, ((70, 48, 34), (160, 132, 104), (116, 88, 64)), 90, (8, 30))
    return blur(image, rng.uniform(4, 9))


def bokeh(rng: Random) -> Image.Image:
    dark = rng.choice(((40, 72, 52), (36, 58, 76), (84, 60, 78), (96, 84, 44)))
    image = gradient(rng, shade(dark, 1.5), dark, 40)
    blobs(image, rng, (shade(dark, 2.2), shade(dark, 1.8), (236, 220, 160)), 22, (20, 62))
    return blur(image, 7)


def night(rng: Random) -> Image.Image:
    dark = rng.choice(((30, 34, 40), (40, 30, 36), (24, 38, 34)))
    return gradient(rng, shade(dark, 1.7), shade(dark, 0.6), 90)


def wall(rng: Random) -> Image.Image:
    pale = rng.choice(((232, 222, 204), (206, 218, 222), (226, 206, 206), (214, 216, 190), (190, 184, 202)))
    return gradient(rng, pale, shade(pale, 0.78), 60)


def foliage(rng: Random) -> Image.Image:
    image = gradient(rng, (76, 112, 60), (44, 74, 44), 60)
    brush = Brush(image, rng, rng.uniform(0, math.tau))
    for _ in range(26):
        own = PAGE.child(rng.uniform(0, FULL), rng.uniform(0, FULL), rng.uniform(0, math.tau), 100)
        brush.leaf(own, rng.uniform(1.2, 2.2), rng.uniform(0.5, 0.9))
    return blur(image, rng.uniform(4, 10))


GROUNDS = (sky, meadow, soil, bokeh, night, wall, foliage)


def blade(brush: Brush, width: float) -> None:
    """Draw a blade of grass from the picture's lower edge."""
    rng = brush.rng
    x, lean = rng.uniform(-40, FULL + 40), rng.uniform(-120, 120)
    path = ((x, FULL + 20), (x, FULL * 0.7), (x + lean, FULL * rng.uniform(0.1, 0.75)))
    green = shade(rng.choice(GREENS), rng.uniform(0.8, 1.3))
    brush.stem(PAGE, path, (width, 1), green)


# The whole picture: a background, the plants from back to front, what stands in front of them, and the light.


def new_layer(rng: Random, light: float) -> Brush:
    return Brush(Image.new("RGBA", (FULL, FULL)), rng, light)


def lay(picture: Image.Image, brush: Brush, focus: float) -> Image.Image:
    """Reduce a layer, put it out of focus, and lay it over the picture with a soft shadow."""
    # Premultiplied ("RGBa"), because the blur would otherwise mix the transparent black into the edges.
    layer = brush.layer.reduce(OVERSAMPLE).convert("RGBa")
    layer = blur(layer, focus).convert("RGBA")
    cast = Image.new("L", picture.size)
    shift = round(-4 * math.cos(brush.light)), round(-4 * math.sin(brush.light))
    cast.paste(blur(layer.getchannel("A"), 3).point([round(0.36 * alpha) for alpha in range(256)]), shift)
    picture = Image.composite(Image.new("RGB", picture.size, (14, 18, 16)), picture, cast)
    picture.paste(layer, (0, 0), layer)
    return picture


def vary(colours: Shades, rng: Random) -> Shades:
    """Return the colours with a small change of hue and strength, the same at base and tip."""
    red, green, blue = (rng.uniform(0.97, 1.05) for _ in range(3))
    base, tip = ((round(c[0] * red), round(c[1] * green), round(c[2] * blue)) for c in colours)
    return base, tip


def places(kind: Kind, rng: Random) -> list[Frame]:
    """Return a frame for each plant of the picture, the main one last (in front)."""
    company = rng.choice(kind.company)
    turn = rng.uniform(-0.3, 0.3) if kind.upright else rng.uniform(-math.pi, math.pi)
    size = FULL * rng.uniform(*kind.size) * (0.82 if company else 1.0)
    x, y = FULL * rng.uniform(0.38, 0.62), FULL * rng.uniform(0.4, 0.6)
    tilt = 1.0 if kind.upright else rng.uniform(0.66, 1.0)
    frames = [PAGE.child(x, y, turn, size, tilt)]
    for i in range(company):
        way = math.tau * i / company + rng.uniform(0, 2)
        # Around the middle of the picture, away from the main flower.
        across, down = (0.5 + 0.34 * f(way) for f in (math.cos, math.sin))
        lean, share = turn + rng.uniform(-0.3, 0.3), rng.uniform(0.55, 0.85)
        frames.append(PAGE.child(FULL * across, FULL * down, lean, size * share, tilt))
    return frames[::-1]


def cover(picture: Image.Image, rng: Random, light: float) -> Image.Image:
    """Put blades or a leaf before the flower, sharp or out of focus."""
    brush = new_layer(rng, light)
    if rng.random() < 0.5:
        for _ in range(rng.randint(2, 6)):
            blade(brush, rng.uniform(10, 24))
    else:
        corner = rng.choice(((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)))
        way = math.atan2(0.5 - corner[1], 0.5 - corner[0]) + math.pi / 2 + rng.uniform(-0.5, 0.5)
        own = PAGE.child(FULL * corner[0], FULL * corner[1], way, FULL / 2)
        brush.leaf(own, rng.uniform(0.8, 1.3), 0.5)
    return lay(picture, brush, rng.choice((0.0, 0.6, 2.2)))


def finish(picture: Image.Image, rng: Random) -> Image.Image:
    """Put the whole picture slightly out of focus and under a warmer, cooler, stronger or weaker light."""
    picture = blur(picture, rng.choice((0.0, 0.0, 0.3, 0.6, 1.0)))
    strength, warmth = rng.uniform(0.84, 1.1), rng.uniform(-0.06, 0.06)
    table: list[int] = []
    for part in (1 + warmth, 1.0, 1 - warmth):
        table.extend(min(255, round(value * strength * part)) for value in range(256))
    return picture.point(table)


def draw_picture(number: int, label: str) -> Image.Image:
    """Draw the picture of that number (from 1), which shows that kind."""
    rng = Random(SEED * 1000 + number)
    kind, light = KINDS[label], rng.uniform(-2.6, -0.5)
    picture = rng.choice(GROUNDS)(rng).reduce(OVERSAMPLE)
    colours = vary(PALETTE[rng.choice(kind.colours)], rng)
    frames = places(kind, rng)
    if not kind.upright and rng.random() < 0.6:
        leaves = new_layer(rng, light)
        for _ in range(rng.randint(2, 5)):
            own = frames[-1].child(turn=rng.uniform(0, math.tau))
            leaves.leaf(own, rng.uniform(1.1, 1.5), rng.uniform(0.4, 0.7))
        picture = lay(picture, leaves, 0.4)
    for frame in frames:
        brush = new_layer(rng, light)
        kind.draw(brush, frame, colours)
        picture = lay(picture, brush, 0.0 if frame is frames[-1] else rng.uniform(0.2, 1.2))
    if rng.random() < 0.45:
        picture = cover(picture, rng, light)
    return finish(picture, rng)


def labels() -> dict[str, str]:
    """Return the kind of each file; the kinds are spread over the numbers in a seeded order."""
    order = [label for label in sorted(KINDS) for _ in range(PER_KIND)]
    Random(SEED).shuffle(order)
    return {f"{number:04d}.png": label for number, label in enumerate(order, start=1)}


def save_picture(folder: Path, file: str, label: str) -> None:
    draw_picture(int(Path(file).stem), label).save(folder / file, compress_level=9, optimize=False)


def make(folder: Path) -> None:
    """Draw every picture into the folder and write the labels beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    table = labels()
    for file, label in table.items():
        save_picture(folder, file, label)
    with (folder / LABELS_FILE).open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(("file", "label"))
        writer.writerows(table.items())


def differing(folder: Path, redrawn: Path) -> list[str]:
    """Return the names of files that are missing, that differ, or that are extra pictures."""
    there, fresh = (
        {path.name: path.read_bytes() for pattern in ("*.png", LABELS_FILE) for path in place.glob(pattern)}
        for place in (folder, redrawn)
    )
    return sorted(name for name in there | fresh if there.get(name) != fresh.get(name))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Draw the sample pictures: 210 flowers of 10 kinds.")
    parser.add_argument("out", nargs="?", type=Path, default=DEFAULT_OUT, help="the folder to draw into")
    parser.add_argument("--check", action="store_true", help="redraw elsewhere and compare with the folder")
    options = parser.parse_args(arguments)
    if not options.check:
        make(options.out)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        make(Path(temporary))
        names = differing(options.out, Path(temporary))
    for name in names:
        print(f"differs: {name}", file=sys.stderr)
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())

"""Turns a decoded picture into the square of pixels that a network reads.

Input: a picture (h, w, 3) uint8. Output: (side, side, 3) float32, 0 to 255. Engines without TensorFlow use `to_square`;
TensorFlow's engine resizes in its own pipeline, to the same pixels but for the last digits. This module must not know a
network, nor how a picture was decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from gpu_cluster.config import EARLIER_DECODING, PixelsConfig
from gpu_cluster.facts import FileFacts
from gpu_cluster.images.decode import JPEG_FORMATS, Pixels, reduction
from gpu_cluster.images.formats import RAW_FORMATS

Square: TypeAlias = npt.NDArray[np.float32]

# A picture of at least twice this ratio is averaged over whole blocks of pixels first, as far as that leaves it this
# many times as large as the square: the filter then averages so many pixels that whole grey levels do no harm.
_LEFT_TO_RESIZE = 4


def at_least(config: PixelsConfig) -> int | None:
    """Return what `decode.decode` is to be told: the side of the square, or None if a reduced picture will not do.

    Nearest-neighbour resizing takes single pixels of the picture, so it needs it as it is stored.
    """
    return None if config.resize == "nearest" or config.decoding == EARLIER_DECODING else config.side


def shared_decodings(facts: FileFacts, configs: Sequence[PixelsConfig]) -> list[tuple[int | None, list[int]]]:
    """Return how often a picture is decoded for squares by several configs: mostly once.

    Each entry has what `decode.decode` is to be told, and the positions of the configs that it serves: those for which
    the picture is reduced by the same ratio, so that the pixels of each are the same as without the others.
    """
    found: dict[int, tuple[int | None, list[int]]] = {}
    for position, config in enumerate(configs):
        told = at_least(config)
        # The preview inside a camera's raw file is mostly a JPEG.
        reducible = facts.format in JPEG_FORMATS or facts.format in RAW_FORMATS
        ratio = reduction(facts.width or 0, facts.height or 0, told) if reducible else 1
        found.setdefault(ratio, (told, []))[1].append(position)
    return list(found.values())


def applies_profiles(config: PixelsConfig) -> bool:
    """Return whether colours are converted by the profile of a picture; earlier versions, and the notebook, do not."""
    return config.decoding != EARLIER_DECODING


def to_square(decoded: Pixels, config: PixelsConfig) -> Square:
    """Fit a picture (h, w, 3) uint8 into a square and resize it to (side, side, 3) float32, 0 to 255.

    Bilinear resizing has an antialiasing filter, and numbers between the grey levels as its result: rounded, they would
    change the embedding of a smooth picture. Pillow releases Python's global lock while it resizes, so several threads
    can do it at once.
    """
    from PIL import Image

    if config.fit == "crop":
        decoded = _middle(decoded)
    side = config.side
    if config.resize == "nearest":
        rows, columns = (nearest_indices(length, side) for length in decoded.shape[:2])
        return decoded[rows][:, columns].astype(np.float32)
    image = Image.fromarray(np.ascontiguousarray(decoded))
    factor = max(1, min(image.size) // (_LEFT_TO_RESIZE * side))
    # The last block may not be full, so the picture ends within it.
    box = (0.0, 0.0, image.width / factor, image.height / factor)
    reduced = image.reduce(factor) if factor > 1 else image
    # Pillow resizes floats one colour at a time.
    bands = [band.convert("F").resize((side, side), Image.Resampling.BILINEAR, box) for band in reduced.split()]
    return np.stack([np.asarray(band) for band in bands], axis=-1)


def _middle(decoded: Pixels) -> Pixels:
    """Return the largest square in the middle of a picture, as a view."""
    height, width = decoded.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    return decoded[top : top + short, left : left + short]


def nearest_indices(length: int, side: int) -> npt.NDArray[np.int64]:
    """Return the source pixel of each of `side` pixels, as in Pillow's nearest-neighbour resize.

    Keras's `load_img` resizes with Pillow, which adds up its step in float64. If (i + 1/2) * length / side is a whole
    number, the rounding of that sum decides. `tf.image.resize` chooses other pixels: 19% of them when it resizes 128 to
    224.
    """
    steps = np.full(side, length / side)
    steps[0] /= 2
    return np.minimum(np.cumsum(steps).astype(np.int64), length - 1)

"""A second engine, in one place: the mean colour of each picture, with memory for so many at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gpu_cluster.backend import CpuBackend, IntArray
from gpu_cluster.config import EmbedConfig
from gpu_cluster.embedding.engines import Engine, OutOfMemoryError
from gpu_cluster.embedding.extractors import Extractor
from gpu_cluster.images import decode
from gpu_cluster.images.source import Picture


def decoded(picture: Picture) -> Any:
    """Return the pixels (h, w, 3) uint8 of a picture."""
    with picture.open() as stream:
        return decode.decode(stream, picture.suffix)


class MeanColours(Engine):
    """Decodes with Pillow; `most` is how many pictures its memory has room for."""

    name = "mean colours"
    most = 1 << 30

    @property
    def identity(self) -> str:
        return self.name

    def versions(self) -> Mapping[str, str]:
        return {}

    def build(self) -> None:
        self.batch_size = self.config.batch_size or 8

    def squares(self, pictures: Sequence[Picture], configs: Any) -> Iterator[tuple[IntArray, tuple[Any, ...]]]:
        for first in range(0, len(pictures), self.batch_size):
            part = range(first, min(first + self.batch_size, len(pictures)))
            yield np.array(part), (np.stack([self.square(decoded(pictures[at])) for at in part]),)

    def square(self, decoded: Any) -> Any:
        return np.full((4, 4, 3), decoded.mean(axis=(0, 1)), np.float32)

    def features(self, pixels: Any) -> Any:
        if len(pixels) > self.most:
            raise OutOfMemoryError(f"no memory for {len(pixels)} pictures")
        return pixels.mean(axis=(1, 2))


MEAN_COLOURS = Extractor({"features": "mean colours"}, 3, lambda _precision: lambda pixels: pixels)


def mean_colours(most: int = 1 << 30) -> MeanColours:
    engine = MeanColours(CpuBackend(), MEAN_COLOURS, EmbedConfig(batch_size=16))
    engine.most = most
    engine.build()
    return engine

"""Runs several networks on the same pictures, whose features then lie side by side.

A picture is decoded once, but twice where the side of one network lets a large JPEG be reduced more than another's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gpu_cluster.backend import Array, IntArray
from gpu_cluster.embedding.engines.base import Engine, Pixels
from gpu_cluster.embedding.extractors import Joined
from gpu_cluster.images.source import Picture


class JoinedPixels:
    """The pixels of B pictures, once for each part; a slice of it has some of these pictures."""

    def __init__(self, of_parts: Sequence[Pixels]) -> None:
        self.of_parts = of_parts

    def __len__(self) -> int:
        return len(self.of_parts[0])

    def __getitem__(self, pictures: slice) -> JoinedPixels:
        return JoinedPixels([pixels[pictures] for pixels in self.of_parts])


class JoinedEngine(Engine):
    """Runs engines of one kind, on one device and in one precision, one after the other on each batch."""

    def __init__(self, engines: Sequence[Engine], extractor: Joined) -> None:
        """Set the engines, one for each part of the extractor."""
        first = engines[0]
        self._engines = tuple(engines)
        self.backend, self.name, self.precision, self.config = first.backend, first.name, first.precision, first.config
        self.extractor = extractor
        self.reason = first.reason

    @property
    def parts(self) -> tuple[Engine, ...]:
        return self._engines

    def some(self, positions: Sequence[int]) -> Engine:
        some = self.extractor.some(positions)
        engines = [self._engines[at] for at in positions]
        return JoinedEngine(engines, some) if isinstance(some, Joined) else engines[0]

    @property
    def batch_size(self) -> int:
        return min(engine.batch_size for engine in self._engines)

    @batch_size.setter
    def batch_size(self, n: int) -> None:
        for engine in self._engines:
            engine.batch_size = n

    @property
    def identity(self) -> str:
        return self._engines[0].identity

    def versions(self) -> Mapping[str, str]:
        return {name: number for engine in self._engines for name, number in engine.versions().items()}

    def build(self) -> None:
        for engine in self._engines:
            engine.build()
        # The networks get the same batches.
        self.batch_size = self.batch_size

    def batches(self, pictures: Sequence[Picture]) -> Iterator[tuple[IntArray, Pixels]]:
        for positions, squares in self.squares(pictures, [engine.config for engine in self._engines]):
            yield positions, JoinedPixels(squares)

    def squares(self, pictures: Sequence[Picture], configs: Sequence[Any]) -> Iterator[tuple[IntArray, Any]]:
        return self._engines[0].squares(pictures, configs)

    def square(self, decoded: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        raise TypeError("each part has a square of its own: ask the engines of `parts`")

    def stack(self, squares: Sequence[tuple[npt.NDArray[np.float32], ...]]) -> JoinedPixels:
        return JoinedPixels([np.stack(of_part) for of_part in zip(*squares, strict=True)])

    def features(self, pixels: JoinedPixels) -> Array:
        found = [engine.features(of_part) for engine, of_part in zip(self._engines, pixels.of_parts, strict=True)]
        return self.backend.xp.concat(found, axis=1)

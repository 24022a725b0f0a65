"""The seam between embedding and what runs a network: pictures in, features out.

An engine knows a device (its `Backend`) and an extractor; it knows no store, no manifest and no job. A second engine is
one file beside `tensorflow.py`, and its line in `choose_engine`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from gpu_cluster.backend import Array, Backend, IntArray
from gpu_cluster.config import PixelsConfig, Precision
from gpu_cluster.embedding.extractors import Extractor
from gpu_cluster.errors import ConfigError
from gpu_cluster.images.source import Picture

# Pictures (B, side, side, 3) float32, RGB, 0 to 255, in whatever form the engine reads them.
Pixels: TypeAlias = Any


class OutOfMemoryError(Exception):
    """The device has no memory for a batch; a smaller one may fit."""


class Engine(ABC):
    """Runs one extractor on one device. Made before work starts; loads its libraries only when it is built.

    Attributes
    ----------
    name : of the engine
    batch_size : pictures that go through the network together; smaller after the memory ran out
    """

    name: str

    def __init__(self, backend: Backend, extractor: Extractor, config: PixelsConfig) -> None:
        """Take what the engine is to run, and where.

        Raises
        ------
        ConfigError
            When the device does not compute in the precision asked for.
        """
        self.backend = backend
        self.extractor = extractor
        self.config = config
        if config.precision is not None and config.precision not in backend.precisions:
            known = ", ".join(backend.precisions)
            raise ConfigError(f"--precision: the {backend.name} computes in {known}; found {config.precision!r}")
        self.precision: Precision = config.precision or backend.precisions[0]
        self.batch_size = 0

    @property
    @abstractmethod
    def identity(self) -> str:
        """All that tells the numbers of this engine from those of another: name, version, kind of device."""

    @abstractmethod
    def versions(self) -> Mapping[str, str]:
        """Return the versions of the libraries that the engine runs on; loads none of them."""

    @abstractmethod
    def build(self) -> None:
        """Load the libraries, build the network and set `batch_size`; what is built already stays.

        Raises
        ------
        ConfigError
            When the libraries are loaded already, in a way that cannot be used.
        """

    @abstractmethod
    def batches(self, pictures: Sequence[Picture]) -> Iterator[tuple[IntArray, Pixels]]:
        """Decode pictures in batches of `batch_size`, in their order.

        Pictures that the engine cannot decode are left out: their positions do not appear.

        Yields
        ------
        positions
            (B,) int64, host; ascending positions in `pictures`.
        pixels
            Their pixels, for `features`.
        """

    @abstractmethod
    def square(self, decoded: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Bring a picture (h, w, 3) uint8, RGB, that was decoded elsewhere to (side, side, 3) float32, host.

        `features` takes a stack of them too.
        """

    @abstractmethod
    def features(self, pixels: Pixels) -> Array:
        """Run the network on one batch: (B, d) float32, on the device; valid until the next call.

        Raises
        ------
        OutOfMemoryError
            When the device has no memory for a batch of this size.
        """

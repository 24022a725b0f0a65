"""The interface of an engine, which runs a network: pictures enter, features leave.

An engine knows a device (its `Backend`) and an extractor; it must not know a store, a manifest or a job. Another
engine is one more file here, named in `ENGINES` of this package, in the config, and by the backends on which it
computes. The extractors build TensorFlow networks: an engine that runs another kind of network builds it from
`Extractor.network`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from gpu_cluster.backend import Array, Backend, IntArray
from gpu_cluster.config import PixelsConfig, Precision
from gpu_cluster.embedding.extractors import Extractor, Joined
from gpu_cluster.errors import ConfigError
from gpu_cluster.images.source import Picture

# Pictures (B, side, side, 3) float32, RGB, 0 to 255, as an array or tensor type that the engine can read.
Pixels: TypeAlias = Any


class OutOfMemoryError(Exception):
    """The memory of the device is too small for a batch; a smaller batch may fit."""


# How the packages are installed that a job needs on the CPU.
EXTRA = "from a checkout, pip install '.[cpu]'"


@dataclass(frozen=True)
class Installation:
    """What is installed of an engine, in words; `remedy` says what to do, and is empty if it can be used."""

    found: str
    remedy: str = ""


class Engine(ABC):
    """Runs one extractor on one device. It is created before work starts and loads its libraries only in `build`.

    Attributes
    ----------
    name : name of the engine
    extractor : what it runs; engines other than `JoinedEngine` run a single network
    config : how pictures become squares; its side is that of the extractor, if this has one of its own
    reason : why this engine was chosen, in words
    batch_size : pictures that go through the network together; it is halved when the memory runs out
    """

    name: str
    reason: str = "asked for"
    extractor: Extractor | Joined

    def __init__(self, backend: Backend, extractor: Extractor, config: PixelsConfig) -> None:
        """Set the extractor that the engine runs and the device that it runs on.

        Raises
        ------
        ConfigError
            When the device does not compute in the precision asked for.
        """
        self.backend = backend
        self.extractor = extractor
        self.config = config if extractor.side is None else config.model_copy(update={"image_size": extractor.side})
        if config.precision is not None and config.precision not in backend.precisions:
            known = ", ".join(backend.precisions)
            raise ConfigError(f"--precision: the {backend.name} computes in {known}; found {config.precision!r}")
        self.precision: Precision = config.precision or backend.precisions[0]
        self.batch_size = 0

    @property
    def parts(self) -> tuple[Engine, ...]:
        """The engines of the parts, if it joins several; else itself. The store keeps what each part gives apart."""
        return (self,)

    def some(self, _positions: Sequence[int]) -> Engine:
        """Return an engine for some of its parts, given by their positions; it may be this one."""
        return self

    @classmethod
    def installation(cls) -> Installation:
        """Look for the libraries that it runs on, without loading them."""
        return Installation("needs nothing")

    @classmethod
    def why_not(cls, extractor: Extractor) -> str | None:
        """Return in words why it cannot run an extractor, or None if it can."""
        return None

    @property
    @abstractmethod
    def identity(self) -> str:
        """Text that differs between engines whose numbers may differ: name, version, kind of device."""

    @classmethod
    def identity_of(cls, versions: Mapping[str, str], device: str) -> str:
        """Return the identity of the engine with such versions of its libraries on such a kind of device."""
        return f"{cls.name} {versions[cls.name]} {device}"

    @property
    def n_features(self) -> int:
        """How many numbers describe one picture."""
        return self.extractor.n_features

    @property
    def key(self) -> dict[str, Any]:
        """Everything that an embedding depends on, except the content of its file."""
        return {
            **self.extractor.key,
            "n_features": self.extractor.n_features,
            "image_size": self.config.side,
            "fit": self.config.fit,
            "resize": self.config.resize,
            "decode": self.config.decoding,
            "engine": self.identity,
            "precision": self.precision,
        }

    @abstractmethod
    def versions(self) -> Mapping[str, str]:
        """Return the versions of the libraries that the engine runs on, without loading them."""

    @abstractmethod
    def build(self) -> None:
        """Load the libraries, build the network and set `batch_size`; do nothing if the network is already built.

        Raises
        ------
        ConfigError
            When the libraries are already loaded with settings that cannot be used.
        DeviceError
            When they cannot compute on the device.
        """

    def batches(self, pictures: Sequence[Picture]) -> Iterator[tuple[IntArray, Pixels]]:
        """Decode pictures as `squares` does, for this engine's own config.

        Yields
        ------
        positions
            (B,) int64, host; ascending positions in `pictures`.
        pixels
            Their pixels, for `features`.
        """
        for positions, (pixels,) in self.squares(pictures, [self.config]):
            yield positions, pixels

    @abstractmethod
    def squares(
        self, pictures: Sequence[Picture], configs: Sequence[PixelsConfig]
    ) -> Iterator[tuple[IntArray, tuple[Pixels, ...]]]:
        """Decode pictures in their order, in batches of `batch_size`, each picture once for the squares of all configs.

        Pictures that the engine does not or cannot decode are left out: their positions do not appear. It must not
        try those that are not plain (see `images.decoders`), which could harm the job.

        Yields
        ------
        positions
            (B,) int64, host; ascending positions in `pictures`.
        squares
            Their pixels, for `features` of an engine with that config, one for each config.

        Raises
        ------
        MemoryError
            When there is no memory for the next batch.
        """

    @abstractmethod
    def square(self, decoded: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Resize a picture (h, w, 3) uint8, RGB, that was decoded elsewhere, to (side, side, 3) float32, host.

        `stack` makes of several such pictures what `features` accepts. An engine that joins others has none of its own.

        Raises
        ------
        OutOfMemoryError
            When there is no memory for it.
        """

    def stack(self, squares: Sequence[tuple[npt.NDArray[np.float32], ...]]) -> Pixels:
        """Return pictures of which each part has a square, as pixels for `features`."""
        return np.stack([one for (one,) in squares])

    @abstractmethod
    def features(self, pixels: Pixels) -> Array:
        """Run the network on one batch: (B, d) float32, on the device; valid until the next call.

        Raises
        ------
        OutOfMemoryError
            When the memory of the device is too small for a batch of this size.
        """

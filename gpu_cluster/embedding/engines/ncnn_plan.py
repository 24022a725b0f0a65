"""What the engine ncnn asks of a network: how ncnn reads it, and what is done before and after it.

Input: the checked weights of a network. Output: ncnn's text and bytes of it, the planes that enter it, and the numbers
that its feature maps become. Nothing here loads ncnn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from gpu_cluster.errors import WeightsError

Floats: TypeAlias = npt.NDArray[np.float32]

# Takes the name of a layer and returns its feature maps (channels, height, width) for one picture.
MapsOf: TypeAlias = Callable[[str], Floats]

# The number at the beginning of every network that is written as text.
_MAGIC = 7767517
# Four bytes before the weights of a layer: they are float32.
_FLOAT32_TAG = bytes(4)


class Plan(ABC):
    """A network for ncnn. Plans whose built networks are the same are equal.

    Attributes
    ----------
    name : name of the network
    weights_bytes : memory that ncnn takes for the weights, measured, rounded up
    bytes_a_pixel : memory that ncnn takes for each picture in work, measured, rounded up
    """

    name: ClassVar[str]
    weights_bytes: ClassVar[int]
    bytes_a_pixel: ClassVar[int]

    @abstractmethod
    def text(self) -> str:
        """Return the layers as ncnn's text; the input is called `data`."""

    @abstractmethod
    def content(self) -> bytes:
        """Return the weights as ncnn reads them.

        Raises
        ------
        WeightsError
            When they are not complete.
        """

    @abstractmethod
    def planes(self, pixels: Floats) -> Floats:
        """Return the input (3, side, side) for a picture (side, side, 3), RGB, 0 to 255."""

    @abstractmethod
    def features(self, maps_of: MapsOf) -> Floats:
        """Return the features (d,) of one picture; maps must be asked for in the order of the layers."""


def as_text(lines: Sequence[str]) -> str:
    """Return the text of a network: a line a layer, with its type, its name, the numbers of what it reads and makes."""
    n_made = sum(int(line.split()[3]) for line in lines)
    return "\n".join([str(_MAGIC), f"{len(lines)} {n_made}", *lines, ""])


def as_content(name: str, layers: Iterable[tuple[Floats, Floats]], shapes: Iterable[tuple[int, ...]]) -> bytes:
    """Return the weights of convolutions: for each one a tag, the kernel (out, in, height, width), and the bias.

    Parameters
    ----------
    name
        The name of the network.
    layers
        Kernel and bias of each convolution.
    shapes
        The shapes that the network has for the kernels; the length of a bias is the first number.

    Raises
    ------
    WeightsError
        When the weights are not as many bytes as the network reads: ncnn is given no length, and would read what lies
        behind them in memory.
    """
    parts = []
    for arrays in layers:
        parts += [_FLOAT32_TAG, *(np.ascontiguousarray(array, np.float32).tobytes() for array in arrays)]
    content = b"".join(parts)
    expected = sum(len(_FLOAT32_TAG) + 4 * (int(np.prod(shape)) + shape[0]) for shape in shapes)
    if len(content) != expected:
        raise WeightsError(
            f"the weights for ncnn are {len(content):,} bytes, and {name} has {expected:,}: the weights in memory "
            "are not those of the file; run the same command again"
        )
    return content


def generalised_mean(maps: Floats) -> Floats:
    """Return the cube root of the mean of the cubes (Radenovic, Tolias and Chum 2018, with their p = 3)."""
    found: Floats = np.cbrt((maps * maps * maps).mean(axis=(1, 2)))
    return found

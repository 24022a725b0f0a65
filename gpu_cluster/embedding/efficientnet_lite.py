"""The network EfficientNet-Lite2 without its classifier: its weights, its layers and the pooling of its feature maps.

Input: a weights file, then batches of pictures. Output: 1,280 numbers, 0 or above, for each picture. This module must
not know where pictures come from.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_cluster.bounded import MIB, UnfitError, identity, read, read_npz
from gpu_cluster.config import Precision, shipped_data
from gpu_cluster.embedding.vgg16 import generalised_mean
from gpu_cluster.embedding.weights_file import FloatArray
from gpu_cluster.errors import WeightsError
from gpu_cluster.files import printable

if TYPE_CHECKING:
    import tensorflow as tf

# sha256 of data/weights/efficientnet_lite2_imagenet.npz, see ATTRIBUTION.md beside it.
SHA256 = "8efb59af9b23b45431c824ec69b89e078553c2c0cf24443c98a306050f6cb65d"

# The side of the pictures with which the network was trained, and how many numbers it gives for a picture.
SIDE, N_FEATURES = 260, 1280

# What the values of the pixels become before the first layer: (value - _MEAN) / _SPREAD.
MEAN, SPREAD = 127.0, 128.0

_NAME = "efficientnet_lite2_imagenet.npz"
_N_CLASSES = 1000
_MOST_BYTES = 64 * MIB
_MOST_SHOWN = 500
_EXPECTED = "a NumPy .npz file with EfficientNet-Lite2's 322 arrays under PyTorch's names"

# The channels after the first layer, and of each group of blocks: repeats, side of the depthwise kernel, stride of the
# first block, expansion, channels. Tan and Le 2019, table 1, with widths times 1.1 (to a multiple of 8) and repeats
# times 1.2 (rounded up); as in all networks called Lite, the first layer, the last one and the repeats of the first and
# the last group are not scaled.
_STEM = 32
_GROUPS = (
    (1, 3, 1, 1, 16),
    (3, 3, 2, 6, 24),
    (3, 5, 2, 6, 48),
    (4, 3, 2, 6, 88),
    (4, 5, 1, 6, 120),
    (5, 5, 2, 6, 208),
    (1, 3, 1, 6, 352),
)

# What batch normalisation adds to each variance.
_EPSILON = 1e-3


@dataclass(frozen=True)
class Layer:
    """A convolution with a bias, which holds the batch normalisation that follows it.

    Its input is the output of the layer before it; it is padded as TensorFlow's "SAME" says, with more on the right and
    at the bottom where the padding is odd.

    Attributes
    ----------
    name : name of its kernel in the file, without `.weight`
    norm : name of the batch normalisation in the file
    shape : of the kernel: (height, width, in, out), or (height, width, channels, 1) if it is depthwise
    stride : step of the kernel
    has_relu6 : whether its output is limited to 0..6
    adds : the layer whose output is added to this one's, after it; None if there is none
    """

    name: str
    norm: str
    shape: tuple[int, int, int, int]
    stride: int = 1
    is_depthwise: bool = False
    has_relu6: bool = True
    adds: str | None = None

    @property
    def channels(self) -> int:
        """How many maps it gives."""
        return self.shape[2] if self.is_depthwise else self.shape[3]


def _layers() -> Iterator[Layer]:
    yield Layer("_conv_stem", "_bn0", (3, 3, 3, _STEM), stride=2)
    block, channels, below = 0, _STEM, "_conv_stem"
    for repeats, side, stride, expansion, filters in _GROUPS:
        for repeat in range(repeats):
            at, step, inner = f"_blocks.{block}", stride if repeat == 0 else 1, channels * expansion
            if expansion != 1:
                yield Layer(f"{at}._expand_conv", f"{at}._bn0", (1, 1, channels, inner))
            yield Layer(f"{at}._depthwise_conv", f"{at}._bn1", (side, side, inner, 1), stride=step, is_depthwise=True)
            yield Layer(
                f"{at}._project_conv",
                f"{at}._bn2",
                (1, 1, inner, filters),
                has_relu6=False,
                adds=below if step == 1 and channels == filters else None,
            )
            block, channels, below = block + 1, filters, f"{at}._project_conv"
    yield Layer("_conv_head", "_bn1", (1, 1, channels, N_FEATURES))


# The layers in their order.
LAYERS: tuple[Layer, ...] = tuple(_layers())


@dataclass(frozen=True)
class Weights:
    """Checked weights: kernel and bias by layer name, the file that they came from and its sha256."""

    path: Path
    sha256: str
    layers: Mapping[str, tuple[FloatArray, FloatArray]] = field(compare=False)


@dataclass(frozen=True)
class Network:
    """EfficientNet-Lite2, for engines that build the network themselves."""

    weights: Weights


def find_weights(named: Path | None = None) -> Weights:
    """Read and check the weights: the named file, else the shipped one.

    The file is read once, and the sha256 is that of the bytes from which the values come. Nothing in it is run. A
    process reads the shipped file once, as long as it is not changed.

    Memory: the size of the file, three times.

    Raises
    ------
    WeightsError
        When there is no file, it cannot be read, or it does not hold exactly the arrays of this network, float32, not
        compressed and finite; or when it should be the shipped file and is not.
    """
    if named is not None:
        return _read(named, is_shipped=False)
    path = shipped_data() / "weights" / _NAME
    return _shipped(path, identity(path))


# As of VGG16 (see there).
@functools.lru_cache(maxsize=1)
def _shipped(path: Path, _identity: tuple[int, ...] | None) -> Weights:
    return _read(path, is_shipped=True)


def _read(path: Path, *, is_shipped: bool) -> Weights:
    where = f"the weights {printable(str(path))!r}"
    if not os.path.exists(path):
        raise WeightsError(
            f"no EfficientNet-Lite2 weights found; looked for {printable(str(path))!r}; "
            + ("install gpu-cluster again" if is_shipped else f"name {_EXPECTED}, or none for the shipped ones")
        )
    try:
        content = read(path, _MOST_BYTES)
    except (OSError, UnfitError) as error:
        raise WeightsError(
            f"cannot read {where}: expected {_EXPECTED} (24.7 MB), found {getattr(error, 'strerror', None) or error}"
        ) from error
    sha256 = hashlib.sha256(content).hexdigest()
    if is_shipped and sha256 != SHA256:
        raise WeightsError(
            f"{where} that come with gpu-cluster are damaged: expected sha256 {SHA256}, found {sha256}; "
            "install it again"
        )
    try:
        layers = _folded(read_npz(content, _array_shapes()))
    # What zipfile and NumPy raise for damaged files is of many types.
    except Exception as error:
        what = "" if type(error) is ValueError else f"{type(error).__name__} "
        why = " ".join(f"{what}{error}".split())[:_MOST_SHOWN]
        raise WeightsError(
            f"cannot read {where}: expected {_EXPECTED} (24.7 MB), found {len(content):,} bytes that are damaged or "
            f"another network ({why}); copy the file again, or name none to use the shipped ones"
        ) from error
    return Weights(path=path, sha256=sha256, layers=layers)


def _array_shapes() -> dict[str, tuple[int, ...]]:
    """Return the shape of each array in the file: kernels are (out, in, height, width), depthwise (out, 1, ...)."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in LAYERS:
        height, width, first, last = layer.shape
        shapes[f"{layer.name}.weight"] = (layer.channels, last if layer.is_depthwise else first, height, width)
        shapes |= {f"{layer.norm}.{part}": (layer.channels,) for part in _NORM}
    return shapes | {"_fc.weight": (_N_CLASSES, N_FEATURES), "_fc.bias": (_N_CLASSES,)}


# The arrays of a batch normalisation.
_NORM = ("weight", "bias", "running_mean", "running_var")


def _folded(arrays: Mapping[str, Any]) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Return kernel and bias of each layer, the batch normalisation folded into them in float64.

    scale x (kernel * input - mean) + shift is a convolution with scale x kernel, and the bias shift - scale x mean.
    """
    layers = {}
    for layer in LAYERS:
        weight, shift, mean, variance = (arrays[f"{layer.norm}.{part}"].astype(np.float64) for part in _NORM)
        # Values that are not finite, before or after, are found below.
        with np.errstate(all="ignore"):
            scale = weight / np.sqrt(variance + _EPSILON)
            kernel = (arrays[f"{layer.name}.weight"] * scale[:, None, None, None]).astype(np.float32)
            bias = (shift - mean * scale).astype(np.float32)
        if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
            raise ValueError(f"{layer.name} or {layer.norm} hold values that are not finite, or variances below 0")
        ordered = kernel.transpose((2, 3, 0, 1) if layer.is_depthwise else (2, 3, 1, 0))
        layers[layer.name] = np.ascontiguousarray(ordered), bias
    return layers


def build(weights: Weights, image_size: int, precision: Precision) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return the compiled network: pictures (B, side, side, 3) float32 RGB 0..255 -> (B, 1280) float32.

    The feature maps of the last layer are pooled to their generalised means; the rows are not scaled. The weights lie
    on the device that `tf.device` sets.
    """
    import tensorflow as tf

    # This setting belongs to the process; another network may have changed it since this one was built.
    tf.config.experimental.enable_tensor_float_32_execution(precision == "tf32")
    return _built(weights, image_size, precision, tf.zeros(()).device)


# Without this cache, a process that embeds several times would build and trace the network every time. The device is
# part of the key, because a network whose weights lie on another device would copy them for each batch.
@functools.lru_cache(maxsize=1)
def _built(weights: Weights, image_size: int, precision: Precision, _device: str) -> Callable[[tf.Tensor], tf.Tensor]:
    import tensorflow as tf

    dtype = tf.float16 if precision == "float16" else tf.float32
    on_device = {name: tuple(tf.constant(array, dtype) for array in arrays) for name, arrays in weights.layers.items()}

    # With one signature for every batch size, the last batch, which is smaller, is not traced again.
    @tf.function(input_signature=[tf.TensorSpec((None, image_size, image_size, 3), tf.float32)], autograph=False)  # type: ignore[untyped-decorator]
    def network(pictures: tf.Tensor) -> Any:
        maps = tf.cast((pictures - MEAN) / SPREAD, dtype)
        outputs: dict[str, tf.Tensor] = {}
        for layer in LAYERS:
            maps = _apply(layer, maps, *on_device[layer.name])
            if layer.adds is not None:
                maps += outputs[layer.adds]
            outputs[layer.name] = maps
        # The sum of a map exceeds float16's range.
        return generalised_mean(tf.cast(maps, tf.float32))

    return network  # type: ignore[no-any-return]


def _apply(layer: Layer, maps: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> Any:
    """Return the maps (B, height, width, channels) that a layer makes, without what it adds."""
    import tensorflow as tf

    if layer.is_depthwise:
        made = tf.nn.depthwise_conv2d(maps, kernel, (1, layer.stride, layer.stride, 1), "SAME")
    else:
        made = tf.nn.conv2d(maps, kernel, layer.stride, "SAME")
    made = tf.nn.bias_add(made, bias)
    return tf.nn.relu6(made) if layer.has_relu6 else made

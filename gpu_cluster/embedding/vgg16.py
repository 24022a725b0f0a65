"""The network VGG16 without its top: its weights, its preprocessing and the poolings of its feature maps.

Input: a weights file, then batches of pictures. Output: 512 or more numbers for each picture. This module must not know
where pictures come from.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_cluster.bounded import MIB, UnfitError, identity, read
from gpu_cluster.config import Pooling, Precision, shipped_data
from gpu_cluster.embedding.weights_file import (
    DamagedError,
    FloatArray,
    NotThisNetworkError,
    read_apart,
    read_layers,
)
from gpu_cluster.errors import ConfigError, WeightsError
from gpu_cluster.files import printable

if TYPE_CHECKING:
    import tensorflow as tf

# Channels and number of the convolutions in each block: Simonyan and Zisserman 2014, table 1, configuration D.
_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))

# sha256 of data/weights/vgg16_imagenet_notop.weights.h5, see ATTRIBUTION.md beside it.
IMAGENET_SHA256 = "fb89143d3099f24bcdedff8daaeb352a3d058596e0921b31a11843f273e4ece6"

_LEGACY_NAME = "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"

# The largest file that is read: VGG16's weights with its top have 553 MB, and the error that they get names what is
# too much in them.
_MOST_BYTES = 640 * MIB
_EXPECTED = "an HDF5 file with VGG16's 13 convolutions as Keras saves them"


def _layer_shapes() -> dict[str, tuple[int, int, int, int]]:
    shapes = {}
    channels = 3
    for block, (filters, depth) in enumerate(_BLOCKS, start=1):
        for layer in range(1, depth + 1):
            shapes[f"block{block}_conv{layer}"] = (3, 3, channels, filters)
            channels = filters
    return shapes


# Kernel shape (height, width, in, out) of each convolution, in the order of the network.
LAYER_SHAPES: Mapping[str, tuple[int, int, int, int]] = _layer_shapes()


@dataclass(frozen=True)
class Weights:
    """Checked weights: kernel and bias by layer name, the file that they came from and its sha256."""

    path: Path
    sha256: str
    layers: Mapping[str, tuple[FloatArray, FloatArray]] = field(compare=False)


@dataclass(frozen=True)
class Network:
    """VGG16 with a pooling, for engines that build the network themselves."""

    weights: Weights
    pooling: Pooling


def find_weights(named: Path | None = None) -> Weights:
    """Read and check the weights: the named file, else the shipped one, else the one that Keras downloaded.

    A process reads the shipped file once, as long as it is not changed.

    Raises
    ------
    WeightsError
        When there is no file, it is damaged, or it holds another network. A wrong file is always an error: the next
        place is only tried if the file does not exist.
    """
    shipped = shipped_data() / "weights" / "vgg16_imagenet_notop.weights.h5"
    places = [named] if named is not None else [shipped, downloaded(_LEGACY_NAME)]
    path = next((place for place in places if os.path.isfile(place)), None)
    if path is None:
        looked = ", ".join(repr(str(place)) for place in places)
        raise WeightsError(
            f"no VGG16 weights found; looked for {looked}; give a file with --weights (Keras 3 .weights.h5, or the "
            f"legacy {_LEGACY_NAME})"
        )
    return _shipped(path, identity(path)) if path == shipped else read_weights(path)


# Without this cache, a process that embeds several times would read and check the same 59 MB every time. It adds
# nothing to the memory of a job, which has them until its end.
@functools.lru_cache(maxsize=1)
def _shipped(path: Path, _identity: tuple[int, ...] | None) -> Weights:
    return read_weights(path, is_shipped=True)


def downloaded(name: str) -> Path:
    """Return the path at which Keras saves a weights file that it downloads."""
    # Without HOME and for a user unknown to the system, the tilde is not expanded; then no file is found there.
    home = os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")
    return Path(home) / "models" / name


def read_weights(path: Path, *, is_shipped: bool = False) -> Weights:
    """Read a Keras 3 `.weights.h5` or a legacy `.h5` and check every layer's name, shapes and values.

    The file is read once, and the sha256 is that of the bytes from which the values come. Only the bytes of the shipped
    file are given to HDF5 in this process; others are read in a process of their own (see `weights_file`).

    Memory: the size of the file, twice.

    Raises
    ------
    WeightsError
        When the file cannot be read, does not hold exactly VGG16's 13 convolutions, all finite, or holds links to other
        places or compressed values; or when it should be the shipped file and is not.
    """
    where = f"the weights {printable(str(path))!r}"
    try:
        content = read(path, _MOST_BYTES)
    except (OSError, UnfitError) as error:
        raise WeightsError(
            f"cannot read {where}: expected {_EXPECTED} (58.9 MB), found {getattr(error, 'strerror', None) or error}"
        ) from error
    sha256 = hashlib.sha256(content).hexdigest()
    if is_shipped and sha256 != IMAGENET_SHA256:
        raise WeightsError(
            f"{where} that come with gpu-cluster are damaged: expected sha256 {IMAGENET_SHA256}, found {sha256}; "
            "install it again"
        )
    try:
        layers = (read_layers if sha256 == IMAGENET_SHA256 else read_apart)(content, LAYER_SHAPES)
    except NotThisNetworkError as error:
        raise WeightsError(f"{where} are not VGG16's without its top: {error}") from error
    except DamagedError as error:
        raise WeightsError(
            f"cannot read {where}: expected {_EXPECTED} (58.9 MB), found {len(content):,} bytes that are damaged or "
            f"another format ({error}); copy the file again, or leave out --weights to use the shipped ones"
        ) from error
    return Weights(path=path, sha256=sha256, layers=layers)


def check_keras() -> None:
    """Check that Keras computes with TensorFlow, if this process has loaded it already.

    Raises
    ------
    ConfigError
        When this process has loaded Keras with another backend.
    """
    if "keras" not in sys.modules:
        return
    import keras

    if keras.config.backend() != "tensorflow":
        raise ConfigError(
            f"Keras is already loaded with the {keras.config.backend()} backend; set KERAS_BACKEND=tensorflow before"
        )


def count_features(pooling: Pooling, image_size: int) -> int:
    """Return how many numbers the embedding of a picture of this side has."""
    channels = _BLOCKS[-1][0]
    if pooling == "gem-4-5":
        return _BLOCKS[-2][0] + channels
    # Each block halves the side.
    return channels * (image_size >> len(_BLOCKS)) ** 2 if pooling == "flatten" else channels


def build(
    weights: Weights, image_size: int, precision: Precision, pooling: Pooling
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return the compiled network: pictures (B, side, side, 3) float32 RGB 0..255 -> (B, `count_features`) float32.

    Its weights lie on the device that `tf.device` sets. Channels are last on every device; TensorFlow's optimiser may
    change this inside the network (docs/gpu.md).
    """
    import tensorflow as tf

    # This setting belongs to the process; another network may have changed it since this one was built.
    tf.config.experimental.enable_tensor_float_32_execution(precision == "tf32")
    return _built(weights, image_size, precision, pooling, tf.zeros(()).device)


# Without this cache, a process that embeds several times would build and trace the network every time. The device is
# part of the key, because a network whose weights lie on another device would copy them for each batch.
@functools.lru_cache(maxsize=1)
def _built(
    weights: Weights, image_size: int, precision: Precision, pooling: Pooling, _device: str
) -> Callable[[tf.Tensor], tf.Tensor]:
    import keras
    import tensorflow as tf

    with settings_for(precision):
        model = keras.applications.VGG16(include_top=False, weights=None, input_shape=(image_size, image_size, 3))
    blocks = keras.Model(model.input, [model.get_layer("block4_pool").output, model.output])
    for name, (kernel, bias) in weights.layers.items():
        model.get_layer(name).set_weights([kernel, bias])

    # With one signature for every batch size, the last batch, which is smaller, is not traced again.
    @tf.function(input_signature=[tf.TensorSpec((None, image_size, image_size, 3), tf.float32)], autograph=False)  # type: ignore[untyped-decorator]
    def network(pictures: tf.Tensor) -> Any:
        block4, block5 = blocks(
            keras.applications.vgg16.preprocess_input(pictures, data_format="channels_last"), training=False
        )
        # The cast comes before pooling, because the sum of a map and the cubes of its values exceed float16's range.
        return _pool(tf.cast(block4, tf.float32), tf.cast(block5, tf.float32), pooling)

    return network  # type: ignore[no-any-return]


def _pool(block4: tf.Tensor, block5: tf.Tensor, pooling: Pooling) -> Any:
    """Pool feature maps (B, height, width, channels) whose values are all 0 or above."""
    import tensorflow as tf

    if pooling == "average":
        return tf.reduce_mean(block5, (1, 2))
    if pooling == "max":
        return tf.reduce_max(block5, (1, 2))
    if pooling == "flatten":
        return tf.reshape(block5, (-1, np.prod(block5.shape[1:])))
    if pooling == "gem":
        return generalised_mean(block5)
    return tf.concat([tf.math.l2_normalize(generalised_mean(maps), axis=1) for maps in (block4, block5)], axis=1)


def generalised_mean(maps: tf.Tensor) -> Any:
    """Return the cube root of the mean of the cubes (Radenovic, Tolias and Chum 2018, with their p = 3)."""
    import tensorflow as tf

    return tf.pow(tf.reduce_mean(maps * maps * maps, (1, 2)), 1 / 3)


@contextmanager
def settings_for(precision: Precision) -> Iterator[None]:
    """Set what Keras needs inside the block; the settings in the user's keras.json would change the numbers.

    The TensorFloat-32 setting stays after the block; the others are restored.
    """
    import keras
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(precision == "tf32")
    policy, floatx, layout = keras.config.dtype_policy(), keras.config.floatx(), keras.config.image_data_format()
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("mixed_float16" if precision == "float16" else "float32")
    keras.config.set_image_data_format("channels_last")
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)
        keras.config.set_image_data_format(layout)

"""The features that describe a picture: VGG16 with several poolings, other networks, and features without a network.

Input: batches of pictures (B, side, side, 3) float32 RGB 0..255. Output: one row of numbers for each picture; only the
networks marked `below_0` give numbers below 0. This module must not know where pictures come from or what becomes of
the numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_cluster.config import EmbedConfig, Precision
from gpu_cluster.embedding import efficientnet_lite, vgg16
from gpu_cluster.errors import WeightsError

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True)
class Extractor:
    """Turns pictures into numbers.

    Attributes
    ----------
    key : everything that the numbers depend on, except the picture and the engine that computes them
    n_features : how many numbers describe one picture
    build : takes a precision and returns a function from (B, side, side, 3) to (B, n_features) float32; needs
        TensorFlow to be loaded
    network : what other engines build the same network from; None for features that only TensorFlow computes
    side : side of the square of pixels that it reads, if that is its own and not the one of the config
    weights : the file of its weights; None if it has none
    """

    key: Mapping[str, Any]
    n_features: int
    build: Callable[[Precision], Callable[[tf.Tensor], tf.Tensor]]
    network: vgg16.Network | efficientnet_lite.Network | None = None
    side: int | None = None
    weights: Path | None = None

    @property
    def parts(self) -> tuple[Extractor, ...]:
        """Itself, as the only part."""
        return (self,)

    @property
    def shares(self) -> tuple[float, ...]:
        """The weight of the only part."""
        return (1.0,)

    def some(self, _positions: Sequence[int]) -> Extractor:
        """Return some of its parts, given by their positions: itself."""
        return self


@dataclass(frozen=True)
class Joined:
    """Several extractors whose features lie side by side, each scaled to unit length and then by its weight.

    Attributes
    ----------
    parts : what gives the features of each part
    shares : the weight of each part, above 0
    """

    parts: tuple[Extractor, ...]
    shares: tuple[float, ...]

    @property
    def key(self) -> dict[str, Any]:
        """Everything that the numbers depend on, except the picture and the engine that computes them."""
        of_parts = zip(self.parts, self.shares, strict=True)
        return {"joined": [{**part.key, "weight": share} for part, share in of_parts]}

    @property
    def n_features(self) -> int:
        """How many numbers describe one picture."""
        return sum(part.n_features for part in self.parts)

    def some(self, positions: Sequence[int]) -> Extractor | Joined:
        """Return some of its parts, given by their positions; one alone is not joined."""
        if len(positions) == 1:
            return self.parts[positions[0]]
        return Joined(tuple(self.parts[at] for at in positions), tuple(self.shares[at] for at in positions))


def name_of(features: Extractor | Joined) -> str:
    """Return in words what gives the features."""
    if isinstance(features, Joined):
        return " and ".join(map(name_of, features.parts))
    return str(features.key.get("backbone") or features.key.get("features"))


def of_vgg16(weights: vgg16.Weights, config: EmbedConfig) -> Extractor:
    """Return VGG16 with the pooling that the config names."""
    return Extractor(
        key={"backbone": "VGG16", "weights": weights.sha256, "pooling": config.pooling},
        n_features=vgg16.count_features(config.pooling, config.side),
        build=lambda precision: vgg16.build(weights, config.side, precision, config.pooling),
        network=vgg16.Network(weights, config.pooling),
        weights=weights.path,
    )


def of_efficientnet_lite2(weights: efficientnet_lite.Weights, image_size: int) -> Extractor:
    """Return EfficientNet-Lite2 with generalised means."""
    return Extractor(
        key={"backbone": "EfficientNet-Lite2", "weights": weights.sha256, "pooling": "gem"},
        n_features=efficientnet_lite.N_FEATURES,
        build=lambda precision: efficientnet_lite.build(weights, image_size, precision),
        network=efficientnet_lite.Network(weights),
        side=image_size,
        weights=weights.path,
    )


# Numbers of bins for hue, saturation and value.
_COLOUR_BINS = (16, 4, 4)


def colour_histogram() -> Extractor:
    """Return the colour histogram: the shares of a picture's pixels in 16 x 4 x 4 bins of hue, saturation and value."""
    return Extractor(
        key={"features": "colour histogram", "bins": list(_COLOUR_BINS)},
        n_features=int(np.prod(_COLOUR_BINS)),
        build=lambda _precision: _count_colours,
    )


def _count_colours(pictures: tf.Tensor) -> Any:
    import tensorflow as tf

    n_bins = int(np.prod(_COLOUR_BINS))
    scaled = tf.cast(tf.image.rgb_to_hsv(pictures / 255) * _COLOUR_BINS, tf.int32)
    hue, saturation, value = tf.unstack(tf.minimum(scaled, np.subtract(_COLOUR_BINS, 1)), axis=-1)
    bins = (hue * _COLOUR_BINS[1] + saturation) * _COLOUR_BINS[2] + value
    flat = tf.reshape(bins, (-1, np.prod(pictures.shape[1:3])))
    counts = tf.math.bincount(flat, minlength=n_bins, maxlength=n_bins, axis=-1)
    return tf.cast(counts, tf.float32) / flat.shape[1]


# 9 orientations and blocks of 2 x 2 cells as in Dalal and Triggs 2005; the cells are larger than theirs, because the
# features describe a whole picture.
_ORIENTATIONS, _CELL, _BLOCK = 9, 16, 2


def oriented_gradients(image_size: int) -> Extractor:
    """Return histograms of oriented gradients (HOG; Dalal and Triggs 2005) in cells of 16 x 16 pixels."""
    blocks = image_size // _CELL - _BLOCK + 1
    return Extractor(
        key={
            "features": "histograms of oriented gradients",
            "parameters": [_ORIENTATIONS, _CELL, _BLOCK],
            "scikit-image": version("scikit-image"),
        },
        n_features=blocks * blocks * _BLOCK * _BLOCK * _ORIENTATIONS,
        build=lambda _precision: _count_gradients,
    )


def _count_gradients(pictures: tf.Tensor) -> Any:
    import tensorflow as tf
    from skimage.feature import hog

    rows = [
        hog(
            picture,
            orientations=_ORIENTATIONS,
            pixels_per_cell=(_CELL, _CELL),
            cells_per_block=(_BLOCK, _BLOCK),
            channel_axis=-1,
        )
        for picture in pictures.numpy()
    ]
    return tf.constant(np.stack(rows), tf.float32)


@dataclass(frozen=True)
class _KerasModel:
    """A network of keras.applications: class, module, number of features, and the weights file that Keras downloads.

    The first version of EfficientNet is not among them: built with ImageNet's weights it has one layer more than built
    without, so weights loaded into it later would get pictures of another scale.
    """

    name: str
    module: str
    n_features: int
    file: str
    below_0: bool = False


KERAS_MODELS: Mapping[str, _KerasModel] = {
    "resnet50": _KerasModel("ResNet50", "resnet", 2048, "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"),
    "densenet121": _KerasModel(
        "DenseNet121", "densenet", 1024, "densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5"
    ),
    "mobilenetv2": _KerasModel(
        "MobileNetV2", "mobilenet_v2", 1280, "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5"
    ),
    "efficientnetv2b0": _KerasModel(
        "EfficientNetV2B0", "efficientnet_v2", 1280, "efficientnetv2-b0_notop.h5", below_0=True
    ),
    "convnexttiny": _KerasModel("ConvNeXtTiny", "convnext", 768, "convnext_tiny_notop.h5", below_0=True),
}


def keras_weights(name: str) -> Path:
    """Return the path at which Keras saves the ImageNet weights of a network that it downloads."""
    return vgg16.downloaded(KERAS_MODELS[name].file)


def of_keras(name: str, image_size: int) -> Extractor:
    """Return another network of keras.applications, without its top and with average pooling.

    Raises
    ------
    WeightsError
        When its weights are not on this machine; nothing is downloaded.
    """
    model, path = KERAS_MODELS[name], keras_weights(name)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(
            f"the weights of {model.name} are not on this machine: expected {str(path)!r} ({error.strerror}); Keras "
            f"downloads them: python -c 'import keras; keras.applications.{model.name}(include_top=False)'"
        ) from error
    return Extractor(
        key={"backbone": model.name, "weights": hashlib.sha256(content).hexdigest(), "pooling": "average"},
        n_features=model.n_features,
        build=lambda precision: _build_keras(model, path, image_size, precision),
        weights=path,
    )


def _build_keras(model: _KerasModel, path: Path, image_size: int, precision: Precision) -> Any:
    import keras
    import tensorflow as tf

    preprocess = import_module(f"keras.applications.{model.module}").preprocess_input
    with vgg16.settings_for(precision):
        network = getattr(keras.applications, model.name)(
            include_top=False, weights=None, pooling="avg", input_shape=(image_size, image_size, 3)
        )
    try:
        network.load_weights(path)
    except (OSError, ValueError, KeyError) as error:
        raise WeightsError(
            f"the weights {str(path)!r} are not those of {model.name} without its top: {' '.join(str(error).split())}"
        ) from error

    @tf.function(input_signature=[tf.TensorSpec((None, image_size, image_size, 3), tf.float32)], autograph=False)  # type: ignore[untyped-decorator]
    def extract(pictures: tf.Tensor) -> Any:
        return tf.cast(network(preprocess(pictures, data_format="channels_last"), training=False), tf.float32)

    return extract

"""Files -> tf.data batches of pictures.

Enters: paths. Leaves: float32 pictures (B, side, side, 3), RGB, 0 to 255, each with the index of its path, so that a
file that fails never shifts the others. Must not know the manifest or the network.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_cluster.config import EmbedConfig

if TYPE_CHECKING:
    import tensorflow as tf


def batches(paths: Sequence[Path], config: EmbedConfig, batch_size: int) -> tf.data.Dataset:
    """Return a dataset of (index (B,) int64, picture (B, side, side, 3) float32), in the order of `paths`.

    Files that TensorFlow cannot decode are left out: their indices do not appear.
    """
    import tensorflow as tf

    names = tf.constant([os.fsencode(path) for path in paths], dtype=tf.string)

    def read(index: tf.Tensor, name: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        content = tf.io.read_file(name)
        # TensorFlow takes the palette indices of a BMP for shades of grey; it gets the second look instead.
        tf.debugging.assert_none_equal(tf.strings.substr(content, 0, 2), b"BM")
        picture = tf.io.decode_image(content, channels=3, expand_animations=False)
        return index, to_square(picture, config)

    return (
        tf.data.Dataset.from_tensor_slices((tf.range(len(paths), dtype=tf.int64), names))
        .map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .ignore_errors()
        .batch(batch_size)
        .prefetch(tf.data.AUTOTUNE)
    )


def second_look(paths: Mapping[int, Path], config: EmbedConfig) -> tuple[dict[int, Any], dict[int, str]]:
    """Decode with Pillow what TensorFlow could not.

    Parameters
    ----------
    paths
        Path by index.

    Returns
    -------
    pictures
        (side, side, 3) float32 by index, of the files that Pillow can decode.
    bad
        Reason by index, of the others.
    """
    import tensorflow as tf

    pictures: dict[int, Any] = {}
    bad: dict[int, str] = {}
    for index, path in paths.items():
        try:
            picture = decode_with_pillow(path)
        # Pillow's decoders raise whatever a broken file makes them stumble over; none may end the job.
        except Exception as error:  # noqa: BLE001
            bad[index] = reason(path, error)
        else:
            pictures[index] = to_square(tf.constant(picture), config)
    return pictures, bad


def decode_with_pillow(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return a file's picture (h, w, 3) uint8, RGB."""
    from PIL import Image

    with Image.open(path) as image:
        if image.mode.startswith("I;16"):
            # Pillow would clip at 255; the high byte is what TensorFlow takes of a 16-bit PNG.
            grey = (np.asarray(image) >> 8).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        return np.asarray(image.convert("RGB"))


def reason(path: Path, error: Exception) -> str:
    """Say in plain words why a file could not be decoded."""
    from PIL import UnidentifiedImageError

    if isinstance(error, FileNotFoundError):
        return "the file is gone"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, UnidentifiedImageError):
        return "empty file" if path.stat().st_size == 0 else "not an image, or of an unknown format"
    return f"cannot be decoded: {str(error) or type(error).__name__}"


def to_square(picture: tf.Tensor, config: EmbedConfig) -> tf.Tensor:
    """Bring a picture (h, w, 3) uint8 to (side, side, 3) float32."""
    import tensorflow as tf

    shape = tf.shape(picture)
    height, width = shape[0], shape[1]
    if config.fit == "crop":
        short = tf.minimum(height, width)
        top, left = (height - short) // 2, (width - short) // 2
        picture = picture[top : top + short, left : left + short]
        height = width = short
    side = config.image_size
    if config.resize == "nearest":
        rows, columns = (_nearest(length, side) for length in (height, width))
        resized = tf.cast(tf.gather(tf.gather(picture, rows), columns, axis=1), tf.float32)
    else:
        resized = tf.image.resize(picture, (side, side), method="bilinear", antialias=True)
    return tf.ensure_shape(resized, (side, side, 3))


def _nearest(length: tf.Tensor, side: int) -> tf.Tensor:
    import tensorflow as tf

    return tf.numpy_function(lambda n: nearest_indices(int(n), side), [length], tf.int64)


def nearest_indices(length: int, side: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the source pixel of each of `side` pixels, as Pillow's nearest-neighbour resize takes it.

    Keras's `load_img` resizes with Pillow, which adds up its step in float64; where (i + 1/2) * length / side is a
    whole number the rounding of that sum decides. `tf.image.resize` takes other pixels: at 128 -> 224, 19% of them.
    """
    steps = np.full(side, length / side)
    steps[0] /= 2
    return np.minimum(np.cumsum(steps).astype(np.int64), length - 1)

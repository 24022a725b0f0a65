"""Files -> tf.data batches of pictures.

Enters: files that the scan found usable. Leaves: float32 pictures (B, side, side, 3), RGB, 0 to 255, upright, on white
where they are transparent; each with the index of its file, so that a file that fails never shifts the others. Must not
know the network.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_cluster.config import EmbedConfig
from gpu_cluster.images import decode
from gpu_cluster.results import FileFacts

if TYPE_CHECKING:
    import tensorflow as tf

# Part of the key of every embedding that is kept: to be counted up when a file's pixels come out otherwise than before.
VERSION = 2

_PILLOW, _JPEG, _PNG = range(3)


@dataclass(frozen=True, slots=True)
class Source:
    """A file to decode, and what its header said."""

    path: Path
    facts: FileFacts

    @property
    def decoder(self) -> int:
        """Which decoder gets the file's colours right; where several do, TensorFlow's, which are faster."""
        kind, mode = self.facts.format, self.facts.mode
        if kind in ("JPEG", "MPO") and mode in ("L", "RGB", "CMYK"):
            return _JPEG
        # TensorFlow 2.21 leaves grey and palettes of 1, 2 and 4 bits a pixel unscaled.
        return _PNG if kind == "PNG" and mode in ("LA", "RGB", "RGBA") else _PILLOW


def batches(sources: Sequence[Source], config: EmbedConfig, *, batch_size: int, shard_size: int) -> tf.data.Dataset:
    """Return a dataset of (index (B,) int64, picture (B, side, side, 3) float32), in the order of `sources`.

    No batch holds pictures of two shards, so that a shard comes out the same whichever was done before it. Files that
    cannot be decoded are left out: their indices do not appear.
    """
    import tensorflow as tf

    def shards() -> Iterator[tuple[np.ndarray, list[bytes], list[int], list[int]]]:
        for first in range(0, len(sources), shard_size):
            part = sources[first : first + shard_size]
            names = [os.fsencode(source.path) for source in part]
            orientations = [source.facts.orientation for source in part]
            yield first + np.arange(len(part)), names, orientations, [source.decoder for source in part]

    def read(index: tf.Tensor, name: tf.Tensor, orientation: tf.Tensor, decoder: tf.Tensor) -> tuple[Any, Any]:
        decoders = (lambda: _by_pillow(name), lambda: _jpeg(name, orientation), lambda: _png(name, orientation))
        return index, to_square(tf.switch_case(decoder, list(decoders)), config)

    def shard(*columns: tf.Tensor) -> tf.data.Dataset:
        files = tf.data.Dataset.from_tensor_slices(columns)
        decoded = files.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return decoded.ignore_errors().batch(batch_size)

    types = (tf.int64, tf.string, tf.int32, tf.int32)
    columns = tuple(tf.TensorSpec((None,), dtype) for dtype in types)
    return tf.data.Dataset.from_generator(shards, output_signature=columns).flat_map(shard).prefetch(2)


def second_look(paths: Mapping[int, Path], config: EmbedConfig) -> tuple[dict[int, Any], dict[int, str], set[int]]:
    """Decode with Pillow what the pipeline could not.

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
    passing
        Those of the bad whose reason may be over the next time, whatever their content.
    """
    import tensorflow as tf

    pictures: dict[int, Any] = {}
    bad: dict[int, str] = {}
    passing: set[int] = set()
    for index, path in paths.items():
        try:
            decoded = decode.decode(path)
        # Pillow's decoders raise whatever a broken file makes them stumble over; none may end the job.
        except Exception as error:  # noqa: BLE001
            bad[index] = decode.reason(_head(path), error)
            if decode.is_passing(error):
                passing.add(index)
        else:
            pictures[index] = to_square(tf.constant(decoded), config)
    return pictures, bad, passing


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(decode.HEAD_BYTES)
    except OSError:
        return b""


def _by_pillow(name: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    decoded = tf.numpy_function(lambda path: decode.decode(Path(os.fsdecode(path))), [name], tf.uint8)
    return tf.ensure_shape(decoded, (None, None, 3))


def _jpeg(name: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    # The accurate transform is the one that Pillow uses: both decoders then give the same pixels.
    decoded = tf.io.decode_jpeg(tf.io.read_file(name), channels=3, dct_method="INTEGER_ACCURATE")
    return _upright(decoded, orientation)


def _png(name: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    decoded = tf.io.decode_png(tf.io.read_file(name), channels=4)
    colours, alpha = decoded[..., :3], decoded[..., 3:]

    def on_white() -> tf.Tensor:
        opacity = tf.cast(alpha, tf.int32)
        return tf.cast((tf.cast(colours, tf.int32) * opacity + 255 * (255 - opacity) + 127) // 255, tf.uint8)

    return _upright(tf.cond(tf.reduce_all(tf.equal(alpha, 255)), lambda: colours, on_white), orientation)


def _upright(decoded: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turn a picture by its Exif orientation: 5 to 8 swap the axes first; then some are mirrored."""
    import tensorflow as tf

    def among(*orientations: int) -> tf.Tensor:
        return tf.reduce_any(tf.equal(orientation, orientations))

    swapped = tf.cond(among(5, 6, 7, 8), lambda: tf.transpose(decoded, (1, 0, 2)), lambda: decoded)
    mirrored = tf.cond(among(2, 3, 6, 7), lambda: tf.reverse(swapped, (1,)), lambda: swapped)
    return tf.cond(among(3, 4, 7, 8), lambda: tf.reverse(mirrored, (0,)), lambda: mirrored)


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

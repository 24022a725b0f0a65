"""Reads plain JPEGs and PNGs as tf.data batches of their pixels.

Input: pictures that the scan found usable. Output: float32 pixels (B, side, side, 3), RGB, 0 to 255, upright, with
transparent parts on white, one such tensor for each config that says how squares are made. Each picture comes with its
position, so that a picture that fails never shifts the others. This module must not know the network.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_cluster.backend.tensorflow_devices import CPU
from gpu_cluster.config import PixelsConfig
from gpu_cluster.images import decode, decoders, square
from gpu_cluster.images.source import Picture, Source
from gpu_cluster.manifest import FileFacts

if TYPE_CHECKING:
    import tensorflow as tf

_JPEG, _PNG = range(2)
# TensorFlow reads the ratio by which a JPEG is reduced when the function is traced, so each ratio is a branch of it.
_RATIOS = (1, 2, 4, 8)


def decoder_of(facts: FileFacts) -> int | None:
    """Return TensorFlow's decoder that gives the right colours for a picture; None if there is none.

    There is none either for a picture that is not plain: it is decoded in a process of its own (`images.decoders`).
    """
    kind, mode = facts.format, facts.mode
    if not decoders.is_plain(facts):
        return None
    if kind in decode.JPEG_FORMATS and mode in ("L", "RGB", "CMYK"):
        return _JPEG
    # TensorFlow 2.21 does not scale grey and palette PNGs of 1, 2 and 4 bits a pixel to 0..255.
    return _PNG if kind == "PNG" and mode in ("LA", "RGB", "RGBA") else None


def _branch(facts: FileFacts, config: PixelsConfig) -> int:
    """Return the number of the branch of `_reader` that decodes a picture which TensorFlow has a decoder for."""
    if decoder_of(facts) == _PNG:
        return len(_RATIOS)
    return _RATIOS.index(decode.reduction(facts.width or 0, facts.height or 0, square.at_least(config)))


def batches(
    pictures: Sequence[Picture], configs: Sequence[PixelsConfig], *, batch_size: int, device: str = CPU
) -> tf.data.Dataset | None:
    """Return a dataset of (position (B,) int64, pixels (B, side, side, 3) float32 for each config), in their order.

    If `device` is a card, one batch is copied to it ahead of time, while the network runs on the batch before.
    All pictures must have the same source. Those that TensorFlow has no decoder for and those that cannot be decoded
    are left out: their positions do not appear. Returns None if TensorFlow has a decoder for none of them.
    """
    import tensorflow as tf

    of_each = [picture.facts_with_scans() for picture in pictures]
    positions = [position for position, facts in enumerate(of_each) if decoder_of(facts) is not None]
    if not positions:
        return None
    taken = [pictures[position] for position in positions]
    source = taken[0].source
    paths = [source.local_path(picture.location) for picture in taken]
    columns = (
        np.array(positions),
        [b"" if path is not None else _packed(picture) for picture, path in zip(taken, paths, strict=True)],
        [os.fsencode(path or "") for path in paths],
        np.array([picture.facts.orientation for picture in taken], np.int32),
        np.array([[_branch(of_each[at], config) for config in configs] for at in positions], np.int32),
    )
    read = _reader(source, tuple(configs), is_local=None not in paths)
    limits = decoders.current()
    most = max(decoders.bytes_needed(of_each[at], square.at_least(config)) for at in positions for config in configs)
    are_here = None not in paths
    n_at_once = limits.n_plain_at_once(most, are_here=are_here)
    as_many_as_useful = are_here and n_at_once >= limits.n_at_once
    decoded = tf.data.Dataset.from_tensor_slices(columns).map(
        read, num_parallel_calls=tf.data.AUTOTUNE if as_many_as_useful else n_at_once, deterministic=True
    )
    if not are_here:
        # One thread for each core, as by default, would wait for the server most of the time.
        options = tf.data.Options()
        options.threading.private_threadpool_size = max(n_at_once, limits.n_at_once)
        decoded = decoded.with_options(options)
    ready = decoded.ignore_errors().batch(batch_size).prefetch(2)
    return ready if device == CPU else ready.apply(tf.data.experimental.prefetch_to_device(device, buffer_size=1))


# With this cache, the function is traced only once for all shards of a job.
@functools.lru_cache(maxsize=4)
def _reader(source: Source, configs: Sequence[PixelsConfig], *, is_local: bool) -> Callable[..., Any]:
    import tensorflow as tf

    # Without autograph, which would leave files in the temporary folder when the process is killed.
    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def read(
        position: tf.Tensor, packed: tf.Tensor, path: tf.Tensor, orientation: tf.Tensor, branches: tf.Tensor
    ) -> tuple[Any, ...]:
        def elsewhere() -> tf.Tensor:
            return tf.ensure_shape(tf.numpy_function(_read(source), [packed], tf.string), ())

        content = tf.io.read_file(path) if is_local else tf.cond(path == b"", elsewhere, lambda: tf.io.read_file(path))
        jpegs = [functools.partial(_jpeg, content, ratio) for ratio in _RATIOS]

        def by(branch: tf.Tensor) -> Any:
            return _upright(tf.switch_case(branch, [*jpegs, lambda: _png(content)]), orientation)

        first = by(branches[0])
        squares = [to_square(first, configs[0])]
        for config, branch in zip(configs[1:], tf.unstack(branches, len(configs))[1:], strict=True):
            # Mostly the picture as it was decoded for the first config is the right one for the others too.
            decoded = tf.cond(branch == branches[0], lambda: first, functools.partial(by, branch))
            squares.append(to_square(decoded, config))
        return position, *squares

    return read  # type: ignore[no-any-return]


# What is needed to read a picture that is no file of this machine.
_NEEDED = ("size", "mtime_ns", "ctime_ns", "content_hash", "version", "offset")


def _packed(picture: Picture) -> bytes:
    """Return a picture that is no file of this machine as TensorFlow hands it to `_read`."""
    facts = {name: getattr(picture.facts, name) for name in _NEEDED}
    return json.dumps([picture.location, facts]).encode()


def _read(source: Source) -> Callable[[bytes], bytes]:
    def read(packed: bytes) -> bytes:
        location, facts = json.loads(packed)
        with Picture(source, location, FileFacts(**facts)).open() as stream:
            return stream.read()

    return read


def _jpeg(content: tf.Tensor, ratio: int = 1) -> tf.Tensor:
    import tensorflow as tf

    # Pillow uses the accurate transform too, so both decoders give the same pixels.
    return tf.io.decode_jpeg(content, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE")


def _png(content: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    decoded = tf.io.decode_png(content, channels=4)
    colours, alpha = decoded[..., :3], decoded[..., 3:]

    def on_white() -> tf.Tensor:
        # The largest value, 255 * 255 + 127, fits in 16 bits.
        opacity = tf.cast(alpha, tf.uint16)
        return tf.cast((tf.cast(colours, tf.uint16) * opacity + (255 * (255 - opacity) + 127)) // 255, tf.uint8)

    return tf.cond(tf.reduce_all(tf.equal(alpha, 255)), lambda: colours, on_white)


def _upright(decoded: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turn a picture upright by its Exif orientation: 5 to 8 swap the axes first; then some are mirrored."""
    import tensorflow as tf

    def among(*orientations: int) -> tf.Tensor:
        return tf.reduce_any(tf.equal(orientation, orientations))

    swapped = tf.cond(among(5, 6, 7, 8), lambda: tf.transpose(decoded, (1, 0, 2)), lambda: decoded)
    mirrored = tf.cond(among(2, 3, 6, 7), lambda: tf.reverse(swapped, (1,)), lambda: swapped)
    return tf.cond(among(3, 4, 7, 8), lambda: tf.reverse(mirrored, (0,)), lambda: mirrored)


def to_square(picture: tf.Tensor, config: PixelsConfig) -> tf.Tensor:
    """Resize a picture (h, w, 3) uint8 to (side, side, 3) float32, as the config says.

    The result is that of `images.square` but for the last digits; that one averages over whole blocks of pixels first
    where the picture is at least eight times as large as the square.
    TensorFlow's resizing takes as much time as Pillow's, and tf.data need not wait for Python's global lock.
    """
    import tensorflow as tf

    shape = tf.shape(picture)
    height, width = shape[0], shape[1]
    if config.fit == "crop":
        short = tf.minimum(height, width)
        top, left = (height - short) // 2, (width - short) // 2
        picture = picture[top : top + short, left : left + short]
        height = width = short
    side = config.side
    if config.resize == "nearest":
        rows, columns = (_nearest(length, side) for length in (height, width))
        resized = tf.cast(tf.gather(tf.gather(picture, rows), columns, axis=1), tf.float32)
    else:
        resized = tf.image.resize(picture, (side, side), method="bilinear", antialias=True)
    return tf.ensure_shape(resized, (side, side, 3))


def _nearest(length: tf.Tensor, side: int) -> tf.Tensor:
    import tensorflow as tf

    return tf.numpy_function(lambda n: square.nearest_indices(int(n), side), [length], tf.int64)

"""Splits contents into shards and embeds one shard, batch by batch.

Input: pictures and an engine. Output: for each picture an embedding or the reason why it has none. This module must not
know the store, the manifest or the job.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpu_cluster.backend import Array, IntArray
from gpu_cluster.embedding.engines import Engine, OutOfMemoryError, Pixels
from gpu_cluster.errors import DeviceError
from gpu_cluster.images import decode
from gpu_cluster.images.source import Picture, UnreadableError

log = logging.getLogger(__name__)


def plan_shards(missing: npt.NDArray[np.bool_], shard_size: int) -> list[IntArray]:
    """Split all contents (n,), in their order, into shards of one size; return what is missing of each shard.

    Shards that lack nothing are left out. Where a shard begins and ends depends on the contents alone. A job that was
    stopped or killed has kept whole batches, the first ones of a shard. When it runs again, the pictures that are
    missing of this shard therefore form the same batches as they would have formed without the stop.
    """
    at = np.flatnonzero(missing)
    borders = np.searchsorted(at, np.arange(shard_size, len(missing), shard_size))
    return [part for part in np.split(at, borders) if len(part)]


@dataclass(frozen=True)
class EmbeddedBatch:
    """The result of embedding b pictures of a shard together.

    Attributes
    ----------
    positions : (b,) int64, host; positions in the shard
    x : (b, d) float32, device; undefined in rows that have a reason
    reasons : why a picture has no embedding, in plain words; None if it has one
    lasting : (b,) bool, host; whether the result depends only on the content, so that the store may keep it
    """

    positions: IntArray
    x: Array
    reasons: list[str | None]
    lasting: npt.NDArray[np.bool_]


def embed_shard(pictures: Sequence[Picture], engine: Engine) -> Iterator[EmbeddedBatch]:
    """Embed some pictures, each of them in one batch; those that the engine cannot decode come last.

    The batches depend only on the pictures and the engine, so shards can be embedded anywhere and in any order. The
    caller may stop after any batch; if the pictures of the other batches are embedded later, they form the same
    batches.

    Raises
    ------
    DeviceError
        When the memory of the device is too small even for one picture.
    """
    left_out = np.ones(len(pictures), dtype=bool)
    for positions, pixels in engine.batches(pictures):
        left_out[positions] = False
        n = len(positions)
        yield EmbeddedBatch(positions, _features(engine, pixels, n), [None] * n, np.ones(n, dtype=bool))
    second = np.flatnonzero(left_out)
    if len(second):
        log.info("%d files that the engine cannot decode are tried again with Pillow", len(second))
    # The engine halves its `batch_size` when the memory runs out, also in this loop.
    size = engine.batch_size
    for first in range(0, len(second), size):
        yield _second_look(pictures, second[first : first + size], engine)


def _second_look(pictures: Sequence[Picture], positions: IntArray, engine: Engine) -> EmbeddedBatch:
    """Embed pictures that the engine cannot decode, if Pillow can."""
    backend, n = engine.backend, len(positions)
    x = backend.xp.empty((n, engine.extractor.n_features), dtype=backend.xp.float32)
    reasons: list[str | None] = [None] * n
    lasting = np.ones(n, dtype=bool)
    squares: dict[int, npt.NDArray[np.float32]] = {}
    for row, picture in enumerate(pictures[position] for position in positions):
        try:
            decoded = _decoded(picture)
        # On a broken file Pillow's decoders can raise any type of error, and none of them may end the job.
        except Exception as error:  # noqa: BLE001
            reasons[row], lasting[row] = _reason(picture, error)
            continue
        try:
            squares[row] = engine.square(decoded)
        except OutOfMemoryError:
            # This says nothing about the file: with more memory it may be embedded.
            reasons[row], lasting[row] = "there is not enough memory to resize it for the network", False
    if squares:
        rows = backend.from_host(np.fromiter(squares, dtype=np.int64))
        x[rows] = _features(engine, np.stack(list(squares.values())), len(squares))
    return EmbeddedBatch(positions, x, reasons, lasting)


def _features(engine: Engine, pixels: Pixels, n: int) -> Array:
    """Return the embeddings (n, d) of pixels (n, side, side, 3), on the device."""
    backend = engine.backend
    x = backend.xp.empty((n, engine.extractor.n_features), dtype=backend.xp.float32)
    first = 0
    while first < n:
        part = slice(first, first + engine.batch_size)
        try:
            # A slice of a whole batch would be a copy of it on the device.
            features = engine.features(pixels if n <= engine.batch_size else pixels[part])
        except OutOfMemoryError as error:
            if engine.batch_size == 1:
                free = backend.free_bytes() / 1e9
                raise DeviceError(
                    f"out of memory on the {backend.name} for a single image; {free:.1f} GB are free; "
                    f"use a smaller --image-size, --precision float16, or another device ({_brief(error)})"
                ) from error
            engine.batch_size //= 2
            continue
        x[part] = features
        # The features may be a view of memory that the engine reuses, so the copy must end before the engine continues.
        backend.synchronize()
        first = part.stop
    return x


def _brief(error: Exception) -> str:
    words = " ".join(str(error).split())
    return words if len(words) <= 200 else f"{words[:200]} ..."


def _decoded(picture: Picture) -> npt.NDArray[np.uint8]:
    with picture.open() as stream:
        return decode.decode(stream, picture.suffix)


def _reason(picture: Picture, error: Exception) -> tuple[str, bool]:
    """Return in plain words why a picture cannot be decoded, and whether the file itself is at fault."""
    if isinstance(error, UnreadableError):
        return str(error), False
    try:
        with picture.open() as stream:
            head = stream.read(decode.HEAD_BYTES)
    except (UnreadableError, OSError):
        head = b""
    return decode.reason(head, error), not decode.is_passing(error)

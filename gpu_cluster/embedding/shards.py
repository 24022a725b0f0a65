"""Splits contents into shards and embeds one shard, batch by batch.

Input: pictures and an engine. Output: for each picture an embedding or the reason why it has none. This module must not
know the store, the manifest or the job.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from gpu_cluster.backend import Array, IntArray
from gpu_cluster.embedding.engines import Engine, OutOfMemoryError, Pixels
from gpu_cluster.errors import DeviceError
from gpu_cluster.images import decoders, square
from gpu_cluster.images.source import Picture, UnreadableError

log = logging.getLogger(__name__)

# The reason of a picture, which it gets after its batch, when no later step could do anything with its numbers, as
# float16 may give them.
NOT_FINITE = "the network gave numbers that are not finite"


def plan_shards(missing: npt.NDArray[np.bool_], shard_size: int) -> list[IntArray]:
    """Split all contents (n,), in their order, into shards of one size; return what is missing of each shard.

    Shards that lack nothing are left out. Where a shard begins and ends depends on the contents alone. A job that was
    stopped or killed has kept whole batches, the first ones of a shard. When it runs again, the pictures that are
    missing of this shard therefore form the same batches as they would have formed without the stop.
    """
    at = np.flatnonzero(missing)
    borders = np.searchsorted(at, np.arange(shard_size, len(missing), shard_size))
    return [part for part in np.split(at, borders) if len(part)]


def columns_of(engine: Engine) -> list[slice]:
    """Return which columns of its features each part of an engine gives."""
    ends = np.cumsum([part.extractor.n_features for part in engine.parts]).tolist()
    return [slice(first, end) for first, end in zip([0, *ends[:-1]], ends, strict=True)]


@dataclass(frozen=True)
class EmbeddedBatch:
    """The result of embedding b pictures of a shard together.

    Attributes
    ----------
    positions : (b,) int64, host; positions in the shard
    x : (b, d) float32, device; undefined in rows that have a reason
    reasons : why a picture has no embedding, in plain words; None if it has one
    lasting : (b,) bool, host; whether the result depends only on the content, so that the store may keep it
    network_s : seconds that the network took, without decoding
    """

    positions: IntArray
    x: Array
    reasons: list[str | None]
    lasting: npt.NDArray[np.bool_]
    network_s: float


def embed_shard(pictures: Sequence[Picture], engine: Engine) -> Generator[EmbeddedBatch, None, None]:
    """Embed some pictures, each of them in one batch; those that the engine does not decode come last.

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
        start = time.monotonic()
        x = features_of(engine, pixels, n)
        yield EmbeddedBatch(positions, x, [None] * n, np.ones(n, dtype=bool), time.monotonic() - start)
    second = np.flatnonzero(left_out)
    if len(second):
        log.info("%d pictures that the engine does not decode are decoded with Pillow", len(second))
        yield from _second_look(pictures, second, engine)


@dataclass(frozen=True)
class _Square:
    """A picture (side, side, 3) float32 as each part of the network sees it, or the reason why there is none."""

    pixels: tuple[npt.NDArray[np.float32], ...] | None
    reason: str | None = None
    lasting: bool = True


def _second_look(pictures: Sequence[Picture], positions: IntArray, engine: Engine) -> Iterator[EmbeddedBatch]:
    """Embed pictures that the engine does not decode, if Pillow can; others are decoded while a batch is embedded."""
    backend, limits = engine.backend, decoders.current()
    pool = ThreadPoolExecutor(limits.n_at_once)
    begun: deque[Future[_Square]] = deque()
    left = iter(positions)

    def begin() -> None:
        # One batch, and a picture for each thread, are decoded ahead.
        for position in islice(left, max(0, engine.batch_size + limits.n_at_once - len(begun))):
            begun.append(pool.submit(_square, pictures[position], engine, limits))

    try:
        first = 0
        # The engine halves its `batch_size` when the memory runs out, also in this loop.
        while first < len(positions):
            batch = positions[first : first + engine.batch_size]
            first += len(batch)
            squares = []
            for _position in batch:
                begin()
                squares.append(begun.popleft().result())
            begin()
            start = time.monotonic()
            x = backend.xp.empty((len(batch), engine.extractor.n_features), dtype=backend.xp.float32)
            good = np.array([row for row, square in enumerate(squares) if square.pixels is not None], dtype=np.int64)
            if len(good):
                stack = engine.stack([square.pixels for square in squares if square.pixels is not None])
                x[backend.from_host(good)] = features_of(engine, stack, len(good))
            lasting = np.array([square.lasting for square in squares], dtype=bool)
            reasons = [square.reason for square in squares]
            yield EmbeddedBatch(batch, x, reasons, lasting, time.monotonic() - start)
    finally:
        # Whoever stops here does not wait for the pictures that are being decoded.
        pool.shutdown(wait=False, cancel_futures=True)


def _square(picture: Picture, engine: Engine, limits: decoders.Decoders) -> _Square:
    configs = [part.config for part in engine.parts]
    profiles = square.applies_profiles(engine.config)
    squares: dict[int, npt.NDArray[np.float32]] = {}
    try:
        picture = picture.held()
    except UnreadableError as error:
        return _Square(None, str(error), lasting=False)
    for at_least, positions in square.shared_decodings(picture.facts, configs):
        try:
            with picture.open() as stream:
                decoded = limits.pixels(stream, picture.suffix, picture.facts, at_least=at_least, profiles=profiles)
        except decoders.UndecodableError as error:
            return _Square(None, str(error), error.lasting)
        except UnreadableError as error:
            return _Square(None, str(error), lasting=False)
        except OSError as error:
            return _Square(None, f"cannot be read: {error.strerror or error}", lasting=False)
        try:
            squares |= {position: engine.parts[position].square(decoded) for position in positions}
        except OutOfMemoryError:
            # This says nothing about the file: with more memory it may be embedded.
            return _Square(None, "there is not enough memory to resize it for the network", lasting=False)
    return _Square(tuple(squares[position] for position in range(len(configs))))


def features_of(engine: Engine, pixels: Pixels, n: int) -> Array:
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

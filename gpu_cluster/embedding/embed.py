"""Turns the pictures of a manifest into Embeddings (n, d) on the device.

Embeddings that the store holds are read from there. Every other content goes through the engine once, shard by shard,
and its embedding into the store. Pictures that the engine cannot decode are tried again with Pillow; those that neither
can decode are reported with their reason. This module must not know what becomes of the embeddings.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from gpu_cluster.backend import Array, Backend, IntArray
from gpu_cluster.backend.memory import memory_error_explained
from gpu_cluster.config import StoreConfig
from gpu_cluster.embedding.engines import Engine, OutOfMemoryError, Pixels
from gpu_cluster.errors import DeviceError, InterruptedJobError
from gpu_cluster.events import Observer
from gpu_cluster.images import decode
from gpu_cluster.images.source import Picture, Source, UnreadableError
from gpu_cluster.manifest import Manifest
from gpu_cluster.results import Embeddings
from gpu_cluster.store.store import EmbeddingShards, Store

log = logging.getLogger(__name__)


_Embeds = TypeVar("_Embeds", bound=Callable[..., Embeddings])


def _explains_memory_errors(embed: _Embeds) -> _Embeds:
    @functools.wraps(embed)
    def explained(manifest: Manifest, source: Source, engine: Engine, **others: Any) -> Embeddings:
        n, d = len(manifest) - len(manifest.bad), engine.extractor.n_features
        with memory_error_explained("embedding", n, d, engine.backend):
            return embed(manifest, source, engine, **others)

    return cast("_Embeds", explained)


@_explains_memory_errors
def embed(
    manifest: Manifest,
    source: Source,
    engine: Engine,
    *,
    store: Store | None,
    store_config: StoreConfig,
    observer: Observer,
) -> Embeddings:
    """Embed every file of a scanned manifest that is not bad; files with the same content are embedded once.

    If `store` is None, every embedding is computed and none is kept.

    Memory: one (n, d) float32 matrix, a shard of it and a few batches of pixels; a second matrix only if a file whose
    header was good turns out bad.

    Raises
    ------
    DeviceError
        When the memory of the device is too small.
    InterruptedJobError
        When the observer asked to stop; with a store, the current shard is finished first.
    StoreError
        When the store cannot be read or written.
    """
    backend, n_features = engine.backend, engine.extractor.n_features
    rows = np.array([row for row in range(len(manifest)) if row not in manifest.bad], dtype=np.int64)
    backend.claim_device(len(rows) * n_features * np.dtype(np.float32).itemsize)
    x = backend.xp.empty((len(rows), n_features), dtype=backend.xp.float32)
    shards = None if store is None else store.embeddings(_key(engine))
    matrix = _Matrix(manifest, source, rows, x, backend, shards, observer)
    if not store_config.force:
        matrix.read_store()
    missing = matrix.missing()
    if n_kept := matrix.n_contents - len(missing):
        observer.notice(f"{n_kept:,} of {matrix.n_contents:,} pictures are in the store of embeddings already")
    images_per_s = None
    if len(missing):
        engine.build()
        shard_size = store_config.shard_size or backend.shard_size
        log.info(
            "embedding in %s, in batches of %d images and shards of %d", engine.precision, engine.batch_size, shard_size
        )
        start = time.perf_counter()
        for shard in plan_shards(missing, shard_size):
            matrix.compute(shard, engine)
        images_per_s = len(missing) / (time.perf_counter() - start)
    filled, filled_rows, bad = matrix.finish()
    return Embeddings(
        x=filled,
        rows=filled_rows,
        bad=bad,
        n_computed=len(missing),
        images_per_s=images_per_s,
        precision=engine.precision,
        batch_size=engine.batch_size if len(missing) else None,
    )


def plan_shards(missing: IntArray, shard_size: int) -> list[IntArray]:
    """Split the contents that the store lacks, in their order, into shards of one size.

    After a kill, the store holds all shards up to some point. The next run goes on there with the same shards and
    batches as the killed run would have had, so its numbers are the same to the last bit.
    """
    return [missing[first : first + shard_size] for first in range(0, len(missing), shard_size)]


@dataclass(frozen=True)
class EmbeddedShard:
    """The result of embedding one shard of s pictures.

    Attributes
    ----------
    x : (s, d) float32, device; undefined in rows that have a reason
    reasons : why a picture has no embedding, in plain words; None if it has one
    lasting : (s,) bool, host; whether the result depends only on the content, so that the store may keep it
    """

    x: Array
    reasons: list[str | None]
    lasting: npt.NDArray[np.bool_]


def _ignore(n: int) -> None:
    """Do nothing with the progress."""


def embed_shard(
    pictures: Sequence[Picture], engine: Engine, progress: Callable[[int], None] = _ignore
) -> EmbeddedShard:
    """Embed some pictures.

    The result depends only on the pictures and the engine, so shards can be embedded anywhere and in any order.
    `progress` is called with the number of pictures done since its last call.

    Raises
    ------
    DeviceError
        When the memory of the device is too small even for one picture.
    """
    backend, n = engine.backend, len(pictures)
    x = backend.xp.empty((n, engine.extractor.n_features), dtype=backend.xp.float32)
    reasons: list[str | None] = [None] * n
    lasting, done = np.ones(n, dtype=bool), np.zeros(n, dtype=bool)
    for positions, pixels in engine.batches(pictures):
        _run(engine, pixels, positions, x)
        done[positions] = True
        progress(len(positions))
    left_out = np.flatnonzero(~done)
    if len(left_out):
        log.info("%d files that the engine cannot decode are tried again with Pillow", len(left_out))
    for first in range(0, len(left_out), engine.batch_size):
        part = left_out[first : first + engine.batch_size]
        squares: dict[int, npt.NDArray[np.float32]] = {}
        for position in part:
            try:
                decoded = _decoded(pictures[position])
            # On a broken file Pillow's decoders can raise any type of error, and none of them may end the job.
            except Exception as error:  # noqa: BLE001
                reasons[position], lasting[position] = _reason(pictures[position], error)
                continue
            try:
                squares[int(position)] = engine.square(decoded)
            except OutOfMemoryError:
                # This says nothing about the file: with more memory it may be embedded.
                reasons[position], lasting[position] = "no memory to bring it to the size of the network", False
        if squares:
            _run(engine, np.stack(list(squares.values())), np.fromiter(squares, dtype=np.int64), x)
        progress(len(part))
    for position in (position for position, picture in enumerate(pictures) if _changed(picture)):
        reasons[position], lasting[position] = "it changed while the job ran", False
    return EmbeddedShard(x, reasons, lasting)


def _run(engine: Engine, pixels: Pixels, positions: IntArray, x: Array) -> None:
    """Write the embeddings of pixels (B, side, side, 3) into the rows `positions` (B,) of x."""
    backend = engine.backend
    first = 0
    while first < len(positions):
        part = slice(first, first + engine.batch_size)
        try:
            # A slice of a whole batch would be a copy of it on the device.
            features = engine.features(pixels if len(positions) <= engine.batch_size else pixels[part])
        except OutOfMemoryError as error:
            if engine.batch_size == 1:
                free = backend.free_bytes() / 1e9
                raise DeviceError(
                    f"out of memory on the {backend.name} for a single image; {free:.1f} GB are free; "
                    f"use a smaller --image-size, --precision float16, or another device ({_brief(error)})"
                ) from error
            engine.batch_size //= 2
            continue
        x[backend.from_host(positions[part])] = features
        # The features may be a view of memory that the engine reuses, so the copy must be finished before it goes on.
        backend.synchronize()
        first = part.stop


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


def _changed(picture: Picture) -> bool:
    """Return whether a file changed after the scan: then its embedding does not belong to its recorded hash."""
    try:
        stat = picture.source.stat(picture.location)
    except UnreadableError:
        return True
    return (stat.size, stat.mtime_ns) != (picture.facts.size, picture.facts.mtime_ns)


def _key(engine: Engine) -> dict[str, Any]:
    """Return everything that an embedding depends on, except the content of its file."""
    return {
        **engine.extractor.key,
        "n_features": engine.extractor.n_features,
        "image_size": engine.config.image_size,
        "fit": engine.config.fit,
        "resize": engine.config.resize,
        "decode": decode.VERSION,
        "engine": engine.identity,
        "precision": engine.precision,
    }


class _Matrix:
    """The matrix that is being filled: one row for each file that is not bad; each content is computed once.

    In this class, index i means the i-th distinct content, in the order of the first file that has it.
    """

    def __init__(
        self,
        manifest: Manifest,
        source: Source,
        rows: IntArray,
        x: Array,
        backend: Backend,
        shards: EmbeddingShards | None,
        observer: Observer,
    ) -> None:
        self._manifest = manifest
        self._source = source
        self._rows = rows
        self._x = x
        self._backend = backend
        self._shards = shards
        self._observer = observer
        # For each content, the row of x of its first file.
        self._at = np.flatnonzero([row not in manifest.duplicates for row in rows])
        self._done = np.zeros(len(self._at), dtype=bool)
        self._n_done = 0
        self._bad: dict[int, str] = {}

    @property
    def n_contents(self) -> int:
        """Number of distinct contents."""
        return len(self._at)

    def missing(self) -> IntArray:
        """Return the contents that have neither an embedding nor a reason."""
        return np.flatnonzero(~self._done)

    def read_store(self) -> None:
        """Fill in the embeddings and reasons that the store holds."""
        if self._shards is None:
            return
        for found, x, reasons in self._shards.find(self._hashes(np.arange(self.n_contents))):
            self._fill(found, self._backend.from_host(x), reasons)
            self._progress(len(found))
            if self._observer.stopping():
                raise self._interrupted()

    def compute(self, shard: IntArray, engine: Engine) -> None:
        """Embed the contents of one shard; the store keeps the results that depend only on the content."""
        if self._observer.stopping():
            raise self._interrupted()
        limit = engine.batch_size
        found = embed_shard([self._picture(index) for index in shard], engine, self._progress)
        if engine.batch_size < limit:
            self._observer.notice(
                f"Out of memory on the {self._backend.name}: going on with batches of {engine.batch_size}"
            )
        if self._shards is not None:
            kept = np.flatnonzero(found.lasting)
            whole = len(kept) == len(shard)
            x = found.x if whole else self._backend.xp.take(found.x, self._backend.from_host(kept), axis=0)
            self._shards.keep(self._hashes(shard[kept]), self._backend.to_host(x), [found.reasons[at] for at in kept])
        self._fill(shard, found.x, found.reasons)
        if self._observer.stopping():
            raise self._interrupted()

    def finish(self) -> tuple[Array, IntArray, dict[int, str]]:
        """Return the matrix, the manifest row for each row of it, and why files were bad, by manifest row."""
        first_row = self._rows[self._at]
        bad = {int(first_row[index]): why for index, why in self._bad.items()}
        copies = [row for row in self._rows if row in self._manifest.duplicates]
        for row in copies:
            first = self._manifest.duplicates[row]
            if first in bad:
                bad[int(row)] = f"{self._manifest.status(int(row))[1]}: {bad[first]}"
        sources = np.searchsorted(self._rows, [self._manifest.duplicates[row] for row in copies])
        self._copy(sources, np.searchsorted(self._rows, copies))
        good = np.array([row not in bad for row in self._rows], dtype=bool)
        if good.all():
            return self._x, self._rows, bad
        kept = self._backend.xp.take(self._x, self._backend.from_host(np.flatnonzero(good)), axis=0)
        return kept, self._rows[good], bad

    def _fill(self, indices: IntArray, x: Array, reasons: Sequence[str | None]) -> None:
        self._x[self._backend.from_host(self._at[indices])] = x
        self._bad |= {int(index): why for index, why in zip(indices, reasons, strict=True) if why is not None}
        self._done[indices] = True

    def _copy(self, sources: IntArray, targets: IntArray) -> None:
        # Copying in blocks avoids a second matrix when most files are copies.
        block = 1 << 14
        for first in range(0, len(sources), block):
            part = slice(first, first + block)
            copied = self._backend.xp.take(self._x, self._backend.from_host(sources[part]), axis=0)
            self._x[self._backend.from_host(targets[part])] = copied

    def _progress(self, n: int) -> None:
        self._n_done += n
        self._observer.progress("embed", self._n_done, self.n_contents)
        # Without a store nothing is kept, so there is no reason to finish the shard.
        if self._shards is None and self._observer.stopping():
            raise self._interrupted()

    def _picture(self, index: int) -> Picture:
        row = int(self._rows[self._at[index]])
        return Picture(self._source, self._manifest.paths[row], self._manifest.files[row])

    def _hashes(self, indices: IntArray) -> list[str]:
        files = (self._manifest.files[row] for row in self._rows[self._at[indices]])
        return [facts.content_hash or "" for facts in files]

    def _interrupted(self) -> InterruptedJobError:
        kept = (
            "without a store nothing was kept: the same command begins again"
            if self._shards is None
            else f"they are kept in {str(self._shards.folder)!r}: run the same command again to go on"
        )
        return InterruptedJobError(
            f"interrupted with {self._n_done:,} of {self.n_contents:,} pictures embedded; {kept}"
        )

"""Turns the pictures of a manifest into Embeddings (n, d) on the device.

Embeddings that the store holds are read from there. All remaining contents are computed by the engine, one shard at a
time, and their embeddings are written to the store. A job that is asked to stop ends after the batch in work, and keeps
the batches that are complete. Pictures that cannot be decoded are reported with their reason. This module must not know
what becomes of the embeddings.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import numpy.typing as npt

from gpu_cluster.backend import Array, Backend, IntArray
from gpu_cluster.backend.memory import memory_error_explained
from gpu_cluster.config import StoreConfig
from gpu_cluster.embedding.elsewhere import tell_of_others
from gpu_cluster.embedding.engines import Engine
from gpu_cluster.embedding.shards import EmbeddedBatch, embed_shard, plan_shards
from gpu_cluster.errors import InterruptedJobError
from gpu_cluster.events import Observer
from gpu_cluster.images import decode
from gpu_cluster.images.source import Picture, Source
from gpu_cluster.manifest import Manifest
from gpu_cluster.results import Embeddings
from gpu_cluster.store.store import EmbeddingShards, Store, how_to_go_on
from gpu_cluster.words import count

log = logging.getLogger(__name__)

# After a request to stop, the batch in work is waited for this long at least.
_PATIENCE_S = 8.0
# So often the thread that waits for a batch looks whether the job is asked to stop.
_HEARING_S = 0.1


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

    If `store` is None, every embedding is computed and none is written to disk.

    Memory: one (n, d) float32 matrix, a shard of it while it is written, and a few batches of pixels; a second matrix
    only if a file whose header was good turns out bad.

    Raises
    ------
    DeviceError
        When the memory of the device is too small.
    InterruptedJobError
        When the observer asked to stop; the batch in work is finished first, and the store keeps all complete batches.
    StoreError
        When the store cannot be read or written.
    """
    backend, n_features = engine.backend, engine.extractor.n_features
    rows = np.array([row for row in range(len(manifest)) if row not in manifest.bad], dtype=np.int64)
    with memory_error_explained("embedding", len(rows), n_features, backend):
        backend.claim_device(len(rows) * n_features * np.dtype(np.float32).itemsize)
        x = backend.xp.empty((len(rows), n_features), dtype=backend.xp.float32)
        shards = None if store is None else store.embeddings(_key(engine))
        matrix = _Matrix(manifest, source, rows, x, backend, shards, observer, go_on=how_to_go_on(store_config))
        if not store_config.force:
            matrix.read_store()
        missing = matrix.missing()
        n_missing = int(missing.sum())
        if n_known := matrix.count_good():
            observer.notice(
                f"The store holds the {'embedding' if n_known == 1 else 'embeddings'} of {count(n_known, 'picture')} "
                f"already; {n_missing:,} {'is' if n_missing == 1 else 'are'} left to embed"
                if n_missing
                else "The store holds the embeddings of all these pictures already"
            )
        images_per_s = None
        if n_missing:
            if store is not None and not store_config.force:
                tell_of_others(store, _key(engine), matrix.hashes(np.flatnonzero(missing)), engine, observer)
            engine.build()
            shard_size = store_config.shard_size or backend.shard_size
            log.info(
                "embedding with %s (%s) in %s, in batches of %d images and shards of %d",
                engine.name,
                engine.reason,
                engine.precision,
                engine.batch_size,
                shard_size,
            )
            start = time.perf_counter()
            matrix.compute(plan_shards(missing, shard_size), engine, shard_size)
            images_per_s = n_missing / (time.perf_counter() - start)
        filled, filled_rows, bad = matrix.finish()
        return Embeddings(
            x=filled,
            rows=filled_rows,
            bad=bad,
            n_computed=matrix.count_good(missing),
            images_per_s=images_per_s,
            precision=engine.precision,
            batch_size=engine.batch_size if n_missing else None,
        )


def _computed_beside(
    batches: Generator[EmbeddedBatch, None, None], observer: Observer
) -> Generator[EmbeddedBatch, None, None]:
    """Give the caller the batches, which another thread computes, until they end or the observer asks to stop.

    This thread only waits, so it hears signals whatever a decoder or the network does. After a request to stop it waits
    for the batch in work, but no longer than the network took for the longest one, or `_PATIENCE_S` if that is longer.
    """
    pool = ThreadPoolExecutor(1)
    patience = _PATIENCE_S
    try:
        while True:
            stopped = None
            batch = pool.submit(next, batches, None)
            while not wait([batch], _HEARING_S).done:
                if observer.stopping():
                    stopped = stopped or time.monotonic()
                    if time.monotonic() - stopped > patience:
                        return
            found = batch.result()
            if found is None:
                return
            patience = max(patience, found.network_s)
            yield found
    finally:
        # If a batch is in work, this comes after it, and nobody waits for it.
        pool.submit(batches.close)
        pool.shutdown(wait=False)


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

    In this class, index i is the i-th distinct content. Contents are ordered by the first file in which they occur.
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
        *,
        go_on: str,
    ) -> None:
        self._manifest = manifest
        self._source = source
        self._rows = rows
        self._x = x
        self._backend = backend
        self._shards = shards
        self._observer = observer
        self._go_on = go_on
        # `_at[i]` is the row in x of the first file with content i.
        self._at = np.flatnonzero([row not in manifest.duplicates for row in rows])
        self._done = np.zeros(len(self._at), dtype=bool)
        self._n_done = 0
        self._bad: dict[int, str] = {}
        # For each content that was embedded after the last write to the store, whether the store may keep its result.
        self._unwritten: dict[int, bool] = {}

    @property
    def n_contents(self) -> int:
        """Number of distinct contents."""
        return len(self._at)

    def count_good(self, contents: npt.NDArray[np.bool_] | None = None) -> int:
        """Return how many contents, of those in a mask (or of all), have an embedding by now."""
        done = self._done if contents is None else self._done & contents
        return int(done.sum()) - sum(bool(done[index]) for index in self._bad)

    def missing(self) -> npt.NDArray[np.bool_]:
        """Return for each content whether it has neither an embedding nor a reason."""
        return ~self._done

    def read_store(self) -> None:
        """Fill in the embeddings and reasons that the store holds."""
        if self._shards is None:
            return
        for found, x, reasons in self._shards.find(self.hashes(np.arange(self.n_contents))):
            self._fill(found, self._backend.from_host(x), reasons)
            self._progress(len(found))
            if self._observer.stopping():
                raise self._interrupted()

    def compute(self, shards: Sequence[IntArray], engine: Engine, shard_size: int) -> None:
        """Embed the contents of all shards; the store keeps the results that depend only on the content."""
        for shard in shards:
            # Shards of which little is missing are written together. Otherwise there would be many small files.
            if len(self._unwritten) + len(shard) > shard_size:
                self._write()
            try:
                self._compute_shard(shard, engine)
            # Ctrl-C in Python, or a second one on the command line.
            except KeyboardInterrupt:
                self._write()
                raise
            if self._observer.stopping():
                self._write()
                raise self._interrupted()
        self._write()

    def _compute_shard(self, shard: IntArray, engine: Engine) -> None:
        """Embed the contents of a shard until the observer asks to stop."""
        if self._observer.stopping():
            return
        limit = engine.batch_size
        embedded = embed_shard([self._picture(index) for index in shard], engine)
        for batch in _computed_beside(embedded, self._observer):
            indices = shard[batch.positions]
            self._fill(indices, batch.x, batch.reasons)
            self._unwritten |= zip(indices.tolist(), batch.lasting.tolist(), strict=True)
            self._progress(len(indices))
            if self._observer.stopping():
                break
        if engine.batch_size < limit:
            self._observer.notice(
                f"Out of memory on the {self._backend.name}: going on with batches of {engine.batch_size}"
            )

    def _write(self) -> None:
        """Keep in the store, as one shard, what was embedded since the last call."""
        # The embedding of a file that changed after the scan does not match the recorded hash.
        for index in [index for index in self._unwritten if self._picture(index).changed()]:
            self._bad[index] = "it changed while the job ran"
            self._unwritten[index] = False
        kept = np.array(sorted(index for index, lasting in self._unwritten.items() if lasting), dtype=np.int64)
        self._unwritten.clear()
        if self._shards is not None and len(kept):
            x = self._backend.xp.take(self._x, self._backend.from_host(self._at[kept]), axis=0)
            self._shards.keep(self.hashes(kept), self._backend.to_host(x), [self._bad.get(int(at)) for at in kept])

    def finish(self) -> tuple[Array, IntArray, dict[int, str]]:
        """Return the matrix, the manifest row of each of its rows, and the reasons by manifest row."""
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

    def _picture(self, index: int) -> Picture:
        row = int(self._rows[self._at[index]])
        return Picture(self._source, self._manifest.paths[row], self._manifest.files[row])

    def hashes(self, indices: IntArray) -> list[str]:
        """Return the content hashes of these contents."""
        files = (self._manifest.files[row] for row in self._rows[self._at[indices]])
        return [facts.content_hash or "" for facts in files]

    def _interrupted(self) -> InterruptedJobError:
        kept = ""
        if self._shards is not None and self._n_done:
            kept = f"; they are kept in {str(self._shards.folder)!r}"
        return InterruptedJobError(
            f"interrupted with {self._n_done:,} of {self.n_contents:,} pictures embedded{kept}: {self._go_on}"
        )

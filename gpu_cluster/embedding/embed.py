"""Turns the pictures of a manifest into Embeddings (n, d) on the device.

Embeddings that the store holds are read from there. All remaining contents are computed by the engine, one shard at a
time, and their embeddings are written to the store. A job that is asked to stop ends after the batch in work, and keeps
the batches that are complete. Pictures that cannot be decoded are reported with their reason. This module must not know
what becomes of the embeddings.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gpu_cluster.backend import HeldRows, JoinedRows, Rows
from gpu_cluster.backend.memory import memory_error_explained
from gpu_cluster.backend.rows import WINDOW_BYTES
from gpu_cluster.config import StoreConfig
from gpu_cluster.embedding.engines import Engine
from gpu_cluster.embedding.extractors import Joined, name_of
from gpu_cluster.embedding.kept import InShards, Kept, OnDevice
from gpu_cluster.embedding.other_keys import tell_of_others, tell_of_unconverted
from gpu_cluster.embedding.shards import plan_shards
from gpu_cluster.embedding.work import Elsewhere, Work
from gpu_cluster.events import Observer
from gpu_cluster.images import square
from gpu_cluster.images.source import Source
from gpu_cluster.manifest import Manifest
from gpu_cluster.results import Embeddings
from gpu_cluster.store.embeddings import EmbeddingShards, ScratchShards
from gpu_cluster.store.store import Store, how_to_go_on
from gpu_cluster.store.stored import JoinedStoredRows, StoredRows
from gpu_cluster.words import count

log = logging.getLogger(__name__)


def embed(
    manifest: Manifest,
    source: Source,
    engine: Engine,
    *,
    store: Store | None,
    store_config: StoreConfig,
    observer: Observer,
    scratch: Path | None = None,
    may_choose: bool = True,
    elsewhere: Elsewhere | None = None,
) -> Embeddings:
    """Embed every file of a scanned manifest that is not bad; files with the same content are embedded once.

    A matrix that the device holds (see `Backend.holds`) is made there. A larger one stays in the shards of the store.
    If `store` is None, every embedding is computed; a matrix that the device does not hold then lies in shards in the
    folder `scratch`, which the caller removes. If `scratch` is None too, the device holds it whatever its size. Only if
    the user may choose the engine and the decoding, options are named that would use what the store holds of others.

    With `elsewhere`, the tasks of another executor compute what is missing, each with an engine of its own, and write
    it to the store or to `scratch`, one of which must be given.

    Memory: the (n, d) float32 matrix that the device holds, or 8 bytes for each file; a shard while it is read or
    written, and a few batches of pixels.

    Raises
    ------
    DeviceError
        When the memory of the device is too small.
    InterruptedJobError
        When the observer asked to stop; the batch in work is finished first, and the store keeps all complete batches.
    StoreError
        When the store, or `scratch`, cannot be read or written.
    """
    backend, d = engine.backend, engine.extractor.n_features
    profiles = square.applies_profiles(engine.config)
    work = Work(manifest, source, observer, go_on=how_to_go_on(store_config), profiles=profiles)
    with memory_error_explained("embedding", work.n_rows, d, backend):
        _choose_place(work, engine, store, scratch, elsewhere)
        if store is not None and not store_config.force:
            work.read_store()
        missing, untouched = work.missing(), work.untouched()
        n_missing = int(missing.sum())
        _tell_known(work, n_missing, engine, observer)
        images_per_s = batch_size = None
        if n_missing:
            if store is not None and not store_config.force:
                for part, own in zip(engine.parts, work.parts, strict=True):
                    lacking = np.flatnonzero(~own.done)
                    if own.shards is not None:
                        tell_of_unconverted(own.shards, work.hashes_of_converted(lacking), observer)
                    names = work.row_names(lacking)
                    tell_of_others(store, part.key, names, part, observer, may_choose=may_choose, beside=engine.parts)
            shard_size = store_config.shard_size or backend.shard_size
            log.info("embedding with %s (%s) in %s", engine.name, engine.reason, engine.precision)
            start = time.perf_counter()
            # All contents that lack the same parts of the features are decoded once for these.
            for of, alike in work.missing_alike():
                used, shards = engine.some(of), plan_shards(alike, shard_size)
                if elsewhere is None:
                    used.build()
                    log.info("in batches of %d images and shards of %d", used.batch_size, shard_size)
                    work.compute(shards, used, shard_size, of)
                else:
                    work.compute_elsewhere(shards, used, shard_size, of, elsewhere)
                batch_size = used.batch_size
            images_per_s = n_missing / (time.perf_counter() - start)
        of_parts, rows, bad = work.finish()
        return Embeddings(
            x=_joined(of_parts, engine, elsewhere, observer),
            rows=rows,
            bad=bad,
            n_computed=work.count_good(missing),
            n_whole=work.count_good(untouched),
            images_per_s=images_per_s,
            precision=engine.precision,
            batch_size=batch_size,
        )


def _choose_place(
    work: Work, engine: Engine, store: Store | None, scratch: Path | None, elsewhere: Elsewhere | None
) -> None:
    """Choose where the embeddings of a job are: on the device, or in shards; and where shards are written."""
    backend = engine.backend
    matrix_bytes = work.n_rows * engine.extractor.n_features * np.dtype(np.float32).itemsize
    held = backend.holds(matrix_bytes) or (store is None and scratch is None)
    backend.claim_device(matrix_bytes if held else WINDOW_BYTES)
    readers = None if elsewhere is None else elsewhere.executor
    for part in engine.parts:
        d = part.extractor.n_features
        kept: Kept = (
            OnDevice(work.content_of, d, backend)
            if held
            else InShards(work.n_contents, d, backend, readers, work.observer)
        )
        shards: EmbeddingShards | None = None
        if store is not None:
            shards, work.lasting = store.embeddings(part.key), True
        elif scratch is not None and (not held or elsewhere is not None):
            # All parts share the folder: a shard is named after its content, and is asked for by its name.
            shards = ScratchShards(scratch, part.key, work.observer)
        work.add_part(kept, shards)


def _joined(of_parts: Sequence[Rows], engine: Engine, elsewhere: Elsewhere | None, observer: Observer) -> Rows:
    """Return the embeddings of all parts side by side; those of a single part as they are."""
    if not isinstance(engine.extractor, Joined):
        return of_parts[0]
    stored = [part for part in of_parts if isinstance(part, StoredRows)]
    shares, backend = engine.extractor.shares, engine.backend
    if len(stored) < len(of_parts):
        joined = JoinedRows(of_parts, shares, backend)
        n, d = joined.shape
        # Where there is room for a second matrix, it takes the place of the parts: cuML needs one that is held.
        return HeldRows(joined.whole(), backend) if backend.holds(2 * 4 * n * d) else joined
    readers = None if elsewhere is None else elsewhere.executor
    return JoinedStoredRows(stored, shares, backend, executor=readers, observer=observer)


def _tell_known(work: Work, n_missing: int, engine: Engine, observer: Observer) -> None:
    """Report how many embeddings the store holds already."""
    n_known = work.count_good()
    left = f"{n_missing:,} {'is' if n_missing == 1 else 'are'} left to embed"
    in_parts = [work.count_good_in(part) for part in work.parts]
    if n_known and n_missing:
        observer.notice(
            f"The store holds the {'embedding' if n_known == 1 else 'embeddings'} of {count(n_known, 'picture')} "
            f"already; {left}"
        )
    elif n_known:
        observer.notice("The store holds the embeddings of all these pictures already")
    elif any(in_parts):
        found = [
            f"of {count(n, 'picture')} by {name_of(part.extractor)}"
            for n, part in zip(in_parts, engine.parts, strict=True)
            if n
        ]
        observer.notice(
            f"The store holds embeddings {' and '.join(found)} already, which are not computed again; {left}"
        )

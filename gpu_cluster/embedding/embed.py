"""Turns the pictures of a manifest into Embeddings (n, d) on the device.

Embeddings that the store holds are read from there. All remaining contents are computed by the engine, one shard at a
time, and their embeddings are written to the store. A job that is asked to stop ends after the batch in work, and keeps
the batches that are complete. Pictures that cannot be decoded are reported with their reason. This module must not know
what becomes of the embeddings.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np

from gpu_cluster.backend.memory import memory_error_explained
from gpu_cluster.backend.rows import WINDOW_BYTES
from gpu_cluster.config import StoreConfig
from gpu_cluster.embedding.engines import Engine
from gpu_cluster.embedding.kept import InShards, OnDevice
from gpu_cluster.embedding.other_keys import tell_of_others, tell_of_unconverted
from gpu_cluster.embedding.shards import plan_shards
from gpu_cluster.embedding.work import Elsewhere, Work
from gpu_cluster.events import Observer
from gpu_cluster.images import square
from gpu_cluster.images.source import Source
from gpu_cluster.manifest import Manifest
from gpu_cluster.results import Embeddings
from gpu_cluster.store.embeddings import ScratchShards
from gpu_cluster.store.store import Store, how_to_go_on
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
        missing = work.missing()
        n_missing = int(missing.sum())
        _tell_known(work.count_good(), n_missing, observer)
        images_per_s = None
        if n_missing:
            if store is not None and not store_config.force:
                if work.shards is not None:
                    tell_of_unconverted(work.shards, work.hashes_of_converted(np.flatnonzero(missing)), observer)
                tell_of_others(
                    store, engine.key, work.row_names(np.flatnonzero(missing)), engine, observer, may_choose=may_choose
                )
            shard_size = store_config.shard_size or backend.shard_size
            shards = plan_shards(missing, shard_size)
            log.info("embedding with %s (%s) in %s", engine.name, engine.reason, engine.precision)
            start = time.perf_counter()
            if elsewhere is None:
                engine.build()
                log.info("in batches of %d images and shards of %d", engine.batch_size, shard_size)
                work.compute(shards, engine, shard_size)
            else:
                work.compute_elsewhere(shards, engine, shard_size, elsewhere)
            images_per_s = n_missing / (time.perf_counter() - start)
        x, rows, bad = work.finish()
        return Embeddings(
            x=x,
            rows=rows,
            bad=bad,
            n_computed=work.count_good(missing),
            images_per_s=images_per_s,
            precision=engine.precision,
            batch_size=engine.batch_size if n_missing else None,
        )


def _choose_place(
    work: Work, engine: Engine, store: Store | None, scratch: Path | None, elsewhere: Elsewhere | None
) -> None:
    """Choose where the embeddings of a job are: on the device, or in shards; and where shards are written."""
    backend, d = engine.backend, engine.extractor.n_features
    matrix_bytes = work.n_rows * d * np.dtype(np.float32).itemsize
    held = backend.holds(matrix_bytes) or (store is None and scratch is None)
    backend.claim_device(matrix_bytes if held else WINDOW_BYTES)
    readers = None if elsewhere is None else elsewhere.executor
    work.kept = (
        OnDevice(work.content_of, d, backend) if held else InShards(work.n_contents, d, backend, readers, work.observer)
    )
    if store is not None:
        work.shards, work.lasting = store.embeddings(engine.key), True
    elif scratch is not None and (not held or elsewhere is not None):
        work.shards = ScratchShards(scratch, engine.key, work.observer)


def _tell_known(n_known: int, n_missing: int, observer: Observer) -> None:
    """Report how many embeddings the store holds already."""
    if n_known and n_missing:
        observer.notice(
            f"The store holds the {'embedding' if n_known == 1 else 'embeddings'} of {count(n_known, 'picture')} "
            f"already; {n_missing:,} {'is' if n_missing == 1 else 'are'} left to embed"
        )
    elif n_known:
        observer.notice("The store holds the embeddings of all these pictures already")

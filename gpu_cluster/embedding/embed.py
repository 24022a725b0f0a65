"""Manifest -> Embeddings (n, d) on the device.

What the store holds is taken from there; each other content goes once through the tf.data pipeline and the network,
shard by shard, and into the store. What TensorFlow cannot decode gets a second look by Pillow, and what neither can is
reported with its reason. Must not know what becomes of the embeddings.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_cluster.backend import Array, Backend
from gpu_cluster.config import EmbedConfig, Precision, StoreConfig
from gpu_cluster.embedding import vgg16
from gpu_cluster.embedding.engines import tensorflow_input
from gpu_cluster.embedding.engines.tensorflow_input import Source
from gpu_cluster.embedding.extractors import Extractor
from gpu_cluster.errors import ConfigError, DeviceError, InterruptedJobError
from gpu_cluster.events import Observer
from gpu_cluster.results import Embeddings, IntArray, Manifest
from gpu_cluster.store.store import EmbeddingShards, Store

if TYPE_CHECKING:
    import tensorflow as tf

log = logging.getLogger(__name__)


def embed(
    manifest: Manifest,
    extractor: Extractor,
    config: EmbedConfig,
    *,
    store: Store | None,
    store_config: StoreConfig,
    backend: Backend,
    observer: Observer,
) -> Embeddings:
    """Embed every file of a scanned manifest that is not bad; the same content once.

    Without a store nothing is taken from one, and nothing kept.

    Memory: one (n, d) float32 matrix, a shard of it and a few batches of pictures; a second matrix only if a file
    turned out bad that its header did not give away.

    Raises
    ------
    InterruptedJobError
        When the observer asked to stop; with a store, the current shard is finished first.
    StoreError
        When the store cannot be read or written.
    """
    rows = np.array([row for row in range(len(manifest)) if row not in manifest.bad], dtype=np.int64)
    backend.claim_device(len(rows) * extractor.n_features * np.dtype(np.float32).itemsize)
    x = backend.xp.empty((len(rows), extractor.n_features), dtype=backend.xp.float32)
    precision = config.precision or backend.precisions[0]
    job = _Job(manifest, rows, x, backend, observer)
    shards = None if store is None else store.embeddings(_key(extractor, config, precision, backend))
    if shards is not None and not store_config.force:
        job.take(shards)
    missing = np.flatnonzero(~job.done)
    if n_kept := len(job.done) - len(missing):
        observer.notice(f"{n_kept:,} of {len(job.done):,} pictures are in the store of embeddings already")
    images_per_s = batch_size = None
    if len(missing):
        vgg16.use_tensorflow()
        backend.prepare_tensorflow()
        batch_size = config.batch_size or backend.batch_size(config.image_size)
        network = _Network(extractor.build(precision), batch_size, backend, observer)
        shard_size = store_config.shard_size or backend.shard_size
        log.info("embedding in %s, %d images at once, %d a shard", precision, batch_size, shard_size)
        start = time.perf_counter()
        job.compute(missing, network, config, shards, shard_size)
        images_per_s = len(missing) / (time.perf_counter() - start)
        batch_size = network.limit
    filled, filled_rows, bad = job.finish()
    return Embeddings(
        x=filled,
        rows=filled_rows,
        bad=bad,
        n_computed=len(missing),
        images_per_s=images_per_s,
        precision=precision,
        batch_size=batch_size,
    )


def _key(extractor: Extractor, config: EmbedConfig, precision: Precision, backend: Backend) -> dict[str, Any]:
    """Return all that an embedding depends on beside the content of its file."""
    return {
        **extractor.key,
        "n_features": extractor.n_features,
        "image_size": config.image_size,
        "fit": config.fit,
        "resize": config.resize,
        "decode": tensorflow_input.VERSION,
        "engine": backend.engine,
        "precision": precision,
    }


class _Job:
    """The matrix being filled: one row a file that is not bad, computed once a content.

    `done`, and every index below, is by distinct content, in the order of its first file.
    """

    def __init__(self, manifest: Manifest, rows: IntArray, x: Array, backend: Backend, observer: Observer) -> None:
        self._manifest = manifest
        self._rows = rows
        self._x = x
        self._backend = backend
        self._observer = observer
        # Index into the rows of x of each content's first file.
        self._at = np.flatnonzero([row not in manifest.duplicates for row in rows])
        self.done = np.zeros(len(self._at), dtype=bool)
        self._bad: dict[int, str] = {}
        # Bad for now, whatever the content: not to be kept.
        self._passing: set[int] = set()

    def take(self, shards: EmbeddingShards) -> None:
        """Take what the store holds."""
        for found, x, reasons in shards.find(self._hashes(np.arange(len(self._at)))):
            self._x[self._backend.from_host(self._at[found])] = self._backend.from_host(x)
            self._bad |= {int(index): why for index, why in zip(found, reasons, strict=True) if why is not None}
            self.done[found] = True
            self._observer.progress("embed", int(self.done.sum()), len(self.done))
            if self._observer.stopping():
                raise self._interrupted(shards)

    def compute(
        self,
        missing: IntArray,
        network: _Network,
        config: EmbedConfig,
        shards: EmbeddingShards | None,
        shard_size: int,
    ) -> None:
        """Embed the contents `missing`, in slices of fixed size, and keep each slice when it is whole.

        A run after a kill misses just what follows the last slice that was kept: its slices, and the batches in them,
        are those that the killed run would have come to, and so are its numbers, to the last bit.
        """
        sources = [self._source(index) for index in missing]
        n_slices = -(-len(missing) // shard_size)
        whole = 0
        for indices, pictures in tensorflow_input.batches(
            sources, config, batch_size=network.limit, shard_size=shard_size
        ):
            positions = indices.numpy()
            while whole < positions[0] // shard_size:
                self._finish(missing[whole * shard_size : (whole + 1) * shard_size], network, config, shards)
                whole += 1
            if self._observer.stopping() and (shards is None or positions[0] % shard_size == 0):
                raise self._interrupted(shards)
            self._embed(network, pictures, missing[positions])
        for number in range(whole, n_slices):
            self._finish(missing[number * shard_size : (number + 1) * shard_size], network, config, shards)

    def finish(self) -> tuple[Array, IntArray, dict[int, str]]:
        """Return the matrix, the manifest row of each of its rows, and the reasons of the files that turned out bad."""
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

    def _copy(self, sources: IntArray, targets: IntArray) -> None:
        # In blocks: a folder of copies must not need a second matrix.
        block = 1 << 14
        for first in range(0, len(sources), block):
            part = slice(first, first + block)
            copied = self._backend.xp.take(self._x, self._backend.from_host(sources[part]), axis=0)
            self._x[self._backend.from_host(targets[part])] = copied

    def _embed(self, network: _Network, pictures: Any, indices: IntArray) -> None:
        network.embed(pictures, self._at[indices], self._x)
        self.done[indices] = True
        self._observer.progress("embed", int(self.done.sum()), len(self.done))

    def _finish(
        self, indices: IntArray, network: _Network, config: EmbedConfig, shards: EmbeddingShards | None
    ) -> None:
        """End a slice: a second look at what the pipeline left out, and all of it into the store."""
        self._embed_rest(indices[~self.done[indices]], network, config)
        changed = {int(index) for index in indices if self._changed(index)}
        if shards is not None:
            kept = np.array([index for index in indices if int(index) not in changed | self._passing], dtype=np.int64)
            x = self._backend.to_host(self._backend.xp.take(self._x, self._backend.from_host(self._at[kept]), axis=0))
            shards.keep(self._hashes(kept), x, [self._bad.get(int(index)) for index in kept])
        self._bad |= dict.fromkeys(changed, "it changed while the job ran")
        if self._observer.stopping():
            raise self._interrupted(shards)

    def _embed_rest(self, left_out: IntArray, network: _Network, config: EmbedConfig) -> None:
        import tensorflow as tf

        if len(left_out):
            log.info("%d files that the pipeline cannot decode get a second look by Pillow", len(left_out))
        for first in range(0, len(left_out), network.limit):
            part = left_out[first : first + network.limit]
            pictures, reasons, passing = tensorflow_input.second_look(
                {int(index): self._source(index).path for index in part}, config
            )
            self._bad |= reasons
            self._passing |= passing
            self.done[list(reasons)] = True
            if pictures:
                self._embed(network, tf.stack(list(pictures.values())), np.fromiter(pictures, dtype=np.int64))

    def _changed(self, index: int) -> bool:
        """Tell whether a file is another one than was scanned: then its embedding is not of the hash it has."""
        source = self._source(index)
        try:
            status = os.stat(source.path)
        except OSError:
            return True
        return (status.st_size, status.st_mtime_ns) != (source.facts.size, source.facts.mtime_ns)

    def _source(self, index: int) -> Source:
        row = int(self._rows[self._at[index]])
        return Source(self._manifest.file(row), self._manifest.files[row])

    def _hashes(self, indices: IntArray) -> list[str]:
        files = (self._manifest.files[row] for row in self._rows[self._at[indices]])
        return [facts.content_hash or "" for facts in files]

    def _interrupted(self, shards: EmbeddingShards | None) -> InterruptedJobError:
        done, total = int(self.done.sum()), len(self.done)
        kept = "nothing was kept" if shards is None else f"they are kept in {str(shards.folder)!r}"
        return InterruptedJobError(
            f"interrupted with {done:,} of {total:,} pictures embedded; {kept}: run the same command again to go on"
        )


class _Network:
    """The network on its device: takes batches of any size, and smaller ones than it was told where memory runs out."""

    def __init__(
        self, network: Callable[[tf.Tensor], tf.Tensor], limit: int, backend: Backend, observer: Observer
    ) -> None:
        self._network = network
        self.limit = limit
        self._backend = backend
        self._observer = observer

    def embed(self, pictures: tf.Tensor, rows: np.ndarray, x: Array) -> None:
        """Write the embeddings of pictures (B, side, side, 3) into the rows (B,) of x."""
        import tensorflow as tf

        first = 0
        while first < len(rows):
            part = slice(first, first + self.limit)
            try:
                features = self._network(pictures[part])
            except tf.errors.ResourceExhaustedError as error:
                self._halve(error)
                continue
            x[self._backend.from_host(rows[part])] = self._backend.from_tensorflow(features)
            # The array is a view of the tensor's memory, which TensorFlow reuses once the tensor is gone.
            self._backend.synchronize()
            first = part.stop

    def _halve(self, error: Exception) -> None:
        if self.limit == 1:
            free = self._backend.free_bytes() / 1e9
            raise DeviceError(
                f"out of memory on the {self._backend.name} for a single image; {free:.1f} GB are free; "
                "use a smaller --image-size, --precision float16, or another device"
            ) from error
        self.limit //= 2
        self._observer.notice(f"Out of memory on the {self._backend.name}: going on with batches of {self.limit}")


def check_precision(config: EmbedConfig, backend: Backend) -> None:
    """Refuse, before work starts, a precision that the device does not compute in.

    Raises
    ------
    ConfigError
        When the device has another choice of precisions.
    """
    if config.precision is not None and config.precision not in backend.precisions:
        known = ", ".join(backend.precisions)
        raise ConfigError(f"--precision: the {backend.name} computes in {known}; found {config.precision!r}")

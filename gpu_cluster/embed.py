"""Manifest -> Embeddings (n, 512) on the device.

Every file goes through the tf.data pipeline; what TensorFlow cannot decode gets a second look by Pillow, and what
neither can is reported with its reason. Must not know what becomes of the embeddings.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gpu_cluster import decode, vgg16
from gpu_cluster.backend import Array, Backend
from gpu_cluster.config import EmbedConfig
from gpu_cluster.errors import ConfigError, DeviceError
from gpu_cluster.events import Observer
from gpu_cluster.results import Embeddings, Manifest

if TYPE_CHECKING:
    import tensorflow as tf

log = logging.getLogger(__name__)


def embed(
    manifest: Manifest, weights: vgg16.Weights, config: EmbedConfig, *, backend: Backend, observer: Observer
) -> Embeddings:
    """Embed every file of the manifest."""
    paths = [manifest.file(row) for row in range(len(manifest))]
    return embed_files(paths, weights, config, backend=backend, observer=observer)


def embed_files(
    paths: Sequence[Path],
    weights: vgg16.Weights,
    config: EmbedConfig,
    *,
    backend: Backend,
    observer: Observer,
) -> Embeddings:
    """Embed files; the `rows` and `bad` of the result are indices into `paths`.

    Memory: one (n, 512) float32 matrix and a few batches of pictures; a second matrix only if a file was bad.
    """
    vgg16.use_tensorflow()
    total = len(paths)
    backend.claim_device(total * vgg16.N_FEATURES * np.dtype(np.float32).itemsize)
    x = backend.xp.empty((total, vgg16.N_FEATURES), dtype=backend.xp.float32)
    precision = config.precision or backend.precisions[0]
    batch_size = config.batch_size or backend.batch_size(config.image_size)
    network = _Network(vgg16.build(weights, config.image_size, precision), batch_size, backend, observer)
    log.info("embedding in %s, %d images at once", precision, batch_size)
    start = time.perf_counter()
    seen = np.zeros(total, dtype=bool)
    for indices, pictures in decode.batches(paths, config, batch_size):
        rows = indices.numpy()
        network.embed(pictures, rows, x)
        seen[rows] = True
        observer.progress("embed", int(seen.sum()), total)
    bad = _embed_rest(x, seen, paths, network, config)
    observer.progress("embed", total, total)
    rows = np.setdiff1d(np.arange(total), np.fromiter(bad, dtype=np.int64))
    if bad:
        x = backend.xp.take(x, backend.from_host(rows), axis=0)
    images_per_s = total / (time.perf_counter() - start)
    return Embeddings(x=x, rows=rows, bad=bad, images_per_s=images_per_s, precision=precision, batch_size=network.limit)


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


def _embed_rest(
    x: Array, seen: np.ndarray, paths: Sequence[Path], network: _Network, config: EmbedConfig
) -> dict[int, str]:
    """Embed through Pillow what the pipeline left out, batch by batch; return the reasons of the files that fail."""
    import tensorflow as tf

    bad: dict[int, str] = {}
    left_out = np.flatnonzero(~seen)
    if len(left_out):
        log.info("%d files that TensorFlow cannot decode get a second look by Pillow", len(left_out))
    batch_size = network.limit
    for first in range(0, len(left_out), batch_size):
        part = left_out[first : first + batch_size]
        pictures, reasons = decode.second_look({int(row): paths[row] for row in part}, config)
        bad |= reasons
        if pictures:
            network.embed(tf.stack(list(pictures.values())), np.fromiter(pictures, dtype=np.int64), x)
    return bad

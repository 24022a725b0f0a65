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
    backend.claim_device()
    network = vgg16.build(weights, config.image_size)
    start = time.perf_counter()
    total = len(paths)
    x = backend.xp.empty((total, vgg16.N_FEATURES), dtype=backend.xp.float32)
    seen = np.zeros(total, dtype=bool)
    for indices, pictures in decode.batches(paths, config):
        rows = indices.numpy()
        _put(x, rows, network(pictures), backend)
        seen[rows] = True
        observer.progress("embed", int(seen.sum()), total)
    bad = _embed_rest(x, seen, paths, network, config, backend=backend)
    observer.progress("embed", total, total)
    rows = np.setdiff1d(np.arange(total), np.fromiter(bad, dtype=np.int64))
    if bad:
        x = backend.xp.take(x, backend.from_host(rows), axis=0)
    return Embeddings(x=x, rows=rows, bad=bad, images_per_s=total / (time.perf_counter() - start))


def _embed_rest(
    x: Array,
    seen: np.ndarray,
    paths: Sequence[Path],
    network: Callable[[tf.Tensor], tf.Tensor],
    config: EmbedConfig,
    *,
    backend: Backend,
) -> dict[int, str]:
    """Embed through Pillow what the pipeline left out, batch by batch; return the reasons of the files that fail."""
    import tensorflow as tf

    bad: dict[int, str] = {}
    left_out = np.flatnonzero(~seen)
    if len(left_out):
        log.info("%d files that TensorFlow cannot decode get a second look by Pillow", len(left_out))
    for first in range(0, len(left_out), config.batch_size):
        part = left_out[first : first + config.batch_size]
        pictures, reasons = decode.second_look({int(row): paths[row] for row in part}, config)
        bad |= reasons
        if pictures:
            _put(x, np.fromiter(pictures, dtype=np.int64), network(tf.stack(list(pictures.values()))), backend)
    return bad


def _put(x: Array, rows: np.ndarray, features: tf.Tensor, backend: Backend) -> None:
    x[backend.from_host(rows)] = backend.from_tensorflow(features)

"""Embeds pictures that are in memory already, batch by batch.

Input: decoded pictures (h, w, 3) uint8 and an engine. Output: their embeddings, on the device. This module must not
know files, the store or the job.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from gpu_cluster.backend import HeldRows, JoinedRows, Rows
from gpu_cluster.embedding.engines import Engine
from gpu_cluster.embedding.extractors import Joined
from gpu_cluster.embedding.shards import columns_of, features_of
from gpu_cluster.events import Observer
from gpu_cluster.images.decode import Pixels


def embed_decoded(pictures: Iterable[Pixels], n: int, engine: Engine, observer: Observer) -> Rows:
    """Embed n pictures, each (h, w, 3) uint8, RGB, in their order; return (n, d) float32 on the device.

    The pictures are taken when their batch is computed. Large JPEGs are reduced while a file is decoded, so the
    embedding of such a file differs in its last digits from that of its pixels.

    Memory: the matrix (n, d), and a batch of pixels.

    Raises
    ------
    DeviceError
        When the memory of the device is too small even for one picture.
    """
    backend, d = engine.backend, engine.extractor.n_features
    backend.claim_device(4 * n * d)
    engine.build()
    x, waiting, done = backend.empty((n, d)), iter(pictures), 0
    while batch := list(islice(waiting, engine.batch_size)):
        squares = [tuple(part.square(picture) for part in engine.parts) for picture in batch]
        x[done : done + len(batch), :] = features_of(engine, engine.stack(squares), len(batch))
        done += len(batch)
        observer.progress("embed", done, n)
    if not isinstance(engine.extractor, Joined):
        return HeldRows(x, backend)
    parts = [HeldRows(x[:, columns], backend) for columns in columns_of(engine)]
    return JoinedRows(parts, engine.extractor.shares, backend)

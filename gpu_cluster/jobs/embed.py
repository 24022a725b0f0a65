"""The job `embed`: turns image files into embeddings in memory. It is available from Python only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpu_cluster.backend import Backend
from gpu_cluster.config import EmbedJobConfig
from gpu_cluster.embedding import embed as embedding
from gpu_cluster.embedding import features
from gpu_cluster.embedding.engines import Engine, choose_engine
from gpu_cluster.errors import DataError
from gpu_cluster.events import Observer, Recorder
from gpu_cluster.files import printable
from gpu_cluster.jobs.prepare import opened
from gpu_cluster.manifest import Manifest


def embed(files: Sequence[Path], config: EmbedJobConfig, observer: Observer | None = None) -> npt.NDArray[np.float32]:
    """Embed image files; return (n, d) float32, host, in the order of `files`.

    Raises
    ------
    DataError
        When a file cannot be decoded; the message names the first such file.
    GpuClusterError
        For everything else that stops a job (see `gpu_cluster.errors`).
    """
    if not files:
        asked_for = features.extractor_of(config.embed, features.Weights(config.embed.weights))
        return np.empty((0, asked_for.n_features), np.float32)
    # Unlike other manifests, this one is not sorted, and a file may occur twice: the result has the order of `files`.
    asked = Manifest(Path.cwd(), tuple(str(file.absolute()) for file in files))
    events = Recorder(observer or Observer())

    def prepared(weights: features.Weights, backend: Backend, _manifest: Manifest) -> Engine:
        return choose_engine(backend, features.extractor_of(config.embed, weights), config.embed)

    with opened(config, events, lambda: asked, prepared, workers=config.executor) as job, events.stage("embed"):
        found = embedding.embed(
            job.manifest,
            job.source,
            job.tools,
            store=job.store,
            store_config=config.store,
            observer=events,
            elsewhere=job.elsewhere(job.tools, config.embed, None),
        )
        bad = job.manifest.with_bad(found.bad).bad
        if bad:
            first = min(bad)
            raise DataError(
                f"{len(bad)} of {len(files)} files cannot be embedded; the first is "
                f"{printable(str(files[first]))!r}: {bad[first]}"
            )
        return np.asarray(job.backend.to_host(found.x.whole()))

"""The job: images in, a run folder out. This file is the flow; each step of it is a module of that name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from gpu_cluster.backend import Backend
from gpu_cluster.clustering.cluster import cluster
from gpu_cluster.clustering.model import Model, save_model
from gpu_cluster.clustering.near_duplicates import find_similar
from gpu_cluster.clustering.reduce import reduce
from gpu_cluster.clustering.score import score
from gpu_cluster.clustering.sweep import sweep_k
from gpu_cluster.clustering.tsne import lay_out
from gpu_cluster.config import JobConfig
from gpu_cluster.embedding import extractors
from gpu_cluster.embedding.embed import embed
from gpu_cluster.embedding.extractors import Extractor
from gpu_cluster.errors import DeviceError, JobError
from gpu_cluster.events import Observer, Recorder
from gpu_cluster.jobs.prepare import Job, filled, nothing_readable, prepare
from gpu_cluster.options import command_line
from gpu_cluster.report.page import write_page
from gpu_cluster.report.tables import write_bad_files, write_report, write_run_record
from gpu_cluster.results import Embeddings, Findings, Manifest, RunResult


def run_job(config: JobConfig, observer: Observer | None = None) -> RunResult:
    """Run a whole job and leave its run folder.

    Whatever can be wrong with the options, the input or the output is found before work starts. What a job that is
    stopped has embedded is in the store, and the next run with the same pictures goes on from there.

    Raises
    ------
    NothingReadableError
        When no file could be decoded; the run folder then holds the reasons.
    GpuClusterError
        For everything else that stops a job (see `gpu_cluster.errors`); then no run folder is left.
    """
    events = Recorder(observer or Observer())
    with events.stage("scan"):
        job, extractor = prepare(config, events, lambda weights: extractors.of_vgg16(weights, config.embed))
    with filled(job) as stage:
        manifest, findings = _find(job, extractor)
        result = job.result(manifest, findings)
        if findings is None:
            write_bad_files(stage.path / "bad_files.csv", manifest)
        else:
            with events.stage("report"):
                write_report(stage.path, manifest, findings, config.report, backend=job.backend)
                save_model(stage.path / "model", _model(findings, extractor, config, job.backend), job.backend)
        write_run_record(stage.path, result, command=command_line(config), backend=job.backend)
        if findings is not None:
            with events.stage("page"):
                _try_page(stage.path, events)
    if findings is None:
        raise nothing_readable(manifest, stage.folder)
    return replace(result, folder=stage.folder)


def _find(job: Job, extractor: Extractor) -> tuple[Manifest, Findings | None]:
    """Run the stages; nothing is found where no file could be decoded."""
    config, backend, events, seed = job.config, job.backend, job.events, job.config.seed
    with events.stage("embed"):
        embeddings = embed(
            job.manifest,
            extractor,
            config.embed,
            store=job.store,
            store_config=config.store,
            backend=backend,
            observer=events,
        )
    manifest = job.manifest.with_bad(embeddings.bad)
    _add_up(manifest, embeddings)
    n, d = embeddings.x.shape
    if not n:
        return manifest, None
    originals = manifest.originals(embeddings.rows)
    with _memory_error_explained(n, d, backend):
        with events.stage("reduce"):
            projection = reduce(
                embeddings,
                config.reduce,
                sweep_space=config.sweep.sweep_space,
                backend=backend,
                originals=originals,
            )
        with events.stage("sweep"):
            sweep = sweep_k(
                projection,
                config.sweep,
                config.cluster,
                config.score,
                seed=seed,
                backend=backend,
                observer=events,
            )
        with events.stage("cluster"):
            clustering = cluster(
                projection,
                sweep.best_k,
                config.cluster,
                seed=seed,
                backend=backend,
                observer=events,
                originals=originals,
            )
        with events.stage("score"):
            scores = score(
                manifest,
                embeddings,
                projection,
                clustering,
                config.score,
                seed=seed,
                backend=backend,
                observer=events,
                originals=originals,
            )
        with events.stage("similar"):
            similar = find_similar(manifest, embeddings, backend=backend, observer=events)
        with events.stage("layout"):
            layout = lay_out(
                projection, config.report, seed=seed, backend=backend, observer=events, originals=originals
            )
    return manifest, Findings(embeddings, projection, sweep, clustering, scores, similar, layout)


def _try_page(folder: Path, events: Recorder) -> None:
    """Write the page; hours of work are not lost where that fails, whatever the reason is."""
    try:
        write_page(folder)
    except Exception as error:
        if events.stopping():
            raise
        # Not in the words of `gpu-cluster report`, which name a folder: this one is about to change its name.
        cause = error.__cause__ or error
        why = getattr(cause, "strerror", None) or f"{type(cause).__name__}: {cause}"
        events.notice(f"No report.html, which `gpu-cluster report` can write later: {why}")


@contextmanager
def _memory_error_explained(n: int, d: int, backend: Backend) -> Iterator[None]:
    """Say what did not fit where, and what helps; NumPy, CuPy and RMM all raise a MemoryError."""
    try:
        yield
    except MemoryError as error:
        size, free = n * d * 4 / 1e9, backend.free_bytes() / 1e9
        raise DeviceError(
            f"out of memory on the {backend.name} while clustering a matrix of {n} x {d} float32, {size:.2f} GB, "
            f"{free:.2f} GB free: a smaller --silhouette-sample, --sweep-space projection or fewer --pca components "
            "need less; or use a device with more memory"
        ) from error


# A picture is far from all that was clustered where this share of its cluster's pictures are nearer to the centre.
_NEARER = 0.99


def _model(findings: Findings, extractor: Extractor, config: JobConfig, backend: Backend) -> Model:
    """Return what `predict` needs of what was found."""
    clustering, table = findings.clustering, findings.scores.contingency
    labels, distances = backend.to_host(clustering.labels), backend.to_host(clustering.distances)
    far = [np.quantile(distances[labels == cluster], _NEARER) for cluster in range(clustering.k)]
    names = None
    if table is not None:
        most = table.counts.argmax(axis=0)
        names = [table.classes[row] if table.counts[row, cluster] else None for cluster, row in enumerate(most)]
    return Model(
        config.embed, extractor.key, findings.projection.reduction, clustering.centres, np.array(far, np.float32), names
    )


def _add_up(manifest: Manifest, embeddings: Embeddings) -> None:
    """Refuse to go on where a file was lost on the way: every one found is ok, bad or a duplicate."""
    counts = manifest.counts()
    n = counts["ok"] + counts["duplicate"]
    if counts["found"] != n + counts["bad"] or not n == len(embeddings.rows) == len(embeddings.x):
        raise JobError(f"the files do not add up: {counts}, {len(embeddings.rows)} embeddings; please report it")

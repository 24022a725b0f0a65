"""The job `run`: it reads pictures and writes a run folder.

This module only puts the steps in order; each step is a function in a module of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from gpu_cluster import run_folder
from gpu_cluster.backend import Backend
from gpu_cluster.backend.memory import memory_error_explained
from gpu_cluster.clustering.model import Model, save_model
from gpu_cluster.clustering.near_duplicates import NEARLY_THE_SAME, find_near_duplicates
from gpu_cluster.clustering.sequence import find_clusters
from gpu_cluster.clustering.sweep import check_ks
from gpu_cluster.config import EmbedConfig, RunConfig, parse_k_range
from gpu_cluster.embedding import features
from gpu_cluster.embedding.embed import embed
from gpu_cluster.embedding.engines import Engine, choose_engine
from gpu_cluster.embedding.extractors import Extractor, Joined
from gpu_cluster.embedding.given import NO_ENGINE, Given, matched, opened_vectors
from gpu_cluster.embedding.vectors import Vectors
from gpu_cluster.errors import JobError
from gpu_cluster.events import Observer, Recorder
from gpu_cluster.jobs.kept import KeptResults
from gpu_cluster.jobs.prepare import (
    Job,
    as_written,
    choose_folder,
    describe_device,
    describe_features,
    describe_workers,
    filled,
    find_labelled,
    nothing_readable,
    opened,
    rewriting_of,
    scratch_in,
    tell_memory,
)
from gpu_cluster.manifest import Manifest
from gpu_cluster.options import PRESETS, command_line
from gpu_cluster.report.notebook import notebook_view
from gpu_cluster.report.page import write_page
from gpu_cluster.report.tables import write_bad_files, write_report, write_run_record
from gpu_cluster.results import Embeddings, Findings, RunResult, encode_labels
from gpu_cluster.store.parts import Parts, fingerprint

# What makes the embeddings, and the run folder to write.
_Tools: TypeAlias = tuple[Engine | Given, Path]


def run(
    config: RunConfig,
    observer: Observer | None = None,
    *,
    array: Any = None,
    array_names: Sequence[str] | None = None,
) -> RunResult:
    """Run the whole job and write its run folder.

    `array` are the embeddings (n, d), if the config says that they are in memory, and `array_names` their pictures.

    The options, the input and the output are checked before work starts. When a job is stopped, the store (if one is
    used) has kept the batches that were complete, and the next run with the same pictures goes on from there.

    Raises
    ------
    NothingReadableError
        When no file could be decoded; the run folder then holds the reasons.
    GpuClusterError
        For everything else that stops a job (see `gpu_cluster.errors`); then no run folder is left.
    """
    with opened_vectors(config.given, array, array_names) as vectors:
        return _run(config, Recorder(observer or Observer()), vectors)


def _run(config: RunConfig, events: Recorder, vectors: Vectors | None) -> RunResult:
    """Run the job with a network, or with vectors that were given."""

    def find() -> Manifest:
        return find_labelled(config.input, events, config.store).without_used(*config.given.named())

    def checked(origin: Engine | Given, manifest: Manifest) -> _Tools:
        check_ks(config.sweep, len(manifest))
        _tell_who_gave_k(config, events)
        return origin, choose_folder(config, manifest, events)

    def with_network(weights: features.Weights, backend: Backend, manifest: Manifest) -> _Tools:
        features.check_scaling(config.embed.features, config.reduce.scaling)
        return checked(choose_engine(backend, features.extractor_of(config.embed, weights), config.embed), manifest)

    def with_vectors(_backend: Backend, manifest: Manifest) -> _Tools:
        assert vectors is not None, "else a network runs"
        scaling, by = config.reduce.scaling, config.given.embedded_by
        return checked(matched(vectors, manifest, events, scaling=scaling, by=by), manifest)

    given = None if vectors is None else with_vectors
    with opened(config, events, find, with_network, workers=config.executor, without_network=given) as job:
        origin, folder = job.tools
        parts = Parts(None if job.store is None else job.store.root, read=not config.store.force)
        rewrite = rewriting_of(config, job.manifest, folder, *_network(origin))
        with filled(folder, events, overwrite=config.report.overwrite, rewrite=rewrite) as stage:
            n = len(job.manifest) - len(job.manifest.bad)
            whole = config.sweep.sweep_space == "scaled"
            tell_memory(config, n, origin.n_features, job, whole=whole)
            with scratch_in(stage.path) as scratch:
                manifest, findings = _find(job, origin, parts, scratch)
            written = as_written(manifest, rewrite)
            result = RunResult(
                folder=folder,
                config=config,
                manifest=manifest,
                findings=findings,
                weights=features.weights_of(*_network(origin)),
                features=describe_features(*_network(origin)),
                embeddings=origin.record if isinstance(origin, Given) else None,
                device=_describe(job.backend, origin) | describe_workers(job.executor),
                device_reason=job.choice.reason,
                stages_s=events.stages_s,
                notices=events.notices,
                view=notebook_view,
            )
            if findings is None:
                write_bad_files(stage.path / run_folder.BAD_FILES, written, safe=config.report.safe_csv)
            else:
                with events.stage("report"):
                    write_report(
                        stage.path,
                        written,
                        job.source,
                        findings,
                        config.report,
                        backend=job.backend,
                        parts=parts,
                        copies=job.copies,
                    )
                    if parts.found:
                        events.notice(f"The store holds of an earlier run what is the same: {', '.join(parts.found)}")
                    save_model(
                        stage.path / run_folder.MODEL, _model(findings, origin, config.embed, job.backend), job.backend
                    )
            record = replace(result, manifest=written)
            write_run_record(stage.path, record, findings, command=command_line(config), backend=job.backend)
            if findings is not None:
                with events.stage("page"):
                    _try_page(stage.path, events, replace(job, manifest=manifest), parts)
    if findings is None:
        raise nothing_readable(manifest, stage)
    return replace(result, folder=stage.folder, earlier_run=stage.earlier_run)


def _tell_who_gave_k(config: RunConfig, events: Recorder) -> None:
    """Report a k that is given beside a range, and which option gave it."""
    k, tried = config.sweep.k, config.sweep.k_range or config.sweep.default_range
    if k is None or parse_k_range(tried) == (k,):
        return
    by_preset = PRESETS[config.preset].get("sweep", {}).get("k") == k
    giver = f"--preset {config.preset}" if by_preset else "--k"
    events.notice(f"k is {k}, as {giver} says; the range {tried} is tried and shown too")


def _network(origin: Engine | Given) -> list[Extractor | Joined]:
    """Return the features that an engine computes; nothing if the embeddings were given."""
    return [] if isinstance(origin, Given) else [origin.extractor]


def _describe(backend: Backend, origin: Engine | Given) -> dict[str, Any]:
    """Return the facts about the device, and about the engine if one ran, for `run.json`."""
    if isinstance(origin, Given):
        return describe_device(backend) | NO_ENGINE
    return describe_device(backend, origin)


def _embedded(job: Job[RunConfig, _Tools], origin: Engine | Given, scratch: Path) -> Embeddings:
    """Return the embeddings of the pictures: by the network, or those that were given."""
    if isinstance(origin, Given):
        return origin.embeddings(job.manifest, job.backend, job.events, scratch=scratch)
    return embed(
        job.manifest,
        job.source,
        origin,
        store=job.store,
        store_config=job.config.store,
        observer=job.events,
        scratch=scratch,
        elsewhere=job.elsewhere(origin, job.config.embed, scratch),
    )


def _find(
    job: Job[RunConfig, _Tools], origin: Engine | Given, parts: Parts, scratch: Path
) -> tuple[Manifest, Findings | None]:
    """Run the stages from embed to tsne; return the manifest with its bad files, and None if no file can be decoded."""
    config, backend, events = job.config, job.backend, job.events
    with events.stage("embed"):
        embeddings = _embedded(job, origin, scratch)
    manifest = job.manifest.with_bad(embeddings.bad)
    _add_up(manifest, embeddings)
    n, d = embeddings.x.shape
    if not n:
        return manifest, None
    originals = manifest.originals(embeddings.rows)
    key = origin.key if isinstance(origin, Given) else origin.extractor.key
    of = [key, fingerprint(manifest.facts.hashes()[embeddings.rows])]
    kept = KeptResults(parts, of, config, backend=backend, events=events)
    with memory_error_explained("clustering", n, d, backend):
        found = find_clusters(
            embeddings.x,
            config,
            backend=backend,
            events=events,
            sweep_space=config.sweep.sweep_space,
            sweep=kept.sweep,
            holdout=config.score.holdout,
            truth=encode_labels(manifest, embeddings.rows),
            originals=originals,
        )
        with events.stage("near_duplicates"):
            near_duplicates = find_near_duplicates(embeddings.x, backend=backend, observer=events, originals=originals)
            if isinstance(origin, Given) and 2 * len(near_duplicates) > _MANY_PAIRS * n:
                events.notice(
                    f"{len(near_duplicates):,} pairs of near duplicates: with these embeddings many pictures have a "
                    f"cosine above {NEARLY_THE_SAME}, a limit that was measured with VGG16; the list says little"
                )
        with events.stage("tsne"):
            tsne = kept.tsne(found.projection, originals)
    return manifest, Findings(
        embeddings, found.projection, found.sweep, found.clustering, found.scores, near_duplicates, tsne
    )


def _try_page(folder: Path, events: Recorder, job: Job[RunConfig, _Tools], parts: Parts) -> None:
    """Write the page; if that fails for whatever reason, report it and keep the results, which may be hours of work."""
    try:
        write_page(
            run_folder.FinishedRun(folder),
            events,
            found=job.manifest,
            parts=parts,
            source=job.source,
            copies=job.copies,
        )
    except Exception as error:
        if events.stopping():
            raise
        # The messages of `gpu-cluster report` name the run folder, but this folder is about to be renamed.
        cause = error.__cause__ or error
        why = getattr(cause, "strerror", None) or f"{type(cause).__name__}: {cause}"
        events.notice(f"report.html could not be written, which `gpu-cluster report` can do later: {why}")


# From this share of the pictures in pairs on, the limit for near duplicates does not fit embeddings that were given.
_MANY_PAIRS = 0.5

# A picture counts as far when this share of the pictures that formed its cluster are nearer to the centre.
_NEARER = 0.99


def _model(findings: Findings, origin: Engine | Given, config: EmbedConfig, backend: Backend) -> Model:
    """Return the parts of the results that `predict` needs."""
    clustering, table = findings.clustering, findings.scores.contingency
    labels, distances = backend.to_host(clustering.labels), backend.to_host(clustering.distances)
    far = [np.quantile(distances[labels == cluster], _NEARER) for cluster in range(clustering.k)]
    names = None
    if table is not None:
        frequent = (table.most_frequent(cluster) for cluster in range(clustering.k))
        names = [labels_there[0][0] if labels_there else None for labels_there in frequent]
    if isinstance(origin, Given):
        embed_options, features = None, origin.features
    else:
        embed_options, features = config.model_copy(update={"engine": origin.name}), dict(origin.extractor.key)
    return Model(
        embed_options,
        features,
        findings.projection.reduction,
        clustering.centres,
        np.array(far, np.float32),
        names,
    )


def _add_up(manifest: Manifest, embeddings: Embeddings) -> None:
    """Check that no file was lost on the way: every file found is ok, bad, a duplicate or passed over.

    Raises
    ------
    JobError
        When the numbers do not add up, which is an error in this program.
    """
    counts = manifest.counts()
    n = counts["ok"] + counts["duplicate"]
    if (
        counts["found"] != n + counts["bad"] + counts["passed_over"]
        or not n == len(embeddings.rows) == (embeddings.x.shape[0])
    ):
        raise JobError(f"the files do not add up: {counts}, {len(embeddings.rows)} embeddings; please report it")

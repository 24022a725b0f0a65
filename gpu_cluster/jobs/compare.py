"""The job `compare`: combines several kinds of features with several algorithms; writes one table and one plot.

Each kind of features is embedded through the store and reduced as in `run`. Every algorithm then groups the same space
into the same number of groups, except HDBSCAN, which finds its own number. Labels take no part in this: they are only
compared with the groups.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, cast, get_args

import numpy as np

from gpu_cluster import run_folder
from gpu_cluster.backend import Array, Backend, IntArray, take
from gpu_cluster.clustering import kmeans
from gpu_cluster.clustering.cluster import of_labels
from gpu_cluster.clustering.score import score
from gpu_cluster.clustering.sequence import find_k, find_space
from gpu_cluster.clustering.sweep import check_ks
from gpu_cluster.config import (
    Algorithm,
    CompareConfig,
    ComparedConfig,
    EmbedConfig,
    PixelsConfig,
    ReduceConfig,
    RunConfig,
)
from gpu_cluster.embedding import extractors, features
from gpu_cluster.embedding.embed import embed
from gpu_cluster.embedding.engines import choose_engine
from gpu_cluster.embedding.extractors import Extractor, Joined
from gpu_cluster.errors import ConfigError, DeviceError, JobError, WeightsError
from gpu_cluster.events import Observer, Recorder
from gpu_cluster.files import printable
from gpu_cluster.jobs.prepare import (
    Job,
    as_written,
    choose_folder,
    describe_device,
    describe_features,
    filled,
    find_labelled,
    moved_words,
    nothing_readable,
    opened,
    rewriting_of,
    scratch_in,
    tell_memory,
)
from gpu_cluster.manifest import Manifest
from gpu_cluster.options import build_config, command_line
from gpu_cluster.report.tables import write_bad_files, write_comparison, write_run_record
from gpu_cluster.results import Compared, Comparison, Embeddings, JobRecord, Projection, encode_labels
from gpu_cluster.sampling import sorted_sample
from gpu_cluster.words import count, did_you_mean

# For more images than this only k-means runs: at this number Ward's n (n - 1) / 2 distances take 1.6 GB, and the other
# algorithms also compare every image with every other.
MOST_IMAGES = 20_000

# For more images than that, default features with more numbers than this are left out: with 25,088 numbers for each
# image the matrix would take 2 GB or more.
_MOST_FEATURES = 10_000

# How many subsamples measure the stability, and the share of the images in each; the share is from Ben-Hur, Elisseeff
# and Guyon (2002).
_N_SUBSAMPLES, _SUBSAMPLE = 5, 0.8

ALGORITHMS = ("kmeans", *get_args(Algorithm))

NOTEBOOK = "notebook"

FEATURES = (*features.NAMES, NOTEBOOK)
_DEFAULTS = (
    "vgg16-gem-4-5",
    "vgg16-average",
    "vgg16-flatten",
    "efficientnet-lite2",
    EmbedConfig().features,
    NOTEBOOK,
    "colours",
    "hog",
)


def default_features() -> tuple[str, ...]:
    """Return the features that are compared by default: not every pooling, and only networks whose weights are here."""
    return (*_DEFAULTS, *(name for name in extractors.KERAS_MODELS if features.here(name)))


@dataclass(frozen=True)
class _Recipe:
    """How pictures become the space to cluster: what embeds them, and how the embeddings are reduced."""

    name: str
    extractor: Extractor | Joined
    embed: PixelsConfig
    reduce: ReduceConfig


_Job: TypeAlias = Job[CompareConfig, tuple[list[_Recipe], Path]]


def compare(config: CompareConfig, observer: Observer | None = None) -> Comparison:
    """Compare features and algorithms, and write a folder with the table and the plot.

    Raises
    ------
    ConfigError
        For a feature or an algorithm that is not known.
    WeightsError
        When the weights of a requested network are not on this machine.
    NothingReadableError
        When no file could be decoded; the folder then holds the reasons.
    JobError
        When no algorithm found groups with any features; the folder then holds the reasons.
    GpuClusterError
        For everything else that stops a job (see `gpu_cluster.errors`); then no folder is left.
    """
    events = Recorder(observer or Observer())
    names = _known_features(config.compare.features) or _default_features_for(config)
    if config.embed.weights is not None and not any(name == NOTEBOOK or features.has_vgg16(name) for name in names):
        raise ConfigError(f"--weights: it names weights of VGG16, which is not among the features {', '.join(names)}")
    algorithms = _known(config.compare.algorithms, ALGORITHMS, "--algorithms") or ALGORITHMS

    def prepared(weights: features.Weights, backend: Backend, manifest: Manifest) -> tuple[list[_Recipe], Path]:
        check_ks(config.sweep, len(manifest))
        recipes = [_recipe(name, weights, config) for name in names]
        # This is called only for its checks: of the precision, and of an engine that does not run some of the features.
        for recipe in recipes:
            choose_engine(backend, recipe.extractor, recipe.embed)
        return recipes, choose_folder(config, manifest, events, prefix="compare-")

    with opened(config, events, lambda: find_labelled(config.input, events, config.store), prepared) as opened_job:
        recipes, folder = opened_job.tools
        if not config.compare.features and len(opened_job.manifest) > MOST_IMAGES:
            recipes = [recipe for recipe in recipes if recipe.extractor.n_features <= _MOST_FEATURES]
            events.notice(
                f"More than {MOST_IMAGES:,} images: features of more than {_MOST_FEATURES:,} numbers are left out; "
                "to compare them, name them with --features"
            )
        # The record names the features that were really compared: the defaults may differ on another machine.
        compared = ComparedConfig(features=tuple(recipe.name for recipe in recipes), algorithms=algorithms)
        job = replace(opened_job, config=config.model_copy(update={"compare": compared}))
        rewrite = rewriting_of(config, job.manifest, folder, *(recipe.extractor for recipe in recipes))
        with filled(folder, events, overwrite=config.report.overwrite, rewrite=rewrite) as stage:
            rows, manifest = _fill(job, recipes, stage.path)
            found = Comparison(folder=folder, config=job.config, manifest=manifest, rows=rows)
            readable = len(manifest.bad) < len(manifest)
            written = replace(
                found,
                manifest=as_written(manifest, rewrite),
                rows=tuple(replace(row, reason=row.reason and rewrite(row.reason)) for row in rows),
            )
            _write(stage.path, written, job, recipes, readable=readable)
    grouped = any(row.reason is None for row in rows)
    if not grouped and not readable:
        raise nothing_readable(manifest, stage)
    if not grouped:
        raise JobError(
            f"nothing could be grouped; the reasons are in {printable(str(stage.folder / run_folder.COMPARISON))!r}, "
            f"the first: {rows[0].reason}{moved_words(stage)}"
        )
    return replace(found, folder=stage.folder, earlier_run=stage.earlier_run)


def _write(folder: Path, found: Comparison, job: _Job, recipes: Sequence[_Recipe], *, readable: bool) -> None:
    """Write the folder of a comparison; write the table only if a file could be read or something was grouped."""
    write_bad_files(folder / run_folder.BAD_FILES, found.manifest, safe=found.config.report.safe_csv)
    # If all files became unreadable while the job ran, the groups found before are still reported.
    if readable or any(row.reason is None for row in found.rows):
        with job.events.stage("report"):
            write_comparison(folder, found)
    record = JobRecord(
        config=job.config,
        manifest=found.manifest,
        weights=features.weights_of(*(recipe.extractor for recipe in recipes)),
        features=[{"name": recipe.name, "parts": describe_features(recipe.extractor)} for recipe in recipes],
        device=describe_device(
            job.backend, *(choose_engine(job.backend, recipe.extractor, recipe.embed) for recipe in recipes)
        ),
        device_reason=job.choice.reason,
        stages_s=job.events.stages_s,
        notices=job.events.notices,
    )
    write_run_record(folder, record, None, command=command_line(job.config), backend=job.backend)


def _default_features_for(config: CompareConfig) -> tuple[str, ...]:
    """Return the default features that these options can be applied to."""
    names = default_features()
    if config.reduce.scaling != "sqrt-l2":
        return names
    return tuple(name for name in names if name == NOTEBOOK or not features.has_below_0(name))


def _fill(job: _Job, recipes: Sequence[_Recipe], folder: Path) -> tuple[tuple[Compared, ...], Manifest]:
    """Return every row of the table, and the manifest with its bad files."""
    rows: list[Compared] = []
    manifest, k = job.manifest, job.config.sweep.k
    for recipe in recipes:
        # Files that turned out bad with one recipe are left out by the recipes after it.
        with scratch_in(folder) as scratch:
            more, manifest, k = _of_recipe(replace(job, manifest=manifest), recipe, k, scratch)
        rows += more
    return tuple(rows), manifest


def _of_recipe(job: _Job, recipe: _Recipe, k: int | None, scratch: Path) -> tuple[list[Compared], Manifest, int | None]:
    """Return the rows of one kind of features, the manifest with its bad files, and k.

    This is a function of its own so that the memory of the space is free when it returns.
    """
    events, backend = job.events, job.backend
    algorithms, manifest = job.config.compare.algorithms, job.manifest
    start = time.perf_counter()
    try:
        with events.stage("embed"):
            events.notice(f"{recipe.name}: {recipe.extractor.n_features:,} numbers for each picture")
            tell_memory(
                job.config.model_copy(update={"reduce": recipe.reduce}),
                len(manifest) - len(manifest.bad),
                recipe.extractor.n_features,
                job,
            )
            engine = choose_engine(backend, recipe.extractor, recipe.embed)
            embeddings = embed(
                manifest,
                job.source,
                engine,
                store=job.store,
                store_config=job.config.store,
                observer=events,
                scratch=scratch,
            )
        manifest = manifest.with_bad(embeddings.bad)
        n = len(embeddings.rows)
        if not n:
            return _without_result(recipe, algorithms, "left out: no file can be decoded"), manifest, k
        config = job.config.model_copy(update={"reduce": recipe.reduce})
        projection = find_space(embeddings.x, config, backend=backend, events=events)
        elapsed_s = time.perf_counter() - start if embeddings.n_whole >= n - len(manifest.duplicates) else None
        space = _Space(recipe, manifest, embeddings, projection, elapsed_s)
        if k is None:
            k = _choose_k(job, space)
    # TensorFlow's lack of memory arrives as a DeviceError. A Keras weights file that cannot be loaded is only found
    # here, when the network is built.
    except (MemoryError, DeviceError, WeightsError) as error:
        # Other features may need only a hundredth of the memory, so the job goes on with them.
        return _without_result(recipe, algorithms, _failure(job, recipe.name, error)), manifest, k
    with events.stage("cluster"):
        rows = [_compare(job, space, algorithm, k) for algorithm in algorithms]
    return rows, manifest, k


def _without_result(recipe: _Recipe, algorithms: Sequence[str], why: str) -> list[Compared]:
    return [Compared(recipe.name, algorithm, "", reason=why) for algorithm in algorithms]


def _failure(job: _Job, what: str, error: Exception) -> str:
    """Report why there is no result, and return this reason for the rows of the table."""
    why = f"failed: {type(error).__name__} {' '.join(str(error).split())}"
    job.events.notice(f"{what} {why}")
    return why


def _choose_k(job: _Job, space: _Space) -> int:
    with job.events.stage("sweep"):
        k = find_k(space.projection, job.config, backend=job.backend, events=job.events).best_k
    job.events.notice(f"k is {k}, chosen in the space of {space.recipe.name}")
    return k


def _known(named: Sequence[str], known: Sequence[str], option: str) -> tuple[str, ...]:
    """Return the names without repetitions, in their order, after checking that each is known."""
    for name in named:
        if name not in known:
            raise ConfigError(f"{option}: unknown {name!r}{did_you_mean(name, known)}; known are {', '.join(known)}")
    return tuple(dict.fromkeys(named))


def _known_features(named: Sequence[str]) -> tuple[str, ...]:
    """Return the features without repetitions, in their order, after checking that each is known."""
    for name in named:
        if name != NOTEBOOK:
            features.check_names(name)
    return tuple(dict.fromkeys(named))


def _recipe(name: str, weights: features.Weights, config: CompareConfig) -> _Recipe:
    embedding, reduction = config.embed, config.reduce
    if name == NOTEBOOK:
        theirs = build_config(RunConfig, preset=NOTEBOOK)
        taken = {"batch_size", "precision", "image_size"} | ({"engine"} if embedding.engine != "auto" else set())
        notebook = theirs.embed.model_copy(update=embedding.model_dump(include=taken))
        return _Recipe(name, features.extractor_of(notebook, weights), notebook, theirs.reduce)
    features.check_scaling(name, reduction.scaling)
    # Weights of VGG16 may be named for those of the features that are of it.
    options = embedding.model_dump()
    if not features.has_vgg16(name):
        del options["weights"]
    asked = EmbedConfig(**options, features=name)
    return _Recipe(name, features.extractor_of(asked, weights), asked, reduction)


@dataclass(frozen=True)
class _Space:
    """The space that one recipe makes of the pictures; `elapsed_s` is None if the store held some of the embeddings."""

    recipe: _Recipe
    manifest: Manifest
    embeddings: Embeddings
    projection: Projection
    elapsed_s: float | None


def _compare(job: _Job, space: _Space, algorithm: str, k: int) -> Compared:
    """Group one space by one algorithm, and score the groups."""
    config, backend = job.config, job.backend
    x, n = space.projection.x, len(space.embeddings.rows)
    k = min(k, n)
    row = Compared(space.recipe.name, algorithm, space.projection.space, space.elapsed_s)
    if algorithm != "kmeans" and n > MOST_IMAGES:
        return replace(row, reason=f"left out: {n:,} images are more than {MOST_IMAGES:,}")
    if n < 3:
        return replace(row, reason=f"left out: {count(n, 'image')} {'is' if n == 1 else 'are'} too few")
    if algorithm != "kmeans" and k > (most := backend.most_groups(cast(Algorithm, algorithm), n)):
        return replace(
            row,
            reason=f"left out: on the {backend.name} it finds at most {most:,} groups among {n:,} images; k is {k:,}",
        )
    group = _grouper(algorithm, config, backend)
    start = time.perf_counter()
    try:
        found = backend.to_host(group(x, k))
        elapsed_s = time.perf_counter() - start
        stability = _stability(x, found, lambda part: group(part, min(k, part.shape[0])), config.seed, backend)
        clustering = of_labels(space.projection.x, found, backend=backend)
        scores = score(
            space.projection.x,
            clustering,
            config.score,
            seed=config.seed,
            backend=backend,
            observer=job.events,
            truth=encode_labels(space.manifest, space.embeddings.rows),
        )
    # If the library of one algorithm fails on one space, only this row is lost, not the rows that took hours.
    except Exception as error:
        if job.events.stopping():
            raise
        return replace(row, reason=_failure(job, f"{space.recipe.name}, {algorithm}", error))
    external = scores.external or {}
    return replace(
        row,
        n_images=n,
        k=clustering.k - int((found < 0).any()),
        noise=float(np.mean(found < 0)),
        silhouette=scores.internal["silhouette"],
        davies_bouldin=scores.internal["davies_bouldin"],
        stability=stability,
        homogeneity=external.get("homogeneity"),
        adjusted_rand=external.get("adjusted_rand"),
        normalized_mutual_info=external.get("normalized_mutual_info"),
        cluster_s=elapsed_s,
    )


def _grouper(algorithm: str, config: CompareConfig, backend: Backend) -> Callable[[Array, int], Array]:
    if algorithm == "kmeans":
        given: dict[str, Any] = {"sample": config.sweep.sweep_sample, "seed": config.seed, "backend": backend}
        return lambda x, k: kmeans.fit(x, k, config.cluster, **given).labels
    if algorithm == "hdbscan":
        return lambda x, k: backend.group(x, "hdbscan", k=k, seed=config.seed)

    def group(x: Array, k: int) -> Array:
        # A subsample for the stability may have no more rows than groups, which spectral clustering cannot compute.
        n = x.shape[0]
        if k >= n:
            return backend.from_host(np.arange(n))
        asked = cast(Algorithm, algorithm)
        return backend.group(x, asked, k=min(k, backend.most_groups(asked, n)), seed=config.seed)

    return group


def _stability(x: Array, found: IntArray, group: Callable[[Array], Array], seed: int, backend: Backend) -> float | None:
    """Return how well the groups are found again: the mean adjusted Rand index with the groups of random subsamples.

    Each subsample is grouped by itself. Returns None if all rows are one group or all are noise, because such a result
    is found again whatever the pictures are.
    """
    if (found == found[0]).all():
        return None
    random = np.random.RandomState(seed)
    n = len(found)
    agreed = []
    for _ in range(_N_SUBSAMPLES):
        rows = sorted_sample(n, max(2, round(_SUBSAMPLE * n)), random)
        theirs = backend.to_host(group(take(x, rows, backend)))
        # Numbers from 0, because algorithms number groups in different ways and mark noise with -1.
        one, other = (np.unique(labels, return_inverse=True)[1] for labels in (found[rows], theirs))
        agreed.append(backend.label_scores(one, backend.from_host(other))["adjusted_rand"])
    return float(np.mean(agreed))

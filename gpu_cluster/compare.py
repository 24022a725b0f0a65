"""The job `compare`: several features times several algorithms on the same pictures, in one table and one plot.

Each kind of features is embedded through the store and reduced as `run` does it; every algorithm then groups the same
space into the same number of groups (but HDBSCAN, which finds its own). Labels are only compared with what came out.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast, get_args

import numpy as np

from gpu_cluster import cluster as clusters
from gpu_cluster import features, kmeans, picture, run_folder, vgg16
from gpu_cluster.backend import Array, Backend, select
from gpu_cluster.config import Algorithm, EmbedConfig, JobConfig, ReduceConfig, build_config, command_line
from gpu_cluster.embed import check_precision, embed
from gpu_cluster.errors import ConfigError, NothingReadableError
from gpu_cluster.events import EventLog, Observer, Recorder
from gpu_cluster.features import Extractor
from gpu_cluster.images import discover, scan
from gpu_cluster.reduce import reduce
from gpu_cluster.report import write_bad_files, write_comparison, write_run_record
from gpu_cluster.results import Compared, Comparison, Embeddings, IntArray, Manifest, Projection, RunResult
from gpu_cluster.score import score
from gpu_cluster.store import Store, open_store
from gpu_cluster.sweep import check_ks, sweep_k

# Above this many images all but k-means are left out: Ward holds n (n - 1) / 2 distances, 1.6 GB here, and the others
# compare every image with every other.
MOST_IMAGES = 20_000

# Of the stability; the share is Ben-Hur, Elisseeff and Guyon's (2002).
_N_SUBSAMPLES, _SUBSAMPLE = 5, 0.8

ALGORITHMS = ("kmeans", *get_args(Algorithm))

NOTEBOOK = "notebook"

_POOLINGS = {f"vgg16-{pooling}": pooling for pooling in ("gem-4-5", "gem", "max", "average", "flatten")}
FEATURES = (*_POOLINGS, NOTEBOOK, "colours", "hog", *features.KERAS_MODELS)


def default_features() -> tuple[str, ...]:
    """Return what is compared unless told otherwise: all but some poolings, and networks without weights here."""
    here = (name for name in features.KERAS_MODELS if features.keras_weights(name).is_file())
    return ("vgg16-gem-4-5", "vgg16-average", "vgg16-flatten", NOTEBOOK, "colours", "hog", *here)


@dataclass(frozen=True)
class _Recipe:
    """How pictures become a space: what to embed them by, and what becomes of the embeddings."""

    name: str
    extractor: Extractor
    embed: EmbedConfig
    reduce: ReduceConfig


def run_compare(
    config: JobConfig,
    *,
    feature_names: Sequence[str] = (),
    algorithms: Sequence[str] = (),
    observer: Observer | None = None,
) -> Comparison:
    """Compare features and algorithms, and leave a folder with the table and the plot.

    Raises
    ------
    ConfigError
        For a name that is not known.
    WeightsError
        When the weights of a network asked for are not on this machine.
    NothingReadableError
        When no file could be decoded.
    GpuClusterError
        For everything else that stops a job (see `gpu_cluster.errors`); then no folder is left.
    """
    events = Recorder(observer or Observer())
    with events.stage("scan"):
        weights = vgg16.find_weights(config.embed.weights)
        named = _known(feature_names, FEATURES, "--features") or default_features()
        recipes = [_recipe(name, weights, config) for name in named]
        algorithms = _known(algorithms, ALGORITHMS, "--algorithms") or ALGORITHMS
        choice = select(config.device)
        backend = choice.backend
        check_precision(config.embed, backend)
        manifest = discover(config.input, events)
        check_ks(config.sweep, len(manifest))
        folder = run_folder.choose(config.report.out, name=f"compare-{manifest.root.name}", inputs=config.input.named())
        store = open_store(config.store, events)
        manifest = scan(manifest, config.input, events, store=store, rehash=config.store.rehash)
    with (
        picture.limited(config.input.max_pixels),
        run_folder.staged(folder) as stage,
        (stage.path / "events.jsonl").open("w", encoding="utf-8") as log,
    ):
        events.add(EventLog(log))
        spaces = (_space(recipe, manifest, config, store, backend, events) for recipe in recipes)
        rows: list[Compared] = []
        k = config.sweep.k
        for space in spaces:
            if k is None:
                with events.stage("sweep"):
                    k = sweep_k(
                        space.projection,
                        config.sweep,
                        config.cluster,
                        config.score,
                        seed=config.seed,
                        backend=backend,
                        observer=events,
                    ).best_k
                events.notice(f"k is {k}, chosen in the space of {space.recipe.name}")
            with events.stage("cluster"):
                rows += [_compare(space, algorithm, k, config, backend, events) for algorithm in algorithms]
            manifest = space.manifest
        found = Comparison(folder=folder, manifest=manifest, rows=tuple(rows))
        with events.stage("report"):
            write_bad_files(stage.path / "bad_files.csv", manifest)
            write_comparison(stage.path, found, backend=backend)
        record = RunResult(
            folder=folder,
            config=config,
            manifest=manifest,
            findings=None,
            weights=(weights.path, weights.sha256),
            device=backend.describe(),
            device_reason=choice.reason,
            stages_s=events.stages_s,
            notices=events.notices,
        )
        chosen = ["--features", ",".join(named), "--algorithms", ",".join(algorithms)]
        command = f"{command_line(config, 'compare')} {shlex.join(chosen)}"
        write_run_record(stage.path, record, command=command, backend=backend)
    return replace(found, folder=stage.folder)


def _known(named: Sequence[str], known: Sequence[str], option: str) -> tuple[str, ...]:
    """Return names, each once, in the order given."""
    for name in named:
        if name not in known:
            raise ConfigError(f"{option}: unknown {name!r}; known are {', '.join(known)}")
    return tuple(dict.fromkeys(named))


def _recipe(name: str, weights: vgg16.Weights, config: JobConfig) -> _Recipe:
    embedding, reduction = config.embed, config.reduce
    if name == NOTEBOOK:
        theirs = build_config(preset=NOTEBOOK)
        embedding = theirs.embed.model_copy(
            update={"batch_size": embedding.batch_size, "precision": embedding.precision}
        )
        return _Recipe(name, features.of_vgg16(weights, embedding), embedding, theirs.reduce)
    if name in _POOLINGS:
        embedding = embedding.model_copy(update={"pooling": _POOLINGS[name]})
        return _Recipe(name, features.of_vgg16(weights, embedding), embedding, reduction)
    if name == "colours":
        return _Recipe(name, features.colour_histogram(), embedding, reduction)
    if name == "hog":
        return _Recipe(name, features.oriented_gradients(embedding.image_size), embedding, reduction)
    return _Recipe(name, features.of_keras(name, embedding.image_size), embedding, reduction)


@dataclass(frozen=True)
class _Space:
    """The pictures as one recipe sees them, and what it took to compute that."""

    recipe: _Recipe
    manifest: Manifest
    embeddings: Embeddings
    projection: Projection
    elapsed_s: float | None


def _space(
    recipe: _Recipe, manifest: Manifest, config: JobConfig, store: Store | None, backend: Backend, events: Recorder
) -> _Space:
    start = time.perf_counter()
    with events.stage("embed"):
        events.notice(f"{recipe.name}: {recipe.extractor.n_features:,} numbers a picture")
        embeddings = embed(
            manifest,
            recipe.extractor,
            recipe.embed,
            store=store,
            store_config=config.store,
            backend=backend,
            observer=events,
        )
    manifest = manifest.with_bad(embeddings.bad)
    if not len(embeddings.rows):
        first = next(iter(manifest.bad.values()))
        raise NothingReadableError(f"none of the {len(manifest)} files found could be decoded; the first: {first}")
    with events.stage("reduce"):
        projection = reduce(embeddings, recipe.reduce, sweep_space="projection", backend=backend)
    n_contents = len(embeddings.rows) - len(manifest.duplicates)
    elapsed_s = time.perf_counter() - start if embeddings.n_computed >= n_contents else None
    return _Space(recipe, manifest, embeddings, projection, elapsed_s)


def _compare(space: _Space, algorithm: str, k: int, config: JobConfig, backend: Backend, events: Recorder) -> Compared:
    """Group one space by one algorithm, and judge what comes out."""
    x, n = space.projection.x, len(space.embeddings.rows)
    k = min(k, n)
    row = Compared(space.recipe.name, algorithm, space.projection.space, space.elapsed_s)
    if algorithm != "kmeans" and n > MOST_IMAGES:
        return replace(row, reason=f"left out: {n:,} images are more than {MOST_IMAGES:,}")
    if n < 3:
        return replace(row, reason=f"left out: {n} images are too few")
    group = _grouper(algorithm, config, backend)
    start = time.perf_counter()
    found = backend.to_host(group(x, k))
    elapsed_s = time.perf_counter() - start
    clustering = clusters.of_labels(space.projection, found, backend=backend)
    scores = score(
        space.manifest,
        space.embeddings,
        space.projection,
        clustering,
        config.score,
        seed=config.seed,
        backend=backend,
        observer=events,
    )
    external = scores.external or {}
    return replace(
        row,
        k=clustering.k - int((found < 0).any()),
        noise=float(np.mean(found < 0)),
        silhouette=scores.internal["silhouette"],
        davies_bouldin=scores.internal["davies_bouldin"],
        stability=_stability(x, found, lambda part: group(part, min(k, part.shape[0])), config.seed, backend),
        homogeneity=external.get("homogeneity"),
        adjusted_rand=external.get("adjusted_rand"),
        normalized_mutual_info=external.get("normalized_mutual_info"),
        cluster_s=elapsed_s,
    )


def _grouper(algorithm: str, config: JobConfig, backend: Backend) -> Callable[[Array, int], Array]:
    if algorithm == "kmeans":
        return lambda x, k: kmeans.fit(x, k, config.cluster, seed=config.seed, backend=backend).labels
    return lambda x, k: backend.group(x, cast(Algorithm, algorithm), k=k, seed=config.seed)


def _stability(x: Array, found: IntArray, group: Callable[[Array], Array], seed: int, backend: Backend) -> float:
    """Return the mean adjusted Rand index of the groups with those of random subsamples grouped by themselves."""
    random = np.random.RandomState(seed)
    n = len(found)
    agreed = []
    for _ in range(_N_SUBSAMPLES):
        rows = np.sort(random.choice(n, max(2, round(_SUBSAMPLE * n)), replace=False))
        theirs = backend.to_host(group(backend.xp.take(x, backend.from_host(rows), axis=0)))
        # As numbers from 0, whatever the algorithm calls its groups and its noise.
        one, other = (np.unique(labels, return_inverse=True)[1] for labels in (found[rows], theirs))
        agreed.append(backend.label_scores(one, backend.from_host(other))["adjusted_rand"])
    return float(np.mean(agreed))

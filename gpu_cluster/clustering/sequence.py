"""Runs the steps of every job that clusters, in their order.

Input: embeddings x (n, d). Output: a space, a number of clusters, clusters and scores. This module must not know where
the embeddings come from, or what becomes of the clusters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gpu_cluster.backend import Backend, IntArray, Rows
from gpu_cluster.clustering.cluster import cluster
from gpu_cluster.clustering.reduce import reduce
from gpu_cluster.clustering.score import score
from gpu_cluster.clustering.sweep import sweep_k
from gpu_cluster.config import ClusteringConfig
from gpu_cluster.events import Observer, Recorder
from gpu_cluster.results import Clustering, Projection, Scores, Sweep, Truth


@dataclass(frozen=True)
class Groups:
    """The result of each step up to the clusters."""

    projection: Projection
    sweep: Sweep
    clustering: Clustering


@dataclass(frozen=True)
class Clusters(Groups):
    """The result of each step, with the scores."""

    scores: Scores


def find_clusters(
    x: Rows,
    config: ClusteringConfig,
    *,
    backend: Backend,
    events: Recorder,
    sweep_space: str = "projection",
    sweep: Callable[[Projection], Sweep] | None = None,
    holdout: float | None = None,
    truth: Truth | None = None,
    originals: IntArray | None = None,
) -> Clusters:
    """Cluster embeddings x (n, d) float32: reduce, sweep over k, cluster with the chosen k, score.

    Parameters
    ----------
    sweep_space
        Where the sweep runs: `projection`, or `scaled` for the scaled embeddings before PCA.
    sweep
        What gives the sweep over k in a space, for a caller that may have it from an earlier time; else it is computed.
    holdout
        Share of the images to score separately too.
    truth
        The labels to compare the clusters with; they take no part in any decision.
    originals
        (n,), host; for each row the first row with the same bytes (see `copies`); None if no row is a copy.
    """
    found = find_groups(
        x, config, backend=backend, events=events, sweep_space=sweep_space, sweep=sweep, originals=originals
    )
    with events.stage("score"):
        scores = score(
            found.projection.x,
            found.clustering,
            config.score,
            seed=config.seed,
            backend=backend,
            observer=events,
            truth=truth,
            holdout=holdout,
            originals=originals,
        )
    return Clusters(found.projection, found.sweep, found.clustering, scores)


def find_groups(
    x: Rows,
    config: ClusteringConfig,
    *,
    backend: Backend,
    events: Recorder,
    sweep_space: str = "projection",
    sweep: Callable[[Projection], Sweep] | None = None,
    originals: IntArray | None = None,
) -> Groups:
    """Cluster embeddings x (n, d) float32 as `find_clusters` does, without the scores."""
    projection = find_space(x, config, backend=backend, events=events, sweep_space=sweep_space, originals=originals)
    with events.stage("sweep"):
        swept = find_k(projection, config, backend=backend, events=events) if sweep is None else sweep(projection)
    with events.stage("cluster"):
        clustering = cluster(
            projection.x,
            swept.best_k,
            config.cluster,
            sample=config.sweep.sweep_sample,
            seed=config.seed,
            backend=backend,
            observer=events,
            found=swept.fit if projection.sweep_x is projection.x else None,
            originals=originals,
        )
    return Groups(projection, swept, clustering)


def find_space(
    x: Rows,
    config: ClusteringConfig,
    *,
    backend: Backend,
    events: Recorder,
    sweep_space: str = "projection",
    originals: IntArray | None = None,
) -> Projection:
    """Return the space that is clustered: the first step, which jobs with other algorithms call too."""
    with events.stage("reduce"):
        return reduce(x, config.reduce, backend=backend, sweep_space=sweep_space, originals=originals)


def find_k(projection: Projection, config: ClusteringConfig, *, backend: Backend, events: Observer) -> Sweep:
    """Return the number of clusters that the sweep chooses: the second step."""
    return sweep_k(
        projection.sweep_x,
        config.sweep,
        config.cluster,
        config.score,
        seed=config.seed,
        backend=backend,
        observer=events,
    )

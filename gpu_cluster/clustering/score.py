"""Computes the scores of a Clustering.

Input: a space x (n, m), a Clustering of its rows, and labels if there are any. Output: Scores. This module must not
know how the clustering was found, or how the scores are shown.
"""

from __future__ import annotations

import math

import numpy as np

from gpu_cluster.backend import Array, Backend, IntArray, take
from gpu_cluster.clustering import kmeans, metrics
from gpu_cluster.clustering.contingency import contingency
from gpu_cluster.config import ScoreConfig
from gpu_cluster.events import Observer
from gpu_cluster.results import Clustering, Contingency, Scores, Truth


def score(
    x: Array,
    clustering: Clustering,
    config: ScoreConfig,
    *,
    seed: int,
    backend: Backend,
    observer: Observer,
    truth: Truth | None = None,
    holdout: float | None = None,
    originals: IntArray | None = None,
) -> Scores:
    """Score a clustering of x (n, m) by itself and, if there are labels, compare it with them.

    With `holdout`, a random share of this size is scored separately too. Copies, as named by `originals` (see
    `copies`), get the silhouette of their originals.
    """
    n = x.shape[0]
    values, rows = metrics.silhouettes(
        x, clustering.labels, clustering.k, sample=config.silhouette_sample, seed=seed, backend=backend
    )
    if 0 < len(rows) < n:
        observer.notice(f"Silhouette on a fixed random sample of {len(rows):,} of {n:,} images")
    silhouettes = np.full(n, np.nan, dtype=np.float32)
    # If several rows of the sample have the same bytes, the first one counts; it is written last.
    silhouettes[rows[::-1] if originals is None else originals[rows[::-1]]] = values[::-1]
    labelled = np.empty(0, np.int64) if truth is None else np.flatnonzero(truth.codes >= 0)
    external, table = None, None
    if truth is not None and labelled.size:
        external, table = _external(truth, labelled, clustering, backend)
    return Scores(
        internal={
            "silhouette": metrics.mean_or_none(values),
            **_by_centres(x, clustering, backend),
            "inertia": clustering.inertia,
        },
        external=external,
        n_labelled=len(labelled),
        contingency=table,
        silhouettes=silhouettes if originals is None else silhouettes[originals],
        n_silhouette=len(rows),
        holdout=_holdout(x, clustering, truth, config, holdout, seed=seed, backend=backend),
    )


def _by_centres(x: Array, clustering: Clustering, backend: Backend) -> dict[str, float | None]:
    """Return Davies-Bouldin and Calinski-Harabasz; both need at least 2 clusters, and fewer clusters than images."""
    xp, k = backend.xp, clustering.k
    if not 2 <= k <= x.shape[0] - 1:
        return {"davies_bouldin": None, "calinski_harabasz": None}
    centres = xp.astype(clustering.centres, xp.float64)
    sizes = kmeans.cluster_sizes(clustering.labels, k, backend)
    spreads = kmeans.cluster_sums(clustering.distances[:, None], clustering.labels, k, backend)[:, 0] / sizes
    mean = xp.sum(kmeans.cluster_sums(x, clustering.labels, k, backend), axis=0) / x.shape[0]
    db = metrics.davies_bouldin(xp, centres, spreads)
    ch = metrics.calinski_harabasz(xp, centres, sizes, mean, clustering.inertia)
    return {"davies_bouldin": float(backend.to_host(db)), "calinski_harabasz": float(backend.to_host(ch))}


def _external(
    truth: Truth, labelled: IntArray, clustering: Clustering, backend: Backend
) -> tuple[dict[str, float | None], Contingency]:
    labels = backend.xp.take(clustering.labels, backend.from_host(labelled), axis=0)
    codes = truth.codes[labelled]
    counts = contingency(codes, backend.to_host(labels), len(truth.classes), clustering.k)
    scores: dict[str, float | None] = {**backend.label_scores(codes, labels)}
    scores["accuracy"] = metrics.matched_accuracy(counts)
    return scores, Contingency(classes=truth.classes, counts=counts)


def _holdout(
    x: Array,
    clustering: Clustering,
    truth: Truth | None,
    config: ScoreConfig,
    share: float | None,
    *,
    seed: int,
    backend: Backend,
) -> dict[str, float | None] | None:
    """Score a random share of the images, drawn as scikit-learn's `train_test_split` draws its test set."""
    n = x.shape[0]
    if share is None:
        return None
    rows = np.random.RandomState(seed).permutation(n)[: math.ceil(share * n)]
    x, labels = take(x, rows, backend), take(clustering.labels, rows, backend)
    n_found = int(np.unique(backend.to_host(labels)).size)
    values, _rows = metrics.silhouettes(x, labels, n_found, sample=config.silhouette_sample, seed=seed, backend=backend)
    homogeneity = None
    with_label = rows[:0] if truth is None else np.intersect1d(rows, np.flatnonzero(truth.codes >= 0))
    if truth is not None and with_label.size:
        theirs = backend.xp.take(clustering.labels, backend.from_host(with_label), axis=0)
        homogeneity = backend.label_scores(truth.codes[with_label], theirs)["homogeneity"]
    return {"n": len(rows), "silhouette": metrics.mean_or_none(values), "homogeneity": homogeneity}

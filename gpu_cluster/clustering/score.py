"""Everything known about a Clustering in numbers.

Must not know how the clustering was found, or how the numbers are shown.
"""

from __future__ import annotations

import math

import numpy as np

from gpu_cluster.backend import Backend
from gpu_cluster.clustering import kmeans, metrics
from gpu_cluster.config import ScoreConfig
from gpu_cluster.events import Observer
from gpu_cluster.results import Clustering, Contingency, Embeddings, IntArray, Manifest, Projection, Scores


def score(
    manifest: Manifest,
    embeddings: Embeddings,
    projection: Projection,
    clustering: Clustering,
    config: ScoreConfig,
    *,
    seed: int,
    backend: Backend,
    observer: Observer,
    originals: IntArray | None = None,
) -> Scores:
    """Score a clustering by itself and, where there are labels, against them.

    Copies, as `originals` names them (see `copies`), get the silhouette of their originals.
    """
    n = len(embeddings.rows)
    values, rows = metrics.silhouettes(
        projection.x,
        clustering.labels,
        clustering.k,
        sample=config.silhouette_sample,
        seed=seed,
        backend=backend,
    )
    if 0 < len(rows) < n:
        observer.notice(f"Silhouette on a fixed random sample of {len(rows):,} of {n:,} images")
    silhouettes = np.full(n, np.nan, dtype=np.float32)
    # Of several rows with the same bytes the first of the sample counts, which is written last.
    silhouettes[rows[::-1] if originals is None else originals[rows[::-1]]] = values[::-1]
    classes, codes, labelled = _encoded(manifest, embeddings.rows)
    external, table = None, None
    if labelled.size:
        external, table = _external(classes, codes, labelled, clustering, backend)
    return Scores(
        space=projection.space,
        internal={
            "silhouette": metrics.mean_or_none(values),
            **_by_centres(projection, clustering, backend),
            "inertia": clustering.inertia,
        },
        external=external,
        n_labelled=len(labelled),
        contingency=table,
        silhouettes=silhouettes if originals is None else silhouettes[originals],
        n_silhouette=len(rows),
        holdout=_holdout(projection, clustering, codes, labelled, config, seed=seed, backend=backend),
    )


def _by_centres(projection: Projection, clustering: Clustering, backend: Backend) -> dict[str, float | None]:
    """Davies-Bouldin and Calinski-Harabasz; both need at least 2 clusters and fewer than images."""
    xp, x, k = backend.xp, projection.x, clustering.k
    if not 2 <= k <= x.shape[0] - 1:
        return {"davies_bouldin": None, "calinski_harabasz": None}
    centres = xp.astype(clustering.centres, xp.float64)
    sizes = kmeans.cluster_sizes(clustering.labels, k, backend)
    spreads = kmeans.cluster_sums(clustering.distances[:, None], clustering.labels, k, backend)[:, 0] / sizes
    mean = xp.sum(kmeans.cluster_sums(x, clustering.labels, k, backend), axis=0) / x.shape[0]
    db = metrics.davies_bouldin(xp, centres, spreads)
    ch = metrics.calinski_harabasz(xp, centres, sizes, mean, clustering.inertia)
    return {"davies_bouldin": float(backend.to_host(db)), "calinski_harabasz": float(backend.to_host(ch))}


def _encoded(manifest: Manifest, rows: IntArray) -> tuple[tuple[str, ...], IntArray, IntArray]:
    """Return the classes in order, the class of each image (-1 without a label), and the images that have one."""
    if manifest.labels is None:
        return (), np.full(len(rows), -1), np.empty(0, np.int64)
    labels = [manifest.labels[row] for row in rows]
    classes = tuple(sorted({label for label in labels if label is not None}))
    code_of: dict[str | None, int] = {label: code for code, label in enumerate(classes)}
    codes = np.array([code_of.get(label, -1) for label in labels], dtype=np.int64)
    return classes, codes, np.flatnonzero(codes >= 0)


def _external(
    classes: tuple[str, ...], codes: IntArray, labelled: IntArray, clustering: Clustering, backend: Backend
) -> tuple[dict[str, float | None], Contingency]:
    labels = backend.xp.take(clustering.labels, backend.from_host(labelled), axis=0)
    truth = codes[labelled]
    counts = metrics.contingency(truth, backend.to_host(labels), len(classes), clustering.k)
    scores: dict[str, float | None] = {**backend.label_scores(truth, labels)}
    scores["accuracy"] = metrics.matched_accuracy(counts)
    return scores, Contingency(classes=classes, counts=counts)


def _holdout(
    projection: Projection,
    clustering: Clustering,
    codes: IntArray,
    labelled: IntArray,
    config: ScoreConfig,
    *,
    seed: int,
    backend: Backend,
) -> dict[str, float | None] | None:
    """Score on a random share of the images, split as scikit-learn's `train_test_split` does it."""
    n = len(codes)
    if config.holdout is None:
        return None
    rows = np.random.RandomState(seed).permutation(n)[: math.ceil(config.holdout * n)]
    chosen = backend.from_host(rows)
    x = backend.xp.take(projection.x, chosen, axis=0)
    labels = backend.xp.take(clustering.labels, chosen, axis=0)
    n_found = int(np.unique(backend.to_host(labels)).size)
    values, _rows = metrics.silhouettes(x, labels, n_found, sample=config.silhouette_sample, seed=seed, backend=backend)
    with_label = np.intersect1d(rows, labelled)
    homogeneity = None
    if with_label.size:
        theirs = backend.xp.take(clustering.labels, backend.from_host(with_label), axis=0)
        homogeneity = backend.label_scores(codes[with_label], theirs)["homogeneity"]
    return {"n": len(rows), "silhouette": metrics.mean_or_none(values), "homogeneity": homogeneity}

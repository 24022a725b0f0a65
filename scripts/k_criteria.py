"""Criteria for the number of clusters that the job does not have; `bench_k --others` compares the job's with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import (
    adjusted_rand_score,
    calinski_harabasz_score,
    davies_bouldin_score,
    pairwise_distances_argmin,
    silhouette_score,
)

from gpu_cluster.backend import CpuBackend, FloatArray
from gpu_cluster.verdict import means_something

# Chooses one k of a range that begins at the same k as the range that the criterion was computed for.
Chooser = Callable[[Sequence[int]], int]

_N_REFERENCES = _N_BOOTSTRAPS = 10
_N_SPLITS = 5
# Tibshirani and Walther use 0.8 to 0.9.
_STRONG = 0.8


def criteria(x: FloatArray, ks: Sequence[int], *, seed: int) -> dict[str, Chooser]:
    """Return for each criterion how it chooses one of the given k for x (n, d), whose rows have unit length.

    - gap: the gap statistic (Tibshirani, Walther and Hastie 2001) with 10 references, which are uniform in the box of
      the components and scaled to unit length like x. It chooses the first k whose gap is not below that of the next k
      minus its standard error, or else the last k.
    - bootstrap: the k at which k-means on two bootstrap samples splits all rows most similarly (Fang and Wang 2012), by
      the mean adjusted Rand index of 10 pairs, among the candidates that the job considers for its restarts.
    - prediction strength: the last k at which one half of the rows predicts the groups of the other half to 0.8
      (Tibshirani and Walther 2005), as the mean of 5 splits, or else the first k of the range.
    - t-SNE silhouette: the highest mean silhouette of the k-means groups in the plane of t-SNE.
    - Calinski-Harabasz, Davies-Bouldin: the highest and the lowest index.
    """
    random = np.random.RandomState(seed)
    groups = {k: _k_means(x, k, random, n_init=10) for k in ks}
    labels = {k: found.labels_ for k, found in groups.items()}
    plane = CpuBackend().tsne(x, seed=seed)
    steady = [k for k in ks if means_something(k, len(x))]
    return {
        "gap": _gap(x, {k: found.inertia_ for k, found in groups.items()}, random),
        "bootstrap": _highest({k: _bootstrap_agreement(x, k, random) for k in steady}),
        "prediction strength": _last_strong({k: _prediction_strength(x, k, random) for k in ks if k <= len(x) // 4}),
        "t-SNE silhouette": _highest({k: silhouette_score(plane, labels[k]) for k in ks}),
        "Calinski-Harabasz": _highest({k: calinski_harabasz_score(x, labels[k]) for k in ks}),
        "Davies-Bouldin": _highest({k: -davies_bouldin_score(x, labels[k]) for k in ks}),
    }


def _k_means(x: FloatArray, k: int, random: np.random.RandomState, n_init: int = 3) -> KMeans:
    return KMeans(k, n_init=n_init, random_state=random.randint(1 << 31)).fit(x)


def _highest(values: Mapping[int, float]) -> Chooser:
    return lambda ks: max((k for k in ks if k in values), key=values.__getitem__)


def _last_strong(values: Mapping[int, float]) -> Chooser:
    return lambda ks: max([k for k in ks if values.get(k, 0) >= _STRONG], default=min(ks))


def _gap(x: FloatArray, inertias: Mapping[int, float], random: np.random.RandomState) -> Chooser:
    low, high = x.min(axis=0), x.max(axis=0)
    logs: dict[int, list[float]] = {k: [] for k in inertias}
    for _ in range(_N_REFERENCES):
        reference = random.uniform(low, high, x.shape)
        reference /= np.linalg.norm(reference, axis=1, keepdims=True)
        for k in inertias:
            logs[k].append(np.log(_k_means(reference, k, random).inertia_))
    gaps = {k: np.mean(logs[k]) - np.log(inertias[k]) for k in inertias}
    errors = {k: np.std(logs[k]) * np.sqrt(1 + 1 / _N_REFERENCES) for k in inertias}

    def choose(ks: Sequence[int]) -> int:
        for k, following in pairwise(ks):
            if gaps[k] >= gaps[following] - errors[following]:
                return k
        return ks[-1]

    return choose


def _bootstrap_agreement(x: FloatArray, k: int, random: np.random.RandomState) -> float:
    agreed = []
    for _ in range(_N_BOOTSTRAPS):
        one, other = (_k_means(x[random.randint(len(x), size=len(x))], k, random) for _ in range(2))
        agreed.append(adjusted_rand_score(one.predict(x), other.predict(x)))
    return float(np.mean(agreed))


def _prediction_strength(x: FloatArray, k: int, random: np.random.RandomState) -> float:
    strengths = []
    for _ in range(_N_SPLITS):
        order = random.permutation(len(x))
        train, test = x[order[: len(x) // 2]], x[order[len(x) // 2 :]]
        predicted = pairwise_distances_argmin(test, _k_means(train, k, random).cluster_centers_)
        found = _k_means(test, k, random).labels_
        shares = [_shared_pairs(predicted[found == label]) for label in range(k) if np.sum(found == label) > 1]
        strengths.append(min(shares, default=0.0))
    return float(np.mean(strengths))


def _shared_pairs(labels: FloatArray) -> float:
    """Return the share of pairs of rows that have the same label."""
    counts, n = np.unique(labels, return_counts=True)[1], len(labels)
    return float(np.sum(counts * (counts - 1)) / (n * (n - 1)))

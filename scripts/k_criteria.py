"""Criteria for the number of clusters that the job does not have; `bench_k` compares the job's with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import (
    adjusted_rand_score,
    calinski_harabasz_score,
    davies_bouldin_score,
    pairwise_distances_argmin,
    silhouette_score,
)

from gpu_cluster.backend import CpuBackend, FloatArray, IntArray
from gpu_cluster.clustering import kmeans
from gpu_cluster.clustering.contingency import adjusted_rand, contingency
from gpu_cluster.config import ClusterConfig
from gpu_cluster.verdict import means_something

# Chooses one k of a range that begins at the same k as the range that the criterion was computed for.
Chooser = Callable[[Sequence[int]], int]

_N_REFERENCES = _N_BOOTSTRAPS = 10
_N_SPLITS = 5
# Tibshirani and Walther use 0.8 to 0.9.
_STRONG = 0.8
# The distortion (epsilon squared) of the coding length, as in the authors' program.
_DISTORTION = 0.1


def of_restarts(x: FloatArray, ks: Sequence[int], *, seed: int) -> dict[str, Chooser]:
    """Return for each criterion how it chooses one of the given k from the restarts that the job runs for x (n, d).

    All but the last choose among the candidates that the job considers.

    - agreement, smallest within one error: the smallest k whose agreement is not below the highest agreement minus the
      standard error of that one (over the nine other restarts).
    - agreement, all pairs: the highest mean adjusted Rand index of all 45 pairs of restarts; if it is the same at
      several k, the highest silhouette decides, as in the job.
    - agreement, all pairs, smallest within one error: as the first, with the pairs; their standard error counts ten
      restarts, because the pairs share these.
    - matching of centres: the k at which the centres of the restarts, matched one to one with those of the best
      restart, are nearest to them, as a share of the distance between neighbouring centres. This is our own simple form
      of the idea of arXiv 2603.26744, whose text was not at hand.
    - coding length: the k whose groups can be coded with the fewest bits (Ma et al. 2007, as used for the number of
      clusters by Chu et al., arXiv 2306.05272, there for features that are trained for it).
    """
    found = {k: _Restarts(x, k, seed) for k in ks}
    steady = [k for k in ks if means_something(k, len(x))]
    best, pairs = {k: found[k].with_best() for k in steady}, {k: found[k].all_pairs() for k in steady}
    silhouettes = {k: silhouette_score(x, found[k].labels[found[k].best]) for k in steady}
    return {
        "agreement, smallest within one error": smallest_within_error(best, n_restarts=9),
        "agreement, all pairs": _highest({k: (float(np.mean(pairs[k])), silhouettes[k]) for k in steady}),
        "agreement, all pairs, smallest within one error": smallest_within_error(pairs, n_restarts=10),
        "matching of centres": _highest({k: -found[k].moved() for k in steady}),
        "coding length": _highest({k: -_coding_length(x, found[k].labels[found[k].best]) for k in ks}),
    }


class _Restarts:
    """The restarts of k-means that the job runs for one k.

    Attributes
    ----------
    labels : of each restart, (n,)
    best : the number of the restart with the lowest inertia
    """

    def __init__(self, x: FloatArray, k: int, seed: int) -> None:
        backend, config = CpuBackend(), ClusterConfig()
        starts = kmeans.Starts(x, sample=len(x), seed=seed, backend=backend, most_k=k).draw(k, config.n_init)
        fits = [backend.fit_kmeans(x, start, max_iter=config.max_iter, tol=config.tol) for start in starts]
        self._centres = [fit.centres for fit in fits]
        self.labels: list[IntArray] = [kmeans.nearest(x, centres, backend) for centres in self._centres]
        inertias = [np.sum((x - c[found]) ** 2) for c, found in zip(self._centres, self.labels, strict=True)]
        self.best = 0
        for number, inertia in enumerate(inertias):
            if kmeans.is_better(inertia, inertias[self.best]):
                self.best = number

    def with_best(self) -> list[float]:
        return [self._agreed(self.best, number) for number in range(len(self.labels)) if number != self.best]

    def all_pairs(self) -> list[float]:
        return [self._agreed(one, other) for one, other in combinations(range(len(self.labels)), 2)]

    def _agreed(self, one: int, other: int) -> float:
        k = len(self._centres[0])
        return adjusted_rand(contingency(self.labels[one], self.labels[other], k, k))

    def moved(self) -> float:
        from scipy.optimize import linear_sum_assignment
        from scipy.spatial.distance import cdist

        best = self._centres[self.best]
        apart = cdist(best, best) + np.diag(np.full(len(best), np.inf))
        distances = [cdist(best, other) for number, other in enumerate(self._centres) if number != self.best]
        matched = [each[linear_sum_assignment(each)].mean() for each in distances]
        return float(np.mean(matched) / apart.min(axis=1).mean())


def smallest_within_error(values: Mapping[int, Sequence[float]], *, n_restarts: int) -> Chooser:
    """Return how to choose the smallest k whose mean is not below the highest mean minus its standard error."""

    def choose(ks: Sequence[int]) -> int:
        means = {k: float(np.mean(values[k])) for k in ks if k in values}
        top = max(means, key=means.__getitem__)
        least = means[top] - np.std(values[top], ddof=1) / np.sqrt(n_restarts)
        return min(k for k, mean in means.items() if mean >= least)

    return choose


def _coding_length(x: FloatArray, labels: IntArray) -> float:
    n, d = x.shape
    total = 0.0
    for label in np.unique(labels):
        rows = x[labels == label].astype(np.float64)
        volume = np.linalg.slogdet(np.eye(d) + d / (_DISTORTION * len(rows)) * rows.T @ rows)[1]
        total += (len(rows) + d) / 2 * volume - len(rows) * np.log(len(rows) / n)
    return total


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


def _highest(values: Mapping[int, Any]) -> Chooser:
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

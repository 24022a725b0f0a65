"""Algorithms other than k-means that were tried for `run`, in NumPy; `bench_algorithms` compares them.

Input: the spaces of the same n pictures, each (n, m) float32 with rows of unit length, and k. Output: labels (n,). They
take O(n^2) memory or time, which is why they are here and not in the package, and they follow the papers only as far as
each docstring says. This module must not know how the spaces were made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpu_cluster.backend import CpuBackend, FloatArray, IntArray
from gpu_cluster.clustering import kmeans
from gpu_cluster.config import ClusterConfig

_BACKEND = CpuBackend()


def restart_labels(x: FloatArray, k: int, seed: int) -> list[IntArray]:
    """Return the labels (n,) of each restart that the job runs for k clusters."""
    config = ClusterConfig()
    starts = kmeans.Starts(x, sample=len(x), seed=seed, backend=_BACKEND, most_k=k).draw(k, config.n_init)
    fits = [_BACKEND.fit_kmeans(x, start, max_iter=config.max_iter, tol=config.tol) for start in starts]
    return [kmeans.nearest(x, fit.centres, _BACKEND) for fit in fits]


def consensus(spaces: Sequence[FloatArray], k: int, *, seed: int, linkage: str = "average") -> IntArray:
    """Return the consensus of the restarts of k-means in all spaces (the cluster ensemble of ICCE, arXiv 2511.16213).

    Two pictures are as similar as the share of restarts that put them into one group (Fred and Jain 2005). These
    similarities are clustered, by average linkage or by their spectrum. ICCE's base clusterings are heads that it
    trains, and it trains a classifier on the consensus; neither is done here.
    """
    from sklearn.cluster import AgglomerativeClustering, SpectralClustering

    labels = [found for x in spaces for found in restart_labels(x, k, seed)]
    together = np.mean([found[:, None] == found[None, :] for found in labels], axis=0)
    if linkage == "spectral":
        model = SpectralClustering(n_clusters=k, affinity="precomputed", random_state=seed)
        return np.asarray(model.fit_predict(together + 1e-3))
    grouped = AgglomerativeClustering(n_clusters=k, metric="precomputed", linkage=linkage)
    return np.asarray(grouped.fit_predict(1 - together))


class _Adam:
    """The optimiser of Kingma and Ba 2015, for a list of arrays that it changes in place."""

    def __init__(self, arrays: Sequence[FloatArray], rate: float) -> None:
        self._arrays, self._rate, self._steps = list(arrays), rate, 0
        self._first = [np.zeros_like(array) for array in arrays]
        self._second = [np.zeros_like(array) for array in arrays]

    def step(self, gradients: Sequence[FloatArray]) -> None:
        self._steps += 1
        for number, gradient in enumerate(gradients):
            self._first[number] += 0.1 * (gradient - self._first[number])
            self._second[number] += 0.001 * (gradient * gradient - self._second[number])
            mean, square = self._first[number] / (1 - 0.9**self._steps), self._second[number] / (1 - 0.999**self._steps)
            self._arrays[number] -= self._rate * mean / (np.sqrt(square) + 1e-8)


def _softmax(scores: FloatArray) -> FloatArray:
    powers: FloatArray = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def _neighbours(x: FloatArray, count: int) -> IntArray:
    """Return the nearest `count` other rows (n, count) of each row."""
    closeness = x @ x.T
    np.fill_diagonal(closeness, -np.inf)
    return np.argpartition(-closeness, count - 1, axis=1)[:, :count]


def self_distilled(x: FloatArray, k: int, *, seed: int) -> IntArray:
    """Return the groups of linear heads that agree on neighbouring pictures (TEMI, arXiv 2303.17896).

    As in the paper: 50 neighbours of each picture, student and teacher (an exponential mean of the student), the
    pointwise mutual information of both with exponent 0.6, weighted by the agreement of the teachers of all heads, and
    the groups of the head with the lowest loss. Smaller than there: 16 heads (50), 400 steps with all pictures (200
    epochs of batches) at a higher rate; fewer neighbours where there are few pictures for each group.
    """
    heads, steps, rate, temperature, beta = 16, 400, 0.01, 0.1, 0.6
    random = np.random.RandomState(seed)
    n, m = x.shape
    x = x.astype(np.float64)
    near = _neighbours(x, int(np.clip(n // (2 * k), 3, 50)))
    student = random.normal(0, 1 / np.sqrt(m), (heads, m, k))
    teacher = student.copy()
    optimiser = _Adam([student], rate)
    shares, losses = np.full((heads, 1, k), 1 / k), np.zeros(heads)
    for step in range(steps):
        other = near[np.arange(n), random.randint(near.shape[1], size=n)]
        taught = _softmax(x @ teacher / temperature)
        learnt = _softmax(x @ student / temperature)
        shares = 0.9 * shares + 0.1 * taught.mean(axis=1, keepdims=True)
        weight = (taught * taught[:, other]).sum(axis=-1).mean(axis=0)
        gradient, loss = np.zeros_like(student), np.zeros(heads)
        # Both ways: the student sees a picture and the teacher its neighbour, and the other way round.
        for seen, shown in ((np.arange(n), other), (other, np.arange(n))):
            terms = (learnt[:, seen] * taught[:, shown]) ** beta / shares
            total = terms.sum(axis=-1, keepdims=True)
            slopes = weight[None, :, None] * (beta / temperature / n) * (terms / total - learnt[:, seen])
            gradient -= np.swapaxes(x[seen][None], 1, 2) @ slopes / 2
            loss -= (weight * np.log(total[..., 0])).mean(axis=-1) / 2
        optimiser.step([gradient])
        teacher = 0.98 * teacher + 0.02 * student
        losses = loss if step == 0 else 0.9 * losses + 0.1 * loss
    return np.asarray((x @ teacher[losses.argmin()]).argmax(axis=1))


def largest_margin(spaces: Sequence[FloatArray], k: int, *, seed: int) -> IntArray:
    """Return the groups that linear classifiers in all spaces separate best (TURTLE, arXiv 2406.07236).

    As in the paper: labels are the mean of a softmax of each space with normalised weights; a classifier in each space
    goes on learning them by 10 steps at a time; the labels follow the classifiers, and entropy (factor 10) keeps all
    groups in use. Smaller than there: 400 rounds (6,000) at ten times the rate.
    """
    rounds, inner, rate, entropy = 400, 10, 0.01, 10.0
    random = np.random.RandomState(seed)
    # Columns of about unit variance, as the features of the paper have.
    xs = [np.hstack([x * np.sqrt(x.shape[1]), np.ones((len(x), 1))]).astype(np.float64) for x in spaces]
    n = len(xs[0])

    def drawn() -> list[FloatArray]:
        ends = [1 / np.sqrt(x.shape[1]) for x in xs]
        return [random.uniform(-end, end, (x.shape[1], k)) for x, end in zip(xs, ends, strict=True)]

    directions, classifiers = drawn(), drawn()
    lengths = [np.linalg.norm(direction, axis=0) for direction in directions]
    outer = _Adam([*directions, *lengths], rate)
    learner = _Adam(classifiers, rate)
    labels = np.zeros((n, k))
    for _ in range(rounds):
        units = [direction / np.linalg.norm(direction, axis=0) for direction in directions]
        each = [_softmax(x @ (unit * length)) for x, unit, length in zip(xs, units, lengths, strict=True)]
        labels = np.mean(each, axis=0)
        for _ in range(inner):
            learner.step([x.T @ (_softmax(x @ w) - labels) / n for x, w in zip(xs, classifiers, strict=True)])
        error = -sum(np.log(_softmax(x @ w) + 1e-12) for x, w in zip(xs, classifiers, strict=True)) / n
        slopes: list[Any] = []
        for x, own in zip(xs, each, strict=True):
            above = error / len(xs) + entropy * (np.log(own.mean(axis=0) + 1e-12) + 1) / n
            slopes.append(x.T @ (own * (above - (own * above).sum(axis=1, keepdims=True))))
        along = [(slope * unit).sum(axis=0) for slope, unit in zip(slopes, units, strict=True)]
        across = [
            length / np.linalg.norm(direction, axis=0) * (slope - unit * own)
            for length, direction, slope, unit, own in zip(lengths, directions, slopes, units, along, strict=True)
        ]
        outer.step([*across, *along])
    return np.asarray(labels.argmax(axis=1))

"""Runs k-means in a space for each k of a range, chooses one k, and returns a `Sweep`.

This module must not know how the space was made, or what is done with the k.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from gpu_cluster.backend import Array, Backend
from gpu_cluster.clustering import kmeans, metrics
from gpu_cluster.config import ClusterConfig, ScoreConfig, SweepConfig, parse_k_range
from gpu_cluster.errors import ConfigError
from gpu_cluster.events import Observer
from gpu_cluster.results import KChoice, Sweep, SweepPoint
from gpu_cluster.verdict import IMAGES_A_CLUSTER, has_few_images, means_something, nearly_equal, why_not_clear
from gpu_cluster.words import count


def check_ks(config: SweepConfig, n: int) -> None:
    """Raise an error, before work starts, if k or the last k of the range is larger than the number of images n.

    Raises
    ------
    ConfigError
        When k, or the end of a range that was given, is above n.
    """
    if config.k is not None and config.k > n:
        raise ConfigError(
            f"--k: {config.k} clusters (given, or by the preset) need at least {config.k} images; found {n} that "
            f"may be pictures; give a k up to {n}"
        )
    last = parse_k_range(config.k_range)[-1] if config.k_range else 1
    if last > n:
        raise ConfigError(
            f"--k-range: {config.k_range} reaches {last} clusters, which need at least {last} images; found {n} "
            f"that may be pictures; give a range up to {n}"
        )


def sweep_k(
    x: Array,
    config: SweepConfig,
    clustering: ClusterConfig,
    scoring: ScoreConfig,
    *,
    seed: int,
    backend: Backend,
    observer: Observer,
) -> Sweep:
    """Cluster x (n, m) for each k of the range and choose one k: `config.k` if given, else by `config.select`."""
    ks = _ks_to_try(config, x.shape[0], observer)
    points = []
    for done, k in enumerate(ks):
        observer.progress("sweep", done, len(ks))
        start = time.perf_counter()
        partition = kmeans.fit(x, k, clustering, seed=seed, backend=backend)
        n_found = int(np.unique(backend.to_host(partition.labels)).size)
        values, _rows = metrics.silhouettes(
            x, partition.labels, n_found, sample=scoring.silhouette_sample, seed=seed, backend=backend
        )
        elapsed_s = time.perf_counter() - start
        silhouette = metrics.mean_or_none(values)
        points.append(SweepPoint(k, partition.inertia, silhouette, partition.agreement, partition.n_iter, elapsed_s))
    observer.progress("sweep", len(ks), len(ks))
    best_k, chosen_by = choose(config, points, x.shape[0])
    if config.k is not None and best_k < config.k:
        observer.notice(f"k was reduced from {config.k} to {best_k}, because only {x.shape[0]} images could be read")
    sweep = Sweep(points=tuple(points), best_k=best_k, chosen_by=chosen_by)
    doubts = tuple(_doubts(sweep, config, x.shape[0]))
    for doubt in doubts:
        observer.notice(doubt)
    return replace(sweep, doubts=doubts)


def _doubts(sweep: Sweep, config: SweepConfig, n: int) -> Iterator[str]:
    """Yield the reasons to doubt the chosen k, in words."""
    points, best_k = sweep.points, sweep.best_k
    first, last = points[0].k, points[-1].k
    if n == 1:
        yield "There is only one picture, so there is only one group, and no score is defined"
    elif best_k == n:
        yield (
            f"k is {n}, and there are {n} pictures: each can be a group of its own, which tells nothing: try a lower k"
        )
    if sweep.chosen_by == KChoice.CHORD:
        yield (
            f"No clear knee in the inertia curve, k {first} to {last}: chose {best_k}, the k farthest below the "
            "straight line between the curve's end points"
        )
    if sweep.chosen_by == KChoice.GIVEN:
        yield from _instead_of_given(sweep, config, n)
    if sweep.chosen_by == KChoice.AGREEMENT:
        yield from _doubts_by_agreement(sweep, n)


def _instead_of_given(sweep: Sweep, config: SweepConfig, n: int) -> Iterator[str]:
    """Yield what the verdict on a given k means, and which k would be chosen without it, if a range was tried."""
    points = sweep.points
    other, _ = choose(config.model_copy(update={"k": None}), points, n)
    if len(points) > 1 and not has_few_images(other, n):
        yield (
            f"k = {config.k} was given: the verdict says only whether restarts of k-means find the same groups "
            f"again; from {points[0].k} to {points[-1].k}, the sweep would choose "
            f"{other}{' too' if other == sweep.best_k else ''}"
        )


def _doubts_by_agreement(sweep: Sweep, n: int) -> Iterator[str]:
    """Yield the reasons to doubt a k at which restarts agree most."""
    points, best_k = sweep.points, sweep.best_k
    first, last = points[0].k, points[-1].k
    found = why_not_clear(best_k, n, sweep.agreement, f"{first} to {last}")
    if found is not None:
        yield found
    others = nearly_equal(best_k, {point.k: point.agreement or 0 for point in _candidates(points, n)})
    if others is not None:
        yield others
    silhouette_ends = max(points, key=_silhouette).k == last
    if last < n // IMAGES_A_CLUSTER and (best_k == last or silhouette_ends):
        yield (
            f"{'Restarts agree most' if best_k == last else 'The silhouette is highest'} at {last}, the end of the "
            f"range: there may be more groups than {best_k}; try --k-range {first}:{2 * last}"
        )


def _ks_to_try(config: SweepConfig, n: int, observer: Observer) -> tuple[int, ...]:
    text = config.k_range or config.default_range
    ks = parse_k_range(text)
    possible = tuple(k for k in ks if k <= n) or (n,)
    if possible != ks:
        why = f"there {'is' if n == 1 else 'are'} only {count(n, 'picture')}"
        observer.notice(f"Range of k cut from {text} to {possible[0]}:{possible[-1]}, because {why}")
    return possible


def choose(config: SweepConfig, points: Sequence[SweepPoint], n: int) -> tuple[int, KChoice]:
    """Return the k that is chosen from the points of a sweep of n images, and how it was chosen."""
    ks, inertias = [point.k for point in points], [point.inertia for point in points]
    if config.k is not None:
        return min(config.k, n), KChoice.GIVEN
    if len(ks) == 1:
        return ks[0], KChoice.ONLY_ONE
    if config.select == "silhouette" and any(point.silhouette is not None for point in points):
        return max(points, key=_silhouette).k, KChoice.SILHOUETTE
    candidates = _candidates(points, n) if config.select == "agreement" else []
    if candidates:
        # Restarts agree on groups that are far apart. They can also agree on a smaller k, at which
        # neighbouring groups are merged. Therefore the silhouette decides between equal agreements.
        return max(candidates, key=lambda point: (point.agreement or 0, _silhouette(point))).k, KChoice.AGREEMENT
    found = metrics.knee(ks, inertias)
    if found is not None:
        return found, KChoice.KNEE
    return metrics.farthest_from_chord(ks, inertias), KChoice.CHORD


def _silhouette(point: SweepPoint) -> float:
    return -np.inf if point.silhouette is None else point.silhouette


def _candidates(points: Sequence[SweepPoint], n: int) -> list[SweepPoint]:
    return [point for point in points if point.agreement is not None and means_something(point.k, n)]

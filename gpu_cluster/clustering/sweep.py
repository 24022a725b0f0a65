"""Runs k-means in a space for each k of a range, chooses one k, and returns a `Sweep`.

Above `sweep_sample` rows, what takes long runs on a random sample of them: the restarts, from which k is chosen, and
one more for each k, which starts from the best centres of the next larger k. The best centres are then carried on with
all rows, for all k together.

This module must not know how the space was made, or what is done with the k.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gpu_cluster.backend import Array, Backend, KMeansFit, take
from gpu_cluster.backend.blockwise import blocks
from gpu_cluster.clustering import kmeans, metrics
from gpu_cluster.clustering.carry_on import best_on_more_rows, carry_on, without_one
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
    _check_sample(config, n)


def _check_sample(config: SweepConfig, n: int) -> None:
    """Raise a ConfigError if the restarts run on a sample that is smaller than the largest k that they are run for."""
    text = config.k_range or config.default_range
    last = max((k for k in (config.k or 1, *parse_k_range(text)) if k <= n), default=1)
    if config.sweep_sample < last:
        asked = f"k = {last}" if last == config.k else f"the range of k, {text}, which reaches {last}"
        raise ConfigError(
            f"--sweep-sample: {config.sweep_sample} images are too few for {asked}; give at least {last}, or a "
            "smaller k"
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
    n = x.shape[0]
    ks = _ks_to_try(config, n, observer)
    if config.sweep_sample < n:
        observer.notice(
            f"Restarts of k-means on a random sample of {config.sweep_sample:,} of {n:,} images, and their agreement "
            f"on {min(kmeans.START_ROWS, n):,}; the best restart is carried on with all images"
        )
    trial = _Trial(x, ks, config.sweep_sample, clustering, scoring, seed=seed, backend=backend)
    points: list[SweepPoint] = []
    for group in trial.groups():
        restarts: list[_Restarts] = []
        for k in group:
            observer.progress("sweep", len(points) + len(restarts), len(ks))
            restarts.append(trial.restart(k))
        points += trial.measured(restarts)
    observer.progress("sweep", len(ks), len(ks))
    best_k, chosen_by = choose(config, points, n)
    if config.k is not None and best_k < config.k:
        observer.notice(f"k was reduced from {config.k} to {best_k}, because only {n} images could be read")
    sweep = Sweep(
        points=tuple(points),
        best_k=best_k,
        chosen_by=chosen_by,
        fit=trial.fits.get(best_k),
        n_restarted=min(config.sweep_sample, n),
        n_agreement=min(kmeans.START_ROWS, n),
        n_silhouette=len(trial.scored_rows),
    )
    doubts = tuple(_doubts(sweep, config, n))
    for doubt in doubts:
        observer.notice(doubt)
    return replace(sweep, doubts=doubts)


@dataclass(frozen=True)
class _Restarts:
    """The best restart of one k: its centres (k, m), and the labels of the rows whose silhouettes are computed."""

    fit: KMeansFit
    inertia: float
    agreement: float | None
    labels: Array | None
    elapsed_s: float


class _Trial:
    """Clusters the rows of x (n, m) into each number of clusters of `ks`.

    Attributes
    ----------
    fits : the centres of each k tried so far
    scored_rows : (s,) host; the rows whose silhouettes are computed
    """

    def __init__(
        self,
        x: Array,
        ks: Sequence[int],
        sample: int,
        clustering: ClusterConfig,
        scoring: ScoreConfig,
        *,
        seed: int,
        backend: Backend,
    ) -> None:
        self._x, self._ks, self._clustering, self._seed, self._backend = x, ks, clustering, seed, backend
        self._starts = kmeans.Starts(x, sample=sample, seed=seed, backend=backend, most_k=max(ks))
        self._restarted = kmeans.sampled(x, sample, seed=seed, backend=backend)
        # Restarts on fewer rows than this are carried on before they are compared.
        few = sample < min(kmeans.START_ROWS, x.shape[0])
        self._more = kmeans.sampled(x, kmeans.START_ROWS, seed=seed, backend=backend) if few else None
        self.scored_rows = metrics.silhouette_rows(x.shape[0], scoring.silhouette_sample, seed)
        self._scored = self._take(x)
        self.fits: dict[int, KMeansFit] = {}

    def _take(self, values: Array) -> Array:
        """Return the values of the rows whose silhouettes are computed."""
        if len(self.scored_rows) == self._x.shape[0]:
            return values
        return take(values, self.scored_rows, self._backend)

    def groups(self) -> Iterator[list[int]]:
        """Yield the numbers of clusters that are measured together: so few that their sums of distances fit a block."""
        most = next(blocks(1 << 62, len(self.scored_rows))).stop
        group: list[int] = []
        for k in self._ks:
            if group and sum(group) + k > most:
                yield group
                group = []
            group.append(k)
        yield group

    def restart(self, k: int) -> _Restarts:
        """Return the best restart for k clusters."""
        return self._best(self._starts.draw(k, self._clustering.n_init))

    def _best(self, starts: Iterable[Array]) -> _Restarts:
        """Return the best restart from each of the starts (k, m)."""
        start, given = time.perf_counter(), self._clustering
        if self._more is not None:
            found = best_on_more_rows(self._restarted, self._more, starts, given, backend=self._backend)
            return _Restarts(found.fit, found.inertia, found.agreement, None, time.perf_counter() - start)
        best = kmeans.best_restart(self._restarted, starts, given, seed=self._seed, backend=self._backend)
        # Of restarts on a sample, the labels are those of other rows.
        labels = self._take(best.labels) if self._restarted is self._x else None
        fit = KMeansFit(best.centres, best.n_iter)
        return _Restarts(fit, best.inertia, best.agreement, labels, time.perf_counter() - start)

    def measured(self, restarts: Sequence[_Restarts]) -> Iterator[SweepPoint]:
        """Yield what is recorded of each number of clusters, and keep its centres."""
        start = time.perf_counter()
        if self._restarted is not self._x:
            restarts = self._carried_on(restarts)
        labels = [restart.labels for restart in restarts]
        silhouettes = metrics.mean_silhouettes(self._scored, labels, self._backend)
        elapsed_s = (time.perf_counter() - start) / sum(restart.fit.centres.shape[0] for restart in restarts)
        for restart, silhouette in zip(restarts, silhouettes, strict=True):
            k = restart.fit.centres.shape[0]
            self.fits[k] = restart.fit
            seconds = restart.elapsed_s + k * elapsed_s
            yield SweepPoint(k, restart.inertia, silhouette, restart.agreement, restart.fit.n_iter, seconds)

    def _carried_on(self, restarts: Sequence[_Restarts]) -> list[_Restarts]:
        """Return the restarts with the centres that all rows lead to, and the inertia of all rows."""
        restarts = self._from_more_clusters(restarts)
        centres = [restart.fit.centres for restart in restarts]
        found = carry_on(self._x, centres, max_iter=self._clustering.max_iter, backend=self._backend)
        return [
            replace(
                restart,
                fit=KMeansFit(carried.centres, restart.fit.n_iter + carried.n_iter),
                inertia=carried.inertia,
                labels=kmeans.nearest(self._scored, carried.centres, self._backend),
            )
            for restart, carried in zip(restarts, found, strict=True)
        ]

    def _from_more_clusters(self, restarts: Sequence[_Restarts]) -> list[_Restarts]:
        """Return the restarts, but for each k that of the next larger k less some clusters where this leads further.

        The best of ten restarts can be a percent above that of ten others; what is found for the next larger k leads to
        about the better one of them at the price of one restart. The agreement stays that of the random restarts.
        """
        found = list(restarts)
        for number in range(len(found) - 2, -1, -1):
            own, start = found[number], found[number + 1].fit.centres
            while start.shape[0] > own.fit.centres.shape[0]:
                start = without_one(self._restarted, start, backend=self._backend)
            other = self._best([start])
            seconds = own.elapsed_s + other.elapsed_s
            better = other if kmeans.is_better(other.inertia, own.inertia) else own
            found[number] = replace(better, agreement=own.agreement, elapsed_s=seconds)
        return found


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

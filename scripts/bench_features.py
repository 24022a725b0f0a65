"""Compares ways to join the features of two networks, at the true number of classes, over labelled sets and seeds.

Prints Markdown: the adjusted Rand index (ARI) of each way on whole sets (mean and standard deviation over seeds) and on
their subsets (mean over the subsets, and its standard deviation over seeds). Labels are only compared with the groups.

A set named with --held-out takes no part in the choice among the ways: the first table has the other sets, from which a
way is chosen. The second table has the sets held out, the mean of all columns of both tables, and in how many of them
the way is worse than VGG16 alone by more than the spread (the larger standard deviation of the two, or 0.005: what is
lower by less is the same as printed). A way may become the default if there is none, and the mean is at least 0.80.

    .venv/bin/python -m scripts.bench_features [FOLDER...] [--held-out NAME...]   # folders whose subfolders are classes
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import adjusted_rand_score

from gpu_cluster.backend import CpuBackend, FloatArray, HeldRows
from gpu_cluster.clustering import kmeans
from gpu_cluster.clustering.reduce import reduce
from gpu_cluster.config import ClusterConfig, ReduceConfig
from gpu_cluster.verdict import means_something
from scripts.labelled_sets import FEATURES, embedded_parts, image_sets, subsets, unit_length

# The smallest spread of a column: a mean that is lower by less is the same as printed.
LEAST_SPREAD = 0.005

# Makes of the parts (n, d), VGG16's and EfficientNet-Lite2's of the same n pictures, the space (n, m) to cluster in.
Join = Callable[[FloatArray, FloatArray], FloatArray]


def reduced(x: FloatArray, **options: Any) -> FloatArray:
    """Return the space that the job makes of features x (n, d), with its options of the reduction."""
    held = HeldRows(np.ascontiguousarray(x, np.float32), CpuBackend())
    space: FloatArray = reduce(held, ReduceConfig(**options), backend=CpuBackend()).x
    return space


def weighted(of_vgg16: float, of_lite2: float, count: Callable[[int], int] | None = None) -> Join:
    """Return the join of parts of unit length, each times its weight; PCA keeps `count(n)` components, or as many as
    the job."""

    def join(vgg16: FloatArray, lite2: FloatArray) -> FloatArray:
        x = np.hstack([of_vgg16 * unit_length(vgg16), of_lite2 * unit_length(lite2)])
        return reduced(x, pca="auto" if count is None else count(len(x)))

    return join


def reduced_first(whitening: float, then: Mapping[str, Any] | None) -> Join:
    """Return the join of parts that are reduced alone, and reduced again together if `then` has options for that."""

    def join(vgg16: FloatArray, lite2: FloatArray) -> FloatArray:
        x = np.hstack([reduced(vgg16, whitening=whitening), reduced(lite2, whitening=whitening)])
        return unit_length(x) if then is None else reduced(x, **then)

    return join


def equal_variance(vgg16: FloatArray, lite2: FloatArray) -> FloatArray:
    """Join parts of unit length, each divided by the root of its total variance."""
    parts = [unit_length(part) for part in (vgg16, lite2)]
    return reduced(np.hstack([part / np.sqrt(part.var(axis=0).sum()) for part in parts]))


def agreement(x: FloatArray) -> float:
    """Return the highest agreement of restarts among the k, up to 20, that the job would choose from."""
    ks = [k for k in range(3, 21) if means_something(k, len(x))]
    given: dict[str, Any] = {"sample": len(x), "seed": 0, "backend": CpuBackend()}
    return max((kmeans.fit(x, k, ClusterConfig(), **given).agreement or 0 for k in ks), default=0)


def by_agreement(vgg16: FloatArray, lite2: FloatArray) -> FloatArray:
    """Turn a part off if restarts agree more without it: of the joined space and each part's, take the best."""
    spaces = [weighted(1, 1)(vgg16, lite2), reduced(vgg16), reduced(lite2)]
    return max(spaces, key=agreement)


def weighted_by_agreement(vgg16: FloatArray, lite2: FloatArray) -> FloatArray:
    """Join parts of unit length, each times the highest agreement of restarts in its own space."""
    return weighted(agreement(reduced(vgg16)), agreement(reduced(lite2)))(vgg16, lite2)


JOINS: Mapping[str, Join] = {
    "**VGG16**": lambda vgg16, _lite2: reduced(vgg16),
    "Lite2": lambda _vgg16, lite2: reduced(lite2),
    "side by side": weighted(1, 1),
    "side by side, 1.41 : 1": weighted(2**0.5, 1),
    "side by side, 2 : 1": weighted(2, 1),
    "side by side, 2.83 : 1": weighted(2 * 2**0.5, 1),
    "side by side, 4 : 1": weighted(4, 1),
    "side by side, 1 : 1.41": weighted(1, 2**0.5),
    "side by side, 1 : 2": weighted(1, 2),
    "of equal variance": equal_variance,
    "half as many components again, to 64": weighted(1, 1, lambda n: int(np.clip(1.5 * np.sqrt(n), 8, 64))),
    "each reduced, not again": reduced_first(0.35, None),
    "each reduced, PCA of all": reduced_first(0.35, {"whitening": 0.0}),
    "each reduced, PCA of all, whitened": reduced_first(0.35, {}),
    "each by PCA only, PCA of all, whitened": reduced_first(0.0, {}),
    "a part off where restarts agree less with it": by_agreement,
    "weighted by the agreement of restarts": weighted_by_agreement,
}


@dataclass(frozen=True)
class Column:
    """The ARI in one column of the table, for each seed."""

    scores: FloatArray

    def __str__(self) -> str:
        """Return the mean and the standard deviation."""
        return f"{self.scores.mean():.2f} ± {self.scores.std():.2f}"

    def is_worse(self, other: Column) -> bool:
        spread = max(self.scores.std(), other.scores.std(), LEAST_SPREAD)
        return bool(self.scores.mean() < other.scores.mean() - spread)


# A set and its subsets: the parts of each, and its labels.
Prepared = Sequence[tuple[Sequence[FloatArray], np.ndarray]]


def prepare(title: str, options: Mapping[str, Any]) -> Prepared:
    wholes = embedded_parts(title, options, FEATURES[-1])
    each = zip(*([whole, *subsets(whole)] for whole in wholes), strict=True)
    return [([part.embeddings.x.whole() for part in parts], parts[0].labels) for parts in each]


def measure(join: Join, prepared: Prepared, seeds: Sequence[int]) -> tuple[Column, Column]:
    """Return the columns of a whole set and of its subsets."""
    found = []
    for parts, labels in prepared:
        x, k = join(*parts), len(np.unique(labels))
        given: dict[str, Any] = {"sample": len(x), "backend": CpuBackend()}
        grouped = [kmeans.fit(x, k, ClusterConfig(), seed=seed, **given).labels for seed in seeds]
        found.append([adjusted_rand_score(labels, groups) for groups in grouped])
    return Column(np.array(found[0])), Column(np.mean(found[1:], axis=0))


def print_table(
    sets: Sequence[str], columns: Mapping[str, Mapping[str, Sequence[Column]]], last: Mapping[str, Mapping[str, str]]
) -> None:
    """Print the columns of some sets, and the last columns, each a text for each join."""
    titles = [title for name in sets for title in (name, "its subsets")]
    print(f"\n| features | {' | '.join([*titles, *last])} |\n|{'---|' * (len(titles) + len(last) + 1)}")
    for join, of_sets in columns.items():
        cells = [str(column) for name in sets for column in of_sets[name]]
        print(f"| {join} | {' | '.join([*cells, *(texts[join] for texts in last.values())])} |")


def mean_of(columns: Mapping[str, Sequence[Column]], names: Sequence[str]) -> str:
    return f"{np.mean([column.scores.mean() for name in names for column in columns[name]]):.3f}"


def count_worse(columns: Mapping[str, Sequence[Column]], today: Mapping[str, Sequence[Column]]) -> str:
    pairs = [pair for name in columns for pair in zip(columns[name], today[name], strict=True)]
    return str(sum(column.is_worse(before) for column, before in pairs))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="folders whose subfolders are classes")
    parser.add_argument("--held-out", nargs="*", default=[], metavar="NAME", help="sets of the second table")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to SEEDS - 1 (default: 5)")
    arguments = parser.parse_args()
    with image_sets(arguments.folders) as sets:
        prepared = {name: prepare(name, options) for name, options in sets.items()}
    seeds = range(arguments.seeds)
    columns = {
        title: {name: measure(join, parts, seeds) for name, parts in prepared.items()} for title, join in JOINS.items()
    }
    today = next(iter(columns.values()))
    chosen_by = [name for name in prepared if name not in arguments.held_out]
    print_table(chosen_by, columns, {"mean": {join: mean_of(found, chosen_by) for join, found in columns.items()}})
    last = {
        "mean of all": {join: mean_of(found, list(prepared)) for join, found in columns.items()},
        "worse in": {join: count_worse(found, today) for join, found in columns.items()},
    }
    print_table(arguments.held_out, columns, last)


if __name__ == "__main__":
    main()

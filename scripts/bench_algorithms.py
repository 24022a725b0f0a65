"""Compares algorithms that were tried beside k-means, at the true number of classes, over labelled sets and seeds.

Prints Markdown with the columns of `bench_quality`: the adjusted Rand index on whole sets and (as their mean) on their
subsets. All algorithms work in the same spaces: `joined` is that of the features side by side, and `both` are those of
VGG16 and of EfficientNet-Lite2, each reduced by itself. Labels are only compared with the groups.

    .venv/bin/python -m scripts.bench_algorithms [FOLDER...]   # folders whose subfolders are classes
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import adjusted_rand_score

from gpu_cluster.backend import CpuBackend, FloatArray, IntArray
from gpu_cluster.clustering import kmeans
from gpu_cluster.clustering.reduce import reduce
from gpu_cluster.config import ClusterConfig, ReduceConfig
from scripts.experimental_algorithms import consensus, largest_margin, self_distilled
from scripts.labelled_sets import FEATURES, Labelled, embedded_parts, image_sets, side_by_side, subsets

# The spaces of one set: joined, VGG16, EfficientNet-Lite2.
Spaces = Sequence[FloatArray]
Grouping = Callable[..., IntArray]


def k_means(x: FloatArray, k: int, *, seed: int) -> IntArray:
    given: dict[str, Any] = {"sample": len(x), "seed": seed, "backend": CpuBackend()}
    return np.asarray(kmeans.fit(x, k, ClusterConfig(), **given).labels)


ALGORITHMS: Mapping[str, Callable[[Spaces], Grouping]] = {
    "k-means, joined": lambda spaces: partial(k_means, spaces[0]),
    "consensus of restarts, average linkage, joined": lambda spaces: partial(consensus, spaces[:1]),
    "consensus of restarts, average linkage, joined and both": lambda spaces: partial(consensus, spaces),
    "consensus of restarts, spectral, joined and both": lambda spaces: partial(consensus, spaces, linkage="spectral"),
    "self-distilled heads, joined": lambda spaces: partial(self_distilled, spaces[0]),
    "largest margin, joined": lambda spaces: partial(largest_margin, spaces[:1]),
    "largest margin, both": lambda spaces: partial(largest_margin, spaces[1:]),
}


def spaces_of(parts: Sequence[Labelled]) -> Spaces:
    return [reduce(one.embeddings.x, ReduceConfig(), backend=CpuBackend()).x for one in (side_by_side(parts), *parts)]


def print_row(title: str, algorithm: Callable[[Spaces], Grouping], sets: Sequence[Any], seeds: Sequence[int]) -> None:
    """Print the row of one algorithm; each set is its whole and its subsets, each of them spaces and labels."""
    cells, means = [], []
    for parts in sets:
        found = [
            [adjusted_rand_score(labels, algorithm(spaces)(len(np.unique(labels)), seed=seed)) for seed in seeds]
            for spaces, labels in parts
        ]
        of_subsets = np.mean(found[1:], axis=0)
        cells += [f"{np.mean(scores):.2f} ± {np.std(scores):.2f}" for scores in (found[0], of_subsets)]
        means += [float(np.mean(found[0])), float(np.mean(of_subsets))]
    print(f"| {title} | {' | '.join(cells)} | {np.mean(means):.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="folders whose subfolders are classes")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to SEEDS - 1 (default: 3)")
    arguments = parser.parse_args()
    with image_sets(arguments.folders) as sets:
        titles = [title for name in sets for title in (name, "its subsets")]
        prepared = []
        for name, options in sets.items():
            wholes = embedded_parts(name, options, FEATURES[-1])
            each = zip(*([whole, *subsets(whole)] for whole in wholes), strict=True)
            prepared.append([(spaces_of(parts), parts[0].labels) for parts in each])
    print(f"| algorithm | {' | '.join(titles)} | mean |\n|{'---|' * (len(titles) + 2)}", flush=True)
    for title, algorithm in ALGORITHMS.items():
        print_row(title, algorithm, prepared, range(arguments.seeds))


if __name__ == "__main__":
    main()

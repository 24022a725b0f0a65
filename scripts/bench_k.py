"""Which number of clusters each criterion chooses, against the number of classes: over sets, subsets, ranges and seeds.

The sets are those of `labelled_sets`: the sample set, scikit-learn's digits (drawn as pictures), folders whose
subfolders are classes, and seeded subsets of 3 to 10 classes of each. No label takes part in a choice. Prints a row a
set (chosen k at seed 0, by criterion, for each range that holds the number of classes), and the errors of each
criterion: over everything, and over the choices that the job does not call unclear.

    .venv/bin/python -m scripts.bench_k [--seeds N] [FOLDER...]
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpu_cluster.backend import CpuBackend
from gpu_cluster.config import SweepConfig
from gpu_cluster.events import Observer
from gpu_cluster.options import build_config
from gpu_cluster.reduce import reduce
from gpu_cluster.sweep import CLEAR_AGREEMENT, choose, sweep_k
from scripts.labelled_sets import embedded, image_sets, subsets

CRITERIA = ("agreement", "elbow", "silhouette")
RANGES = (10, 15, 20, 30, 40)


@dataclass(frozen=True)
class Choice:
    """A k chosen from a range, how far it is from the number of classes, and whether restarts agree there."""

    title: str
    k: int
    off: int
    clear: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="folders whose subfolders are classes")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to SEEDS - 1 (default: 3)")
    arguments = parser.parse_args()
    choices: dict[str, list[Choice]] = defaultdict(list)
    columns = " | ".join(f"{criterion}, 2 to {'/'.join(map(str, RANGES))}" for criterion in CRITERIA)
    print(f"| set | images | classes | agreement there | {columns} |\n|{'---|' * (4 + len(CRITERIA))}")
    with image_sets(arguments.folders) as sets:
        for name, options in sets.items():
            config = build_config(**options)
            whole = embedded(name, config)
            for part in (whole, *subsets(whole)):
                n, true_k = len(part.labels), part.n_classes
                projection = reduce(part.embeddings, config.reduce, sweep_space="projection", backend=CpuBackend())
                shown, sure = [], []
                for seed in range(arguments.seeds):
                    swept = SweepConfig(k_range=f"2:{min(max(RANGES), n // 3)}")
                    given: dict[str, Any] = {"seed": seed, "backend": CpuBackend(), "observer": Observer()}
                    points = sweep_k(projection, swept, config.cluster, config.score, **given).points
                    agreement = {point.k: point.agreement or 0 for point in points}
                    for criterion in CRITERIA:
                        within = [[point for point in points if point.k <= last] for last in RANGES if last >= true_k]
                        ks = [choose(SweepConfig(select=criterion), some, n)[0] for some in within]
                        choices[criterion] += [
                            Choice(part.title, k, abs(k - true_k), agreement[k] >= CLEAR_AGREEMENT) for k in ks
                        ]
                        if seed == 0:
                            shown.append("/".join(map(str, ks)))
                            sure.append(agreement[ks[-1]])
                print(f"| {part.title} | {n} | {true_k} | {sure[0]:.2f} | {' | '.join(shown)} |", flush=True)
    print("\n| criterion | choices | median error | mean error | at most 1 off | median spread over ranges and seeds |")
    print("|---|---|---|---|---|---|")
    for criterion in CRITERIA:
        print_errors(criterion, choices[criterion])
        if criterion == "agreement":
            print_errors("agreement, where clear", [choice for choice in choices[criterion] if choice.clear])


def print_errors(title: str, choices: list[Choice]) -> None:
    off = np.array([choice.off for choice in choices])
    ks: dict[str, list[int]] = defaultdict(list)
    for choice in choices:
        ks[choice.title].append(choice.k)
    spread = np.median([max(some) - min(some) for some in ks.values()])
    shown = f"{np.median(off):.0f} | {off.mean():.2f} | {np.mean(off <= 1):.0%} | {spread:.0f}"
    print(f"| {title} | {len(off)} | {shown} |")


if __name__ == "__main__":
    main()

"""Compares the number of clusters that each criterion chooses with the number of classes, on many labelled sets.

The sets are those of `labelled_sets`: the sample set, scikit-learn's digits (drawn as pictures), folders whose
subfolders are classes, and seeded subsets of 3 to 10 classes of each. Ranges and seeds vary too. No label takes part in
a choice. Prints one row for each set (k chosen at seed 0, by criterion, for each range that holds the number of
classes), and the errors of each criterion: over all choices, and over the choices that the job does not call unclear.
With --restarts, the tables also have the criteria of `k_criteria` that need nothing but the restarts, and with --others
those that need more. With --features, other features than VGG16's are clustered, or both side by side.

With --sweep-sample, sets of at least 400 pictures are swept again with restarts on a sample of a share of them, as the
job sweeps more than 20,000 pictures. These rows stand beside one for the same sets without a sample.

    .venv/bin/python -m scripts.bench_k [--features NAME] [--restarts] [--others] [FOLDER...] [--sweep-sample SHARE...]
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from gpu_cluster.backend import CpuBackend
from gpu_cluster.clustering.reduce import reduce
from gpu_cluster.clustering.sweep import choose, sweep_k
from gpu_cluster.config import RunConfig, SweepConfig
from gpu_cluster.events import Observer
from gpu_cluster.options import build_config
from gpu_cluster.results import SweepPoint
from gpu_cluster.verdict import CLEAR_AGREEMENT
from scripts.k_criteria import Chooser, criteria, of_restarts
from scripts.labelled_sets import FEATURES, Labelled, embedded_parts, image_sets, side_by_side, subsets

Criterion = Literal["agreement", "elbow", "silhouette"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
RANGES = (10, 15, 20, 30, 40)

# Sets of fewer pictures are not sampled: a share of them is too few for the longest range.
LEAST_SAMPLED = 400
NOT_SAMPLED = f"agreement, sets of at least {LEAST_SAMPLED}"


@dataclass(frozen=True)
class Choice:
    """A k chosen from a range, how far it is from the number of classes, and how well the restarts agree at it."""

    title: str
    k: int
    off: int
    agreement: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="folders whose subfolders are classes")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to SEEDS - 1 (default: 3)")
    parser.add_argument("--features", choices=FEATURES, default=FEATURES[0], help="default: %(default)s")
    parser.add_argument("--restarts", action="store_true", help="and other criteria that use the restarts")
    parser.add_argument("--others", action="store_true", help="and criteria that the job does not have (far slower)")
    parser.add_argument(
        "--sweep-sample",
        nargs="+",
        type=float,
        default=[],
        metavar="SHARE",
        help=f"also with restarts on these shares (0.5) of each set of at least {LEAST_SAMPLED} pictures",
    )
    arguments = parser.parse_args()
    choices: dict[str, list[Choice]] = defaultdict(list)
    columns = ["agreement", *map(on_share, arguments.sweep_sample), *CRITERIA[1:]]
    with image_sets(arguments.folders) as sets:
        for title, options in sets.items():
            config = build_config(RunConfig, **options)
            whole = side_by_side(embedded_parts(title, options, arguments.features))
            asked = [
                of for of, is_asked in ((of_restarts, arguments.restarts), (criteria, arguments.others)) if is_asked
            ]
            for part in (whole, *subsets(whole)):
                given = (config, asked, arguments.sweep_sample)
                by_seed = [choose_ks(part, seed, *given) for seed in range(arguments.seeds)]
                if not choices:
                    columns += [name for name in by_seed[0] if name not in columns]
                    print_head(columns)
                print_row(part, columns, by_seed[0])
                for of_seed in by_seed:
                    for name, found in of_seed.items():
                        choices[name] += found
    print("\n| criterion | choices | median error | mean error | at most 1 off | median spread over ranges and seeds |")
    print("|---|---|---|---|---|---|")
    for name, found in choices.items():
        print_errors(name, found)
        if name.startswith("agreement"):
            print_errors(f"{name}, where clear", [choice for choice in found if choice.agreement >= CLEAR_AGREEMENT])


def choose_ks(
    part: Labelled, seed: int, config: RunConfig, others: Sequence[Callable[..., Any]], shares: Sequence[float]
) -> dict[str, list[Choice]]:
    """Return what each criterion chooses from each range that holds the number of classes."""
    n, true_k = len(part.labels), part.n_classes
    projection = reduce(part.embeddings.x, config.reduce, backend=CpuBackend())
    given: dict[str, Any] = {"seed": seed, "backend": CpuBackend(), "observer": Observer()}

    def swept(sample: int) -> Sequence[SweepPoint]:
        sweep = SweepConfig(k_range=f"2:{min(max(RANGES), n // 3)}", sweep_sample=sample)
        return sweep_k(projection.x, sweep, config.cluster, config.score, **given).points

    def choices(chooser: Chooser, points: Sequence[SweepPoint]) -> list[Choice]:
        agreement = {point.k: point.agreement or 0 for point in points}
        ranges = [[k for k in agreement if k <= last] for last in RANGES if last >= true_k]
        return [Choice(part.title, k, abs(k - true_k), agreement[k]) for k in map(chooser, ranges)]

    points = swept(n)
    found: dict[str, list[Choice]] = {}
    found |= {name: choices(partial(choose_by, name, points, n), points) for name in CRITERIA}
    for criteria_of in others:
        choosers = criteria_of(projection.sweep_x, [point.k for point in points], seed=seed)
        found |= {name: choices(chooser, points) for name, chooser in choosers.items()}
    if shares and n >= LEAST_SAMPLED:
        found[NOT_SAMPLED] = found["agreement"]
        for share in shares:
            sampled = swept(round(share * n))
            found[on_share(share)] = choices(partial(choose_by, "agreement", sampled, n), sampled)
    return found


def on_share(share: float) -> str:
    return f"agreement, restarts on {share:.0%}"


def choose_by(criterion: Criterion, points: Sequence[SweepPoint], n: int, ks: Sequence[int]) -> int:
    return choose(SweepConfig(select=criterion), [point for point in points if point.k in ks], n)[0]


def print_head(columns: Sequence[str]) -> None:
    words = " | ".join(f"{name}, 2 to {'/'.join(map(str, RANGES))}" for name in columns)
    print(f"| set | images | classes | agreement there | {words} |\n|{'---|' * (4 + len(columns))}")


def print_row(part: Labelled, columns: Sequence[str], chosen: Mapping[str, list[Choice]]) -> None:
    cells = " | ".join("/".join(str(choice.k) for choice in chosen.get(name, ())) for name in columns)
    sure = chosen["agreement"][-1].agreement
    print(f"| {part.title} | {len(part.labels)} | {part.n_classes} | {sure:.2f} | {cells} |", flush=True)


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

"""Which number of clusters each criterion chooses, against the number of classes: over sets, subsets, ranges and seeds.

The sets are the sample set, scikit-learn's digits (drawn as pictures), and folders whose subfolders are classes. Of
each, seeded subsets of 3 to 10 classes are taken, some of them thinned to half. No label takes part in a choice. Prints
a row a set (chosen k at seed 0, by criterion, for each range), and the errors of each criterion over everything.

    .venv/bin/python scripts/bench_k.py [--seeds N] [FOLDER...]
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gpu_cluster import vgg16
from gpu_cluster.backend import CpuBackend
from gpu_cluster.config import JobConfig, SweepConfig, build_config
from gpu_cluster.embed import embed
from gpu_cluster.events import Observer
from gpu_cluster.images import discover, scan
from gpu_cluster.reduce import reduce
from gpu_cluster.results import Embeddings
from gpu_cluster.store import open_store
from gpu_cluster.sweep import choose, sweep_k

CRITERIA = ("agreement", "elbow", "silhouette")
RANGES = (10, 15, 20, 30, 40)
# Classes of a subset, and whether it is thinned to half of its pictures.
SUBSETS = ((3, False), (4, False), (4, True), (5, False), (6, False), (6, True), (8, False), (8, True), (10, True))


def draw_digits(folder: Path) -> Path:
    """Write scikit-learn's 8 x 8 digits as pictures, a folder a digit."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (image, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        file = folder / "digits" / str(digit) / f"{number:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * (255 / 16)).astype(np.uint8)).save(file)
    return folder / "digits"


def embedded(config: JobConfig) -> tuple[Embeddings, np.ndarray]:
    """Embed the images of a config through the store; return their labels too."""
    observer = Observer()
    store = open_store(config.store, observer)
    manifest = scan(discover(config.input, observer), config.input, observer, store=store)
    given: dict[str, Any] = {"store": store, "store_config": config.store, "observer": observer}
    found = embed(manifest, vgg16.find_weights(), config.embed, backend=CpuBackend(), **given)
    assert manifest.labels is not None, "the images have no labels"
    return found, np.array([manifest.labels[row] for row in found.rows])


def subsets(name: str, found: Embeddings, labels: np.ndarray) -> Iterator[tuple[str, Embeddings, int]]:
    """Yield a set and its subsets: name, embeddings, number of classes."""
    classes = np.unique(labels)
    yield name, found, len(classes)
    for number, (n_classes, thinned) in enumerate(SUBSETS):
        if n_classes >= len(classes):
            continue
        random = np.random.RandomState(number)
        rows = np.flatnonzero(np.isin(labels, random.choice(classes, n_classes, replace=False)))
        if thinned:
            rows = np.sort(random.choice(rows, len(rows) // 2, replace=False))
        yield f"{name}, {n_classes} classes", replace(found, x=found.x[rows], rows=np.arange(len(rows))), n_classes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="folders whose subfolders are classes")
    parser.add_argument("--seeds", type=int, default=2, help="seeds 0 to SEEDS - 1 (default: 2)")
    arguments = parser.parse_args()
    errors: dict[str, list[int]] = defaultdict(list)
    spreads: dict[str, list[int]] = defaultdict(list)
    backend = CpuBackend()
    columns = " | ".join(f"{criterion}, 2 to {'/'.join(map(str, RANGES))}" for criterion in CRITERIA)
    print(f"| set | images | classes | {columns} |\n|{'---|' * (3 + len(CRITERIA))}")
    with tempfile.TemporaryDirectory() as name:
        folders = [*arguments.folders, draw_digits(Path(name))]
        configs = [("sample set", build_config())]
        configs += [(folder.name, build_config(images=(folder,), labels_from_folders=True)) for folder in folders]
        for set_name, config in configs:
            for title, found, n_classes in subsets(set_name, *embedded(config)):
                n = len(found.rows)
                projection = reduce(found, config.reduce, sweep_space="projection", backend=backend)
                shown = []
                chosen: dict[str, list[int]] = defaultdict(list)
                for seed in range(arguments.seeds):
                    swept = SweepConfig(k_range=f"2:{min(max(RANGES), n // 3)}")
                    given: dict[str, Any] = {"seed": seed, "backend": backend, "observer": Observer()}
                    points = sweep_k(projection, swept, config.cluster, config.score, **given).points
                    for criterion in CRITERIA:
                        ks = [
                            choose(SweepConfig(select=criterion), [point for point in points if point.k <= last], n)[0]
                            for last in RANGES
                            if last >= n_classes
                        ]
                        chosen[criterion] += ks
                        if seed == 0:
                            shown.append("/".join(map(str, ks)))
                print(f"| {title} | {n} | {n_classes} | {' | '.join(shown)} |", flush=True)
                for criterion, ks in chosen.items():
                    errors[criterion] += [abs(k - n_classes) for k in ks]
                    spreads[criterion].append(max(ks) - min(ks))
    print("\n| criterion | median error | mean error | at most 1 off | median spread over ranges and seeds |")
    print("|---|---|---|---|---|")
    for criterion in CRITERIA:
        off = np.array(errors[criterion])
        spread = np.median(spreads[criterion])
        print(f"| {criterion} | {np.median(off):.0f} | {off.mean():.2f} | {np.mean(off <= 1):.0%} | {spread:.0f} |")


if __name__ == "__main__":
    main()

"""Measures the sweep over k beside the loop that people write with scikit-learn, side by side in one run.

The loop runs `KMeans(n_init=10)` and `silhouette_score(sample_size=20000)` for each k from 2 to 15; the sweep computes
the agreement of the restarts too. Both get the same rows: blobs, and embeddings of real pictures (the sample set's, or
those of a folder whose subfolders are classes), reduced as the job reduces them and repeated with noise. Prints the
seconds of each, least of some rounds, and how far the sweep's inertia is above scikit-learn's best of ten. Then the
sweep alone runs with more rows. faiss's k-means is measured too if it is installed.

    .venv/bin/python -m scripts.bench_sweep [--rows N] [--most N] [--rounds N] [--json] [FOLDER]
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs
from sklearn.metrics import silhouette_score

from gpu_cluster.backend import CpuBackend
from gpu_cluster.clustering.kmeans import row_norms
from gpu_cluster.clustering.reduce import reduce
from gpu_cluster.clustering.sweep import sweep_k
from gpu_cluster.config import ClusterConfig, RunConfig, ScoreConfig, SweepConfig, parse_k_range
from gpu_cluster.events import Observer
from gpu_cluster.options import build_config
from scripts.bench_table import Row, of_times
from scripts.labelled_sets import embedded

_COLUMNS = 32
_SILHOUETTE_ROWS = 20_000

# The inertia at each k.
Inertias = dict[int, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="a folder whose subfolders are classes")
    parser.add_argument("--rows", type=int, default=100_000, help="rows of the comparison (default: 100,000)")
    parser.add_argument("--most", type=int, default=1_000_000, help="rows of the sweep alone (default: 1,000,000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the least counts (default: 3)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    space = real_space(arguments.folder)
    makers: dict[str, Callable[[int], np.ndarray]] = {"blobs": blobs, "pictures": lambda n: repeated(space, n)}
    rows: list[dict[str, Any]] = []
    for name, make in makers.items():
        rows.append({"rows of": name, **compared(make(arguments.rows), arguments.rounds)})
        rows.append({"rows of": name, **alone(make(arguments.most), arguments.rounds)})
    print(json.dumps(rows, indent=1) if arguments.json else in_words(rows))


def blobs(n: int) -> np.ndarray:
    x, _ = make_blobs(n, _COLUMNS, centers=12, cluster_std=4.0, random_state=0)
    return np.asarray(x, np.float32)


def real_space(folder: Path | None) -> np.ndarray:
    """Return the clustered space of a folder's pictures, or of the sample set's, with 32 columns."""
    options: dict[str, Any] = {} if folder is None else {"images": (folder,), "labels_from_folders": True}
    config = build_config(RunConfig, pca=_COLUMNS, **options)
    return np.asarray(reduce(embedded("pictures", config).embeddings.x, config.reduce, backend=CpuBackend()).x)


def repeated(space: np.ndarray, n: int) -> np.ndarray:
    """Return n rows near random rows of a space, about as far from them as their nearest neighbours are."""
    random = np.random.default_rng(0)
    squares = np.maximum(2 - 2 * space @ space.T, 0)
    np.fill_diagonal(squares, np.inf)
    spread = np.median(np.sqrt(squares.min(axis=1))) / np.sqrt(space.shape[1])
    x = space[random.integers(len(space), size=n)]
    x += (spread * random.standard_normal(x.shape, dtype=np.float32)).astype(np.float32)
    scaled: np.ndarray = x / row_norms(x, CpuBackend())
    return scaled


def ks() -> tuple[int, ...]:
    config = SweepConfig()
    return parse_k_range(config.k_range or config.default_range)


def ours(x: np.ndarray) -> Inertias:
    given: dict[str, Any] = {"seed": 0, "backend": CpuBackend(), "observer": Observer()}
    sweep = sweep_k(x, SweepConfig(), ClusterConfig(), ScoreConfig(), **given)
    return {point.k: point.inertia for point in sweep.points}


def the_loop(x: np.ndarray) -> Inertias:
    found = {}
    for k in ks():
        fit = KMeans(k, n_init=10, random_state=0).fit(x)
        silhouette_score(x, fit.labels_, sample_size=_SILHOUETTE_ROWS, random_state=0)
        found[k] = float(fit.inertia_)
    return found


def with_faiss(x: np.ndarray) -> Inertias:
    faiss: Any = importlib.import_module("faiss")

    found = {}
    for k in ks():
        fit = faiss.Kmeans(x.shape[1], k, nredo=10, niter=25, seed=1, max_points_per_centroid=len(x))
        fit.train(x)
        found[k] = float(fit.index.search(x, 1)[0].sum())
        labels = fit.index.search(x, 1)[1][:, 0]
        silhouette_score(x, labels, sample_size=_SILHOUETTE_ROWS, random_state=0)
    return found


@contextmanager
def timed(into: list[tuple[float, float]]) -> Iterator[None]:
    """Add the seconds of the block, by the clock and of the processor, to a list."""
    start, used = time.perf_counter(), time.process_time()
    yield
    into.append((time.perf_counter() - start, time.process_time() - used))


def compared(x: np.ndarray, rounds: int) -> dict[str, Any]:
    """Measure the sweep and the loop in turns, so that what else the machine does meets both."""
    runners = {"sweep": ours, "loop": the_loop}
    if importlib.util.find_spec("faiss"):
        runners["faiss"] = with_faiss
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runners}
    inertias = {}
    for _ in range(rounds):
        for name, run in runners.items():
            with timed(seconds[name]):
                inertias[name] = run(x)
    excess = [inertias["sweep"][k] / inertias["loop"][k] - 1 for k in ks()]
    return {
        "n": len(x),
        **{f"{name}_s": min(wall for wall, _ in seconds[name]) for name in runners},
        **{f"{name}_cpu_s": min(cpu for _, cpu in seconds[name]) for name in runners},
        "spread": max(max(wall for wall, _ in some) / min(wall for wall, _ in some) - 1 for some in seconds.values()),
        "excess_median": float(np.median(excess)),
        "excess_worst": float(max(excess)),
        "excess": dict(zip(ks(), excess, strict=True)),
    }


def alone(x: np.ndarray, rounds: int) -> dict[str, Any]:
    seconds: list[tuple[float, float]] = []
    for _ in range(rounds):
        with timed(seconds):
            ours(x)
    wall, cpu = zip(*seconds, strict=True)
    return {"n": len(x), "sweep_s": min(wall), "sweep_cpu_s": min(cpu), "spread": max(wall) / min(wall) - 1}


def measure(quick: bool) -> list[Row]:
    """Return a row for blobs beside scikit-learn's loop, by the clock, and unless it is quick one for a million."""
    n = 40_000 if quick else 100_000
    x = blobs(n)
    seconds: dict[str, list[tuple[float, float]]] = {"sweep": [], "loop": []}
    for _ in range(1 if quick else 2):
        for name, run in (("sweep", ours), ("loop", the_loop)):
            with timed(seconds[name]):
                run(x)
    sweep_s, loop_s = ([wall for wall, _ in seconds[name]] for name in ("sweep", "loop"))
    rows = [of_times(f"sweep 2:15 of {n:,} x {_COLUMNS} / scikit-learn's loop", sweep_s, loop_s)]
    if not quick:
        large = alone(blobs(1_000_000), 2)
        rows.append(Row(f"sweep 2:15 of 1,000,000 x {_COLUMNS}", large["sweep_s"], spread=large["spread"]))
    return rows


def in_words(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| rows of | rows | loop / sweep | the same in processor time | sweep, s | loop, s | faiss, s | inertia above "
        "the loop's, median | worst | spread of rounds |",
        "|---" * 10 + "|",
    ]
    for row in rows:
        cells = [row["rows of"], f"{row['n']:,}"]
        if "loop_s" in row:
            cells += [f"{row['loop_s'] / row['sweep_s']:.1f}", f"{row['loop_cpu_s'] / row['sweep_cpu_s']:.1f}"]
        else:
            cells += ["", ""]
        cells += [f"{row[name]:.1f}" if name in row else "" for name in ("sweep_s", "loop_s", "faiss_s")]
        cells += [f"{row[name]:.3%}" if name in row else "" for name in ("excess_median", "excess_worst")]
        cells.append(f"{row['spread']:.0%}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

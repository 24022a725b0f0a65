"""Measures time and peak memory of the stages behind the network, on stores of N drawn embeddings of 1,024 numbers.

The stores are written by the package's own writer, and the stages of a run are called as `gpu-cluster run` calls them,
on a manifest that is made in memory: no picture is drawn and no network is run. Each N has its own process. Its peak is
what the system says when it has ended (`ru_maxrss`, as in `/usr/bin/time -v`), and --limit-gib is RLIMIT_AS: it counts
all addresses of the process, also those of the libraries and the stacks of threads that are never touched.

    .venv/bin/python -m scripts.bench_scale [--n N ...] [--limit-gib G] [--until reduce|score] [--folder DIR] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from scripts.bench_table import Row

N_FEATURES, N_GROUPS, SHARD = 1024, 12, 256
GIB = 1 << 30


def engine() -> Any:
    """Return an engine whose network is never built; the key of the store is made of it."""
    from gpu_cluster.backend import CpuBackend
    from gpu_cluster.config import EmbedConfig
    from gpu_cluster.embedding.engines import choose_engine
    from gpu_cluster.embedding.extractors import Extractor

    def never(_precision: str) -> Any:
        raise AssertionError("every embedding is in the store")

    return choose_engine(CpuBackend(), Extractor({"features": "drawn"}, N_FEATURES, never), EmbedConfig())


def content_hash(number: int) -> str:
    return f"{number:032x}"


def write_store(root: Path, n: int) -> None:
    """Write n seeded embeddings, none below 0: groups around centres of which few numbers are large, as VGG16's are."""
    from gpu_cluster.events import Observer
    from gpu_cluster.store.store import Store

    random = np.random.default_rng(0)
    centres = (random.uniform(size=(N_GROUPS, N_FEATURES)) ** 4).astype(np.float32)
    shards = Store(root, Observer()).embeddings(engine().key)
    for first in range(0, n, SHARD):
        names = [content_hash(number) for number in range(first, min(first + SHARD, n))]
        noise = random.standard_normal((len(names), N_FEATURES), dtype=np.float32)
        x = np.maximum(centres[random.integers(N_GROUPS, size=len(names))] + 0.15 * noise, 0)
        shards.keep(names, x, [None] * len(names))


def run_stages(root: Path, n: int, until: str) -> dict[str, Any]:
    """Run the stages in this process; return the seconds of each."""
    from gpu_cluster.backend import CpuBackend
    from gpu_cluster.clustering.sequence import find_clusters, find_space
    from gpu_cluster.columns import Texts
    from gpu_cluster.config import RunConfig, StoreConfig
    from gpu_cluster.embedding.embed import embed
    from gpu_cluster.events import Observer, Recorder
    from gpu_cluster.facts import FileFacts, FileTable
    from gpu_cluster.images.places import open_source
    from gpu_cluster.manifest import Manifest
    from gpu_cluster.options import build_config
    from gpu_cluster.store.store import Store

    events, backend, config = Recorder(), CpuBackend(), build_config(RunConfig)
    # Columns, as the scan makes them: a Python object for each file would take most of the memory that is measured.
    files = FileTable(FileFacts(size=1, content_hash=content_hash(number)) for number in range(n))
    manifest = Manifest(root, Texts(f"{number:08d}.jpg" for number in range(n)), files)
    with events.stage("find in the store"):
        store = Store(root, Observer())
        given: dict[str, Any] = {"store": store, "store_config": StoreConfig(), "observer": Observer()}
        found = embed(manifest, open_source(root), engine(), **given)
    assert found.n_computed == 0
    if until == "reduce":
        find_space(found.x, config, backend=backend, events=events)
        return events.stages_s
    clusters = find_clusters(found.x, config, backend=backend, events=events)
    assert clusters.clustering.k > 1
    return events.stages_s


def measured(root: Path, n: int, until: str, limit: float | None) -> dict[str, Any]:
    """Run the stages in a process of their own; return their seconds, its peak and its whole time."""
    command = [sys.executable, "-m", "scripts.bench_scale", "--stages-of", str(root), "--n", str(n), "--until", until]

    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_AS, (int(limit * GIB), int(limit * GIB)))

    start = time.perf_counter()
    # One call in the new process; no thread runs in this one.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=limited)  # noqa: PLW1509
    assert process.stdout is not None
    out = process.stdout.read()
    _pid, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        return {"n": n, "limit_gib": limit, "exit_code": process.returncode}
    return {
        "n": n,
        "limit_gib": limit,
        "stages_s": json.loads(out.splitlines()[-1]),
        "whole_s": time.perf_counter() - start,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        # In kibibytes on Linux.
        "peak_gib": usage.ru_maxrss / (1 << 20),
    }


def shown(row: dict[str, Any]) -> str:
    limit = "" if row["limit_gib"] is None else f" under a limit of {row['limit_gib']:g} GiB"
    if "exit_code" in row:
        return f"{row['n']:,}{limit}: ended with code {row['exit_code']}"
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in row["stages_s"].items())
    return f"{row['n']:,}{limit}: {stages}; {row['cpu_s']:.0f} s of CPU time; peak {row['peak_gib']:.2f} GiB"


def measure(quick: bool) -> list[Row]:
    """Return a row for each number of embeddings, with the peak memory of its process."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        for n in (10_000, 100_000) if quick else (10_000, 100_000, 1_000_000):
            root = Path(name) / str(n)
            write_store(root, n)
            row = measured(root, n, "score", None)
            stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in row["stages_s"].items())
            note = f"peak {row['peak_gib']:.2f} GiB; {stages}"
            found.append(Row(f"{n:,} embeddings of {N_FEATURES:,} numbers in the store", row["whole_s"], note=note))
            shutil.rmtree(root)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, nargs="+", default=[10_000, 100_000], help="numbers of embeddings")
    parser.add_argument("--until", choices=("reduce", "score"), default="score", help="last stage (default: score)")
    parser.add_argument("--limit-gib", type=float, help="also measure the largest N under this limit of addresses")
    parser.add_argument("--folder", type=Path, help="where the stores are made, or lie from an earlier time")
    parser.add_argument("--json", action="store_true", help="print JSON, a line for each row")
    parser.add_argument("--stages-of", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stages_of:
        print(json.dumps(run_stages(arguments.stages_of, arguments.n[0], arguments.until)))
        return
    with tempfile.TemporaryDirectory() as name:
        rows = []
        for n in sorted(arguments.n):
            root = (arguments.folder or Path(name)) / str(n)
            if not root.exists():
                start = time.perf_counter()
                write_store(root, n)
                print(f"a store of {n:,} written in {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
            limits = [None, arguments.limit_gib] if n == max(arguments.n) and arguments.limit_gib else [None]
            for limit in limits:
                rows.append(measured(root, n, arguments.until, limit))
                print(json.dumps(rows[-1]) if arguments.json else shown(rows[-1]), flush=True)
    free = [row for row in rows if row["limit_gib"] is None and "peak_gib" in row]
    if len(free) > 1 and not arguments.json:
        first, last = free[0], free[-1]
        more = last["n"] - first["n"]
        kib = (last["peak_gib"] - first["peak_gib"]) * (1 << 20) / more
        us = 1e6 * (sum(last["stages_s"].values()) - sum(first["stages_s"].values())) / more
        print(f"slope from {first['n']:,} to {last['n']:,}: {kib:.2f} KiB and {us:.0f} microseconds an embedding")


if __name__ == "__main__":
    main()

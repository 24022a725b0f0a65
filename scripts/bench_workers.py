"""Measures what workers gain and cost: pictures a second, overhead a task, the driver's memory, and the model of a run.

    .venv/bin/python -m scripts.bench_workers rate [--images N] [--rounds R]   serial on all cores / one-core workers
    .venv/bin/python -m scripts.bench_workers overhead [--tasks N]             seconds that a task costs beside its work
    .venv/bin/python -m scripts.bench_workers memory [--n N ...]               peak of the driver; no network is run
    .venv/bin/python -m scripts.bench_workers model [--n SMALL LARGE]          scripts/scale_model.py against two runs

`rate` and `model` embed the drawn flowers with VGG16, each of them several times as if they were different pictures.
`overhead` and `memory` have a stand-in for the network, and a place whose pictures are never read.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from gpu_cluster import executor as executors
from gpu_cluster.backend import CpuBackend, IntArray
from gpu_cluster.backend.cores import usable_cores
from gpu_cluster.clustering.sequence import find_clusters
from gpu_cluster.columns import Texts
from gpu_cluster.config import DecodingConfig, EmbedConfig, ExecutorConfig, RunConfig, StoreConfig, shipped_data
from gpu_cluster.embedding.embed import embed
from gpu_cluster.embedding.engines import Engine
from gpu_cluster.embedding.extractors import Extractor
from gpu_cluster.embedding.tasks import EngineRecipe, FeaturesRecipe
from gpu_cluster.embedding.work import Elsewhere
from gpu_cluster.events import Observer, Recorder
from gpu_cluster.facts import FileFacts, FileTable
from gpu_cluster.images.places import open_source
from gpu_cluster.images.scan import scan
from gpu_cluster.images.source import Listing, Picture, Source, Stat
from gpu_cluster.manifest import Manifest
from gpu_cluster.options import build_config
from gpu_cluster.store.store import Store

N_FEATURES = 1024


@dataclass(frozen=True)
class Nowhere(Source):
    """A place whose pictures all have one size and time of change; when they are opened, they are too large to read."""

    def list(self) -> Listing:
        return Listing()

    def stat(self, location: str, facts: FileFacts | None = None) -> Stat:
        return Stat(1, 0, 0)

    def open(self, location: str, facts: FileFacts | None = None) -> tuple[IO[bytes], Stat]:
        return io.BytesIO(), Stat(1 << 50, 0, 0)

    def local_path(self, location: str) -> Path | None:
        return None


class StandIn(Engine):
    """Gives numbers that depend on the picture's hash, without decoding or computing anything."""

    name = "stand-in"

    @property
    def identity(self) -> str:
        return self.name

    def versions(self) -> Mapping[str, str]:
        return {}

    def build(self) -> None:
        self.batch_size = 32

    def squares(self, pictures: Sequence[Picture], configs: Any) -> Iterator[tuple[IntArray, tuple[Any, ...]]]:
        for first in range(0, len(pictures), self.batch_size):
            part = np.arange(first, min(first + self.batch_size, len(pictures)))
            numbers = [int(str(pictures[at].facts.content_hash), 16) % 1000 for at in part.tolist()]
            yield part, (np.array(numbers, np.float32),)

    def square(self, decoded: Any) -> Any:
        raise AssertionError("no picture is decoded")

    def features(self, pixels: Any) -> Any:
        return np.repeat(1 + pixels[:, None], N_FEATURES, axis=1)


@dataclass(frozen=True)
class StandInRecipe(EngineRecipe):
    """How a worker makes the stand-in."""

    def make(self) -> Engine:
        def never(_precision: str) -> Any:
            raise AssertionError("no network is built")

        return StandIn(CpuBackend(), Extractor({"features": "stand-in"}, N_FEATURES, never), EmbedConfig())


def drawn_manifest(n: int) -> Manifest:
    """Return a manifest of n pictures that are nowhere."""
    facts = (FileFacts(size=1, mtime_ns=0, ctime_ns=0, content_hash=f"{number + 1:032x}") for number in range(n))
    return Manifest(Path("/nowhere"), Texts(f"{number:08d}.jpg" for number in range(n)), FileTable(facts))


def flowers(n: int) -> tuple[Manifest, Source]:
    """Return a manifest of n pictures: the drawn flowers in turn, each time as another picture."""
    folder = shipped_data() / "flowers"
    names = sorted(path.name for path in folder.glob("*.png"))
    source = open_source(folder)
    found = scan(Manifest(folder, names), source, DecodingConfig(), Observer())
    facts = [replace(found.files[row % len(names)], content_hash=f"{row + 1:032x}") for row in range(n)]
    return Manifest(folder, [names[row % len(names)] for row in range(n)], facts), source


def vgg16_recipe() -> FeaturesRecipe:
    """Return the recipe of the default engine."""
    return FeaturesRecipe("cpu", EmbedConfig(engine="auto"), (0,))


def embedded(
    manifest: Manifest,
    source: Source,
    recipe: EngineRecipe,
    root: Path,
    executor: executors.Executor,
    shard_size: int | None = None,
) -> Any:
    """Embed a manifest by an executor into a store."""
    elsewhere = Elsewhere(executor, recipe, DecodingConfig()) if executor.is_remote else None
    store, config = Store(root, Observer()), StoreConfig(shard_size=shard_size)
    given: dict[str, Any] = {"store": store, "store_config": config, "observer": Observer()}
    return embed(manifest, source, recipe.make(), elsewhere=elsewhere, **given)


def seconds(manifest: Manifest, source: Source, recipe: EngineRecipe, workers: int | None) -> float:
    """Return the seconds that embedding takes when the workers have loaded their network."""
    n = 16 * (workers or 1)
    few = Manifest(
        manifest.root,
        [manifest.paths[row] for row in range(n)],
        [replace(manifest.files[row], content_hash=f"{1 << 100 | row:032x}") for row in range(n)],
    )
    with (
        tempfile.TemporaryDirectory() as name,
        executors.opened(ExecutorConfig(workers=workers), "cpu", Observer()) as executor,
    ):
        embedded(few, source, recipe, Path(name), executor, shard_size=4)
        start = time.perf_counter()
        embedded(manifest, source, recipe, Path(name), executor)
        return time.perf_counter() - start


def rate(n: int, rounds: int) -> None:
    """Print the pictures a second of a serial run on all cores, and of as many one-core workers."""
    manifest, source = flowers(n)
    n_cores = usable_cores()
    ratios = []
    for number in range(rounds):
        taken = {w: seconds(manifest, source, vgg16_recipe(), w) for w in (None, n_cores)[:: 1 if number % 2 else -1]}
        ratios.append(taken[None] / taken[n_cores])
        print(
            f"round {number + 1}: serial on {n_cores} cores {n / taken[None]:.2f} pictures/s, "
            f"{n_cores} workers of one core {n / taken[n_cores]:.2f}: ratio {ratios[-1]:.2f}",
            flush=True,
        )
    print(f"workers / serial: median {np.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")


def overhead(n_tasks: int) -> None:
    """Print what a task of the scan and one of embedding cost beside their work, by tasks that do next to nothing."""
    manifest = drawn_manifest(256 * n_tasks)
    taken = {w: seconds(manifest, Nowhere(), StandInRecipe(), w) for w in (None, 1, 2)}
    for workers, spent in taken.items():
        print(f"embed, {words(workers)}: {1e3 * spent / n_tasks:.1f} ms for each of {n_tasks:,} shards of 256")
    for workers in (None, 1, 2):
        with executors.opened(ExecutorConfig(workers=workers), "cpu", Observer()) as executor:
            start = time.perf_counter()
            scan(manifest, Nowhere(), DecodingConfig(), Observer(), executor=executor)
            spent = time.perf_counter() - start
        n_slices = -(-len(manifest) // 4096)
        print(f"scan, {words(workers)}: {1e3 * spent / n_slices:.1f} ms for each of {n_slices:,} slices of 4,096")


def words(workers: int | None) -> str:
    return "serial" if workers is None else f"{workers} worker{'s' * (workers > 1)}"


def memory(numbers: Sequence[int]) -> None:
    """Print the peak memory of a driver of two workers, for each number of pictures, from outside of its process."""
    found = []
    for n in sorted(numbers):
        command = [sys.executable, "-m", "scripts.bench_workers", "drive", "--n", str(n)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        out = process.stdout.read()
        _pid, status, _usage = os.wait4(process.pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0, "the driver failed"
        # Not what `wait4` says, which counts the largest of its workers too.
        peak = json.loads(out.splitlines()[-1])["peak_bytes"]
        found.append((n, peak))
        print(f"{n:,} pictures: peak of the driver {peak / 1e9:.2f} GB", flush=True)
    if len(found) > 1:
        (n, peak), (more, higher) = found[0], found[-1]
        print(f"slope from {n:,} to {more:,}: {(higher - peak) / (more - n):.0f} bytes a picture")


def drive(n: int) -> None:
    """Embed n pictures and reduce them, with two workers; print the peak of this process."""
    manifest, config = drawn_manifest(n), build_config(RunConfig)
    with (
        tempfile.TemporaryDirectory() as name,
        executors.opened(ExecutorConfig(workers=2), "cpu", Observer()) as executor,
    ):
        found = embedded(manifest, Nowhere(), StandInRecipe(), Path(name), executor)
        find_clusters(found.x, config, backend=CpuBackend(), events=Recorder())
        print(json.dumps({"peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))


def model(sizes: Sequence[int]) -> None:
    """Fit the model of docs/scale.md to a run of the smaller size, and print how well it predicts the larger one."""
    from scripts.scale_model import CACHED, Picture, Plan, fitted, phase_seconds

    n_cores = usable_cores()
    runs = {}
    for n in sorted(sizes):
        runs[n] = phases(n, n_cores)
        print(f"{n:,} pictures: {', '.join(f'{phase} {spent:.1f} s' for phase, spent in runs[n].items())}", flush=True)
    small, large = min(sizes), max(sizes)
    # The drawn flowers are PNGs of 128 pixels a side; what decoding takes is fitted with the network.
    plans = {n: Plan(n, workers=n_cores, cores_a_worker=1, picture=Picture(10e3, 1e-3)) for n in sizes}
    mine = fitted(plans[small], runs[small], replace(CACHED, start_s=0.0))
    for phase, predicted in phase_seconds(plans[large], mine).items():
        spent = runs[large][phase]
        print(f"{phase} at {large:,}: predicted {predicted:.1f} s, took {spent:.1f} s: {predicted / spent:.2f}")
    predicted, spent = sum(phase_seconds(plans[large], mine).values()), sum(runs[large].values())
    print(f"all at {large:,}: predicted {predicted:.1f} s, took {spent:.1f} s: {predicted / spent:.2f}")


def phases(n: int, workers: int) -> dict[str, float]:
    """Return the seconds of each phase of a run of n pictures, with so many workers of one core."""
    manifest, source = flowers(n)
    events, config = Recorder(), build_config(RunConfig)
    with (
        tempfile.TemporaryDirectory() as name,
        executors.opened(ExecutorConfig(workers=workers), "cpu", Observer()) as executor,
    ):
        # What is imported and started at first use belongs to no picture.
        warm = embedded(*flowers(8 * workers), vgg16_recipe(), Path(name) / "warm", executor, shard_size=4)
        find_clusters(warm.x, config, backend=CpuBackend(), events=Recorder())
        with events.stage("scan"):
            scan(manifest, source, DecodingConfig(), events, store=Store(Path(name), events), executor=executor)
        with events.stage("embed"):
            found = embedded(manifest, source, vgg16_recipe(), Path(name), executor)
        find_clusters(found.x, config, backend=CpuBackend(), events=events)
    spent = events.stages_s
    return {
        **{phase: spent[phase] for phase in ("scan", "embed", "reduce", "sweep")},
        "fit": spent["cluster"] + spent["score"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("rate", "overhead", "memory", "model", "drive"))
    parser.add_argument("--images", type=int, default=512, help="pictures of a round of `rate`")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=200, help="tasks of `overhead`")
    parser.add_argument("--n", type=int, nargs="+", help="numbers of pictures of `memory` and `model`")
    arguments = parser.parse_args()
    if arguments.what == "rate":
        rate(arguments.images, arguments.rounds)
    elif arguments.what == "overhead":
        overhead(arguments.tasks)
    elif arguments.what == "memory":
        memory(arguments.n or (10_000, 100_000, 1_000_000))
    elif arguments.what == "drive":
        drive(arguments.n[0])
    else:
        model(arguments.n or (512, 2_048))


if __name__ == "__main__":
    main()

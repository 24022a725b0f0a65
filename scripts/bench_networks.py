"""Measures what each choice of `--features` costs: the same pictures, embedded with each in turn in one process.

Each way decodes the pictures and runs its networks with the engine that `--engine auto` chooses, without a store, and
warms up first. Prints a table, with the time that VGG16 alone takes as the other one.

    .venv/bin/python -m scripts.bench_networks [--images N] [--rounds N] [--features NAME ...] [FOLDER]
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

from gpu_cluster.backend import CpuBackend
from gpu_cluster.config import RunConfig, shipped_data
from gpu_cluster.embedding import features
from gpu_cluster.embedding.embed import embed
from gpu_cluster.embedding.engines import choose_engine
from gpu_cluster.events import Observer
from gpu_cluster.images.places import open_source
from gpu_cluster.images.scan import scan
from gpu_cluster.manifest import Manifest
from gpu_cluster.options import build_config
from scripts.bench_table import Row, of_times, table, timed

CHOICES = ("vgg16", "efficientnet-lite2", "vgg16+efficientnet-lite2")


def embedding_with(named: str, files: Sequence[Path]) -> tuple[Callable[[], None], str]:
    """Return a function that embeds the files with some features, and in words what gives them."""
    job = build_config(RunConfig, features=named)
    extractor = features.extractor_of(job.embed, features.Weights())
    engine = choose_engine(CpuBackend(), extractor, job.embed)

    def run() -> None:
        source = open_source(Path("/"))
        manifest = scan(Manifest(Path("/"), tuple(map(str, files))), source, job.input, Observer())
        found = embed(manifest, source, engine, store=None, store_config=job.store, observer=Observer())
        assert found.n_computed == len(files), "the same picture twice: choose fewer with --images"

    run()
    return run, f"{extractor.n_features:,} numbers a picture, {engine.name}"


def measured(files: Sequence[Path], n_rounds: int, named: Sequence[str] = CHOICES) -> list[Row]:
    ways = {name: embedding_with(name, files) for name in named}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(n_rounds):
        for name, (run, _words) in ways.items():
            seconds[name].append(timed(run))
    base = named[0]
    return [
        of_times(
            f"features of {len(files)} pictures: {name}" + ("" if name == base else f" / {base}"),
            seconds[name],
            () if name == base else seconds[base],
            note=f"{len(files) / min(seconds[name]):.1f} pictures a second, {words}",
        )
        for name, (_run, words) in ways.items()
    ]


def measure(quick: bool) -> list[Row]:
    """Return a row for each choice of features beside VGG16 alone, on the sample set."""
    files = sorted((shipped_data() / "flowers").glob("*.png"))[: 16 if quick else 64]
    return measured(files, 1 if quick else 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=shipped_data() / "flowers", help="folder of images")
    parser.add_argument("--images", type=int, default=64, help="images a round (default: 64)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each (default: 3)")
    parser.add_argument("--features", nargs="+", default=CHOICES, help="what is compared, the first as the base")
    arguments = parser.parse_args()
    suffixes = {".jpg", ".jpeg", ".png"}
    found = sorted(file for file in arguments.folder.rglob("*") if file.suffix.lower() in suffixes)
    files = list(itertools.islice(found, arguments.images))
    print(table(measured(files, arguments.rounds, arguments.features)))


if __name__ == "__main__":
    main()

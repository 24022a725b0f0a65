"""Checks that a run gives the same tables without workers, with 1, 2 and 3, and with a cluster that was started apart.

    .venv/bin/python -m scripts.check_workers [FOLDER] [--image-size S] [--engine ncnn tensorflow] [--made N]

Each run has a store of its own, so that each embeds every picture. --made N draws N small pictures instead of FOLDER.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from gpu_cluster.config import shipped_data

TABLES = ("assignments.csv", "bad_files.csv", "near_duplicates.csv")
BIN = Path(sys.executable).parent


@contextmanager
def cluster_of_two(folder: Path) -> Iterator[list[str]]:
    """Start a scheduler and two workers; give the options that join them."""
    file = folder / "scheduler.json"
    commands: list[list[str | Path]] = [
        [BIN / "dask", "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", file],
    ]
    worker: list[str | Path] = [BIN / "dask", "worker", "--scheduler-file", file, "--nthreads", "1", "--no-dashboard"]
    commands += [worker, worker]
    processes = []
    try:
        for command in commands:
            processes.append(
                subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
            while not file.exists():
                time.sleep(0.1)
        yield ["--scheduler-file", str(file), "--workers", "2"]
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(30)


def digest_of(options: Sequence[str], pictures: Path, work: Path, name: str) -> tuple[str, float]:
    """Run the command; return a digest of its tables and its seconds."""
    out = work / name
    start = time.perf_counter()
    places = ["--out", str(out), "--cache", str(work / f"{name} store")]
    subprocess.run([str(BIN / "gpu-cluster"), "run", str(pictures), *places, "--quiet", *options], check=True)
    digest = hashlib.blake2b(digest_size=8)
    for table in TABLES:
        if (out / table).exists():
            digest.update((out / table).read_bytes())
    return digest.hexdigest(), time.perf_counter() - start


def draw(folder: Path, n: int) -> None:
    """Write n PNGs of 32 x 32: seeded noise around a few colours."""
    from PIL import Image

    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (12, 2, 2, 3))
    for number in range(n):
        corners = np.clip(colours[number % 12] + random.integers(-40, 41, (2, 2, 3)), 0, 255).astype(np.uint8)
        picture = Image.fromarray(corners).resize((32, 32), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:06d}.png", compress_level=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=shipped_data() / "flowers")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--engine", nargs="+", default=["ncnn", "tensorflow"])
    parser.add_argument("--made", type=int, help="draw so many small pictures")
    arguments = parser.parse_args()
    different = 0
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        if arguments.made:
            arguments.folder = work / "made"
            arguments.folder.mkdir()
            draw(arguments.folder, arguments.made)
        for engine in arguments.engine:
            given = ["--engine", engine, "--image-size", str(arguments.image_size), "--thumbnails", "1"]
            found = {}
            for workers in ([], ["--workers", "1"], ["--workers", "2"], ["--workers", "3"], None):
                words = f"{engine} {' '.join(workers) if workers else 'serial' if workers == [] else 'joined'}"
                if workers is None:
                    with cluster_of_two(work) as options:
                        found[words], seconds = digest_of([*given, *options], arguments.folder, work, words)
                    (work / "scheduler.json").unlink(missing_ok=True)
                else:
                    found[words], seconds = digest_of([*given, *workers], arguments.folder, work, words)
                print(f"{words}: {found[words]}, {seconds:.0f} s", flush=True)
            different += len(set(found.values())) - 1
    print("the same tables" if not different else "DIFFERENT TABLES")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()

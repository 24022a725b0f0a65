"""Measures how long the same command takes the second time, in real processes with a new store and the same pictures.

Prints the seconds of the first run and of each rerun, their ratio, and the rerun's time by stage. Asserts that the
rerun loaded no library that runs a network.

    .venv/bin/python -m scripts.bench_rerun [--reruns N] [FOLDER] [-- OPTION...]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from gpu_cluster.config import shipped_data
from scripts.bench_table import Row, of_times

PROGRAM = """
import sys
from gpu_cluster.cli.main import main
sys.argv[0] = "gpu-cluster"
try:
    main()
finally:
    print("loaded" if {"tensorflow", "ncnn"} & set(sys.modules) else "not loaded")
"""


def timed(folder: Path, place: Path, name: str, options: Sequence[str]) -> tuple[float, bool]:
    """Run the command in its own process; return its seconds and whether it loaded what runs a network."""
    command = [sys.executable, "-c", PROGRAM, "run", str(folder), "--out", str(place / name), *options]
    environment = {**os.environ, "XDG_CACHE_HOME": str(place / "cache")}
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return time.perf_counter() - start, done.stdout.splitlines()[-1] == "loaded"


def measure(quick: bool) -> list[Row]:
    """Return one row: a rerun of the sample set, and the first run beside it."""
    options = ["--quiet", "--k-range", "2:15", *(["--image-size", "64"] if quick else [])]
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        first, _ = timed(shipped_data() / "flowers", place, "first", options)
        again = [timed(shipped_data() / "flowers", place, f"again{n}", options) for n in range(2 if quick else 5)]
        assert not any(loaded for _, loaded in again), "the rerun loaded what runs a network"
        record = json.loads((place / "again0" / "run.json").read_text(encoding="utf-8"))
    stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in record["stages_s"].items())
    seconds = [rerun for rerun, _ in again]
    return [of_times("rerun of the sample set / first run", seconds, [first] * len(seconds), note=stages)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=shipped_data() / "flowers", help="folder of images")
    parser.add_argument("--reruns", type=int, default=3, help="reruns (default: 3)")
    parser.add_argument("options", nargs="*", help="options of gpu-cluster run, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        first, loaded = timed(arguments.folder, place, "first", arguments.options)
        assert loaded
        record = json.loads((place / "first" / "run.json").read_text())
        print(
            f"first run: {first:.1f} s, {record['files']['found']} files, {record['n_computed']} embedded", flush=True
        )
        for number in range(1, arguments.reruns + 1):
            again, loaded = timed(arguments.folder, place, f"again{number}", arguments.options)
            assert not loaded, "the rerun loaded what runs a network"
            record = json.loads((place / f"again{number}" / "run.json").read_text())
            stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in record["stages_s"].items())
            embedded = record["n_computed"]
            print(
                f"rerun {number}: {again:.1f} s, 1/{first / again:.1f} of it, {embedded} embedded ({stages})",
                flush=True,
            )


if __name__ == "__main__":
    main()

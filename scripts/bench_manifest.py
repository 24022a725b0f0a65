"""Measures the memory of a manifest: bytes a file while it is held, and at most while it is made."""

from __future__ import annotations

import argparse
import time
import tracemalloc
from pathlib import Path

from gpu_cluster.manifest import FileFacts, Manifest
from scripts.bench_table import Row


def facts_of(number: int) -> FileFacts:
    """Return facts in which, as in those of real files, no two files share an object."""
    time_ns = 1_700_000_000_000_000_000 + 12_345 * number
    return FileFacts(
        size=100_000 + number,
        mtime_ns=time_ns,
        ctime_ns=time_ns + 1,
        content_hash=f"{number:032x}",
        format="JPEG",
        mode="RGB",
        width=4000 + number % 99,
        height=3000 + number % 99,
        n_scans=1,
    )


def bytes_a_file(n: int) -> tuple[float, float, float]:
    """Return the bytes a file that a manifest of n files takes, the most while it is made, and the seconds for that."""
    tracemalloc.start()
    begin = time.perf_counter()
    manifest = Manifest(
        Path("/pictures"),
        tuple(f"folder {number % 1000:04d}/picture {number:09d}.jpg" for number in range(n)),
        tuple(map(facts_of, range(n))),
        labels=tuple(f"label {number % 1000}" for number in range(n)),
    )
    taken_s = time.perf_counter() - begin
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(manifest) == n
    return held / n, most / n, taken_s


def measure(quick: bool) -> list[Row]:
    """Return the memory of a manifest as rows; their figures are in the notes."""
    rows = []
    for n in (10_000,) if quick else (100_000, 1_000_000):
        held, most, _ = bytes_a_file(n)
        note = f"{held:.0f} bytes a file, {most:.0f} at most while it is made"
        rows.append(Row(f"manifest of {n:,} files", None, note=note))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sizes", type=int, nargs="*", default=[100_000, 1_000_000])
    for n in parser.parse_args().sizes:
        held, most, taken_s = bytes_a_file(n)
        print(f"{n:,} files: {held:.0f} bytes a file, {most:.0f} while it is made, {taken_s:.1f} s with tracemalloc")


if __name__ == "__main__":
    main()

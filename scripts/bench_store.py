"""Measures speed and peak memory per picture when many small pictures are scanned, stored and read again.

Draws N pictures of 32 x 32 pixels into a folder (which stays if --folder names it), and runs the scan, the pipeline and
the store on them. The network is replaced by a function that only averages, so that everything else is measured. Each
phase runs in its own process, so that its peak memory is measured separately; the memory per picture is the growth from
N / 10 to N.

    .venv/bin/python scripts/bench_store.py [--images N] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

N_FEATURES = 1024
PHASES = {"scan": "scan", "scan again": "scan", "embed and store": "embed", "read from the store": "embed"}


def draw(folder: Path, n: int) -> None:
    """Write n different pictures, a thousand in each folder."""
    random = np.random.default_rng(0)
    for number in range(n):
        file = folder / f"{number // 1000:04d}" / f"{number:07d}.bmp"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file)


def measure(phase: str, folder: Path, cache: Path, first: int) -> dict[str, Any]:
    """Run a phase in this process, on the first pictures of a folder."""
    from gpu_cluster.backend import CpuBackend
    from gpu_cluster.config import RunConfig
    from gpu_cluster.embedding.embed import embed
    from gpu_cluster.embedding.engines import choose_engine
    from gpu_cluster.embedding.extractors import Extractor
    from gpu_cluster.events import Observer
    from gpu_cluster.images.discover import discover
    from gpu_cluster.images.places import open_source
    from gpu_cluster.images.scan import scan
    from gpu_cluster.options import build_config
    from gpu_cluster.store.store import open_store

    def averages(_precision: str) -> Any:
        import tensorflow as tf

        return lambda pictures: tf.tile(tf.reduce_mean(pictures, (1, 2)), (1, 342))[:, :N_FEATURES]

    extractor = Extractor({"backbone": "average colour"}, N_FEATURES, averages)
    folders = sorted(folder.iterdir())[: -(-first // 1000)]
    job = build_config(RunConfig, images=folders, cache=cache, image_size=32, shard_size=4096, batch_size=256)
    observer = Observer()
    start = time.perf_counter()
    store = open_store(job.store, observer)
    manifest = discover(job.input, observer)
    source = open_source(manifest.root)
    manifest = scan(manifest, source, job.input, observer, store=store)
    seconds = time.perf_counter() - start
    if phase == "embed":
        start = time.perf_counter()
        given: dict[str, Any] = {"store": store, "store_config": job.store, "observer": observer}
        found = embed(manifest, source, choose_engine(CpuBackend(), extractor, job.embed), **given)
        seconds = time.perf_counter() - start
        assert found.x.shape == (len(manifest), N_FEATURES)
    assert manifest.counts()["ok"] == first
    return {"seconds": seconds, "peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def in_a_process(phase: str, folder: Path, cache: Path, n: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--phase", phase, "--folder", str(folder), "--cache", str(cache)]
    done = subprocess.run([*command, "--images", str(n)], check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000, help="pictures, in thousands (default: 100000)")
    parser.add_argument("--folder", type=Path, help="where the pictures are drawn, or lie from an earlier time")
    parser.add_argument("--phase", choices=("scan", "embed"), help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    n = arguments.images
    if arguments.phase:
        print(json.dumps(measure(arguments.phase, arguments.folder, arguments.cache, n)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.folder or Path(name, "pictures")
        start = time.perf_counter()
        draw(folder, n)
        print(f"{n:,} pictures drawn in {time.perf_counter() - start:.0f} s", flush=True)
        for words, phase in PHASES.items():
            few = in_a_process(phase, folder, Path(name, "few"), n // 10)
            many = in_a_process(phase, folder, Path(name, "many"), n)
            growth = (many["peak_kib"] - few["peak_kib"]) / (n - n // 10)
            speed = n / many["seconds"]
            peak = many["peak_kib"] / 1024
            memory = f"peak {peak:,.0f} MiB, {growth:.2f} KiB a picture"
            print(f"{words}: {many['seconds']:.1f} s, {speed:,.0f} files/s, {memory}", flush=True)


if __name__ == "__main__":
    main()

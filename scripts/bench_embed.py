"""Measures how fast images are embedded: the job's tf.data pipeline and the notebook's loop, compared in one process.

The notebook processes one picture at a time: it loads the picture with Keras's `load_img`, adds a batch axis, and
calls `preprocess_input` and `model.predict`. Both use the same pictures and weights and warm up first. Their rounds
alternate, so that a machine that slows down slows both. Prints the images per second and the ratio of each round.

    .venv/bin/python scripts/bench_embed.py [--images N] [--rounds N] [FOLDER]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gpu_cluster.backend import CpuBackend
from gpu_cluster.config import RunConfig, shipped_data
from gpu_cluster.embedding import extractors, vgg16
from gpu_cluster.embedding.embed import embed
from gpu_cluster.embedding.engines import choose_engine
from gpu_cluster.events import Observer
from gpu_cluster.images.scan import scan
from gpu_cluster.images.source import open_source
from gpu_cluster.manifest import Manifest
from gpu_cluster.options import build_config


def notebook_loop(files: list[Path]) -> Callable[[], np.ndarray]:
    import keras

    model = keras.applications.VGG16(include_top=False, weights=None, pooling="avg", input_shape=(224, 224, 3))
    model.load_weights(vgg16.find_weights().path)

    def embed_one(file: Path) -> np.ndarray:
        picture = keras.utils.img_to_array(keras.utils.load_img(file, target_size=(224, 224)))
        batch = keras.applications.vgg16.preprocess_input(np.expand_dims(picture, axis=0))
        return np.asarray(model.predict(batch, verbose=0)).ravel()

    embed_one(files[0])
    return lambda: np.stack([embed_one(file) for file in files])


def pipeline(files: list[Path]) -> Callable[[], float]:
    """Return a function that times the pipeline without building the network, which the loop's time excludes too."""
    job = build_config(RunConfig, preset="notebook")
    engine = choose_engine(CpuBackend(), extractors.of_vgg16(vgg16.find_weights(), job.embed), job.embed)

    def run(chosen: list[Path]) -> float:
        # There is no store, so every picture is computed.
        source = open_source(Path("/"))
        manifest = scan(Manifest(Path("/"), tuple(map(str, chosen))), source, job.input, Observer())
        found = embed(manifest, source, engine, store=None, store_config=job.store, observer=Observer())
        assert found.images_per_s is not None
        assert found.n_computed == len(chosen), "the same picture twice: choose fewer with --images"
        return len(chosen) / found.images_per_s

    # The warm-up uses a whole batch, because the first batch of a size takes seconds longer.
    run(files[:32])
    return lambda: run(files)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=shipped_data() / "flowers", help="folder of images")
    parser.add_argument("--images", type=int, default=64, help="images a round (default: 64)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each (default: 5)")
    arguments = parser.parse_args()
    suffixes = {".jpg", ".jpeg", ".png"}
    found = sorted(file for file in arguments.folder.rglob("*") if file.suffix.lower() in suffixes)
    files = list(itertools.islice(itertools.cycle(found), arguments.images))
    CpuBackend().share_device_with("tensorflow")
    loop, tf_data = notebook_loop(files), pipeline(files)
    ratios = []
    for number in range(1, arguments.rounds + 1):
        start = time.perf_counter()
        loop()
        loop_s = time.perf_counter() - start
        pipeline_s = tf_data()
        ratios.append(loop_s / pipeline_s)
        speeds = f"notebook's loop {len(files) / loop_s:.1f}, pipeline {len(files) / pipeline_s:.1f} images/s"
        print(f"round {number}: {speeds}, ratio {ratios[-1]:.2f}", flush=True)
    print(f"ratio: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()

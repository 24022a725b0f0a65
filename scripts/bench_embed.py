"""Measures how fast images are embedded: the notebook's loop and the job with each engine, compared in one process.

The notebook processes one picture at a time: it loads the picture with Keras's `load_img`, adds a batch axis, and
calls `preprocess_input` and `model.predict`. The job decodes and resizes in threads, and runs the network with
TensorFlow's graph or with ncnn. All use the same pictures, without a store, and warm up first; VGG16 sees squares of
224 pixels, EfficientNet-Lite2 of 260. Their rounds alternate, so that a machine that slows down slows all. Prints the
images per second of each round; then the ratios of the rounds, by the clock and by the processor time that all threads
took, with their spread. Where other programs use the machine, the ratios by processor time are the steadier ones.

    .venv/bin/python -m scripts.bench_embed [--images N] [--rounds N] [--network vgg16 efficientnet-lite2] [FOLDER]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpu_cluster.backend import CpuBackend
from gpu_cluster.config import EngineName, RunConfig, shipped_data
from gpu_cluster.embedding import efficientnet_lite, extractors, vgg16
from gpu_cluster.embedding.embed import embed
from gpu_cluster.embedding.engines import choose_engine
from gpu_cluster.events import Observer
from gpu_cluster.images.places import open_source
from gpu_cluster.images.scan import scan
from gpu_cluster.manifest import Manifest
from gpu_cluster.options import build_config
from scripts.bench_table import Row, of_times


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


def job_with(name: EngineName, network: str, files: list[Path]) -> Callable[[], object]:
    """Return a function that embeds the files as a job does; the network is built before, as it is for the loop."""
    if network == "vgg16":
        job = build_config(RunConfig, preset="notebook", engine=name)
        extractor = extractors.of_vgg16(vgg16.find_weights(), job.embed)
    else:
        side = efficientnet_lite.SIDE
        job = build_config(RunConfig, preset="notebook", engine=name, image_size=side)
        extractor = extractors.of_efficientnet_lite2(efficientnet_lite.find_weights(), side)
    engine = choose_engine(CpuBackend(), extractor, job.embed)

    def run(chosen: list[Path]) -> None:
        source = open_source(Path("/"))
        manifest = scan(Manifest(Path("/"), tuple(map(str, chosen))), source, job.input, Observer())
        found = embed(manifest, source, engine, store=None, store_config=job.store, observer=Observer())
        assert found.n_computed == len(chosen), "the same picture twice: choose fewer with --images"

    # The warm-up uses a whole batch, because the first batch of a size takes seconds longer.
    run(files[:32])
    return lambda: run(files)


@dataclass(frozen=True)
class Took:
    """Seconds that one round took: by the clock, and of processor time, all threads together."""

    clock_s: float
    processor_s: float


def timed(work: Callable[[], object]) -> Took:
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return Took(time.perf_counter() - clock, time.process_time() - processor)


def print_ratios(rounds: Mapping[str, list[Took]]) -> None:
    """Print how many times as fast each way is as each one before it."""
    names = list(rounds)
    for slow, fast in ((slow, fast) for at, fast in enumerate(names) for slow in names[:at]):
        shown = []
        for words, field in (("clock", "clock_s"), ("processor time", "processor_s")):
            theirs, ours = ([float(getattr(took, field)) for took in rounds[name]] for name in (slow, fast))
            ratios = [one / other for one, other in zip(theirs, ours, strict=True)]
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            best = min(theirs) / min(ours)
            shown.append(f"{words}: median {statistics.median(ratios):.2f} ({spread}), best rounds {best:.2f}")
        print(f"{fast} / {slow}, by {'; by '.join(shown)}")


# How a network is named in what is printed; VGG16, which the notebook has, is not named.
_NAMES = {"vgg16": "", "efficientnet-lite2": "EfficientNet-Lite2 in "}


def rounds_of(files: list[Path], n_rounds: int, networks: Sequence[str] = ("vgg16",)) -> Iterator[tuple[str, Took]]:
    """Yield how long each way took, in turn."""
    CpuBackend().share_device_with("tensorflow")
    ways: dict[str, Callable[[], object]] = {}
    if "vgg16" in networks:
        ways["notebook's loop"] = notebook_loop(files)
    for network in networks:
        ways[f"{_NAMES[network]}TensorFlow's graph"] = job_with("tensorflow", network, files)
        ways[f"{_NAMES[network]}ncnn"] = job_with("ncnn", network, files)
    for _ in range(n_rounds):
        for name, work in ways.items():
            yield name, timed(work)


def measure(quick: bool) -> list[Row]:
    """Return a row for each engine beside each slower way, on the sample set, by the clock."""
    files = sorted((shipped_data() / "flowers").glob("*.png"))[: 32 if quick else 64]
    seconds: dict[str, list[float]] = {}
    for name, took in rounds_of(files, 2 if quick else 5):
        seconds.setdefault(name, []).append(took.clock_s)
    names = list(seconds)
    return [
        of_times(
            f"embed {len(files)} pictures: {fast} / {slow}",
            seconds[fast],
            seconds[slow],
            note=f"{len(files) / min(seconds[fast]):.1f} pictures a second",
        )
        for at, fast in enumerate(names)
        for slow in names[:at]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=shipped_data() / "flowers", help="folder of images")
    parser.add_argument("--images", type=int, default=64, help="images a round (default: 64)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each (default: 5)")
    parser.add_argument("--network", nargs="+", choices=_NAMES, default=["vgg16"], help="networks (default: vgg16)")
    arguments = parser.parse_args()
    suffixes = {".jpg", ".jpeg", ".png"}
    found = sorted(file for file in arguments.folder.rglob("*") if file.suffix.lower() in suffixes)
    files = list(itertools.islice(itertools.cycle(found), arguments.images))
    rounds: dict[str, list[Took]] = {}
    for name, took in rounds_of(files, arguments.rounds, arguments.network):
        rounds.setdefault(name, []).append(took)
        number, speed = len(rounds[name]), len(files) / took.clock_s
        print(f"round {number}: {name} {speed:.1f} images/s", flush=True)
    print_ratios(rounds)


if __name__ == "__main__":
    main()

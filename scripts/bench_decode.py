"""Measures decoding and resizing: the memory by the kind of picture, the time on one core, and how the network waits.

    python -m scripts.bench_decode [--memory] [--speed] [--overlap] [FOLDER]

Without an option all three are measured. The bytes a pixel are those of `gpu_cluster.images.decoders`: for plain
pictures of the job, for the others of the job and of the process that decodes together.

The time is processor time on one core, the least of several rounds in which the ways take turns: as version 2 of the
decoding did it (every pixel of a JPEG, resized in float32), as tf.data does it now, and as an engine without TensorFlow
does it (Pillow). `most` is the slowest round as a multiple of the least one. The pictures are scikit-learn's two sample
photos, enlarged (`scripts.enlarged`).

The overlap is that of a whole job: how long the network computes, how long it waits for pixels, and how long the same
pixels take without it. It is measured with the pictures of FOLDER, or with enlarged ones of 12 megapixels.
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gpu_cluster.backend import CpuBackend
from gpu_cluster.config import EmbedConfig, InputConfig, PixelsConfig
from gpu_cluster.embedding.engines import TensorFlowEngine, choose_engine, tensorflow_input
from gpu_cluster.embedding.extractors import colour_histogram
from gpu_cluster.events import Observer
from gpu_cluster.images import decode, decoders, square
from gpu_cluster.images.discover import discover
from gpu_cluster.images.places import open_source
from gpu_cluster.images.scan import scan
from gpu_cluster.images.source import Picture
from scripts.bench_table import Row, of_times
from scripts.enlarged import QUALITIES, Enlarger, as_jpeg, size_of
from scripts.labelled_sets import of_vgg16

_SIDE = 4000
_SIZES: Mapping[str, Any] = {"500 x 375": (500, 375), "1 MP": 1, "3 MP": 3, "12 MP": 12}
_ROUNDS, _BATCH = 4, 32
_KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "JPEG": ("RGB", "a.jpg", {"quality": 80}),
    "JPEG, progressive": ("RGB", "a.jpg", {"quality": 80, "progressive": True, "subsampling": 0}),
    "JPEG, CMYK": ("CMYK", "a.jpg", {"quality": 80}),
    "PNG": ("RGB", "a.png", {"compress_level": 1}),
    "PNG with alpha": ("RGBA", "a.png", {"compress_level": 1}),
    "TIFF": ("RGB", "a.tif", {}),
    "TIFF of 32 bits": ("F", "a.tif", {}),
    "GIF": ("P", "a.gif", {}),
    "BMP": ("RGB", "a.bmp", {}),
    "WebP": ("RGB", "a.webp", {"method": 0}),
    "WebP with alpha": ("RGBA", "a.webp", {"method": 0, "lossless": True}),
    "JPEG 2000": ("RGB", "a.jp2", {}),
}


def _status(process: int | str, name: str) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def _measure(kind: str, folder: Path, *, whole: bool) -> None:
    """Print the bytes a pixel that one picture of a kind takes, in a process that has decoded nothing before.

    `whole` measures the picture without a reduction while it is decoded.
    """
    mode, name, options = _KINDS[kind]
    noise = np.random.default_rng(0).integers(0, 255, (_SIDE // 8, _SIDE // 8, 4), dtype=np.uint8)
    file = folder / name
    Image.fromarray(noise).resize((_SIDE, _SIDE)).convert("RGB" if mode == "CMYK" else mode).convert(mode).save(
        file, **options
    )
    small = folder / f"small{file.suffix}"
    Image.open(file).crop((0, 0, 64, 64)).save(small, **options)
    picture, warm = (_scanned(one)[0] for one in (file, small))
    config = EmbedConfig(batch_size=1, image_size=_SIDE // 3 if whole else 224)
    at_least = square.at_least(config)
    engine = TensorFlowEngine(CpuBackend(), colour_histogram(), config)
    engine.build()
    with decoders.limited(InputConfig()) as limits:
        for one in (warm, picture):
            Path("/proc/self/clear_refs").write_text("5")
            before = _status("self", "VmRSS")
            if tensorflow_input.decoder_of(one.facts) is not None:
                list(engine.batches([one]))
            else:
                with one.open() as stream:
                    engine.square(limits.pixels(stream, one.suffix, one.facts, at_least=at_least))
            used = _status("self", "VmHWM") - before
            process = next((process._process.pid for process in limits._all), None)
            used += 0 if process is None else _status(process, "VmHWM")
    where = "in the job" if process is None else "beside it"
    allowed = decoders.bytes_needed(picture.facts, at_least) / _SIDE**2
    reduced = "" if whole or decode.reduction(_SIDE, _SIDE, at_least) == 1 or file.suffix != ".jpg" else ", reduced"
    print(f"{kind + reduced:28} {used / _SIDE**2:5.2f} bytes a pixel, {where}; reckoned with {allowed:.2f}", flush=True)


def _scanned(place: Path) -> list[Picture]:
    config = InputConfig(images=(place,))
    manifest = discover(config, Observer())
    source = open_source(manifest.root)
    manifest = scan(manifest, source, config, Observer())
    return [Picture(source, path, facts) for path, facts in zip(manifest.paths, manifest.files, strict=True)]


def _photos(folder: Path, sizes: Mapping[str, Any]) -> Iterator[tuple[str, int, Path]]:
    """Write scikit-learn's sample photo of a temple at each size and quality, and yield these and the file."""
    from sklearn.datasets import load_sample_image

    photo, enlarger = Image.fromarray(load_sample_image("china.jpg")), Enlarger()
    for title, size in sizes.items():
        large = enlarger.enlarge(photo, size if isinstance(size, tuple) else size_of(photo, size), 0)
        for quality in QUALITIES:
            file = folder / f"{title}, {quality}.jpg"
            file.write_bytes(as_jpeg(large, quality))
            yield title, quality, file


def _speed() -> None:
    """Print the time of each way on one core; this process is used for nothing else."""
    _on_one_core()
    config = EmbedConfig()
    print("| picture | quality | kB | before, ms | tf.data, ms | of before | Pillow, ms | of before | most |")
    print(f"|{'---|' * 9}", flush=True)
    with tempfile.TemporaryDirectory() as place:
        for title, quality, file in _photos(Path(place), _SIZES):
            rounds = _rounds(file, config, 32 if title == "12 MP" else 256, _ROUNDS)
            least, most = rounds.min(axis=0), (rounds.max(axis=0) / rounds.min(axis=0)).max()
            ratios = [f"{least[way]:.2f} | {least[way] / least[0]:.2f}" for way in (1, 2)]
            size = file.stat().st_size / 1e3
            print(
                f"| {title} | {quality} | {size:.0f} | {least[0]:.2f} | {' | '.join(ratios)} | {most:.2f} |", flush=True
            )


def _rounds(file: Path, config: EmbedConfig, n: int, n_rounds: int) -> np.ndarray:
    """Return the milliseconds (rounds, 3) that a picture takes: before, with tf.data, with Pillow."""
    pictures = _scanned(file) * n
    ways = [partial(way, pictures, config) for way in (_before, _by_tf_data, _by_pillow)]
    # The first round also loads and traces.
    return np.array([[_milliseconds(way) / n for way in ways] for _ in range(n_rounds + 1)])[1:]


def _on_one_core() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def measure(quick: bool) -> list[Row]:
    """Return two rows for each size of picture: processor time on one core, beside that of whole decoding."""
    _on_one_core()
    config, rows = EmbedConfig(), []
    with tempfile.TemporaryDirectory() as place:
        for title, quality, file in _photos(Path(place), _SIZES):
            if quality != QUALITIES[0]:
                continue
            rounds = _rounds(file, config, 8 if quick or title == "12 MP" else 64, 2 if quick else _ROUNDS) / 1e3
            for column, way in ((1, "tf.data"), (2, "Pillow")):
                name = f"decode and resize {title}, quality {quality}, by {way} / as before, a picture on one core"
                rows.append(of_times(name, rounds[:, column].tolist(), rounds[:, 0].tolist(), note="processor time"))
    return rows


def _milliseconds(way: Callable[[], object]) -> float:
    """Return the processor time that a call takes, in all threads of this process."""
    start = time.process_time()
    way()
    return 1e3 * (time.process_time() - start)


def _by_tf_data(pictures: Sequence[Picture], config: EmbedConfig) -> None:
    for _batch in tensorflow_input.batches(pictures, [config], batch_size=_BATCH) or ():
        pass


def _by_pillow(pictures: Sequence[Picture], config: EmbedConfig) -> None:
    squares = []
    for picture in pictures:
        with picture.open() as stream:
            squares.append(
                square.to_square(decode.decode(stream, picture.suffix, at_least=square.at_least(config)), config)
            )
        if len(squares) == _BATCH:
            np.stack(squares)
            squares.clear()


def _before(pictures: Sequence[Picture], config: EmbedConfig) -> None:
    import tensorflow as tf

    paths = [os.fsencode(picture.source.local_path(picture.location) or "") for picture in pictures]
    columns = (paths, np.ones(len(paths), np.int32), np.zeros(len(paths), np.int32))
    read = tf.data.Dataset.from_tensor_slices(columns).map(
        _reader_before(config), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    for _batch in read.ignore_errors().batch(_BATCH).prefetch(2):
        pass


@functools.cache
def _reader_before(config: EmbedConfig) -> Any:
    import tensorflow as tf

    def read(path: tf.Tensor, orientation: tf.Tensor, decoder: tf.Tensor) -> tf.Tensor:
        def upright(decode: Callable[[Any], Any]) -> Any:
            return tensorflow_input._upright(decode(tf.io.read_file(path)), orientation)

        branches = [partial(upright, decode) for decode in (tensorflow_input._jpeg, tensorflow_input._png)]
        return resized_before(tf.switch_case(decoder, branches), config)

    return tf.function(read, autograph=False)


def resized_before(decoded: Any, config: PixelsConfig) -> Any:
    """Cut the square out of a picture (h, w, 3) and resize it as version 2 of the decoding did, in float32."""
    import tensorflow as tf

    shape = tf.shape(decoded)
    short = tf.minimum(shape[0], shape[1])
    top, left = (shape[0] - short) // 2, (shape[1] - short) // 2
    middle = decoded[top : top + short, left : left + short]
    return tf.image.resize(middle, (config.image_size, config.image_size), method="bilinear", antialias=True)


def _overlap(folder: Path) -> None:
    """Print how long the network computes and waits, on all cores, and how long decoding takes by itself."""
    pictures = _scanned(folder)
    config = EmbedConfig(batch_size=8)
    engine = choose_engine(CpuBackend(), of_vgg16(config), config)
    engine.build()
    for with_network in (False, True, False, True):
        waits, computed, start = [], 0.0, time.perf_counter()
        used, before = time.process_time(), start
        for _positions, pixels in engine.batches(pictures):
            ready = time.perf_counter()
            waits.append(ready - before)
            if with_network:
                engine.features(pixels)
            before = time.perf_counter()
            computed += before - ready
        took, used = time.perf_counter() - start, time.process_time() - used
        what = (
            f"network {computed:.1f} s, waits {waits[0]:.1f} s for the first batch"
            if with_network
            else "decoding alone"
        )
        later = f" and {sum(waits[1:]):.2f} s for the {len(waits) - 1} others" if with_network else ""
        print(f"{engine.name}: {len(pictures)} pictures in {took:.1f} s: {what}{later}; {used / took:.2f} cores used")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    for part in ("memory", "speed", "overlap"):
        parser.add_argument(f"--{part}", action="store_true")
    # What the processes that this script starts are to do.
    parser.add_argument("--kind", choices=_KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--whole", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    everything = not (arguments.memory or arguments.speed or arguments.overlap)
    if arguments.kind:
        _measure(arguments.kind, arguments.folder, whole=arguments.whole)
        return
    if arguments.here:
        _speed()
        return
    if arguments.memory or everything:
        for kind in _KINDS:
            for whole in ([], ["--whole"]) if kind.startswith("JPEG") and kind != "JPEG 2000" else ([],):
                with tempfile.TemporaryDirectory() as folder:
                    _this_script("--kind", kind, *whole, folder)
    if arguments.speed or everything:
        _this_script("--here")
    if arguments.overlap or everything:
        with tempfile.TemporaryDirectory() as place:
            for number in range(16 if arguments.folder is None else 0):
                (Path(place) / str(number)).mkdir()
                list(_photos(Path(place) / str(number), {"12 MP": 12}))
            _overlap(arguments.folder or Path(place))


def _this_script(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "scripts.bench_decode", *arguments], check=True)


if __name__ == "__main__":
    main()

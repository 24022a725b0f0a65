"""Measures decoding: the memory that a picture takes by its kind, and how fast plain pictures are decoded and resized.

    python -m scripts.bench_decode [FOLDER]

The bytes a pixel are those of `gpu_cluster.images.decoders`: for plain pictures of the job, for the others of the job
and of the process that decodes together. With a folder, its pictures are decoded as batches for the network, three
times, without the network.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gpu_cluster.backend import CpuBackend
from gpu_cluster.config import EmbedConfig, InputConfig
from gpu_cluster.embedding.engines import TensorFlowEngine, tensorflow_input
from gpu_cluster.embedding.extractors import colour_histogram
from gpu_cluster.events import Observer
from gpu_cluster.images import decoders
from gpu_cluster.images.discover import discover
from gpu_cluster.images.scan import scan
from gpu_cluster.images.source import Picture, open_source

_SIDE = 4000
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


def _measure(kind: str) -> None:
    """Print the bytes a pixel that one picture of a kind takes, in a process that has decoded nothing before."""
    mode, name, options = _KINDS[kind]
    noise = np.random.default_rng(0).integers(0, 255, (_SIDE // 8, _SIDE // 8, 4), dtype=np.uint8)
    folder = Path(sys.argv[3])
    file = folder / name
    Image.fromarray(noise).resize((_SIDE, _SIDE)).convert("RGB" if mode == "CMYK" else mode).convert(mode).save(
        file, **options
    )
    small = folder / f"small{file.suffix}"
    Image.open(file).crop((0, 0, 64, 64)).save(small, **options)
    picture, warm = (_scanned(one)[0] for one in (file, small))
    engine = TensorFlowEngine(CpuBackend(), colour_histogram(), EmbedConfig(batch_size=1))
    engine.build()
    with decoders.limited(InputConfig()) as limits:
        for one in (warm, picture):
            Path("/proc/self/clear_refs").write_text("5")
            before = _status("self", "VmRSS")
            if tensorflow_input.decoder_of(one.facts) is not None:
                list(engine.batches([one]))
            else:
                with one.open() as stream:
                    engine.square(limits.pixels(stream, one.suffix, one.facts))
            used = _status("self", "VmHWM") - before
            process = next((process._process.pid for process in limits._all), None)
            used += 0 if process is None else _status(process, "VmHWM")
    where = "in the job" if process is None else "beside it"
    allowed = decoders.bytes_needed(picture.facts) / _SIDE**2
    print(f"{kind:20} {used / _SIDE**2:5.1f} bytes a pixel, {where}; reckoned with {allowed:.0f}")


def _scanned(place: Path) -> list[Picture]:
    config = InputConfig(images=(place,))
    manifest = discover(config, Observer())
    source = open_source(manifest.root)
    manifest = scan(manifest, source, config, Observer())
    return [Picture(source, path, facts) for path, facts in zip(manifest.paths, manifest.files, strict=True)]


def _speed(folder: Path) -> None:
    pictures = _scanned(folder)
    for _ in range(4):
        start, n = time.perf_counter(), 0
        for positions, _pixels in tensorflow_input.batches(pictures, EmbedConfig(), batch_size=32) or ():
            n += len(positions)
        print(f"{n / (time.perf_counter() - start):.0f} pictures/s ({n} of {len(pictures)})")


def main() -> None:
    """Measure the kinds, each in a process of its own, and then the folder, if one is given."""
    import tempfile

    if sys.argv[1:2] == ["--kind"]:
        _measure(sys.argv[2])
        return
    for kind in _KINDS:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, "-m", "scripts.bench_decode", "--kind", kind, folder], check=True)
    if len(sys.argv) > 1:
        _speed(Path(sys.argv[1]))


if __name__ == "__main__":
    main()

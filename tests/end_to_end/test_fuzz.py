"""Files with bytes flipped, cut and inserted never crash, hang or fill the memory, neither Pillow nor TensorFlow.

Everything is decoded in a process of its own: a crash of a decoder in C is then a failed test and not the end of all.
The tests take a sample; `python -m tests.end_to_end.test_fuzz pillow|tensorflow FOLDER NUMBER NAME...` takes as many
mutations of the named kinds as it is told.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gpu_cluster.config import EmbedConfig, InputConfig
from gpu_cluster.embedding.engines import tensorflow_input
from gpu_cluster.embedding.shards import _decoded, _reason
from gpu_cluster.events import Observer
from gpu_cluster.images import decode
from gpu_cluster.images.discover import discover
from gpu_cluster.images.scan import scan
from gpu_cluster.images.source import Picture, open_source
from tests.helpers import decoded
from tests.helpers import picture as draw

MAX_PIXELS = 1_000_000

# Decoding takes up to 13 bytes a pixel, and as many pictures are decoded at once as there are cores; the rest is room
# for what decoders keep and the allocator does not give back. Measured: 19 MB by Pillow, 3 MB by TensorFlow.
MAX_GROWTH_BYTES = 13 * MAX_PIXELS * (os.cpu_count() or 1) + 100_000_000

# Mutations of each kind of file in the larger of the two samples.
MANY = 100

# The slowest of 9,600 took 0.04 s; another process may take most of the machine for a while.
MAX_SECONDS_A_FILE = 10


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def transparent(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(image.getchannel("R"))
    return image


def sixteen_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


# A file of each kind: what is mutated. Small, so that most mutations hit something that matters.
KINDS: Mapping[str, Callable[[Image.Image], bytes]] = {
    "baseline.jpg": lambda image: saved(image, "JPEG", exif=turned()),
    "progressive.jpg": lambda image: saved(image, "JPEG", progressive=True, optimize=True),
    "grey.jpg": lambda image: saved(image.convert("L"), "JPEG"),
    "cmyk.jpg": lambda image: saved(image.convert("CMYK"), "JPEG"),
    "rgb.png": lambda image: saved(image, "PNG", exif=turned()),
    "rgba.png": lambda image: saved(transparent(image), "PNG"),
    "grey and alpha.png": lambda image: saved(transparent(image).convert("LA"), "PNG"),
    "palette.png": lambda image: saved(image.quantize(16), "PNG", transparency=3),
    "16 bits.png": lambda image: saved(sixteen_bits(image), "PNG"),
    "animation.png": lambda image: saved(image, "PNG", save_all=True, append_images=[draw(1)]),
    "palette.gif": lambda image: saved(image.quantize(16), "GIF", transparency=3),
    "animation.gif": lambda image: saved(image, "GIF", save_all=True, append_images=[draw(1)]),
    "rgb.bmp": lambda image: saved(image.resize((12, 10)), "BMP"),
    "palette.bmp": lambda image: saved(image.quantize(16), "BMP"),
    "lossy.webp": lambda image: saved(image, "WEBP", exif=turned()),
    "lossless.webp": lambda image: saved(transparent(image), "WEBP", lossless=True),
    "animation.webp": lambda image: saved(image, "WEBP", save_all=True, append_images=[draw(1)]),
    "raw.tif": lambda image: saved(image.resize((12, 10)), "TIFF"),
    "lzw.tif": lambda image: saved(image, "TIFF", compression="tiff_lzw"),
    "deflate.tif": lambda image: saved(transparent(image), "TIFF", compression="tiff_adobe_deflate"),
    "jpeg.tif": lambda image: saved(image, "TIFF", compression="jpeg"),
    "fax.tif": lambda image: saved(image.convert("1"), "TIFF", compression="group4"),
    "float.tif": lambda image: saved(image.resize((12, 10)).convert("F"), "TIFF"),
    "rgb.avif": lambda image: saved(image, "AVIF", exif=turned()),
    "rgba.avif": lambda image: saved(transparent(image), "AVIF"),
    "animation.avif": lambda image: saved(image, "AVIF", save_all=True, append_images=[draw(1)]),
    "rgb.jp2": lambda image: saved(image, "JPEG2000"),
    "rgb.ico": lambda image: saved(image, "ICO", sizes=[(16, 16), (32, 32)]),
    "rgb.ppm": lambda image: saved(image.resize((12, 10)), "PPM"),
    "rle.tga": lambda image: saved(image.quantize(16), "TGA", compression="tga_rle"),
    "rgb.pcx": lambda image: saved(image.quantize(16), "PCX"),
    "rgb.dds": lambda image: saved(image.resize((12, 12)), "DDS"),
}

# Numbers that lengths, counts and sizes go wrong at.
ODD_NUMBERS = [b"\0\0", b"\xff\xff", b"\x7f\xff", b"\xff\x7f", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"]


def mutated(content: bytes, random: np.random.Generator) -> bytes:
    """Return bytes with some flipped, overwritten, cut off, left out or doubled; half of the hits are in the header."""
    found = bytearray(content)
    for _ in range(random.integers(1, 5)):
        at = int(random.integers(0, min(len(found), 200) if random.random() < 0.5 else len(found)))
        match int(random.integers(0, 8)):
            case 0 | 1:
                found[at] ^= 1 << int(random.integers(0, 8))
            case 2 | 3:
                found[at] = int(random.integers(0, 256))
            case 4 | 5:
                odd = ODD_NUMBERS[int(random.integers(0, len(ODD_NUMBERS)))]
                found[at : at + len(odd)] = odd
            case 6:
                del found[at : at + int(random.integers(1, 20))]
            case _:
                found[at:at] = found[at : at + int(random.integers(1, 20))]
        found = found or bytearray(b"\0")
    if random.random() < 0.1:
        del found[int(random.integers(0, len(found))) :]
    return bytes(found)


def mutations(names: list[str], n: int) -> Iterator[tuple[str, bytes]]:
    """Yield n mutations of each kind, the same ones every time."""
    for name in names:
        # Each kind has random numbers of its own: one kind more must not change the others.
        random = np.random.default_rng(list(name.encode()))
        content = KINDS[name](draw(0))
        for _ in range(n):
            yield name, mutated(content, random)


def peak_bytes() -> int:
    # Not of getrusage, which in a new process begins at the peak of the one that started it: that of all the tests.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("this system does not tell the peak of a process's memory")


def fuzz_pillow(folder: Path, names: list[str], n: int) -> dict[str, Any]:
    """Send mutations through the header's reading and Pillow's decoding, in this process."""
    ends: Counter[str] = Counter()
    slowest = 0.0
    # Loads all of Pillow's plugins, which are not to be counted.
    decode.suffixes()
    before = peak_bytes()
    with decode.limited(MAX_PIXELS):
        for name, content in mutations(names, n):
            # One name a kind: after a crash it is the file that crashed which lies here.
            file = folder / name
            file.write_bytes(content)
            start = time.perf_counter()
            ends[one_by_pillow(file)] += 1
            slowest = max(slowest, time.perf_counter() - start)
    return {"ends": ends, "slowest_s": slowest, "growth_bytes": peak_bytes() - before}


def one_by_pillow(file: Path) -> str:
    """Return how one file ends; whatever is neither a picture nor a reason raises."""
    content = file.read_bytes()
    try:
        decode.read_header(io.BytesIO(content), file.suffix)
        found = decoded(file)
    # As the scan and the second look do it.
    except Exception as error:
        if isinstance(error, MemoryError) or not decode.reason(content[: decode.HEAD_BYTES], error).strip():
            raise
        return "bad"
    height, width, channels = found.shape
    if found.dtype != np.uint8 or channels != 3 or not 0 < height * width <= MAX_PIXELS:
        raise ValueError(f"a picture {found.shape} of {found.dtype}")
    return "ok"


def fuzz_tensorflow(folder: Path, names: list[str], n: int) -> dict[str, Any]:
    """Send mutations through the scan, TensorFlow's pipeline and the second look, in this process."""
    for number, (name, content) in enumerate(mutations(names, n)):
        (folder / f"{number:05d} {name}").write_bytes(content)
    config = InputConfig(images=(folder,), max_pixels=MAX_PIXELS)
    manifest = discover(config, Observer())
    source = open_source(manifest.root)
    manifest = scan(manifest, source, config, Observer())
    rows = [row for row in range(len(manifest)) if row not in manifest.bad]
    sources = [Picture(source, manifest.paths[row], manifest.files[row]) for row in rows]
    embed = EmbedConfig(image_size=32)
    # Taken after the first pictures: TensorFlow, which they load, takes hundreds of megabytes.
    before = 0
    left = set(range(len(sources)))
    with decode.limited(MAX_PIXELS):
        for shard in (range(first, min(first + 256, len(sources))) for first in range(0, len(sources), 256)):
            for indices, pictures in tensorflow_input.batches([sources[at] for at in shard], embed, batch_size=32):
                before = before or peak_bytes()
                left -= {shard[position] for position in indices.numpy()}
                if not bool(np.isfinite(pictures.numpy()).all()):
                    raise ValueError("a picture that is not finite")
        looked, bad = set(), {}
        for index in sorted(left):
            try:
                _decoded(sources[index])
            # As the second look does it.
            except Exception as error:  # noqa: BLE001
                bad[index], _ = _reason(sources[index], error)
            else:
                looked.add(index)
    ends = {
        "passed over": n * len(names) - len(manifest),
        "bad header": len(manifest.bad),
        "by the pipeline": len(sources) - len(left),
        "by the second look": len(looked),
        "bad picture": len(bad),
    }
    if looked | set(bad) != left or not all(why.strip() for why in bad.values()):
        raise ValueError("a file without a picture and without a reason")
    return {"ends": ends, "growth_bytes": peak_bytes() - before}


ROUTES = {"pillow": fuzz_pillow, "tensorflow": fuzz_tensorflow}


def fuzz(route: str, folder: Path, names: list[str], n: int, *, timeout_s: float) -> dict[str, Any]:
    """Fuzz in a process of its own and return what it found; it may not crash, nor take longer than `timeout_s`."""
    done = subprocess.run(
        [sys.executable, "-m", __name__, route, str(folder), str(n), *names],
        capture_output=True,
        cwd=Path(__file__).parents[2],
        timeout=timeout_s,
        check=False,
    )
    # The decoders tell standard error about many a file: only the end says why a process died.
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def of_tensorflow() -> list[str]:
    return [name for name in KINDS if name.endswith((".jpg", ".png"))]


def test_a_few_mutations_of_every_kind_end_by_pillow_in_a_picture_or_a_reason(tmp_path):
    found = fuzz("pillow", tmp_path, list(KINDS), 25, timeout_s=120)
    assert sum(found["ends"].values()) == 25 * len(KINDS)
    assert min(found["ends"][end] for end in ("ok", "bad")) > 0
    assert found["growth_bytes"] < MAX_GROWTH_BYTES
    assert found["slowest_s"] < MAX_SECONDS_A_FILE


@pytest.mark.slow
def test_many_mutations_of_every_kind_end_by_pillow_in_a_picture_or_a_reason(tmp_path):
    found = fuzz("pillow", tmp_path, list(KINDS), MANY, timeout_s=600)
    assert sum(found["ends"].values()) == MANY * len(KINDS)
    assert found["growth_bytes"] < MAX_GROWTH_BYTES
    assert found["slowest_s"] < MAX_SECONDS_A_FILE


@pytest.mark.slow
def test_many_mutations_of_jpeg_and_png_end_by_tensorflow_in_a_picture_or_a_reason(tmp_path):
    names = of_tensorflow()
    found = fuzz("tensorflow", tmp_path, names, MANY, timeout_s=600)
    assert sum(found["ends"].values()) == MANY * len(names)
    assert min(found["ends"][end] for end in ("bad header", "by the pipeline", "bad picture")) > 0
    assert found["growth_bytes"] < MAX_GROWTH_BYTES


if __name__ == "__main__":
    route, folder, n, *names = sys.argv[1:]
    sys.stdout.write(json.dumps(ROUTES[route](Path(folder), names, int(n))) + "\n")

"""The real files that the fuzzer mutates: each small, so that most mutations hit something that matters."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gpu_cluster import run
from gpu_cluster.config import shipped_data
from gpu_cluster.embedding.vgg16 import LAYER_SHAPES
from gpu_cluster.inventory import replace_file
from gpu_cluster.run_folder import RECORD
from tests.attacks import raw
from tests.colour_profiles import p3_profile
from tests.helpers import picture as draw
from tests.helpers import write_pictures
from tests.raw_files import dng


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


def _xpm(image: Image.Image) -> bytes:
    small = image.resize((12, 10)).quantize(16)
    colours = np.asarray(small.getpalette()).reshape(-1, 3)[:16]
    lines = [f'"{number:c} c #{r:02x}{g:02x}{b:02x}",' for number, (r, g, b) in enumerate(colours, start=97)]
    rows = [f'"{"".join(chr(97 + value) for value in row)}",' for row in np.asarray(small)]
    head = f'/* XPM */\nstatic char *a[] = {{\n"12 10 {len(lines)} 1",\n'
    return (head + "\n".join([*lines, *rows]) + "\n};\n").encode()


def _icns(content: bytes) -> bytes:
    return b"icns" + struct.pack(">I", 16 + len(content)) + b"icp4" + struct.pack(">I", 8 + len(content)) + content


def _psd(image: Image.Image) -> bytes:
    small = image.resize((12, 10))
    head = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 10, 12, 8, 3) + bytes(12) + bytes(2)
    return head + b"".join(band.tobytes() for band in small.split())


def _qoi(image: Image.Image) -> bytes:
    small = np.asarray(image.resize((12, 10)))
    pixels = b"".join(b"\xfe" + row.tobytes() for row in small.reshape(-1, 3))
    return b"qoif" + struct.pack(">IIBB", 12, 10, 3, 0) + pixels + bytes(7) + b"\1"


def _fits(image: Image.Image) -> bytes:
    cards = {"SIMPLE": "T", "BITPIX": "8", "NAXIS": "2", "NAXIS1": "12", "NAXIS2": "10"}
    head = b"".join(raw.card(*one) for one in cards.items()) + b"END".ljust(80)
    return head.ljust(2880) + image.resize((12, 10)).convert("L").tobytes().ljust(2880, b"\0")


# A file of each kind.
PICTURES: Mapping[str, Callable[[Image.Image], bytes]] = {
    "baseline.jpg": lambda image: saved(image, "JPEG", exif=turned()),
    "progressive.jpg": lambda image: saved(image, "JPEG", progressive=True, optimize=True),
    "grey.jpg": lambda image: saved(image.convert("L"), "JPEG"),
    "cmyk.jpg": lambda image: saved(image.convert("CMYK"), "JPEG"),
    "several.mpo": lambda image: saved(image, "MPO", save_all=True, append_images=[draw(1)]),
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
    "bitmap.ico": lambda image: saved(image, "ICO", sizes=[(16, 16)], bitmap_format="bmp"),
    "rgb.icns": lambda image: _icns(saved(image.resize((16, 16)), "PNG")),
    "rgb.ppm": lambda image: saved(image.resize((12, 10)), "PPM"),
    "plain.ppm": lambda image: b"P3\n4 3\n255\n# a comment\n" + b" ".join(b"%d" % one for one in range(36)) + b"\n",
    "rle.tga": lambda image: saved(image.quantize(16), "TGA", compression="tga_rle"),
    "rgb.pcx": lambda image: saved(image.quantize(16), "PCX"),
    "rgb.dds": lambda image: saved(image.resize((12, 12)), "DDS"),
    "blocks.dds": lambda image: saved(image.resize((12, 12)).convert("RGBA"), "DDS", pixel_format="DXT5"),
    "palette.blp": lambda image: saved(image.resize((8, 8)).quantize(16), "BLP"),
    "rgb.sgi": lambda image: saved(image.resize((12, 10)), "SGI"),
    "bits.xbm": lambda image: saved(image.resize((12, 10)).convert("1"), "XBM"),
    "bits.msp": lambda image: saved(image.resize((16, 10)).convert("1"), "MSP"),
    "palette.xpm": _xpm,
    "rgb.psd": _psd,
    "rgb.qoi": _qoi,
    "grey.fits": _fits,
    "p3.jpg": lambda image: saved(image, "JPEG", icc_profile=p3_profile()),
    "p3.png": lambda image: saved(image, "PNG", icc_profile=p3_profile()),
    "p3.heic": lambda _image: (Path(__file__).parents[1] / "images" / "phone" / "p3.heic").read_bytes(),
    "preview.dng": lambda image: dng(saved(image, "JPEG"), image.size),
}


def picture(name: str) -> bytes:
    """Return the file of a kind, or one of the sample set."""
    if name in PICTURES:
        return PICTURES[name](draw(0))
    return (shipped_data() / "flowers" / name).read_bytes()


@cache
def picture_names() -> tuple[str, ...]:
    return (*PICTURES, *sorted(path.name for path in (shipped_data() / "flowers").glob("*.png"))[::70])


# Weights: those of the whole network are compressed zeros, the others show the shape of the file only.


def _weights(write: Callable[[Any], None]) -> bytes:
    import h5py

    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        write(file)
    return stream.getvalue()


def _keras3(file: Any, layers: Mapping[str, tuple[int, ...]], **options: Any) -> None:
    for number, (name, shape) in enumerate(layers.items()):
        group = file.create_group(f"layers/conv2d_{number}/vars")
        group.attrs["name"] = name
        group.create_dataset("0", shape, "f4", **options)
        group.create_dataset("1", shape[-1:], "f4", **options)


def _legacy(file: Any, layers: Mapping[str, tuple[int, ...]]) -> None:
    file.attrs["layer_names"] = [name.encode() for name in layers]
    for name, shape in layers.items():
        group = file.create_group(name)
        group.attrs["weight_names"] = [b"kernel:0", b"bias:0"]
        group.create_dataset("kernel:0", shape, "f4")
        group.create_dataset("bias:0", shape[-1:], "f4")


_SMALL = {"block1_conv1": (3, 3, 3, 8), "block1_conv2": (3, 3, 8, 8)}

WEIGHTS: Mapping[str, Callable[[], bytes]] = {
    "keras 3.weights.h5": lambda: _weights(lambda file: _keras3(file, _SMALL)),
    "chunks.weights.h5": lambda: _weights(lambda file: _keras3(file, _SMALL, compression="gzip", chunks=True)),
    "legacy.h5": lambda: _weights(lambda file: _legacy(file, _SMALL)),
    "whole.weights.h5": lambda: _weights(lambda file: _keras3(file, LAYER_SHAPES, chunks=None)),
}


# A table of options, and one of labels.

TOML = b"""preset = "default"
k = 3
max_bad_fraction = 0.25

[input]
images = ["photos", "more"]
max_pixels = 1000000
labels = "labels.csv"
file_col = "file"

[embed]
image_size = 64
pooling = "gem"
fit = "crop"

[store]
no_cache = true
shard_size = 64

[sweep]
k_range = "2:9"
n_init = 3
"""

N_LABELLED = 12


def labels(separator: str = ",", encoding: str = "utf-8") -> bytes:
    """Return a table of labels of the pictures that `write_pictures` writes."""
    rows = [separator.join((f"{number:03d}.png", f"k\u00e9y {number % 3}")) for number in range(N_LABELLED)]
    return "\n".join([separator.join(("file", "label")), *rows, ""]).encode(encoding)


LABELS: Mapping[str, Callable[[], bytes]] = {
    "commas.csv": labels,
    "semicolons.csv": lambda: b"sep=;\r\n" + labels(";").replace(b"\n", b"\r\n"),
    "utf-16.csv": lambda: labels("\t", "utf-16"),
    "latin.csv": lambda: labels(",", "latin-1"),
}


def write_run(folder: Path) -> None:
    """Write into a folder what a real, small job reads and leaves: `pictures`, `store` and `run`."""
    write_pictures(folder / "pictures", N_LABELLED)
    (folder / "pictures" / "labels.csv").write_bytes(labels())
    # A copy, a near duplicate and a bad file, so that every table has rows.
    (folder / "pictures" / "copy.png").write_bytes((folder / "pictures" / "000.png").read_bytes())
    draw(1).save(folder / "pictures" / "like 001.webp", quality=95)
    (folder / "pictures" / "bad.png").write_bytes(b"\x89PNG")
    options: dict[str, Any] = {"image_size": 32, "pooling": "gem", "k": 2, "k_range": "2:3", "n_init": 2}
    run(folder / "pictures", **options, cache=folder / "store", out=folder / "run")
    # Cases are kept in the repository, and must not say where this checkout is.
    record = (folder / "run" / RECORD).read_bytes().replace(os.fsencode(shipped_data()), b"/data")
    replace_file(folder / "run", RECORD, record)

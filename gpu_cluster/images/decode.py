"""One file -> what its header says, and its picture by way of Pillow.

Enters: a file. Leaves: its format by content, or its picture (h, w, 3) uint8: RGB, upright, what is transparent on
white. Must not know TensorFlow, nor what becomes of a picture.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

# Part of the key of every embedding that is kept: to be counted up when a file's pixels come out otherwise than before.
VERSION = 2

# What Pillow opens and we do not: EPS runs Ghostscript on the file, the others it can only recognise.
_NOT_READ = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
# No Pillow here reads these; a file of that name is reported with its reason rather than passed over.
_NOT_YET = frozenset({".heic", ".heif", ".hif"})

# First bytes of a file, by the format that they promise.
_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG", "PNG"),
    (b"GIF8", "GIF"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"8BPS", "PSD"),
    (b"qoif", "QOI"),
)
_HEIF_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"hevc": "HEIC", b"mif1": "HEIF"}
_BMP_HEADERS = frozenset({12, 40, 52, 56, 64, 108, 124})
HEAD_BYTES = 32

_ICON = b"\0\0\1\0"

# Tag 274 of Exif 2.3; 1 is upright.
_ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True)
class Header:
    """What the first bytes of an image file say: format and mode in Pillow's words, pixels, Exif orientation 1 to 8."""

    format: str
    mode: str
    width: int
    height: int
    orientation: int


@functools.cache
def suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case with their dot, that promise a picture."""
    from PIL import Image

    known = Image.registered_extensions()
    read = {suffix for suffix, kind in known.items() if kind in Image.OPEN and kind not in _NOT_READ}
    return frozenset(read | _NOT_YET)


@functools.cache
def _formats(suffix: str) -> tuple[str, ...]:
    """Return what a file may turn out to be: formats with a signature, and the one without that its name promises."""
    from PIL import Image

    promised = Image.registered_extensions().get(suffix)
    return tuple(
        kind
        for kind, (_open, accept) in Image.OPEN.items()
        if kind not in _NOT_READ and (accept is not None or kind == promised)
    )


def format_of(head: bytes) -> str | None:
    """Return the format that a file's first `HEAD_BYTES` promise, None where they are no picture's."""
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    return _HEIF_BRANDS.get(head[8:12]) if head[4:8] == b"ftyp" else None


@contextmanager
def limited(max_pixels: int | None) -> Iterator[None]:
    """Hold Pillow, in all threads, to `max_pixels` a picture (None: any) and to silence about odd files."""
    from PIL import Image

    earlier = Image.MAX_IMAGE_PIXELS
    # Pillow warns at its limit and refuses at twice that: a half, so that odd limits are exact too.
    Image.MAX_IMAGE_PIXELS = None if max_pixels is None else max_pixels / 2  # type: ignore[assignment]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\b")
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = earlier


def read_header(stream: IO[bytes], suffix: str = "") -> Header:
    """Read the header of an image file; decodes nothing.

    Raises
    ------
    Exception
        Whatever Pillow's readers stumble over; `reason` puts it in words.
    """
    from PIL import IcoImagePlugin, Image

    head = stream.read(4)
    stream.seek(0)
    if head == _ICON:
        # Pillow decodes an icon, whatever its size, to open it.
        with IcoImagePlugin.IcoFile(stream).frame(0) as icon:
            return Header("ICO", icon.mode, icon.width, icon.height, 1)
    with Image.open(stream, formats=_formats(suffix.lower())) as image:
        return Header(str(image.format), image.mode, image.width, image.height, _orientation(image))


def decode(stream: IO[bytes], suffix: str = "") -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the picture of a file that is open at its first byte: (h, w, 3) uint8, RGB, upright, on white.

    Of 16 bits the high byte is taken, as TensorFlow does; 32-bit pixels have no agreed white, and are stretched so
    that the lowest is black and the highest white.

    Raises
    ------
    Exception
        Whatever Pillow's decoders stumble over; `reason` puts it in words.
    """
    from PIL import Image

    formats = _formats(suffix.lower())
    with Image.open(stream, formats=formats) as image:
        if image.format == "PNG":
            if not image.tile:
                raise OSError("no pixels in it")
            # Pillow itself passes over a wrong checksum of the pixels.
            image.verify()
    stream.seek(0)
    with Image.open(stream, formats=formats) as image:
        # Pillow turns a TIFF upright as it loads it.
        orientation = 1 if image.format == "TIFF" else _orientation(image)
        flat = _on_white(_eight_bits(image))
        return np.asarray(_upright(flat, orientation))


def shrunk(stream: IO[bytes], suffix: str, side: int) -> Image:
    """Return the picture of a file as `decode` does, but no side longer than `side`.

    Raises
    ------
    Exception
        As `decode`.
    """
    from PIL import Image

    with Image.open(stream, formats=_formats(suffix.lower())) as image:
        if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
            orientation = _orientation(image)
            # libjpeg then leaves out what a small copy does not show: most of the time of a large photo.
            image.draft(image.mode, (2 * side, 2 * side))
            small = _upright(image.convert("RGB"), orientation)
        else:
            stream.seek(0)
            small = Image.fromarray(decode(stream, suffix))
    small.thumbnail((side, side))
    return small


def _eight_bits(image: Image) -> Image:
    """Return an image of a mode whose conversion to RGB or RGBA keeps its colours."""
    from PIL import Image, ImageChops

    if image.mode.startswith("I;16"):
        shift = 4 if "I;12" in _raw_mode(image) else 8
        pixels = np.asarray(image)
        grey = Image.fromarray((pixels >> shift).astype(np.uint8))
        transparent = image.info.get("transparency")
        if transparent is None:
            return grey
        opaque = Image.fromarray(np.where(pixels == transparent, 0, 255).astype(np.uint8))
        return Image.merge("LA", (grey, opaque))
    if image.mode in ("I", "F"):
        pixels = np.asarray(image, dtype=np.float64)
        finite = pixels[np.isfinite(pixels)]
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
        pixels = np.nan_to_num(pixels, nan=low, posinf=high, neginf=low)
        return Image.fromarray(((pixels - low) * (255 / (high - low or 1))).astype(np.uint8))
    _scale_key(image)
    if image.mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info:
        # Pillow takes every CMYK JPEG for one of Adobe's, which are inverted; TensorFlow looks for Adobe's marker.
        return ImageChops.invert(image)
    return image


def _raw_mode(image: Image) -> str:
    """Return how the file holds its pixels, in Pillow's words; known until they are loaded."""
    arguments: Any = getattr(image, "tile", None) and image.tile[0][3]  # type: ignore[attr-defined]
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _scale_key(image: Image) -> None:
    """Bring a PNG's transparent colour to the 8 bits that Pillow brings its pixels to, but not that."""
    key, raw = image.info.get("transparency"), _raw_mode(image)
    if image.format != "PNG" or key is None:
        return
    if raw in ("L;2", "L;4"):
        image.info["transparency"] = key * (85 if raw == "L;2" else 17)
    elif raw == "RGB;16B":
        # Of the colours that share their high bytes with it each is taken for it: Pillow holds no more.
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _on_white(image: Image) -> Image:
    from PIL import Image

    if image.mode not in ("RGBA", "LA", "PA", "RGBa", "La") and "transparency" not in image.info:
        return image.convert("RGB")
    image = image.convert("LA") if image.mode == "La" else image
    picture = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def _upright(image: Image, orientation: int) -> Image:
    from PIL.Image import Transpose

    steps = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(steps[orientation]) if orientation in steps else image


def _orientation(image: Image) -> int:
    """Return the Exif orientation, 1 where there is none or none that means anything."""
    from PIL import Image

    try:
        # Of the base class: PNG's own would decode the picture in search of a chunk behind it.
        found = Image.Image.getexif(image).get(_ORIENTATION)
    # Exif blocks are broken in every way that bytes can be.
    except Exception:  # noqa: BLE001
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def is_passing(error: Exception) -> bool:
    """Tell what says nothing of a file's content, and may be over the next time: options, memory, the file system."""
    from PIL import Image

    # Pillow's own OSErrors have no number.
    from_system = isinstance(error, OSError) and error.errno is not None
    return from_system or isinstance(error, MemoryError | Image.DecompressionBombError)


def reason(head: bytes, error: Exception) -> str:
    """Say in plain words why a file, which begins with the bytes `head`, is no picture that can be used."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, Image.DecompressionBombError):
        return "more pixels inside than --max-pixels allows"
    promised = format_of(head)
    if isinstance(error, UnidentifiedImageError):
        return _unidentified(head, promised)
    words = " ".join(str(error).split()) or type(error).__name__
    return f"{promised or 'image'} that is damaged or cut short: {words}"


def _unidentified(head: bytes, promised: str | None) -> str:
    if not head:
        return "empty file"
    if promised in ("HEIC", "HEIF", "AVIF"):
        return f"{promised}, which this Pillow cannot read; convert it to JPEG or PNG"
    if promised is not None:
        return f"begins as {promised}, but its header is damaged or cut short"
    return "not an image, or of an unknown format"

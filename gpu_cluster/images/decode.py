"""Reads the header of one file, or decodes its picture with Pillow.

Input: a file. Output: its format by content, or its picture (h, w, 3) uint8: sRGB, upright, with transparent parts on
white. This module must not know TensorFlow, nor what is done with a picture.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from gpu_cluster.images import colour, extras, formats, icc

if TYPE_CHECKING:
    from PIL.Image import Image

    from gpu_cluster.images.colour import Convert

Pixels: TypeAlias = npt.NDArray[np.uint8]

# The formats that Pillow gives to a file that begins as a JPEG.
JPEG_FORMATS = frozenset({"JPEG", "MPO"})
_ICON = b"\0\0\1\0"

# The marker that begins a scan of a JPEG. Inside the data of a scan its first byte is always followed by a zero byte.
_START_OF_SCAN = b"\xff\xda"
_READ_BYTES = 1 << 20

# A picture is brought to eight bits and put on white in bands of about this many pixels, because some of the steps need
# a dozen times the memory of the picture itself.
_BAND_PIXELS = 1 << 20

# The orientation tag, number 274 in Exif 2.3; its value 1 is upright.
_ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True)
class Header:
    """The header of an image file: format and mode as Pillow names them, size in pixels, Exif orientation 1 to 8.

    Of a JPEG, `n_scans` is the number of scans in the file; of other formats it is None. `profile` is what the embedded
    colour profile is (see `icc.described`).
    """

    format: str
    mode: str
    width: int
    height: int
    orientation: int
    n_scans: int | None = None
    profile: str = icc.NONE


@functools.cache
def _formats(suffix: str) -> tuple[str, ...]:
    """Return the formats that Pillow may try for a file: those with a signature, and the one that its suffix names."""
    from PIL import Image

    promised = Image.registered_extensions().get(suffix)
    return tuple(
        kind
        for kind, (_open, accept) in Image.OPEN.items()
        if kind not in formats.NOT_READ and (accept is not None or kind == promised)
    )


@contextmanager
def limited(max_pixels: int | None) -> Iterator[None]:
    """Make Pillow, in all threads, refuse pictures of more than `max_pixels` (None: no limit) and hide its warnings."""
    from PIL import Image

    earlier = Image.MAX_IMAGE_PIXELS
    # Pillow warns at its limit and refuses at twice that, so it gets half of ours; as a float, which is exact for odd
    # limits too.
    Image.MAX_IMAGE_PIXELS = None if max_pixels is None else max_pixels / 2  # type: ignore[assignment]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\b")
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = earlier


def read_header(stream: IO[bytes], suffix: str = "", *, plain: bool = False, n_scans: int | None = None) -> Header:
    """Read the header of an image file without decoding the picture.

    `n_scans` is the number of scans of a JPEG, if it is known already. With `plain`, as in `decode`, a profile is not
    tried; it may turn out to be one that cannot be used.

    Raises
    ------
    Exception
        Any error that Pillow's readers raise; `reason` describes it in words.
    """
    from PIL import IcoImagePlugin

    head = stream.read(4)
    stream.seek(0)
    if head == _ICON:
        # Image.open would decode an icon of any size, so only the icon's header is read here.
        with IcoImagePlugin.IcoFile(stream).frame(0) as icon:
            return Header("ICO", icon.mode, icon.width, icon.height, 1)
    with _opened(stream, suffix, plain=plain) as (image, kind, orientation):
        profile = colour.profile_of(image) if plain else colour.usable_profile_of(image)
        header = Header(kind, image.mode, image.width, image.height, orientation, profile=profile)
        if header.format not in JPEG_FORMATS:
            return header
        stream.seek(0)
        return replace(header, n_scans=count_scans(stream) if n_scans is None else n_scans)


def count_scans(stream: IO[bytes]) -> int:
    """Return how many scans a JPEG file has, from where the stream is to its end; each costs a pass over all pixels.

    Previews inside the file are counted too.
    """
    found, last = 0, b""
    while content := stream.read(_READ_BYTES):
        found += content.count(_START_OF_SCAN) + (last + content[:1] == _START_OF_SCAN)
        last = content[-1:]
    return found


def reduction(width: int, height: int, at_least: int | None) -> int:
    """Return by how much a JPEG of this size is reduced while it is decoded: 1 (not at all), 2, 4 or 8.

    It is the largest of these that leaves the short side at least twice `at_least` pixels long; 1 if that is None.
    libjpeg then computes a mean of each block of so many pixels a side from the frequencies that are stored, which
    takes less time than to compute every pixel.
    """
    most = 1 if at_least is None else min(width, height) // (2 * at_least)
    return next((ratio for ratio in (8, 4, 2) if ratio <= most), 1)


def decode(
    stream: IO[bytes], suffix: str = "", *, at_least: int | None = None, plain: bool = False, profiles: bool = True
) -> Pixels:
    """Return the picture of a file that is open at its first byte: (h, w, 3) uint8, sRGB, upright, on white.

    The colours of a picture with an embedded profile are converted to sRGB, unless `profiles` is False. Of 16-bit
    values the high byte is used, as in TensorFlow. 32-bit values have no standard white, so they are stretched: the
    lowest becomes black and the highest white. The array may be a view that is not contiguous, and may be read-only. If
    `at_least` is given, a JPEG is reduced as `reduction` says, with sides rounded up. With `plain`, as the job itself
    decodes, the picture is plain (see `decoders`), so its profile is not even looked at.

    Raises
    ------
    Exception
        Any error that Pillow's decoders raise; `reason` describes it in words.
    """
    with _opened(stream, suffix, plain=plain) as (image, kind, orientation):
        if kind != "PNG":
            # Pillow already turns a TIFF upright when it loads the pixels.
            to_srgb = colour.to_srgb(image) if profiles and not plain else None
            return _decoded(image, 1 if kind == "TIFF" else orientation, at_least, to_srgb)
        if not getattr(image, "tile", None):
            raise OSError("no pixels in it")
        # When Pillow decodes, it ignores a wrong checksum of the pixels; `verify` does not.
        image.verify()
    stream.seek(0)
    with _opened(stream, suffix, plain=plain) as (image, _kind, orientation):
        to_srgb = colour.to_srgb(image) if profiles and not plain else None
        return _decoded(image, orientation, at_least, to_srgb)


def of_image(image: Image, *, profiles: bool = True) -> Pixels:
    """Return the picture of a Pillow image as `decode` does that of a file; the image stays as it is.

    Raises
    ------
    Exception
        Any error that Pillow's decoders raise, if the pixels are not loaded yet; `reason` describes it in words.
    """
    # Some steps change an image. A copy has its pixels, and its Exif block unless Pillow has turned it upright already.
    copy = image.copy()
    to_srgb = colour.to_srgb(copy) if profiles else None
    return _upright(_on_white(copy, to_srgb), _orientation(copy))


@contextmanager
def _opened(stream: IO[bytes], suffix: str, *, plain: bool) -> Iterator[tuple[Image, str, int]]:
    """Give the block the picture of a file, not loaded yet, its format, and its Exif orientation."""
    from PIL import Image

    raw = None if plain else formats.raw_format_of(stream)
    if raw is not None:
        stream.seek(0)
        with extras.preview(stream, raw) as (image, orientation):
            yield image, raw, orientation
        return
    stream.seek(0)
    promised = formats.format_of(stream.read(formats.HEAD_BYTES))
    stream.seek(0)
    is_heif = promised in formats.HEIF_FORMATS and not plain
    if is_heif:
        extras.register_heif(str(promised))
    with Image.open(stream, formats=("HEIF",) if is_heif else _formats(suffix.lower())) as image:
        # HEIC has its own boxes for how it is turned, which its decoder follows; they count, and not its Exif block.
        yield image, str(image.format), 1 if is_heif else _orientation(image)


def _decoded(image: Image, orientation: int, at_least: int | None, to_srgb: Convert | None) -> Pixels:
    if at_least is not None and image.format in JPEG_FORMATS:
        # Pillow chooses the ratio by the same rule as `reduction`, and uses the accurate transform for it.
        image.draft(image.mode, (2 * at_least, 2 * at_least))
    return _upright(_on_white(image, to_srgb), orientation)


def shrunk(stream: IO[bytes], suffix: str, side: int, *, plain: bool = False) -> Image:
    """Return the picture of a file as in `decode`, but with no side longer than `side`.

    Raises
    ------
    Exception
        The same errors as `decode`.
    """
    from PIL import Image

    # A JPEG that is reduced while it is decoded takes most of its time less.
    small = Image.fromarray(np.ascontiguousarray(decode(stream, suffix, at_least=side, plain=plain)))
    small.thumbnail((side, side))
    return small


def _on_white(image: Image, to_srgb: Convert | None) -> Pixels:
    """Load an image and return its pixels in eight bits: sRGB, what is transparent on white."""
    eight_bits = _to_eight_bits(image)
    # The size may change when the pixels are loaded: an icon has several, and a TIFF is turned upright.
    image.load()
    width, height = image.size
    rows = max(1, _BAND_PIXELS // width)
    stretch = _stretch(image, rows) if image.mode in ("I", "F") else (0.0, 0.0)
    if rows >= height:
        return np.asarray(_band_on_white(eight_bits(image, stretch), to_srgb))
    found = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        band = image.crop((0, top, width, min(top + rows, height)))
        found[top : top + rows] = np.asarray(_band_on_white(eight_bits(band, stretch), to_srgb))
    return found


def _to_eight_bits(image: Image) -> Callable[[Image, tuple[float, float]], Image]:
    """Return the function that brings a band of an image, which is not loaded yet, to a mode of eight bits.

    This mode can be converted to RGB or RGBA without changing the colours. The function takes a band, and the lowest
    and the highest value of the whole image if its values have 32 bits.
    """
    from PIL import ImageChops

    if image.mode.startswith("I;16"):
        shift = 4 if "I;12" in _raw_mode(image) else 8
        return lambda band, _stretch: _high_bytes(band, shift)
    if image.mode in ("I", "F"):
        return _stretched
    _scale_key(image)
    if image.mode == "CMYK" and image.format in JPEG_FORMATS and "adobe" not in image.info:
        # Pillow treats every CMYK JPEG as one of Adobe's, whose values are inverted; TensorFlow checks Adobe's marker.
        return lambda band, _stretch: ImageChops.invert(band)
    return lambda band, _stretch: band


def _high_bytes(band: Image, shift: int) -> Image:
    from PIL import Image

    pixels = np.asarray(band)
    grey = Image.fromarray((pixels >> shift).astype(np.uint8))
    transparent = band.info.get("transparency")
    if transparent is None:
        return grey
    opaque = Image.fromarray(np.where(pixels == transparent, 0, 255).astype(np.uint8))
    return Image.merge("LA", (grey, opaque))


def _stretch(image: Image, rows: int) -> tuple[float, float]:
    """Return the lowest and the highest finite value of an image of 32-bit values, reading `rows` rows at a time."""
    low, high = np.inf, -np.inf
    for top in range(0, image.height, rows):
        pixels = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))), dtype=np.float64)
        finite = pixels[np.isfinite(pixels)]
        if finite.size:
            low, high = min(low, finite.min()), max(high, finite.max())
    return (0.0, 0.0) if low > high else (float(low), float(high))


def _stretched(band: Image, stretch: tuple[float, float]) -> Image:
    from PIL import Image

    low, high = stretch
    pixels = np.nan_to_num(np.asarray(band, dtype=np.float64), nan=low, posinf=high, neginf=low)
    return Image.fromarray(((pixels - low) * (255 / (high - low or 1))).astype(np.uint8))


def _raw_mode(image: Image) -> str:
    """Return Pillow's name for the file's pixel format; it is only known before the pixels are loaded."""
    arguments: Any = getattr(image, "tile", None) and image.tile[0][3]  # type: ignore[attr-defined]
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _scale_key(image: Image) -> None:
    """Scale the transparent colour of a PNG to 8 bits; Pillow scales the pixels, but not this colour."""
    key, raw = image.info.get("transparency"), _raw_mode(image)
    if image.format != "PNG" or key is None:
        return
    if raw in ("L;2", "L;4"):
        image.info["transparency"] = key * (85 if raw == "L;2" else 17)
    elif raw == "RGB;16B":
        # Every colour with the same high bytes becomes transparent too, because Pillow keeps only the high bytes.
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _band_on_white(band: Image, to_srgb: Convert | None) -> Image:
    from PIL import Image

    if to_srgb is not None:
        band = to_srgb(band)
    if band.mode not in ("RGBA", "LA", "PA", "RGBa", "La") and "transparency" not in band.info:
        return band if band.mode == "RGB" else band.convert("RGB")
    band = band.convert("LA") if band.mode == "La" else band
    picture = band.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Return a view of pixels (h, w, 3), turned upright by their Exif orientation."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels[::-1] if orientation in (3, 4, 7, 8) else pixels


def _orientation(image: Image) -> int:
    """Return the Exif orientation, or 1 if there is none or it is not valid."""
    from PIL import Image

    try:
        # PNG's own getexif would decode the picture to look for a chunk after it, so the base class's one is used.
        found = Image.Image.getexif(image).get(_ORIENTATION)
    # A broken Exif block can raise any type of error.
    except Exception:  # noqa: BLE001
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1

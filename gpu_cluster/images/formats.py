"""Recognises pictures by the first bytes of their files, and says in words why a file is no usable picture.

Input: the first bytes of a file. Output: the format that they indicate, or a reason. This module must not know how a
picture is decoded.
"""

from __future__ import annotations

import functools

# Formats that Pillow opens and this package does not: for EPS Pillow runs Ghostscript on the file, the others it can
# only recognise.
NOT_READ = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
# Pillow does not read these formats; such a file is reported with its reason instead of being skipped.
_NOT_PILLOWS = frozenset({".heic", ".heif", ".hif"})

# First bytes of a file, and the format that they indicate.
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


@functools.cache
def suffixes() -> frozenset[str]:
    """Return the file name suffixes of pictures, in lower case with their dot."""
    from PIL import Image

    known = Image.registered_extensions()
    read = {suffix for suffix, kind in known.items() if kind in Image.OPEN and kind not in NOT_READ}
    return frozenset(read | _NOT_PILLOWS)


def format_of(head: bytes) -> str | None:
    """Return the format that a file's first `HEAD_BYTES` indicate, or None if they are not those of a picture."""
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    return _HEIF_BRANDS.get(head[8:12]) if head[4:8] == b"ftyp" else None


def is_memory(error: Exception) -> bool:
    """Return whether an error says that there is not enough memory."""
    # Pillow's decoders say it in an OSError, and libraries below it in others.
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower()


def is_passing(error: Exception) -> bool:
    """Return whether an error is not caused by a file's content (but by options, memory or the file system).

    Such an error may not occur again the next time.
    """
    from PIL import Image

    # Pillow's own OSErrors have no errno.
    from_system = isinstance(error, OSError) and error.errno is not None
    return from_system or is_memory(error) or isinstance(error, Image.DecompressionBombError)


def reason(head: bytes, error: Exception) -> str:
    """Return in plain words why a file, which begins with the bytes `head`, is not a usable picture."""
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

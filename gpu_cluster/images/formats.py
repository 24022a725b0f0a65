"""Recognises pictures by the content of their files, and says in words why a file is no usable picture.

Input: the first bytes of a file, or all of a TIFF. Output: the format that they indicate, or a reason. This module must
not know how a picture is decoded.
"""

from __future__ import annotations

import functools
import struct
from typing import IO

# Formats that Pillow opens and this package does not: for EPS Pillow runs Ghostscript on the file, the others it can
# only recognise.
NOT_READ = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
# Suffixes of formats that Pillow alone does not read; a damaged file is reported with its reason instead of skipped.
_HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
_RAW_SUFFIXES = frozenset({".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".srw"})

# First bytes of a file, and the format that they indicate.
_SIGNATURES = (
    (b"FUJIFILMCCD-RAW ", "RAF"),
    (b"IIRO", "ORF"),
    (b"IIRS", "ORF"),
    (b"MMOR", "ORF"),
    (b"IIU\x00", "RW2"),
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
_HEIF_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), "HEIC"),
    **dict.fromkeys((b"mif1", b"mif2", b"msf1"), "HEIF"),
    b"crx ": "CR3",
}
HEIF_FORMATS = frozenset({"HEIC", "HEIF"})
# Camera RAW by its suffix; RAW is a TIFF with what a sensor saw in it that is no DNG, such as NEF, ARW and PEF.
RAW_FORMATS = frozenset({"CR2", "CR3", "DNG", "ORF", "RAF", "RAW", "RW2"})
_BMP_HEADERS = frozenset({12, 40, 52, 56, 64, 108, 124})
HEAD_BYTES = 32

# Tags of TIFF 6.0 and DNG 1.7: the kind of colours, of compression, other directories, and the version of DNG.
_PHOTOMETRIC, _COMPRESSION, _SUB_IFDS, _DNG_VERSION = 262, 259, 330, 50706
# The colours of a sensor, and ways to compress them that only cameras use (Nikon, Pentax, Samsung, Sony).
_SENSOR = {_PHOTOMETRIC: {32803, 34892}, _COMPRESSION: {34713, 65535, 32770, 32772, 32767}}
_MOST_IFDS, _MOST_ENTRIES = 32, 512


class UnusableError(Exception):
    """A picture cannot be used; the message is the reason in plain words.

    Attributes
    ----------
    lasting : whether the file itself is at fault, so that another installation cannot use it either
    """

    def __init__(self, reason: str, *, lasting: bool = True) -> None:
        super().__init__(reason)
        self.lasting = lasting


@functools.cache
def suffixes() -> frozenset[str]:
    """Return the file name suffixes of pictures, in lower case with their dot."""
    from PIL import Image

    known = Image.registered_extensions()
    read = {suffix for suffix, kind in known.items() if kind in Image.OPEN and kind not in NOT_READ}
    return frozenset(read | _HEIF_SUFFIXES | _RAW_SUFFIXES)


def format_of(head: bytes) -> str | None:
    """Return the format that a file's first `HEAD_BYTES` indicate, or None if they are not those of a picture."""
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return "CR2" if name == "TIFF" and head[8:10] == b"CR" else name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    return _HEIF_BRANDS.get(head[8:12]) if head[4:8] == b"ftyp" else None


def raw_format_of(stream: IO[bytes]) -> str | None:
    """Return the format of camera RAW that an open file has, or None if it is no RAW.

    Most kinds of RAW are TIFFs, whose first picture is often a preview of the size of a stamp.
    """
    stream.seek(0)
    head = stream.read(HEAD_BYTES)
    kind = format_of(head)
    if kind in RAW_FORMATS:
        return kind
    if kind != "TIFF" or b"+" in head[2:4]:
        return None
    order = "<" if head[:2] == b"II" else ">"
    if len(head) < 8:
        return None
    seen: set[int] = set()
    waiting, is_raw = [struct.unpack_from(f"{order}I", head, 4)[0]], False
    while waiting and len(seen) < _MOST_IFDS:
        place = waiting.pop(0)
        if not place or place in seen:
            continue
        seen.add(place)
        tags, following = _directory(stream, place, order)
        if _DNG_VERSION in tags:
            return "DNG"
        is_raw |= any(not found.isdisjoint(tags.get(tag, ())) for tag, found in _SENSOR.items())
        waiting += [*tags.get(_SUB_IFDS, ()), following]
    return "RAW" if is_raw else None


def _directory(stream: IO[bytes], place: int, order: str) -> tuple[dict[int, tuple[int, ...]], int]:
    """Return the whole numbers of the tags of a directory of a TIFF, and the place of the next one, 0 if none."""
    stream.seek(place)
    count = stream.read(2)
    n = min(struct.unpack(f"{order}H", count)[0] if len(count) == 2 else 0, _MOST_ENTRIES)
    content = stream.read(12 * n + 4)
    tags: dict[int, tuple[int, ...]] = {}
    for at in range(0, min(12 * n, len(content) - 11), 12):
        tag, kind, length = struct.unpack_from(f"{order}HHI", content, at)
        letter = {1: "B", 3: "H", 4: "I", 13: "I"}.get(kind)
        if letter is None or length > _MOST_IFDS:
            tags[tag] = ()
            continue
        words, n_bytes = f"{order}{length}{letter}", length * struct.calcsize(letter)
        values = content[at + 8 : at + 12]
        if n_bytes > len(values):
            stream.seek(struct.unpack_from(f"{order}I", values)[0])
            values = stream.read(n_bytes)
        tags[tag] = struct.unpack_from(words, values) if len(values) >= n_bytes else ()
    following = content[12 * n : 12 * n + 4]
    return tags, struct.unpack(f"{order}I", following)[0] if len(following) == 4 else 0


def is_memory(error: Exception) -> bool:
    """Return whether an error says that there is not enough memory."""
    # Pillow's decoders say it in an OSError, and libraries below it in others.
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower()


def is_passing(error: Exception) -> bool:
    """Return whether an error is not caused by a file's content (but by options, memory or the file system).

    Such an error may not occur again the next time.
    """
    from PIL import Image

    if isinstance(error, UnusableError):
        return not error.lasting
    # Pillow's own OSErrors have no errno.
    from_system = isinstance(error, OSError) and error.errno is not None
    return from_system or is_memory(error) or isinstance(error, Image.DecompressionBombError)


def reason(head: bytes, error: Exception) -> str:
    """Return in plain words why a file, which begins with the bytes `head`, is not a usable picture."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnusableError):
        return str(error)
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
    if promised == "AVIF":
        return f"{promised}, which this Pillow cannot read; convert it to JPEG or PNG"
    if promised is not None:
        return f"begins as {promised}, but its header is damaged or cut short"
    return "not an image, or of an unknown format"

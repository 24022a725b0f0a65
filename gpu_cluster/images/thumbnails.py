"""Makes small copies of pictures for a page: single ones or on sprite sheets, as data URIs.

This module must not know what the pictures are shown for.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import IO, TYPE_CHECKING

from gpu_cluster.addresses import is_elsewhere
from gpu_cluster.files import content_hash, unescaped
from gpu_cluster.images import decoders
from gpu_cluster.images.decoders import UndecodableError
from gpu_cluster.images.source import LocalFiles, Source, UnreadableError, reading_threads
from gpu_cluster.manifest import FileFacts, Manifest
from gpu_cluster.store.copies import CopyShards

if TYPE_CHECKING:
    from PIL.Image import Image

# Number of thumbnails in a line of a sprite sheet, and of lines in a sheet.
COLUMNS = 32

# The longest side of a copy that is kept with a scan, in pixels: that of the largest ones on a page.
KEPT_SIDE = 160

# The longest side of a copy that is taken from a file, in pixels; those of a page are much smaller.
_MOST_SIDE = 1_024

# The colour in place of a missing picture; it is visible in print and in dark mode.
GREY = "#BBBBBB"

# Of a JPEG without a preview in its header: the name and the length of its first segment, and the end marker.
_JFIF, _END = ("APP0", 14), b"\xff\xd9"


@dataclass(frozen=True)
class Sheets:
    """Sprite sheets of 32 x 32 squares as data URIs, and the width and height of each picture on them in pixels."""

    uris: list[str]
    sizes: list[tuple[int, int]]


class Thumbnails:
    """Small copies of pictures, each made once; grey if a picture is gone or cannot be read.

    Attributes
    ----------
    gone : rows whose file was looked for and is not there, or has other content
    n_looked_for : number of rows whose file was looked for
    """

    def __init__(
        self,
        source: Source | None,
        paths: Iterable[str],
        *,
        kept: Mapping[str, bytes] | None = None,
        hashes: Iterable[str] | None = None,
        again: bool = False,
    ) -> None:
        """Set the pictures.

        Parameters
        ----------
        source
            Where the pictures are; None if this is not known, so that there are only the kept copies.
        paths
            Locations in `source`, as tables show them.
        kept
            Copies that were made earlier, JPEG, by path; they are used instead of reading the picture. What is no
            small JPEG is no copy, and what a copy holds beside pixels, as those of earlier versions do, is left out.
        hashes
            Hash of each picture's content. If given, a file with other content is another picture, and this one counts
            as gone.
        again
            Whether each picture is read again, and a kept copy is used only for a picture that is gone.
        """
        self._source = source
        self._paths = list(paths)
        self._kept = kept or {}
        self._hashes = None if hashes is None else list(hashes)
        self._again = again
        self._made: dict[int, bytes] = {}
        self._sought: set[int] = set()
        self.gone: set[int] = set()

    @property
    def n_looked_for(self) -> int:
        return len(self._sought)

    def make(self, rows: Iterable[int], side: int) -> None:
        """Make copies, no side longer than `side`, of these rows that have none yet, with a thread on every core.

        Pillow releases Python's global lock while it decodes.
        """
        missing = sorted({int(row) for row in rows} - set(self._made))
        with reading_threads() as pool:
            self._made |= dict(zip(missing, pool.map(lambda row: self._copy(row, side), missing), strict=True))

    def uri(self, row: int) -> str:
        """Return the copy of a row, which has been made, as a data URI."""
        return _as_uri(self._made[row])

    def small_uri(self, row: int, side: int) -> str:
        """Return the copy of a row, which has been made, with no side longer than `side`, as a data URI."""
        tile = _opened(self._made[row])
        tile.thumbnail((side, side))
        return _as_uri(_as_jpeg(tile))

    def copy(self, row: int) -> bytes:
        """Return the copy of a row, which has been made, as JPEG; nothing if it is grey."""
        return self._made[row]

    def image(self, row: int) -> Image:
        """Return the copy of a row, which has been made, as an image; a grey one if there is none to show."""
        return _opened(self._made[row])

    def copies(self) -> dict[str, bytes]:
        """Return every copy that shows its picture, JPEG, by path; none of the grey ones."""
        return {self._paths[row]: copy for row, copy in sorted(self._made.items()) if copy}

    def sheets(self, rows: Sequence[int], side: int) -> Sheets:
        """Return sprite sheets of copies of up to `side` pixels, line by line in the order of the rows; all are made.

        A copy lies in the upper left corner of its square.
        """
        from PIL import Image

        per, uris, sizes = COLUMNS * COLUMNS, [], []
        for first in range(0, len(rows), per):
            part = rows[first : first + per]
            sheet = Image.new("RGB", (COLUMNS * side, -(-len(part) // COLUMNS) * side), "white")
            for number, row in enumerate(part):
                line, column = divmod(number, COLUMNS)
                tile = _opened(self._made[row])
                tile.thumbnail((side, side))
                sheet.paste(tile, (column * side, line * side))
                sizes.append(tile.size)
            uris.append(_as_uri(_as_jpeg(sheet)))
        return Sheets(uris, sizes)

    def _copy(self, row: int, side: int) -> bytes:
        """Return the copy of a row as JPEG; nothing if there is none to show."""
        path = self._paths[row]
        kept = _pixels_only(_checked(self._kept.get(path, b"")))
        if kept and not self._again:
            return kept
        self._sought.add(row)
        if self._source is None or (is_elsewhere(path) and isinstance(self._source, LocalFiles)):
            self.gone.add(row)
            return kept
        try:
            location = real_location(self._source, path)
            stream, _stat = self._source.open(location)
        except UnreadableError:
            self.gone.add(row)
            return kept
        with stream:
            try:
                if self._hashes is not None and content_hash(stream) != self._hashes[row]:
                    self.gone.add(row)
                    return kept
                stream.seek(0)
                return _as_jpeg(_small(stream, location, side))
            # The file was damaged since, or only TensorFlow can read it; a grey tile is better than no page.
            except (UndecodableError, OSError):
                return kept


class KeptSmall:
    """The small copies, kept with scans, of those of some pictures that are no files of this machine."""

    def __init__(self, source: Source, manifest: Manifest, rows: Iterable[int], copies: CopyShards | None) -> None:
        """Set the rows of the pictures, and where the copies are kept, if they are; they are read when asked for."""
        self._hash_of = (
            {}
            if copies is None or not len(manifest.listed)
            else {
                manifest.paths[row]: str(manifest.files[row].content_hash)
                for row in rows
                if source.local_path(manifest.paths[row]) is None
            }
        )
        self._copies = copies
        self._found: dict[str, bytes] | None = None
        self._lock = Lock()

    def by_location(self) -> dict[str, bytes]:
        """Return the copies, JPEG, by the locations of the pictures."""
        with self._lock:
            if self._found is None:
                assert self._copies is not None or not self._hash_of, "see above"
                of = {} if self._copies is None else self._copies.find(self._hash_of.values())
                found = {location: of.get(digest, b"") for location, digest in self._hash_of.items()}
                self._found = {location: copy for location, copy in found.items() if copy}
        return self._found


def copy_of(content: bytes, suffix: str) -> bytes:
    """Return a small copy of a picture that is no file of this machine, JPEG; nothing if it cannot be decoded.

    It is kept with the scan, so that reports need not read the picture again.
    """
    try:
        return _as_jpeg(_small(io.BytesIO(content), suffix, KEPT_SIDE))
    except (UndecodableError, OSError):
        return b""


def _checked(copy: bytes) -> bytes:
    """Return a kept copy; nothing if it is no JPEG of the size of a copy. Somebody else may have put it there."""
    from PIL import Image

    if not copy:
        return b""
    try:
        # Of the formats that Pillow knows, some take much memory, and one is given to another program.
        with Image.open(io.BytesIO(copy), formats=["JPEG"]) as image:
            return copy if max(image.size) <= _MOST_SIDE else b""
    # Pillow raises many types of errors for a damaged file.
    except Exception:  # noqa: BLE001
        return b""


def small(source: Source, location: str, side: int, kept: bytes | None = None) -> Image | None:
    """Return a copy of a picture with no side longer than `side`; None if it can no longer be read.

    It is made of a larger copy that is kept, if there is one.
    """
    if kept:
        copy = _opened(kept)
        copy.thumbnail((side, side))
        return copy
    try:
        stream, _stat = source.open(location)
        with stream:
            return _small(stream, location, side)
    # The file was moved or edited, or only TensorFlow can read it; a grey tile is better than no page.
    except (UnreadableError, UndecodableError, OSError):
        return None


def is_unchanged(source: Source, location: str, facts: FileFacts) -> bool:
    """Return whether a file still has the size and the times of change that the scan found.

    What is no file of this machine is not asked for again: it was compared with its hash when it was read.
    """
    try:
        stat = source.stat(location, facts)
    except UnreadableError:
        return False
    return stat.is_of(facts)


def _small(stream: IO[bytes], location: str, side: int) -> Image:
    from PIL import Image

    return Image.fromarray(decoders.current().small(stream, os.path.splitext(location)[1], side))


def real_location(source: Source, shown: str) -> str:
    r"""Return the location for a path as a table shows it (see `files.escaped`).

    Tables of the version before left a backslash as it was, so the name as it is shown is tried too.
    """
    location = unescaped(shown)
    if location == shown or _is_there(source, location) or not _is_there(source, shown):
        return location
    return shown


def _is_there(source: Source, location: str) -> bool:
    try:
        source.stat(location)
    # There is no such file, or the name with its escapes is too long for the file system.
    except UnreadableError:
        return False
    return True


def _as_jpeg(image: Image) -> bytes:
    """Return the pixels of an image as JPEG, and nothing else: no comment, Exif, XMP or colour profile of the original.

    Pillow would write the comment of the original again. The pixels are sRGB already, as the network sees them.
    """
    from PIL import Image

    pixels = Image.new("RGB", image.size)
    pixels.paste(image)
    stream = io.BytesIO()
    pixels.save(stream, "jpeg", quality=75)
    return stream.getvalue()


def _pixels_only(jpeg: bytes) -> bytes:
    """Return a copy that was made earlier, encoded again if it holds anything but pixels; nothing if it is nothing."""
    if not jpeg:
        return jpeg
    image = _opened(jpeg)
    # What Pillow writes begins with a JFIF segment, the only one that holds no pixels, and ends with the end marker,
    # which cannot occur in the pixels.
    segments = [(name, len(content)) for name, content in getattr(image, "applist", ())]
    is_ours = segments == [_JFIF] and jpeg.find(_END) == len(jpeg) - len(_END)
    return jpeg if is_ours else _as_jpeg(image)


def _opened(jpeg: bytes) -> Image:
    """Return the copy as an image; a grey one if there is none."""
    from PIL import Image

    return Image.open(io.BytesIO(jpeg)) if jpeg else Image.new("RGB", (64, 64), GREY)


def _as_uri(jpeg: bytes) -> str:
    content = jpeg or _as_jpeg(_opened(b""))
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"

"""Small copies of pictures for a page: one by one or on sprite sheets, as data URIs.

Must not know what the pictures are shown for.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from gpu_cluster.images.decode import shrunk
from gpu_cluster.images.source import Source, UnreadableError, unescaped

if TYPE_CHECKING:
    from PIL.Image import Image

# Pixels a side at most, and thumbnails a line and lines of a sheet.
TILE, COLUMNS = 64, 32

# For what is not there, on paper and in the dark.
GREY = "#BBBBBB"


class Thumbnails:
    """Small copies of pictures, each made once; grey where a picture is gone or cannot be read any more."""

    def __init__(self, source: Source, paths: Iterable[str]) -> None:
        """Take the pictures by their locations in `source`, as tables show them."""
        self._source = source
        self._paths = list(paths)
        self._made: dict[int, Image] = {}

    def make(self, rows: Sequence[int]) -> None:
        """Make those of these rows that are not made yet, on every core: Pillow decodes without Python's lock."""
        missing = sorted({int(row) for row in rows} - set(self._made))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            self._made |= dict(zip(missing, pool.map(self._tile, missing), strict=True))

    def source(self, row: int) -> str:
        """Return a picture as a data URI."""
        self.make([row])
        return _as_uri(self._made[row])

    def sheets(self, rows: Sequence[int]) -> Iterator[str]:
        """Yield sprite sheets of 32 x 32 thumbnails, row by row in this order, as data URIs."""
        from PIL import Image

        per = COLUMNS * COLUMNS
        self.make(rows)
        for first in range(0, len(rows), per):
            part = rows[first : first + per]
            sheet = Image.new("RGB", (COLUMNS * TILE, -(-len(part) // COLUMNS) * TILE), "white")
            for number, row in enumerate(part):
                line, column = divmod(number, COLUMNS)
                tile = self._made[row]
                corner = (column * TILE + (TILE - tile.width) // 2, line * TILE + (TILE - tile.height) // 2)
                sheet.paste(tile, corner)
            yield _as_uri(sheet)

    def _tile(self, row: int) -> Image:
        return small(self._source, _location(self._source, self._paths[row]), TILE)


def small(source: Source, location: str, side: int) -> Image:
    """Return a picture with no side longer than this; grey where it cannot be read any more."""
    from PIL import Image

    try:
        stream, _stat = source.open(location)
        with stream:
            return shrunk(stream, os.path.splitext(location)[1], side)
    # Moved, edited, or only TensorFlow could read it: a grey tile is better than no page.
    except Exception:  # noqa: BLE001
        return Image.new("RGB", (side, side), GREY)


def _location(source: Source, shown: str) -> str:
    r"""Return the location that a table shows, in which `\xNN` may stand for a byte that is not UTF-8."""
    try:
        source.stat(shown)
    # Too long with an escape for every byte, or not there.
    except UnreadableError:
        return unescaped(shown)
    return shown


def _as_uri(image: Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "jpeg", quality=72)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"

"""Makes small copies of pictures for a page: single ones or on sprite sheets, as data URIs.

This module must not know what the pictures are shown for.
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

# Largest side of a thumbnail in pixels; number of thumbnails in a line of a sheet, and of lines in a sheet.
TILE, COLUMNS = 64, 32

# The colour in place of a missing picture; it is visible in print and in dark mode.
GREY = "#BBBBBB"


class Thumbnails:
    """Small copies of pictures, each made once; grey if a picture is gone or can no longer be read."""

    def __init__(self, source: Source, paths: Iterable[str]) -> None:
        """Set the pictures: their locations in `source`, as tables show them."""
        self._source = source
        self._paths = list(paths)
        self._made: dict[int, Image] = {}

    def make(self, rows: Sequence[int]) -> None:
        """Make the thumbnails of these rows that are not made yet, with a thread on every core.

        Pillow releases Python's global lock while it decodes.
        """
        missing = sorted({int(row) for row in rows} - set(self._made))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            self._made |= dict(zip(missing, pool.map(self._tile, missing), strict=True))

    def source(self, row: int) -> str:
        """Return the thumbnail of a row as a data URI."""
        self.make([row])
        return _as_uri(self._made[row])

    def sheets(self, rows: Sequence[int]) -> Iterator[str]:
        """Yield sprite sheets of 32 x 32 thumbnails as data URIs; `rows` fill them line by line, in their order."""
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
    """Return a copy of a picture with no side longer than `side`; a grey one if it can no longer be read."""
    from PIL import Image

    try:
        stream, _stat = source.open(location)
        with stream:
            return shrunk(stream, os.path.splitext(location)[1], side)
    # The file was moved or edited, or only TensorFlow can read it; a grey tile is better than no page.
    except Exception:  # noqa: BLE001
        return Image.new("RGB", (side, side), GREY)


def _location(source: Source, shown: str) -> str:
    r"""Return the location for a path as a table shows it, in which `\xNN` may stand for a byte that is not UTF-8."""
    try:
        source.stat(shown)
    # There is no such file, or the name with its escapes is too long for the file system.
    except UnreadableError:
        return unescaped(shown)
    return shown


def _as_uri(image: Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "jpeg", quality=72)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"

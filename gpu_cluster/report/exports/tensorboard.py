"""Writes the files of TensorBoard's Embedding Projector: vectors, what is said of each picture, and a sprite image.

Formats and limits are those of tensorboard 2.21 (`plugins/projector`), which reads the folder by `tensorboard
--logdir`. TensorFlow is not needed. This module must not know where embeddings and pictures come from.
"""

from __future__ import annotations

import codecs
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_cluster.backend import FloatArray, IntArray, Rows
from gpu_cluster.errors import JobError
from gpu_cluster.events import Observer, interrupted
from gpu_cluster.images.thumbnails import Thumbnails
from gpu_cluster.report.html import visible
from gpu_cluster.sampling import sorted_sample
from gpu_cluster.words import count

if TYPE_CHECKING:
    from PIL.Image import Image

# The projector loads at most 100,000 points, and computes t-SNE of 10,000 of them. With the default features, 10,000
# take 92 MB in the browser.
MOST_POINTS = 10_000

#: Longest side of a picture on the sprite, in pixels, and of the sprite itself, which is the projector's limit.
SIDE, MOST_SPRITE_SIDE = 64, 8_192

#: The name of the tensor, and the files of this format.
NAME, CONFIG, METADATA, SPRITE = "embeddings", "projector_config.pbtxt", "metadata.tsv", "sprite.jpg"
BINARY, TEXT = "vectors.bytes", "vectors.tsv"

# What is said of a picture, if the run has it. By default the projector shows the first column of text beside a point.
_COLUMNS = ("path", "cluster", "group", "label", "distance", "silhouette", "is_medoid")

_DTYPE = np.dtype("<f4")

# Vectors that are taken at a time, and what is looked at of them to see whether they could be text.
_BLOCK_BYTES, _LOOKED_AT_BYTES = 1 << 26, 1 << 16


def write_tensorboard(
    folder: Path, pictures: Any, x: Rows, thumbnails: Thumbnails, observer: Observer, *, most_points: int = MOST_POINTS
) -> IntArray:
    """Write the projector's files into a folder; return the rows of the pictures that are in them, ascending.

    Of more than `most_points` pictures, it is a random sample, always the same, which a notice says. If none of the
    pictures can be found any more, there is no sprite.

    Parameters
    ----------
    folder
        An empty folder.
    pictures
        Data frame with one row for each picture: the columns of `assignments.parquet`, and `group`, the name of its
        cluster, if there are names.
    x
        Rows (n, d) float32 of a `CpuBackend`, in the same order.
    thumbnails
        Small copies of the pictures, in the same order; those that are needed are made here.

    Raises
    ------
    JobError
        When there are other rows than pictures.
    InterruptedJobError
        When the observer asked to stop.
    OSError
        When a file cannot be written.

    Memory: 64 MiB of rows, and what it takes to join them; the small copies and the sprite, 160 MB for 10,000 pictures.
    """
    n, d = x.shape
    if len(pictures) != n:
        raise JobError(f"expected an embedding for each of {len(pictures):,} pictures, found {n:,}; please report it")
    rows = sorted_sample(n, most_points, np.random.RandomState(0))
    if len(rows) < n:
        observer.notice(
            f"TensorBoard gets a random sample of {len(rows):,} of {count(n, 'picture')}, always the same: its "
            "projector becomes slow with more points"
        )
    vectors = _write_vectors(folder, _blocks(x, rows, observer))
    (folder / METADATA).write_text(_metadata(pictures.iloc[rows]), encoding="utf-8", newline="\n")
    side = _write_sprite(folder / SPRITE, thumbnails, rows, observer)
    (folder / CONFIG).write_text(_config(vectors, (len(rows), d), side), encoding="utf-8", newline="\n")
    return rows


def _blocks(x: Rows, rows: IntArray, observer: Observer) -> Iterator[FloatArray]:
    # Few and large: a sample lies in all shards of a store, and each block of it reads all of them.
    at_a_time = max(1, _BLOCK_BYTES // (_DTYPE.itemsize * x.shape[1]))
    for first in range(0, len(rows), at_a_time):
        part = rows[first : first + at_a_time]
        yield np.ascontiguousarray(x.take(part), _DTYPE)
        observer.progress("export", first + len(part), len(rows))
        if observer.stopping():
            raise interrupted()


def _write_vectors(folder: Path, blocks: Iterator[FloatArray]) -> str:
    """Write the vectors, and return the name of their file.

    TensorBoard reads a file of vectors as text, and as binary numbers only if its first line is no UTF-8. So vectors
    that could be taken for text, which is possible only if they are very short or simple, are written as text, with the
    digits that give the same float32.
    """
    first = next(blocks)
    if _looks_like_text(first.reshape(-1)[: _LOOKED_AT_BYTES // _DTYPE.itemsize].tobytes()):
        with (folder / TEXT).open("w", encoding="ascii", newline="\n") as text:
            for block in (first, *blocks):
                text.writelines("\t".join(f"{value:.9g}" for value in row) + "\n" for row in block.tolist())
        return TEXT
    with (folder / BINARY).open("wb") as stream:
        stream.write(first.data)
        for block in blocks:
            stream.write(block.data)
    return BINARY


def _looks_like_text(content: bytes) -> bool:
    try:
        # A character may go on behind the content.
        codecs.getincrementaldecoder("utf-8")().decode(content.partition(b"\n")[0])
    except UnicodeDecodeError:
        return False
    return True


def _metadata(pictures: Any) -> str:
    """Return a line for each picture, after one with the names of the columns; nothing in a cell breaks a line."""
    columns = [name for name in _COLUMNS if name in pictures and not pictures[name].isna().all()]
    cells = [_cells(pictures[name]) for name in columns]
    lines = ["\t".join(columns), *("\t".join(line) for line in zip(*cells, strict=True))]
    return "".join(f"{line}\n" for line in lines)


def _cells(column: Any) -> list[str]:
    # An empty cell is a label that a picture lacks; among numbers, the projector would take it for 0.
    if column.dtype.kind in "fiub":
        return [str(value) for value in column.to_numpy()]
    return [visible(value) if isinstance(value, str) else "" for value in column]


def _write_sprite(file: Path, thumbnails: Thumbnails, rows: IntArray, observer: Observer) -> int | None:
    """Write small copies line by line, in as many columns as lines; return the side of their squares, in pixels.

    None if no picture could be found, and there is no sprite.
    """
    from PIL import Image

    columns = math.ceil(math.sqrt(len(rows)))
    side = min(SIDE, MOST_SPRITE_SIDE // columns)
    thumbnails.make(rows, side)
    if not any(thumbnails.copy(row) for row in rows.tolist()):
        observer.notice("None of the pictures can be found any more: TensorBoard shows points without pictures")
        return None
    # The projector takes it for a square of squares.
    sprite = Image.new("RGB", (columns * side, columns * side), "white")
    for number, row in enumerate(rows.tolist()):
        line, column = divmod(number, columns)
        tile = _within(thumbnails.image(row), side)
        at = (column * side + (side - tile.width) // 2, line * side + (side - tile.height) // 2)
        sprite.paste(tile, at)
    stream = io.BytesIO()
    sprite.save(stream, "jpeg", quality=85)
    file.write_bytes(stream.getvalue())
    return side


def _within(picture: Image, side: int) -> Image:
    picture.thumbnail((side, side))
    return picture


def _config(vectors: str, shape: Sequence[int], side: int | None) -> str:
    """Return the message `ProjectorConfig` (tensorboard's projector_config.proto) in Protocol Buffers' text format."""
    lines = [
        f'  tensor_name: "{NAME}"',
        f'  tensor_path: "{vectors}"',
        *(f"  tensor_shape: {size}" for size in shape),
        f'  metadata_path: "{METADATA}"',
    ]
    if side is not None:
        lines += [
            "  sprite {",
            f'    image_path: "{SPRITE}"',
            f"    single_image_dim: {side}",
            f"    single_image_dim: {side}",
            "  }",
        ]
    return "\n".join(["embeddings {", *lines, "}", ""])

"""Writes the embeddings of a run as an array with a list of names, and as a Parquet table; both have the same rows.

`gpu-cluster run --embeddings` reads either of them. This module must not know where the embeddings come from.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_cluster.backend import FloatArray, Rows
from gpu_cluster.errors import JobError
from gpu_cluster.events import Observer, interrupted
from gpu_cluster.files import unescaped

if TYPE_CHECKING:
    import pyarrow as pa

#: The files of this format. The list of names is the one that is looked for beside the array.
ARRAY, NAMES, TABLE = "embeddings.npy", "embeddings.txt", "embeddings.parquet"

_DTYPE = np.dtype("<f4")


def write_embeddings(folder: Path, pictures: Any, x: Rows, observer: Observer) -> None:
    """Write `embeddings.npy`, `embeddings.txt` and `embeddings.parquet` into a folder.

    Parameters
    ----------
    folder
        An empty folder.
    pictures
        Data frame with one row for each picture: `path`, `content_hash`, `cluster`, as in `assignments.parquet`.
    x
        Rows (n, d) float32 of a `CpuBackend`, in the same order; they are read once.

    Raises
    ------
    JobError
        When there are other rows than pictures.
    InterruptedJobError
        When the observer asked to stop.
    OSError
        When a file cannot be written.

    Memory: a block of 2,048 rows, twice.
    """
    import pyarrow.parquet as pq

    n, d = x.shape
    if len(pictures) != n:
        raise JobError(f"expected an embedding for each of {len(pictures):,} pictures, found {n:,}; please report it")
    (folder / NAMES).write_bytes(names_list(list(pictures["path"])))
    schema = _schema(d)
    with ExitStack() as until_the_end:
        array = until_the_end.enter_context((folder / ARRAY).open("wb"))
        header = {"descr": _DTYPE.str, "fortran_order": False, "shape": (n, d)}
        np.lib.format.write_array_header_1_0(array, header)
        # Embeddings hardly compress, and the same one is seldom in two rows.
        table = until_the_end.enter_context(
            pq.ParquetWriter(folder / TABLE, schema, compression="none", use_dictionary=["cluster"])
        )
        for rows, found in x.blocks():
            block = np.ascontiguousarray(found, _DTYPE)
            array.write(block.data)
            table.write_table(_part(pictures.iloc[rows], block, schema))
            observer.progress("export", rows.stop, n)
            if observer.stopping():
                raise interrupted()


def names_list(paths: Sequence[str]) -> bytes:
    r"""Return the content of a list that names these pictures, given as tables show them (see `files.escaped`).

    There is one on each line. If a name has a newline, or looks like what an editor writes at the beginning of a file,
    they are separated by NUL bytes instead and have no escapes.
    """
    if any("\n" in path for path in paths) or (paths and paths[0].startswith(codecs.BOM_UTF8.decode())):
        return b"".join(os.fsencode(unescaped(path)) + b"\0" for path in paths)
    return "".join(f"{path}\n" for path in paths).encode()


def _schema(d: int) -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("path", pa.string(), nullable=False),
            pa.field("content_hash", pa.string()),
            pa.field("cluster", pa.int32(), nullable=False),
            pa.field("embedding", pa.list_(pa.float32(), d), nullable=False),
        ]
    )


def _part(pictures: Any, block: FloatArray, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    columns = [pa.array(list(pictures[name]), schema.field(name).type) for name in ("path", "content_hash", "cluster")]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), block.shape[1])
    return pa.table([*columns, vectors], schema=schema)

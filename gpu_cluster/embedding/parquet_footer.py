"""Reads what a Parquet file declares of its columns, without trusting it.

Arrow ends the process for some damaged footers, when it is asked for a column of a group of rows. Therefore this file
is also a script that asks in a process of its own, and writes what it found to its standard output. As a script it must
import nothing of the package, so that it starts quickly.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_MOST_SECONDS = 60


@dataclass(frozen=True)
class Declared:
    """What the footer says: the rows, the values in the column that was asked for, and all bytes when unpacked."""

    n_rows: int
    n_values: int
    n_bytes: int


def declared_apart(path: Path, column: str) -> Declared:
    """Return what a file declares of a column, which may have inner ones; it is read in a process of its own.

    Raises
    ------
    ValueError
        When the process dies or is too slow, or the file cannot be read.
    """
    # `-P` keeps the folder of this file, whose modules have common names, out of the path of imports.
    command = [sys.executable, "-P", os.path.abspath(__file__), os.fspath(path), column]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_MOST_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ValueError(f"its footer is not read in {_MOST_SECONDS} s") from None
    if done.returncode < 0:
        raise ValueError("its footer is damaged: Arrow ends the process that reads it")
    if done.returncode:
        raise ValueError(done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2])
    return Declared(*json.loads(done.stdout))


def _declared(path: str, column: str) -> Declared:
    import pyarrow.parquet as pq

    with open(path, "rb") as stream:
        facts = pq.ParquetFile(stream, pre_buffer=False).metadata
        groups = [facts.row_group(number) for number in range(facts.num_row_groups)]
        chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
        n_values = sum(chunk.num_values for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)
        return Declared(facts.num_rows, n_values, sum(chunk.total_uncompressed_size for chunk in chunks))


if __name__ == "__main__":
    found = _declared(*sys.argv[1:])
    sys.stdout.write(json.dumps([found.n_rows, found.n_values, found.n_bytes]))

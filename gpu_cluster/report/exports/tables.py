r"""The pictures of a run as one table for other tools: CSV, Parquet, JSON, and a CSV of labels.

A path in any of them is written as in the tables of a run: a byte that is not UTF-8 is `\xNN` (see `files.escaped`).
This module must not know where the run is or where the table goes.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_cluster.report.tables import csv_of

if TYPE_CHECKING:
    import pandas as pd

#: The name of the file of each format in a folder.
FILES: Mapping[str, str] = {
    "csv": "pictures.csv",
    "parquet": "pictures.parquet",
    "json": "pictures.json",
    "labels": "labels.csv",
}

# Every table of pictures has these columns, of whatever version the run is; and those of a table of labels, which are
# the ones that `run --labels` looks for by default.
_PICTURES, _LABELS = ("path", "cluster", "group"), ("file", "label")
_MARK = b'"export_of": "gpu-cluster"'
# A header, and the beginning of the JSON, are never longer than this.
_MOST_HEADER_BYTES = 4_096


def with_groups(pictures: pd.DataFrame, groups: Sequence[str]) -> pd.DataFrame:
    """Return the assignments of a run with a column `group` behind `cluster`; `groups` has the name of each cluster."""
    table = pictures.copy(deep=False)
    names = np.array(groups, dtype=object)[table["cluster"].to_numpy()]
    table.insert(list(table.columns).index("cluster") + 1, "group", names)
    return table


def content_of(to: str, table: pd.DataFrame, facts: Mapping[str, Any], *, safe: bool) -> bytes:
    """Return the content of the file of a format, from a table that `with_groups` made.

    `facts` are what a JSON file says of the run. With `safe`, a CSV can be opened by a spreadsheet safely.
    """
    if to == "csv":
        return csv_of(table, safe=safe).encode()
    if to == "labels":
        return csv_of(table[["path", "group"]].set_axis(list(_LABELS), axis="columns"), safe=False).encode()
    if to == "parquet":
        stream = io.BytesIO()
        table.to_parquet(stream, index=False)
        return stream.getvalue()
    return "".join(_json(table, facts)).encode()


def _json(table: pd.DataFrame, facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the parts of an object with the facts, and with one object for each picture, on a line of its own."""
    yield "{" + f"\n{_MARK.decode()},\n"
    for name, value in facts.items():
        yield f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)},\n"
    yield '"pictures": ['
    columns = [_values(table[name]) for name in table.columns]
    for number, row in enumerate(zip(*columns, strict=True)):
        content = dict(zip(table.columns, row, strict=True))
        yield f"{',' if number else ''}\n{json.dumps(content, ensure_ascii=False, allow_nan=False)}"
    yield "\n]\n}\n"


def _values(column: pd.Series[Any]) -> list[Any]:
    """Return the values of a column for JSON: None where there is none, a float32 with as few digits as it needs."""
    if column.dtype == np.float32:
        return [float(str(value)) if np.isfinite(value) else None for value in column.to_numpy()]
    return [None if missing else value for value, missing in zip(column.tolist(), column.isna(), strict=True)]


def is_table_of(to: str, path: Path) -> bool:
    """Return whether a file is one that an export to this format may have written.

    Raises
    ------
    OSError
        When it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if to == "parquet":
        try:
            with path.open("rb") as stream:
                return set(_PICTURES) <= set(pq.read_schema(stream).names)
        except pa.ArrowException:
            return False
    with path.open("rb") as stream:
        beginning = stream.read(_MOST_HEADER_BYTES)
    if to == "json":
        return _MARK in beginning
    header = next(csv.reader([beginning.partition(b"\n")[0].decode("utf-8", "replace").rstrip("\r")]), [])
    return header == list(_LABELS) if to == "labels" else set(_PICTURES) <= set(header)

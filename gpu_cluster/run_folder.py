"""The names of the files in a run folder, and a finished run, which reads them.

This module must not know how the folder is made (see `staging`), or what is done with the content of its files.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from gpu_cluster.bounded import MIB, UnfitError, check_parquet, parse_json, read
from gpu_cluster.config import DecodingConfig
from gpu_cluster.errors import DataError, GpuClusterError
from gpu_cluster.files import printable
from gpu_cluster.portable import Rewrite, portable_record, rewriting, rewritten, weights_in
from gpu_cluster.words import from_spreadsheet

# The files of a run folder; their names are defined only here.
INVENTORY = "inventory.json"
RECORD = "run.json"
BAD_FILES = "bad_files.csv"
MANIFEST = "manifest.parquet"
ASSIGNMENTS = "assignments.csv"
ASSIGNMENTS_PARQUET = "assignments.parquet"
NEAR_DUPLICATES = "near_duplicates.csv"
SWEEP = "sweep.csv"
METRICS = "metrics.json"
MODEL = "model"
PLOTS = "plots"
PAGE = "report.html"
THUMBNAILS = "thumbnails.parquet"
EVENTS = "events.jsonl"
# Where the embeddings of a run without a store lie until it ends; no finished run has it.
SCRATCH = "embeddings"
COMPARISON = "compare.csv"
COMPARISON_PAGE = "compare.md"
COMPARISON_PLOT = f"{PLOTS}/compare.png"

# Every run folder holds both of these.
_MARKS = frozenset({RECORD, BAD_FILES})

# All that a run can write.
CONTENTS = _MARKS | {
    INVENTORY,
    MANIFEST,
    ASSIGNMENTS,
    ASSIGNMENTS_PARQUET,
    NEAR_DUPLICATES,
    SWEEP,
    METRICS,
    MODEL,
    PLOTS,
    PAGE,
    THUMBNAILS,
    EVENTS,
    SCRATCH,
    COMPARISON,
    COMPARISON_PAGE,
}
# All that a run can write into its folders.
CONTENTS_OF = {
    MODEL: re.compile(r"model\.json|arrays\.npz"),
    # As `store.shards` and `files.write_whole` name them.
    SCRATCH: re.compile(
        r"(_key\.json|shard-[0-9a-f]{32}\.parquet)|\.(_key\.json|shard-[0-9a-f]{32}\.parquet)\.[0-9]+-[0-9a-f]{8}\.tmp"
    ),
    PLOTS: re.compile(r"(elbow|scatter|scatter_labels|silhouette|compare|cluster_[0-9]{2,})\.png"),
}

# Run folders that a message names, and the most characters of an error of a library that it shows.
_MOST_NAMED, _MOST_SHOWN = 3, 500

# The key of the folder of the pictures in the metadata of the small copies.
_ROOT = b"root"


# The largest of these files that are read, by their names' ends.
_MOST_BYTES = {
    ".json": 128 * MIB,
    ".parquet": 4_096 * MIB,
    ".csv": 1_024 * MIB,
    ".jsonl": 1_024 * MIB,
    ".png": 64 * MIB,
}
# The line of a table that names its columns is never longer than this.
_MOST_HEADER_BYTES = 4_096
_PNG = b"\x89PNG\r\n\x1a\n"


class FinishedRun:
    """The content of a finished run's folder; each file is read when it is first used.

    The files may have been changed or damaged, or made by somebody else to do harm. Reading takes no more memory than
    their sizes allow, waits for no pipe and follows no link, and raises any error of the file system or of the parsers.
    """

    def __init__(self, folder: Path, *, portable: bool = False) -> None:
        """Set the folder; with `portable`, `record` and `metrics` have no absolute paths, whatever the files say."""
        self.folder = folder
        self._portable = portable

    @cached_property
    def _as_recorded(self) -> dict[str, Any]:
        return dict(parse_json(self._read(RECORD)))

    @cached_property
    def record(self) -> dict[str, Any]:
        """What was run, on which device, how long it took, and the notices that were reported."""
        return portable_record(self._as_recorded) if self._portable else self._as_recorded

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """All scores, and how k was chosen."""
        found = dict(parse_json(self._read(METRICS)))
        if not 1 <= int(found["k"]) <= len(self.pictures):
            raise UnfitError(
                f"expected from 1 to {len(self.pictures):,} groups in {METRICS}, one for each picture at most; found "
                f"{found['k']}"
            )
        if self._portable and found["labels"] is not None:
            found["labels"] = rewritten(found["labels"], self._rewriting)
        return found

    @property
    def is_portable(self) -> bool:
        """Whether `record` has no absolute path."""
        return self.record["root"] is None

    @property
    def _rewriting(self) -> Rewrite:
        root, found = self._as_recorded["root"], self._as_recorded
        known = [] if root is None else [Path(root), *weights_in(found), self.folder]
        return rewriting(found["config"], *known)

    def portable_files(self) -> Iterator[tuple[str, bytes]]:
        """Yield the names and the new contents of the files that had absolute paths; for `portable`.

        They are the record, the metrics and the events. The record is the last, because the others are rewritten by
        what it says.
        """
        events = self._read(EVENTS).decode().splitlines()
        lines = (json.dumps(rewritten(parse_json(line), self._rewriting)) for line in events)
        yield EVENTS, "".join(f"{line}\n" for line in lines).encode()
        yield METRICS, as_json(self.metrics)
        yield RECORD, as_json(self.record)

    @cached_property
    def pictures(self) -> Any:
        """The table with one row for each embedded picture."""
        return self._table(ASSIGNMENTS_PARQUET)

    @cached_property
    def manifest(self) -> Any:
        """The table with one row for each file found: path, status, the reason for it, label, hash, size and time."""
        columns = ["path", "status", "reason", "label", "content_hash", "size", "mtime_ns"]
        return self._table(MANIFEST, columns=columns)

    @cached_property
    def kinds(self) -> Any:
        """The table with the path, format and colour profile of each file found, in the order of `manifest`.

        A run of an early version has no column `profile`.
        """
        import pyarrow.parquet as pq

        columns = pq.ParquetFile(io.BytesIO(self._read(MANIFEST))).schema_arrow.names
        return self._table(MANIFEST, columns=[name for name in ("path", "format", "profile") if name in columns])

    @cached_property
    def sweep(self) -> Any:
        """The table with one row for each k that was tried."""
        return self._csv(SWEEP)

    @cached_property
    def near_duplicates(self) -> Any:
        """The table with one row for each pair of near duplicates."""
        table = self._csv(NEAR_DUPLICATES, dtype={"path": str, "other": str}, na_filter=False)
        if self._as_recorded["config"].get("report", {}).get("safe_csv"):
            table[["path", "other"]] = table[["path", "other"]].map(from_spreadsheet)
        return table

    @cached_property
    def thumbnails(self) -> tuple[Path | None, dict[str, bytes]]:
        """Where the pictures were when the page was last written, and its small copies of them, JPEG, by path.

        Without such a file, where the run found them, and no copies. If the pictures are no longer where that page was
        written from, but the folder in which the run found them is there, it is that folder. None if neither is known,
        because the run is portable.
        """
        import pyarrow.parquet as pq

        file, recorded = self.folder / THUMBNAILS, self._as_recorded["root"]
        found = None if recorded is None else Path(recorded)
        if not os.path.lexists(file):
            return found, {}
        content = self._read(THUMBNAILS)
        check_parquet(content)
        table = pq.ParquetFile(io.BytesIO(content)).read()
        kept = (table.schema.metadata or {}).get(_ROOT)
        root = None if kept is None else Path(os.fsdecode(kept))
        place = found if root is None or (found is not None and found.is_dir() and not root.is_dir()) else root
        return place, dict(zip(table["path"].to_pylist(), table["jpeg"].to_pylist(), strict=True))

    @staticmethod
    def thumbnails_file(root: Path | None, copies: Mapping[str, bytes]) -> bytes:
        """Return the content of the file of the page's small copies, JPEG by path, and of where their pictures are.

        With None, it does not say where they are. `thumbnails` reads it.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {"path": pa.array(list(copies), pa.string()), "jpeg": pa.array(list(copies.values()), pa.binary())}
        content = io.BytesIO()
        # JPEG is compressed already.
        metadata = None if root is None else {_ROOT: os.fsencode(root)}
        pq.write_table(pa.table(columns, metadata=metadata), content, compression="none")
        return content.getvalue()

    @property
    def root(self) -> Path | None:
        """The folder that the paths of the pictures are relative to: where they were when the page was last written.

        None if it is not known, because the run is portable.
        """
        return self.thumbnails[0]

    @property
    def max_pixels(self) -> int:
        """The run's limit on the number of pixels of a picture."""
        return DecodingConfig(max_pixels=self.record["config"]["input"]["max_pixels"]).max_pixels

    @property
    def model(self) -> Path:
        """The folder of the model, which `predict` needs."""
        return self.folder / MODEL

    @property
    def elbow(self) -> bytes:
        """The plot of inertia, silhouette and agreement over k, PNG."""
        return self._plot("elbow.png")

    @property
    def scatter(self) -> bytes:
        """The plot of the pictures by their first two principal components, PNG."""
        return self._plot("scatter.png")

    def _plot(self, name: str) -> bytes:
        content = self._read(f"{PLOTS}/{name}")
        if not content.startswith(_PNG):
            raise UnfitError(f"expected a PNG, found something else in {name}")
        return content

    def _read(self, name: str) -> bytes:
        return read(self.folder / name, _MOST_BYTES[os.path.splitext(name)[1]], follow=False)

    # Results are also read on machines without a GPU, so these use pandas, whichever library wrote them.

    def _table(self, name: str, columns: list[str] | None = None) -> Any:
        import pandas as pd

        content = self._read(name)
        check_parquet(content)
        return pd.read_parquet(io.BytesIO(content), columns=columns)

    def _csv(self, name: str, **options: Any) -> Any:
        import pandas as pd

        content = self._read(name)
        # pandas takes thousands of bytes for a column.
        if b"\n" not in content[:_MOST_HEADER_BYTES]:
            raise UnfitError(f"expected the names of the columns in the first line of {name}, found a longer line")
        return pd.read_csv(io.BytesIO(content), **options)


def as_json(content: Mapping[str, Any]) -> bytes:
    """Return the content of a JSON file of a run folder."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # A path that is not UTF-8 contains surrogates; written as \\udcNN they are valid JSON and are read back unchanged.
    return text.encode("utf-8", "backslashreplace")


@contextmanager
def explained(folder: Path, doing: str = "make a report of") -> Iterator[None]:
    """Turn any error in the block, which reads a run folder, into a DataError that names the folder.

    `doing` is what was to be done with the folder, for the beginning of the message.
    """
    try:
        yield
    except (MemoryError, ImportError, GpuClusterError):
        raise
    # The files in the folder may have been changed or damaged, which can raise any type of error.
    except Exception as error:
        what = "" if isinstance(error, UnfitError) else f"{type(error).__name__}: "
        raise DataError(
            f"cannot {doing} {printable(str(folder))!r}: expected the folder that `gpu-cluster run` left, "
            f"found {what}{' '.join(str(error).split())[:_MOST_SHOWN]}; give the folder as the run left it, or run "
            "the clustering again"
        ) from error


def check_is_run_folder(folder: Path) -> None:
    """Raise an error that says what to name instead, if this is not the run folder of an earlier job.

    Raises
    ------
    DataError
        When it does not exist, is a file or another folder, or cannot be read.
    """
    shown = printable(str(folder))
    expected = "expected the folder that `gpu-cluster run` left"
    try:
        # A run of an earlier version, or a damaged one, is still a run: its reader says what is wrong with it.
        if folder.is_dir() and any(mark in os.listdir(folder) for mark in _MARKS):
            return
        inside = sorted(path.parent.name for path in folder.glob(f"*/{RECORD}"))
    except OSError as error:
        raise DataError(f"cannot read {shown!r}: {error.strerror}") from error
    if not folder.exists():
        found = "it does not exist"
    elif not folder.is_dir():
        above = next((parent for parent in folder.parents if (parent / RECORD).is_file()), None)
        found = f"it is a file{'' if above is None else f'; the run folder is {printable(str(above))!r}'}"
    elif inside:
        more = f", and {len(inside) - _MOST_NAMED:,} more" if len(inside) > _MOST_NAMED else ""
        # The newest runs are the last, because their names begin with the time.
        found = (
            f"it holds the runs {', '.join(map(printable, reversed(inside[-_MOST_NAMED:])))}{more}; name one of them"
        )
    else:
        found = f"it holds no {RECORD}"
    raise DataError(f"{shown!r} is no run folder: {expected}; {found}")

"""The run folder: it is filled under a temporary name, and renamed when it is complete.

This module defines the names of the files in it, and reads them. It must not know what is done with their content.
"""

from __future__ import annotations

import errno
import fcntl
import io
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from gpu_cluster.bounded import MIB, UnfitError, check_parquet, parse_json, read
from gpu_cluster.config import PixelLimit
from gpu_cluster.errors import ConfigError, DataError, JobError
from gpu_cluster.files import printable, write_whole

# The files of a run folder; their names are defined only here.
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
COMPARISON = "compare.csv"
COMPARISON_PAGE = "compare.md"
COMPARISON_PLOT = f"{PLOTS}/compare.png"

# Every run folder holds both of these. They show a new run that a folder is an earlier run, whose name it may take.
_MARKS = frozenset({RECORD, BAD_FILES})

# All files that a run can write. A folder that holds any other file is left alone: that file may be the user's work.
CONTENTS = _MARKS | {
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
    COMPARISON,
    COMPARISON_PAGE,
}

# Run folders that a message names.
_MOST_NAMED = 3

# What a rename says if something has the new name already.
_NAME_IS_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
# The key of the folder of the pictures in the metadata of the small copies.
_ROOT = b"root"

# The name of a half-written one of these files, which a killed job leaves behind (see `files.write_whole`).
_PARTIAL = re.compile(rf"\.({'|'.join(map(re.escape, sorted(CONTENTS)))})\.\d+-[0-9a-f]{{8}}\.tmp")


# The largest of these files that are read, by their names' ends.
_MOST_BYTES = {".json": 128 * MIB, ".parquet": 4_096 * MIB, ".csv": 1_024 * MIB, ".png": 64 * MIB}
# The line of a table that names its columns is never longer than this.
_MOST_HEADER_BYTES = 4_096
_PNG = b"\x89PNG\r\n\x1a\n"


class FinishedRun:
    """The content of a finished run's folder; each file is read when it is first used.

    The files may have been changed or damaged, or made by somebody else to do harm. Reading takes no more memory than
    their sizes allow, waits for no pipe and follows no link, and raises any error of the file system or of the parsers.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def record(self) -> dict[str, Any]:
        """What was run, on which device, how long it took, and the notices that were reported."""
        return dict(parse_json(self._read(RECORD)))

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """All scores, and how k was chosen."""
        metrics = dict(parse_json(self._read(METRICS)))
        if not 1 <= int(metrics["k"]) <= len(self.pictures):
            raise UnfitError(
                f"expected from 1 to {len(self.pictures):,} groups in {METRICS}, one for each picture at most; found "
                f"{metrics['k']}"
            )
        return metrics

    @cached_property
    def pictures(self) -> Any:
        """The table with one row for each embedded picture."""
        return self._table(ASSIGNMENTS_PARQUET)

    @cached_property
    def manifest(self) -> Any:
        """The table with one row for each file found: its path, status, the reason for it, label and content hash."""
        return self._table(MANIFEST, columns=["path", "status", "reason", "label", "content_hash"])

    @cached_property
    def sweep(self) -> Any:
        """The table with one row for each k that was tried."""
        return self._csv(SWEEP)

    @cached_property
    def near_duplicates(self) -> Any:
        """The table with one row for each pair of near duplicates."""
        return self._csv(NEAR_DUPLICATES, dtype={"path": str, "other": str}, na_filter=False)

    @cached_property
    def thumbnails(self) -> tuple[Path, dict[str, bytes]]:
        """Where the pictures were when the page was last written, and its small copies of them, JPEG, by path.

        Without such a file, where the run found them, and no copies. If the pictures are no longer where that page was
        written from, but the folder in which the run found them is there, it is that folder.
        """
        import pyarrow.parquet as pq

        file, found = self.folder / THUMBNAILS, Path(self.record["root"])
        if not os.path.lexists(file):
            return found, {}
        content = self._read(THUMBNAILS)
        check_parquet(content)
        table = pq.ParquetFile(io.BytesIO(content)).read()
        root = os.fsdecode(table.schema.metadata[_ROOT])
        place = found if found.is_dir() and not Path(root).is_dir() else Path(root)
        return place, dict(zip(table["path"].to_pylist(), table["jpeg"].to_pylist(), strict=True))

    def keep_thumbnails(self, root: Path, copies: Mapping[str, bytes]) -> None:
        """Write the small copies of the page, JPEG by path, and where their pictures are; `thumbnails` returns them.

        Raises
        ------
        OSError
            When the file cannot be written; an earlier one stays as it is.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {"path": pa.array(list(copies), pa.string()), "jpeg": pa.array(list(copies.values()), pa.binary())}
        content = io.BytesIO()
        # JPEG is compressed already.
        pq.write_table(pa.table(columns, metadata={_ROOT: os.fsencode(root)}), content, compression="none")
        write_whole(self.folder / THUMBNAILS, content.getvalue())

    @property
    def root(self) -> Path:
        """The folder that the paths of the pictures are relative to: where they were when the page was last written."""
        return self.thumbnails[0]

    @property
    def max_pixels(self) -> int:
        """The run's limit on the number of pixels of a picture."""
        return PixelLimit(max_pixels=self.record["config"]["input"]["max_pixels"]).max_pixels

    @property
    def model(self) -> Path:
        """The folder of the model, which `predict` needs."""
        return self.folder / MODEL

    @property
    def elbow(self) -> bytes:
        """The plot of inertia, silhouette and agreement over k, PNG."""
        content = self._read(f"{PLOTS}/elbow.png")
        if not content.startswith(_PNG):
            raise UnfitError("expected a PNG, found something else in elbow.png")
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


def is_run_folder(names: Iterable[str]) -> bool:
    """Tell from the names in a folder whether it is the run folder of an earlier job."""
    return _MARKS.issubset(names)


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


def _foreign(names: Iterable[str]) -> list[str]:
    """Return the names, in order, of files that no run writes."""
    return sorted(name for name in names if name not in CONTENTS and not _PARTIAL.fullmatch(name))


def choose(out: Path | None, name: str, inputs: Sequence[Path]) -> Path:
    """Return the run folder to write: `out`, or `runs/<time>-<name>` below the current folder.

    An earlier run of that name will give way to the new one (see `staged`), so none of the `inputs` and not the current
    folder may lie in it.

    Raises
    ------
    ConfigError
        When it cannot be written: a file is in the way, it holds other files or one of the inputs, it is a mount point,
        or there is no permission.
    """
    try:
        return _choose(out, name, inputs)
    except OSError as error:
        raise ConfigError(f"cannot write the results to {str(out)!r}: {error.strerror}") from error


def _choose(out: Path | None, name: str, inputs: Sequence[Path]) -> Path:
    if out is not None:
        # A folder cannot be renamed over a symbolic link, so the job writes to where the link points.
        folder = out.resolve() if out.is_symlink() else out
    else:
        plain = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "images"
        folder = Path.cwd() / "runs" / f"{datetime.now():%Y%m%d-%H%M%S}-{plain}"
        folder = _unused(folder)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"cannot write the results to {str(folder)!r}: a file is in the way; choose another --out")
    if folder.is_mount():
        raise ConfigError(
            f"cannot write the results to {str(folder)!r}: it is a mount point, which cannot be renamed; "
            f"give a folder in it, such as {str(folder / 'run')!r}"
        )
    names = os.listdir(folder) if folder.is_dir() else []
    foreign = _foreign(names)
    if names and (foreign or not is_run_folder(names)):
        what = f", such as {foreign[0]!r}" if foreign else ""
        raise ConfigError(
            f"cannot write the results to {str(folder)!r}: it holds other files{what}; expected a new folder, an empty "
            "one or an earlier run; choose another --out"
        )
    if folder.is_dir():
        inside = next((path for path in (*inputs, Path.cwd()) if path.resolve().is_relative_to(folder.resolve())), None)
        if inside is not None:
            raise ConfigError(
                f"cannot write the results to {str(folder)!r}: this earlier run would give way to the new one, and "
                f"{str(inside)!r} lies in it; choose another --out"
            )
    above = next(parent for parent in folder.parents if parent.exists())
    if not above.is_dir():
        raise ConfigError(f"cannot write the results to {str(folder)!r}: {str(above)!r} is a file, not a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot write the results to {str(folder)!r}: no permission to write in {str(above)!r}")
    return folder


def _unused(folder: Path) -> Path:
    number = 2
    free = folder
    while free.exists():
        free = folder.with_name(f"{folder.name}-{number}")
        number += 1
    return free


def earlier_run_moves_to(folder: Path) -> Path | None:
    """Return the name that the earlier run in `folder` would get if a new run took its place; None if there is none.

    It is the first name of `NAME.1`, `NAME.2`, ... that nothing has.
    """
    if not (folder.is_dir() and is_run_folder(os.listdir(folder))):
        return None
    return next(name for name in _numbered(folder) if not os.path.lexists(name))


def _numbered(folder: Path) -> Iterator[Path]:
    return (folder.with_name(f"{folder.name}.{number}") for number in itertools.count(1))


class Staged:
    """A folder that is being filled.

    Attributes
    ----------
    path : its temporary name
    folder : its final name when it is complete
    earlier_run : when it is complete: where the earlier run of that name was moved to; None if none was moved
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self.path = path
        self.folder = folder
        self.earlier_run: Path | None = None


@contextmanager
def staged(folder: Path, *, overwrite: bool = False) -> Iterator[Staged]:
    """Give the block a temporary folder beside `folder` to fill; when the block ends, it gets the name `folder`.

    Only then an earlier run of that name is moved, whole, to the first free name of `NAME.1`, `NAME.2`, ...; if
    `overwrite` is true, it is replaced. If something else has appeared under that name in the meantime, the next free
    name is used: only a run that was there when this one began gives way. If the block fails, the temporary folder is
    removed. Temporary folders of killed runs of that name are removed at the beginning.

    Raises
    ------
    JobError
        When the folder cannot be made or renamed.
    """
    made = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _clear_dead(folder)
        gives_way = folder.is_dir() and is_run_folder(os.listdir(folder))
        stage = Staged(Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent)), folder)
        stage.path.chmod(0o777 & ~_umask())
    except OSError as error:
        raise JobError(f"cannot make a folder beside {str(folder)!r}: {error.strerror}") from error
    lock = _lock(stage.path)
    try:
        yield stage
        _take_name(stage, gives_way=gives_way, overwrite=overwrite)
    except OSError as error:
        where = error.filename or folder
        raise JobError(f"the job stopped at {str(where)!r}: {error.strerror or error}; nothing was left") from error
    finally:
        shutil.rmtree(stage.path, ignore_errors=True)
        _remove_empty(made)
        if lock is not None:
            os.close(lock)


def _lock(stage: Path) -> int | None:
    """Lock a folder for as long as this process lives; None if another process holds the lock or there are no locks."""
    descriptor = os.open(stage, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _clear_dead(folder: Path) -> None:
    """Remove the temporary folders of killed runs of this name, which are those that no process holds a lock on.

    If a run was killed after it moved an earlier run aside and before it took the name, the earlier run gets its name
    back.
    """
    name = re.compile(rf"\.{re.escape(folder.name)}\.(old\.)?[a-z0-9_]{{8}}")
    for path in sorted(folder.parent.iterdir()):
        found = name.fullmatch(path.name)
        if not found or not path.is_dir() or _foreign(os.listdir(path)):
            continue
        lock = _lock(path)
        if lock is None:
            continue
        if found[1] and is_run_folder(os.listdir(path)) and not folder.exists():
            os.replace(path, folder)
        else:
            shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _take_name(stage: Staged, *, gives_way: bool, overwrite: bool) -> None:
    folder = stage.folder
    if gives_way and folder.is_dir() and not _foreign(os.listdir(folder)):
        if overwrite:
            _replace(stage.path, folder)
        else:
            stage.earlier_run = _move_earlier(stage.path, folder)
        return
    while True:
        try:
            # This succeeds if nothing or an empty folder has the name, and fails for anything else.
            os.rename(stage.path, stage.folder)
        except OSError as error:
            if error.errno not in _NAME_IS_TAKEN:
                raise
            stage.folder = _unused(folder)
        else:
            return


def _move_earlier(stage: Path, folder: Path) -> Path:
    """Move the earlier run to the first free numbered name, and the new one to its place; return the numbered name.

    A kill between the two renames leaves the earlier run, whole, under the numbered name.
    """
    for target in _numbered(folder):
        if os.path.lexists(target):
            continue
        try:
            os.rename(folder, target)
        except OSError as error:
            # Another job took the name a moment ago.
            if error.errno not in _NAME_IS_TAKEN:
                raise
            continue
        break
    try:
        os.rename(stage, folder)
    except BaseException:
        # The new run cannot take the name, so the earlier one gets it back.
        if not folder.exists():
            os.rename(target, folder)
        raise
    return target


def _replace(stage: Path, folder: Path) -> None:
    # A folder cannot be renamed over one that is not empty, so the earlier run is moved aside first.
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    # The lock stays with the renamed folder, so that no other job takes it for the folder of a killed run.
    lock = _lock(folder)
    try:
        os.replace(folder, aside)
        os.replace(stage, folder)
    finally:
        # If the job stopped between the two renames, the earlier run gets its name back.
        if not folder.exists():
            os.replace(aside, folder)
        shutil.rmtree(aside, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove `folders`, innermost first, until one is not empty: another job may have written there meanwhile."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def _umask() -> int:
    # The mask can only be read by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask

"""The folder that a run leaves behind: staged under a temporary name, renamed when it is whole.

Must not know what is written into it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from gpu_cluster.errors import ConfigError, JobError

# Every run folder holds these, with whatever else; a folder with both may be replaced by a new run.
_MARKS = frozenset({"run.json", "bad_files.csv"})

# All that a run may leave. A folder that holds anything else is not replaced: it may be somebody's work.
CONTENTS = _MARKS | {
    "assignments.csv",
    "assignments.parquet",
    "compare.csv",
    "compare.md",
    "events.jsonl",
    "manifest.parquet",
    "metrics.json",
    "model",
    "near_duplicates.csv",
    "report.html",
    "plots",
    "sweep.csv",
}


# One of these half written, as a kill leaves it (`files.write_whole`).
_PARTIAL = re.compile(rf"\.({'|'.join(map(re.escape, sorted(CONTENTS)))})\.\d+-[0-9a-f]{{8}}\.tmp")


def is_run_folder(names: Iterable[str]) -> bool:
    """Tell from the names in a folder whether it is the run folder of an earlier job."""
    return _MARKS.issubset(names)


def _foreign(names: Iterable[str]) -> list[str]:
    """Return the names, in order, of what no run leaves."""
    return sorted(name for name in names if name not in CONTENTS and not _PARTIAL.fullmatch(name))


def choose(out: Path | None, name: str, inputs: Sequence[Path]) -> Path:
    """Return the run folder to write: `out`, or `runs/<time>-<name>` below the current folder.

    An earlier run of that name will be replaced, so it must hold none of the `inputs`, nor be the current folder.

    Raises
    ------
    ConfigError
        When it cannot be written: a file is in the way, a folder that is no run folder, or no permission.
    """
    try:
        return _choose(out, name, inputs)
    except OSError as error:
        raise ConfigError(f"cannot write the results to {str(out)!r}: {error.strerror}") from error


def _choose(out: Path | None, name: str, inputs: Sequence[Path]) -> Path:
    if out is not None:
        # A folder cannot be renamed over a symbolic link: write where the link points.
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
        what = f", such as {foreign[0]!r}," if foreign else ""
        raise ConfigError(
            f"cannot write the results to {str(folder)!r}: it holds other files{what} and would be replaced; "
            "choose a new or an empty folder with --out"
        )
    if folder.is_dir():
        inside = next((path for path in (*inputs, Path.cwd()) if path.resolve().is_relative_to(folder.resolve())), None)
        if inside is not None:
            raise ConfigError(
                f"cannot write the results to {str(folder)!r}: it would be replaced, and {str(inside)!r} lies in it; "
                "choose another --out"
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


class Staged:
    """A folder being filled: `path` while it is, `folder` when it has taken its name."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path = path
        self.folder = folder


@contextmanager
def staged(folder: Path) -> Iterator[Staged]:
    """Give a temporary folder beside `folder` to fill; it takes its name when the block ends.

    An earlier run of that name is replaced then, and not before. Where something else has taken the name meanwhile, the
    next free one is taken: nothing that a run did not find when it began is ever replaced. If the block fails, nothing
    is left; what a run of that name left that was killed is cleared away.

    Raises
    ------
    JobError
        When the folder cannot be made or renamed.
    """
    made = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _clear_dead(folder)
        replaces = folder.is_dir() and is_run_folder(os.listdir(folder))
        stage = Staged(Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent)), folder)
        stage.path.chmod(0o777 & ~_umask())
    except OSError as error:
        raise JobError(f"cannot make a folder beside {str(folder)!r}: {error.strerror}") from error
    lock = _lock(stage.path)
    try:
        yield stage
        stage.folder = _take_name(stage.path, folder, replaces=replaces)
    except OSError as error:
        where = error.filename or folder
        raise JobError(f"the job stopped at {str(where)!r}: {error.strerror or error}; nothing was left") from error
    finally:
        shutil.rmtree(stage.path, ignore_errors=True)
        _remove_empty(made)
        if lock is not None:
            os.close(lock)


def _lock(stage: Path) -> int | None:
    """Lock a staging folder for as long as this process lives; None where the file system has no locks."""
    descriptor = os.open(stage, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _clear_dead(folder: Path) -> None:
    """Remove the staging folders of runs of this name that were killed: nobody holds their locks.

    An earlier run that was moved aside, by a run killed before it could put itself in its place, gets its place back.
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


def _take_name(stage: Path, folder: Path, *, replaces: bool) -> Path:
    if replaces and folder.is_dir() and not _foreign(os.listdir(folder)):
        _swap(stage, folder)
        return folder
    target = folder
    while True:
        try:
            # Renames over nothing or an empty folder, and refuses to over anything else.
            os.rename(stage, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            target = _unused(folder)
        else:
            return target


def _swap(stage: Path, folder: Path) -> None:
    # A folder cannot be renamed over one that is not empty: move the earlier run aside first.
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    # The lock goes with the folder: while it lies aside no other job takes it for one that a kill has left.
    lock = _lock(folder)
    try:
        os.replace(folder, aside)
        os.replace(stage, folder)
    finally:
        # Stopped between the two: the earlier run gets its place back.
        if not folder.exists():
            os.replace(aside, folder)
        shutil.rmtree(aside, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove those of `folders`, innermost first, that hold nothing: others may have written there meanwhile."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def _umask() -> int:
    # There is no way to read it but to set it.
    mask = os.umask(0)
    os.umask(mask)
    return mask

"""The folder that a run leaves behind: staged under a temporary name, renamed when it is whole.

Must not know what is written into it.
"""

from __future__ import annotations

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


def is_run_folder(names: Iterable[str]) -> bool:
    """Tell from the names in a folder whether it is the run folder of an earlier job."""
    return _MARKS.issubset(names)


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
    if folder.is_dir() and (names := os.listdir(folder)) and not is_run_folder(names):
        raise ConfigError(
            f"cannot write the results to {str(folder)!r}: it holds other files and is not an earlier run; "
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


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside `folder` to fill; it takes its name when the block ends.

    An earlier run of that name is replaced then, and not before. If the block fails, nothing is left.

    Raises
    ------
    JobError
        When the folder cannot be made or renamed.
    """
    made = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        stage.chmod(0o777 & ~_umask())
    except OSError as error:
        raise JobError(f"cannot make a folder beside {str(folder)!r}: {error.strerror}") from error
    try:
        yield stage
        _take_name(stage, folder)
    except OSError as error:
        where = error.filename or folder
        raise JobError(f"the job stopped at {str(where)!r}: {error.strerror or error}; nothing was left") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        _remove_empty(made)


def _take_name(stage: Path, folder: Path) -> None:
    if folder.exists():
        # A folder cannot be renamed over one that is not empty: move the earlier run aside first.
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
        try:
            os.replace(folder, aside)
            os.replace(stage, folder)
        finally:
            # Stopped between the two: the earlier run gets its place back.
            if not folder.exists():
                os.replace(aside, folder)
            shutil.rmtree(aside, ignore_errors=True)
    else:
        os.replace(stage, folder)


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

"""The folder that a run leaves behind: staged under a temporary name, renamed when it is whole.

Must not know what is written into it.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from gpu_cluster.errors import ConfigError, JobError

# What marks a folder as the run folder of an earlier job, which a new run may replace.
MARK = "run.json"


def choose(out: Path | None, name: str) -> Path:
    """Return the run folder to write: `out`, or `runs/<time>-<name>` below the current folder.

    Raises
    ------
    ConfigError
        When it cannot be written: a file is in the way, a folder that is no run folder, or no permission.
    """
    if out is not None:
        folder = out
    else:
        plain = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "images"
        folder = Path.cwd() / "runs" / f"{datetime.now():%Y%m%d-%H%M%S}-{plain}"
        folder = _unused(folder)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"cannot write the results to {str(folder)!r}: a file is in the way; choose another --out")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).is_file():
        raise ConfigError(
            f"cannot write the results to {str(folder)!r}: it holds other files and is not an earlier run; "
            "choose a new or an empty folder with --out"
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


def _take_name(stage: Path, folder: Path) -> None:
    if folder.exists():
        # A folder cannot be renamed over one that is not empty: move the earlier run aside first.
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
        os.replace(folder, aside)
        os.replace(stage, folder)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        os.replace(stage, folder)


def _umask() -> int:
    # There is no way to read it but to set it.
    mask = os.umask(0)
    os.umask(mask)
    return mask

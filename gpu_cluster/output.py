"""Chooses the folder that a job writes its results to, and refuses one that it must not write.

This module must not know how the folder is made (see `staging`).
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from gpu_cluster import inventory
from gpu_cluster.errors import ConfigError
from gpu_cluster.files import printable

# A name is at most 255 bytes long, and the longest temporary name, `.NAME.old.12345678`, is longer than NAME.
_LONGEST_NAME = 255 - len("..old.12345678")


def choose(out: Path | None, name: str, inputs: Sequence[Path], *, overwrite: bool = False) -> Path:
    """Return the run folder to write: `out`, or `runs/<time>-<name>` below the current folder.

    An earlier run of that name will give way to the new one (see `staged`), so none of the `inputs` and not the current
    folder may lie in it.

    Raises
    ------
    ConfigError
        When it cannot be written: a file is in the way, it holds other files or one of the inputs, it is a mount point,
        or there is no permission. With `overwrite`, also when anything in it is not named by its inventory.
    """
    try:
        return _choose(out, name, inputs, overwrite=overwrite)
    except OSError as error:
        raise _not_written(out or Path(error.filename or ""), error.strerror or str(error)) from error


def _choose(out: Path | None, name: str, inputs: Sequence[Path], *, overwrite: bool) -> Path:
    if out is not None:
        # A folder cannot be renamed over a symbolic link, so the job writes to where the link points.
        folder = out.resolve() if out.is_symlink() else out
    else:
        plain = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "images"
        folder = Path.cwd() / "runs" / f"{datetime.now():%Y%m%d-%H%M%S}-{plain}"
        folder = next(free for free in itertools.chain([folder], others(folder)) if not os.path.lexists(free))
    _check_place(folder)
    if folder.is_dir() and os.listdir(folder):
        _check_gives_way(folder, overwrite=overwrite)
    if folder.is_dir():
        inside = next((path for path in (*inputs, Path.cwd()) if path.resolve().is_relative_to(folder.resolve())), None)
        if inside is not None:
            why = f"this earlier run would give way to the new one, and {shown(inside)} lies in it"
            raise _not_written(folder, f"{why}; choose another --out")
    return folder


def _check_place(folder: Path) -> None:
    """Refuse a folder that cannot be made or renamed where it is."""
    if len(os.fsencode(folder.name)) > _LONGEST_NAME:
        raise _not_written(folder, f"its name is too long; expected at most {_LONGEST_NAME} bytes")
    if folder.exists() and not folder.is_dir():
        raise _not_written(folder, "a file is in the way; choose another --out")
    if folder.is_mount():
        raise _not_written(
            folder,
            f"it is a mount point, which cannot be renamed; give a folder in it, such as {shown(folder / 'run')}",
        )
    above = next(parent for parent in folder.parents if os.path.lexists(parent))
    if not above.is_dir():
        what = "a file" if above.exists() else "a link that leads nowhere"
        raise _not_written(folder, f"{shown(above)} is {what}, not a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise _not_written(folder, f"no permission to write in {shown(above)}")


def place(out: Path) -> Path:
    """Return the folder to write for `out`, which is where it points if it is a link.

    What it may hold already is for the caller to check.

    Raises
    ------
    ConfigError
        When it cannot be made: a file is in the way, it is a mount point, or there is no permission.
    """
    try:
        folder = out.resolve() if out.is_symlink() else out
        _check_place(folder)
    # For a link that leads back to itself, the type of the error depends on Python's version.
    except (OSError, RuntimeError) as error:
        raise _not_written(out, getattr(error, "strerror", None) or str(error)) from error
    return folder


def _check_gives_way(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that is no earlier run, and one to overwrite that holds anything that its inventory names not."""
    earlier = inventory.find_earlier_run(folder)
    if earlier is None:
        other = inventory.first_other(folder, inventory.BEFORE)
        what = "" if other is None else f", such as {shown(Path(other))}"
        raise _not_written(
            folder,
            f"it holds other files{what}; expected a new folder, an empty one or an earlier run; choose another --out",
        )
    if not overwrite:
        return
    remedy = (
        f"leave out --overwrite (this folder is then moved, whole, to {shown(_first_free(folder))}), or choose "
        "another --out"
    )
    if earlier.files is None:
        raise _not_written(
            folder,
            "it is an earlier run without a complete inventory.json, as the version before left it, so --overwrite "
            f"cannot tell what in it may be deleted; {remedy}",
        )
    other = inventory.first_other(folder, earlier)
    if other is not None:
        raise _not_written(
            folder,
            f"this earlier run holds {shown(Path(other))}, which the run did not write or which was changed since, "
            f"and --overwrite deletes nothing else than what inventory.json names; move it elsewhere, {remedy}",
        )


def _not_written(folder: Path, why: str) -> ConfigError:
    return ConfigError(f"cannot write the results to {shown(folder)}: {why}")


def shown(path: Path) -> str:
    return repr(printable(str(path)))


def earlier_run_moves_to(folder: Path) -> Path | None:
    """Return the name that the earlier run in `folder` would get if a new run took its place; None if there is none.

    It is the first name of `NAME.1`, `NAME.2`, ... that nothing has.
    """
    return _first_free(folder) if folder.is_dir() and inventory.find_earlier_run(folder) else None


def _first_free(folder: Path) -> Path:
    return next(name for name in numbered(folder) if not os.path.lexists(name))


def numbered(folder: Path) -> Iterator[Path]:
    """Yield the names that earlier runs are moved to."""
    return (folder.with_name(f"{folder.name}.{number}") for number in itertools.count(1))


def others(folder: Path) -> Iterator[Path]:
    """Yield the names that a new run gets if something has its own."""
    return (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))

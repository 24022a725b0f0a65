"""The folder of a job is filled under a temporary name, and gets its name when it is complete.

This module makes and locks the temporary folder, clears away what killed jobs left, and lets an earlier run give way to
the new one. What may be deleted is decided in `inventory`. This module must not know what the job does.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from gpu_cluster import inventory
from gpu_cluster.errors import JobError
from gpu_cluster.folders import is_same, lock, locked, try_lock
from gpu_cluster.output import numbered, others, shown
from gpu_cluster.run_folder import INVENTORY

# What a rename says if something has the new name already.
_NAME_IS_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)

# A temporary folder of a run of some name.
_OF_ANY_NAME = re.compile(r"\.(.+)\.[0-9a-f]{8}", re.DOTALL)

# How often a temporary folder is tried to be made: another job that fails may remove the empty folder above it.
_TRIES = 100


class Staged:
    """A folder that is being filled.

    Attributes
    ----------
    path : its temporary name
    folder : its final name when it is complete
    gives_way : what is ours in the earlier run that had the final name when this one began; None if there was none
    earlier_run : when it is complete: where the earlier run of that name was moved to; None if none was moved
    """

    def __init__(self, path: Path, folder: Path, gives_way: inventory.Inventory | None) -> None:
        self.path = path
        self.folder = folder
        self.gives_way = gives_way
        self.earlier_run: Path | None = None


@contextmanager
def staged(folder: Path, *, overwrite: bool = False) -> Iterator[Staged]:
    """Give the block a temporary folder beside `folder` to fill; when the block ends, it gets the name `folder`.

    Only then an earlier run of that name is moved, whole, to the first free name of `NAME.1`, `NAME.2`, ... If
    `overwrite` is true, it is deleted, provided that all in it is named by its inventory. If the name cannot be had,
    the next free name of `NAME-2`, `NAME-3`, ... is used: only a run that was there when this one began gives way. If
    the block fails, the temporary folder is removed. Temporary folders of killed runs are removed at the beginning.

    Raises
    ------
    JobError
        When the folder cannot be made or renamed.
    """
    made = [parent for parent in folder.parents if not parent.exists()]
    try:
        with temporary(folder) as path:
            stage = Staged(path, folder, _earlier(folder))
            yield stage
            inventory.complete(path)
            _take_name(stage, overwrite=overwrite)
    except OSError as error:
        where = error.filename or folder
        raise JobError(f"the job stopped at {str(where)!r}: {error.strerror or error}; nothing was left") from error
    finally:
        _remove_empty(made)


@contextmanager
def temporary(beside: Path) -> Iterator[Path]:
    """Give the block a temporary folder beside the file or folder `beside`; it is removed when the block ends.

    What it holds has the names that runs write (see `run_folder`). Those that killed jobs left are removed first.

    Raises
    ------
    JobError
        When the folder cannot be made.
    """
    try:
        path, held = _claim(beside)
    except OSError as error:
        raise JobError(f"cannot make a folder beside {shown(beside)}: {error.strerror or error}") from error
    try:
        _clear_dead(beside)
        yield path
    finally:
        with suppress(OSError):
            inventory.remove(path)
        if held is not None:
            os.close(held)


def _claim(folder: Path) -> tuple[Path, int | None]:
    """Make a temporary folder beside `folder`, which is locked as long as the returned descriptor is open.

    Other jobs clear away only folders that are marked as ours and not locked. This one is locked before it is marked,
    so that there is no moment at which they would take it for that of a killed job.
    """
    for tried in itertools.count(1):
        path = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
        except (FileNotFoundError, FileExistsError):
            if tried == _TRIES:
                raise
            continue
        break
    # A job that clears away what killed jobs left may look into it just now. It leaves a folder that is not marked.
    held = lock(path)
    try:
        inventory.mark(path, folder.name)
    except BaseException:
        # Nobody else knows the new folder, so what is in it is the marker at most.
        with suppress(OSError):
            (path / INVENTORY).unlink(missing_ok=True)
            path.rmdir()
        raise
    return path, held


def _earlier(folder: Path) -> inventory.Inventory | None:
    """Return what is ours in the earlier run of this name; None if there is none, or it cannot be read."""
    try:
        return inventory.find_earlier_run(folder)
    except OSError:
        return None


def _clear_dead(folder: Path) -> None:
    """Remove the temporary folders of killed runs of this name, and give an earlier run its name back.

    Those of killed runs of other names are removed too if this system ran them: a run without `--out` has a name of its
    own, which no later run has. What is not certainly of a killed run, or cannot be read, is left alone.
    """
    own = re.compile(rf"\.{re.escape(folder.name)}\.(old\.)?[0-9a-f]{{8}}")
    try:
        names = sorted(os.listdir(folder.parent))
    except OSError:
        return
    for name in names:
        with suppress(OSError):
            if (found := own.fullmatch(name)) is not None:
                _clear(folder.with_name(name), folder, moved_aside=found[1] is not None)
            elif (other := _OF_ANY_NAME.fullmatch(name)) is not None:
                _clear_other(folder.with_name(name), other[1])


def _clear(path: Path, folder: Path, *, moved_aside: bool) -> None:
    held = try_lock(path)
    if held is None:
        return
    try:
        found = inventory.read(path)
        # If the user gave a folder of ours such a name, its inventory has another one.
        if found is None or (found.name, found.temporary) != (folder.name, path.name) or not is_same(path, held):
            return
        # The job was killed after it moved this earlier run aside and before it took the name.
        if moved_aside and not os.path.lexists(folder) and inventory.is_whole(path, found):
            os.rename(path, folder)
        else:
            inventory.remove(path)
    finally:
        os.close(held)


def _clear_other(path: Path, name: str) -> None:
    """Remove the temporary folder of a run of another name if it was being filled in this system, and is no more.

    On some file systems a lock is seen only by the machine that holds it. A job of the same name may be taken for dead
    there; those of many other names, which many machines write to one folder, must not be.
    """
    held = try_lock(path)
    if held is None:
        return
    try:
        found = inventory.read(path)
        if found is None or (found.name, found.temporary) != (name, path.name) or not is_same(path, held):
            return
        if found.files is None and found.system is not None and found.system == inventory.running_system():
            inventory.remove(path)
    finally:
        os.close(held)


def _take_name(stage: Staged, *, overwrite: bool) -> None:
    if stage.gives_way is None:
        _take_free_name(stage)
    elif overwrite:
        _replace(stage, stage.gives_way)
    else:
        _move_earlier(stage)


def _take_free_name(stage: Staged) -> None:
    """Give the folder its name, or the next free one if something else has it."""
    try:
        # This succeeds if nothing or an empty folder has the name, and fails for anything else.
        os.rename(stage.path, stage.folder)
    except OSError as error:
        if error.errno not in _NAME_IS_TAKEN:
            raise
        stage.folder = _move(stage.path, others(stage.folder))


def _move(folder: Path, names: Iterator[Path]) -> Path:
    """Move a folder to the first of these names that nothing has; return it."""
    for target in names:
        try:
            # A rename would replace an empty folder of somebody else; making one of our own shows that it is ours.
            target.mkdir()
        except FileExistsError:
            continue
        try:
            os.rename(folder, target)
        except OSError as error:
            if error.errno in _NAME_IS_TAKEN:
                continue
            with suppress(OSError):
                target.rmdir()
            raise
        return target
    raise AssertionError("the names have no end")


def _move_earlier(stage: Staged) -> None:
    """Move the earlier run to the first free numbered name, and the new one to its place.

    A kill between the two renames leaves the earlier run, whole, under the numbered name.
    """
    # If it is no earlier run any more, or cannot be moved, the new run gets another name, because it must not be lost.
    # Without the lock, a job that replaces this run could have written into it that it is to be deleted.
    with suppress(OSError), locked(stage.folder):
        if inventory.find_earlier_run(stage.folder) is not None:
            stage.earlier_run = _move(stage.folder, numbered(stage.folder))
    with _name_given_back(stage.folder, stage.earlier_run):
        _take_free_name(stage)


def _replace(stage: Staged, gives_way: inventory.Inventory) -> None:
    """Move the new run to the place of the earlier one, which is deleted."""
    folder = stage.folder
    # A folder cannot be renamed over one that is not empty, so the earlier run is moved aside first.
    aside = folder.with_name(f".{folder.name}.old.{secrets.token_hex(4)}")
    with ExitStack() as stack:
        moved = False
        # If it cannot be moved, the new run gets another name, because it must not be lost.
        with suppress(OSError):
            # The lock stays with the moved folder, so that no other job takes it for the folder of a killed run.
            stack.enter_context(locked(folder))
            moved = _move_aside(folder, aside, gives_way)
        with _name_given_back(folder, aside if moved else None):
            _take_free_name(stage)
        if moved and not _is_gone(aside):
            stage.earlier_run = _move(aside, numbered(folder))


def _move_aside(folder: Path, aside: Path, gives_way: inventory.Inventory) -> bool:
    """Move the earlier run aside if it is the one that gives way and holds nothing else; return whether it was."""
    found = inventory.read(folder)
    if found is None or found.id != gives_way.id or found.files is None:
        return False
    if inventory.first_other(folder, found) is not None:
        return False
    replace(found, name=folder.name, temporary=aside.name).write(folder)
    os.rename(folder, aside)
    return True


def _is_gone(aside: Path) -> bool:
    """Delete a folder that was moved aside; return false if somebody wrote something into it at the last moment."""
    try:
        return inventory.remove(aside)
    # What could not be deleted is tried again by the next job.
    except OSError:
        return True


@contextmanager
def _name_given_back(folder: Path, earlier: Path | None) -> Iterator[None]:
    """Give the earlier run its name back if the new one cannot take it in the block."""
    try:
        yield
    except BaseException:
        if earlier is not None and not os.path.lexists(folder):
            os.rename(earlier, folder)
        raise


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove `folders`, innermost first, until one is not empty: another job may have written there meanwhile."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return

"""Makes the folder or the file of an export whole or not at all.

A folder is filled under a temporary name beside its own, and gets its name when it is complete (see `export_list` for
what it holds then). This module must not know runs or pictures.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_cluster.errors import ConfigError, DataError, JobError
from gpu_cluster.export_list import (
    MARKER,
    OWN,
    Entry,
    first_other,
    is_complete,
    is_whole,
    paths_below,
    read_list,
    read_marker,
    states,
    undo,
    write_list,
    write_marker,
)
from gpu_cluster.files import content_hash, open_regular, printable, write_whole
from gpu_cluster.folders import is_same, lock, locked, opened, try_lock
from gpu_cluster.output import numbered, place, shown

log = logging.getLogger(__name__)

# What a rename or a link says if something has the new name already.
_NAME_IS_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


@dataclass
class Filling:
    """A folder that is being filled: its temporary path, and what is in it so far."""

    path: Path
    entries: list[Entry] = field(default_factory=list)

    def add_file(self, target: str) -> None:
        """Name a file, which is in the folder by now, in the list."""
        with open_regular(self.path / target)[0] as stream:
            status = os.fstat(stream.fileno())
            self.entries.append(Entry(target, "file", size=str(status.st_size), content_hash=content_hash(stream)))

    def add_all_files(self) -> None:
        """Name every file that is in the folder by now in the list."""
        for path in sorted(paths_below(self.path)):
            target = path.relative_to(self.path).as_posix()
            if target not in OWN and not path.is_dir():
                self.add_file(target)


def check_new_folder(out: Path, *, overwrite: bool) -> Path:
    """Return the folder that an export is to make at `out`.

    Raises
    ------
    ConfigError
        When it cannot be made, or holds something: with `overwrite`, it may be an earlier export that nobody changed.
    """
    folder = place(out)
    try:
        if not folder.is_dir() or not os.listdir(folder):
            return folder
        ours = is_complete(read_marker(folder))
        if not overwrite or not ours:
            remedy = (
                "; to replace this earlier export, give --overwrite; to take it back, `gpu-cluster export --undo`"
                if ours
                else ""
            )
            raise ConfigError(f"--out: {shown(folder)} is not empty: expected a new or an empty folder{remedy}")
        _check_gives_way(folder)
    except OSError as error:
        raise ConfigError(f"--out: cannot look into {shown(folder)}: {error.strerror}") from error
    return folder


def _check_gives_way(folder: Path) -> None:
    entries = read_list(folder)
    other = first_other(folder, entries)
    if other is None:
        with opened(folder) as descriptor:
            other = next((one.target for one, state in states(descriptor, entries) if state == "changed"), None)
    if other is not None:
        raise ConfigError(
            f"--out: {shown(folder)} is an earlier export that holds {shown(Path(other))}, which it did not write or "
            "which was changed since, and --overwrite deletes nothing else than what an export wrote; move it "
            "elsewhere, or choose another --out"
        )


@contextmanager
def filled_folder(folder: Path, facts: Mapping[str, Any], *, overwrite: bool) -> Iterator[Filling]:
    """Give the block a temporary folder to fill; when it ends, the list is written and the folder gets its name.

    If the block fails, nothing is left. What killed exports of this name left is removed at the beginning. With
    `overwrite`, an earlier export of this name is deleted when the new one is complete. `facts` go into the marker.

    Raises
    ------
    JobError
        When something cannot be written, or something else took the name meanwhile.
    """
    with _explained(folder), _temporary(folder, facts) as path:
        if not overwrite and folder.is_dir() and os.listdir(folder):
            raise FileExistsError(errno.EEXIST, "is not empty", str(folder))
        filling = Filling(path)
        yield filling
        write_list(path, filling.entries)
        write_marker(path, {**facts, "name": folder.name, "temporary": path.name, "complete": True})
        _take_name(path, folder, overwrite=overwrite)


def write_file(out: Path, content: bytes, facts: Mapping[str, Any], *, overwrite: bool) -> None:
    """Write a file whole or not at all; without `overwrite`, only if nothing has its name.

    What killed exports of this name left is removed first.

    Raises
    ------
    JobError
        When it cannot be written, or something else took the name meanwhile.
    """
    with _explained(out), _temporary(out, facts) as path:
        partial = path / "file"
        write_whole(partial, content)
        if overwrite:
            os.replace(partial, out)
            return
        try:
            # Unlike a rename, this never replaces anything.
            os.link(partial, out)
        except OSError as error:
            if error.errno in _NAME_IS_TAKEN or os.path.lexists(out):
                raise
            os.rename(partial, out)


@contextmanager
def _explained(out: Path) -> Iterator[None]:
    made = [parent for parent in out.parents if not parent.exists()]
    try:
        yield
    except OSError as error:
        _remove_empty(made)
        where = f" at {printable(str(error.filename))!r}" if error.filename else ""
        if error.errno in _NAME_IS_TAKEN and os.path.lexists(out):
            why = f"something else took the name {shown(out)} meanwhile"
        else:
            why = f"{error.strerror or error}{where}"
        raise JobError(f"the export stopped: {why}; nothing was left at {shown(out)}") from error
    except BaseException:
        _remove_empty(made)
        raise


def _remove_empty(made: Sequence[Path]) -> None:
    """Remove folders that were made for an export that failed, innermost first, until one is not empty."""
    with suppress(OSError):
        for folder in made:
            folder.rmdir()


@contextmanager
def _temporary(beside: Path, facts: Mapping[str, Any]) -> Iterator[Path]:
    """Give the block a new folder beside `beside`, locked and marked, which is removed if it still has its name."""
    beside.parent.mkdir(parents=True, exist_ok=True)
    _clear_dead(beside)
    path = beside.with_name(f".{beside.name}.{secrets.token_hex(4)}")
    path.mkdir()
    held = None
    try:
        # It is locked before it is marked, so that no other export takes it for that of a killed one.
        held = lock(path)
        write_marker(path, {**facts, "name": beside.name, "temporary": path.name, "complete": False})
        yield path
    finally:
        if held is None or is_same(path, held):
            with suppress(OSError):
                _remove_tree(path)
        if held is not None:
            os.close(held)


def _take_name(path: Path, folder: Path, *, overwrite: bool) -> None:
    if not (overwrite and folder.is_dir() and os.listdir(folder)):
        # This succeeds if nothing or an empty folder has the name, and fails for anything else.
        os.rename(path, folder)
        return
    with locked(folder):
        marker = read_marker(folder)
        if not is_complete(marker) or first_other(folder, read_list(folder)) is not None:
            raise OSError(errno.EEXIST, "it is no longer the earlier export", str(folder))
        aside = folder.with_name(f".{folder.name}.old.{secrets.token_hex(4)}")
        write_marker(folder, {**marker, "name": folder.name, "temporary": aside.name})
        os.rename(folder, aside)
        try:
            os.rename(path, folder)
        except BaseException:
            os.rename(aside, folder)
            raise
    _discard(aside, folder)


def _discard(aside: Path, folder: Path) -> None:
    """Delete an earlier export that was moved aside; what cannot be deleted, or was changed, gets a new name."""
    # The new export has its name by now, and must not end as one that failed.
    with suppress(DataError, JobError):
        undo(aside)
    if aside.exists():
        name = next(name for name in numbered(folder) if not os.path.lexists(name))
        os.rename(aside, name)
        log.warning("the earlier export could not be deleted whole; what is left of it is now %s", shown(name))


def _clear_dead(beside: Path) -> None:
    """Remove what killed exports of this name left, and give an earlier export its name back."""
    own = re.compile(rf"\.{re.escape(beside.name)}\.(old\.)?[0-9a-f]{{8}}")
    for name in sorted(os.listdir(beside.parent)):
        found = own.fullmatch(name)
        if found is None:
            continue
        with suppress(OSError, DataError, JobError):
            _clear(beside.with_name(name), beside, moved_aside=found[1] is not None)


def _clear(path: Path, beside: Path, *, moved_aside: bool) -> None:
    held = try_lock(path)
    if held is None:
        return
    try:
        marker = read_marker(path)
        if (marker.get("name"), marker.get("temporary")) != (beside.name, path.name) or not is_same(path, held):
            return
        if not moved_aside:
            _remove_tree(path)
            return
        if not os.path.lexists(beside) and is_whole(path):
            # It was killed after it moved the earlier export aside and before it took the name.
            os.rename(path, beside)
            return
    finally:
        os.close(held)
    _discard(path, beside)


def _remove_tree(folder: Path) -> None:
    """Remove a temporary folder of ours with all in it; what links lead to stays."""
    inner = [folder]
    for path in list(paths_below(folder)):
        if path.is_dir() and not path.is_symlink():
            inner.append(path)
        elif path != folder / MARKER:
            path.unlink()
    # The marker goes last, so that what a kill leaves is known as ours.
    for path in reversed(inner[1:]):
        path.rmdir()
    (folder / MARKER).unlink(missing_ok=True)
    folder.rmdir()

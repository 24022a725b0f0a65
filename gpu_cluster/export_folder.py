"""Makes the folder or the file of an export whole or not at all, and undoes an export by its list.

A folder is filled under a temporary name beside its own, and gets its name when it is complete. It holds `export.csv`,
which names everything that was put there, and the marker `export.json`. Only what the list names, and is still what it
says, is ever deleted. This module must not know runs or pictures.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from gpu_cluster.bounded import MIB, UnfitError, parse_json, read
from gpu_cluster.errors import ConfigError, DataError, JobError
from gpu_cluster.files import MOST_TABLE_BYTES, open_regular, printable, unescaped, write_whole
from gpu_cluster.folders import is_same, lock, locked, open_folder, opened, try_lock
from gpu_cluster.output import numbered, place, shown

MARKER, LIST = "export.json", "export.csv"
_OWN = frozenset({MARKER, LIST})
_SCHEMA = 1
_MOST_MARKER_BYTES = MIB

Kind = Literal["symlink", "copy", "hard", "file"]

# What a rename or a link says if something has the new name already.
_NAME_IS_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing in the folder of an export, and one row of its list.

    Attributes
    ----------
    target : its path in the folder
    kind : how the picture got there; `file` for anything that is no picture
    path : path of the picture as the tables of the run have it; empty for a file
    cluster : cluster of the picture; empty for a file
    source : where the picture was, as a cell of a table (see `files.escaped`); what a symbolic link holds
    size : bytes, in decimal digits; empty for a symbolic link
    content_hash : BLAKE2b of the bytes, 128 bits, hex
    """

    target: str
    kind: Kind
    path: str = ""
    cluster: str = ""
    source: str = ""
    size: str = ""
    content_hash: str = ""


COLUMNS = tuple(one.name for one in fields(Entry))


@dataclass
class Filling:
    """A folder that is being filled: its temporary path, and what is in it so far."""

    path: Path
    entries: list[Entry] = field(default_factory=list)

    def add_file(self, target: str) -> None:
        """Name a file, which is in the folder by now, in the list."""
        with open_regular(self.path / target)[0] as stream:
            status = os.fstat(stream.fileno())
            self.entries.append(Entry(target, "file", size=str(status.st_size), content_hash=_hash(stream)))

    def add_all_files(self) -> None:
        """Name every file that is in the folder by now in the list."""
        for path in sorted(_paths_below(self.path)):
            target = path.relative_to(self.path).as_posix()
            if target not in _OWN and not path.is_dir():
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
        if not overwrite or _marker(folder).get("complete") is not True:
            ours = _marker(folder).get("complete") is True
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
    entries = _read_list(folder)
    other = _first_other(folder, entries)
    if other is None:
        with opened(folder) as descriptor:
            other = next((one.target for one, state in _states(descriptor, entries) if state == "changed"), None)
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
        filling = Filling(path)
        yield filling
        _write_list(path, filling.entries)
        _write_marker(path, {**facts, "name": folder.name, "temporary": path.name, "complete": True})
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
        _write_marker(path, {**facts, "name": beside.name, "temporary": path.name, "complete": False})
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
        marker = _marker(folder)
        if marker.get("complete") is not True or _first_other(folder, _read_list(folder)) is not None:
            raise OSError(errno.EEXIST, "it is no longer the earlier export", str(folder))
        aside = folder.with_name(f".{folder.name}.old.{secrets.token_hex(4)}")
        _write_marker(folder, {**marker, "name": folder.name, "temporary": aside.name})
        os.rename(folder, aside)
        try:
            os.rename(path, folder)
        except BaseException:
            os.rename(aside, folder)
            raise
    _discard(aside, folder)


def _discard(aside: Path, folder: Path) -> None:
    """Delete an earlier export that was moved aside; if somebody changed it at the last moment, it gets a new name."""
    undo(aside)
    if aside.exists():
        os.rename(aside, next(name for name in numbered(folder) if not os.path.lexists(name)))


def _clear_dead(beside: Path) -> None:
    """Remove what killed exports of this name left, and give an earlier export its name back."""
    own = re.compile(rf"\.{re.escape(beside.name)}\.(old\.)?[0-9a-f]{{8}}")
    for name in sorted(os.listdir(beside.parent)):
        found = own.fullmatch(name)
        if found is None:
            continue
        with suppress(OSError, DataError):
            _clear(beside.with_name(name), beside)


def _clear(path: Path, beside: Path) -> None:
    held = try_lock(path)
    if held is None:
        return
    try:
        marker = _marker(path)
        if (marker.get("name"), marker.get("temporary")) != (beside.name, path.name) or not is_same(path, held):
            return
        if marker.get("complete") is not True:
            _remove_tree(path)
        elif os.path.lexists(beside):
            _discard(path, beside)
        else:
            # It was killed after it moved the earlier export aside and before it took the name.
            os.rename(path, beside)
    finally:
        os.close(held)


# Undone


@dataclass(frozen=True)
class Undone:
    """What became of an export that was undone, or would become of it.

    Attributes
    ----------
    folder : the folder of the export
    removed : number of things that were removed
    changed : what is no longer what the list says, and stays; paths in the folder
    gone : number of things that were not there any more
    left : the first thing in the folder that the export did not put there; None if there is none, or a dry run
    """

    folder: Path
    removed: int
    changed: tuple[str, ...]
    gone: int
    left: str | None = None


def undo(folder: Path, *, dry_run: bool = False) -> Undone:
    """Remove from the folder of an export what its list names and nobody changed, and then the folders that are empty.

    The list stays if something that it names does.

    Raises
    ------
    DataError
        When it is no folder of an export, or its list is damaged.
    JobError
        When something cannot be removed.
    """
    try:
        if _marker(folder).get("complete") is not True:
            raise DataError(
                f"{shown(folder)} is no folder of an export: expected a folder with {MARKER}, as `gpu-cluster export` "
                "leaves it"
            )
        with locked(folder), opened(folder) as descriptor:
            return _undo(folder, descriptor, _read_list(folder), dry_run=dry_run)
    except OSError as error:
        raise JobError(f"cannot undo the export in {shown(folder)}: {error}; do it again to go on") from error


def _undo(folder: Path, descriptor: int, entries: Sequence[Entry], *, dry_run: bool) -> Undone:
    removed, gone, changed = 0, 0, []
    for entry, state in _states(descriptor, entries, remove=not dry_run):
        removed += state == "unchanged"
        gone += state == "gone"
        if state == "changed":
            changed.append(entry.target)
    if dry_run:
        return Undone(folder, removed, tuple(changed), gone)
    for inner in sorted(_folders_of(entries), key=lambda one: -len(one.parts)):
        with suppress(OSError):
            _within(descriptor, inner.parent, lambda above, name=inner.name: os.rmdir(name, dir_fd=above))
    if not changed:
        # The marker goes last: until then the folder is known as that of an export.
        for name in (LIST, MARKER):
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=descriptor)
    left = min(os.listdir(descriptor), default=None) if not changed else None
    if left is None and not changed and is_same(folder, descriptor):
        with suppress(OSError):
            os.rmdir(folder)
    return Undone(folder, removed, tuple(changed), gone, left)


def _states(
    descriptor: int, entries: Iterable[Entry], *, remove: bool = False
) -> Iterator[tuple[Entry, Literal["unchanged", "changed", "gone"]]]:
    """Yield what became of each thing on a list, and remove it, if asked to, when it is unchanged."""
    above: PurePosixPath | None = None
    within: int | None = None
    try:
        for entry in entries:
            path = PurePosixPath(entry.target)
            if path.parent != above:
                if within is not None:
                    os.close(within)
                within, above = _opened_below(descriptor, path.parent), path.parent
            if within is None:
                yield entry, "gone"
                continue
            try:
                unchanged = _is_unchanged(entry, path.name, within)
                if unchanged and remove:
                    os.unlink(path.name, dir_fd=within)
            except FileNotFoundError:
                yield entry, "gone"
            else:
                yield entry, "unchanged" if unchanged else "changed"
    finally:
        if within is not None:
            os.close(within)


def _is_unchanged(entry: Entry, name: str, within: int) -> bool:
    status = os.stat(name, dir_fd=within, follow_symlinks=False)
    if entry.kind == "symlink":
        return stat.S_ISLNK(status.st_mode) and os.readlink(name, dir_fd=within) == unescaped(entry.source)
    if not stat.S_ISREG(status.st_mode) or str(status.st_size) != entry.size:
        return False
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=within)
    with os.fdopen(file, "rb") as stream:
        return _hash(stream) == entry.content_hash


def _opened_below(descriptor: int, path: PurePosixPath) -> int | None:
    """Open a folder in an open one, through no link; None if it is not there, or no folder."""
    held = os.dup(descriptor)
    for name in path.parts:
        try:
            inner = open_folder(name, held)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            return None
        finally:
            os.close(held)
        held = inner
    return held


def _within(descriptor: int, path: PurePosixPath, function: Any) -> None:
    held = _opened_below(descriptor, path)
    if held is not None:
        try:
            function(held)
        finally:
            os.close(held)


def _folders_of(entries: Iterable[Entry]) -> set[PurePosixPath]:
    """Return all folders in the folder of an export that its list implies."""
    found: set[PurePosixPath] = set()
    for entry in entries:
        for folder in PurePosixPath(entry.target).parents:
            if not folder.parts or folder in found:
                break
            found.add(folder)
    return found


def _first_other(folder: Path, entries: Sequence[Entry]) -> str | None:
    """Return the first path in the folder of an export that its list does not imply."""
    known = {entry.target for entry in entries} | {str(one) for one in _folders_of(entries)} | _OWN
    targets = (path.relative_to(folder).as_posix() for path in _paths_below(folder))
    return next((target for target in targets if target not in known), None)


def _paths_below(folder: Path) -> Iterator[Path]:
    """Yield every path below a folder; a folder comes before what is in it, and links are not followed."""
    waiting = [folder]
    # Not by recursion, because folders may be deeper than Python's stack.
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                yield Path(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))


def _remove_tree(folder: Path) -> None:
    """Remove a temporary folder of ours with all in it; what links lead to stays."""
    inner = [folder]
    for path in list(_paths_below(folder)):
        if path.is_dir() and not path.is_symlink():
            inner.append(path)
        elif path != folder / MARKER:
            path.unlink()
    # The marker goes last, so that what a kill leaves is known as ours.
    for path in reversed(inner[1:]):
        path.rmdir()
    (folder / MARKER).unlink(missing_ok=True)
    folder.rmdir()


# The two files of ours


def _hash(stream: Any) -> str:
    # As `images.source.content_hash`, which is of pictures.
    return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _write_marker(folder: Path, facts: Mapping[str, Any]) -> None:
    content = {"export_of": "gpu-cluster", "schema": _SCHEMA, **facts}
    write_whole(folder / MARKER, (json.dumps(content, indent=1) + "\n").encode())


def _marker(folder: Path) -> dict[str, Any]:
    """Return the marker of a folder; an empty one if there is none that is valid.

    Raises
    ------
    OSError
        When the folder cannot be looked into.
    """
    try:
        found = parse_json(read(folder / MARKER, _MOST_MARKER_BYTES, follow=False))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    known = isinstance(found, dict) and (found.get("export_of"), found.get("schema")) == ("gpu-cluster", _SCHEMA)
    return found if known else {}


def _write_list(folder: Path, entries: Iterable[Entry]) -> None:
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows(map(astuple, entries))
    write_whole(folder / LIST, stream.getvalue().encode())


def _read_list(folder: Path) -> list[Entry]:
    """Return what the list of an export names.

    Raises
    ------
    DataError
        When it is damaged, or names something outside of the folder.
    """
    try:
        content = read(folder / LIST, MOST_TABLE_BYTES, follow=False).decode()
        rows = csv.reader(io.StringIO(content, newline=""))
        if tuple(next(rows, ())) != COLUMNS:
            raise UnfitError(f"expected the columns {', '.join(COLUMNS)}")
        return [_entry(row) for row in rows]
    except (FileNotFoundError, csv.Error, ValueError) as error:
        why = "it is missing" if isinstance(error, FileNotFoundError) else str(error)
        raise DataError(
            f"the list {shown(folder / LIST)} of an export cannot be used: {why}; nothing was removed. Give it back as "
            "the export left it, or remove the folder yourself"
        ) from error


def _entry(row: Sequence[str]) -> Entry:
    target, kind = row[:2] if len(row) == len(COLUMNS) else ("", "")
    parts = target.split("/")
    if kind not in ("symlink", "copy", "hard", "file") or {"", ".", ".."} & set(parts) or "\0" in target:
        raise UnfitError(f"expected rows with a path inside the folder and a kind; found {printable(str(row))[:200]}")
    if target in _OWN:
        raise UnfitError(f"expected a path of something else than the list itself; found {target!r}")
    return Entry(*row)  # type: ignore[arg-type]

"""The list of what an export put into its folder, and how an export is undone by it.

`export.csv` names everything in the folder, and the marker `export.json` says that it is that of an export. Only what
the list names, and is still what it says, is ever deleted. This module must not know runs or pictures, or how the
folder is made (see `export_folder`).
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from gpu_cluster.bounded import MIB, UnfitError, parse_json, read
from gpu_cluster.errors import DataError, JobError
from gpu_cluster.files import MOST_TABLE_BYTES, content_hash, printable, unescaped, write_whole
from gpu_cluster.folders import is_same, locked, open_folder, opened
from gpu_cluster.output import shown

MARKER, LIST = "export.json", "export.csv"
OWN = frozenset({MARKER, LIST})
_SCHEMA = 1
_MOST_MARKER_BYTES = MIB
# No path on Linux or macOS is longer.
_MOST_TARGET_BYTES = 4_096

Kind = Literal["symlink", "copy", "hard", "file"]


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
    left : the first thing in the folder that the export did not put there; None if there is none, or something was
        changed, or of a dry run
    """

    folder: Path
    removed: int
    changed: tuple[str, ...]
    gone: int
    left: str | None = None


def undo(folder: Path, *, dry_run: bool = False) -> Undone:
    """Remove from the folder of an export what its list names and nobody changed, and then the folders that are empty.

    The list stays if something that it names does, or may do under another name: because something is gone, and
    something else is there.

    Raises
    ------
    DataError
        When it is no folder of an export, or its list is damaged.
    JobError
        When something cannot be removed.
    """
    try:
        if not is_complete(read_marker(folder)):
            raise DataError(
                f"{shown(folder)} is no folder of an export: expected a folder with {MARKER}, as `gpu-cluster export` "
                "leaves it"
            )
        with locked(folder), opened(folder) as descriptor:
            return _undo(folder, descriptor, read_list(folder), dry_run=dry_run)
    except OSError as error:
        raise JobError(f"cannot undo the export in {shown(folder)}: {error}; do it again to go on") from error


def _undo(folder: Path, descriptor: int, entries: Sequence[Entry], *, dry_run: bool) -> Undone:
    removed, gone, changed = 0, 0, []
    # In the order of their folders, each of which is opened once then.
    in_order = sorted(entries, key=lambda entry: entry.target.rpartition("/")[::2])
    for entry, state in states(descriptor, in_order, remove=not dry_run):
        removed += state == "unchanged"
        gone += state == "gone"
        if state == "changed":
            changed.append(entry.target)
    if dry_run:
        return Undone(folder, removed, tuple(changed), gone)
    for inner in sorted(_folders_of(entries), key=lambda one: -len(one.parts)):
        _remove_if_empty(descriptor, inner)
    others = set(os.listdir(descriptor)) - OWN
    left = min(others, default=None) if not changed else None
    if changed or (gone and others):
        return Undone(folder, removed, tuple(changed), gone, left)
    # The marker goes last: until then the folder is known as that of an export.
    for name in (LIST, MARKER):
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=descriptor)
    if not others and is_same(folder, descriptor):
        with suppress(OSError):
            os.rmdir(folder)
    return Undone(folder, removed, tuple(changed), gone, left)


def states(
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
        return content_hash(stream) == entry.content_hash


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


def _remove_if_empty(descriptor: int, path: PurePosixPath) -> None:
    """Remove a folder in an open one if it is there and empty."""
    held = _opened_below(descriptor, path.parent)
    if held is not None:
        try:
            with suppress(OSError):
                os.rmdir(path.name, dir_fd=held)
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


def first_other(folder: Path, entries: Sequence[Entry]) -> str | None:
    """Return the first path in the folder of an export that its list does not imply."""
    known = {entry.target for entry in entries} | {str(one) for one in _folders_of(entries)} | OWN
    targets = (path.relative_to(folder).as_posix() for path in paths_below(folder))
    return next((target for target in targets if target not in known), None)


def is_whole(folder: Path) -> bool:
    """Return whether everything that the list of an export names is there, changed or not."""
    return all(os.path.lexists(folder / entry.target) for entry in read_list(folder))


def paths_below(folder: Path) -> Iterator[Path]:
    """Yield every path below a folder; a folder comes before what is in it, and links are not followed."""
    waiting = [folder]
    # Not by recursion, because folders may be deeper than Python's stack.
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                yield Path(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))


# The two files of ours


def is_complete(marker: Mapping[str, Any]) -> bool:
    """Return whether a marker is that of an export that is complete."""
    return marker.get("complete") is True


def write_marker(folder: Path, facts: Mapping[str, Any]) -> None:
    content = {"export_of": "gpu-cluster", "schema": _SCHEMA, **facts}
    write_whole(folder / MARKER, (json.dumps(content, indent=1) + "\n").encode())


def read_marker(folder: Path) -> dict[str, Any]:
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


def write_list(folder: Path, entries: Iterable[Entry]) -> None:
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows(map(astuple, entries))
    write_whole(folder / LIST, stream.getvalue().encode())


def read_list(folder: Path) -> list[Entry]:
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
    if len(os.fsencode(target)) > _MOST_TARGET_BYTES:
        raise UnfitError(f"expected paths of at most {_MOST_TARGET_BYTES:,} bytes; found {target[:100]!r} and more")
    if target in OWN:
        raise UnfitError(f"expected a path of something else than the list itself; found {target!r}")
    return Entry(*row)  # type: ignore[arg-type]

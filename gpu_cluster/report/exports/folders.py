"""Sorts the pictures of a run into a folder for each group: as links, as copies, or as second names of the files.

The assignments and the source of the pictures enter; a folder is filled, and its list says what is in it. A picture
that is not there any more, or is not the one that was clustered, is left out with the reason. This module must not know
where the run is, or how the folder gets its name.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from gpu_cluster.addresses import TAR, common_folder, is_address, member_of
from gpu_cluster.config import Link
from gpu_cluster.errors import ConfigError, JobError
from gpu_cluster.events import Observer, interrupted
from gpu_cluster.export_folder import Filling
from gpu_cluster.export_list import LIST, MARKER, Entry
from gpu_cluster.files import content_hash, escaped, unescaped
from gpu_cluster.images.source import Source, UnreadableError, reading_threads
from gpu_cluster.report.exports.names import Tree

if TYPE_CHECKING:
    import pandas as pd

#: The table of the pictures that are not in the folder.
NOT_EXPORTED = "not_exported.csv"

# The name of the stage, for progress.
_STAGE = "export"
# Pictures that are looked at together.
_AT_A_TIME = 4_096
_BLOCK_BYTES = 1 << 20

CHANGED = "changed since the run: its content is not the one that was clustered"
_TOO_LONG = "its path would be too long there"


@dataclass(frozen=True, slots=True)
class Planned:
    """A picture and where it goes.

    Attributes
    ----------
    path : as the tables of the run have it
    target : its path in the folder of the export
    is_renamed : whether its path there is not the one that it has, because not every system accepts that
    cluster : its cluster
    size, mtime_ns, content_hash : what the run found; size and time are None where it found none
    """

    path: str
    target: PurePosixPath
    is_renamed: bool
    cluster: int
    size: int | None
    mtime_ns: int | None
    content_hash: str

    @property
    def location(self) -> str:
        """The name of the picture in its source."""
        return unescaped(self.path)


def plan(pictures: pd.DataFrame, manifest: pd.DataFrame, groups: Sequence[str]) -> list[Planned]:
    """Return where each picture goes; no two of them, and none of the lists, to the same place.

    Parameters
    ----------
    pictures, manifest
        As `FinishedRun` has them.
    groups
        The name of each cluster. Clusters with the same name share a folder.
    """
    tree = Tree()
    for name in (MARKER, LIST, NOT_EXPORTED):
        tree.reserve(name)
    known = manifest.drop_duplicates("path").set_index("path")[["size", "mtime_ns"]].reindex(pictures["path"])
    sizes, times = ([None if one is None else int(one) for one in _without_na(known[name])] for name in known)
    names = _names(map(unescaped, pictures["path"]))
    rows = zip(pictures["path"], names, pictures["cluster"], sizes, times, pictures["content_hash"], strict=True)
    found = []
    for path, name, cluster, size, mtime_ns, content in rows:
        folder = tree.folder(groups[cluster], hidden=False)
        target = tree.file(name, folder)
        renamed = str(target) != f"{folder}/{name}"
        found.append(Planned(path, target, renamed, int(cluster), size, mtime_ns, content))
    return found


def _names(locations: Iterable[str]) -> list[str]:
    """Return the path that each picture keeps.

    Of addresses, it is what follows the folder that they have in common; of the members of a tar file, its name is a
    folder.
    """
    members = ((location, member_of(location)) for location in locations)
    names = [one if member is None else f"{member[0].removesuffix(TAR)}/{member[1]}" for one, member in members]
    addresses = [name for name in names if is_address(name)]
    common = common_folder(min(addresses), max(addresses)) if addresses else ""
    return [name.removeprefix(common).lstrip("/") if is_address(name) else name for name in names]


def _without_na(column: pd.Series[Any]) -> Iterator[Any]:
    return (None if missing else value for value, missing in zip(column, column.isna(), strict=True))


def check_link(link: Link, source: Source, planned: Sequence[Planned]) -> None:
    """Refuse links to pictures that are no files of this machine.

    Raises
    ------
    ConfigError
        When there is nothing that a link could lead to.
    """
    first = next((one for one in planned if source.local_path(one.location) is None), None)
    if link != "copy" and first is not None:
        raise ConfigError(
            f"--link {link}: pictures of this run are not files in a folder of this machine, so no link can lead "
            f"to them; use --link copy, which reads them from where they are (the first is {first.path!r})"
        )


def looked_at(planned: Sequence[Planned], source: Source, observer: Observer) -> Iterator[tuple[Planned, str | None]]:
    """Yield each picture, and why it cannot be exported: it is not there, or its content is another one.

    A picture is read only if its size or its time of change is not what the run found.

    Raises
    ------
    InterruptedJobError
        When the observer asked to stop.
    """
    done, waiting = 0, iter(planned)
    with reading_threads() as pool:
        while part := list(islice(waiting, _AT_A_TIME)):
            yield from zip(part, pool.map(lambda one: _why_not(one, source), part), strict=True)
            done += len(part)
            observer.progress(_STAGE, done, len(planned))
            if observer.stopping():
                raise interrupted()


def _why_not(one: Planned, source: Source) -> str | None:
    try:
        found = source.stat(one.location)
        if one.size is not None and (found.size, found.mtime_ns) == (one.size, one.mtime_ns):
            return None
        with source.open(one.location)[0] as stream:
            return None if content_hash(stream) == one.content_hash else CHANGED
    except UnreadableError as error:
        return str(error)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"


def fill(
    filling: Filling, planned: Sequence[Planned], source: Source, link: Link, observer: Observer
) -> Mapping[str, str]:
    """Put the pictures into the folder and name them in its list; return why others are not there, by path.

    Raises
    ------
    JobError
        When the file system of the folder takes no such links.
    InterruptedJobError
        When the observer asked to stop.
    OSError
        When something cannot be written.
    """
    makers = _Makers(filling, source)
    pairs = _one_by_one(planned, observer) if link == "copy" else looked_at(planned, source, observer)
    missing: dict[str, str] = {}
    for one, why in pairs:
        reason = why
        if reason is None:
            try:
                reason = makers.make(one, link)
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise _explained(link, error) from error
                reason = _TOO_LONG
        if reason is not None:
            missing[one.path] = reason
    if missing:
        makers.remove_empty_folders()
    return missing


def _one_by_one(planned: Sequence[Planned], observer: Observer) -> Iterator[tuple[Planned, None]]:
    """Yield each picture that is to be copied: its content is looked at while it is."""
    for number, one in enumerate(planned, start=1):
        yield one, None
        observer.progress(_STAGE, number, len(planned))
        if observer.stopping():
            raise interrupted()


class _Makers:
    """Makes links and copies in a folder that is being filled, and the folders that they need."""

    def __init__(self, filling: Filling, source: Source) -> None:
        self._filling, self._source = filling, source
        self._made: set[PurePosixPath] = {PurePosixPath()}

    def make(self, one: Planned, link: Link) -> str | None:
        """Put a picture into the folder; return why it cannot be there."""
        self._make_folders(one.target.parent)
        target = self._filling.path / one.target
        size = ""
        if link == "copy":
            found = self._copy(one, target)
            if isinstance(found, str):
                return found
            size = str(found)
        local = self._source.local_path(one.location)
        where = one.location if local is None else os.fspath(local.absolute())
        if link == "symlink":
            os.symlink(where, target)
        elif link == "hard":
            # Of a link to a picture, the picture itself gets a second name.
            os.link(os.path.realpath(where), target)
            size = str(target.stat().st_size)
        self._filling.entries.append(
            Entry(str(one.target), link, one.path, str(one.cluster), escaped(where), size, one.content_hash)
        )
        return None

    def _make_folders(self, folder: PurePosixPath) -> None:
        missing: list[PurePosixPath] = []
        while folder not in self._made:
            missing.append(folder)
            folder = folder.parent
        for inner in reversed(missing):
            (self._filling.path / inner).mkdir()
            self._made.add(inner)

    def remove_empty_folders(self) -> None:
        """Remove folders that were made for pictures that are not there."""
        for folder in sorted(self._made, key=lambda one: -len(one.parts)):
            if folder.parts:
                with suppress(OSError):
                    (self._filling.path / folder).rmdir()

    def _copy(self, one: Planned, target: Path) -> int | str:
        """Copy a picture, with its time of change; return its size, or why it is not the one that was clustered."""
        hashed, size = hashlib.blake2b(digest_size=16), 0
        try:
            stream, stat = self._source.open(one.location)
        except UnreadableError as error:
            return str(error)
        with stream, target.open("xb") as copy:
            for block in _blocks(stream):
                if isinstance(block, OSError):
                    reason = f"cannot be read: {block.strerror or block}"
                    break
                hashed.update(block)
                copy.write(block)
                size += len(block)
            else:
                reason = "" if hashed.hexdigest() == one.content_hash else CHANGED
        if reason:
            target.unlink()
            return reason
        if stat.mtime_ns is not None:
            # A time that the file system of the copy does not have is no reason to leave the picture out.
            with suppress(OSError):
                os.utime(target, ns=(stat.mtime_ns, stat.mtime_ns))
        return size


def _blocks(stream: Any) -> Iterator[bytes | OSError]:
    """Yield what can be read of a picture, and an error of reading, which is not one of writing, as the last."""
    while True:
        try:
            block = stream.read(_BLOCK_BYTES)
        except OSError as error:
            yield error
            return
        if not block:
            return
        yield block


def _explained(link: Link, error: OSError) -> Exception:
    """Return the error to raise for one of the file system: one that says what to do where another link would help."""
    if link == "hard" and error.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EACCES, errno.ENOTSUP):
        return JobError(
            f"--link hard: the file system refused a second name of a picture ({error.strerror}); hard links need "
            "pictures and export on one disk, and the right to write the pictures: use --link symlink or --link copy; "
            "nothing was left"
        )
    if link == "symlink" and error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
        return JobError(
            f"--link symlink: the disk of the export takes no symbolic links ({error.strerror}): use --link copy; "
            "nothing was left"
        )
    return error


def in_numbers(planned: Iterable[Planned]) -> dict[str, int]:
    """Return how many pictures go into the folder of each group, by its name, in the order of the clusters."""
    counts: dict[str, int] = {}
    for one in sorted(planned, key=lambda one: one.cluster):
        counts[one.target.parts[0]] = counts.get(one.target.parts[0], 0) + 1
    return counts

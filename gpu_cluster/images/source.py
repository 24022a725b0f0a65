"""The places where pictures are: lists the pictures of a place, and opens them.

Input: a place. Output: the locations of its pictures, and each picture as a stream. `LocalFiles` is the file system;
`images.places` has the other places, and opens all of them. This module must not know what is done with the pictures.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from gpu_cluster.errors import DataError
from gpu_cluster.files import NotAFileError, content_hash, open_regular, printable
from gpu_cluster.images import decode, formats
from gpu_cluster.inventory import is_folder_of_ours
from gpu_cluster.manifest import FileFacts

# The reason of a picture whose content is no longer the one that was scanned.
CHANGED = "it changed while the job ran"

_END_OF_TIME_NS = 1 << 63


class UnreadableError(Exception):
    """A picture cannot be opened; the message is the reason in plain words. At another time it may be readable."""


@dataclass(frozen=True, slots=True)
class Stat:
    """What tells without reading whether a content may have changed: if all is equal, it counts as the same.

    Attributes
    ----------
    size : bytes
    mtime_ns : time of change, nanoseconds since 1970; programs can set it. None outside of what 64 bits hold
    ctime_ns : time of change of content or status (owner, name, links), which cannot be set; None if the place has none
    version : see `FileFacts.version`
    """

    size: int
    mtime_ns: int | None
    ctime_ns: int | None = None
    version: int | None = None

    @property
    def state(self) -> tuple[int | None, ...]:
        """What tells it from another content of the same size at the same place."""
        return self.mtime_ns, self.ctime_ns, self.version

    def is_of(self, facts: FileFacts) -> bool:
        """Return whether facts were found of what this tells of."""
        own = (self.size, self.mtime_ns, self.ctime_ns, self.version)
        return own == (facts.size, facts.mtime_ns, facts.ctime_ns, facts.version)

    @staticmethod
    def of_file(status: os.stat_result) -> Stat:
        """Return that of a local file. Times before 1677 or after 2262 fit in no column of 64-bit nanoseconds."""
        mtime_ns, ctime_ns = (
            ns if abs(ns) < _END_OF_TIME_NS else None for ns in (status.st_mtime_ns, status.st_ctime_ns)
        )
        return Stat(status.st_size, mtime_ns, ctime_ns)


@dataclass
class Listing:
    """The content of a place.

    Attributes
    ----------
    locations : of the pictures
    bad : folders and other containers that cannot be read, with the reasons
    passed_over : other files
    facts : what the place says of its pictures, by location; none for files of this machine
    labels : of pictures for which the place itself has some, by location
    """

    locations: set[str] = field(default_factory=set)
    bad: dict[str, str] = field(default_factory=dict)
    passed_over: set[str] = field(default_factory=set)
    facts: dict[str, FileFacts] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)


class Source(ABC):
    """A place with pictures in it. A location is the name of one picture there."""

    @abstractmethod
    def stat(self, location: str, facts: FileFacts | None = None) -> Stat:
        """Return size and times of change of a picture without reading it.

        A place that must be asked over a network is not asked if `facts` say it; what is read then is checked.

        Raises
        ------
        UnreadableError
            When it is not there, or there is no permission to look at it.
        """

    @abstractmethod
    def open(self, location: str, facts: FileFacts | None = None) -> tuple[IO[bytes], Stat]:
        """Open a picture for reading from its first byte. The stream can seek, and the caller must close it.

        It gives as many bytes as the returned size says. Reading raises an OSError (for a local file, a ChangedError)
        if there turn out to be more or fewer. `facts` are as for `stat`.

        Raises
        ------
        UnreadableError
            When it cannot be opened.
        """

    @abstractmethod
    def local_path(self, location: str) -> Path | None:
        """Return the path for libraries that read files themselves; None if the picture is not a local file."""


@dataclass(frozen=True)
class LocalFiles(Source):
    """Files in this machine's file system; locations are paths relative to `root`, or absolute."""

    root: Path

    def list(self) -> Listing:
        """Find the pictures below the root; symbolic links are followed, but no folder is read twice.

        Hidden files and folders, earlier run folders, pipes, sockets and devices are skipped silently. Files that are
        no picture by their content and none by their name are passed over and listed.
        """
        return _walk(self.root)

    def stat(self, location: str, facts: FileFacts | None = None) -> Stat:
        try:
            status = os.stat(self.root / location)
        except OSError as error:
            raise UnreadableError(_why_not_opened(self.root / location, error)) from error
        return Stat.of_file(status)

    def open(self, location: str, facts: FileFacts | None = None) -> tuple[IO[bytes], Stat]:
        file = self.root / location
        try:
            stream, status = open_regular(file)
        except OSError as error:
            raise UnreadableError(_why_not_opened(file, error)) from error
        return stream, Stat.of_file(status)

    def local_path(self, location: str) -> Path | None:
        return self.root / location


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture: where it is, and what the scan found out about it."""

    source: Source
    location: str
    facts: FileFacts
    content: bytes | None = None

    @property
    def suffix(self) -> str:
        """The suffix of its name, with the dot."""
        return os.path.splitext(self.location)[1]

    @property
    def is_local(self) -> bool:
        """Whether it is a file of this machine, which can be opened again and again."""
        return self.source.local_path(self.location) is not None

    def open(self) -> IO[bytes]:
        """Open the picture for reading (see `Source.open`).

        What is no file of this machine is read whole, and compared with the hash that the scan found.

        Raises
        ------
        UnreadableError
            When it cannot be opened; for one that is no file of this machine, also when it cannot be read, or is not
            the content that was scanned.
        """
        if self.content is not None:
            return io.BytesIO(self.content)
        stream = self.source.open(self.location, self.facts)[0]
        return stream if self.is_local else self._checked(stream)

    def _checked(self, stream: IO[bytes]) -> IO[bytes]:
        with stream:
            try:
                content = io.BytesIO(stream.read())
            except OSError as error:
                raise UnreadableError(f"cannot be read: {error.strerror or error}") from error
        if content_hash(content) != self.facts.content_hash:
            raise UnreadableError(CHANGED)
        content.seek(0)
        return content

    def held(self) -> Picture:
        """Return the picture with its content, if it is no file of this machine: so it is read once for several uses.

        Raises
        ------
        UnreadableError
            As for `open`.
        """
        if self.is_local:
            return self
        with self.open() as stream:
            return replace(self, content=stream.read())

    def facts_with_scans(self) -> FileFacts:
        """Return what the scan found out, with the scans of a JPEG counted now if they were not then."""
        facts = self.facts
        if facts.format not in decode.JPEG_FORMATS or facts.n_scans is not None:
            return facts
        try:
            with self.open() as stream:
                return replace(facts, n_scans=decode.count_scans(stream))
        except (UnreadableError, OSError):
            return facts

    def changed(self) -> bool:
        """Return whether the content is no longer the one that was scanned.

        It is read again only where nothing but the time of status change tells of a change, as after a `chmod`. What is
        no file of this machine was compared with its hash when it was read, so nothing is looked at again.
        """
        facts = self.facts
        if not self.is_local:
            return False
        try:
            stat = self.source.stat(self.location)
            if (stat.size, stat.mtime_ns) != (facts.size, facts.mtime_ns):
                return True
            if stat.ctime_ns == facts.ctime_ns:
                return False
            with self.open() as stream:
                return content_hash(stream) != facts.content_hash
        except (UnreadableError, OSError):
            return True


@contextmanager
def reading_threads(n: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """Give the block threads to read with, n of them if n is given.

    If the block is left early, nobody waits for what they are reading.
    """
    pool = ThreadPoolExecutor(n)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _why_not_opened(file: Path, error: OSError) -> str:
    if isinstance(error, NotAFileError):
        return str(error.strerror)
    if error.errno == errno.ELOOP:
        return "a link that leads back to itself"
    if isinstance(error, FileNotFoundError) and file.is_symlink():
        return "a link to a file that is not there"
    known = {errno.ENOENT: "not there", errno.EACCES: "no permission to read it"}
    return known.get(error.errno or 0, f"cannot be opened: {error.strerror}")


def _walk(root: Path) -> Listing:
    found = Listing()
    seen: set[tuple[int, int]] = set()
    unsure: list[str] = []

    def fail(error: OSError) -> None:
        if error.filename == str(root):
            raise DataError(f"cannot read the folder {printable(str(root))!r}: {error.strerror}") from error
        found.bad[error.filename] = f"a folder that cannot be read: {error.strerror}"

    for directory, subdirectories, names in _folders(root, fail):
        try:
            status = os.stat(directory)
        except OSError as error:
            fail(error)
            subdirectories.clear()
            continue
        if (status.st_dev, status.st_ino) in seen or is_folder_of_ours(directory, names):
            subdirectories.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        # A folder comes before links to it, so that the name of a file does not depend on the file system's order.
        subdirectories[:] = sorted(
            (name for name in subdirectories if not name.startswith(".")),
            key=lambda name: (os.path.islink(os.path.join(directory, name)), os.fsencode(name)),
        )
        for name in names:
            path = os.path.join(directory, name)
            if name.startswith(".") or _is_special(path):
                continue
            if os.path.splitext(name)[1].lower() in formats.suffixes():
                found.locations.add(path)
            else:
                unsure.append(path)
    with reading_threads() as pool:
        begin_as_pictures = list(pool.map(_begins_as_a_picture, unsure))
    for path, is_picture in zip(unsure, begin_as_pictures, strict=True):
        (found.locations if is_picture else found.passed_over).add(path)
    return found


def _folders(root: Path, fail: Callable[[OSError], None]) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield each folder with the names of its subfolders and of all else, as `os.walk` does; links are followed.

    The caller may change the list of subfolders. Python 3.11's `os.walk` calls itself for each level, and so it fails
    at about 1,000 of them. A folder whose path is too long for the file system is one that cannot be read.
    """
    waiting = [str(root)]
    while waiting:
        directory = waiting.pop()
        subdirectories: list[str] = []
        names: list[str] = []
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    (subdirectories if _is_folder(entry) else names).append(entry.name)
        except OSError as error:
            fail(error)
            continue
        yield directory, subdirectories, names
        waiting += (os.path.join(directory, name) for name in reversed(subdirectories))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _begins_as_a_picture(path: str) -> bool:
    try:
        with open_regular(path)[0] as stream:
            return formats.format_of(stream.read(formats.HEAD_BYTES)) is not None
    except OSError:
        return False


def _is_special(path: str) -> bool:
    """Return whether a path is a pipe, a socket or a device: reading one could block forever.

    A path that does not exist is not special; it is reported later.
    """
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False

"""The places where pictures are beside the folders of this machine: addresses and tar files; and all places together.

Input: an address, a tar file, or the folder that locations are relative to. Output: the pictures there, as `Source`s
give them. This module must not know what is done with the pictures.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from gpu_cluster.addresses import WEB, base_name, is_address, is_tar, member_of, named_by, public, scheme
from gpu_cluster.errors import DataError
from gpu_cluster.facts import FileFacts
from gpu_cluster.files import MOST_TABLE_BYTES, printable
from gpu_cluster.images import formats, remote, tar_files
from gpu_cluster.images.names import names_in
from gpu_cluster.images.retries import RemoteError
from gpu_cluster.images.source import Listing, LocalFiles, Source, Stat, UnreadableError

# Objects that are looked at, at once, because their name does not say what they are.
_AT_ONCE = 16
# Of a picture whose server does not say its size: it may have no end.
_MOST_UNSIZED_BYTES = 64 << 20
_LISTS = (".txt", ".lst", ".list")


def open_source(root: Path, signed: Mapping[str, str] | None = None) -> Source:
    """Return the source whose locations are addresses, or paths relative to `root`, or members of tar files there.

    `signed` has the whole addresses of those whose locations lack their signatures.
    """
    return Places(LocalFiles(root), dict(signed or {}))


@dataclass(frozen=True)
class Places(Source):
    """All pictures of a job, wherever they are."""

    local: LocalFiles
    signed: Mapping[str, str] = field(default_factory=dict, hash=False, repr=False)

    def stat(self, location: str, facts: FileFacts | None = None) -> Stat:
        return self._source_of(location).stat(location, facts)

    def open(self, location: str, facts: FileFacts | None = None) -> tuple[IO[bytes], Stat]:
        return self._source_of(location).open(location, facts)

    def local_path(self, location: str) -> Path | None:
        return self._source_of(location).local_path(location)

    def _source_of(self, location: str) -> Source:
        if member_of(location) is not None and (
            is_address(location) or not os.path.lexists(self.local.root / location)
        ):
            return TarMembers(self.local.root, self.signed)
        return Objects(self.signed) if is_address(location) else self.local


@dataclass(frozen=True)
class Objects(Source):
    """Objects at addresses, which fsspec reads. A location is an address, without its signature if it has one."""

    signed: Mapping[str, str] = field(default_factory=dict, hash=False, repr=False)
    address: str = ""

    def list(self) -> Listing:
        """List the pictures below the address of a folder, or those that a list at the address names.

        Objects whose names do not say what they are are pictures if they begin as ones.
        """
        found = Listing()
        shown = printable(public(self.address))
        try:
            one = None if self.address.endswith("/") and not _is_web(self.address) else remote.look(self.address)
            if one is None or (_is_web(self.address) and one.kind == "text/html"):
                self._take_below(found)
            elif one.kind.startswith("text/") or public(self.address).lower().endswith(_LISTS):
                return self._listed()
            else:
                self._take(found, one)
        except RemoteError as error:
            raise DataError(f"cannot read {shown!r}: {error.strerror}") from error
        except ValueError as error:
            raise DataError(f"the list {shown!r}: {error}") from error
        return found

    def _take_below(self, found: Listing) -> None:
        unsure = []

        def fail(folder: str, error: RemoteError) -> None:
            found.bad[public(folder)] = f"a folder that cannot be read: {error.strerror}"

        for one in remote.objects(self.address, fail):
            # On the web, parameters can follow the name.
            name = base_name(one.address.partition("?")[0] if _is_web(one.address) else one.address)
            if name.startswith("."):
                continue
            if os.path.splitext(name)[1].lower() in formats.suffixes():
                self._take(found, one)
            else:
                unsure.append(one)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            begin_as_pictures = list(pool.map(self._begins_as_a_picture, unsure))
        for one, is_picture in zip(unsure, begin_as_pictures, strict=True):
            if is_picture:
                self._take(found, one)
            else:
                found.passed_over.add(public(one.address))

    def _take(self, found: Listing, one: remote.Object) -> None:
        location = public(one.address)
        # With what lets its reader in, as links can have it.
        found.locations.add(one.address)
        if one.size is not None:
            found.facts[location] = FileFacts(size=one.size, mtime_ns=one.mtime_ns, version=one.version)

    def _begins_as_a_picture(self, one: remote.Object) -> bool:
        # As with folders: a name with a suffix of its own, such as .csv, says that it is none.
        if os.path.splitext(base_name(one.address))[1]:
            return False
        try:
            # The page of a folder of the web says no sizes.
            seen = remote.look(one.address) if one.size is None else one
            if seen is None or not seen.size:
                return False
            head = remote.read_part(one.address, 0, min(seen.size, formats.HEAD_BYTES))
        except RemoteError:
            return False
        return formats.format_of(head) is not None

    def _listed(self) -> Listing:
        """Return the pictures that a list names, by addresses or relative to its own.

        Raises
        ------
        ValueError
            When it names what a list on a server may not name.
        """
        content = remote.read(self.address, None, most=MOST_TABLE_BYTES)
        found = Listing()
        for name in names_in(content):
            found.locations.add(named_by(self.address, name))
        if not found.locations:
            raise RemoteError("an empty list; expected one address of a picture per line", lasting=True)
        return found

    def stat(self, location: str, facts: FileFacts | None = None) -> Stat:
        known = _known(facts)
        if known is not None:
            return known
        one = self._seen(location)
        # Its server does not say the size, so it is read to be known.
        size = len(self._unsized(location)) if one.size is None else one.size
        return Stat(size, one.mtime_ns, None, one.version)

    def open(self, location: str, facts: FileFacts | None = None) -> tuple[IO[bytes], Stat]:
        stat = _known(facts)
        if stat is None:
            one = self._seen(location)
            if one.size is None:
                content = self._unsized(location)
                return io.BytesIO(content), Stat(len(content), one.mtime_ns, None, one.version)
            stat = Stat(one.size, one.mtime_ns, None, one.version)
        address, size = self.signed.get(location, location), stat.size
        return io.BufferedReader(_Lazy(lambda: remote.read(address, size))), stat

    def _seen(self, location: str) -> remote.Object:
        try:
            one = remote.look(self.signed.get(location, location))
        except RemoteError as error:
            raise UnreadableError(str(error.strerror)) from error
        if one is None:
            raise UnreadableError("a folder")
        return one

    def _unsized(self, location: str) -> bytes:
        try:
            return remote.read(self.signed.get(location, location), None, most=_MOST_UNSIZED_BYTES)
        except RemoteError as error:
            raise UnreadableError(f"its server does not say its size: {error.strerror}") from error

    def local_path(self, location: str) -> Path | None:
        return None


@dataclass(frozen=True)
class TarMembers(Source):
    """Members of tar files; a location is that of the tar file, and the name in it: `shards/000.tar::rose/1.jpg`.

    What is in a tar file is found out while it is scanned (see `tar_scan`).
    """

    root: Path
    signed: Mapping[str, str] = field(default_factory=dict, hash=False, repr=False)

    def stat(self, location: str, facts: FileFacts | None = None) -> Stat:
        known = _known(facts)
        if known is not None and facts is not None and facts.offset is not None:
            return known
        return self._found(location)[0]

    def open(self, location: str, facts: FileFacts | None = None) -> tuple[IO[bytes], Stat]:
        tar = self._tar_of(location)
        if facts is not None and facts.offset is not None and facts.size is not None:
            stat, offset = Stat(facts.size, facts.mtime_ns, facts.ctime_ns, facts.version), facts.offset
        else:
            stat, offset = self._found(location)

        def content() -> bytes:
            found = tar_files.opened(tar, _size_of(tar, stat.state), stat.state).read(offset, stat.size)
            if len(found) != stat.size:
                raise RemoteError("the tar file ends before its content does")
            return found

        return io.BufferedReader(_Lazy(content)), stat

    def local_path(self, location: str) -> Path | None:
        return None

    def _tar_of(self, location: str) -> Path | str:
        member = member_of(location)
        assert member is not None, "see Places"
        return tar_files.place_of(self.root, self.signed.get(member[0], member[0]))

    def _found(self, location: str) -> tuple[Stat, int]:
        """Look for a member in its tar file, of which nothing is known."""
        member, place = member_of(location), self._tar_of(location)
        assert member is not None, "see Places"
        try:
            stat = stat_of_tar(place)
            found = _members(place, stat).get(member[1])
        except OSError as error:
            raise UnreadableError(f"its tar file cannot be read: {error.strerror or error}") from error
        if found is None:
            raise UnreadableError("not in the tar file")
        return Stat(found[1], stat.mtime_ns, stat.ctime_ns, stat.version), found[0]


# Those who look for one member mostly look for others of the same file.
@functools.lru_cache(maxsize=2)
def _members(place: Path | str, stat: Stat) -> dict[str, tuple[int, int]]:
    """Return where the content of each member of a tar file begins, and its size, by its name."""
    found = {}
    # Of a damaged file, what comes before is used.
    with tar_files.TarFile(place, stat.size, stat.state) as tar, suppress(tar_files.DamagedTarError):
        for one in tar.members():
            # As when a tar file is unpacked, the last one of a name counts.
            found[one.name] = (one.offset, one.size)
    return found


def stat_of_tar(place: Path | str) -> Stat:
    """Return size, times and version of a tar file.

    Raises
    ------
    OSError
        When it is not there or cannot be looked at.
    """
    if isinstance(place, Path):
        return Stat.of_file(os.stat(place))
    one = remote.look(place)
    if one is None:
        raise RemoteError("a folder; expected a tar file", lasting=True)
    if one.size is None:
        raise RemoteError("its server does not say its size, which is needed for a tar file", lasting=True)
    return Stat(one.size, one.mtime_ns, None, one.version)


# A job asks for the members of a tar file one after the other. What is read of it is compared with its hash. The same
# process may read another tar file at the same place later, which has another state.
@functools.lru_cache(maxsize=64)
def _size_of(place: Path | str, state: tuple[int | None, ...]) -> int | None:
    return None if isinstance(place, Path) else stat_of_tar(place).size


def is_tar_file(named: Path | str) -> bool:
    """Return whether what the user names is a tar file, and no folder of that name."""
    return is_tar(str(named)) and not (isinstance(named, Path) and named.is_dir())


def _is_web(address: str) -> bool:
    return scheme(address) in WEB


def _known(facts: FileFacts | None) -> Stat | None:
    """Return what facts say of a picture that is no file of this machine; None if they say too little."""
    if facts is None or facts.size is None:
        return None
    # What was scanned has a hash, with which it is compared when it is read.
    if facts.version is None and facts.mtime_ns is None and facts.content_hash is None:
        return None
    return Stat(facts.size, facts.mtime_ns, facts.ctime_ns, facts.version)


class _Lazy(io.RawIOBase):
    """A stream whose content is fetched when somebody first reads it."""

    def __init__(self, fetch: Any) -> None:
        self._fetch = fetch
        self._content: io.BytesIO | None = None

    def _loaded(self) -> io.BytesIO:
        if self._content is None:
            self._content = io.BytesIO(self._fetch())
        return self._content

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readall(self) -> bytes:
        # Without a copy, if nothing was read before.
        return self._loaded().read()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._loaded().seek(offset, whence)

    def tell(self) -> int:
        return 0 if self._content is None else self._content.tell()

    def readinto(self, buffer: Any) -> int:
        return self._loaded().readinto(buffer)

"""Reads tar files in the order of their members, and single members by where they lie; on this machine or remote.

Input: where a tar file is. Output: its members with their places and contents. Nothing is unpacked: a member is a name
and some bytes, whatever its name says. This module must not know what the members are.
"""

from __future__ import annotations

import functools
import io
import os
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from gpu_cluster.addresses import is_address
from gpu_cluster.files import open_regular
from gpu_cluster.images import remote

# A remote tar file is read in parts of this size, each once while it is among the last few: readers of neighbouring
# members share them. Together they take 64 MiB.
_PART_BYTES, _MOST_PARTS = 8 << 20, 8
# What ends a tar file: blocks of zeros.
_BLOCK = 512
_MOST_HEADER_BYTES = 1 << 20
_MOST_MEMBERS = 10_000_000


class DamagedTarError(Exception):
    """The rest of a tar file cannot be read; the message is the reason in plain words."""


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar file.

    Attributes
    ----------
    name : as it is in the tar file (surrogate escapes for bytes that are not UTF-8)
    offset, size : where its content lies, bytes
    """

    name: str
    offset: int
    size: int


class TarFile:
    """An open tar file; its content is read by several threads at once."""

    def __init__(self, place: Path | str, size: int | None = None, state: tuple[int | None, ...] = ()) -> None:
        """Set where it is: a path, or an address with the size that its server says, and its state (see `Stat`).

        Raises
        ------
        OSError
            When it cannot be opened.
        """
        self._place = place
        self._key = (place, size, state)
        if isinstance(place, Path):
            self._stream: io.BufferedReader | None
            self._stream, status = open_regular(place)
            self.size = status.st_size
        else:
            assert size is not None, "a server that does not say a size cannot send parts"
            self._stream, self.size = None, size

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def __enter__(self) -> TarFile:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def read(self, offset: int, size: int) -> bytes:
        """Return some bytes; fewer where the file ends.

        Raises
        ------
        OSError
            When they cannot be read.
        """
        last = min(offset + size, self.size)
        if self._stream is not None:
            return os.pread(self._stream.fileno(), max(0, last - offset), offset)
        found = []
        while offset < last:
            number, within = divmod(offset, _PART_BYTES)
            part = _parts.get(self._key, number)[within : within + last - offset]
            found.append(part)
            offset += len(part)
        return b"".join(found)

    def members(self) -> Iterator[Member]:
        """Yield the regular files in the order in which they lie; the content of each is there in full.

        Links, folders and devices are left out.

        Raises
        ------
        DamagedTarError
            After the last member that can be read, when the file is damaged or cut short, or is no tar file.
        OSError
            When it cannot be read.
        """
        import tarfile

        # A raw stream, because tarfile reads a header at a time: a buffer would read the contents between them.
        stream: Any = _Stream(self)
        try:
            opened = tarfile.open(fileobj=stream, mode="r:", errors="surrogateescape")  # noqa: SIM115 - it is below
        except tarfile.TarError as error:
            raise DamagedTarError(self._why_no_tar()) from error
        n = 0
        with opened as tar:
            while True:
                try:
                    found = tar.next()
                # A hostile header can say a number of any size, or no number; and tarfile calls itself for each
                # header that says more of the next.
                except (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError) as error:
                    raise DamagedTarError(f"damaged or cut short after {n} files") from error
                if found is None:
                    break
                # tarfile keeps every member, and what headers say of all that follow.
                tar.members.clear()  # type: ignore[attr-defined]
                tar.pax_headers = {}
                if not found.isreg() or found.sparse is not None:
                    continue
                if found.size < 0 or found.offset_data + found.size > self.size:
                    raise DamagedTarError(f"damaged or cut short after {n} files")
                n += 1
                if n > _MOST_MEMBERS:
                    raise DamagedTarError(f"more than {_MOST_MEMBERS:,} files; split it")
                yield Member(found.name, found.offset_data, found.size)
            # tarfile takes a header that it cannot read for the end.
            if self.read(tar.offset, _BLOCK).strip(b"\0") or tar.offset >= self.size > 0:
                raise DamagedTarError(f"damaged or cut short after {n} files")

    def _why_no_tar(self) -> str:
        head = self.read(0, 6)
        for start, name in (
            (b"\x1f\x8b", "gzip"),
            (b"BZh", "bzip2"),
            (b"\xfd7zXZ", "xz"),
            (b"\x28\xb5\x2f\xfd", "zstd"),
        ):
            if head.startswith(start):
                return f"a tar file compressed with {name}; expected one that is not: unpack it with {name} -d"
        return "empty, and so no tar file" if not self.size else "not a tar file"


class _Stream(io.RawIOBase):
    """What `tarfile` reads a tar file from."""

    def __init__(self, tar: TarFile) -> None:
        self._tar = tar
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._tar.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        # A hostile header can say that the next header has any size, and all of it would be read.
        if not 0 <= size <= _MOST_HEADER_BYTES:
            from tarfile import ReadError

            raise ReadError("a header of this size")
        return super().read(size) or b""

    def readinto(self, buffer: Any) -> int:
        content = self._tar.read(self._at, len(buffer))
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


class _Parts:
    """The last parts of remote tar files that were read, each read once however many threads ask for it."""

    def __init__(self) -> None:
        self._found: OrderedDict[tuple[Any, int], Future[bytes]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Any, number: int) -> bytes:
        """Return a part of the file `key`, which is its address, its size and its state."""
        address, size, _state = key
        with self._lock:
            future = self._found.get((key, number))
            is_mine = future is None
            if future is None:
                future = self._found[key, number] = Future()
            self._found.move_to_end((key, number))
            while len(self._found) > _MOST_PARTS:
                self._found.popitem(last=False)
        if is_mine:
            try:
                first = number * _PART_BYTES
                future.set_result(remote.read_part(address, first, min(first + _PART_BYTES, size)))
            except BaseException as error:
                with self._lock:
                    self._found.pop((key, number), None)
                future.set_exception(error)
                raise
        return future.result()


_parts = _Parts()


# A job reads the members of a shard of pictures one after the other, mostly of one file or two.
@functools.lru_cache(maxsize=16)
def opened(place: Path | str, size: int | None, state: tuple[int | None, ...]) -> TarFile:
    """Return an open tar file; a few of those that were asked for last stay open.

    `size` and `state` are those that are known of it; another tar file at the same place is not this one.
    """
    return TarFile(place, size, state)


def place_of(root: Path, tar: str) -> Path | str:
    """Return where the tar file of a location is: an address, or a path."""
    return tar if is_address(tar) else root / tar

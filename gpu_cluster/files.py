"""Writes files so that they are never half written, reads files that may be anything, and turns paths into text.

This module must not know what is in the files.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from gpu_cluster.errors import JobError

# The most that is read of a list or a table of files: room for some ten million names.
MOST_TABLE_BYTES = 1 << 30
# What is read behind the size of a file, to see whether there is more. Some files of /proc refuse to give a few bytes.
_BEHIND_BYTES = 4096


def write_whole(path: Path, content: Any, *, partial: Path | None = None) -> None:
    """Write bytes to a file and flush it to the disk; if this fails, an earlier file of that name stays unchanged.

    It is written under the name `partial`, which must not exist yet; by default, this is a random hidden name. The new
    name is flushed to the disk too, if the file system can flush folders.

    Raises
    ------
    OSError
        Whatever the file system refuses.
    """
    # `tempfile` is not used, because only the owner may read its files. The random part is needed because another job,
    # which may have the same process number in another container, may write a file of this name too. Only the beginning
    # of the name is used, because the name may already have the greatest length that is allowed.
    partial = partial or path.with_name(f".{path.name[:50]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with partial.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    # The file is complete and has its name by now, so it is no failure if the folder cannot be read or flushed.
    with suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def write_explained(path: Path) -> Iterator[None]:
    """Turn an OSError in the block, which writes a file with `write_whole`, into a JobError that names the file."""
    try:
        yield
    except OSError as error:
        raise JobError(
            f"cannot write {printable(str(path))!r}: {error.strerror or error}; an earlier one stays as it is"
        ) from error


class NotAFileError(OSError):
    """What was to be read is a folder, a pipe, a socket or a device; `strerror` says it in words."""


class ChangedError(OSError):
    """A file became longer or shorter while it was read. At another time it may be readable."""

    def __init__(self) -> None:
        super().__init__(errno.ESTALE, "changed while it was read")

    def __str__(self) -> str:
        return str(self.strerror)


def open_regular(
    path: str | os.PathLike[str], *, most_bytes: int | None = None
) -> tuple[io.BufferedReader, os.stat_result]:
    """Open a regular file for reading, and return its status at this moment too.

    The stream ends where the file ended when it was opened, so reading it ends too, whatever the file is. Reading
    raises a ChangedError if the file has become shorter, and at the end if it has become longer. Files of /proc and
    /sys that give data without having a size count as such.

    Raises
    ------
    NotAFileError
        When it is not a regular file; it is not waited for the other end of a pipe.
    OSError
        When it has more than `most_bytes`, or whatever the file system refuses.
    """
    # Without O_NONBLOCK, opening a pipe would wait for its other end.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, a socket or a device"
            raise NotAFileError(errno.EINVAL, f"{what}, not a file")
        if most_bytes is not None and status.st_size > most_bytes:
            raise OSError(errno.EFBIG, f"{status.st_size:,} bytes; expected at most {most_bytes:,}")
        return io.BufferedReader(_Bounded(descriptor, status.st_size)), status
    except BaseException:
        os.close(descriptor)
        raise


class _Bounded(io.FileIO):
    """The first `size` bytes of a file; reading raises a ChangedError if it is found to have more or fewer."""

    def __init__(self, descriptor: int, size: int) -> None:
        super().__init__(descriptor, "rb")
        self._size = size

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        left = max(0, self._size - self.tell())
        if not left and view:
            if os.pread(self.fileno(), _BEHIND_BYTES, self._size):
                raise ChangedError
            return 0
        n = super().readinto(view[:left])
        # Such a file is one of /proc or /sys, which has no data at this moment and would be waited for.
        if n is None:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        if not n and view:
            raise ChangedError
        return n

    def readall(self) -> bytes:
        content = bytearray()
        block = bytearray(min(self._size, 1 << 20) + 1)
        while n := self.readinto(block):
            content += block[:n]
        return bytes(content)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if whence == os.SEEK_END:
            return super().seek(self._size + offset)
        return super().seek(offset, whence)


def content_hash(stream: IO[bytes]) -> str:
    """Return the BLAKE2b-128 of a stream's content, hex; it is read from where it is to its end.

    Raises
    ------
    OSError
        When it cannot be read.
    """
    # Every binary stream has `readinto`, but the type IO[bytes] does not declare it.
    return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()  # type: ignore[arg-type]


def printable(path: str) -> str:
    """Return a path as text for messages: bytes that are not UTF-8, and carriage returns, become `\\xNN`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace").replace("\r", "\\x0d")


# What `escaped` writes: a byte that is not ASCII, a carriage return, or a backslash.
_ESCAPE = re.compile(rb"\\x([89a-f][0-9a-f]|0d|5c)")


def escaped(path: str) -> str:
    r"""Return a path as a cell of a table; no other path has the same cell, and `unescaped` gives it back.

    Bytes that are not UTF-8, and carriage returns, become `\xNN`. A backslash becomes `\x5c` where `x` and two
    hexadecimal digits (0 to 9, a to f) follow it, so that it is not taken for one of these.
    """
    # Python 3.11's csv does not quote a carriage return if lines end in a newline only; readers then split the row.
    return printable(os.fsdecode(re.sub(rb"\\(?=x[0-9a-f]{2})", rb"\\x5c", os.fsencode(path))))


def unescaped(cell: str) -> str:
    r"""Return the path of a cell of a table: the inverse of `escaped`.

    An escape that `escaped` does not write, such as `\x2f` for a slash, is left as it is.
    """
    return os.fsdecode(_ESCAPE.sub(lambda found: bytes([int(found[1], 16)]), os.fsencode(cell)))

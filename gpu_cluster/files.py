"""Files that are whole or not there, and paths as text. Must not know what is in the files."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gpu_cluster.errors import JobError


def write_whole(path: Path, content: Any) -> None:
    """Write bytes to a file that is then whole and on the disk; if that fails, what was there before stays.

    Its name is on the disk, too, where the file system flushes folders.

    Raises
    ------
    OSError
        Whatever the file system refuses.
    """
    # Not by `tempfile`, whose files are the owner's alone; and other jobs, with other numbers in other containers,
    # may write a file of this name too.
    # And of a name that is as long as names may be, only the beginning.
    partial = path.with_name(f".{path.name[:50]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with partial.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    # The file is whole under its name by now: a folder that may not be read, or a file system that flushes no folders,
    # is no failure.
    with suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def write_explained(path: Path) -> Iterator[None]:
    """Turn what keeps a block from writing a file whole into a JobError that names the file."""
    try:
        yield
    except OSError as error:
        raise JobError(
            f"cannot write {printable(str(path))!r}: {error.strerror or error}; an earlier one stays as it is"
        ) from error


def printable(path: str) -> str:
    """Return a path as a table can hold it: bytes that are not UTF-8, and carriage returns, appear as `\\xNN`."""
    # Python 3.11's csv leaves a carriage return unquoted where lines end in a newline alone; readers break there.
    return os.fsencode(path).decode("utf-8", "backslashreplace").replace("\r", "\\x0d")

"""Writes files so that they are never half written, and turns paths into text. This module must not know what is in the
files."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gpu_cluster.errors import JobError


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


def printable(path: str) -> str:
    """Return a path as text for tables: bytes that are not UTF-8, and carriage returns, become `\\xNN`."""
    # Python 3.11's csv does not quote a carriage return if lines end in a newline only; readers then split the row.
    return os.fsencode(path).decode("utf-8", "backslashreplace").replace("\r", "\\x0d")

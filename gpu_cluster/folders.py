"""Opens folders and locks them. This module must not know what is in the folders.

An open folder stays the same one, whatever is renamed meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The longest wait for a lock that another process holds: it holds it for the time of a few renames.
_WAIT_S = 10.0


@contextmanager
def opened(folder: Path) -> Iterator[int]:
    descriptor = open_folder(folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_folder(folder: str | Path, within: int | None = None) -> int:
    """Open a folder. In another one, a link to a folder is an error: what it leads to is somebody else's."""
    no_link = 0 if within is None else os.O_NOFOLLOW
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | no_link, dir_fd=within)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder for the block; wait for a process that holds the lock. Without locks, the block runs all the same.

    Raises
    ------
    OSError
        When the folder cannot be opened, or another process holds the lock for more than 10 seconds.
    """
    with opened(folder) as descriptor:
        deadline = time.monotonic() + _WAIT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            # Not every file system has locks.
            except OSError:
                break
            else:
                break
        yield


def try_lock(folder: Path) -> int | None:
    """Lock a folder until the returned descriptor is closed; None if another process holds the lock, or without locks.

    Raises
    ------
    OSError
        When the folder cannot be opened.
    """
    descriptor = open_folder(folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def is_same(folder: Path, descriptor: int) -> bool:
    """Return whether the folder of this name, and not a link to it, is the one that was opened."""
    try:
        there, opened = folder.lstat(), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino)

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
    """Lock the folder of this name for the block; wait for a process that holds the lock.

    Who renames a folder that is complete must hold its lock. Another process may have renamed it during the wait, so
    the folder that has the name after it is locked in its place. Without locks, the block runs all the same.

    Raises
    ------
    OSError
        When the folder cannot be opened, or other processes hold the lock for more than 10 seconds.
    """
    deadline = time.monotonic() + _WAIT_S
    while True:
        with opened(folder) as descriptor:
            _wait_for_lock(descriptor, deadline)
            # A link to a folder stands for that folder here.
            if os.path.samestat(os.stat(folder), os.fstat(descriptor)):
                yield
                return


def lock(folder: Path) -> int | None:
    """Lock a folder until the returned descriptor is closed; wait for who holds the lock. None if there are no locks.

    Raises
    ------
    OSError
        When the folder cannot be opened, or another process holds the lock for more than 10 seconds.
    """
    descriptor = open_folder(folder)
    try:
        if _wait_for_lock(descriptor, time.monotonic() + _WAIT_S):
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _wait_for_lock(descriptor: int, deadline: float) -> bool:
    """Lock an open folder; return whether it could be, because not every file system has locks."""
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        except OSError:
            return False
        else:
            return True


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

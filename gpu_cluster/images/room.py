"""Limits how many bytes threads hold together, such as contents of pictures that they have read over a network.

This module must not know what the bytes are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class Room:
    """So many bytes, of which each thread takes some for a time."""

    def __init__(self, n_bytes: int) -> None:
        self._all = self._free_bytes = n_bytes
        self._changed = Condition()

    @contextmanager
    def taken(self, n_bytes: int) -> Iterator[None]:
        """Wait until so many bytes are free, and hold them for the block; more than there are at all are held alone."""
        n_bytes = min(n_bytes, self._all)
        with self._changed:
            self._changed.wait_for(lambda: self._free_bytes >= n_bytes)
            self._free_bytes -= n_bytes
        try:
            yield
        finally:
            with self._changed:
                self._free_bytes += n_bytes
                self._changed.notify_all()

"""Limits how many bytes threads hold together: contents that they have read over a network, and pictures in decoding.

This module must not know what the bytes are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class Room:
    """So many bytes, `n_bytes`, of which each thread takes some for a time."""

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = self._free_bytes = n_bytes
        self._changed = Condition()

    @contextmanager
    def taken(self, n_bytes: int) -> Iterator[None]:
        """Wait until so many bytes are free, and hold them for the block; more than there are at all are held alone."""
        n_bytes = min(n_bytes, self.n_bytes)
        with self._changed:
            self._changed.wait_for(lambda: self._free_bytes >= n_bytes)
            self._free_bytes -= n_bytes
        try:
            yield
        finally:
            with self._changed:
                self._free_bytes += n_bytes
                self._changed.notify_all()

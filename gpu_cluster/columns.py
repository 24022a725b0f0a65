"""Columns of text in little memory: for a million files, a Python object for each would take hundreds of megabytes.

This module must not know what the texts are.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt

T = TypeVar("T")

# Texts that are encoded together.
_BLOCK = 65_536


class Column(Sequence[T], Generic[T]):
    """A sequence that makes its items when they are asked for; it is equal to a tuple of the same items."""

    def item(self, row: int) -> T:
        """Return the item of a row, from 0."""
        raise NotImplementedError

    @overload
    def __getitem__(self, row: int) -> T: ...

    @overload
    def __getitem__(self, row: slice) -> tuple[T, ...]: ...

    def __getitem__(self, row: int | slice) -> T | tuple[T, ...]:
        if isinstance(row, slice):
            return tuple(map(self.item, range(*row.indices(len(self)))))
        at = row + len(self) if row < 0 else row
        if not 0 <= at < len(self):
            raise IndexError(f"expected a row below {len(self)}, found {row}")
        return self.item(at)

    def __iter__(self) -> Iterator[T]:
        return map(self.item, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Column | tuple):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


class Texts(Column[str]):
    """Texts, such as paths, as one buffer of bytes: a text takes its bytes and 8 more.

    Bytes that are not UTF-8 are those that `os.fsdecode` made surrogate escapes of.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        """Set the texts, which are read once."""
        source, parts, lengths = iter(texts), [], [np.zeros(1, np.int64)]
        while block := [os.fsencode(text) for text in islice(source, _BLOCK)]:
            parts.append(b"".join(block))
            lengths.append(np.fromiter(map(len, block), np.int64, len(block)))
        self._bytes = b"".join(parts)
        self._ends = np.cumsum(np.concatenate(lengths))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def item(self, row: int) -> str:
        return os.fsdecode(self._bytes[self._ends[row] : self._ends[row + 1]])


class Names(Column[str | None]):
    """Texts of which many are the same, such as labels: an item takes 4 bytes, and each text is held once."""

    def __init__(self, names: Iterable[str | None]) -> None:
        """Set the texts, which are read once; None is an item without a text."""
        self._coded = Coded()
        self._codes: npt.NDArray[np.int32] = np.fromiter(map(self._coded.code, names), np.int32)

    def __len__(self) -> int:
        return len(self._codes)

    def item(self, row: int) -> str | None:
        return self._coded.name(int(self._codes[row]))


class Coded:
    """Texts by numbers from 0, in the order in which they first came; None has the number -1."""

    def __init__(self) -> None:
        self._code_of: dict[str, int] = {}
        self._names: list[str] = []

    def code(self, name: str | None) -> int:
        """Return the number of a text, which is a new one if the text is new."""
        if name is None:
            return -1
        code = self._code_of.setdefault(name, len(self._names))
        if code == len(self._names):
            self._names.append(name)
        return code

    def name(self, code: int) -> str | None:
        """Return the text of a number."""
        return None if code < 0 else self._names[code]


def as_column(kind: Any, items: Any) -> Any:
    """Return items as a column of a kind; a column that is one already is returned as it is."""
    return items if isinstance(items, kind) else kind(items)

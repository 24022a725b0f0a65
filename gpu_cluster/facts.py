"""What the scan finds out about files: one object for a file that somebody asks for, columns for all of them.

This module must not know how files are found or read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from gpu_cluster.columns import Coded, Column


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What the scan found out about a file; a fact that could not be read is None.

    Attributes
    ----------
    size : bytes
    mtime_ns : when its content last changed, nanoseconds since 1970; None outside of 1677 to 2262 (64 bits)
    ctime_ns : when its content or status last changed, in the same unit; it cannot be set back as `mtime_ns` can
    content_hash : BLAKE2b-128 of its content, hex
    format, mode : as Pillow names them, by the file's content and not its name
    width, height : pixels as stored, before the orientation is applied
    orientation : Exif's 1 to 8; 1 is upright
    n_scans : of a JPEG, the number of scans in the file; None for other formats, and in a scan of an earlier version
    profile : what its embedded colour profile is: "" if it has none, "sRGB", "invalid" if it cannot be used, otherwise
        its name and digest; None in a scan of an earlier version
    reason : why the file cannot be used, in plain words; None if the scan found no reason
    version : of a picture at an address, or in a tar file: a number that its server gives another value when the
        content changes (of an ETag, for example); None if there is none
    offset : of a picture in a tar file, where its content begins in that file, bytes
    """

    size: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    content_hash: str | None = None
    format: str | None = None
    mode: str | None = None
    width: int | None = None
    height: int | None = None
    orientation: int = 1
    n_scans: int | None = None
    profile: str | None = None
    reason: str | None = None
    version: int | None = None
    offset: int | None = None


# The columns of a picture, 75 bytes; without the last two, which files of this machine do not need, 59 bytes. Texts are
# numbers of `Coded`; -1 stands for a number that is None.
_ROW = np.dtype(
    [
        ("size", np.int64),
        ("mtime_ns", np.int64),
        ("ctime_ns", np.int64),
        ("content_hash", "V16"),
        ("format", np.int8),
        ("mode", np.int8),
        ("width", np.int32),
        ("height", np.int32),
        ("orientation", np.uint8),
        ("n_scans", np.int16),
        ("profile", np.int16),
        ("reason", np.int32),
        ("version", np.int64),
        ("offset", np.int64),
    ]
)
_NAMES = tuple(_ROW.names or ())
_HERE, _ELSEWHERE = _NAMES[:-2], _NAMES[-2:]
_ROW_HERE = np.dtype([(name, _ROW[name]) for name in _HERE])
_CODED = ("format", "mode", "profile", "reason")
# A time before 1970 can be -1 nanosecond, so times have another mark for None.
_TIMES, _NO_TIME = ("mtime_ns", "ctime_ns"), np.iinfo(np.int64).min
_NO_HASH = bytes(16)
_BLOCK = 4096


class FileTable(Column[FileFacts]):
    """The facts of many pictures, 59 bytes each, or 75 where some are no files of this machine.

    A `FileFacts` is made when it is asked for.
    Facts of a file that do not fit the columns, such as a width of more than 31 bits, are held as they are.
    """

    def __init__(self, files: Iterable[FileFacts]) -> None:
        """Set the facts, which are read once."""
        self._coded = {name: Coded() for name in _CODED}
        self._odd: dict[int, FileFacts] = {}
        source, blocks = iter(files), [np.empty(0, _ROW)]
        first = 0
        while block := list(islice(source, _BLOCK)):
            try:
                blocks.append(self._fitting(block))
            except OverflowError:
                blocks.append(np.array([self._row(first + at, one) for at, one in enumerate(block)], _ROW))
            first += len(block)
        rows = np.concatenate(blocks)
        if all((rows[name] == -1).all() for name in _ELSEWHERE):
            rows = np.array(rows[list(_HERE)], _ROW_HERE)
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def item(self, row: int) -> FileFacts:
        if row in self._odd:
            return self._odd[row]
        return FileFacts(*map(self._value, self._rows.dtype.names or (), self._rows[row].item()))

    def column(self, name: str, rows: npt.NDArray[np.integer[Any]] | None = None) -> list[Any]:
        """Return one fact of every file, or of the files `rows`; this is much quicker than to ask for each file."""
        wanted = np.arange(len(self)) if rows is None else rows
        values: list[Any] = [None] * len(wanted)
        if name in (self._rows.dtype.names or ()):
            values = [self._value(name, value) for value in self._rows[name][wanted].tolist()]
        for at in np.flatnonzero(np.isin(wanted, list(self._odd))):
            values[at] = getattr(self._odd[int(wanted[at])], name)
        return values

    def hashes(self) -> npt.NDArray[np.uint64]:
        """Return (n, 2): the two halves of each content hash; zeros for a file without one."""
        found = self._rows["content_hash"].copy()
        for row, facts in self._odd.items():
            found[row] = np.void(_hash(facts.content_hash))
        return found.view(np.uint64).reshape(-1, 2)

    def with_reason(self) -> list[int]:
        """Return the rows of the files that have a reason."""
        odd = (row for row, facts in self._odd.items() if facts.reason is not None)
        return sorted({*np.flatnonzero(self._rows["reason"] >= 0).tolist(), *odd})

    def larger_than(self, n_pixels: int) -> list[int]:
        """Return the rows of the files whose pictures have more pixels."""
        width, height = (np.maximum(self._rows[name], 0).astype(np.int64) for name in ("width", "height"))
        odd = (row for row, facts in self._odd.items() if (facts.width or 0) * (facts.height or 0) > n_pixels)
        return sorted({*np.flatnonzero(width * height > n_pixels).tolist(), *odd})

    def _fitting(self, block: list[FileFacts]) -> npt.NDArray[np.void]:
        """Return the rows of files.

        Raises
        ------
        OverflowError
            When a fact does not fit its column.
        """
        rows = np.empty(len(block), _ROW)
        for name in _NAMES:
            values = [getattr(one, name) for one in block]
            if name == "content_hash":
                stored = b"".join(map(_hash, values))
                none = _NO_HASH.hex()
                if none in values or stored.hex() != "".join(none if one is None else one for one in values):
                    raise OverflowError
                rows[name] = np.frombuffer(stored, "V16")
                continue
            rows[name] = [self._stored(name, one) for one in values]
            n_none = int((rows[name] == (_NO_TIME if name in _TIMES else -1)).sum())
            if n_none != values.count(None):
                raise OverflowError
        return rows

    def _row(self, row: int, facts: FileFacts) -> tuple[Any, ...]:
        values = tuple(self._stored(name, getattr(facts, name)) for name in _NAMES)
        if any(map(_does_not_fit, _NAMES, values)) or self.item_of(values) != facts:
            self._odd[row] = facts
            return tuple(
                _hash(None) if name == "content_hash" else -1 if name in (*_CODED, *_ELSEWHERE) else 0
                for name in _NAMES
            )
        return values

    def item_of(self, values: tuple[Any, ...]) -> FileFacts:
        """Return the facts that the values of a row mean."""
        return FileFacts(*map(self._value, _NAMES, values))

    def _stored(self, name: str, value: Any) -> Any:
        if name in _CODED:
            return self._coded[name].code(value)
        if name == "content_hash":
            return _hash(value)
        if value is None:
            return _NO_TIME if name in _TIMES else -1
        return value

    def _value(self, name: str, stored: Any) -> Any:
        if name in _CODED:
            return self._coded[name].name(stored)
        if name == "content_hash":
            return None if stored == _NO_HASH else stored.hex()
        return None if stored == (_NO_TIME if name in _TIMES else -1) else stored


def _does_not_fit(name: str, value: Any) -> bool:
    if name == "content_hash":
        return False
    limits = np.iinfo(_ROW[name])
    return not limits.min <= value <= limits.max


def _hash(text: str | None) -> bytes:
    """Return the 16 bytes of a hash; zeros for None, and for what is no hash."""
    try:
        found = bytes.fromhex(text or "")
    except ValueError:
        return _NO_HASH
    return found if len(found) == 16 else _NO_HASH

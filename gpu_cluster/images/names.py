"""Reads lists of file names, and finds the pictures that a name in a list or a table means.

This module must not know what else is said of the pictures.
"""

from __future__ import annotations

import errno
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from gpu_cluster.addresses import MEMBER, base_name
from gpu_cluster.errors import DataError
from gpu_cluster.files import MOST_TABLE_BYTES, open_regular, printable, unescaped
from gpu_cluster.manifest import Manifest

# What some editors write before UTF-8.
_MARK = b"\xef\xbb\xbf"


def listed_names(file: Path, option: str) -> Iterator[str]:
    """Yield the names in a list, one on each line or separated by NUL bytes; `option` is how the user named the list.

    Raises
    ------
    DataError
        When it cannot be read, or is empty.
    """
    try:
        content = _content(file)
    except OSError as error:
        raise DataError(
            f"cannot read {option} {printable(str(file))!r}: {error.strerror}; expected a file with one image file per "
            "line"
        ) from error
    empty = True
    for name in names_in(content):
        empty = False
        yield name
    if empty:
        raise DataError(f"{option} {printable(str(file))!r} is empty; expected one image file per line")


def names_in(content: bytes) -> Iterator[str]:
    """Yield the names in the content of a list, one on each line or separated by NUL bytes."""
    # `find -print0` separates names by NUL bytes, for names with newlines in them.
    # They are taken out one by one, because a list of a billion empty names would not fit in memory.
    separated, start = (rb"[^\0]+", 0) if b"\0" in content else (rb"[^\r\n]+", len(_MARK) * content.startswith(_MARK))
    for name in (found[0] for found in re.compile(separated).finditer(content, start)):
        if name.strip():
            yield os.fsdecode(name)


def _content(file: Path) -> bytes:
    # A shell's <(find ...) and /dev/stdin are pipes whose other end is open already, so they are not waited for.
    if file.is_relative_to("/dev") and file.is_fifo():
        with file.open("rb") as stream:
            content = stream.read(MOST_TABLE_BYTES + 1)
        if len(content) > MOST_TABLE_BYTES:
            raise OSError(errno.EFBIG, f"it goes on after {MOST_TABLE_BYTES:,} bytes")
        return content
    with open_regular(file, most_bytes=MOST_TABLE_BYTES)[0] as stream:
        return stream.read()


class PicturesByName:
    """Finds the manifest rows for a name in a list or a table."""

    def __init__(self, manifest: Manifest, table: Path) -> None:
        """Set the pictures, and the file that names them: relative names may start from its folder too."""
        # As texts, which are joined sooner than paths: there may be millions of names.
        root = str(manifest.root)
        self._bases = (root, str(table.absolute().parent))
        self._by_path = {os.path.normpath(os.path.join(root, path)): row for row, path in enumerate(manifest.paths)}
        self._by_name: dict[str, list[int]] = defaultdict(list)
        self._paths = manifest.paths
        self._elsewhere = len(manifest.listed) > 0
        for row, path in enumerate(manifest.paths):
            self._by_name[base_name(path)].append(row)

    def find(self, name: str) -> list[int]:
        """Return the row for an absolute path or one relative to the root or the table; or all for a file name."""
        for candidate in _readings(name):
            for base in self._bases:
                row = self._by_path.get(os.path.normpath(os.path.join(base, candidate)))
                if row is not None:
                    return [row]
            if candidate in self._by_name:
                return self._by_name[candidate]
            if self._elsewhere and (rows := self._ending_with(candidate)):
                return rows
        return []

    def _ending_with(self, name: str) -> list[int]:
        """Return the rows of the pictures at addresses and in tar files whose location ends with a name in folders."""
        ends = (f"/{name}", f"{MEMBER}{name}")
        return [row for row in self._by_name.get(base_name(name), []) if self._paths[row].endswith(ends)]


def _readings(name: str) -> Iterator[str]:
    """Yield a name as it is, and then what else it can mean."""
    yield name
    # A name from a table of an earlier run may have escapes in it.
    yield unescaped(name)
    yield name.strip()
    # Only where no file has a backslash in its name, it separates folders, as in a table written on Windows.
    yield name.strip().replace("\\", "/")

r"""Turns names of any content into names of files and folders that Linux, macOS and Windows accept.

Names enter, as the file system or a table of labels has them; paths below one folder leave, no two of which are the
same there. A name that is valid everywhere stays as it is. This module must not know what lies under the names.
"""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import PurePosixPath

from gpu_cluster.words import UNSAFE

# What Windows takes in no name.
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')
# Names of devices on Windows, whatever suffix they have:
# https://learn.microsoft.com/en-us/windows/win32/fileio/naming-a-file
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3])\s*(\.|$)", re.IGNORECASE)
_SURROGATE = re.compile("[\ud800-\udfff]")
# The most bytes of a name on Linux; macOS and Windows count characters and allow as many.
MOST_BYTES = 255
# Of a longer suffix no more is kept.
_MOST_SUFFIX_BYTES = 32


def portable(name: str) -> str:
    """Return a name that every system accepts, and that is one name: not empty, and no `.` or `..`.

    Bytes that are not UTF-8 become `%` and two hexadecimal digits. What a system forbids becomes `_`: separators,
    control characters, marks that turn the direction of a text, `<>:"|?*`, and dots and spaces at the end. A name of a
    device of Windows gets `_` before it. A name that is too long is cut before its suffix.
    """
    text = _SURROGATE.sub(_byte, name)
    text = UNSAFE.sub("_", _FORBIDDEN.sub("_", text))
    bare = text.rstrip(". ")
    text = bare + "_" * (len(text) - len(bare)) if bare else "_"
    return _cut(f"_{text}" if _DEVICES.match(text) else text)


def portable_folder(name: str) -> str:
    """Return the same for a folder that is not to be hidden: a dot at the beginning becomes `_`."""
    safe = portable(name)
    return _cut(f"_{safe[1:]}") if safe.startswith(".") else safe


def _cut(name: str) -> str:
    """Return a name that is not too long, cut before its suffix."""
    if len(name.encode()) <= MOST_BYTES:
        return name
    stem, suffix = _parts(name)
    return _beginning(stem, MOST_BYTES - len(suffix.encode())).rstrip(". ") + suffix


def _byte(found: re.Match[str]) -> str:
    code = ord(found[0])
    # Half of a surrogate pair that stands for no byte comes from a label, never from the file system.
    return f"%{code - 0xDC00:02X}" if 0xDC80 <= code <= 0xDCFF else "_"


class Tree:
    """Gives out names below one folder; two names are never the same, even where case and accents do not count."""

    def __init__(self) -> None:
        # For each name that is taken, the last number that was given to make another one of it.
        self._taken: dict[tuple[PurePosixPath, str], int] = {}
        self._folders: dict[tuple[PurePosixPath, str], PurePosixPath] = {}

    def folder(self, name: str, within: PurePosixPath = PurePosixPath(), *, hidden: bool = True) -> PurePosixPath:
        """Return the path for a folder of this name in another one; it is the same each time.

        With `hidden`, its name may begin with a dot.
        """
        key = (within, name)
        if key not in self._folders:
            self._folders[key] = self._free(within, portable(name) if hidden else portable_folder(name))
        return self._folders[key]

    def file(self, path: str, within: PurePosixPath = PurePosixPath()) -> PurePosixPath:
        """Return a path for a file that keeps its relative path below `within`; it is another one each time."""
        *above, name = path.split("/")
        for folder in above:
            within = self.folder(folder, within)
        return self._free(within, portable(name))

    def reserve(self, name: str) -> None:
        """Take a name right in the folder, which is then given to nothing else."""
        self._taken[PurePosixPath(), _alike(name)] = 1

    def _free(self, within: PurePosixPath, name: str) -> PurePosixPath:
        """Return the path for a name, or for the next one with a number if it is taken."""
        key = within, _alike(name)
        number = self._taken.get(key, 0)
        free = name
        while (within, _alike(free)) in self._taken:
            number += 1
            free = _numbered(name, number)
        self._taken[key] = number or 1
        self._taken.setdefault((within, _alike(free)), 1)
        return within / free


def _numbered(name: str, number: int) -> str:
    stem, suffix = _parts(name)
    end = f" ({number}){suffix}"
    return _beginning(stem, MOST_BYTES - len(end.encode())) + end


def _parts(name: str) -> tuple[str, str]:
    """Return a name without its suffix, and the suffix; a long one is none."""
    stem, suffix = os.path.splitext(name)
    return (name, "") if len(suffix.encode()) > _MOST_SUFFIX_BYTES else (stem, suffix)


def _beginning(text: str, most_bytes: int) -> str:
    """Return the characters of a text that fit into so many bytes."""
    return text.encode()[:most_bytes].decode("utf-8", "ignore")


def _alike(name: str) -> str:
    """Return what is equal for names that a file system may take for one: macOS and Windows ignore case."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())

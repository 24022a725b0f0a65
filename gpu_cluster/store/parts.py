"""Keeps parts of results that take long to make and depend on little: the sweep, t-SNE, plots, small copies.

A part is found again only by everything that it depends on: what its maker names, all code of this package, and every
library that is installed. So a part is never out of date; one that nothing asks for any more is removed some time. This
module must not know what a part is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from gpu_cluster.files import write_whole

log = logging.getLogger(__name__)

#: The folder of the parts in a store.
FOLDER = "parts"

_NAME = re.compile(r"[0-9a-f]{32}\.part")
_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.part\.\d+-[0-9a-f]{8}\.tmp")
_DIGEST_BYTES = 16

# When the parts take more room than this, those that were not used for the longest time are removed.
_MOST_BYTES = 256 << 20


class Parts:
    """The parts that a store keeps; without a store nothing is kept, and everything is made anew.

    Attributes
    ----------
    found : kinds of the parts that were asked for and found, in the order in which they were
    """

    def __init__(self, root: Path | None, *, read: bool = True) -> None:
        """Set the folder of the store; without `read`, everything is made anew, and kept."""
        self._folder = None if root is None else root / FOLDER
        self._read = read
        self._found: dict[str, None] = {}

    @property
    def found(self) -> tuple[str, ...]:
        return tuple(self._found)

    def find(self, key: Mapping[str, Any]) -> bytes | None:
        """Return the part with this key, which names its kind as `part`; None if it is not kept, or damaged."""
        if self._folder is None or not self._read:
            return None
        path = self._folder / _name(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        written, part = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if written != digest(part):
            log.info("%s is damaged and is made again", path)
            return None
        with suppress(OSError):
            os.utime(path)
        self._found[key["part"]] = None
        return part

    def keep(self, key: Mapping[str, Any], part: bytes) -> None:
        """Keep a part; if that is not possible, the next run makes it again."""
        if self._folder is None:
            return
        try:
            self._folder.mkdir(exist_ok=True)
            write_whole(self._folder / _name(key), digest(part) + part)
            trim(self._folder)
        except OSError as error:
            log.info("a part of the results is not kept: %s", error)

    def made(self, key: Mapping[str, Any], make: Callable[[], bytes]) -> bytes:
        """Return the part with this key; make and keep it if it is not kept."""
        part = self.find(key)
        if part is None:
            part = make()
            self.keep(key, part)
        return part


def fingerprint(array: Any) -> str:
    """Return the hash of an array on the host, in hex: of its numbers, their type and its shape."""
    array = np.ascontiguousarray(array)
    return digest(f"{array.dtype.str}{array.shape}".encode() + array.tobytes()).hex()


def trim(folder: Path, *, most_bytes: int = _MOST_BYTES, unused_since: float | None = None) -> int:
    """Remove parts that were last used before `unused_since`, and the oldest ones above `most_bytes`.

    Half-written files of killed jobs are removed too when they are older than a day. Returns the number of bytes freed.
    """
    freed, yesterday = 0, time.time() - 24 * 3600
    parts = listed(folder)
    size = sum(n_bytes for _, n_bytes, _ in parts)
    removed = [(n_bytes, path) for written, n_bytes, path in listed(folder, _PARTIAL) if written < yesterday]
    for used, n_bytes, path in parts:
        if size > most_bytes or (unused_since is not None and used < unused_since):
            removed.append((n_bytes, path))
            size -= n_bytes
    for n_bytes, path in removed:
        with suppress(OSError):
            path.unlink()
            freed += n_bytes
    return freed


def listed(folder: Path, names: re.Pattern[str] = _NAME) -> list[tuple[float, int, Path]]:
    """Return when each part was last used (seconds since 1970), its bytes and its path; the oldest comes first."""
    found = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if names.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                # Another job may remove it at this moment.
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    found.append((status.st_mtime, status.st_size, Path(entry.path)))
    return sorted(found)


def _name(key: Mapping[str, Any]) -> str:
    return f"{digest(json.dumps([_code(), key], sort_keys=True, default=str).encode()).hex()}.part"


def digest(content: bytes) -> bytes:
    """Return the BLAKE2b-128 of some bytes."""
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()


@lru_cache(maxsize=1)
def _code() -> str:
    """Return the hash of all code that can make a part: this package, Python, and the versions of what is installed."""
    package = Path(__file__).parents[1]
    sources = sorted(path for path in package.rglob("*") if path.suffix in (".py", ".html", ".css", ".js"))
    hashed = hashlib.blake2b(f"{sys.version} {platform.platform()}".encode(), digest_size=_DIGEST_BYTES)
    for path in sources:
        hashed.update(path.relative_to(package).as_posix().encode() + digest(path.read_bytes()))
    for folder in sys.path:
        with suppress(OSError):
            installed = [name for name in os.listdir(folder or ".") if name.endswith((".dist-info", ".egg-info"))]
            hashed.update("\n".join(sorted(installed)).encode())
    return hashed.hexdigest()

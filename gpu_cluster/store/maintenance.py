"""Inspects, verifies and prunes the store. Jobs may use the store at the same time."""

from __future__ import annotations

import json
import math
import os
import re
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpu_cluster.addresses import is_address
from gpu_cluster.config import StoreConfig
from gpu_cluster.errors import StoreError
from gpu_cluster.events import Observer, Recorder
from gpu_cluster.files import printable
from gpu_cluster.store import parts
from gpu_cluster.store.copies import CopyShards
from gpu_cluster.store.embeddings import EmbeddingShards
from gpu_cluster.store.shards import DAMAGED, KEY_FILE, Shards, folder_name, folders, is_shard, read_key
from gpu_cluster.store.store import KINDS, default_root, scan_schema
from gpu_cluster.store.tars import TarShards

_DAY_S = 24 * 3600.0


@dataclass(frozen=True)
class Recipe:
    """The content of the store for one key.

    Attributes
    ----------
    kind : embeddings, scans, tars, copies, or parts, whose files are counted as shards and as rows
    key : the settings with which all its rows were made
    n_damaged : number of shards that were set aside
    last_used : seconds since 1970
    """

    folder: Path
    kind: str
    key: Mapping[str, Any]
    n_shards: int
    n_rows: int
    n_bytes: int
    n_damaged: int
    last_used: float

    def as_json(self) -> dict[str, Any]:
        """Return the recipe as values that JSON can hold."""
        return {
            **asdict(self),
            "folder": printable(str(self.folder)),
            "key": {name: _shown(value) for name, value in self.key.items()},
        }


def find_store(config: StoreConfig) -> Path:
    """Return the folder of a store.

    Raises
    ------
    StoreError
        When there is no folder there.
    """
    root = config.cache or default_root()
    if not root.is_dir():
        raise StoreError(f"there is no store at {printable(str(root))!r}; name the folder with --cache DIR")
    return root


def inspect(root: Path) -> list[Recipe]:
    """Return what a store holds; of each shard only the metadata at its end is read."""
    found = []
    for kind in KINDS:
        for folder in folders(root / kind):
            shards = [path for path in folder.iterdir() if is_shard(path.name)]
            damaged = list((folder / DAMAGED).glob("*")) if (folder / DAMAGED).is_dir() else []
            found.append(
                Recipe(
                    folder=folder,
                    kind=kind,
                    key=read_key(folder),
                    n_shards=len(shards),
                    n_rows=sum(_n_rows(path) for path in shards),
                    n_bytes=sum(path.stat().st_size for path in (*shards, *damaged)),
                    n_damaged=len(damaged),
                    last_used=folder.stat().st_mtime,
                )
            )
    kept = parts.listed(root / parts.FOLDER)
    if kept:
        n_bytes, last_used = sum(size for _, size, _ in kept), kept[-1][0]
        found.append(Recipe(root / parts.FOLDER, "parts", {}, len(kept), len(kept), n_bytes, 0, last_used))
    return found


def verify(root: Path, observer: Observer) -> tuple[int, list[Path]]:
    """Read every shard of a store, check it with its checksum, and set damaged ones aside.

    Returns
    -------
    n_shards
        Number of shards that are as they were written.
    damaged
        Paths to which the damaged shards were moved.
    """
    n_shards, damaged = 0, []
    events = Recorder(observer)
    with events.stage("verify"):
        looked_at = [
            (shards, name)
            for kind in KINDS
            for folder in folders(root / kind)
            for shards in [_open_shards(kind, folder, events)]
            for name in shards.names()
        ]
        for done, (shards, name) in enumerate(looked_at, start=1):
            aside = shards.folder / DAMAGED / name
            if shards.read(name) is not None:
                n_shards += 1
            # If it is in neither place, another job has pruned it in the meantime.
            elif aside.exists():
                damaged.append(aside)
            events.progress("verify", done, len(looked_at))
    return n_shards, damaged


def _open_shards(kind: str, folder: Path, observer: Observer) -> Shards:
    key = read_key(folder)
    if kind == "scans":
        return Shards(folder, key, scan_schema(key), observer)
    if kind == "tars":
        return TarShards(folder, key, observer)
    if kind == "copies":
        return CopyShards(folder, key, observer)
    if isinstance(key.get("n_features"), int):
        return EmbeddingShards(folder, key, observer)
    # Without a key the columns are not known, and only the checksum and the key of each shard are checked.
    return Shards(folder, key, None, observer)


def prune(root: Path, *, unused_days: float | None, now: float | None = None) -> int:
    """Remove what no job can use: shards set aside, half-written files of killed jobs, scans of folders that are gone.

    With `unused_days`, also remove every recipe and part that no job has used for so many days. Half-written files are
    removed when they are older than a day. Only files of the store are removed: with the names that it gives, and
    shards only in a folder whose name is the digest of the key in it. Returns the number of bytes that were freed.
    """
    now = time.time() if now is None else now
    freed = 0
    for recipe in inspect(root):
        if not _is_of_store(recipe.folder):
            continue
        gone = recipe.kind in ("scans", "tars") and "root" in recipe.key and _is_gone(str(recipe.key["root"]))
        if gone or (unused_days is not None and now - recipe.last_used > unused_days * _DAY_S):
            freed += _remove(recipe.folder, is_shard)
            # The key goes last, because without it the folder is not known as the store's.
            if not any(map(is_shard, os.listdir(recipe.folder))):
                freed += _remove(recipe.folder / DAMAGED, is_shard)
                freed += _remove(recipe.folder, lambda name: name == KEY_FILE)
            for folder in (recipe.folder / DAMAGED, recipe.folder):
                with suppress(OSError):
                    # This succeeds only if the folder is empty: files that are not the store's stay.
                    folder.rmdir()
        freed += _remove(recipe.folder, _is_partial, unchanged_since=now - _DAY_S)
        freed += _remove(recipe.folder / DAMAGED, is_shard)
    unused_since = None if unused_days is None else now - unused_days * _DAY_S
    return freed + parts.trim(root / parts.FOLDER, unused_since=unused_since)


def _is_gone(root: str) -> bool:
    # Whether what lies at an address is gone, only its server knows.
    return not is_address(root) and not os.path.isdir(root)


# Half-written files of killed jobs (see `files.write_whole`).
_PARTIAL = re.compile(r"\.(?P<name>.+)\.\d+-[0-9a-f]{8}\.tmp")


def _is_partial(name: str) -> bool:
    found = _PARTIAL.fullmatch(name)
    return found is not None and (found["name"] == KEY_FILE or is_shard(found["name"]))


def _is_of_store(folder: Path) -> bool:
    """Return whether the name of a folder, which is no link, is the digest of the key in it, of whichever version."""
    try:
        key = json.loads((folder / KEY_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(key, dict) and folder_name(key) == folder.name and not folder.is_symlink()


def _remove(folder: Path, is_named: Callable[[str], bool], *, unchanged_since: float = math.inf) -> int:
    """Remove the regular files with such names from a folder; return the number of bytes that were freed.

    What another job removes at the same moment is passed over, and so is a link to a folder.
    """
    if folder.is_symlink() or not folder.is_dir():
        return 0
    freed = 0
    for path in filter(lambda path: is_named(path.name), folder.iterdir()):
        with suppress(FileNotFoundError):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_mtime < unchanged_since:
                path.unlink()
                freed += status.st_size
    return freed


def _shown(value: Any) -> Any:
    return printable(value) if isinstance(value, str) else value


def _n_rows(shard: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with shard.open("rb") as stream:
            return int(pq.read_metadata(stream).num_rows)
    except (pa.ArrowException, OSError, ValueError):
        return 0

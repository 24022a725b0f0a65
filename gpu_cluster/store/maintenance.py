"""Inspects, verifies and prunes the store. Jobs may use the store at the same time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpu_cluster.config import StoreConfig
from gpu_cluster.errors import StoreError
from gpu_cluster.events import Observer, Recorder
from gpu_cluster.files import printable
from gpu_cluster.store.shards import DAMAGED, KEY_FILE, Shards, folders, is_shard, read_key
from gpu_cluster.store.store import EmbeddingShards, default_root, scan_schema

_DAY_S = 24 * 3600.0


@dataclass(frozen=True)
class Recipe:
    """The content of the store for one key.

    Attributes
    ----------
    kind : embeddings or scans
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
    for kind in ("embeddings", "scans"):
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
            for kind in ("embeddings", "scans")
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
        return Shards(folder, key, scan_schema(), observer)
    if isinstance(key.get("n_features"), int):
        return EmbeddingShards(folder, key, observer)
    # Without a key the columns are not known, and only the checksum and the key of each shard are checked.
    return Shards(folder, key, None, observer)


def prune(root: Path, *, unused_days: float | None, now: float | None = None) -> int:
    """Remove what no job can use: shards set aside, half-written files of killed jobs, scans of folders that are gone.

    With `unused_days`, also remove every recipe that no job has used for so many days. Half-written files are removed
    when they are older than a day. Returns the number of bytes that were freed.
    """
    now = time.time() if now is None else now
    freed = 0
    for recipe in inspect(root):
        gone = recipe.kind == "scans" and "root" in recipe.key and not os.path.isdir(str(recipe.key["root"]))
        if gone or (unused_days is not None and now - recipe.last_used > unused_days * _DAY_S):
            freed += sum(_remove(path) for path in (*_shards(recipe.folder), recipe.folder / KEY_FILE))
            with suppress(OSError):
                # This succeeds only if the folder is empty: files that are not the store's stay.
                recipe.folder.rmdir()
        leftovers = [*recipe.folder.glob(".shard-*.tmp"), *recipe.folder.glob(f".{KEY_FILE}.*.tmp")]
        freed += sum(_remove(path) for path in leftovers if _age(path, now) > _DAY_S)
        freed += sum(_remove(path) for path in _shards(recipe.folder / DAMAGED))
    return freed


def _shards(folder: Path) -> Iterator[Path]:
    return (path for path in folder.glob("*") if is_shard(path.name))


def _age(path: Path, now: float) -> float:
    try:
        return now - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _remove(path: Path) -> int:
    """Remove a file if it is still there; return the number of bytes that were freed."""
    try:
        size = path.stat().st_size
        path.unlink()
    except FileNotFoundError:
        return 0
    return size


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

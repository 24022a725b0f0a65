"""What is kept between runs: look at it, verify it, prune it. Jobs may go on using the store meanwhile."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpu_cluster.events import Observer
from gpu_cluster.results import printable
from gpu_cluster.store import DAMAGED, Shards, embedding_schema, folders, is_shard, read_key, scan_schema

_DAY_S = 24 * 3600.0


@dataclass(frozen=True)
class Recipe:
    """What the store holds for one key.

    Attributes
    ----------
    kind : embeddings or scans
    key : what all its rows were made with
    n_damaged : shards that were set aside
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
        """Return the recipe as JSON holds it."""
        return {**asdict(self), "folder": printable(str(self.folder)), "key": dict(self.key)}


def inspect(root: Path) -> list[Recipe]:
    """Return what a store holds; only the ends of the shards are read."""
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
    """Read every shard of a store against its checksum.

    Returns
    -------
    n_shards
        Shards that are as they were written.
    damaged
        Where the others were set aside.
    """
    n_shards, damaged = 0, []
    for kind in ("embeddings", "scans"):
        for folder in folders(root / kind):
            key = read_key(folder)
            schema = scan_schema() if kind == "scans" else embedding_schema(int(key.get("n_features", 0)))
            shards = Shards(folder, key, schema, observer)
            names = shards.names()
            for done, name in enumerate(names, start=1):
                if shards.read(name) is None:
                    damaged.append(folder / DAMAGED / name)
                else:
                    n_shards += 1
                observer.progress("verify", done, len(names))
    return n_shards, damaged


def prune(root: Path, *, unused_days: float | None, now: float | None = None) -> int:
    """Remove what is of no use: shards set aside, what killed jobs left half written, scans of folders that are gone.

    With `unused_days` also every recipe that no job has used for so long. Returns the bytes that were freed.
    """
    now = time.time() if now is None else now
    freed = 0
    for recipe in inspect(root):
        gone = recipe.kind == "scans" and not os.path.isdir(str(recipe.key.get("root", "")))
        if gone or (unused_days is not None and now - recipe.last_used > unused_days * _DAY_S):
            freed += recipe.n_bytes
            shutil.rmtree(recipe.folder, ignore_errors=True)
            continue
        leftovers = [path for path in recipe.folder.glob(".*.tmp") if now - path.stat().st_mtime > _DAY_S]
        for path in (*leftovers, *(recipe.folder / DAMAGED).glob("*")):
            freed += path.stat().st_size
            path.unlink(missing_ok=True)
    return freed


def _n_rows(shard: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(shard).num_rows)
    except (pa.ArrowException, OSError):
        return 0

"""The store: keeps embeddings by content hash, and the results of scans, in folders of shards.

docs/store.md describes the files. This module must not know pictures, networks or devices.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_cluster.backend import IntArray
from gpu_cluster.config import StoreConfig
from gpu_cluster.events import Observer
from gpu_cluster.manifest import FileFacts
from gpu_cluster.store.copies import CopyShards
from gpu_cluster.store.embeddings import EmbeddingShards
from gpu_cluster.store.shards import Shards, explained, folder_name, folders, read_key
from gpu_cluster.store.tars import TarShards, fact_fields

if TYPE_CHECKING:
    import pyarrow as pa

# The kinds of shards, each in a folder of its own.
KINDS = ("embeddings", "scans", "tars", "copies")

# In the key of scans, so that earlier versions, which would take shards with more columns for damaged ones, do not look
# at them. The columns that came with each number; the first scans have none in their key.
_NEW_COLUMNS = {
    None: frozenset(),
    2: frozenset({"ctime_ns", "n_scans"}),
    3: frozenset({"profile"}),
    4: frozenset({"version"}),
}
# What tells small copies apart from those that are made in another way, or of another size.
_COPIES = {"copies": 1}


class Store:
    """The folder that holds everything that is kept between runs."""

    def __init__(self, root: Path, observer: Observer) -> None:
        """Open the store; create its folder if it does not exist yet.

        Raises
        ------
        StoreError
            When it cannot be read or written.
        """
        self.root = root
        self._observer = observer
        # The others are made when something is kept in them.
        for kind in KINDS[:2]:
            with explained(root):
                (root / kind).mkdir(parents=True, exist_ok=True)
                if not os.access(root / kind, os.R_OK | os.W_OK | os.X_OK):
                    raise PermissionError(13, "Permission denied", str(root / kind))

    def embeddings(self, key: Mapping[str, Any]) -> EmbeddingShards:
        """Return the object that reads and writes the embeddings of one key: network, weights and preprocessing."""
        return EmbeddingShards(self._folder("embeddings", key), key, self._observer)

    def embeddings_but_for(
        self, key: Mapping[str, Any], names: Sequence[str]
    ) -> Iterator[tuple[dict[str, Any], EmbeddingShards]]:
        """Yield the embeddings of every other key that is equal but for what it has under these names, with its key."""
        for folder in folders(self.root / "embeddings"):
            theirs = read_key(folder)
            if (
                theirs != key
                and {**theirs, **{name: key[name] for name in names}} == key
                and theirs.keys() == key.keys()
            ):
                yield theirs, EmbeddingShards(folder, theirs, self._observer)

    def tars(self, root: str, key: Mapping[str, Any]) -> TarShards:
        """Return the object that reads and writes what is in the tar files of a folder, or below an address."""
        own = {"root": root, **key}
        return TarShards(self._folder("tars", own), own, self._observer)

    def copies(self) -> CopyShards:
        """Return the object that reads and writes small copies of pictures that are no files of this machine."""
        return CopyShards(self._folder("copies", _COPIES), _COPIES, self._observer)

    def scans(self, root: Path | str, key: Mapping[str, Any]) -> ScanShards:
        """Return the object that reads and writes the scans of one key: of a folder, its subfolders and its parents.

        The folder is a path, or an address.
        """
        first = {"root": str(root), **key}
        keys = [first if number is None else {**first, "columns": number} for number in _NEW_COLUMNS]
        own = keys[-1]
        folder = self._folder("scans", own)
        related = [
            Shards(other, theirs, scan_schema(theirs), self._observer)
            for other, theirs in ((other, read_key(other)) for other in folders(self.root / "scans"))
            if other != folder and {**theirs, "root": own["root"]} in keys and _related(str(theirs.get("root")), root)
        ]
        # What this version found comes before what earlier ones found.
        related.sort(key=lambda shards: -len(shards.schema or ()))
        return ScanShards(folder, own, related, self._observer)

    def _folder(self, kind: str, key: Mapping[str, Any]) -> Path:
        return self.root / kind / folder_name(key)


def default_root() -> Path:
    """Return the default folder of the store, which lies in the platform's cache folder of the user."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("gpu-cluster", appauthor=False))


def open_store(config: StoreConfig, observer: Observer) -> Store | None:
    """Return the store that a job uses, or None if the config switches it off.

    Raises
    ------
    StoreError
        When it cannot be read or written.
    """
    return None if config.no_cache else Store(config.cache or default_root(), observer)


def how_to_go_on(config: StoreConfig) -> str:
    """Return in words what to do when a job with this config was interrupted."""
    if config.no_cache:
        return "with --no-cache nothing is kept, and the same command begins again"
    if config.force:
        return "leave out --force to go on; with --force the same command begins again"
    return "run the same command again to go on"


class ScanShards(Shards):
    """The results of scans: one row for each file, by its absolute path."""

    def __init__(self, folder: Path, key: Mapping[str, Any], related: Sequence[Shards], observer: Observer) -> None:
        super().__init__(folder, key, scan_schema(key), observer)
        self._related = related

    def known(self, paths: Sequence[str]) -> KnownFiles:
        """Return the facts that are known about these files, which are given by their absolute paths."""
        import pyarrow as pa
        import pyarrow.compute as pc

        self.mark_as_used()
        tables = [table for shards in (self, *self._related) for name in shards.names() if (table := shards.read(name))]
        if not tables:
            return KnownFiles(None, np.full(len(paths), -1))
        # Columns that a shard of an earlier version lacks become null.
        table = pa.concat_tables(tables, promote_options="default")
        wanted = pa.array([os.fsencode(path) for path in paths], pa.binary())
        # If a path has several rows, this finds the first one, which is from the newest shard.
        at = pc.index_in(wanted, value_set=table["path"].combine_chunks())
        return KnownFiles(table, at.fill_null(-1).to_numpy(zero_copy_only=False))

    def keep(self, paths: Sequence[str], facts: Sequence[FileFacts]) -> None:
        """Write one shard with the facts about these files."""
        columns: dict[str, Any] = {"path": [os.fsencode(path) for path in paths]}
        for name in scan_schema(self.key).names[1:]:
            columns[name] = [getattr(one, name) for one in facts]
        self.append(columns)


class KnownFiles:
    """The facts that earlier scans found about the files of the current scan."""

    def __init__(self, table: pa.Table | None, at: IntArray) -> None:
        self._table = table
        self._at = at

    def slice(self, first: int, last: int) -> list[FileFacts | None]:
        """Return the facts about files `first` to `last - 1`; None for a file about which nothing is known."""
        at = self._at[first:last]
        facts: list[FileFacts | None] = [None] * len(at)
        if self._table is not None and (at >= 0).any():
            columns = self._table.take(at[at >= 0]).drop_columns(["path"]).to_pylist()
            for position, found in zip(np.flatnonzero(at >= 0), columns, strict=True):
                facts[position] = FileFacts(**found)
        return facts


def scan_schema(key: Mapping[str, Any]) -> pa.Schema:
    """Return the columns of a shard of scanned files with this key; those of earlier versions were fewer."""
    import pyarrow as pa

    schema = pa.schema(
        [
            # Paths are bytes, as the file system gives them, because not every path is UTF-8.
            pa.field("path", pa.binary()),
            pa.field("size", pa.int64()),
            pa.field("mtime_ns", pa.int64()),
            pa.field("ctime_ns", pa.int64()),
            *fact_fields(),
            pa.field("version", pa.int64()),
        ]
    )
    numbers = list(_NEW_COLUMNS)
    known = numbers.index(key.get("columns")) if key.get("columns") in numbers else 0
    later = frozenset().union(*(_NEW_COLUMNS[number] for number in numbers[known + 1 :]))
    return pa.schema([field for field in schema if field.name not in later])


def _related(one: str, other: Path | str) -> bool:
    return Path(one).is_relative_to(other) or Path(other).is_relative_to(one)

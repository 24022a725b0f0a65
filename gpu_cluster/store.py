"""What is kept between runs: embeddings by content hash, and what the scan found, as append-only Parquet shards.

A shard is written under a temporary name, flushed to the disk and renamed to the digest of its own bytes. So it is
whole or not there, any change to it is noticed, and jobs that write at the same time need no lock: their shards have
different names, or are the same. docs/store.md describes the files. Must not know pictures, networks or devices.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from gpu_cluster.config import StoreConfig
from gpu_cluster.errors import StoreError
from gpu_cluster.events import Observer
from gpu_cluster.results import FileFacts, FloatArray, IntArray, printable

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA = 1

_PREFIX, _SUFFIX = "shard-", ".parquet"
DAMAGED = "damaged"
_KEY_FILE = "key.json"
_DAY_S = 24 * 3600.0


class Store:
    """The folder of everything that is kept."""

    def __init__(self, root: Path, observer: Observer) -> None:
        """Open the store, and make it where it is not there yet.

        Raises
        ------
        StoreError
            When it cannot be written.
        """
        self.root = root
        self._observer = observer
        for kind in ("embeddings", "scans"):
            with _explained(root):
                (root / kind).mkdir(parents=True, exist_ok=True)
                if not os.access(root / kind, os.R_OK | os.W_OK | os.X_OK):
                    raise PermissionError(13, "Permission denied", str(root / kind))

    def embeddings(self, key: Mapping[str, Any]) -> EmbeddingShards:
        """Return the embeddings made with one recipe: what the key says of network, weights and preprocessing."""
        return EmbeddingShards(self._folder("embeddings", key), key, self._observer)

    def scans(self, root: Path, key: Mapping[str, Any]) -> ScanShards:
        """Return what earlier scans with this key found: of this folder, of folders in it and of those it lies in."""
        own = {"root": printable(str(root)), **key}
        folder = self._folder("scans", own)
        related = [
            Shards(other, key, scan_schema(), self._observer)
            for other, theirs in ((other, read_key(other)) for other in folders(self.root / "scans"))
            if other != folder and {**theirs, "root": own["root"]} == own and _related(str(theirs.get("root")), root)
        ]
        return ScanShards(folder, own, related, self._observer)

    def _folder(self, kind: str, key: Mapping[str, Any]) -> Path:
        name = hashlib.blake2b(_as_json({"schema": SCHEMA, **key}), digest_size=8).hexdigest()
        return self.root / kind / name


def default_root() -> Path:
    """Return the store's place in the user's cache folder, as the platform has it."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("gpu-cluster", appauthor=False))


def open_store(config: StoreConfig, observer: Observer) -> Store | None:
    """Return the store that a job uses, None where it is to keep nothing.

    Raises
    ------
    StoreError
        When it cannot be written.
    """
    return None if config.no_cache else Store(config.cache or default_root(), observer)


class Shards:
    """Append-only tables of one schema and one key in one folder."""

    def __init__(self, folder: Path, key: Mapping[str, Any], schema: pa.Schema, observer: Observer) -> None:
        self.folder = folder
        self.schema = schema
        self._key = key
        self._observer = observer

    def append(self, columns: Mapping[str, Any]) -> None:
        """Write one shard; when this returns it is on the disk.

        Raises
        ------
        StoreError
            When it cannot be written; no part of it is left.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = self.schema.with_metadata({"gpu_cluster": _as_json({"schema": SCHEMA, **self._key})})
        table = pa.table(dict(columns), schema=schema)
        sink = pa.BufferOutputStream()
        # Embeddings are noise to a compressor.
        pq.write_table(table, sink, compression="none", use_dictionary=False)
        content = sink.getvalue()
        with _explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            key_file = self.folder / _KEY_FILE
            if not key_file.exists():
                _write(key_file, _as_json({"schema": SCHEMA, **self._key}))
            _write(self.folder / f"{_PREFIX}{_digest(content)}{_SUFFIX}", content)

    def names(self) -> list[str]:
        """Return the names of the shards, the newest first: what was written last counts."""
        try:
            with os.scandir(self.folder) as entries:
                shards = [(entry.stat().st_mtime_ns, entry.name) for entry in entries if is_shard(entry.name)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _error(self.folder, error) from error
        return [name for _, name in sorted(shards, reverse=True)]

    def read(self, name: str) -> pa.Table | None:
        """Return a shard; None, and the shard set aside, where it is not as it was written."""
        import pyarrow as pa

        path = self.folder / name
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            # Another job set it aside, or pruned it.
            return None
        except OSError as error:
            raise _error(self.folder, error) from error
        if name != f"{_PREFIX}{_digest(content)}{_SUFFIX}":
            self._set_aside(path, "its checksum does not fit")
            return None
        try:
            table = read_parquet(pa.BufferReader(content))
            if not table.schema.equals(self.schema):
                raise pa.ArrowInvalid("its columns are not those of this version")
        except (pa.ArrowException, OSError) as error:
            self._set_aside(path, str(error))
            return None
        return table

    def _set_aside(self, path: Path, why: str) -> None:
        self._observer.notice(
            f"A shard of the store is damaged and set aside ({why}): {printable(str(path))}; what it held is done again"
        )
        with _explained(self.folder), suppress(FileNotFoundError):
            (self.folder / DAMAGED).mkdir(exist_ok=True)
            os.replace(path, self.folder / DAMAGED / path.name)


class EmbeddingShards(Shards):
    """Embeddings of one recipe: `content_hash`, `embedding`, and for content that cannot be decoded its `reason`."""

    def __init__(self, folder: Path, key: Mapping[str, Any], observer: Observer) -> None:
        super().__init__(folder, key, embedding_schema(int(key["n_features"])), observer)

    def find(self, wanted: Sequence[str]) -> Iterator[tuple[IntArray, FloatArray, Sequence[str | None]]]:
        """Yield what is kept of the hashes `wanted`, shard by shard, each hash once.

        Yields
        ------
        at
            (s,) indices into `wanted`.
        x
            (s, d) float32, host; NaN where the content cannot be decoded.
        reasons
            s reasons, None where there is an embedding.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        _mark_as_used(self.folder)
        missing = np.ones(len(wanted), dtype=bool)
        value_set = pa.array(wanted, pa.string())
        for name in self.names():
            if not missing.any():
                return
            hashes = self._hashes(name)
            if hashes is None or not self._new(pc.index_in(hashes, value_set=value_set), missing)[1].any():
                continue
            table = self.read(name)
            if table is None:
                continue
            at, new = self._new(pc.index_in(table["content_hash"], value_set=value_set), missing)
            missing[at[new]] = False
            yield (
                at[new],
                _matrix(table["embedding"], int(self._key["n_features"]))[new],
                [why for why, taken in zip(table["reason"].to_pylist(), new, strict=True) if taken],
            )

    def keep(self, hashes: Sequence[str], x: FloatArray, reasons: Sequence[str | None]) -> None:
        """Write one shard: x (s, d) float32, host; a row with a reason has no embedding."""
        import pyarrow as pa

        flat = pa.array(np.ascontiguousarray(x, dtype=np.float32).reshape(-1))
        mask = pa.array([why is not None for why in reasons], pa.bool_())
        embedding = pa.FixedSizeListArray.from_arrays(flat, x.shape[1], mask=mask)
        self.append({"content_hash": list(hashes), "embedding": embedding, "reason": list(reasons)})

    def _hashes(self, name: str) -> pa.ChunkedArray | None:
        """Return one column of a shard, unchecked: the whole of it is only read where something in it is wanted."""
        import pyarrow as pa

        try:
            with (self.folder / name).open("rb") as stream:
                return read_parquet(stream, columns=["content_hash"])["content_hash"]
        except (pa.ArrowException, OSError, KeyError):
            # Gone, or damaged: reading all of it finds out.
            table = self.read(name)
            return None if table is None else table["content_hash"]

    @staticmethod
    def _new(found: Any, missing: np.ndarray) -> tuple[IntArray, np.ndarray]:
        """Return index into the wanted of each row of a shard, and which rows are wanted and first seen here."""
        at = found.combine_chunks().fill_null(-1).to_numpy(zero_copy_only=False)
        _, first = np.unique(at, return_index=True)
        once = np.zeros(len(at), dtype=bool)
        once[first] = True
        return at, once & (at >= 0) & missing[at]


class ScanShards(Shards):
    """What scans found: one row a file, by its absolute path."""

    def __init__(self, folder: Path, key: Mapping[str, Any], related: Sequence[Shards], observer: Observer) -> None:
        super().__init__(folder, key, scan_schema(), observer)
        self._related = related

    def known(self, paths: Sequence[Path]) -> KnownFiles:
        """Return what is known of files, by their absolute paths."""
        import pyarrow as pa
        import pyarrow.compute as pc

        _mark_as_used(self.folder)
        tables = [table for shards in (self, *self._related) for name in shards.names() if (table := shards.read(name))]
        if not tables:
            return KnownFiles(None, np.full(len(paths), -1))
        table = pa.concat_tables(tables)
        wanted = pa.array([os.fsencode(path) for path in paths], pa.binary())
        # The first of several rows of a path is taken, which is of the newest shard.
        at = pc.index_in(wanted, value_set=table["path"].combine_chunks())
        return KnownFiles(table, at.fill_null(-1).to_numpy(zero_copy_only=False))

    def keep(self, paths: Sequence[Path], facts: Sequence[FileFacts]) -> None:
        """Write one shard: what was found of these files."""
        columns: dict[str, Any] = {"path": [os.fsencode(path) for path in paths]}
        for name in self.schema.names[1:]:
            columns[name] = [getattr(one, name) for one in facts]
        self.append(columns)


class KnownFiles:
    """What earlier scans found of the files of this one."""

    def __init__(self, table: pa.Table | None, at: IntArray) -> None:
        self._table = table
        self._at = at

    def slice(self, first: int, last: int) -> list[FileFacts | None]:
        """Return what is known of files `first` to `last`, that one not included; None where nothing is."""
        at = self._at[first:last]
        facts: list[FileFacts | None] = [None] * len(at)
        if self._table is not None and (at >= 0).any():
            columns = self._table.take(at[at >= 0]).drop_columns(["path"]).to_pylist()
            for position, found in zip(np.flatnonzero(at >= 0), columns, strict=True):
                facts[position] = FileFacts(**found)
        return facts


def read_parquet(source: Any, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file without Arrow's threads.

    One that is alive when the process ends aborts it now and then (apache/arrow#34314), after the work was done.
    """
    import pyarrow.parquet as pq

    return pq.ParquetFile(source, pre_buffer=False).read(columns, use_threads=False)


def embedding_schema(n_features: int) -> pa.Schema:
    """Return the columns of a shard of embeddings."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("content_hash", pa.string()),
            pa.field("embedding", pa.list_(pa.float32(), n_features)),
            pa.field("reason", pa.string()),
        ]
    )


def scan_schema() -> pa.Schema:
    """Return the columns of a shard of scanned files."""
    import pyarrow as pa

    return pa.schema(
        [
            # Bytes, as the file system gives them: not every path is UTF-8.
            pa.field("path", pa.binary()),
            pa.field("size", pa.int64()),
            pa.field("mtime_ns", pa.int64()),
            pa.field("content_hash", pa.string()),
            pa.field("format", pa.string()),
            pa.field("mode", pa.string()),
            pa.field("width", pa.int64()),
            pa.field("height", pa.int64()),
            pa.field("orientation", pa.int8()),
            pa.field("reason", pa.string()),
        ]
    )


def _matrix(column: pa.ChunkedArray, width: int) -> FloatArray:
    """Return a column of lists as (s, width) float32; NaN where there is no list."""
    array = column.combine_chunks()
    # `values`, not `flatten()`, which leaves out the rows without a list.
    x = array.values.to_numpy(zero_copy_only=False)[array.offset * width :][: len(array) * width].reshape(-1, width)
    return cast(FloatArray, np.where(array.is_valid().to_numpy(zero_copy_only=False)[:, None], x, np.float32("nan")))


def _related(one: str, other: Path) -> bool:
    return Path(one).is_relative_to(other) or other.is_relative_to(one)


def folders(parent: Path) -> list[Path]:
    """Return the folders of one kind of shards: one a key."""
    try:
        return sorted(path for path in parent.iterdir() if path.is_dir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _error(parent, error) from error


def read_key(folder: Path) -> dict[str, Any]:
    """Return the key of a folder; without the version of the schema, and empty where it cannot be read."""
    try:
        key = json.loads((folder / _KEY_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return {name: value for name, value in key.items() if name != "schema"} if isinstance(key, dict) else {}


def is_shard(name: str) -> bool:
    """Tell a finished shard by its name."""
    return name.startswith(_PREFIX) and name.endswith(_SUFFIX)


def _digest(content: Any) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _as_json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1, sort_keys=True).encode()


def _mark_as_used(folder: Path) -> None:
    with suppress(OSError):
        os.utime(folder)


def _write(path: Path, content: Any) -> None:
    """Write a file that is whole and on the disk, or not there."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _error(folder, error) from error


def _error(folder: Path, error: OSError) -> StoreError:
    where = printable(str(error.filename or folder))
    return StoreError(
        f"cannot use the store of embeddings at {where!r}: {error.strerror or error}; what it holds stays as it is: "
        "make room or give the permission, name another folder with --cache DIR, or do without by --no-cache"
    )

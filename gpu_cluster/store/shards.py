"""Append-only Parquet shards in a folder: whole or not there, every change noticed on reading, no lock.

A shard is written under a temporary name, flushed to the disk and renamed to the digest of its own bytes. So it is
whole or not there, and jobs that write at the same time need no lock: their shards have different names, or are the
same. Must not know what the rows are.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_cluster.errors import StoreError
from gpu_cluster.events import Observer
from gpu_cluster.files import printable, write_whole

if TYPE_CHECKING:
    import pyarrow as pa

_SCHEMA = 1

_PREFIX, _SUFFIX = "shard-", ".parquet"
# Readers of a whole folder, as pandas and Arrow, pass over names that begin so.
DAMAGED = "_damaged"
KEY_FILE = "_key.json"


class Shards:
    """Append-only tables of one schema and one key in one folder."""

    def __init__(self, folder: Path, key: Mapping[str, Any], schema: pa.Schema | None, observer: Observer) -> None:
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

        assert self.schema is not None, "only reading does without"
        schema = self.schema.with_metadata({"gpu_cluster": _as_json({"schema": _SCHEMA, **self._key})})
        table = pa.table(dict(columns), schema=schema)
        sink = pa.BufferOutputStream()
        # Embeddings are noise to a compressor.
        pq.write_table(table, sink, compression="none", use_dictionary=False)
        content = sink.getvalue()
        with explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            key_file = self.folder / KEY_FILE
            if not key_file.exists():
                write_whole(key_file, _as_json({"schema": _SCHEMA, **self._key}))
            write_whole(self.folder / f"{_PREFIX}{_digest(content)}{_SUFFIX}", content)

    def names(self) -> list[str]:
        """Return the names of the shards, the newest first: what was written last counts."""
        try:
            with os.scandir(self.folder) as entries:
                names = [entry.name for entry in entries if is_shard(entry.name)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _store_error(self.folder, error) from error
        shards = []
        for name in names:
            # Not those that another job sets aside, or prunes, just now.
            with suppress(FileNotFoundError):
                shards.append(((self.folder / name).stat().st_mtime_ns, name))
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
            raise _store_error(self.folder, error) from error
        if name != f"{_PREFIX}{_digest(content)}{_SUFFIX}":
            self._set_aside(path, "its checksum does not fit")
            return None
        try:
            table = read_parquet(pa.BufferReader(content))
            if self.schema is not None and not table.schema.equals(self.schema):
                raise pa.ArrowInvalid("its columns are not those of this version")
        except (pa.ArrowException, OSError) as error:
            self._set_aside(path, str(error))
            return None
        return table

    def mark_as_used(self) -> None:
        """Say that a job uses these shards, for what prunes the unused."""
        with suppress(OSError):
            os.utime(self.folder)

    def _set_aside(self, path: Path, why: str) -> None:
        self._observer.notice(
            f"A shard of the store is damaged and set aside ({why}): {printable(str(path))}; what it held is done again"
        )
        with explained(self.folder), suppress(FileNotFoundError):
            (self.folder / DAMAGED).mkdir(exist_ok=True)
            os.replace(path, self.folder / DAMAGED / path.name)


def read_parquet(source: Any, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file without Arrow's threads.

    One that is alive when the process ends aborts it now and then (apache/arrow#34314), after the work was done.
    """
    import pyarrow.parquet as pq

    return pq.ParquetFile(source, pre_buffer=False).read(columns, use_threads=False)


def folder_name(key: Mapping[str, Any]) -> str:
    """Return the name of the folder of the shards with one key."""
    return hashlib.blake2b(_as_json({"schema": _SCHEMA, **key}), digest_size=8).hexdigest()


def folders(parent: Path) -> list[Path]:
    """Return the folders of one kind of shards: one a key."""
    try:
        return sorted(path for path in parent.iterdir() if path.is_dir() and re.fullmatch("[0-9a-f]{16}", path.name))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _store_error(parent, error) from error


def read_key(folder: Path) -> dict[str, Any]:
    """Return the key of a folder; without the version of the schema, and empty where it cannot be read."""
    try:
        key = json.loads((folder / KEY_FILE).read_bytes())
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


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn what the file system refuses into a StoreError that says what to do."""
    try:
        yield
    except OSError as error:
        raise _store_error(folder, error) from error


def _store_error(folder: Path, error: OSError) -> StoreError:
    where = printable(str(error.filename or folder))
    words = "a file, or a link to nowhere, is in the way" if isinstance(error, FileExistsError) else error.strerror
    return StoreError(
        f"cannot use the store of embeddings at {where!r}: {words or error}; what it holds stays as it is: "
        "make room or give the permission, name another folder with --cache DIR, or do without by --no-cache"
    )

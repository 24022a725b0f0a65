"""Reads and writes append-only Parquet shards in a folder, without locks.

A shard is written under a temporary name, flushed to the disk and renamed to the digest of its own bytes. It is
therefore never half written, and any later change is noticed on reading. Jobs that write at the same time need no lock:
their shards have different names or equal contents. This module must not know what the rows are.
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

from gpu_cluster.bounded import MIB, parse_json, read
from gpu_cluster.errors import StoreError
from gpu_cluster.events import Observer
from gpu_cluster.files import printable, write_whole

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_SCHEMA = 1

_PREFIX, _SUFFIX = "shard-", ".parquet"
# Programs that read a whole folder, such as pandas and Arrow, skip names that begin with an underscore.
DAMAGED = "_damaged"
KEY_FILE = "_key.json"

# The name under which a shard has its key in its own metadata.
_KEY = b"gpu_cluster"
# A row of any shard has a content hash of 32 characters, written plainly, or a path and two numbers.
_LEAST_ROW_BYTES = 16
_MOST_KEY_BYTES = MIB


class Shards:
    """Append-only tables of one schema and one key in one folder."""

    def __init__(
        self,
        folder: Path,
        key: Mapping[str, Any],
        schema: pa.Schema | None,
        observer: Observer,
        *,
        named: bool = True,
        fuller: pa.Schema | None = None,
    ) -> None:
        """Set the folder, and whether it is `named` after its key, as all in a store are.

        A shard has the columns of `schema`, or those of `fuller`, which are the same and more.
        """
        self.folder = folder
        self.schema = schema
        self.fuller = fuller
        # A folder is named after the key, so this needs no key file, which may be gone or changed.
        self._digest_of_key = folder.name if named else folder_name(key)
        self.key = key
        self._observer = observer

    def append(self, columns: Mapping[str, Any]) -> Path:
        """Write one shard; it is on the disk when this returns its path.

        Raises
        ------
        StoreError
            When it cannot be written; then no part of it is left.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        assert self.schema is not None, "only reading does without"
        fuller, schema = self.fuller, self.schema
        if fuller is not None and columns.keys() == set(fuller.names):
            schema = fuller
        metadata = {_KEY: _as_json({"schema": _SCHEMA, **self.key})}
        table = pa.table(dict(columns), schema=schema.with_metadata(metadata))
        sink = pa.BufferOutputStream()
        # Embeddings hardly compress.
        pq.write_table(table, sink, compression="none", use_dictionary=False)
        content = sink.getvalue()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            key_file = self.folder / KEY_FILE
            if not key_file.exists():
                write_whole(key_file, _as_json({"schema": _SCHEMA, **self.key}))
            shard = self.folder / f"{_PREFIX}{_digest(content)}{_SUFFIX}"
            write_whole(shard, content)
        except OSError as error:
            raise self.not_written(error) from error
        return shard

    def names(self) -> list[str]:
        """Return the names of the shards, the newest first, because the newest row of a file or content is used."""
        try:
            with os.scandir(self.folder) as entries:
                names = [entry.name for entry in entries if is_shard(entry.name)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _store_error(self.folder, error) from error
        shards = []
        for name in names:
            # Another job may set a shard aside or prune it at this moment; then it is left out.
            with suppress(FileNotFoundError):
                shards.append(((self.folder / name).stat().st_mtime_ns, name))
        return [name for _, name in sorted(shards, reverse=True)]

    def read(self, name: str) -> pa.Table | None:
        """Return a shard, or None if it is gone. A shard that is not as it was written is set aside; then None too."""
        import pyarrow as pa

        path = self.folder / name
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            # Another job has set it aside or pruned it.
            return None
        except OSError as error:
            raise _store_error(self.folder, error) from error
        if name != f"{_PREFIX}{_digest(content)}{_SUFFIX}":
            self._set_aside(path, "its checksum does not fit")
            return None
        try:
            file = opened(pa.BufferReader(content))
            self.check_declared(file, len(content))
            table = file.read(use_threads=False)
            # Arrow does not look at the bytes of texts before they are used.
            table.validate(full=True)
            why = self.problem(table)
        # What is no text in a footer is a ValueError.
        except (pa.ArrowException, OSError, ValueError) as error:
            why = str(error)
        if why is not None:
            self._set_aside(path, why)
            return None
        return table

    def problem(self, table: pa.Table) -> str | None:
        """Return what is wrong with the rows of a shard; None if nothing is. Kinds of shards override this."""
        return None

    def not_written(self, error: OSError) -> StoreError:
        """Return the error for a shard that cannot be written, in words. Kinds of shards override this."""
        return _store_error(self.folder, error)

    def check_declared(self, file: pq.ParquetFile, n_bytes: int) -> None:
        """Check the footer of a shard: rows of another recipe, other columns, and rows that no file of its size holds.

        Raises
        ------
        pyarrow.ArrowInvalid
            With what is wrong.
        """
        import pyarrow as pa

        key = (file.schema_arrow.metadata or {}).get(_KEY, b"")
        if _folder_name(key) != self._digest_of_key:
            raise pa.ArrowInvalid("it was made with the settings of another folder")
        known = [schema for schema in (self.schema, self.fuller) if schema is not None]
        if known and not any(map(file.schema_arrow.equals, known)):
            raise pa.ArrowInvalid("its columns are not those of this version")
        facts = file.metadata
        groups = [facts.row_group(number) for number in range(facts.num_row_groups)]
        chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
        if facts.num_rows * _LEAST_ROW_BYTES > n_bytes or any(
            # Not asked for by `compression`: that ends the process if a damaged file names no codec that Arrow knows.
            chunk.total_uncompressed_size != chunk.total_compressed_size or chunk.has_dictionary_page
            for chunk in chunks
        ):
            raise pa.ArrowInvalid("it declares more than a shard of its size holds")

    def mark_as_used(self) -> None:
        """Record the time of use in the folder, so that pruning can tell which shards are unused."""
        with suppress(OSError):
            os.utime(self.folder)

    def _set_aside(self, path: Path, why: str) -> None:
        self._observer.notice(
            f"A shard of the store is damaged and set aside ({why}): {printable(str(path))}; it is computed again"
        )
        with explained(self.folder), suppress(FileNotFoundError):
            (self.folder / DAMAGED).mkdir(exist_ok=True)
            os.replace(path, self.folder / DAMAGED / path.name)


def opened(source: Any) -> pq.ParquetFile:
    """Open a Parquet file; read it with `use_threads=False`.

    If one of Arrow's threads is alive when the process ends, it sometimes aborts the process (apache/arrow#34314),
    after all work was done.
    """
    import pyarrow.parquet as pq

    return pq.ParquetFile(source, pre_buffer=False)


def folder_name(key: Mapping[str, Any]) -> str:
    """Return the name of the folder of the shards with one key."""
    return _folder_name(_as_json({"schema": _SCHEMA, **key}))


def _folder_name(key: bytes) -> str:
    return hashlib.blake2b(key, digest_size=8).hexdigest()


def folders(parent: Path) -> list[Path]:
    """Return the folders of one kind of shards, one for each key."""
    try:
        return sorted(path for path in parent.iterdir() if path.is_dir() and re.fullmatch("[0-9a-f]{16}", path.name))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _store_error(parent, error) from error


def read_key(folder: Path) -> dict[str, Any]:
    """Return the key of a folder without the version of the schema; an empty one if it cannot be read."""
    try:
        key = parse_json(read(folder / KEY_FILE, _MOST_KEY_BYTES))
    except (OSError, ValueError):
        return {}
    return {name: value for name, value in key.items() if name != "schema"} if isinstance(key, dict) else {}


def is_shard(name: str) -> bool:
    """Return whether a name is that of a finished shard."""
    return re.fullmatch(f"{_PREFIX}[0-9a-f]{{32}}{re.escape(_SUFFIX)}", name) is not None


def _digest(content: Any) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _as_json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1, sort_keys=True).encode()


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn an OSError in the block into a StoreError that says what to do."""
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

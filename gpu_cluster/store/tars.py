"""Keeps what is in tar files that were scanned: one row for each tar file, by its path or address.

This module must not know how tar files are read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from gpu_cluster.events import Observer
from gpu_cluster.manifest import FileFacts
from gpu_cluster.store.shards import Shards

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class TarMember:
    """A file in a tar file.

    Attributes
    ----------
    name : as it is in the tar file
    offset, size : where its content lies, bytes
    facts : what the scan found out about its content; None if it is no picture
    content : of a file that may hold the label of a picture, its content; None for all others
    """

    name: str
    offset: int
    size: int
    facts: FileFacts | None = None
    content: bytes | None = None


@dataclass(frozen=True)
class KnownTar:
    """What is in a tar file.

    Attributes
    ----------
    name : its path or its address
    size, mtime_ns, ctime_ns, version : of the tar file when it was scanned, as in `FileFacts`
    members : its regular files, in the order in which they lie
    """

    name: str
    size: int
    mtime_ns: int | None
    ctime_ns: int | None
    version: int | None
    members: Sequence[TarMember]


class TarShards(Shards):
    """The members of the tar files in one folder."""

    def __init__(self, folder: Path, key: Mapping[str, Any], observer: Observer) -> None:
        super().__init__(folder, key, tar_schema(), observer)
        self._lock = Lock()
        self._shard_of: dict[bytes, str] | None = None

    def known(self, name: str) -> KnownTar | None:
        """Return what the newest scan of a tar file found; None if there was none.

        The first call reads all shards, to find out which of them has which tar file. Threads can call it.
        """
        wanted = os.fsencode(name)
        with self._lock:
            if self._shard_of is None:
                self._shard_of = self._shards_of_tars()
        shard = self._shard_of.get(wanted)
        table = None if shard is None else self.read(shard)
        if table is None:
            return None
        return _known(name, table.slice(table["path"].to_pylist().index(wanted), 1).to_pylist()[0])

    def _shards_of_tars(self) -> dict[bytes, str]:
        self.mark_as_used()
        found: dict[bytes, str] = {}
        for shard in self.names():
            table = self.read(shard)
            for path in () if table is None else table["path"].to_pylist():
                # The newest shard comes first.
                found.setdefault(path, shard)
        return found

    def keep(self, tar: KnownTar) -> None:
        """Write one shard with what is in a tar file.

        Raises
        ------
        StoreError
            When it cannot be written.
        """
        facts = _facts()
        members = [
            {
                "name": os.fsencode(member.name),
                "offset": member.offset,
                "size": member.size,
                "is_picture": member.facts is not None,
                "content": member.content,
                **{fact: getattr(member.facts, fact, None) for fact in facts},
            }
            for member in tar.members
        ]
        self.append(
            {
                "path": [os.fsencode(tar.name)],
                "size": [tar.size],
                "mtime_ns": [tar.mtime_ns],
                "ctime_ns": [tar.ctime_ns],
                "version": [tar.version],
                "members": [members],
            }
        )


def _known(name: str, row: Mapping[str, Any]) -> KnownTar:
    facts = _facts()
    members = [
        TarMember(
            os.fsdecode(one["name"]),
            one["offset"],
            one["size"],
            FileFacts(**{fact: one[fact] for fact in facts}) if one["is_picture"] else None,
            one["content"],
        )
        for one in row["members"]
    ]
    return KnownTar(name, row["size"], row["mtime_ns"], row["ctime_ns"], row["version"], members)


def fact_fields() -> list[pa.Field]:
    """Return the columns of those facts of a picture that its content has, here and in the shards of scans."""
    import pyarrow as pa

    return [
        pa.field("content_hash", pa.string()),
        pa.field("format", pa.string()),
        pa.field("mode", pa.string()),
        pa.field("width", pa.int64()),
        pa.field("height", pa.int64()),
        pa.field("orientation", pa.int8()),
        pa.field("n_scans", pa.int64()),
        pa.field("profile", pa.string()),
        pa.field("reason", pa.string()),
    ]


def _facts() -> list[str]:
    return [one.name for one in fact_fields()]


def tar_schema() -> pa.Schema:
    """Return the columns of a shard of tar files."""
    import pyarrow as pa

    member = pa.struct(
        [
            pa.field("name", pa.binary()),
            pa.field("offset", pa.int64()),
            pa.field("size", pa.int64()),
            pa.field("is_picture", pa.bool_()),
            pa.field("content", pa.binary()),
            *fact_fields(),
        ]
    )
    return pa.schema(
        [
            pa.field("path", pa.binary()),
            pa.field("size", pa.int64()),
            pa.field("mtime_ns", pa.int64()),
            pa.field("ctime_ns", pa.int64()),
            pa.field("version", pa.int64()),
            pa.field("members", pa.list_(member)),
        ]
    )

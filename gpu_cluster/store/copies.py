"""Keeps small copies of pictures that are no files of this machine, by content hash: reports show them.

Without them, each report would read these pictures once more, over a network. This module must not know how copies are
made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_cluster.events import Observer
from gpu_cluster.store.shards import Shards

if TYPE_CHECKING:
    import pyarrow as pa


class CopyShards(Shards):
    """Small copies (JPEG) of one kind."""

    def __init__(self, folder: Path, key: Mapping[str, Any], observer: Observer) -> None:
        super().__init__(folder, key, copy_schema(), observer)

    def keep(self, copies: Mapping[str, bytes]) -> None:
        """Write one shard with the copies, which are given by the content hashes of their pictures.

        Raises
        ------
        StoreError
            When it cannot be written.
        """
        self.append({"content_hash": list(copies), "copy": list(copies.values())})

    def find(self, hashes: Iterable[str]) -> dict[str, bytes]:
        """Return the copies of the pictures with these content hashes, as far as there are any.

        Memory: one shard, and the copies that are found. Shards are read until all are found, the newest first.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        self.mark_as_used()
        left, found = set(hashes), dict[str, bytes]()
        for name in self.names() if left else ():
            table = self.read(name)
            if table is None:
                continue
            rows = table.filter(pc.is_in(table["content_hash"], value_set=pa.array(sorted(left), pa.string())))
            found |= zip(rows["content_hash"].to_pylist(), rows["copy"].to_pylist(), strict=True)
            left -= found.keys()
            if not left:
                break
        return found


def copy_schema() -> pa.Schema:
    """Return the columns of a shard of small copies."""
    import pyarrow as pa

    return pa.schema([pa.field("content_hash", pa.string()), pa.field("copy", pa.binary())])

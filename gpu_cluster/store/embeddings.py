"""Keeps embeddings by content hash, in shards of one key; `store` says where these are.

docs/store.md describes the files. This module must not know pictures, networks or devices.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from gpu_cluster.backend import FloatArray, IntArray
from gpu_cluster.errors import StoreError
from gpu_cluster.events import Observer
from gpu_cluster.files import printable
from gpu_cluster.store.shards import Shards, opened

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class FoundShard:
    """What a shard holds of the embeddings that were looked for, s of them.

    Attributes
    ----------
    path : the shard
    at : (s,) indices into the hashes that were looked for
    rows : (s,) rows of the shard
    x : (s, d) float32, host; NaN where the content cannot be decoded
    reasons : s reasons; None for a row with an embedding
    """

    path: Path
    at: IntArray
    rows: IntArray
    x: FloatArray
    reasons: Sequence[str | None]


class EmbeddingShards(Shards):
    """Embeddings of one key: `content_hash`, `embedding`, and `reason` for content that cannot be decoded."""

    def __init__(self, folder: Path, key: Mapping[str, Any], observer: Observer, *, named: bool = True) -> None:
        super().__init__(folder, key, embedding_schema(int(key["n_features"])), observer, named=named)

    def find(self, wanted: Sequence[str]) -> Iterator[FoundShard]:
        """Yield what is stored of the hashes `wanted`, one shard at a time, each hash only once.

        Memory: 40 bytes for each hash, and a shard.
        """
        self.mark_as_used()
        index = _Index(wanted)
        for name in self.names():
            if not index.missing.any():
                return
            hashes = self._hashes(name)
            if hashes is None or not index.new(hashes)[1].any():
                continue
            table = self.read(name)
            if table is None:
                continue
            at, new = index.new(table["content_hash"])
            index.missing[at[new]] = False
            yield FoundShard(
                self.folder / name,
                at[new],
                np.flatnonzero(new),
                embeddings_of(table, int(self.key["n_features"]))[new],
                [why for why, taken in zip(table["reason"].to_pylist(), new, strict=True) if taken],
            )

    def count(self, wanted: Sequence[str]) -> int:
        """Return how many of these hashes the shards hold; it does not count as use of them."""
        found: set[str] = set()
        for name in self.names():
            hashes = self._hashes(name)
            found.update(() if hashes is None else hashes.to_pylist())
        return len(found.intersection(wanted))

    def keep(self, hashes: Sequence[str], x: FloatArray, reasons: Sequence[str | None]) -> Path | None:
        """Write one shard of s rows: x (s, d) float32, host; a row that has a reason has no embedding there.

        Rows without a reason whose embedding is not finite are not written, because no later job could use them. If all
        others are, the shard has the rows in the order in which they are given. Returns its path, or None if there was
        nothing to write.
        """
        import pyarrow as pa

        finite = np.all(np.isfinite(x), axis=1).reshape(-1)
        good = [row for row, why in enumerate(reasons) if why is not None or finite[row]]
        x, hashes, reasons = x[good], [hashes[row] for row in good], [reasons[row] for row in good]
        if not hashes:
            return None
        flat = pa.array(np.ascontiguousarray(x, dtype=np.float32).reshape(-1))
        mask = pa.array([why is not None for why in reasons], pa.bool_())
        embedding = pa.FixedSizeListArray.from_arrays(flat, x.shape[1], mask=mask)
        return self.append({"content_hash": list(hashes), "embedding": embedding, "reason": list(reasons)})

    def written(self, shard: Path) -> FloatArray:
        """Return the embeddings (s, d) of a shard that another process of this job has written, host.

        Raises
        ------
        StoreError
            When it is not there, or not as it was written.
        """
        table = self.read(shard.name)
        if table is None:
            raise StoreError(
                f"cannot read {printable(str(shard))!r}, which a worker has written: expected it in a folder that all "
                "workers share, and as it was written; run the same command again"
            )
        return embeddings_of(table, int(self.key["n_features"]))

    def problem(self, table: pa.Table) -> str | None:
        """Return what is wrong with the rows; a checksum says nothing about what was wrong when it was made."""
        import pyarrow.compute as pc

        if table["content_hash"].null_count:
            return "a row is without a content hash"
        embeddings = table["embedding"].combine_chunks()
        if pc.any(pc.equal(embeddings.is_valid(), table["reason"].is_valid())).as_py():
            return "a row has neither an embedding nor a reason, or both"
        # The numbers of the rows that have a reason are not among these.
        if not np.isfinite(embeddings.flatten().to_numpy(zero_copy_only=False)).all():
            return "it holds values that are not finite"
        return None

    def _hashes(self, name: str) -> pa.ChunkedArray | None:
        """Return the hashes of a shard without verifying it; if they cannot be read, the shard is read and verified."""
        import pyarrow as pa

        try:
            with (self.folder / name).open("rb") as stream:
                file = opened(stream)
                self.check_declared(file, os.fstat(stream.fileno()).st_size)
                return file.read(["content_hash"], use_threads=False)["content_hash"]
        except (pa.ArrowException, OSError, KeyError, ValueError):
            # The shard is gone or damaged; reading all of it finds out which.
            table = self.read(name)
            return None if table is None else table["content_hash"]


class ScratchShards(EmbeddingShards):
    """Embeddings that only one job uses, in a folder that this job removes when it ends."""

    def __init__(self, folder: Path, key: Mapping[str, Any], observer: Observer) -> None:
        super().__init__(folder, key, observer, named=False)

    def not_written(self, error: OSError) -> StoreError:
        return StoreError(
            f"cannot write embeddings to {printable(str(self.folder))!r}, where they lie until the job ends: "
            f"{error.strerror or error}; nothing was left: make room there, choose a place with more room with --out, "
            "or leave out --no-cache, so that the store keeps them"
        )


class _Index:
    """Finds the positions of the hashes of a shard among all hashes that are looked for.

    The hashes are sorted once, because a store may have thousands of shards.
    """

    def __init__(self, wanted: Sequence[str]) -> None:
        hashes = np.array([text.encode() for text in wanted], dtype=np.bytes_)
        self._order = np.argsort(hashes, kind="stable")
        self._sorted = hashes[self._order]
        # For each hash, whether it has not been found yet.
        self.missing = np.ones(len(wanted), dtype=bool)

    def new(self, hashes: pa.ChunkedArray) -> tuple[IntArray, np.ndarray]:
        """Return for each row of a shard its index in the wanted hashes (-1: not wanted), and whether it is to be used.

        A row is used if its hash is wanted and missing, and no earlier row of the shard has the same hash.
        """
        found = np.array([(text or "").encode() for text in hashes.to_pylist()], dtype=np.bytes_)
        place = np.minimum(np.searchsorted(self._sorted, found), len(self._sorted) - 1)
        at = np.where(self._sorted[place] == found, self._order[place], -1)
        _, first = np.unique(at, return_index=True)
        once = np.zeros(len(at), dtype=bool)
        once[first] = True
        return at, once & (at >= 0) & self.missing[at]


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


def embeddings_of(table: pa.Table, width: int) -> FloatArray:
    """Return the embeddings of a shard as (s, width) float32; NaN in a row without one."""
    array = table["embedding"].combine_chunks()
    # `flatten()` would leave out the rows without a list, so `values` is used.
    values = array.values.to_numpy(zero_copy_only=False)[array.offset * width :][: len(array) * width]
    x = cast(FloatArray, values.reshape(-1, width))
    if array.null_count:
        return cast(
            FloatArray, np.where(array.is_valid().to_numpy(zero_copy_only=False)[:, None], x, np.float32("nan"))
        )
    return x

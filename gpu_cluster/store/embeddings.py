"""Keeps embeddings by content hash, in shards of one key; `store` says where these are.

docs/store.md describes the files. This module must not know pictures, networks or devices.
"""

from __future__ import annotations

import hashlib
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


# The columns that a row is found by.
_NAMING = ("content_hash", "conversion")


@dataclass(frozen=True)
class FoundShard:
    """What a shard holds of the embeddings that were looked for, s of them.

    Attributes
    ----------
    path : the shard
    at : (s,) indices into the names that were looked for
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
    """Embeddings of one key: `content_hash`, `embedding`, and `reason` for content that cannot be decoded.

    A shard also has the column `conversion` if something was done to a picture of it after it was decoded, such as a
    conversion of its colours. Such a row is another one than that of the same content as it is stored (see `row_name`).
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], observer: Observer, *, named: bool = True) -> None:
        plain, fuller = (embedding_schema(int(key["n_features"]), conversion=more) for more in (False, True))
        super().__init__(folder, key, plain, observer, named=named, fuller=fuller)

    def find(self, wanted: Sequence[str]) -> Iterator[FoundShard]:
        """Yield what is stored of the rows `wanted`, by their names, one shard at a time, each row only once.

        Memory: 40 bytes for each name, and a shard.
        """
        self.mark_as_used()
        index = _Index(wanted)
        for name in self.names():
            if not index.missing.any():
                return
            rows = self._row_names(name)
            if not rows or not index.new(rows)[1].any():
                continue
            table = self.read(name)
            if table is None:
                continue
            at, new = index.new(_row_names(table))
            index.missing[at[new]] = False
            yield FoundShard(
                self.folder / name,
                at[new],
                np.flatnonzero(new),
                embeddings_of(table, int(self.key["n_features"]))[new],
                [why for why, taken in zip(table["reason"].to_pylist(), new, strict=True) if taken],
            )

    def count(self, wanted: Sequence[str]) -> int:
        """Return how many of the rows with these names the shards hold; it does not count as use of them."""
        found: set[str] = set()
        for name in self.names():
            found.update(self._row_names(name))
        return len(found.intersection(wanted))

    def keep(
        self,
        hashes: Sequence[str],
        x: FloatArray,
        reasons: Sequence[str | None],
        *,
        conversions: Sequence[str | None] = (),
    ) -> Path | None:
        """Write one shard of s rows: x (s, d) float32, host; a row that has a reason has no embedding there.

        `conversions` says of each row what was done to the picture; if it is empty, nothing was. Rows without a reason
        whose embedding is not finite are not written, because no later job could use them. If all others are, the shard
        has the rows in the order in which they are given. Returns its path, or None if there was nothing to write.
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
        columns = {"content_hash": list(hashes), "embedding": embedding, "reason": list(reasons)}
        done = [conversions[row] for row in good] if conversions else []
        # Without a conversion, the shard is the same as those of earlier versions, which can use it.
        return self.append({**columns, "conversion": done} if any(done) else columns)

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

    def _row_names(self, name: str) -> list[str]:
        """Return the names of the rows of a shard without verifying it; if that cannot be, it is read and verified."""
        import pyarrow as pa

        try:
            with (self.folder / name).open("rb") as stream:
                file = opened(stream)
                self.check_declared(file, os.fstat(stream.fileno()).st_size)
                columns = [column for column in _NAMING if column in file.schema_arrow.names]
                return _row_names(file.read(columns, use_threads=False))
        except (pa.ArrowException, OSError, KeyError, ValueError):
            # The shard is gone or damaged; reading all of it finds out which.
            table = self.read(name)
            return [] if table is None else _row_names(table)


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
    """Finds the positions of the rows of a shard among all rows that are looked for.

    Their names are sorted once, because a store may have thousands of shards.
    """

    def __init__(self, wanted: Sequence[str]) -> None:
        names = np.array([text.encode() for text in wanted], dtype=np.bytes_)
        self._order = np.argsort(names, kind="stable")
        self._sorted = names[self._order]
        # For each name, whether it has not been found yet.
        self.missing = np.ones(len(wanted), dtype=bool)

    def new(self, names: Sequence[str]) -> tuple[IntArray, np.ndarray]:
        """Return for each row of a shard its index in the wanted names (-1: not wanted), and whether it is to be used.

        A row is used if its name is wanted and missing, and no earlier row of the shard has the same name.
        """
        found = np.array([text.encode() for text in names], dtype=np.bytes_)
        place = np.minimum(np.searchsorted(self._sorted, found), len(self._sorted) - 1)
        at = np.where(self._sorted[place] == found, self._order[place], -1)
        _, first = np.unique(at, return_index=True)
        once = np.zeros(len(at), dtype=bool)
        once[first] = True
        return at, once & (at >= 0) & self.missing[at]


def row_name(content_hash: str, conversion: str | None) -> str:
    """Return the name of a row of content that something was done to, or nothing: 32 characters, as a hash has."""
    if conversion is None:
        return content_hash
    return hashlib.blake2b(f"{content_hash} {conversion}".encode(), digest_size=16).hexdigest()


def _row_names(table: pa.Table) -> list[str]:
    hashes = [text or "" for text in table["content_hash"].to_pylist()]
    if "conversion" not in table.column_names:
        return hashes
    return list(map(row_name, hashes, table["conversion"].to_pylist()))


def embedding_schema(n_features: int, *, conversion: bool = False) -> pa.Schema:
    """Return the columns of a shard of embeddings, with `conversion` or without."""
    import pyarrow as pa

    fields = [
        pa.field("content_hash", pa.string()),
        pa.field("embedding", pa.list_(pa.float32(), n_features)),
        pa.field("reason", pa.string()),
    ]
    return pa.schema([*fields, pa.field("conversion", pa.string())] if conversion else fields)


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

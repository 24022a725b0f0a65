"""A Parquet file of vectors that were computed elsewhere: a column of paths, and one of lists of numbers.

It is read in batches of rows. What it declares is checked against its size before anything is read, because a small
file can declare any number of rows, or repeat a long text in each of them. This module must not know pictures or what
the vectors are used for.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_cluster.backend import FloatArray
from gpu_cluster.bounded import MIB
from gpu_cluster.columns import Texts
from gpu_cluster.embedding.parquet_footer import declared_apart
from gpu_cluster.embedding.vectors import MOST_FEATURES, VectorsInFile, as_float32, window
from gpu_cluster.errors import DataError
from gpu_cluster.store.shards import opened
from gpu_cluster.words import did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_PATH, _VECTORS = "path", ("embedding", "vector")
_TYPES = {"halffloat": "float16", "float": "float32", "double": "float64"}

# What the file may declare, as a multiple of its size; a small file may always declare _SMALL_BYTES. Of a constant
# column next to nothing is in the file.
_MOST_INFLATED, _SMALL_BYTES = 50, 256 * MIB
# Four characters for each byte of the longest path, where each is an escape.
_MOST_PATH_BYTES = 4 * 4_096
_PATHS_AT_A_TIME = 1 << 16


class ParquetVectors(VectorsInFile):
    """The rows of a Parquet file with the columns `path`, and `embedding` or `vector`."""

    def __init__(self, path: Path, stream: io.BufferedReader) -> None:
        """Read and check what the file declares, its names, and the length of its first row.

        Raises
        ------
        DataError
            When it is damaged, lacks a column, or declares more than a file of its size holds.
        """
        import pyarrow as pa

        super().__init__(path, stream)
        try:
            file = opened(stream)
            self._column, type_ = self._check_columns(file)
            n = self._check_sizes(file)
            self.dtype = _TYPES[str(type_.value_type)]
            self.names = Texts(self._paths())
            if len(self.names) != n:
                raise ValueError(f"it declares {n:,} rows, found {len(self.names):,} paths")
            d = type_.list_size if pa.types.is_fixed_size_list(type_) else self._first_length()
        # What is no text in a footer is a ValueError.
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._damaged(error) from error
        if not 1 <= d <= MOST_FEATURES:
            raise DataError(
                f"{self.shown}: expected 1 to {MOST_FEATURES:,} numbers in each row of {self._column!r}; found {d:,}"
            )
        self.shape = (n, d)

    def _check_columns(self, file: pq.ParquetFile) -> tuple[str, Any]:
        """Return the name and the type of the column of vectors."""
        import pyarrow as pa

        schema = file.schema_arrow
        names = list(schema.names)
        found = [name for name in names if name in _VECTORS]
        has = ", ".join(repr(name[:100]) for name in names[:20]) or "none"
        if names.count(_PATH) != 1 or len(found) != 1:
            lacking = _PATH if names.count(_PATH) != 1 else _VECTORS[0]
            raise DataError(
                f"{self.shown}: expected one column 'path', and one column 'embedding' or 'vector'; found "
                f"{has}{'' if lacking in names else did_you_mean(lacking, names)}; rename the columns"
            )
        path, vectors = schema.field(_PATH).type, schema.field(found[0]).type
        inner = path.value_type if pa.types.is_dictionary(path) else path
        if not (pa.types.is_string(inner) or pa.types.is_large_string(inner)):
            raise DataError(f"{self.shown}: expected texts in the column 'path'; found {path}")
        kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        if not any(is_kind(vectors) for is_kind in kinds) or str(vectors.value_type) not in _TYPES:
            raise DataError(
                f"{self.shown}: expected lists of float16, float32 or float64 in the column {found[0]!r}; "
                f"found {str(vectors)[:200]}"
            )
        return found[0], vectors

    def _check_sizes(self, file: pq.ParquetFile) -> int:
        """Return the number of rows; refuse a file that declares far more than its size allows, or no row."""
        n, size = int(file.metadata.num_rows), self._status.st_size
        found = declared_apart(self.path, self._column)
        if found.n_rows != n:
            raise ValueError("it was changed")
        declared = max(8 * found.n_values, 16 * n, found.n_bytes)
        most = max(_SMALL_BYTES, _MOST_INFLATED * size)
        if declared > most:
            raise DataError(
                f"{self.shown}: expected a table that takes at most {most // MIB:,} MiB, found "
                f"{declared // MIB:,} MiB in a file of {size:,} bytes"
            )
        if not n:
            raise DataError(f"{self.shown} has no rows; expected one for each picture")
        return n

    def _paths(self) -> Iterator[str]:
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        # As a dictionary, a text that is in many rows is held once.
        self._stream.seek(0)
        file = pq.ParquetFile(self._stream, pre_buffer=False, read_dictionary=[_PATH])
        first = 0
        for batch in file.iter_batches(_PATHS_AT_A_TIME, columns=[_PATH], use_threads=False):
            paths = batch.column(0)
            if paths.null_count:
                raise DataError(f"{self.shown}: row {first + _first(paths.is_null()):,} (counted from 0) has no path")
            longest = pc.max(pc.binary_length(paths.dictionary)).as_py() or 0
            if longest > _MOST_PATH_BYTES:
                raise DataError(
                    f"{self.shown}: expected paths of at most {_MOST_PATH_BYTES:,} bytes, found one of {longest:,}"
                )
            paths.validate(full=True)
            yield from paths.to_pylist()
            first += len(paths)

    def _first_length(self) -> int:
        batch = next(self._batches(1), None)
        return 0 if batch is None or batch.null_count else len(batch[0])

    def _batches(self, n: int) -> Iterator[pa.Array]:
        """Yield the column of vectors, n rows at a time."""
        self._stream.seek(0)
        for batch in opened(self._stream).iter_batches(n, columns=[self._column], use_threads=False):
            yield batch.column(0)

    def blocks(self) -> Iterator[tuple[slice, FloatArray]]:
        import pyarrow as pa

        first = 0
        try:
            for batch in self._batches(window(self.shape[1])):
                yield slice(first, first + len(batch)), self._numbers(batch, first)
                first += len(batch)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._damaged(error) from error

    def _numbers(self, batch: pa.Array, first: int) -> FloatArray:
        """Return the vectors of a batch, whose first row is the row `first` of the file."""
        import pyarrow as pa
        import pyarrow.compute as pc

        d = self.shape[1]
        where = f"{self.shown}, column {self._column!r}: expected {d:,} numbers in each row; row "
        if batch.null_count:
            raise DataError(f"{where}{first + _first(batch.is_null()):,} (counted from 0) is empty")
        if not pa.types.is_fixed_size_list(batch.type):
            lengths = pc.list_value_length(batch)
            others = pc.not_equal(lengths, d)
            if pc.any(others).as_py():
                at = _first(others)
                raise DataError(f"{where}{first + at:,} (counted from 0) has {lengths[at].as_py():,}")
        values = batch.flatten()
        if values.null_count:
            at = _first(values.is_null()) // d
            raise DataError(f"{where}{first + at:,} (counted from 0) has one that is missing")
        return as_float32(values.to_numpy(zero_copy_only=False).reshape(-1, d))

    def _damaged(self, error: Exception) -> DataError:
        return DataError(
            f"{self.shown} cannot be read ({' '.join(str(error).split())[:300]}): expected a Parquet file "
            "with a column 'path', and one 'embedding' or 'vector' of lists of numbers"
        )


def _first(mask: Any) -> int:
    """Return the first place at which a mask is true."""
    import pyarrow.compute as pc

    return int(pc.index(mask, True).as_py())

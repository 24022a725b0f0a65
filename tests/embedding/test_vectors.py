"""Files of vectors: every kind gives the same numbers, and a wrong one is refused with what was expected and found."""

from __future__ import annotations

import io
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpu_cluster.backend import CpuBackend
from gpu_cluster.columns import Texts
from gpu_cluster.config import GivenConfig
from gpu_cluster.embedding import vectors as of_files
from gpu_cluster.embedding import vectors_parquet
from gpu_cluster.embedding.given import opened_vectors
from gpu_cluster.embedding.given_rows import ChosenRows, room_in
from gpu_cluster.embedding.vectors import ArrayVectors, Vectors
from gpu_cluster.errors import ConfigError, DataError, JobError
from gpu_cluster.events import Observer

N, D = 50, 7
HOSTILE = Path(__file__).with_name("hostile")
NAMES = [f"{number:03d}.png" for number in range(N)]
X = np.random.default_rng(0).normal(size=(N, D)).astype(np.float16)


@contextmanager
def vectors_of(file: Path, names: Path | None = None) -> Iterator[Vectors]:
    with opened_vectors(GivenConfig(embeddings=file, embedding_names=names)) as found:
        assert found is not None
        yield found


def npy(folder: Path, x: Any, names: list[str] = NAMES) -> Path:
    np.save(folder / "x.npy", x)
    (folder / "x.txt").write_text("\n".join(names))
    return folder / "x.npy"


def parquet(folder: Path, x: Any = None, **options: Any) -> Path:
    """Write a table of `columns`, or of the usual ones with x as the vectors."""
    columns = options.pop("columns", None) or {"path": NAMES, "embedding": x}
    pq.write_table(pa.table(columns), folder / "x.parquet", **options)
    return folder / "x.parquet"


def fixed(x: np.ndarray, type_: Any) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1), type_), x.shape[1])


KINDS: dict[str, Callable[[Path], Path]] = {
    "float16": lambda folder: npy(folder, X),
    "float64": lambda folder: npy(folder, X.astype(np.float64)),
    "other order of bytes": lambda folder: npy(folder, X.astype(">f4")),
    "column after column": lambda folder: npy(folder, np.asfortranarray(X.astype(np.float32))),
    "lists of float16": lambda folder: parquet(folder, list(X)),
    "lists of float64": lambda folder: parquet(folder, X.astype(np.float64).tolist(), row_group_size=8),
    "lists of one length": lambda folder: parquet(folder, fixed(X, pa.float16())),
    "large lists and texts": lambda folder: parquet(
        folder,
        columns={
            "path": pa.array(NAMES, pa.large_string()),
            "vector": pa.array(X.astype(np.float32).tolist(), pa.large_list(pa.float32())),
        },
    ),
    "paths of a dictionary": lambda folder: parquet(
        folder, columns={"path": pa.array(NAMES).dictionary_encode(), "vector": list(X), "label": NAMES}
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_numbers_and_names(tmp_path, kind, monkeypatch):
    # Several windows, of which the last is not full.
    monkeypatch.setattr(of_files, "WINDOW_BYTES", 8 * D * 16)
    with vectors_of(KINDS[kind](tmp_path)) as found:
        assert found.shape == (N, D)
        assert tuple(found.names) == tuple(NAMES)
        blocks = list(found.blocks())
        assert len(blocks) > 1
        assert [rows.start for rows, _ in blocks] == [0, *(rows.stop for rows, _ in blocks[:-1])]
        np.testing.assert_array_equal(np.concatenate([x for _, x in blocks]), X.astype(np.float32))
        assert len(found.sha256(Observer())) == 64


def test_the_names_of_an_array_may_be_in_another_list_separated_by_nul(tmp_path):
    np.save(tmp_path / "x.npy", X[:2])
    (tmp_path / "names").write_bytes(b"a\nb.png\0c.png\0")
    with vectors_of(tmp_path / "x.npy", tmp_path / "names") as found:
        assert tuple(found.names) == ("a\nb.png", "c.png")


# Rows by their numbers


@pytest.mark.parametrize("numbers", [[], [3], [0, 1, 2], [5, 4, 4, 9, 10, 11, 0]])
def test_rows_are_read_by_their_numbers_in_any_order(tmp_path, numbers):
    rows = np.array(numbers, np.int64)
    with vectors_of(npy(tmp_path, X.astype(np.float64))) as found:
        assert found.plain is not None
        np.testing.assert_array_equal(found.plain.read(rows), X[rows])
        chosen = ChosenRows(found.plain, rows, CpuBackend())
        np.testing.assert_array_equal(chosen.whole(), X[rows])


def test_rows_written_in_any_order_are_read_back_and_leave_no_file(tmp_path):
    room, order = room_in(tmp_path / "not there yet", (N, D)), np.random.default_rng(1).permutation(N)
    room.write(order, X[order])
    np.testing.assert_array_equal(room.read(np.arange(N)), X)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_cut_short_or_changed_meanwhile_is_an_error_and_no_crash(tmp_path):
    file = npy(tmp_path, X)
    with vectors_of(file) as found:
        found.check_unchanged()
        os.truncate(file, 200)
        with pytest.raises(JobError, match="changed while the job ran"):
            found.check_unchanged()
        assert found.plain is not None
        with pytest.raises(JobError, match="become shorter"):
            found.plain.read(np.arange(N))


# Wrong files


def cut(file: Path, n: int) -> Path:
    os.truncate(file, file.stat().st_size - n)
    return file


def written(folder: Path, content: bytes, name: str = "x.npy") -> Path:
    (folder / name).write_bytes(content)
    (folder / "x.txt").write_text("\n".join(NAMES))
    return folder / name


def header(shape: str, version: tuple[int, int] = (1, 0), n_bytes: int | None = None, tail: bytes = b"") -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text) if n_bytes is None else n_bytes)
    return b"\x93NUMPY" + bytes(version) + length + text + tail


def zipped(folder: Path) -> Path:
    stream = io.BytesIO()
    np.savez(stream, x=X)
    return written(folder, stream.getvalue())


WRONG: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nothing there": (lambda folder: folder / "none.npy", r"cannot read --embeddings '.*none\.npy': No such file"),
    "a folder": (lambda folder: folder, "cannot read .*: a folder, not a file"),
    "empty": (lambda folder: written(folder, b""), r"expected a \.npy file .* or a Parquet file; found .*b''"),
    "an archive": (zipped, r"found an archive, such as \.npz"),
    "pickled": (
        lambda folder: npy(folder, np.array([[1.0], [2.0, 3.0]], object)),
        r"holds pickled objects, which are not read; .* numpy\.save\(file, numpy\.stack\(vectors\)\)",
    ),
    "one column": (lambda folder: npy(folder, X[:, 0]), r"n rows and d columns.*; found the shape \(50,\)"),
    "three axes": (lambda folder: npy(folder, X[None]), r"found the shape \(1, 50, 7\)"),
    "no numbers": (lambda folder: npy(folder, X[:, :0]), r"found the shape \(50, 0\)"),
    "no rows": (lambda folder: npy(folder, X[:0], ["a"]), r"found the shape \(0, 7\)"),
    "whole numbers": (lambda folder: npy(folder, X.astype(np.int64)), r"found int64; convert them"),
    "complex": (lambda folder: npy(folder, X.astype(complex)), "found complex128"),
    "cut short": (lambda folder: cut(npy(folder, X), 1), r"is cut short: .* expected a file of 828 bytes; found 827"),
    "too long": (lambda folder: written(folder, header("(1, 1)", tail=bytes(5))), "longer than it says"),
    "endless": (lambda folder: written(folder, header("(10**12, 10**6)")), "no array that NumPy wrote"),
    "huge": (lambda folder: written(folder, header("(1000000000000, 100000)")), "is cut short"),
    "no header": (lambda folder: written(folder, b"\x93NUMPY\x01\x00"), "no array that NumPy wrote"),
    "a header of gigabytes": (
        lambda folder: written(folder, header("(50, 7)", (2, 0), n_bytes=(1 << 32) - 1)),
        "no array that NumPy wrote",
    ),
    "another version": (lambda folder: written(folder, header("(50, 7)", (9, 0))), r"version \(9, 0\) of the format"),
    "too few names": (
        lambda folder: npy(folder, X, NAMES[1:]),
        r"x\.txt' names 49 pictures, and --embeddings '.*' has 50 rows; expected one name for each row",
    ),
    "a name twice": (
        lambda folder: npy(folder, X, [*NAMES[:-1], NAMES[3]]),
        r"the rows 3 and 49 \(counted from 0\) are both of '003\.png'",
    ),
    "no table": (lambda folder: written(folder, b"PAR1 and no more"), "cannot be read .*: expected a Parquet file"),
    "a table cut short": (lambda folder: cut(parquet(folder, list(X)), 20), "cannot be read"),
    "no column of paths": (
        lambda folder: parquet(folder, columns={"paths": NAMES, "embedding": list(X)}),
        r"expected one column 'path', .*; found 'paths', 'embedding' \(did you mean 'paths'\?\); rename the columns",
    ),
    "no column of vectors": (
        lambda folder: parquet(folder, columns={"path": NAMES, "embeddings": list(X)}),
        r"found 'path', 'embeddings' \(did you mean 'embeddings'\?\)",
    ),
    "two columns of vectors": (
        lambda folder: parquet(folder, columns={"path": NAMES, "embedding": list(X), "vector": list(X)}),
        "expected one column 'path', and one column 'embedding' or 'vector'",
    ),
    "paths that are numbers": (
        lambda folder: parquet(folder, columns={"path": range(N), "embedding": list(X)}),
        "expected texts in the column 'path'; found int64",
    ),
    "lists of whole numbers": (
        lambda folder: parquet(folder, X.astype(int).tolist()),
        "expected lists of float16, float32 or float64 in the column 'embedding'; found list<",
    ),
    "no lists": (lambda folder: parquet(folder, X[:, 0]), "expected lists of float16.*; found halffloat"),
    "no path": (
        lambda folder: parquet(folder, columns={"path": [*NAMES[:9], None, *NAMES[10:]], "vector": list(X)}),
        r"row 9 \(counted from 0\) has no path",
    ),
    "a path of megabytes": (
        lambda folder: parquet(folder, columns={"path": [*NAMES[1:], "x" * (1 << 20)], "vector": list(X)}),
        "expected paths of at most 16,384 bytes, found one of 1,048,576",
    ),
    "a table without rows": (
        lambda folder: parquet(
            folder, columns={"path": pa.array([], pa.string()), "vector": fixed(X[:0], pa.float16())}
        ),
        "has no rows",
    ),
    # In each of these two files one byte was changed.
    "more rows than its columns have": (
        lambda folder: Path(shutil.copy(HOSTILE / "rows.parquet", folder)),
        r"cannot be read \(it declares 3 rows, found 2 paths\)",
    ),
    # Arrow ends the process that asks this file for a column's facts.
    "a footer that ends Arrow's process": (
        lambda folder: Path(shutil.copy(HOSTILE / "abort.parquet", folder)),
        r"cannot be read \(its footer is damaged: Arrow ends the process that reads it\)",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_refused_and_the_error_says_what_was_expected_and_found(tmp_path, case):
    make, message = WRONG[case]
    file = make(tmp_path)
    with pytest.raises(DataError, match=message), vectors_of(file):
        pass


@pytest.mark.parametrize("kind", ["values", "paths"])
def test_a_table_that_declares_far_more_than_its_size_allows_is_refused(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(vectors_parquet, "_SMALL_BYTES", 1 << 20)
    # Of values that are all the same, a file of a few kilobytes holds any number.
    x = np.zeros((1_000, 1_000 if kind == "values" else 1), np.float16)
    paths = [f"{number} {'x' * (1 if kind == 'values' else 5_000)}" for number in range(1_000)]
    file = parquet(tmp_path, columns={"path": paths, "vector": fixed(x, pa.float16())}, compression="zstd")
    found = r"expected a table that takes at most 1 MiB, found \d MiB in a file of [\d,]+ bytes"
    with pytest.raises(DataError, match=found), vectors_of(file):
        pass


ROWS: dict[str, tuple[Any, str]] = {
    "a row of another length": ([*X[:9].tolist(), [1.0], *X[10:].tolist()], r"row 9 \(counted from 0\) has 1"),
    "an empty row": ([*X[:9].tolist(), None, *X[10:].tolist()], r"row 9 \(counted from 0\) is empty"),
    "a number missing": (
        [*X[:9].tolist(), [None] * D, *X[10:].tolist()],
        r"row 9 \(counted from 0\) has one that is missing",
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_wrong_row_of_a_table_is_named_when_the_rows_are_read(tmp_path, case):
    rows, message = ROWS[case]
    with (
        vectors_of(parquet(tmp_path, rows)) as found,
        pytest.raises(DataError, match=f"expected 7 numbers .*{message}"),
    ):
        list(found.blocks())


def test_an_array_without_names_and_a_table_with_names_of_its_own_are_wrong_use(tmp_path):
    np.save(tmp_path / "x.npy", X)
    with (
        pytest.raises(ConfigError, match=r"an array has no names; .* at '.*x\.txt' or with --embedding-names"),
        vectors_of(tmp_path / "x.npy"),
    ):
        pass
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    with (
        pytest.raises(ConfigError, match="has the names in its column 'path'; leave out --embedding-names"),
        vectors_of(parquet(tmp_path, list(X)), tmp_path / "names.txt"),
    ):
        pass


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (X[:, 0], "found the shape"),
        (X.astype(int), "found int64"),
        (np.array([["a", "b"]]), r"float16, float32 or float64, .*; found str"),
    ],
)
def test_an_array_in_memory_is_checked_as_one_in_a_file_is(given, message):
    with pytest.raises(DataError, match=f"^embeddings: expected .*{message}"):
        ArrayVectors(given, Texts(NAMES))

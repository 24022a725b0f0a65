"""The export of embeddings: an array with its names and a table, which say the same and can be given back."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from gpu_cluster.config import GivenConfig
from gpu_cluster.embedding.given import opened_vectors
from gpu_cluster.errors import InterruptedJobError, JobError
from gpu_cluster.events import Observer
from gpu_cluster.files import unescaped
from gpu_cluster.images.names import listed_names
from gpu_cluster.report.exports.embeddings import names_list, write_embeddings
from tests.report.exports.data import NAMES, assigned, held, vectors


@pytest.mark.parametrize("n", [len(NAMES), 5_000], ids=["a few", "several blocks"])
def test_the_array_the_names_and_the_table_have_the_rows_of_the_assignments(tmp_path, n):
    pictures, x = assigned([*NAMES, *(f"{number}.png" for number in range(n - len(NAMES)))]), vectors(n)
    write_embeddings(tmp_path, pictures, held(x), Observer())
    array = np.load(tmp_path / "embeddings.npy")
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, x)
    assert (tmp_path / "embeddings.txt").read_text().splitlines() == list(pictures["path"])
    table = pq.read_table(tmp_path / "embeddings.parquet")
    np.testing.assert_array_equal(np.stack(table["embedding"].to_numpy(zero_copy_only=False)), x)
    for name in ("path", "content_hash", "cluster"):
        assert table[name].to_pylist() == list(pictures[name])


@pytest.mark.parametrize("file", ["embeddings.npy", "embeddings.parquet"])
def test_each_file_is_one_that_a_run_can_be_given(tmp_path, file):
    x = vectors(len(NAMES))
    write_embeddings(tmp_path, assigned(), held(x), Observer())
    with opened_vectors(GivenConfig(embeddings=tmp_path / file)) as given:
        assert given is not None
        assert list(given.names) == NAMES
        np.testing.assert_array_equal(np.concatenate([block for _rows, block in given.blocks()]), x)


@pytest.mark.parametrize("names", [[*NAMES, "new\nline.png"], ["\ufeffmarked.png", "b.png"]], ids=["newline", "mark"])
def test_a_list_that_lines_cannot_hold_is_separated_by_nul_bytes(tmp_path, names):
    (tmp_path / "names.txt").write_bytes(names_list(names))
    assert list(listed_names(tmp_path / "names.txt", "--embedding-names")) == list(map(unescaped, names))


def test_names_that_are_not_utf8_are_written_as_tables_have_them(tmp_path):
    assert names_list([r"na\xefve.png"]) == rb"na\xefve.png" + b"\n"
    assert os.fsencode(unescaped(r"na\xefve.png")) == b"na\xefve.png"


def test_other_rows_than_pictures_are_refused(tmp_path):
    with pytest.raises(JobError, match="expected an embedding for each of 7 pictures, found 6"):
        write_embeddings(tmp_path, assigned(), held(vectors(6)), Observer())


def test_it_ends_when_it_is_asked_to_stop(tmp_path):
    class Stopping(Observer):
        def stopping(self) -> bool:
            return True

    with pytest.raises(InterruptedJobError):
        write_embeddings(tmp_path, assigned(), held(vectors(len(NAMES))), Stopping())


def test_pandas_reads_the_table(tmp_path: Path):
    write_embeddings(tmp_path, assigned(), held(vectors(len(NAMES))), Observer())
    table = pd.read_parquet(tmp_path / "embeddings.parquet")
    assert list(table.columns) == ["path", "content_hash", "cluster", "embedding"]
    assert table["embedding"][0].shape == (40,)

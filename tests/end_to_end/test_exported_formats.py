"""A run exported to the forms that have a row for each picture: the same rows, and embeddings that go back in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.helpers import TINY_OPTIONS, called, everything, write_pictures

N = 12


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run and its store, which no test changes."""
    folder = tmp_path_factory.mktemp("formats")
    write_pictures(folder / "in" / "some", N)
    done = called("run", folder / "in", *TINY_OPTIONS, "--cache", folder / "store", out=folder / "run")
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="module")
def exported(place: Path) -> Path:
    """The folder of the exports of this run, one of each form."""
    for form in ("tensorboard", "fiftyone", "embeddings", "parquet", "json"):
        done = called("export", place / "run", "--to", form, "--quiet", out=place / "out" / form)
        assert done.code == 0, done.err
    return place / "out"


def test_every_form_has_the_same_rows_in_the_order_of_the_run(place, exported):
    table = pd.read_csv(place / "run" / "assignments.csv")
    expected = list(zip(table["path"], table["cluster"], strict=True))
    parquet = pd.read_parquet(exported / "parquet" / "pictures.parquet")
    vectors = pd.read_parquet(exported / "embeddings" / "embeddings.parquet")
    projector = pd.read_csv(exported / "tensorboard" / "metadata.tsv", sep="\t")
    for found in (parquet, vectors, projector):
        assert list(zip(found["path"], found["cluster"], strict=True)) == expected
    samples = json.loads((exported / "fiftyone" / "samples.json").read_bytes())["samples"]
    assert [(one["path"], int(one["cluster"]["label"])) for one in samples] == expected
    assert all(Path(one["filepath"]).is_file() for one in samples)
    names = (exported / "embeddings" / "embeddings.txt").read_text().splitlines()
    assert names == list(table["path"])


def test_the_vectors_are_the_same_in_every_form(exported):
    array = np.load(exported / "embeddings" / "embeddings.npy")
    table = pd.read_parquet(exported / "embeddings" / "embeddings.parquet")
    np.testing.assert_array_equal(np.stack(list(table["embedding"])), array)
    binary = np.fromfile(exported / "tensorboard" / "vectors.bytes", np.float32)
    np.testing.assert_array_equal(binary.reshape(array.shape), array)


def test_a_run_of_exported_embeddings_gives_the_same_tables(place, exported, tmp_path):
    options = TINY_OPTIONS[TINY_OPTIONS.index("--k") :]
    given = ("--embeddings", exported / "embeddings" / "embeddings.npy", "--no-cache", "--quiet")
    done = called("run", place / "in", *options, *given, out=tmp_path / "again")
    assert done.code == 0, done.err
    again, first = (pd.read_parquet(run / "assignments.parquet") for run in (tmp_path / "again", place / "run"))
    pd.testing.assert_frame_equal(again, first)


def test_without_the_embeddings_in_the_store_nothing_is_written_and_the_error_has_the_command(place, tmp_path):
    done = called("export", place / "run", "--to", "embeddings", "--cache", tmp_path / "none", out=tmp_path / "out")
    assert done.code == 2
    assert f"lacks the embeddings of {N} of the {N} pictures" in done.err
    assert f"gpu-cluster run --config {place / 'run' / 'run.json'} --cache {tmp_path / 'none'}" in done.err
    assert everything(tmp_path) == []

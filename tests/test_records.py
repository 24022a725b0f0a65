"""What a notebook prints of a result: a line or a few, however many pictures there were."""

from __future__ import annotations

from dataclasses import fields

import pandas as pd
import pytest

import gpu_cluster
from gpu_cluster.manifest import Manifest
from gpu_cluster.records import Record
from tests.helpers import TINY, write_pictures


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> gpu_cluster.RunResult:
    place = tmp_path_factory.mktemp("records")
    write_pictures(place / "in", 40)
    return gpu_cluster.run(place / "in", **TINY, no_cache=True, out=place / "run")


def test_a_run_is_shown_in_one_line_with_what_came_of_it_and_where(result):
    assert repr(result) == f"<RunResult: 2 clusters, 40 files found (0 bad); folder '{result.folder}'>"


def test_the_names_and_the_clusters_of_the_pictures_match_as_the_readme_says(result):
    clusters = result.findings.clustering.labels
    names = [result.manifest.paths[row] for row in result.findings.embeddings.rows]
    table = pd.read_csv(result.folder / "assignments.csv").set_index("path")["cluster"]
    assert dict(zip(names, clusters, strict=True)) == table.to_dict()
    assert result.findings.clustering.k == table.nunique()


def records_in(record: Record) -> list[Record]:
    inner = [getattr(record, one.name) for one in fields(record)]  # type: ignore[arg-type]
    return [record, *(deeper for one in inner if isinstance(one, Record) for deeper in records_in(one))]


def test_every_record_inside_a_run_is_shown_in_a_few_lines_too(result):
    found = records_in(result)
    assert {"Manifest", "Findings", "Embeddings", "Projection", "Reduction", "Sweep", "Clustering", "Scores"} <= {
        type(record).__name__ for record in found
    }
    assert "embeddings=Embeddings(...)" in repr(result.findings)
    assert {type(record).__name__: len(repr(record)) for record in found if len(repr(record)) > 1000} == {}


def test_an_array_is_shown_by_its_type_and_shape(result):
    assert "x=<float32 rows of shape (40, 1024)>" in repr(result.findings.embeddings)


def test_a_prediction_and_a_comparison_are_shown_in_one_line(result, tmp_path, sample_images):
    found = gpu_cluster.predict(result.folder, sample_images[:4], out=tmp_path / "p.csv", no_cache=True)
    far = int(found.far.sum())
    assert (
        repr(found)
        == f"<Prediction: 4 of 4 files found were assigned, {far} of them far; table '{tmp_path / 'p.csv'}'>"
    )
    told = Manifest(tmp_path, ("a", "b"), bad={1: "empty file"}, passed_over=("c",))
    compared = gpu_cluster.Comparison(tmp_path, gpu_cluster.CompareConfig(), told, ())
    # The number of files that the command line prints as found.
    assert ", 3 files found (1 bad, 1 passed over);" in repr(compared)
    assert len(repr(compared)) < 100 + len(str(tmp_path))

"""`load_run`: what it reads from the folder of a run, and what it says of a folder that is none."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import gpu_cluster
from gpu_cluster import RunResult
from gpu_cluster.files import escaped
from tests.helpers import TINY, listing, write_pictures
from tests.run_folders import killed

EARLIER = Path(__file__).parents[1] / "earlier"
ODD = "g\udce9rard.png"


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A run on six pictures, one of which has a name that is not UTF-8, and a file that is none."""
    place = tmp_path_factory.mktemp("loaded")
    files = write_pictures(place / "in", 6)
    files[0].rename(place / "in" / ODD)
    (place / "in" / "text.png").write_text("no picture")
    return gpu_cluster.run(place / "in", **TINY, out=place / "run")


def test_it_holds_what_the_run_returned(result):
    assert result.findings is not None
    run, clustering = gpu_cluster.load_run(result.folder), result.findings.clustering
    assert np.array_equal(run.clusters, clustering.labels)
    assert np.array_equal(run.centres, clustering.centres)
    assert run.k == clustering.k
    assert run.verdict == result.verdict
    assert list(run.sweep["k"]) == [2]
    assert run.metrics["cluster_sizes"] == clustering.sizes.tolist()
    assert run.config == result.config.model_dump(mode="json")
    assert run.record["gpu_cluster"]
    assert run.folder == result.folder


def test_paths_are_those_of_the_file_system_and_the_table_has_them_as_text(result):
    run = gpu_cluster.load_run(result.folder)
    assert ODD in run.paths
    assert list(run.assignments["path"]) == list(map(escaped, run.paths))


def test_the_tables_that_are_read_later_are_there_too(result):
    run = gpu_cluster.load_run(result.folder)
    assert len(run.manifest) == 7
    assert list(run.bad_files["path"]) == ["text.png"]
    assert list(run.near_duplicates.columns) == ["path", "other", "cosine"]


def test_it_is_frozen_and_shows_itself_on_one_line(result):
    run = gpu_cluster.load_run(result.folder)
    assert repr(run) == f"<LoadedRun: 2 clusters, 6 pictures; folder {str(result.folder)!r}>"
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.folder = Path()  # type: ignore[misc]


def test_a_notebook_shows_it_as_it_shows_the_result_of_the_run(result):
    html = gpu_cluster.load_run(result.folder)._repr_html_()
    assert html is not None
    assert html == result._repr_html_()


@pytest.mark.parametrize("version", ["first", "second"])
def test_runs_of_earlier_versions_are_read_and_not_changed(version, tmp_path):
    folder = Path(shutil.copytree(EARLIER / version / "run", tmp_path / "run"))
    before = listing(folder)
    run = gpu_cluster.load_run(folder)
    assert (run.k, len(run.assignments), run.centres.shape) == (3, 8, (3, 7))
    assert len(run.manifest) == 8
    assert listing(folder) == before


# What is no run


def test_a_folder_that_is_still_written_is_refused_with_the_name_that_it_will_have(tmp_path):
    folder = killed(tmp_path / "mine")
    with pytest.raises(gpu_cluster.DataError, match=r"is being written.*'mine'"):
        gpu_cluster.load_run(folder)


def test_a_run_without_clusters_is_refused_with_the_table_of_the_reasons(tmp_path):
    (tmp_path / "in").mkdir()
    for name in "ab":
        (tmp_path / "in" / f"{name}.png").write_text("no picture")
    with pytest.raises(gpu_cluster.NothingReadableError):
        gpu_cluster.run(tmp_path / "in", **TINY, out=tmp_path / "run")
    with pytest.raises(gpu_cluster.DataError, match=r"none of its pictures could be read.*bad_files\.csv"):
        gpu_cluster.load_run(tmp_path / "run")


@pytest.mark.parametrize(("name", "found"), [("absent", "does not exist"), ("in", "holds no run.json")])
def test_what_is_no_run_folder_is_refused(tmp_path, name, found):
    (tmp_path / "in").mkdir()
    with pytest.raises(gpu_cluster.DataError, match=rf"is no run folder.*{found}"):
        gpu_cluster.load_run(tmp_path / name)


@pytest.mark.parametrize(
    "name", ["run.json", "metrics.json", "sweep.csv", "assignments.parquet", "model/model.json", "model/arrays.npz"]
)
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_or_missing_file_is_an_error_that_names_the_folder(tmp_path, name, damage):
    folder = Path(shutil.copytree(EARLIER / "second" / "run", tmp_path / "run"))
    (folder / "bad_files.csv").write_text("path,reason\n")
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    if damage == "cut":
        (folder / name).write_bytes(content[:20])
    with pytest.raises(gpu_cluster.DataError, match=str(tmp_path)):
        gpu_cluster.load_run(folder)


@pytest.mark.parametrize(
    ("column", "value"), [("cluster", 3), ("cluster", -1), ("path", None)], ids=["high", "below 0", "no path"]
)
def test_a_table_that_names_no_cluster_of_the_run_or_no_path_is_refused(tmp_path, column, value):
    folder = Path(shutil.copytree(EARLIER / "second" / "run", tmp_path / "run"))
    table = pd.read_parquet(folder / "assignments.parquet")
    table.loc[0, column] = value
    table.to_parquet(folder / "assignments.parquet")
    with pytest.raises(gpu_cluster.DataError, match=r"in assignments\.parquet"):
        gpu_cluster.load_run(folder)


def test_a_model_of_another_run_is_refused(tmp_path):
    folder = Path(shutil.copytree(EARLIER / "second" / "run", tmp_path / "run"))
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(metrics | {"k": 5}))
    with pytest.raises(gpu_cluster.DataError, match=r"expected the 5 clusters of metrics\.json in its model too"):
        gpu_cluster.load_run(folder)


def test_a_damaged_table_that_is_read_later_is_an_error_then(tmp_path):
    folder = Path(shutil.copytree(EARLIER / "second" / "run", tmp_path / "run"))
    (folder / "manifest.parquet").write_bytes(b"PAR1")
    run = gpu_cluster.load_run(folder)
    with pytest.raises(gpu_cluster.DataError, match="cannot load the run"):
        len(run.manifest)


def test_a_comparison_is_refused_by_what_it_is(tmp_path):
    folder = Path(shutil.copytree(EARLIER / "second" / "run", tmp_path / "run"))
    (folder / "compare.csv").write_text(json.dumps({}))
    with pytest.raises(gpu_cluster.DataError, match="folder of a comparison"):
        gpu_cluster.load_run(folder)

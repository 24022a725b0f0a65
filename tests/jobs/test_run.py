"""The whole command on the sample set: what it prints, what it leaves, and that it repeats."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn import metrics as sk

import gpu_cluster as api
from gpu_cluster.config import shipped_data
from tests.helpers import TINY, Finished, called, gpu_cluster, write_pictures


@pytest.fixture(scope="module")
def table(sample_run) -> pd.DataFrame:
    return sample_run.table("assignments.csv")


def test_the_job_succeeds_and_says_first_that_it_took_the_sample_set(sample_run):
    assert sample_run.code == 0, sample_run.err
    assert sample_run.out.splitlines()[0].startswith("No images named: using the 210 drawn flowers")


def test_the_run_folder_holds_what_the_documentation_lists(sample_run):
    found = {path.name for path in sample_run.folder.iterdir()}
    expected = {"assignments.csv", "assignments.parquet", "bad_files.csv", "events.jsonl", "manifest.parquet", "model"}
    assert found == expected | {
        "inventory.json",
        *("metrics.json", "near_duplicates.csv", "plots", "report.html", "run.json", "sweep.csv", "thumbnails.parquet"),
    }
    plots = {path.name for path in (sample_run.folder / "plots").iterdir()}
    sheets = {f"cluster_{number:02d}.png" for number in range(sample_run.json("metrics.json")["k"])}
    assert plots == {"elbow.png", "scatter.png", "scatter_labels.png", "silhouette.png"} | sheets
    assert not list(sample_run.folder.parent.glob(".run*"))


def test_the_record_says_what_computed_the_components_and_what_repeats(sample_run):
    record = sample_run.json("run.json")
    assert record["pca_solver"] == "Gram matrix by blocks"
    assert record["repeats"] == {"to_the_byte": "all results, on the same machine with the same versions"}


def test_assignments_have_a_row_an_image_in_order_with_its_own_label(table):
    columns = ["path", "cluster", "label", "distance", "silhouette", "is_medoid", "pc1", "pc2", "tsne1", "tsne2"]
    assert list(table.columns) == [*columns, "content_hash"]
    assert list(table["path"]) == [f"{number:04d}.png" for number in range(1, 211)]
    truth = pd.read_csv(shipped_data() / "flowers" / "flower_labels.csv")
    assert list(table["label"]) == list(truth["label"])
    assert table["content_hash"].nunique() == 210


def test_assignments_are_the_same_in_csv_and_parquet(sample_run, table):
    parquet = pd.read_parquet(sample_run.folder / "assignments.parquet")
    # pandas reads numbers of a CSV as float64, the Parquet file keeps float32.
    pd.testing.assert_frame_equal(table, parquet, check_dtype=False, rtol=1e-6)


def test_clusters_are_numbered_by_size_and_have_one_medoid_each_the_nearest_row(sample_run, table):
    sizes = table["cluster"].value_counts().sort_index()
    assert list(sizes.index) == list(range(len(sizes)))
    assert list(sizes) == sorted(sizes, reverse=True)
    assert list(sizes) == sample_run.json("metrics.json")["cluster_sizes"]
    medoids = table[table["is_medoid"]]
    assert sorted(medoids["cluster"]) == list(range(len(sizes)))
    nearest = table.groupby("cluster")["distance"].min()
    np.testing.assert_array_equal(medoids.set_index("cluster")["distance"].sort_index(), nearest)


def test_external_scores_are_scikit_learns_of_the_assignments(sample_run, table):
    scores = sample_run.json("metrics.json")["external"]
    expected = {
        "homogeneity": sk.homogeneity_score(table["label"], table["cluster"]),
        "completeness": sk.completeness_score(table["label"], table["cluster"]),
        "v_measure": sk.v_measure_score(table["label"], table["cluster"]),
        "adjusted_rand": sk.adjusted_rand_score(table["label"], table["cluster"]),
        "normalized_mutual_info": sk.normalized_mutual_info_score(table["label"], table["cluster"]),
    }
    assert {name: scores[name] for name in expected} == pytest.approx(expected)
    assert 0 < scores["accuracy"] <= 1


def test_class_by_cluster_table_counts_the_assignments(sample_run, table):
    found = sample_run.json("metrics.json")["class_by_cluster"]
    expected = pd.crosstab(table["label"], table["cluster"])
    assert found["classes"] == list(expected.index)
    assert found["counts"] == expected.to_numpy().tolist()


def test_silhouette_and_inertia_agree_with_the_rows(sample_run, table):
    internal = sample_run.json("metrics.json")["internal"]
    # float32 values, written with the digits that read back the same.
    assert internal["silhouette"] == pytest.approx(table["silhouette"].mean(), rel=1e-5)
    assert internal["inertia"] == pytest.approx((table["distance"] ** 2).sum(), rel=1e-5)


def test_sweep_has_every_k_with_falling_inertia_and_one_chosen(sample_run):
    sweep = sample_run.table("sweep.csv")
    assert list(sweep["k"]) == list(range(2, 16))
    assert sweep["inertia"].is_monotonic_decreasing
    assert list(sweep.loc[sweep["chosen"], "k"]) == [sample_run.json("metrics.json")["k"]]


def test_run_record_names_device_weights_versions_and_times(sample_run):
    record = sample_run.json("run.json")
    assert record["device"] == "cpu"
    assert record["weights"]["sha256"].startswith("fb89143d")
    assert record["files"] == {"found": 210, "ok": 210, "bad": 0, "duplicate": 0, "passed_over": 0}
    assert record["images_per_s"] > 0
    stages = ["scan", "embed", "reduce", "sweep", "cluster", "score", "near_duplicates", "tsne", "report"]
    assert list(record["stages_s"]) == stages
    assert record["versions"][record["engine"]]
    assert record["engine_reason"]


def test_events_tell_the_job_from_start_to_end(sample_run):
    events = [json.loads(line) for line in (sample_run.folder / "events.jsonl").read_text().splitlines()]
    finished = [event["stage"] for event in events if event["event"] == "stage_finished"]
    assert finished == ["embed", "reduce", "sweep", "cluster", "score", "near_duplicates", "tsne", "report", "page"]
    embedded = [
        (event["done"], event["total"]) for event in events if event.get("stage") == "embed" and "done" in event
    ]
    assert embedded[-1] == (210, 210)


def test_summary_gives_files_k_scores_and_the_folder(sample_run):
    for expected in ("files: 210 found: 210 clustered\n", "clusters: ", "silhouette: ", "adjusted Rand index: "):
        assert expected in sample_run.out
    assert f"results: {sample_run.folder}" in sample_run.out


def test_what_is_no_terminal_gets_plain_lines(sample_run):
    assert "\x1b" not in sample_run.out + sample_run.err
    assert "oneDNN" not in sample_run.err


@pytest.mark.slow
def test_two_runs_with_the_same_seed_give_byte_identical_assignments_and_another_seed_gives_other_starts(
    tmp_path, sample_images
):
    (tmp_path / "in").mkdir()
    for file in sample_images[::10]:
        shutil.copy(file, tmp_path / "in")

    def of_seed(command: Callable[..., Finished], seed: int, name: str, store: str) -> Finished:
        # With few restarts, their starts matter.
        given = ("--features", "vgg16", "--image-size", "32", "--k-range", "5:7", "--n-init", "2", "--thumbnails", "1")
        return command(
            *("run", tmp_path / "in", *given, "--seed", str(seed), "--cache", tmp_path / store), out=tmp_path / name
        )

    # The second is another process, and computes the embeddings anew too.
    first, again = of_seed(called, 0, "first", "one"), of_seed(gpu_cluster, 0, "again", "two")
    other = of_seed(called, 1, "other", "one")
    assert (first.code, again.code, other.code) == (0, 0, 0)
    name = "assignments.csv"
    assert (first.folder / name).read_bytes() == (again.folder / name).read_bytes()
    assert list(first.table("sweep.csv")["inertia"]) != list(other.table("sweep.csv")["inertia"])


@pytest.mark.slow
def test_a_run_folder_given_again_is_replaced_whole_by_overwrite(tmp_path):
    out = tmp_path / "run"
    write_pictures(tmp_path / "in", 6)
    api.run(tmp_path / "in", **{**TINY, "k": 3, "k_range": "3:3"}, out=out)
    assert (out / "plots" / "cluster_02.png").exists()
    api.run(tmp_path / "in", **TINY, out=out, overwrite=True)
    assert json.loads((out / "metrics.json").read_text())["k"] == 2
    assert not (out / "plots" / "cluster_02.png").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "run"]


def test_what_gave_k_is_told_and_what_overwrite_needs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "in", 9)
    given: dict[str, Any] = {"preset": "notebook", "image_size": 32, "k_range": "7:8", "n_init": 2, "no_cache": True}
    result = api.run("in", **given, engine="ncnn", overwrite=True)
    assert "k is 8, as --preset notebook says; the range 7:8 is tried and shown too" in result.notices
    assert "--overwrite replaces nothing without --out: this run gets a new folder" in result.notices


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What makes a short job of forty pictures: one network, and a store that holds them after the first."""
    return {"features": "vgg16", "image_size": 32, "n_init": 2, "cache": tmp_path_factory.mktemp("forty") / "store"}


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory, some: dict[str, Any]) -> api.RunResult:
    """A run without labels, whose k the silhouette chose, on a sample."""
    images = sorted((shipped_data() / "flowers").glob("*.png"))[:40]
    given: dict[str, Any] = {"k_range": "2:5", "select": "silhouette", "silhouette_sample": 25}
    return api.run(images, **some, **given, out=tmp_path_factory.mktemp("unlabelled") / "run")


def test_without_labels_external_scores_are_absent(unlabelled):
    found = json.loads((unlabelled.folder / "metrics.json").read_text())
    assert found["external"] is None
    assert found["class_by_cluster"] is None
    assert not (unlabelled.folder / "plots" / "scatter_labels.png").exists()


def test_silhouette_on_a_sample_says_so(unlabelled):
    found = json.loads((unlabelled.folder / "metrics.json").read_text())
    assert found["n_silhouette"] == 25
    assert "Silhouette on a fixed random sample of 25 of 40 images" in unlabelled.notices
    assert unlabelled.findings is not None
    assert np.isnan(unlabelled.findings.scores.silhouettes).sum() == 15


@pytest.mark.slow
def test_restarts_on_a_sample_are_said_in_the_tables_in_the_record_and_on_the_page(tmp_path, sample_images, some):
    folder = api.run(sample_images[:40], **some, k_range="2:4", sweep_sample=24, out=tmp_path / "run").folder
    sweep = pd.read_csv(folder / "sweep.csv")
    assert set(sweep["n_restarted"]) == {24}
    assert set(sweep["n_silhouette"]) == {40}
    assert json.loads((folder / "metrics.json").read_text())["sweep_n_restarted"] == 24
    record = json.loads((folder / "run.json").read_text())
    assert record["config"]["sweep"]["sweep_sample"] == 24
    said = "on a random sample of 24 of 40 images, and their agreement on 40"
    assert any(said in notice for notice in record["notices"])
    page = (folder / "report.html").read_text()
    assert "ran on a random sample of 24 of the 40 pictures, and their agreement was computed on 40" in page
    assert "The silhouettes are those of" not in page


@pytest.mark.slow
def test_no_clear_knee_is_said(tmp_path, sample_images, some):
    # Two points have no knee.
    result = api.run(sample_images[:40], **some, k_range="2:3", select="elbow", out=tmp_path / "run")
    assert result.findings is not None
    assert result.findings.sweep.chosen_by == "farthest from the chord"
    assert any(notice.startswith("No clear knee") for notice in result.notices)


def test_k_is_where_restarts_agree_most_and_every_criterion_is_in_the_table(sample_run):
    sweep = sample_run.table("sweep.csv")
    metrics = sample_run.json("metrics.json")
    candidates = sweep[sweep["k"] >= 3]
    assert metrics["k_chosen_by"] == "agreement"
    assert metrics["k"] == candidates.loc[candidates["agreement"].idxmax(), "k"]
    assert metrics["k_agreement"] == pytest.approx(candidates["agreement"].max())
    assert sweep[["inertia", "silhouette", "agreement"]].notna().all(axis=None)


def test_select_silhouette_takes_the_highest(unlabelled):
    assert unlabelled.findings is not None
    sweep = unlabelled.findings.sweep
    assert sweep.best_k == max(sweep.points, key=lambda point: point.silhouette or -1).k
    assert sweep.chosen_by == "silhouette"


@pytest.mark.slow
def test_where_restarts_do_not_agree_the_user_is_told(tmp_path):
    random = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for number in range(60):
        noise = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "in" / f"{number}.png")
    given: dict[str, Any] = {"features": "vgg16", "image_size": 32, "k_range": "3:7", "thumbnails": 1}
    result = api.run(tmp_path / "in", **given, out=tmp_path / "run")
    assert any("groups, k 3 to 7: at " in notice for notice in result.notices)
    assert "groups, k 3 to 7: at " in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_range_that_ends_too_soon_is_told_in_the_report(tmp_path, sample_run, sample_store):
    given: dict[str, Any] = {"features": "vgg16", "k_range": "2:8", "thumbnails": 20, "cache": sample_store}
    result = api.run(shipped_data() / "flowers", image_size=64, **given, out=tmp_path / "run")
    notice = next(notice for notice in result.notices if ", the end of the range: there may be more groups" in notice)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert page.index('<p class="answer">') < page.index(notice) < page.index("</header>")
    assert page.index("Number of groups (k)</h2>") < page.rindex(f"{notice}. Each number was tried on")

"""Features times algorithms: real pictures, the real network, and every algorithm's own library."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from sklearn.cluster import HDBSCAN, AgglomerativeClustering, SpectralClustering
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score

import gpu_cluster
import gpu_cluster.jobs.compare
from gpu_cluster.backend import CpuBackend, GpuBackend
from gpu_cluster.cli.summary import print_comparison
from gpu_cluster.clustering.cluster import of_labels
from gpu_cluster.clustering.reduce import reduce as real_reduce
from gpu_cluster.config import CompareConfig
from gpu_cluster.embedding import extractors
from gpu_cluster.errors import ConfigError, JobError, NothingReadableError
from gpu_cluster.events import Observer
from gpu_cluster.manifest import Manifest
from gpu_cluster.report import plots
from gpu_cluster.report.tables import comparison_lines, conclusion
from gpu_cluster.results import Compared, Comparison, Projection
from tests.helpers import Finished, called, picture, write_pictures

FEW: dict[str, Any] = {"image_size": 32, "k": 3}


@pytest.fixture(scope="module")
def compared(sample_run: Finished, sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The sample set by three features, of which the store of the sample run has one, and all algorithms."""
    assert sample_run.code == 0
    out = tmp_path_factory.mktemp("compare") / "run"
    given = ("compare", "--features", "vgg16,colours,notebook", "--image-size", "64", "--k", "10")
    return called(*given, "--cache", sample_store, out=out)


@pytest.mark.slow
def test_every_pair_is_a_row_with_its_scores(compared):
    assert compared.code == 0, compared.err
    table = compared.table("compare.csv")
    pairs = list(zip(table["features"], table["algorithm"], strict=True))
    names = ("vgg16", "colours", "notebook")
    assert pairs == [(one, other) for one in names for other in ("kmeans", "ward", "spectral", "hdbscan")]
    scores = ["silhouette", "stability", "homogeneity", "adjusted_rand", "normalized_mutual_info", "cluster_s"]
    assert table[scores].notna().all(axis=None)
    assert (table.loc[table["algorithm"] != "hdbscan", "k"] == 10).all()


@pytest.mark.slow
def test_the_network_beats_colours_and_the_published_recipe(compared):
    table = compared.table("compare.csv").query("algorithm == 'kmeans'").set_index("features")
    assert table.loc["vgg16", "adjusted_rand"] > 2 * table.loc["notebook", "adjusted_rand"]
    assert table.loc["vgg16", "adjusted_rand"] > 2 * table.loc["colours", "adjusted_rand"]


@pytest.mark.slow
def test_what_is_printed_is_the_table_that_is_left(compared):
    lines = [line for line in (compared.folder / "compare.md").read_text().splitlines() if line]
    assert len(lines) == 2 + 12 + 1
    assert lines[-1].startswith("Best by the labels: vgg16 with ")
    assert set(lines) <= set(compared.out.splitlines())
    assert (compared.folder / "plots" / "compare.png").stat().st_size > 10_000
    assert compared.json("run.json")["config"]["sweep"]["k"] == 10


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A comparison of all algorithms on eight pictures and one that is broken, with its store beside it."""
    place = tmp_path_factory.mktemp("few")
    (first, *_) = write_pictures(place / "in", 8)
    (place / "in" / "broken.png").write_bytes(first.read_bytes()[:80])
    return gpu_cluster.compare(place / "in", features=["colours"], **FEW, cache=place / "store", out=place / "run")


def test_features_are_computed_once(tmp_path, few):
    images, store = (few.folder.with_name(name) for name in ("in", "store"))
    given: dict[str, Any] = {**FEW, "algorithms": ["kmeans"], "cache": store, "out": tmp_path / "run"}
    found = gpu_cluster.compare(images, features=["colours"], **given)
    assert few.rows[0].features_s is not None
    events = [json.loads(line) for line in (found.folder / "events.jsonl").read_text().splitlines()]
    assert found.rows[0].features_s is None
    assert "The store holds the embeddings of all these pictures already" in [one.get("message") for one in events]


@pytest.mark.slow
def test_k_is_chosen_once_in_the_first_space(tmp_path):
    write_pictures(tmp_path / "in", 40)
    result = gpu_cluster.compare(
        tmp_path / "in",
        features=["colours", "hog"],
        algorithms=["kmeans"],
        image_size=32,
        k_range="2:5",
        n_init=3,
        out=tmp_path / "run",
    )
    first, second = result.rows
    assert first.k == second.k
    assert first.adjusted_rand is None


def test_bad_files_are_told_and_left_out(few):
    assert pd.read_csv(few.folder / "bad_files.csv")["path"].tolist() == ["broken.png"]
    assert [row.n_images for row in few.rows] == [8] * 4


def test_where_the_plot_is_is_printed(few, capsys):
    print_comparison(few)
    (plot,) = re.findall(r"^plot: (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert Path(plot) == few.folder / "plots" / "compare.png"
    assert Path(plot).is_file()


@pytest.mark.slow
def test_more_bad_files_than_allowed_are_exit_code_3(tmp_path):
    write_pictures(tmp_path / "in", 6)
    for name in ("a.png", "b.png"):
        (tmp_path / "in" / name).write_text("no picture")
    given = ("compare", tmp_path / "in", "--features", "colours", "--algorithms", "ward", "--k", "2")
    done = called(*given, "--max-bad-fraction", "0.2", out=tmp_path / "run")
    assert done.code == 3
    assert done.err.splitlines()[-1].startswith(
        "error: 2 of 8 pictures could not be used, more than --max-bad-fraction"
    )
    assert len(done.table("compare.csv")) == 1


@pytest.mark.slow
def test_pictures_that_go_away_cost_the_features_after_them_and_no_others(tmp_path):
    files = write_pictures(tmp_path / "in", 12)

    class Away(Observer):
        def stage_finished(self, stage: str, elapsed_s: float) -> None:
            if stage == "cluster":
                for _ in range(6):
                    left.pop().unlink()

    left = [*files]
    given: dict[str, Any] = {"features": ["colours", "hog", "notebook"], "algorithms": ["kmeans"], "observer": Away()}
    result = gpu_cluster.compare(tmp_path / "in", **given, **FEW, out=tmp_path / "run")
    assert [row.n_images for row in result.rows] == [12, 6, None]
    assert result.rows[2].reason == "left out: no file can be decoded"
    assert pd.read_csv(result.folder / "compare.csv")["n_images"].tolist()[:2] == [12, 6]
    titles, _, *rows = comparison_lines(result)
    assert "| images |" in titles
    assert [row.split(" | ")[2] for row in rows[:2]] == ["12", "6"]
    assert len(result.manifest.bad) == 12


def test_nothing_but_bad_files_leaves_their_reasons(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_text("no picture")
    done = called("compare", tmp_path / "in", "--features", "colours,hog", out=tmp_path / "run")
    assert done.code == 3
    assert "1 picture found, and none could be decoded; the reasons are in" in done.err
    assert done.table("bad_files.csv")["path"].tolist() == ["a.png"]
    assert not (done.folder / "compare.csv").exists()


@pytest.mark.slow
def test_a_comparison_is_repeated_by_its_record_and_by_its_command(tmp_path):
    write_pictures(tmp_path / "in", 12)
    given: dict[str, Any] = {"features": ["hog", "colours"], "algorithms": ["ward", "kmeans"], "image_size": 32, "k": 3}
    first = gpu_cluster.compare(tmp_path / "in", **given, seed=7, pca=4, normalize=False, out=tmp_path / "first")
    record = json.loads((first.folder / "run.json").read_text())
    assert record["command"].startswith(f"gpu-cluster compare {tmp_path / 'in'} ")
    by_command = called(*shlex.split(record["command"])[1:], out=tmp_path / "by command")
    assert by_command.code == 0, by_command.err
    by_record = gpu_cluster.compare(config=first.folder / "run.json", out=tmp_path / "by record")
    timeless = [column for column in by_command.table("compare.csv").columns if not column.endswith("_s")]
    tables = [pd.read_csv(folder / "compare.csv")[timeless] for folder in (first.folder, by_record.folder)]
    assert tables[0]["features"].tolist() == ["hog", "hog", "colours", "colours"]
    pd.testing.assert_frame_equal(tables[1], tables[0])
    pd.testing.assert_frame_equal(by_command.table("compare.csv")[timeless], tables[0])


@pytest.mark.parametrize("option", ["pooling", "thumbnails", "nothing"])
def test_an_option_that_means_nothing_to_a_comparison_is_refused(option):
    with pytest.raises(ConfigError, match=f"unknown option '{option}' of compare; known are algorithms, "):
        gpu_cluster.compare("pictures", **{option: "max"})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown option 'algorithms' of run"):
        gpu_cluster.run(algorithms=["ward"])  # type: ignore[call-arg]


@pytest.mark.parametrize("n", [3, 4, 8])
def test_as_many_groups_as_pictures_go_through_every_algorithm(tmp_path, n):
    write_pictures(tmp_path / "in", n)
    result = gpu_cluster.compare(tmp_path / "in", features=["colours"], image_size=32, k=n, out=tmp_path / "run")
    assert [row.reason for row in result.rows] == [None] * 4
    assert [row.k for row in result.rows[:3]] == [n] * 3


def test_more_groups_than_the_device_can_find_cost_a_row_with_the_reason(tmp_path, monkeypatch):
    # A GPU's limit, on a machine without one.
    monkeypatch.setattr(CpuBackend, "most_groups", GpuBackend.most_groups)
    write_pictures(tmp_path / "in", 12)
    for k, reason in ((4, "left out: on the cpu it finds at most 3 groups among 12 images; k is 4"), (3, None)):
        result = gpu_cluster.compare(
            tmp_path / "in",
            features=["colours"],
            algorithms=["kmeans", "spectral", "hdbscan"],
            image_size=32,
            k=k,
            out=tmp_path / f"run{k}",
        )
        assert [row.reason for row in result.rows] == [None, reason, None]


def test_one_group_and_noise_alone_are_not_called_stable(tmp_path):
    for number in range(6):
        picture(0).save(tmp_path / f"{number}.png")
    result = gpu_cluster.compare(tmp_path, features=["colours"], **FEW, out=tmp_path / "run")
    found = {row.algorithm: (row.k, row.stability) for row in result.rows}
    assert (found["kmeans"], found["hdbscan"]) == ((1, None), (0, None))
    assert found["ward"][1] is not None


def test_an_algorithm_that_fails_costs_its_row_and_nothing_else(tmp_path, monkeypatch):
    def out_of_memory(*_args: Any, **_options: Any) -> None:
        np.empty((1 << 50, 512), np.float32)

    # Spectral's own library, which on a larger matrix would say the same.
    monkeypatch.setattr(SpectralClustering, "fit_predict", out_of_memory)
    write_pictures(tmp_path / "in", 12)
    result = gpu_cluster.compare(tmp_path / "in", features=["colours"], **FEW, out=tmp_path / "run")
    reasons = [row.reason for row in result.rows]
    assert [reason is None for reason in reasons] == [True, True, False, True]
    assert "failed: MemoryError Unable to allocate" in (reasons[2] or "")
    record = json.loads((result.folder / "run.json").read_text())
    assert [notice for notice in record["notices"] if notice.startswith("colours, spectral failed: MemoryError")]


def test_features_that_do_not_fit_the_device_cost_their_rows_and_no_others(tmp_path, monkeypatch):
    def out_of_memory(*_args: Any, **_options: Any) -> None:
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    # What TensorFlow raises on a device that is full, here from what computes the second features.
    monkeypatch.setattr("skimage.feature.hog", out_of_memory)
    write_pictures(tmp_path / "in", 12)
    given: dict[str, Any] = {"features": ["colours", "hog"], "algorithms": ["kmeans"]}
    result = gpu_cluster.compare(tmp_path / "in", **given, **FEW, out=tmp_path / "run")
    assert [row.k for row in result.rows] == [3, None]
    assert "failed: DeviceError out of memory on the cpu for a single image" in (result.rows[1].reason or "")


def test_two_pictures_are_too_few_to_compare_anything(tmp_path):
    write_pictures(tmp_path / "in", 2)
    done = called("compare", tmp_path / "in", "--features", "colours", "--image-size", "32", "--out", tmp_path / "run")
    assert done.code == 1
    assert "nothing could be grouped" in done.err
    assert "left out: 2 images are too few" in done.err
    assert len(pd.read_csv(tmp_path / "run" / "compare.csv")) == 4


def test_features_that_do_not_fit_the_memory_cost_their_rows_and_no_others(tmp_path, monkeypatch):
    def reduce(x: Any, *given: Any, **options: Any) -> Projection:
        if x.shape[1] == 256:
            # What a matrix does that no memory holds.
            np.empty((1 << 50, 512), np.float32)
        return real_reduce(x, *given, **options)

    monkeypatch.setattr("gpu_cluster.clustering.sequence.reduce", reduce)
    write_pictures(tmp_path / "in", 12)
    given: dict[str, Any] = {**FEW, "algorithms": ["kmeans", "ward"], "out": tmp_path / "run"}
    result = gpu_cluster.compare(tmp_path / "in", features=["colours", "hog"], **given)
    assert [(row.features, row.reason is None) for row in result.rows] == [
        *[("colours", False)] * 2,
        *[("hog", True)] * 2,
    ]
    with pytest.raises(JobError, match=r"nothing could be grouped; .*compare\.csv', the first: failed: MemoryError"):
        gpu_cluster.compare(tmp_path / "in", features=["colours"], **given)
    assert pd.read_csv(tmp_path / "run" / "compare.csv")["reason"].str.startswith("failed: MemoryError").all()


def test_a_damaged_file_of_one_network_costs_its_rows_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    path = extractors.keras_weights("mobilenetv2")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no HDF5")
    write_pictures(tmp_path / "in", 12)
    given: dict[str, Any] = {**FEW, "algorithms": ["kmeans"], "out": tmp_path / "run"}
    result = gpu_cluster.compare(tmp_path / "in", features=["mobilenetv2", "colours"], **given)
    assert [(row.features, row.reason is None) for row in result.rows] == [("mobilenetv2", False), ("colours", True)]
    assert "are not those of MobileNetV2" in (result.rows[0].reason or "")


def test_features_below_0_are_not_among_those_taken_for_a_square_root(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    path = extractors.keras_weights("convnexttiny")
    path.parent.mkdir(parents=True)
    path.write_text("not looked at")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_text("no picture")
    with pytest.raises(NothingReadableError):
        gpu_cluster.compare(tmp_path / "in", scaling="sqrt-l2", out=tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "hog" in record["config"]["compare"]["features"]
    assert "convnexttiny" not in record["config"]["compare"]["features"]


def test_features_below_0_have_no_square_root(tmp_path):
    with pytest.raises(ConfigError, match="sqrt-l2 needs features none of which is below 0; found convnexttiny"):
        gpu_cluster.compare(features=["convnexttiny"], scaling="sqrt-l2", out=tmp_path / "run")


def test_features_of_many_numbers_are_left_out_of_many_images_unless_named(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_cluster.jobs.compare, "MOST_IMAGES", 3)
    (tmp_path / "in").mkdir()
    # What is compared follows from their number, whether they can be read or not.
    for number in range(4):
        (tmp_path / "in" / f"{number}.png").write_text(f"no picture {number}")
    chosen = []
    for names in (None, ["vgg16-flatten"]):
        # About the smallest side at which a picture has more than 10,000 numbers.
        given: dict[str, Any] = {"features": names} if names else {}
        with pytest.raises(NothingReadableError):
            gpu_cluster.compare(tmp_path / "in", **given, image_size=160, k=2, out=tmp_path / "run", overwrite=True)
        record = json.loads((tmp_path / "run" / "run.json").read_text())
        chosen.append(record["config"]["compare"]["features"])
    assert "hog" in chosen[0]
    assert "vgg16-flatten" not in chosen[0]
    assert chosen[1] == ["vgg16-flatten"]


def test_too_many_images_leave_an_algorithm_out_and_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_cluster.jobs.compare, "MOST_IMAGES", 10)
    write_pictures(tmp_path / "in", 12)
    result = gpu_cluster.compare(tmp_path / "in", features=["colours"], **FEW, out=tmp_path / "run")
    assert [row.reason for row in result.rows] == [None, *["left out: 12 images are more than 10"] * 3]
    assert result.rows[0].k == 3
    assert "| colours | ward | left out: 12 images are more than 10 |  |" in (result.folder / "compare.md").read_text()


@pytest.mark.parametrize(("option", "names"), [("--features", "vgg16-gem-4-5,xyz"), ("--algorithms", "kmeans,xyz")])
def test_an_unknown_name_is_wrong_use_and_the_known_are_listed(tmp_path, option, names):
    done = called("compare", option, names, out=tmp_path / "run")
    assert done.code == 2
    assert f"{option}: unknown 'xyz'; known are " in done.err
    assert not (tmp_path / "run").exists()


def blobs() -> np.ndarray:
    points, _ = make_blobs(120, 5, centers=4, cluster_std=0.5, random_state=1)
    return points.astype(np.float32)


def test_groups_are_those_of_scikit_learn():
    x = blobs()
    expected = {
        "ward": AgglomerativeClustering(4).fit_predict(x),
        "spectral": SpectralClustering(4, affinity="nearest_neighbors", random_state=0).fit_predict(x),
        "hdbscan": HDBSCAN(min_cluster_size=5, copy=True).fit_predict(x),
    }
    for algorithm, labels in expected.items():
        found = CpuBackend().group(x, algorithm, k=4, seed=0)  # type: ignore[arg-type]
        assert adjusted_rand_score(found, labels) == 1


def test_groups_of_any_labels_are_described_by_their_means():
    x = blobs()
    found = np.where(np.arange(120) < 20, -1, np.arange(120) // 60 + 4)
    described = of_labels(x, found, backend=CpuBackend())
    assert described.sizes.tolist() == [60, 40, 20]
    np.testing.assert_allclose(described.centres[2], x[:20].mean(axis=0), rtol=1e-5)
    distances = np.linalg.norm(x[:20] - x[:20].mean(axis=0), axis=1)
    np.testing.assert_allclose(described.distances[:20], distances, rtol=1e-4)
    assert described.medoids[2] == distances.argmin()


def test_a_comparison_without_labels_shows_silhouettes(tmp_path):
    rows = tuple(Compared("a", algorithm, "", 1.0, k=2, silhouette=0.1, stability=1.0) for algorithm in ("x", "y"))
    found = Comparison(tmp_path, CompareConfig(), Manifest(tmp_path, ()), rows)
    plots.draw_comparison(tmp_path / "plot.png", found)
    assert "ARI" not in comparison_lines(found)[0]
    only_left_out = dataclasses.replace(found, rows=(Compared("a", "x", "", reason="left out: 1 | 2"),))
    assert comparison_lines(only_left_out) == [
        "| features | algorithm | groups |",
        "|---|---|---|",
        "| a | x | left out: 1 \\| 2 |",
    ]
    labelled = tuple(dataclasses.replace(row, adjusted_rand=0.0) for row in rows)
    assert "ARI" in comparison_lines(dataclasses.replace(found, rows=labelled))[0]


def concluded(*rows: Compared) -> str:
    return conclusion(Comparison(Path("x"), CompareConfig(), Manifest(Path("x"), ()), rows))


def test_what_is_best_is_said_by_the_labels_and_not_by_stability():
    good = Compared("vgg16", "kmeans", "", stability=0.7, adjusted_rand=0.5)
    stable = Compared("colours", "hdbscan", "", stability=0.9, adjusted_rand=0.07)
    words = concluded(good, stable, Compared("hog", "ward", "", reason="failed"))
    assert words.startswith("Best by the labels: vgg16 with kmeans, with the highest ARI (0.50;")
    assert "The most stable is colours with hdbscan (stability 0.90), with an ARI of 0.07. Stability alone" in words
    assert "It is also the most stable, but stability alone does not say it" in concluded(good)
    assert "hardly better than chance" in concluded(stable)


def test_without_labels_nothing_is_called_best():
    row = Compared("vgg16", "kmeans", "", stability=0.7)
    assert "Whether they are the best cannot be said without labels" in concluded(row)
    assert concluded(Compared("hog", "ward", "", reason="failed")).startswith("Nothing here can be called best")

"""Features times algorithms: real pictures, the real network, and every algorithm's own library."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from typing import Any

import h5py
import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from keras.src.legacy.saving import legacy_h5_format
from sklearn.cluster import HDBSCAN, AgglomerativeClustering, SpectralClustering
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score

import gpu_cluster
from gpu_cluster import features, plots, vgg16
from gpu_cluster.backend import CpuBackend
from gpu_cluster.cluster import of_labels
from gpu_cluster.errors import WeightsError
from gpu_cluster.report import comparison_lines
from gpu_cluster.results import Compared, Comparison, Manifest, Projection

from .conftest import NO_REDUCTION, picture, write_pictures
from .conftest import gpu_cluster as command

FEW: dict[str, Any] = {"image_size": 32, "k": 3}


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory):
    """The sample set by three features and all algorithms, small enough to take seconds."""
    out = tmp_path_factory.mktemp("compare") / "run"
    return command(
        *("compare", "--features", "vgg16-average,colours,notebook", "--image-size", "64", "--k", "10"), out=out
    )


@pytest.mark.slow
def test_every_pair_is_a_row_with_its_scores(compared):
    assert compared.code == 0, compared.err
    table = compared.table("compare.csv")
    pairs = list(zip(table["features"], table["algorithm"], strict=True))
    names = ("vgg16-average", "colours", "notebook")
    assert pairs == [(one, other) for one in names for other in ("kmeans", "ward", "spectral", "hdbscan")]
    scores = ["silhouette", "stability", "homogeneity", "adjusted_rand", "normalized_mutual_info", "cluster_s"]
    assert table[scores].notna().all(axis=None)
    assert (table.loc[table["algorithm"] != "hdbscan", "k"] == 10).all()


@pytest.mark.slow
def test_the_network_beats_colours_and_the_published_recipe(compared):
    table = compared.table("compare.csv").query("algorithm == 'kmeans'").set_index("features")
    assert table.loc["vgg16-average", "adjusted_rand"] > 2 * table.loc["notebook", "adjusted_rand"]
    assert table.loc["vgg16-average", "adjusted_rand"] > 2 * table.loc["colours", "adjusted_rand"]


@pytest.mark.slow
def test_what_is_printed_is_the_table_that_is_left(compared):
    lines = (compared.folder / "compare.md").read_text().splitlines()
    assert len(lines) == 2 + 12
    assert set(lines) <= set(compared.out.splitlines())
    assert (compared.folder / "plots" / "compare.png").stat().st_size > 10_000
    assert compared.json("run.json")["config"]["sweep"]["k"] == 10


def test_features_are_computed_once(compared, tmp_path):
    write_pictures(tmp_path / "in", 12)
    for folder in ("first", "again"):
        found = gpu_cluster.compare(tmp_path / "in", features=["colours"], **FEW, out=tmp_path / folder)
    events = [json.loads(line) for line in (found.folder / "events.jsonl").read_text().splitlines()]
    assert found.rows[0].features_s is None
    assert "12 of 12 pictures are in the store of embeddings already" in [one.get("message") for one in events]


def test_k_is_chosen_once_in_the_first_space(tmp_path):
    write_pictures(tmp_path / "in", 40)
    result = gpu_cluster.compare(
        tmp_path / "in", features=["colours", "hog"], algorithms=["kmeans"], image_size=32, out=tmp_path / "run"
    )
    first, second = result.rows
    assert first.k == second.k
    assert first.adjusted_rand is None


def test_bad_files_are_told_and_left_out(tmp_path):
    write_pictures(tmp_path / "in", 8)
    (tmp_path / "in" / "broken.png").write_bytes((tmp_path / "in" / "000.png").read_bytes()[:80])
    result = gpu_cluster.compare(tmp_path / "in", features=["colours"], **FEW, out=tmp_path / "run")
    assert pd.read_csv(result.folder / "bad_files.csv")["path"].tolist() == ["broken.png"]


def test_too_many_images_leave_an_algorithm_out_and_say_so(tmp_path, monkeypatch):
    # The package has a function of the module's name.
    monkeypatch.setattr(sys.modules["gpu_cluster.compare"], "MOST_IMAGES", 10)
    write_pictures(tmp_path / "in", 12)
    result = gpu_cluster.compare(tmp_path / "in", features=["colours"], **FEW, out=tmp_path / "run")
    assert [row.reason for row in result.rows] == [None, *["left out: 12 images are more than 10"] * 3]
    assert result.rows[0].k == 3
    assert "| colours | ward | left out: 12 images are more than 10 |" in (result.folder / "compare.md").read_text()


@pytest.mark.parametrize(("option", "names"), [("--features", "vgg16-gem-4-5,vgg19"), ("--algorithms", "kmeans,vgg19")])
def test_an_unknown_name_is_wrong_use_and_the_known_are_listed(tmp_path, option, names):
    done = command("compare", option, names, out=tmp_path / "run")
    assert done.code == 2
    assert f"{option}: unknown 'vgg19'; known are " in done.err
    assert not (tmp_path / "run").exists()


def test_a_network_whose_weights_are_not_here_is_an_error_that_says_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match=r"ResNet50 are not on this machine: .*keras\.applications\.ResNet50"):
        features.of_keras("resnet50", 64)


def test_weights_of_another_network_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    path = features.keras_weights("mobilenetv2")
    path.parent.mkdir()
    shutil.copy(vgg16.find_weights().path, path.with_suffix(".weights.h5"))
    path.with_suffix(".weights.h5").rename(path)
    with pytest.raises(WeightsError, match="not those of MobileNetV2"):
        features.of_keras("mobilenetv2", 64).build("float32")


@pytest.mark.slow
@pytest.mark.parametrize("name", features.KERAS_MODELS)
def test_another_network_gives_what_keras_gives(tmp_path, monkeypatch, name):
    # Weights drawn at random: the real ones are nowhere in the registries that tests may ask.
    model = features.KERAS_MODELS[name]
    own = getattr(keras.applications, model.name)(
        include_top=False, weights=None, pooling="avg", input_shape=(64, 64, 3)
    )
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    path = features.keras_weights(name)
    path.parent.mkdir()
    # The format of Keras's own downloads.
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, own)
    pictures = np.stack([np.asarray(picture(seed, (64, 64)), np.float32) for seed in range(2)])
    extractor = features.of_keras(name, 64)
    found = extractor.build("float32")(pictures).numpy()
    expected = own.predict(getattr(keras.applications, model.module).preprocess_input(pictures.copy()), verbose=0)
    assert found.shape == (2, extractor.n_features)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_a_histogram_of_colours_counts_them():
    pictures = np.zeros((1, 4, 4, 3), np.float32)
    pictures[0, :, :2] = (255, 0, 0)
    pictures[0, :, 2:] = (250, 250, 250)
    (found,) = features.colour_histogram().build("float32")(pictures).numpy()
    # Red: hue 0, saturation and value 1. White: hue and saturation 0, value almost 1.
    assert found[(0 * 4 + 3) * 4 + 3] == 0.5
    assert found[(0 * 4 + 0) * 4 + 3] == 0.5
    assert found.sum() == 1


def test_gradients_tell_upright_stripes_from_lying_ones():
    stripes = np.tile(np.repeat([0, 255], 8), 4).astype(np.float32)
    upright = np.repeat(np.tile(stripes, (64, 1))[:, :, None], 3, axis=2)
    pictures = tf.constant(np.stack([upright, upright.transpose(1, 0, 2)]))
    extractor = features.oriented_gradients(64)
    found = extractor.build("float32")(pictures).numpy()
    assert found.shape == (2, extractor.n_features)
    histograms = found.reshape(2, -1, 9).sum(axis=1)
    # Orientation 0 is a gradient along a row, 90 degrees (bin 4) one along a column.
    assert histograms.argmax(axis=1).tolist() == [0, 4]


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
    projection = Projection(NO_REDUCTION, x, "", x[:, :2], (0.5, 0.5), x, "")
    described = of_labels(projection, found, backend=CpuBackend())
    assert described.sizes.tolist() == [60, 40, 20]
    np.testing.assert_allclose(described.centres[2], x[:20].mean(axis=0), rtol=1e-5)
    distances = np.linalg.norm(x[:20] - x[:20].mean(axis=0), axis=1)
    np.testing.assert_allclose(described.distances[:20], distances, rtol=1e-4)
    assert described.medoids[2] == distances.argmin()


def test_a_comparison_without_labels_shows_silhouettes(tmp_path):
    rows = tuple(Compared("a", algorithm, "", 1.0, k=2, silhouette=0.1, stability=1.0) for algorithm in ("x", "y"))
    found = Comparison(tmp_path, Manifest(tmp_path, ()), rows)
    plots.draw_comparison(tmp_path / "plot.png", found)
    assert "ARI" not in comparison_lines(found)[0]
    labelled = tuple(dataclasses.replace(row, adjusted_rand=0.0) for row in rows)
    assert "ARI" in comparison_lines(dataclasses.replace(found, rows=labelled))[0]

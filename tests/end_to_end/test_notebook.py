"""The notebook preset against the notebook's own steps, written out with Keras and scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, homogeneity_score, silhouette_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import MinMaxScaler

import gpu_cluster
from gpu_cluster.backend import CpuBackend, HeldRows
from gpu_cluster.clustering.sequence import Clusters, find_clusters
from gpu_cluster.config import RunConfig
from gpu_cluster.embedding import vgg16
from gpu_cluster.events import Observer, Recorder
from gpu_cluster.jobs.prepare import find_labelled
from gpu_cluster.options import build_config
from gpu_cluster.results import encode_labels

# Whole jobs: together they take more than 10 s.
pytestmark = pytest.mark.slow

SEED = 42


@dataclass(frozen=True)
class Notebook:
    """What the notebook's steps give."""

    inertias: list[float]
    labels: np.ndarray
    silhouette: float
    homogeneity: float


def keras_features(files: list[Path], size: int) -> np.ndarray:
    """Return what the notebook's network gives, by Keras's own loader and model."""
    model = keras.applications.VGG16(include_top=False, weights=None, pooling="avg", input_shape=(size, size, 3))
    model.load_weights(vgg16.find_weights().path)
    pictures = [keras.utils.img_to_array(keras.utils.load_img(file, target_size=(size, size))) for file in files]
    # The notebook gave the network one picture at a time, which takes three times as long and gives the same.
    found = model.predict(keras.applications.vgg16.preprocess_input(np.stack(pictures)), batch_size=30, verbose=0)
    return np.asarray(found)


def features_as_keras_gives_them(files: list[Path], size: int) -> np.ndarray:
    """Return the embeddings of the notebook's options, of which a sample is checked against Keras's.

    At the notebook's 224 pixels Keras takes three times as long as the engine that `auto` finds.
    """
    found = gpu_cluster.embed(
        files, features="vgg16", pooling="average", resize="nearest", fit="stretch", image_size=size
    )
    expected = keras_features(files[::10], size)
    # The same float32 network: it differs by rounding only, by 2e-6 where the convolutions are Winograd's.
    assert np.linalg.norm(found[::10] - expected) < 1e-5 * np.linalg.norm(expected)
    return found


def notebook_steps(features: np.ndarray, truth: np.ndarray) -> Notebook:
    scaled = MinMaxScaler().fit_transform(features)
    inertias = [KMeans(k, random_state=SEED, n_init=10).fit(scaled).inertia_ for k in range(1, 11)]
    # The notebook left the solver to scikit-learn, which takes an unseeded randomised one here: it does not repeat.
    components = PCA(n_components=2, svd_solver="full").fit_transform(scaled)
    labels = KMeans(8, random_state=SEED, n_init=10).fit_predict(components)
    _, x, _, found, _, expected = train_test_split(components, labels, truth, test_size=0.2, random_state=SEED)
    return Notebook(inertias, labels, silhouette_score(x, found), homogeneity_score(expected, found))


def preset_steps(features: np.ndarray, rows: np.ndarray) -> Clusters:
    """Do what the notebook preset does with these features of some pictures of the sample set, stage by stage."""
    config = build_config(RunConfig, preset="notebook")
    manifest = find_labelled(config.input, Observer())
    return find_clusters(
        HeldRows(features, CpuBackend()),
        config,
        backend=CpuBackend(),
        events=Recorder(),
        sweep_space=config.sweep.sweep_space,
        holdout=config.score.holdout,
        truth=encode_labels(manifest, rows),
    )


# At the notebook's own 224 pixels a seventh of the pictures is enough: the network takes most of the time.
@pytest.mark.parametrize(
    ("size", "features_of", "every", "n_held_out"),
    [(64, keras_features, 1, 42), (224, features_as_keras_gives_them, 7, 6)],
    ids=["64", "224"],
)
def test_notebook_preset_equals_the_notebooks_own_steps(sample_images, size, features_of, every, n_held_out):
    rows = np.arange(0, len(sample_images), every)
    features = features_of(sample_images[::every], size)
    truth = pd.read_csv(sample_images[0].with_name("flower_labels.csv"))["label"].to_numpy()[rows]
    notebook = notebook_steps(features, truth)
    found = preset_steps(features, rows)
    assert found.clustering.k == 8
    assert found.sweep.chosen_by == "given"
    # An ARI of 1 is equality up to the numbers of the clusters.
    assert adjusted_rand_score(notebook.labels, found.clustering.labels) == 1
    assert [point.k for point in found.sweep.points] == list(range(1, 11))
    # float32 sums over 210 x 512 numbers, in another order.
    np.testing.assert_allclose([point.inertia for point in found.sweep.points], notebook.inertias, rtol=1e-4)
    holdout = found.scores.holdout
    assert holdout is not None
    assert holdout["n"] == n_held_out
    assert holdout["silhouette"] == pytest.approx(notebook.silhouette, abs=1e-4)
    assert holdout["homogeneity"] == pytest.approx(notebook.homogeneity, abs=1e-9)

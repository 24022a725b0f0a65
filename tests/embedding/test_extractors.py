"""What pictures are described by, against Keras's own networks and formulas written out."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable
from importlib import import_module
from typing import Any, get_args

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.legacy.saving import legacy_h5_format
from PIL import Image

import gpu_cluster
from gpu_cluster.backend import CpuBackend
from gpu_cluster.config import EmbedConfig, Pooling
from gpu_cluster.embedding import extractors, vgg16
from gpu_cluster.embedding.engines import choose_engine
from gpu_cluster.errors import WeightsError
from tests.helpers import picture

SIDE = 64


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.stack([np.asarray(picture(seed, (SIDE, SIDE)), np.float32) for seed in range(3)])


@pytest.fixture(scope="module")
def maps(pictures) -> tuple[np.ndarray, np.ndarray]:
    """What Keras's own VGG16 gives for the pictures after its blocks 4 and 5."""
    model = keras.applications.VGG16(include_top=False, weights=None, input_shape=(SIDE, SIDE, 3))
    model.load_weights(vgg16.find_weights().path)
    blocks = keras.Model(model.input, [model.get_layer("block4_pool").output, model.get_layer("block5_pool").output])
    block4, block5 = blocks.predict(keras.applications.vgg16.preprocess_input(pictures.copy()), verbose=0)
    return block4, block5


def generalised_mean(maps: np.ndarray) -> np.ndarray:
    return np.cbrt(np.mean(maps.astype(np.float64) ** 3, axis=(1, 2)))


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


FORMULAS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "average": lambda _, block5: block5.mean(axis=(1, 2)),
    "max": lambda _, block5: block5.max(axis=(1, 2)),
    "gem": lambda _, block5: generalised_mean(block5),
    "gem-4-5": lambda block4, block5: np.hstack([unit(generalised_mean(block4)), unit(generalised_mean(block5))]),
    "flatten": lambda _, block5: block5.reshape(len(block5), -1),
}


@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_every_pooling_is_its_formula_on_kerass_own_maps(pictures, maps, pooling, engine_name):
    config = EmbedConfig(image_size=SIDE, pooling=pooling, engine=engine_name)
    extractor = extractors.of_vgg16(vgg16.find_weights(), config)
    engine = choose_engine(CpuBackend(), extractor, config)
    engine.build()
    found = engine.features(pictures)
    expected = FORMULAS[pooling](*maps)
    assert found.dtype == np.float32
    assert found.shape == (3, extractor.n_features) == expected.shape
    # float32 through 13 convolutions, in batches of another size or by Winograd's method; 1e-4 is what is promised.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.max())


def test_half_precision_does_not_overflow_in_the_cubes(pictures):
    extractor = extractors.of_vgg16(vgg16.find_weights(), EmbedConfig(image_size=SIDE))
    half, single = (extractor.build(precision)(pictures).numpy() for precision in ("float16", "float32"))
    # Cubes of activations above 40 are no float16; what is left is its rounding.
    assert np.linalg.norm(half - single) < 0.01 * np.linalg.norm(single)


@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_poolings_are_kept_apart_in_the_store(tmp_path, pooling):
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "a.png")
    gpu_cluster.embed([tmp_path / "a.png"], features="vgg16", image_size=32)
    other = gpu_cluster.embed([tmp_path / "a.png"], features="vgg16", image_size=32, pooling=pooling)
    assert other.shape == (1, vgg16.count_features(pooling, 32))
    again = gpu_cluster.embed([tmp_path / "a.png"], features="vgg16", image_size=32, pooling=pooling)
    np.testing.assert_array_equal(again, other)


# Other networks, and no network


def test_a_network_whose_weights_are_not_here_is_an_error_that_says_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match=r"ResNet50 are not on this machine: .*keras\.applications\.ResNet50"):
        extractors.of_keras("resnet50", 64)


def test_weights_of_another_network_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    path = extractors.keras_weights("mobilenetv2")
    path.parent.mkdir()
    shutil.copy(vgg16.find_weights().path, path.with_suffix(".weights.h5"))
    path.with_suffix(".weights.h5").rename(path)
    with pytest.raises(WeightsError, match="not those of MobileNetV2"):
        extractors.of_keras("mobilenetv2", 64).build("float32")


@pytest.mark.slow
@pytest.mark.parametrize("name", extractors.KERAS_MODELS)
def test_another_network_gives_what_keras_gives_with_the_weights_that_it_downloads(tmp_path, monkeypatch, name):
    # Weights drawn at random: the real ones are nowhere in the registries that tests may ask. Keras builds some
    # networks otherwise where the weights are ImageNet's, so it is told that, and asks for their file at the end.
    model = extractors.KERAS_MODELS[name]
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    path = extractors.keras_weights(name)
    path.parent.mkdir()
    asked = []

    def downloaded(file: str, *_args: Any, **_options: Any) -> str:
        asked.append(file)
        # The network that asks: most of this test is to build one, and so it is built once and not twice.
        frame = inspect.currentframe()
        assert frame is not None
        assert frame.f_back is not None
        # The format of Keras's own downloads.
        with h5py.File(path, "w") as weights:
            legacy_h5_format.save_weights_to_hdf5_group(weights, frame.f_back.f_locals["model"])
        return str(path)

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", downloaded)
    build = getattr(keras.applications, model.name)
    own = build(weights="imagenet", include_top=False, pooling="avg", input_shape=(64, 64, 3))
    assert asked == [path.name]
    pictures = np.stack([np.asarray(picture(seed, (64, 64)), np.float32) for seed in range(2)])
    extractor = extractors.of_keras(name, 64)
    extract = extractor.build("float32")
    # To compile a network takes several times as long as to run it once, so only the smallest is compiled here.
    tf.config.run_functions_eagerly(name != "mobilenetv2")
    try:
        found = extract(tf.constant(pictures)).numpy()
    finally:
        tf.config.run_functions_eagerly(False)
    preprocess = import_module(f"keras.applications.{model.module}").preprocess_input
    expected = own(preprocess(pictures.copy()), training=False).numpy()
    assert found.shape == (2, extractor.n_features)
    # With weights drawn at random, what MobileNetV2 gives is as small as 1e-11.
    largest = float(np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * min(1, largest))
    assert model.below_0 or (found >= 0).all()


def test_a_histogram_of_colours_counts_them():
    pictures = np.zeros((1, 4, 4, 3), np.float32)
    pictures[0, :, :2] = (255, 0, 0)
    pictures[0, :, 2:] = (250, 250, 250)
    (found,) = extractors.colour_histogram().build("float32")(pictures).numpy()
    # Red: hue 0, saturation and value 1. White: hue and saturation 0, value almost 1.
    assert found[(0 * 4 + 3) * 4 + 3] == 0.5
    assert found[(0 * 4 + 0) * 4 + 3] == 0.5
    assert found.sum() == 1


def test_gradients_tell_upright_stripes_from_lying_ones():
    stripes = np.tile(np.repeat([0, 255], 8), 4).astype(np.float32)
    upright = np.repeat(np.tile(stripes, (64, 1))[:, :, None], 3, axis=2)
    pictures = tf.constant(np.stack([upright, upright.transpose(1, 0, 2)]))
    extractor = extractors.oriented_gradients(64)
    found = extractor.build("float32")(pictures).numpy()
    assert found.shape == (2, extractor.n_features)
    histograms = found.reshape(2, -1, 9).sum(axis=1)
    # Orientation 0 is a gradient along a row, 90 degrees (bin 4) one along a column.
    assert histograms.argmax(axis=1).tolist() == [0, 4]

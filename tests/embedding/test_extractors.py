"""What pictures are described by, against Keras's own layers and formulas written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import keras
import numpy as np
import pytest
from PIL import Image

import gpu_cluster
from gpu_cluster.config import EmbedConfig, Pooling
from gpu_cluster.embedding import extractors, vgg16
from tests.conftest import picture

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
def test_every_pooling_is_its_formula_on_kerass_own_maps(pictures, maps, pooling):
    extractor = extractors.of_vgg16(vgg16.find_weights(), EmbedConfig(image_size=SIDE, pooling=pooling))
    found = extractor.build("float32")(pictures).numpy()
    expected = FORMULAS[pooling](*maps)
    assert found.dtype == np.float32
    assert found.shape == (3, extractor.n_features) == expected.shape
    # float32 through 13 convolutions, in batches of another size.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.max())


def test_half_precision_does_not_overflow_in_the_cubes(pictures):
    extractor = extractors.of_vgg16(vgg16.find_weights(), EmbedConfig(image_size=SIDE))
    half, single = (extractor.build(precision)(pictures).numpy() for precision in ("float16", "float32"))
    # Cubes of activations above 40 are no float16; what is left is its rounding.
    assert np.linalg.norm(half - single) < 0.01 * np.linalg.norm(single)


@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_poolings_are_kept_apart_in_the_store(tmp_path, pooling):
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "a.png")
    gpu_cluster.embed([tmp_path / "a.png"], image_size=32)
    other = gpu_cluster.embed([tmp_path / "a.png"], image_size=32, pooling=pooling)
    assert other.shape == (1, vgg16.count_features(pooling, 32))
    again = gpu_cluster.embed([tmp_path / "a.png"], image_size=32, pooling=pooling)
    np.testing.assert_array_equal(again, other)

"""The weights: where they are found, and what is refused. Real files throughout, damaged as files get damaged."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import pytest

from gpu_cluster.config import shipped_data
from gpu_cluster.embedding import vgg16
from gpu_cluster.errors import WeightsError

SHIPPED = shipped_data() / "weights" / "vgg16_imagenet_notop.weights.h5"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copy(SHIPPED, tmp_path / "copy.weights.h5"))


def write_legacy(file: Path, layers: Mapping[str, tuple[np.ndarray, ...]]) -> None:
    """Write weights as Keras 2 did: a group a layer, its variables named in an attribute."""
    with h5py.File(file, "w") as h5:
        h5.attrs["layer_names"] = [name.encode() for name in ["input_1", *layers]]
        h5.create_group("input_1").attrs["weight_names"] = np.array([], dtype="S1")
        for layer, arrays in layers.items():
            group = h5.create_group(layer)
            names = [f"{layer}/{kind}:0" for kind in ("kernel", "bias")]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, array in zip(names, arrays, strict=True):
                group[name] = array


def test_the_shipped_weights_are_the_imagenet_weights():
    assert vgg16.find_weights().sha256 == vgg16.IMAGENET_SHA256
    assert hashlib.sha256(SHIPPED.read_bytes()).hexdigest() == vgg16.IMAGENET_SHA256


def test_a_named_file_comes_before_the_shipped_one(copy):
    assert vgg16.find_weights(copy).path == copy


def test_the_legacy_format_gives_the_same_layers(tmp_path):
    shipped = vgg16.find_weights()
    write_legacy(tmp_path / "legacy.h5", dict(shipped.layers))
    legacy = vgg16.read_weights(tmp_path / "legacy.h5")
    assert list(legacy.layers) == list(shipped.layers)
    for name, arrays in shipped.layers.items():
        for expected, found in zip(arrays, legacy.layers[name], strict=True):
            np.testing.assert_array_equal(found, expected)


def test_a_named_file_that_is_missing_is_an_error_and_not_the_shipped_one(tmp_path):
    with pytest.raises(WeightsError, match=r"no VGG16 weights found; looked for .*nowhere"):
        vgg16.find_weights(tmp_path / "nowhere.weights.h5")


@pytest.mark.parametrize("length", [0, 100, 20_000_000])
def test_a_truncated_file_is_an_error_that_gives_its_size(copy, length):
    with copy.open("r+b") as file:
        file.truncate(length)
    with pytest.raises(WeightsError, match=rf"cannot read .*expected an HDF5 file.*found {length:,} bytes"):
        vgg16.read_weights(copy)


def test_a_missing_layer_is_named(tmp_path):
    layers = dict(vgg16.find_weights().layers)
    del layers["block4_conv2"]
    write_legacy(tmp_path / "part.h5", layers)
    with pytest.raises(WeightsError, match="block4_conv2 is missing"):
        vgg16.read_weights(tmp_path / "part.h5")


def test_a_wrong_shape_is_named_with_what_was_expected(tmp_path):
    layers = dict(vgg16.find_weights().layers)
    layers["block1_conv1"] = (np.zeros((3, 3, 1, 64), np.float32), layers["block1_conv1"][1])
    write_legacy(tmp_path / "grey.h5", layers)
    with pytest.raises(WeightsError, match=r"expected block1_conv1 of shapes \(\(3, 3, 3, 64\), \(64,\)\)"):
        vgg16.read_weights(tmp_path / "grey.h5")


def test_values_that_are_not_finite_are_refused(copy):
    with h5py.File(copy, "r+") as file:
        kernel = file["layers/conv2d_5/vars/0"]
        kernel[0, 0, 0, 0] = np.nan
    with pytest.raises(WeightsError, match=r"damaged or .*block3_conv2 holds values that are not finite"):
        vgg16.read_weights(copy)


def test_another_hdf5_file_is_refused(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["numbers"] = np.arange(3)
    with pytest.raises(WeightsError, match="cannot read the weights"):
        vgg16.read_weights(tmp_path / "other.h5")


def test_another_network_that_holds_vgg16s_layers_is_refused(tmp_path):
    layers = dict(vgg16.find_weights().layers)
    # VGG19's fourth convolution of a block; its others have VGG16's names and shapes.
    layers["block5_conv4"] = layers["block5_conv3"]
    write_legacy(tmp_path / "vgg19.h5", layers)
    with pytest.raises(WeightsError, match="expected its 13 convolutions alone, found block5_conv4 too"):
        vgg16.read_weights(tmp_path / "vgg19.h5")


def test_the_shipped_weights_are_read_once_and_refused_as_soon_as_they_are_altered(tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    file = Path(shutil.copy(SHIPPED, tmp_path / "weights"))
    monkeypatch.setattr(vgg16, "shipped_data", lambda: tmp_path)
    first = vgg16.find_weights()
    assert first.path == file
    assert vgg16.find_weights() is first
    with h5py.File(file, "r+") as content:
        content["layers/conv2d_8/vars/0"][0] = 0
    with pytest.raises(WeightsError, match="are damaged: expected sha256 fb89143d"):
        vgg16.find_weights()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user that the system does not know")
def test_a_user_without_a_home_needs_none():
    code = (
        "import os; from gpu_cluster.embedding import vgg16; os.setuid(54321); os.environ.pop('HOME', None); "
        "os.environ.pop('KERAS_HOME', None); print(vgg16.downloaded('file.h5'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("models/file.h5")

"""The engine TensorFlow, where it differs from what `test_shards` shows of every engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from gpu_cluster.backend import CpuBackend
from gpu_cluster.config import EmbedConfig
from gpu_cluster.embedding import extractors, vgg16
from gpu_cluster.embedding.engines import OutOfMemoryError, TensorFlowEngine, tensorflow_input
from gpu_cluster.embedding.extractors import Extractor
from gpu_cluster.embedding.shards import embed_shard
from tests.helpers import scanned_pictures, write_pictures

SMALL = EmbedConfig(image_size=32, batch_size=4)


class Pads(CpuBackend):
    """The CPU, with the way of a GPU to fill up batches."""

    pads_batches = True


def engine_of(backend: CpuBackend, network: Any = None) -> TensorFlowEngine:
    extractor = extractors.of_vgg16(vgg16.find_weights(), SMALL)
    if network is not None:
        extractor = Extractor({}, 3, lambda _precision: network)
    engine = TensorFlowEngine(backend, extractor, SMALL)
    engine.build()
    return engine


@pytest.mark.parametrize(("backend", "sizes"), [(Pads(), [4, 4, 4]), (CpuBackend(), [4, 4, 2])])
def test_the_network_sees_one_size_of_batch_where_others_cost_more(tmp_path, backend, sizes):
    seen = []

    def means(pictures: tf.Tensor) -> tf.Tensor:
        seen.append(len(pictures))
        return tf.reduce_mean(pictures, (1, 2))

    pictures = scanned_pictures(write_pictures(tmp_path, 10))
    found = [batch.x for batch in embed_shard(pictures, engine_of(backend, means))]
    assert seen == sizes
    plain = [batch.x for batch in embed_shard(pictures, engine_of(CpuBackend(), means))]
    np.testing.assert_array_equal(np.concatenate(found), np.concatenate(plain))


def test_a_filled_up_batch_has_the_embeddings_of_its_pictures_alone():
    pixels = np.random.default_rng(0).uniform(0, 255, (3, 32, 32, 3)).astype(np.float32)
    padded, plain = engine_of(Pads()).features(pixels).copy(), engine_of(CpuBackend()).features(pixels)
    assert padded.shape == plain.shape
    # TensorFlow's embedding of a picture varies by 4e-8 with the batch it is in.
    np.testing.assert_allclose(padded, plain, atol=1e-6)


def test_batches_copied_ahead_to_a_device_are_those_that_are_not(tmp_path):
    # On the CPU too this is TensorFlow's copy to a device: only the spelling differs from the engine's own.
    pictures = scanned_pictures(write_pictures(tmp_path, 10))
    given: dict[str, Any] = {"configs": [SMALL], "batch_size": 4}
    plain = list(tensorflow_input.batches(pictures, **given) or ())
    ahead = list(tensorflow_input.batches(pictures, **given, device="/cpu:0") or ())
    assert [positions.numpy().tolist() for positions, _ in ahead] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    for (_, expected), (_, found) in zip(plain, ahead, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "error",
    [
        tf.errors.ResourceExhaustedError(None, None, "OOM when allocating"),
        tf.errors.UnimplementedError(None, None, "DNN library initialization failed. Look at the errors above"),
        tf.errors.InternalError(None, None, "cudnnCreate: CUDNN_STATUS_NOT_INITIALIZED"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_library_of_the_card_that_finds_no_memory_is_the_seams_out_of_memory(error):
    def fails(_pictures: tf.Tensor) -> tf.Tensor:
        raise error

    with pytest.raises(OutOfMemoryError):
        engine_of(CpuBackend(), fails).features(np.zeros((1, 32, 32, 3), np.float32))


def test_another_error_of_tensorflow_is_not_taken_for_a_lack_of_memory():
    def fails(_pictures: tf.Tensor) -> tf.Tensor:
        raise tf.errors.InternalError(None, None, "no kernel image is available for execution on the device")

    with pytest.raises(tf.errors.InternalError, match="no kernel image"):
        engine_of(CpuBackend(), fails).features(np.zeros((1, 32, 32, 3), np.float32))


def test_the_network_is_built_again_for_another_device_and_the_setting_of_tf32_is_that_of_its_precision():
    weights = vgg16.find_weights()
    first = vgg16.build(weights, 32, "float32", "average")
    tf.config.experimental.enable_tensor_float_32_execution(True)
    assert vgg16.build(weights, 32, "float32", "average") is first
    assert not tf.config.experimental.tensor_float_32_execution_enabled()
    assert vgg16._built(weights, 32, "float32", "average", "/device:GPU:0") is not first


def test_no_memory_for_the_next_batch_is_a_memory_error_which_embedding_explains(tmp_path, monkeypatch):
    def fails(*_given: Any, **_options: Any) -> Any:
        for _ in range(1):
            raise tf.errors.ResourceExhaustedError(None, None, "failed to allocate memory")
        yield

    monkeypatch.setattr(tensorflow_input, "batches", fails)
    with pytest.raises(MemoryError, match="failed to allocate"):
        list(engine_of(CpuBackend()).batches(scanned_pictures(write_pictures(tmp_path, 2))))


# TensorFlow parts the CPU into two devices; the second one stands for a card, which sees nothing of the first.
_TWO_DEVICES = """
import os, signal, sys, tempfile
import numpy as np, tensorflow as tf
from gpu_cluster.backend import CpuBackend
from gpu_cluster.config import EmbedConfig
from gpu_cluster.embedding import extractors, vgg16
from gpu_cluster.embedding.engines import TensorFlowEngine
from gpu_cluster.embedding.shards import embed_shard
from gpu_cluster.config import InputConfig
from gpu_cluster.events import Observer
from gpu_cluster.images.places import open_source
from gpu_cluster.images.scan import scan
from gpu_cluster.images.source import Picture
from gpu_cluster.manifest import Manifest
from pathlib import Path
(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

class Second(CpuBackend):
    tensorflow_device, pads_batches = "/CPU:1", True

source = open_source(Path("/"))
manifest = scan(Manifest(Path("/"), tuple(sys.argv[2:])), source, InputConfig(), Observer())
pictures = [Picture(source, path, facts) for path, facts in zip(manifest.paths, manifest.files)]
config = EmbedConfig(image_size=32, batch_size=4)
found = {}
for backend, tempfile.tempdir in ((CpuBackend(), sys.argv[1]), (Second(), None)):
    engine = TensorFlowEngine(backend, extractors.of_vgg16(vgg16.find_weights(), config), config)
    engine.build()
    found[backend.tensorflow_device] = np.concatenate([batch.x for batch in embed_shard(pictures, engine)])
    copied = {pixels.device[-5:] for _, pixels in engine.batches(pictures)}
    print("placed:", engine._found.device[-5:], *copied)
print("apart:", np.abs(found["/CPU:0"] - found["/CPU:1"]).max() < 1e-6, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@dataclass(frozen=True)
class Killed:
    """A process that embeds with TensorFlow and is then killed, and the temporary folder that it had on the CPU.

    For a card TensorFlow's own copy to a device leaves six small files.
    """

    done: subprocess.CompletedProcess[str]
    temporary: Path


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    place = tmp_path_factory.mktemp("killed")
    files = write_pictures(place / "in", 10)
    (place / "tmp").mkdir()
    command: list[str | Path] = [sys.executable, "-c", _TWO_DEVICES, place / "tmp", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return Killed(done, place / "tmp")


@pytest.mark.slow
def test_batches_network_and_results_are_on_the_device_of_the_backend(killed):
    assert [line.split() for line in killed.done.stdout.splitlines()] == [
        ["placed:", "CPU:0", "CPU:0"],
        ["placed:", "CPU:1", "CPU:1"],
        ["apart:", "True"],
    ]


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_nothing_in_the_temporary_folder(killed):
    # TensorFlow's autograph writes the functions that it converts into files, and removes them when Python ends.
    assert list(killed.temporary.iterdir()) == []


_WITH_SETTINGS = """
import sys
import numpy as np
from gpu_cluster.backend import CpuBackend
from gpu_cluster.config import EmbedConfig
from gpu_cluster.embedding import extractors, vgg16
from gpu_cluster.embedding.engines import TensorFlowEngine
config = EmbedConfig(image_size=32)
engine = TensorFlowEngine(CpuBackend(), extractors.of_vgg16(vgg16.find_weights(), config), config)
engine.build()
np.save(sys.argv[1], engine.features(np.full((1, 32, 32, 3), 100, np.float32)))
import keras
print(keras.config.floatx(), keras.config.image_data_format())
"""


@pytest.mark.slow
def test_the_users_keras_settings_change_nothing(tmp_path):
    settings = {"floatx": "float16", "image_data_format": "channels_first", "backend": "jax"}
    (tmp_path / "keras.json").write_text(json.dumps(settings))
    environment = {**os.environ, "KERAS_HOME": str(tmp_path), "KERAS_BACKEND": "jax"}
    command: list[str | Path] = [sys.executable, "-c", _WITH_SETTINGS, tmp_path / "x.npy"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.split() == ["float16", "channels_first"], done.stderr
    expected = engine_of(CpuBackend()).features(np.full((1, 32, 32, 3), 100, np.float32))
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), expected, atol=1e-6)

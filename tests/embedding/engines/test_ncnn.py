"""The engine ncnn against TensorFlow's, and what is its own: memory, decoding, and that it needs no TensorFlow."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gpu_cluster.backend import CpuBackend
from gpu_cluster.config import EmbedConfig, EngineName
from gpu_cluster.embedding import efficientnet_lite, extractors, vgg16
from gpu_cluster.embedding.engines import ENGINES, Engine, NcnnEngine
from gpu_cluster.embedding.engines import ncnn as ncnn_engine
from gpu_cluster.errors import WeightsError
from gpu_cluster.images.square import to_square
from tests.helpers import decoded, picture, scanned_pictures, write_pictures

pytest.importorskip("ncnn", reason="there is no wheel of ncnn here")


def engine_of(name: EngineName, **options: Any) -> Engine:
    config = EmbedConfig(engine=name, **options)
    engine = ENGINES[name](CpuBackend(), extractors.of_vgg16(vgg16.find_weights(), config), config)
    engine.build()
    return engine


def of_lite2(side: int) -> Engine:
    extractor = extractors.of_efficientnet_lite2(efficientnet_lite.find_weights(), side)
    engine = NcnnEngine(CpuBackend(), extractor, EmbedConfig(image_size=side))
    engine.build()
    return engine


def pixels(n: int, side: int) -> np.ndarray:
    return np.stack([np.asarray(picture(seed, (side, side)), np.float32) for seed in range(n)])


# That every pooling is its formula is shown in `test_extractors`. 75 is odd, and halved it is odd again.
@pytest.mark.parametrize("pooling", ["gem-4-5", "flatten"])
def test_maps_with_an_odd_side_are_those_of_tensorflow(pooling):
    given = pixels(2, 75)
    found, expected = (
        np.array(engine_of(name, image_size=75, pooling=pooling).features(given)) for name in ("ncnn", "tensorflow")
    )
    assert found.dtype == expected.dtype == np.float32
    assert found.shape == expected.shape
    errors = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    # 1e-4 is the bound that is promised; 13 convolutions by Winograd's method differ by 2e-6.
    assert errors.max() < 1e-4


def test_weights_that_are_cut_short_are_an_error_and_not_what_lies_behind_them_in_memory():
    weights = vgg16.find_weights()
    name, (kernel, bias) = list(weights.layers.items())[-1]
    cut = replace(weights, layers={**weights.layers, name: (kernel, bias[:-1])})
    with pytest.raises(WeightsError, match="are 58,858,800 bytes, and VGG16 has 58,858,804"):
        ncnn_engine._built.__wrapped__(ncnn_engine.plan_of(vgg16.Network(cut, "gem")))


def test_weights_of_the_other_network_that_are_cut_short_are_an_error_too():
    weights = efficientnet_lite.find_weights()
    kernel, bias = weights.layers["_conv_head"]
    cut = replace(weights, layers={**weights.layers, "_conv_head": (kernel, bias[:-1])})
    with pytest.raises(WeightsError, match=r"and EfficientNet-Lite2 has .*: the weights in memory are not those"):
        ncnn_engine._built.__wrapped__(ncnn_engine.plan_of(efficientnet_lite.Network(cut)))


def test_both_networks_stay_built_and_every_pooling_uses_the_same_one():
    engines = [engine_of("ncnn", image_size=32), of_lite2(32)]
    again = [engine_of("ncnn", image_size=32, pooling="max"), of_lite2(64)]
    for first, second in zip(engines, again, strict=True):
        assert first._network is second._network  # type: ignore[attr-defined]


def test_black_pictures_have_finite_embeddings():
    found = engine_of("ncnn", image_size=32).features(np.zeros((1, 32, 32, 3), np.float32))
    assert np.isfinite(found).all()


@pytest.mark.parametrize(
    "make", [lambda: engine_of("ncnn", image_size=64), lambda: of_lite2(64)], ids=["vgg16", "lite2"]
)
def test_an_embedding_does_not_depend_on_its_batch_to_the_bit(make):
    engine, given = make(), pixels(7, 64)
    together = engine.features(given)
    alone = [engine.features(given[at : at + 1])[0] for at in range(7)]
    np.testing.assert_array_equal(together, alone)


def test_batches_have_the_plain_pictures_in_their_order_and_only_these(tmp_path):
    files = write_pictures(tmp_path, 9)
    # Of another format, damaged so that only decoding tells, and gone since the scan.
    files[1] = files[1].rename(files[1].with_suffix(".webp"))
    picture(1).save(files[1])
    files[4].write_bytes(files[4].read_bytes()[:-60])
    scanned = scanned_pictures(files)
    files[6].unlink()
    engine = engine_of("ncnn", image_size=32, batch_size=4)
    batches = list(engine.batches(scanned))
    assert [positions.tolist() for positions, _ in batches] == [[0, 2, 3, 5], [7, 8]]
    for at, square in zip((0, 2, 3, 5, 7, 8), np.concatenate([given for _, given in batches]), strict=True):
        np.testing.assert_array_equal(square, to_square(decoded(files[at]), engine.config))


def test_a_shard_whose_embedding_is_stopped_leaves_no_pictures_to_be_decoded(tmp_path):
    engine = engine_of("ncnn", image_size=32, batch_size=2)
    batches = engine.batches(scanned_pictures(write_pictures(tmp_path, 6)))
    assert next(batches)[0].tolist() == [0, 1]
    batches.close()  # type: ignore[attr-defined]
    assert list(batches) == []


_LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from gpu_cluster.backend import CpuBackend
from gpu_cluster.config import EmbedConfig
from gpu_cluster.embedding import extractors, vgg16
from gpu_cluster.embedding.engines import NcnnEngine, OutOfMemoryError
import ncnn
config = EmbedConfig(image_size=256, batch_size=2)
engine = NcnnEngine(CpuBackend(), extractors.of_vgg16(vgg16.find_weights(), config), config)
pixels = np.zeros((2, 256, 256, 3), np.float32)

def leave(n_bytes):
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + n_bytes, resource.RLIM_INFINITY))

leave(100 << 20)
try:
    engine.build()
except MemoryError:
    print("no memory for the weights")
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
engine.build()
engine._threads.submit(int).result()
leave(16 << 20)
try:
    engine.features(pixels)
except OutOfMemoryError:
    print("no memory for the batch")
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(engine.features(pixels).shape)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits the address space of a process")
def test_a_lack_of_memory_is_the_seams_own_error_and_the_engine_goes_on_after_it():
    done = subprocess.run([sys.executable, "-c", _LIMITED], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["no memory for the weights", "no memory for the batch", "(2, 1024)"], (
        done.stderr
    )


def test_for_large_squares_fewer_pictures_are_in_work_than_there_are_cores(monkeypatch):
    class Little(CpuBackend):
        def free_bytes(self) -> int:
            return 3 << 30

    config = EmbedConfig(image_size=1024)
    engine = NcnnEngine(Little(), extractors.of_vgg16(vgg16.find_weights(), config), config)
    monkeypatch.setattr("gpu_cluster.embedding.engines.ncnn.usable_cores", lambda: 64)
    engine.build()
    assert engine._threads._max_workers == 1
    # 12 MiB for each picture in a batch.
    assert engine.batch_size == 21


_LOADED = """
import sys, gpu_cluster
assert gpu_cluster.embed(sys.argv[1:], features="vgg16", image_size=32, no_cache=True).shape == (3, 1024)
print(sorted({"tensorflow", "keras", "ncnn"} & set(sys.modules)))
"""


@pytest.mark.slow
def test_a_job_with_ncnn_loads_no_tensorflow_whatever_the_pictures_are(tmp_path):
    files = write_pictures(tmp_path, 3)
    picture(1).save(files[1].with_suffix(".jpg"))
    picture(2).save(files[2].with_suffix(".tif"))
    names = [files[0], files[1].with_suffix(".jpg"), files[2].with_suffix(".tif")]
    done = subprocess.run([sys.executable, "-c", _LOADED, *names], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["['ncnn']"], done.stderr

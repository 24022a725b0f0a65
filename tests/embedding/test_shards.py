"""Shards: what the store lacks is parted into them, and each is embedded by itself, whatever engine and source."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from gpu_cluster.backend import CpuBackend, IntArray
from gpu_cluster.config import EmbedConfig, StoreConfig
from gpu_cluster.embedding import embed as embedding
from gpu_cluster.embedding import extractors, vgg16
from gpu_cluster.embedding.embed import embed, embed_shard, plan_shards
from gpu_cluster.embedding.engines import Engine, OutOfMemoryError, choose_engine
from gpu_cluster.embedding.extractors import Extractor
from gpu_cluster.errors import DeviceError
from gpu_cluster.events import Recorder
from gpu_cluster.images.source import Listing, Picture, Source, Stat, UnreadableError
from gpu_cluster.manifest import Manifest
from tests.helpers import scanned_pictures, write_pictures

SMALL = EmbedConfig(image_size=32, batch_size=4)


class MeanColours(Engine):
    """A second engine, in one place: the mean colour of each picture, with memory for so many at once."""

    name = "mean colours"
    most = 1 << 30

    @property
    def identity(self) -> str:
        return self.name

    def versions(self) -> Mapping[str, str]:
        return {}

    def build(self) -> None:
        self.batch_size = self.config.batch_size or 8

    def batches(self, pictures: Sequence[Picture]) -> Iterator[tuple[IntArray, Any]]:
        for first in range(0, len(pictures), self.batch_size):
            part = range(first, min(first + self.batch_size, len(pictures)))
            yield np.array(part), np.stack([self.square(embedding._decoded(pictures[at])) for at in part])

    def square(self, decoded: Any) -> Any:
        return np.full((4, 4, 3), decoded.mean(axis=(0, 1)), np.float32)

    def features(self, pixels: Any) -> Any:
        if len(pixels) > self.most:
            raise OutOfMemoryError(f"no memory for {len(pixels)} pictures")
        return pixels.mean(axis=(1, 2))


def mean_colours(most: int = 1 << 30) -> MeanColours:
    extractor = Extractor({"features": "mean colours"}, 3, lambda _precision: lambda pixels: pixels)
    engine = MeanColours(CpuBackend(), extractor, EmbedConfig(batch_size=16))
    engine.most = most
    engine.build()
    return engine


def vgg16_engine(config: EmbedConfig = SMALL) -> Engine:
    engine = choose_engine(CpuBackend(), extractors.of_vgg16(vgg16.find_weights(), config), config)
    engine.build()
    return engine


def test_a_shard_is_embedded_the_same_whichever_came_before_it(tmp_path):
    pictures = scanned_pictures(write_pictures(tmp_path, 12))
    first, second = pictures[:6], pictures[6:]
    engine = vgg16_engine()
    forwards = [embed_shard(shard, engine).x for shard in (first, second)]
    backwards = [embed_shard(shard, engine).x for shard in (second, first)]
    np.testing.assert_array_equal(np.concatenate(forwards), np.concatenate(backwards[::-1]))


def test_a_picture_that_cannot_be_decoded_has_a_reason_and_shifts_no_other(tmp_path):
    files = write_pictures(tmp_path, 5)
    pictures = scanned_pictures(files)
    whole = embed_shard(pictures, vgg16_engine())
    assert whole.reasons == [None] * 5
    content = files[2].read_bytes()
    files[2].write_bytes(content[:60] + bytes(len(content) - 60))
    damaged = embed_shard(scanned_pictures(files), vgg16_engine())
    assert [why is None for why in damaged.reasons] == [True, True, False, True, True]
    assert damaged.lasting.all()
    # TensorFlow's embedding of a picture varies by 4e-8 with the batch it is in.
    others = [0, 1, 3, 4]
    np.testing.assert_allclose(damaged.x[others], whole.x[others], atol=1e-6)


def test_a_picture_that_is_gone_by_now_is_no_reason_to_keep(tmp_path):
    files = write_pictures(tmp_path, 3)
    pictures = scanned_pictures(files)
    files[1].unlink()
    found = embed_shard(pictures, vgg16_engine())
    assert found.reasons == [None, "it changed while the job ran", None]
    assert found.lasting.tolist() == [True, False, True]


@pytest.mark.parametrize(("n", "sizes"), [(0, []), (5, [5]), (16, [16]), (40, [16, 16, 8])])
def test_what_is_missing_is_parted_in_its_order_into_shards_of_one_size(n, sizes):
    missing = np.arange(100, 100 + n)
    shards = plan_shards(missing, 16)
    assert [len(shard) for shard in shards] == sizes
    np.testing.assert_array_equal(np.concatenate([missing[:0], *shards]), missing)


@pytest.mark.parametrize("most", [1, 3, 5])
def test_out_of_memory_halves_the_batch_goes_on_and_says_so(tmp_path, most):
    files = write_pictures(tmp_path, 23)
    events, engine = Recorder(), mean_colours(most)
    pictures = scanned_pictures(files)
    manifest = Manifest(Path("/"), tuple(map(str, files)), tuple(picture.facts for picture in pictures))
    given: dict[str, Any] = {"store": None, "store_config": StoreConfig(), "observer": events}
    found = embed(manifest, pictures[0].source, engine, **given)
    expected = [embedding._decoded(picture).mean(axis=(0, 1)) for picture in pictures]
    np.testing.assert_allclose(found.x, expected, rtol=1e-5)
    assert engine.batch_size <= most
    assert events.notices == [f"Out of memory on the cpu: going on with batches of {engine.batch_size}"]


def test_out_of_memory_for_a_single_picture_is_an_error_that_says_what_helps(tmp_path):
    with pytest.raises(DeviceError, match=r"for a single image; .* GB are free; use a smaller --image-size"):
        embed_shard(scanned_pictures(write_pictures(tmp_path, 2)), mean_colours(most=0))


class NoMatrix(CpuBackend):
    """Has no memory for the matrix of embeddings, or for the pool from which it would be taken."""

    def claim_device(self, matrix_bytes: int) -> None:
        raise MemoryError("std::bad_alloc: out_of_memory: CUDA error")


def test_no_memory_for_the_matrix_of_embeddings_is_explained(tmp_path):
    files = write_pictures(tmp_path, 2)
    pictures = scanned_pictures(files)
    manifest = Manifest(Path("/"), tuple(map(str, files)), tuple(picture.facts for picture in pictures))
    engine = mean_colours()
    engine.backend = NoMatrix()
    says = r"out of memory on the cpu while embedding a matrix of 2 x 3 float32, .* GB free: .* --batch-size"
    with pytest.raises(DeviceError, match=says):
        embed(manifest, pictures[0].source, engine, store=None, store_config=StoreConfig(), observer=Recorder())


def test_a_whole_batch_is_not_sliced(tmp_path):
    seen = []
    engine = mean_colours()

    def features(pixels: Any) -> Any:
        # A slice of an array is another one, which has a base.
        seen.append(pixels.base is None)
        return pixels.mean(axis=(1, 2))

    engine.features = features  # type: ignore[method-assign]
    embed_shard(scanned_pictures(write_pictures(tmp_path, 20)), engine)
    assert seen == [True, True]


class InMemory(Source):
    """A second source, in one place: pictures that are no files."""

    def __init__(self, contents: Mapping[str, bytes]) -> None:
        self._contents = contents

    def list(self) -> Listing:
        return Listing(locations=set(self._contents))

    def stat(self, location: str) -> Stat:
        if location not in self._contents:
            raise UnreadableError("not there")
        return Stat(len(self._contents[location]), 1)

    def open(self, location: str) -> tuple[IO[bytes], Stat]:
        stat = self.stat(location)
        return io.BytesIO(self._contents[location]), stat

    def local_path(self, location: str) -> Path | None:
        return None


@pytest.mark.parametrize("engine", [vgg16_engine, mean_colours])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_pictures_that_are_no_files_are_embedded_as_files_are(tmp_path, engine: Callable[[], Engine], suffix):
    pictures = scanned_pictures(write_pictures(tmp_path, 5, suffix))
    contents = {picture.location: Path(picture.location).read_bytes() for picture in pictures}
    source = InMemory(contents)
    elsewhere = [Picture(source, one.location, replace(one.facts, mtime_ns=1)) for one in pictures]
    here, there = (embed_shard(some, engine()) for some in (pictures, elsewhere))
    assert there.reasons == [None] * 5
    np.testing.assert_array_equal(here.x, there.x)


@pytest.mark.parametrize("features", [extractors.oriented_gradients(32), extractors.colour_histogram()])
def test_what_tensorflow_refuses_and_pillow_reads_gets_features_of_every_kind(tmp_path, features):
    pictures = scanned_pictures(write_pictures(tmp_path, 3, ".tif"))
    # TensorFlow is sent to a TIFF as to a PNG, which it refuses.
    taken_for_png = replace(pictures[1], facts=replace(pictures[1].facts, format="PNG", mode="RGB"))
    engine = choose_engine(CpuBackend(), features, SMALL)
    engine.build()
    shard = [pictures[0], taken_for_png, pictures[2]]
    assert [positions.tolist() for positions, _ in engine.batches(shard)] == [[0, 2]]
    found, plain = embed_shard(shard, engine), embed_shard(pictures, engine)
    assert (found.reasons, plain.reasons) == ([None] * 3, [None] * 3)
    np.testing.assert_allclose(found.x, plain.x, atol=1e-6)


class NoRoom(MeanColours):
    """Has no memory to resize what it could not decode itself, which is everything."""

    def batches(self, pictures: Sequence[Picture]) -> Iterator[tuple[IntArray, Any]]:
        return iter(())

    def square(self, decoded: Any) -> Any:
        raise OutOfMemoryError("no memory to resize")


def test_no_memory_to_resize_a_picture_is_no_fault_of_the_picture_and_is_not_kept(tmp_path):
    engine = NoRoom(CpuBackend(), Extractor({}, 3, lambda _precision: lambda pixels: pixels), SMALL)
    engine.build()
    found = embed_shard(scanned_pictures(write_pictures(tmp_path, 2)), engine)
    assert found.reasons == ["no memory to bring it to the size of the network"] * 2
    assert not found.lasting.any()

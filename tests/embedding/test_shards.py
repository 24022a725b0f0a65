"""Shards: the contents of a job are parted into them, and each is embedded by itself, whatever engine and source."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from PIL import Image

from gpu_cluster.backend import CpuBackend, IntArray
from gpu_cluster.config import EmbedConfig, EngineName, StoreConfig
from gpu_cluster.embedding import extractors, vgg16
from gpu_cluster.embedding.embed import embed
from gpu_cluster.embedding.engines import Engine, OutOfMemoryError, choose_engine
from gpu_cluster.embedding.extractors import Extractor
from gpu_cluster.embedding.shards import embed_shard, plan_shards
from gpu_cluster.errors import DeviceError
from gpu_cluster.events import Recorder
from gpu_cluster.facts import FileFacts
from gpu_cluster.images.source import Listing, Picture, Source, Stat, UnreadableError
from gpu_cluster.manifest import Manifest
from gpu_cluster.store.store import Store
from tests.embedding.mean_colours import MEAN_COLOURS, MeanColours, decoded, mean_colours
from tests.helpers import scanned_pictures, write_pictures

SMALL = EmbedConfig(image_size=32, batch_size=4)


@dataclass(frozen=True)
class Shard:
    """The results of all batches of a shard, in the order of its pictures."""

    x: np.ndarray[Any, Any]
    reasons: list[str | None]
    lasting: np.ndarray[Any, Any]


def embedded_shard(pictures: Sequence[Picture], engine: Engine) -> Shard:
    batches = list(embed_shard(pictures, engine))
    order = np.argsort(np.concatenate([batch.positions for batch in batches]))
    reasons = [why for batch in batches for why in batch.reasons]
    return Shard(
        np.concatenate([batch.x for batch in batches])[order],
        [reasons[at] for at in order],
        np.concatenate([batch.lasting for batch in batches])[order],
    )


def vgg16_engine(name: EngineName = "auto") -> Engine:
    config = SMALL.model_copy(update={"engine": name})
    engine = choose_engine(CpuBackend(), extractors.of_vgg16(vgg16.find_weights(), config), config)
    engine.build()
    return engine


def test_a_shard_is_embedded_the_same_whichever_came_before_it(tmp_path, engine_name):
    pictures = scanned_pictures(write_pictures(tmp_path, 12))
    first, second = pictures[:6], pictures[6:]
    engine = vgg16_engine(engine_name)
    forwards = [embedded_shard(shard, engine).x for shard in (first, second)]
    backwards = [embedded_shard(shard, engine).x for shard in (second, first)]
    np.testing.assert_array_equal(np.concatenate(forwards), np.concatenate(backwards[::-1]))


def test_a_picture_that_cannot_be_decoded_has_a_reason_and_shifts_no_other(tmp_path, engine_name):
    files = write_pictures(tmp_path, 5)
    pictures = scanned_pictures(files)
    whole = embedded_shard(pictures, vgg16_engine(engine_name))
    assert whole.reasons == [None] * 5
    content = files[2].read_bytes()
    files[2].write_bytes(content[:60] + bytes(len(content) - 60))
    damaged = embedded_shard(scanned_pictures(files), vgg16_engine(engine_name))
    assert [why is None for why in damaged.reasons] == [True, True, False, True, True]
    assert damaged.lasting.all()
    # TensorFlow's embedding of a picture varies by 4e-8 with the batch it is in.
    others = [0, 1, 3, 4]
    np.testing.assert_allclose(damaged.x[others], whole.x[others], atol=1e-6)


@pytest.mark.parametrize(("n", "sizes"), [(0, []), (5, [5]), (16, [16]), (40, [16, 16, 8])])
def test_contents_are_parted_in_their_order_into_shards_of_one_size(n, sizes):
    planned = plan_shards(np.ones(n, dtype=bool), 16)
    assert [len(shard) for shard in planned] == sizes
    np.testing.assert_array_equal(np.concatenate([np.arange(0), *planned]), np.arange(n))


def test_a_shard_begins_and_ends_at_the_same_contents_whatever_is_missing():
    missing = np.ones(40, dtype=bool)
    # As after a stop in the second shard: the first is whole, and of the second two batches of four are there.
    missing[: 16 + 8] = False
    assert [shard.tolist() for shard in plan_shards(missing, 16)] == [list(range(24, 32)), list(range(32, 40))]


def test_a_shard_that_lacks_nothing_is_left_out():
    missing = np.zeros(40, dtype=bool)
    missing[[3, 39]] = True
    assert [shard.tolist() for shard in plan_shards(missing, 16)] == [[3], [39]]


@pytest.mark.parametrize("most", [1, 3, 5])
def test_out_of_memory_halves_the_batch_goes_on_and_says_so(tmp_path, most):
    files = write_pictures(tmp_path, 23)
    events, engine = Recorder(), mean_colours(most)
    pictures = scanned_pictures(files)
    manifest = Manifest(Path("/"), tuple(map(str, files)), tuple(picture.facts for picture in pictures))
    given: dict[str, Any] = {"store": None, "store_config": StoreConfig(), "observer": events}
    found = embed(manifest, pictures[0].source, engine, **given)
    expected = [decoded(picture).mean(axis=(0, 1)) for picture in pictures]
    np.testing.assert_allclose(found.x.whole(), expected, rtol=1e-5)
    assert engine.batch_size <= most
    assert events.notices == [f"Out of memory on the cpu: going on with batches of {engine.batch_size}"]


class Overflowing(MeanColours):
    """Gives numbers as float16 does that does not reach so far, for white pictures."""

    def features(self, pixels: Any) -> Any:
        found = super().features(pixels)
        return np.where(found > 254, np.inf, found)


@pytest.mark.parametrize("where", ["held", "in a store", "streamed", "streamed from a store"])
def test_a_picture_whose_embedding_is_not_finite_is_bad_wherever_embeddings_are(tmp_path, monkeypatch, where):
    files = write_pictures(tmp_path / "in", 5)
    Image.new("RGB", (8, 8), "white").save(files[2])
    monkeypatch.setattr(CpuBackend, "holds", lambda _backend, _bytes: "streamed" not in where)
    engine, pictures = Overflowing(CpuBackend(), MEAN_COLOURS, EmbedConfig()), scanned_pictures(files)
    manifest = Manifest(Path("/"), tuple(map(str, files)), tuple(picture.facts for picture in pictures))
    store = Store(tmp_path / "store", Recorder()) if "store" in where else None
    given: dict[str, Any] = {"store_config": StoreConfig(), "observer": Recorder(), "scratch": tmp_path / "scratch"}
    # The second time, a store has the others.
    for n_computed in (4, 4 if store is None else 0):
        found = embed(manifest, pictures[0].source, engine, store=store, **given)
        assert found.bad == {2: "the network gave numbers that are not finite"}
        assert found.rows.tolist() == [0, 1, 3, 4]
        assert np.isfinite(found.x.whole()).all()
        assert found.n_computed == n_computed


def test_out_of_memory_for_a_single_picture_is_an_error_that_says_what_helps(tmp_path):
    with pytest.raises(DeviceError, match=r"for a single image; .* GB are free; use a smaller --image-size"):
        embedded_shard(scanned_pictures(write_pictures(tmp_path, 2)), mean_colours(most=0))


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
    assert len(list(embed_shard(scanned_pictures(write_pictures(tmp_path, 20)), engine))) == 2
    assert seen == [True, True]


class InMemory(Source):
    """A second source, in one place: pictures that are no files."""

    def __init__(self, contents: Mapping[str, bytes]) -> None:
        self._contents = contents

    def list(self) -> Listing:
        return Listing(locations=set(self._contents))

    def stat(self, location: str, facts: FileFacts | None = None) -> Stat:
        if location not in self._contents:
            raise UnreadableError("not there")
        return Stat(len(self._contents[location]), 1)

    def open(self, location: str, facts: FileFacts | None = None) -> tuple[IO[bytes], Stat]:
        stat = self.stat(location)
        return io.BytesIO(self._contents[location]), stat

    def local_path(self, location: str) -> Path | None:
        return None


@pytest.mark.parametrize("engine", [vgg16_engine, partial(vgg16_engine, "tensorflow"), mean_colours])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_pictures_that_are_no_files_are_embedded_as_files_are(tmp_path, engine: Callable[[], Engine], suffix):
    pictures = scanned_pictures(write_pictures(tmp_path, 5, suffix))
    contents = {picture.location: Path(picture.location).read_bytes() for picture in pictures}
    source = InMemory(contents)
    elsewhere = [Picture(source, one.location, replace(one.facts, mtime_ns=1)) for one in pictures]
    here, there = (embedded_shard(some, engine()) for some in (pictures, elsewhere))
    assert there.reasons == [None] * 5
    np.testing.assert_array_equal(here.x, there.x)


@pytest.mark.parametrize("features", [extractors.oriented_gradients(32), extractors.colour_histogram()])
def test_what_tensorflow_refuses_and_pillow_reads_gets_features_of_every_kind(tmp_path, features):
    pictures = scanned_pictures(write_pictures(tmp_path, 3, ".tif"))
    # TensorFlow is not sent to a TIFF, but to this one as to a PNG, which it refuses.
    taken_for_png = replace(pictures[1], facts=replace(pictures[1].facts, format="PNG", mode="RGB"))
    engine = choose_engine(CpuBackend(), features, SMALL)
    engine.build()
    shard = [pictures[0], taken_for_png, pictures[2]]
    assert [positions.tolist() for positions, _ in engine.batches(shard)] == []
    found, plain = embedded_shard(shard, engine), embedded_shard(pictures, engine)
    assert (found.reasons, plain.reasons) == ([None] * 3, [None] * 3)
    np.testing.assert_allclose(found.x, plain.x, atol=1e-6)


class NoRoom(MeanColours):
    """Has no memory to resize what it could not decode itself, which is everything."""

    def squares(self, pictures: Sequence[Picture], configs: Any) -> Iterator[tuple[IntArray, tuple[Any, ...]]]:
        return iter(())

    def square(self, decoded: Any) -> Any:
        raise OutOfMemoryError("no memory to resize")


def test_no_memory_to_resize_a_picture_is_no_fault_of_the_picture_and_is_not_kept(tmp_path):
    engine = NoRoom(CpuBackend(), Extractor({}, 3, lambda _precision: lambda pixels: pixels), SMALL)
    engine.build()
    found = embedded_shard(scanned_pictures(write_pictures(tmp_path, 2)), engine)
    assert found.reasons == ["there is not enough memory to resize it for the network"] * 2
    assert not found.lasting.any()


def test_no_picture_of_the_second_look_is_lost_when_its_memory_runs_out(tmp_path):
    class DecodesNothing(MeanColours):
        def squares(self, pictures: Sequence[Picture], configs: Any) -> Iterator[tuple[IntArray, tuple[Any, ...]]]:
            return iter(())

    engine = DecodesNothing(CpuBackend(), Extractor({}, 3, lambda _precision: lambda pixels: pixels), SMALL)
    engine.build()
    engine.most = 1
    pictures = scanned_pictures(write_pictures(tmp_path, 6))
    found = embedded_shard(pictures, engine)
    assert found.reasons == [None] * 6
    np.testing.assert_allclose(found.x, [decoded(one).mean(axis=(0, 1)) for one in pictures], rtol=1e-5)

"""Joined features: their parts are kept apart, computed once whatever they are joined with, and decoded once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from PIL import Image

from gpu_cluster.backend import CpuBackend, HeldRows
from gpu_cluster.config import EmbedConfig, StoreConfig
from gpu_cluster.embedding import features
from gpu_cluster.embedding.embed import embed
from gpu_cluster.embedding.engines import choose_engine
from gpu_cluster.embedding.engines.base import Engine
from gpu_cluster.embedding.extractors import Extractor, Joined
from gpu_cluster.errors import InterruptedJobError
from gpu_cluster.events import Observer
from gpu_cluster.facts import FileFacts
from gpu_cluster.images.source import LocalFiles
from gpu_cluster.images.square import shared_decodings
from gpu_cluster.results import Embeddings
from gpu_cluster.store.store import Store
from gpu_cluster.store.stored import JoinedStoredRows
from tests.helpers import Noticing, scanned, shards_of, write_pictures

VGG16, LITE2 = "vgg16", "efficientnet-lite2"
BOTH = f"{VGG16}+{LITE2}"
SIDE = 48


class Counting(LocalFiles):
    """Files that count how often each of them is opened."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.opened: Counter[str] = Counter()

    def open(self, location: str, facts: FileFacts | None = None) -> tuple[IO[bytes], Any]:
        self.opened[location] += 1
        return super().open(location, facts)


@cache
def extractor(named: str, side: int = SIDE) -> Extractor | Joined:
    """Return features; each network is read and built once for all tests."""
    if "+" in named:
        found = features.extractor_of(EmbedConfig(features=named, image_size=side), features.Weights())
        assert isinstance(found, Joined)
        parts = (extractor(name.partition(":")[0], side) for name in named.split("+"))
        return replace(found, parts=tuple(part for part in parts if isinstance(part, Extractor)))
    one = features.extractor_of(EmbedConfig(features=named, image_size=side), features.Weights())
    assert isinstance(one, Extractor)
    return replace(one, build=cache(one.build))


def engine_of(named: str, *, side: int = SIDE, **options: Any) -> Engine:
    config = EmbedConfig(features=named, image_size=side, batch_size=4, **options)
    return choose_engine(CpuBackend(), extractor(named, side), config)


def embedded(files: Sequence[Path], root: Path | None, named: str, **given: Any) -> Embeddings:
    observer = given.get("observer") or Observer()
    store = None if root is None else Store(root, observer)
    return embed(
        scanned(files, store),
        given.get("source") or Counting(files[0].parent),
        given.get("engine") or engine_of(named),
        store=store,
        store_config=StoreConfig(shard_size=4),
        observer=observer,
        scratch=given.get("scratch"),
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Ten pictures: a broken one, a copy, and one that neither engine decodes by itself."""
    folder = tmp_path_factory.mktemp("pictures")
    found = write_pictures(folder, 8)
    found[5].write_bytes(found[5].read_bytes()[:-60])
    (folder / "copy.png").write_bytes(found[2].read_bytes())
    Image.open(found[3]).rotate(90).save(folder / "grey.gif")
    return sorted(folder.iterdir())


def unit(x: Any) -> Any:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.slow
def test_joined_features_are_those_of_the_parts_side_by_side_each_of_unit_length(files, engine_name):
    one, other = (embedded(files, None, name, engine=engine_of(name, engine=engine_name)) for name in (VGG16, LITE2))
    both = embedded(files, None, BOTH, engine=engine_of(BOTH, engine=engine_name))
    assert both.bad == one.bad == other.bad
    assert len(both.bad) == 1
    np.testing.assert_array_equal(both.rows, one.rows)
    expected = np.hstack([unit(one.x.whole()), unit(other.x.whole())])
    np.testing.assert_allclose(both.x.whole(), expected, atol=1e-6)


def test_a_weight_scales_its_part(files, root):
    plain = embedded(files, root, BOTH).x.whole()
    weighted = embedded(files, root, f"{VGG16}:2+{LITE2}:0.5").x.whole()
    d = extractor(VGG16).n_features
    np.testing.assert_allclose(weighted[:, :d], 2 * plain[:, :d], rtol=1e-6)
    np.testing.assert_allclose(weighted[:, d:], plain[:, d:] / 2, rtol=1e-6)


def test_each_picture_is_decoded_once_for_all_parts(files):
    source = Counting(files[0].parent)
    embedded(files, None, BOTH, source=source, engine=engine_of(BOTH, engine="ncnn"))
    good = [file.name for file in files if file.name not in {"005.png", "copy.png"}]
    alone = Counting(files[0].parent)
    embedded(files, None, VGG16, source=alone, engine=engine_of(VGG16, engine="ncnn"))
    assert {name: source.opened[name] for name in good} == {name: alone.opened[name] for name in good}


def test_a_part_in_the_store_is_not_computed_again(files, root):
    alone = embedded(files, root, VGG16)
    (shards,) = {path.parent for path in shards_of(root)}
    before = sorted(path.name for path in shards.iterdir())
    told = Noticing()
    both = embedded(files, root, BOTH, observer=told)
    assert sorted(path.name for path in shards.iterdir()) == before
    assert any(
        "embeddings of 8 pictures by VGG16 already, which are not computed again" in notice for notice in told.notices
    )
    assert both.n_computed == len(files) - 2
    np.testing.assert_allclose(both.x.whole()[:, :1024], unit(alone.x.whole()), atol=1e-6)
    # What was computed for the joined features serves the part alone.
    other = embedded(files, root, LITE2)
    assert other.n_computed == 0
    np.testing.assert_allclose(both.x.whole()[:, 1024:], unit(other.x.whole()), atol=1e-6)


class StopsAfter(Observer):
    def __init__(self, n: int) -> None:
        self.n = n
        self.done = 0

    def progress(self, stage: str, done: int, total: int) -> None:
        assert done <= total
        self.done = done if stage == "embed" else 0

    def stopping(self) -> bool:
        return self.done >= self.n


def test_a_stopped_job_goes_on_where_it_was_for_all_parts(files, root):
    expected = embedded(files, None, BOTH).x.whole()
    with pytest.raises(InterruptedJobError, match="they are kept in"):
        embedded(files, root, BOTH, observer=StopsAfter(4))
    again = embedded(files, root, BOTH)
    assert 0 < again.n_computed < len(files) - 2
    np.testing.assert_array_equal(again.x.whole(), expected)


def test_contents_that_lack_different_parts_are_computed_for_just_these(files, root):
    expected = embedded(files, None, BOTH).x.whole()
    embedded(files[:4], root, VGG16)
    embedded(files[3:6], root, LITE2)
    found = embedded(files, root, BOTH)
    np.testing.assert_array_equal(found.x.whole(), expected)
    kept = [Counter(hashes_of(folder)) for folder in sorted({path.parent for path in shards_of(root)})]
    assert [max(one.values()) for one in kept] == [1, 1]


def hashes_of(folder: Path) -> Iterator[str]:
    import pyarrow.parquet as pq

    for path in folder.glob("shard-*.parquet"):
        yield from pq.read_table(path)["content_hash"].to_pylist()


def test_what_does_not_fit_the_device_is_joined_from_the_shards_of_the_parts(files, root, tmp_path, monkeypatch):
    held = embedded(files, root, BOTH)
    monkeypatch.setattr(CpuBackend, "holds", lambda *_: False)
    for found in (embedded(files, root, BOTH), embedded(files, None, BOTH, scratch=tmp_path / "scratch")):
        assert isinstance(found.x, JoinedStoredRows)
        np.testing.assert_array_equal(found.x.whole(), held.x.whole())
        np.testing.assert_array_equal(found.x.take(np.array([4, 1])), held.x.whole()[[4, 1]])
        mapped = list(found.x.map(lambda blocks, _backend: (np.concatenate(list(blocks)),)))
        np.testing.assert_array_equal(mapped[0][1][0], held.x.whole())


@pytest.mark.parametrize("engine_named", ["ncnn", "tensorflow"])
def test_a_part_is_the_same_whatever_it_is_joined_with_where_another_ratio_is_decoded(tmp_path, engine_named):
    # On the short side 4.5 times the larger square and 6.75 times the smaller: reduced by 2 for both. And 3.75 and
    # 5.6 times: reduced by 1 for the larger square and by 2 for the smaller.
    random = np.random.default_rng(0)
    for name, short in (("a.jpg", 216), ("b.jpg", 180)):
        coarse = Image.fromarray(random.integers(0, 256, (20, 30, 3), np.uint8))
        coarse.resize((short * 3 // 2, short), Image.Resampling.BICUBIC).save(tmp_path / name, quality=92)
    files = sorted(tmp_path.iterdir())
    small, large = extractor(VGG16, 32), extractor(LITE2, SIDE)
    assert isinstance(small, Extractor)
    assert isinstance(large, Extractor)
    joined = Joined((replace(small, side=32), large), (1.0, 1.0))
    config = EmbedConfig(engine=engine_named, batch_size=4, image_size=32)
    given = {"engine": choose_engine(CpuBackend(), joined, config)}
    both = embedded(files, None, BOTH, **given).x.whole()
    for part, columns in ((small, slice(0, 1024)), (large, slice(1024, None))):
        alone = embedded(files, None, "", engine=choose_engine(CpuBackend(), part, config)).x
        assert isinstance(alone, HeldRows)
        np.testing.assert_allclose(both[:, columns], unit(alone.whole()), atol=1e-6)


def test_scratch_shards_of_all_parts_lie_in_the_one_folder_that_a_job_removes(files, tmp_path, monkeypatch):
    monkeypatch.setattr(CpuBackend, "holds", lambda *_: False)
    embedded(files, None, BOTH, scratch=tmp_path / "scratch")
    assert [path for path in (tmp_path / "scratch").iterdir() if path.is_dir()] == []


def test_a_picture_of_which_the_store_holds_a_part_is_computed_but_not_wholly(files, root):
    embedded(files[:3], root, VGG16)
    found = embedded(files, root, BOTH)
    assert (found.n_computed, found.n_whole) == (8, 5)


def test_the_preview_of_a_raw_is_reduced_for_each_part_as_for_it_alone():
    facts = FileFacts(format="DNG", width=6000, height=4000)
    configs = [EmbedConfig(image_size=224), EmbedConfig(image_size=260)]
    assert shared_decodings(facts, configs) == [(224, [0]), (260, [1])]
    assert shared_decodings(FileFacts(format="PNG", width=6000, height=4000), configs) == [(224, [0, 1])]

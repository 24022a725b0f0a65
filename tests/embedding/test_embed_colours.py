"""What was done about the colours of a picture belongs to its row of the store: only such pictures are embedded again.

`tests/earlier/colours` holds six pictures, four of them without a profile or with sRGB, and the embeddings of all that
the version before profiles were applied has made of them: run (the pictures) --image-size 32 --k 2 --engine tensorflow.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from gpu_cluster.backend import CpuBackend
from gpu_cluster.config import EmbedConfig, StoreConfig
from gpu_cluster.embedding.embed import embed
from gpu_cluster.embedding.engines import choose_engine
from gpu_cluster.events import Observer
from gpu_cluster.images.places import open_source
from gpu_cluster.results import Embeddings
from gpu_cluster.store.embeddings import row_name
from gpu_cluster.store.maintenance import verify
from gpu_cluster.store.shards import Shards, folder_name
from gpu_cluster.store.store import Store, scan_schema
from tests import colour_profiles as made
from tests.helpers import Noticing, age, embedded, network, picture, scanned, shards_of

EARLIER = Path(__file__).parents[1] / "earlier" / "colours"
PICTURES = sorted((EARLIER / "pictures").iterdir())
P3 = made.p3_profile()


def by_tensorflow(files: Sequence[Path], root: Path, observer: Observer, decoding: int = 3) -> Embeddings:
    store, config = Store(root, observer), EmbedConfig(image_size=32, engine="tensorflow", decoding=decoding)
    return embed(
        scanned(files, store, observer),
        open_source(files[0].parent),
        choose_engine(CpuBackend(), network(), config),
        store=store,
        store_config=StoreConfig(),
        observer=observer,
    )


@pytest.mark.slow
def test_of_an_earlier_store_only_the_pictures_with_another_profile_than_srgb_are_computed(tmp_path):
    root, observer = tmp_path / "store", Noticing()
    shutil.copytree(EARLIER / "store", root)
    (earlier,) = shards_of(root)
    found = by_tensorflow(PICTURES, root, observer)
    names = [PICTURES[row].name for row in found.rows]
    assert names == ["adobe.png", "none.jpg", "none.png", "p3.jpg", "srgb.jpg", "srgb.png"]
    assert found.n_computed == 2
    assert not any("damaged" in notice for notice in observer.notices)
    assert sum("2 pictures of this job by an earlier version" in notice for notice in observer.notices) == 1
    table = pq.read_table(earlier)
    before = dict(zip(table["content_hash"].to_pylist(), table["embedding"].to_pylist(), strict=True))
    hashes = scanned(PICTURES, None).facts.column("content_hash")
    same = [np.array_equal(x, np.float32(before[one])) for x, one in zip(found.x.whole(), hashes, strict=True)]
    assert same == [False, True, True, False, True, True]
    assert by_tensorflow(PICTURES, root, observer).n_computed == 0
    assert verify(root, observer) == (len(shards_of(root)) + len(shards_of(root, "scans")), [])


def test_the_earlier_version_of_decoding_applies_no_profile_as_the_notebook_does(tmp_path):
    for name, profile in (("none.png", b""), ("p3.png", P3)):
        more: dict[str, Any] = {"icc_profile": profile} if profile else {}
        picture(0).save(tmp_path / name, **more)
    files = [tmp_path / "none.png", tmp_path / "p3.png"]
    none, p3 = by_tensorflow(files, tmp_path / "store", Observer(), decoding=2).x.whole()
    # The same pixels, one resized by TensorFlow and one by Pillow.
    np.testing.assert_allclose(p3, none, atol=1e-5)
    assert not any("conversion" in pq.read_table(shard).column_names for shard in shards_of(tmp_path / "store"))
    none, p3 = by_tensorflow(files, tmp_path / "store", Observer()).x.whole()
    assert np.abs(p3 - none).max() > 1e-3


def test_a_row_says_what_was_done_and_a_shard_without_such_a_row_is_as_it_was(tmp_path, root):
    for number in range(3):
        more: dict[str, Any] = {"icc_profile": P3} if number == 1 else {}
        picture(number).save(tmp_path / f"{number}.png", **more)
    embedded([tmp_path / "0.png"], root)
    embedded([tmp_path / f"{number}.png" for number in range(3)], root)
    columns = [pq.read_table(shard).to_pydict() for shard in sorted(shards_of(root), key=os.path.getmtime)]
    assert ["conversion" in shard for shard in columns] == [False, True]
    plain, converted = sorted(columns[1]["conversion"], key=bool)
    assert plain is None
    assert converted.startswith("Display P3 ")
    assert converted.endswith(" -> sRGB, v1")


def test_a_row_of_the_same_content_that_something_else_was_done_to_is_not_used(tmp_path, root):
    picture(0).save(tmp_path / "a.png", icc_profile=P3)
    embedded([tmp_path / "a.png"], root)
    (shard,) = shards_of(root)
    content = pq.read_table(shard)
    (content_hash,), (conversion,) = content["content_hash"].to_pylist(), content["conversion"].to_pylist()
    key = {"n_features": 1024, "of": "another"}
    shards = Store(root, Observer()).embeddings(key)
    shards.keep([content_hash] * 2, np.ones((2, 1024), np.float32), [None, None], conversions=[conversion, "other"])
    shards.keep([content_hash], np.zeros((1, 1024), np.float32), [None])
    (plain,) = shards.find([content_hash])
    assert not plain.x.any()
    (converted,) = shards.find([row_name(content_hash, conversion), row_name(content_hash, "v2")])
    assert converted.at.tolist() == [0]
    assert converted.x.all()
    assert shards.count([content_hash, row_name(content_hash, "other"), row_name(content_hash, "v2")]) == 2


@pytest.mark.parametrize("columns", [None, 2])
def test_the_scans_of_earlier_versions_get_their_profiles_and_no_file_is_read_whole_for_it(
    tmp_path, root, monkeypatch, columns
):
    picture(0).save(tmp_path / "a.png", icc_profile=P3)
    picture(1).save(tmp_path / "b.jpg")
    files = age([tmp_path / "a.png", tmp_path / "b.jpg"])
    observer, store = Noticing(), Store(root, Noticing())
    key = {"root": str(tmp_path), "pillow": version("pillow"), **({"columns": columns} if columns else {})}
    facts = scanned(files, None).files
    earlier = {name: [getattr(one, name) for one in facts] for name in scan_schema(key).names[1:]}
    assert "profile" not in earlier
    Shards(root / "scans" / folder_name(key), key, scan_schema(key), observer).append(
        {"path": [os.fsencode(file) for file in files], **earlier}
    )
    monkeypatch.setattr("gpu_cluster.images.scan.content_hash", None)
    assert [one.profile for one in scanned(files, store).files] == [facts[0].profile, ""]
    # Now they are known: no header is read.
    monkeypatch.setattr("gpu_cluster.images.scan._header", None)
    assert scanned(files, store).facts.column("content_hash") == [one.content_hash for one in facts]
    assert verify(root, observer) == (2, [])

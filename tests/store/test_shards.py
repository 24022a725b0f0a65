"""Shards: what is damaged is set aside and done again, and other readers read them as they are."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from gpu_cluster.events import Observer
from gpu_cluster.results import Embeddings
from gpu_cluster.store.shards import DAMAGED
from gpu_cluster.store.store import ScanShards, Store
from tests.helpers import (
    Noticing,
    age,
    embedded,
    scanned,
    shards_of,
    write_pictures,
)
from tests.store.embeddings import KEY, found, shards_in, some

# Damage


def flipped(position: Callable[[Path], int]) -> Callable[[Path], None]:
    def damage(shard: Path) -> None:
        content = bytearray(shard.read_bytes())
        content[position(shard)] ^= 0x10
        shard.write_bytes(content)

    return damage


def replaced(content: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(shard: Path) -> None:
        shard.write_bytes(content(shard.read_bytes()))

    return damage


def column(name: str) -> Callable[[Path], int]:
    """Return where the middle of a column's values is."""

    def position(shard: Path) -> int:
        group = pq.read_metadata(shard).row_group(0)
        (chunk,) = [
            group.column(number)
            for number in range(group.num_columns)
            if group.column(number).path_in_schema.split(".")[0] == name
        ]
        return int(chunk.data_page_offset + chunk.total_compressed_size // 2)

    return position


def footer(shard: Path) -> int:
    return shard.stat().st_size - 8 - int.from_bytes(shard.read_bytes()[-8:-4], "little") // 2


DAMAGE: dict[str, Callable[[Path], None]] = {
    "first byte": flipped(lambda shard: 0),
    "header of the first page": flipped(lambda shard: 6),
    "hash": flipped(column("content_hash")),
    "embedding": flipped(column("embedding")),
    "reason": flipped(column("reason")),
    "footer": flipped(footer),
    "length of the footer": flipped(lambda shard: -7),
    "last byte": flipped(lambda shard: -1),
    "truncated by a byte": lambda shard: os.truncate(shard, shard.stat().st_size - 1),
    "truncated to half": lambda shard: os.truncate(shard, shard.stat().st_size // 2),
    "empty": lambda shard: os.truncate(shard, 0),
    "text": replaced(lambda _: b"no shard"),
    "one byte more": replaced(lambda content: content + b"\0"),
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Path, Embeddings]:
    """Pictures, a store that holds them, and their embeddings; no test changes them."""
    place = tmp_path_factory.mktemp("filled")
    files = write_pictures(place / "in", 6)
    return files, place / "store", embedded(files, place / "store")


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_shard_is_set_aside_and_its_rows_are_computed_again(filled, root, damage):
    files, store, right = filled
    shutil.copytree(store, root)
    (shard,) = shards_of(root)
    damage(shard)
    damaged = shard.read_bytes()
    observer = Noticing()
    again = embedded(files, root, observer)
    assert again.n_computed == 6
    np.testing.assert_array_equal(again.x.whole(), right.x.whole())
    assert (shard.parent / DAMAGED / shard.name).read_bytes() == damaged
    (notice,) = observer.notices
    assert notice.startswith("A shard of the store is damaged and set aside")
    assert str(shard) in notice


def test_a_damaged_shard_costs_no_row_of_another(tmp_path, root):
    files = write_pictures(tmp_path / "in", 6)
    embedded(files, root, shard_size=2)
    DAMAGE["embedding"](shards_of(root)[1])
    assert embedded(files, root).n_computed == 2


def test_what_a_damaged_shard_held_is_taken_from_an_older_one(tmp_path, root):
    hashes, x = some(3)
    shards = shards_in(root)
    shards.keep(hashes, x, [None] * 3)
    (old,) = shards_of(root)
    os.utime(old, (1000, 1000))
    shards.keep(hashes, x + 1, [None] * 3)
    (new,) = set(shards_of(root)) - {old}
    DAMAGE["embedding"](new)
    np.testing.assert_array_equal(found(shards, hashes)[hashes[2]][0], x[2])


def test_a_shard_of_another_schema_is_set_aside_and_its_rows_are_computed_again(tmp_path, root):
    files = write_pictures(tmp_path / "in", 3)
    right = embedded(files, root)
    (shard,) = shards_of(root)
    hashes = pq.read_table(shard)["content_hash"].to_pylist()
    schema = pa.schema([("content_hash", pa.string()), ("embedding", pa.list_(pa.float64(), 3)), ("more", pa.string())])
    other = ScanShards(shard.parent, {}, [], Observer())
    other.schema = schema
    shard.unlink()
    other.append({"content_hash": hashes, "embedding": [[1.0, 2.0, 3.0]] * 3, "more": ["x"] * 3})
    observer = Noticing()
    again = embedded(files, root, observer)
    np.testing.assert_array_equal(again.x.whole(), right.x.whole())
    assert len(observer.notices) == 1
    assert len(list((shard.parent / DAMAGED).iterdir())) == 1


def test_a_shard_of_another_recipe_is_set_aside_and_never_used(root):
    hashes, x = some(3)
    theirs = Store(root, Observer()).embeddings({**KEY, "backbone": "another"})
    theirs.keep(hashes, x, [None] * 3)
    observer = Noticing()
    mine = shards_in(root, observer)
    mine.keep(hashes[:1], x[:1] + 1, [None])
    (shard,) = theirs.names()
    os.link(theirs.folder / shard, mine.folder / shard)
    kept = found(mine, hashes)
    assert list(kept) == hashes[:1]
    np.testing.assert_array_equal(kept[hashes[0]][0], x[0] + 1)
    (notice,) = observer.notices
    assert "it was made with the settings of another folder" in notice
    assert (mine.folder / DAMAGED / shard).exists()
    assert len(found(theirs, hashes)) == 3


def rewritten(folder: Path, change: Callable[[pa.Table], pa.Table], **options: Any) -> None:
    """Write the only shard of a folder again, changed, under the name of its new content."""
    (shard,) = folder.glob("shard-*")
    table = pq.read_table(shard, schema=pq.read_schema(shard))
    sink = pa.BufferOutputStream()
    pq.write_table(change(table), sink, **{"compression": "none", "use_dictionary": False, **options})
    content = sink.getvalue().to_pybytes()
    shard.unlink()
    (folder / f"shard-{hashlib.blake2b(content, digest_size=16).hexdigest()}.parquet").write_bytes(content)


def with_column(name: str, values: Callable[[list[Any]], list[Any]]) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        at = table.schema.get_field_index(name)
        field = table.schema.field(at)
        return table.set_column(at, field, pa.array(values(table[name].to_pylist()), field.type))

    return change


def with_bytes(table: pa.Table, content: bytes) -> pa.Table:
    """Return a shard whose reasons are bytes that are no text."""
    raw = pa.array([content if why else None for why in table["reason"].to_pylist()], pa.binary())
    return table.set_column(2, table.schema.field("reason"), raw.view(pa.string()))


# As somebody would write them who knows how shards are named.
WRONG: dict[str, tuple[Callable[[pa.Table], pa.Table], dict[str, Any], str]] = {
    "no key": (lambda table: table.replace_schema_metadata(), {}, "settings of another folder"),
    "not a number": (with_column("embedding", lambda rows: [[np.nan] * 1024, *rows[1:]]), {}, "not finite"),
    "infinite": (with_column("embedding", lambda rows: [[-np.inf] * 1024, *rows[1:]]), {}, "not finite"),
    "neither": (with_column("embedding", lambda rows: [None, *rows[1:]]), {}, "neither an embedding nor a reason"),
    "both": (with_column("reason", lambda rows: ["bad", *rows[1:]]), {}, "or both"),
    "no hash": (with_column("content_hash", lambda rows: [None, *rows[1:]]), {}, "without a content hash"),
    "no text": (lambda table: with_bytes(table, b"\xff\xfe"), {}, "Invalid UTF8"),
    "inflating": (lambda table: pa.concat_tables([table.slice(2)] * 500), {"compression": "gzip"}, "declares more"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_shard_that_is_wrong_under_a_right_checksum_is_a_damaged_one(tmp_path, root, wrong):
    change, options, why = WRONG[wrong]
    hashes, x = some(3)
    observer = Noticing()
    shards = shards_in(root, observer)
    shards.keep(hashes, x, [None, None, "no picture"])
    rewritten(shards.folder, change, **options)
    assert found(shards, hashes) == {}
    (notice,) = observer.notices
    assert why in notice
    assert len(list((shards.folder / DAMAGED).iterdir())) == 1


def test_a_shard_at_which_arrow_ends_the_process_is_a_damaged_one(root):
    # Found by changing bytes of a shard at random: its footer names a codec that Arrow does not know.
    content = (Path(__file__).parent / "hostile" / "unknown_codec.parquet").read_bytes()
    observer = Noticing()
    shards = Store(root, observer).embeddings({"backbone": "a", "n_features": 16})
    shards.folder.mkdir()
    (shards.folder / f"shard-{hashlib.blake2b(content, digest_size=16).hexdigest()}.parquet").write_bytes(content)
    assert found(shards, [f"{number:032x}" for number in range(20)]) == {}
    assert len(observer.notices) == 1


def test_an_embedding_that_is_not_finite_is_not_kept(root):
    hashes, x = some(3)
    x[1, 7] = np.nan
    shards = shards_in(root)
    shards.keep(hashes, x, [None] * 3)
    assert list(found(shards, hashes)) == [hashes[0], hashes[2]]


def test_a_damaged_shard_of_a_scan_is_set_aside_and_the_files_are_looked_at_again(tmp_path, root):
    files = age(write_pictures(tmp_path / "in", 3))
    right = scanned(files, Store(root, Observer()))
    (shard,) = shards_of(root, "scans")
    os.truncate(shard, 100)
    observer = Noticing()
    assert scanned(files, Store(root, observer)).files == right.files
    assert len(observer.notices) == 1
    assert len(shards_of(root, "scans")) == 1


def test_a_half_written_temporary_file_is_ignored(tmp_path, root):
    files = write_pictures(tmp_path / "in", 3)
    embedded(files, root)
    (shard,) = shards_of(root)
    (shard.parent / f".{shard.name}.4711.tmp").write_bytes(shard.read_bytes()[:1000])
    observer = Noticing()
    assert embedded(files, root, observer).n_computed == 0
    assert observer.notices == ["The store holds the embeddings of all these pictures already"]


@pytest.mark.parametrize("content", [None, b"", b"[]", b'{"schema": 1'], ids=["gone", "empty", "a list", "cut"])
def test_embeddings_are_found_without_a_readable_key(tmp_path, root, content):
    files = write_pictures(tmp_path / "in", 3)
    embedded(files, root)
    (key,) = (root / "embeddings").glob("*/*key.json")
    key.unlink()
    key.write_bytes(content or b"")
    assert embedded(files, root).n_computed == 0


# Other readers


@pytest.fixture
def lived_in(tmp_path: Path, root: Path) -> tuple[Path, np.ndarray]:
    """Return a folder of embeddings as it is after a while, and the embeddings."""
    hashes, x = some(600)
    shards = shards_in(root)
    shards.keep(hashes[:300], x[:300], [None] * 300)
    (shard,) = shards_of(root)
    DAMAGE["embedding"](shard)
    assert shards.read(shard.name) is None
    shards.keep(hashes[:300], x[:300], [None] * 300)
    shards.keep(hashes[300:], x[300:], [None] * 299 + ["bad"])
    (shards.folder / f".{shard.name}.4711.tmp").write_bytes(b"PAR1")
    return shards.folder, x


def test_a_shard_is_a_parquet_file_of_three_columns(lived_in):
    folder, _ = lived_in
    for shard in folder.glob("shard-*.parquet"):
        expected = [
            ("content_hash", pa.string()),
            ("embedding", pa.list_(pa.float32(), 1024)),
            ("reason", pa.string()),
        ]
        assert [(field.name, field.type) for field in pq.read_schema(shard)] == expected


def test_pandas_reads_the_folder_of_embeddings_as_it_is(lived_in):
    folder, x = lived_in
    table = pd.read_parquet(folder).sort_values("content_hash")
    assert len(table) == 600
    np.testing.assert_array_equal(np.stack(table["embedding"].to_list()[:599]), x[:599])
    assert table["embedding"].iloc[599] is None


def test_a_pyarrow_dataset_reads_the_folder_of_embeddings_as_it_is(lived_in):
    folder, x = lived_in
    table = ds.dataset(folder).to_table(columns=["embedding"], filter=ds.field("content_hash") == f"{5:032x}")
    np.testing.assert_array_equal(table["embedding"].to_pylist(), x[5:6])


def test_pandas_reads_the_folder_of_a_scan_as_it_is(tmp_path, root):
    files = age(write_pictures(tmp_path / "in", 3))
    manifest = scanned(files, Store(root, Observer()))
    (shard,) = shards_of(root, "scans")
    table = pd.read_parquet(shard.parent)
    assert table["path"].tolist() == [os.fsencode(file) for file in files]
    assert table["content_hash"].tolist() == [facts.content_hash for facts in manifest.files]


def test_a_picture_takes_4_kib_and_little_more(root):
    hashes, x = some(256)
    shards_in(root).keep(hashes, x, [None] * 256)
    (shard,) = shards_of(root)
    # 1,024 float32; 36 bytes for the hash with its length; the ends of the file shared by 256 rows.
    assert 4096 < shard.stat().st_size / 256 < 4096 + 100

"""The store: what is kept is found again, what is damaged is done again, and whatever goes wrong loses nothing."""

from __future__ import annotations

import ctypes
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import gpu_cluster
from gpu_cluster.backend import CpuBackend
from gpu_cluster.config import EmbedConfig, InputConfig, StoreConfig
from gpu_cluster.embedding import extractors, vgg16
from gpu_cluster.embedding.embed import embed
from gpu_cluster.embedding.engines import choose_engine
from gpu_cluster.errors import DataError, StoreError
from gpu_cluster.events import Observer
from gpu_cluster.images.scan import scan
from gpu_cluster.images.source import open_source
from gpu_cluster.manifest import Manifest
from gpu_cluster.results import Embeddings
from gpu_cluster.store.maintenance import verify
from gpu_cluster.store.shards import DAMAGED, is_shard
from gpu_cluster.store.store import EmbeddingShards, ScanShards, Store
from tests.conftest import COMMAND, Finished, picture, write_pictures
from tests.conftest import gpu_cluster as command

SMALL_SIDE = EmbedConfig(image_size=32)
KEY = {"backbone": "none", "n_features": 1024}
SMALL = ("--image-size", "32", "--k", "2", "--quiet")


class Noticing(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, message: str) -> None:
        self.notices.append(message)


def some(n: int, first: int = 0) -> tuple[list[str], np.ndarray]:
    """Return n content hashes, and numbers to keep for them."""
    hashes = [f"{number:032x}" for number in range(first, first + n)]
    return hashes, np.random.default_rng(first).normal(size=(n, 1024)).astype(np.float32)


def shards_in(root: Path, observer: Observer | None = None) -> EmbeddingShards:
    return Store(root, observer or Observer()).embeddings(KEY)


def found(shards: EmbeddingShards, wanted: Sequence[str]) -> dict[str, tuple[np.ndarray, str | None]]:
    """Return what is kept of each hash; a hash that comes twice is an error."""
    kept: dict[str, tuple[np.ndarray, str | None]] = {}
    for at, x, reasons in shards.find(wanted):
        for index, row, why in zip(at, x, reasons, strict=True):
            assert wanted[index] not in kept
            kept[wanted[index]] = (row, why)
    return kept


def files_of(root: Path, kind: str = "embeddings") -> list[Path]:
    """Return the shards of a store."""
    return sorted(path for path in (root / kind).glob("*/*") if is_shard(path.name))


def listing(folder: Path) -> dict[str, bytes | str | None]:
    """Return all that lies in a folder, hidden or not: content of files, targets of links."""
    found: dict[str, bytes | str | None] = {}
    for path in folder.rglob("*"):
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = content
    return found


def aged(files: Sequence[Path]) -> list[Path]:
    """Date files back to an hour ago: no longer so new that they could change unseen."""
    ago = time.time_ns() - 3600 * 10**9
    for file in files:
        os.utime(file, ns=(ago, ago))
    return list(files)


def scanned(files: Sequence[Path], store: Store | None, observer: Observer | None = None, **options: Any) -> Manifest:
    root = files[0].parent
    manifest = Manifest(root, tuple(os.path.relpath(file, root) for file in files))
    return scan(manifest, open_source(manifest.root), InputConfig(), observer or Observer(), store=store, **options)


def embedded(files: Sequence[Path], root: Path | None, observer: Observer | None = None, **store: Any) -> Embeddings:
    """Scan and embed files as a job does, in one batch unless told otherwise."""
    observer = observer or Observer()
    opened = None if root is None else Store(root, observer)
    return embed(
        scanned(files, opened, observer),
        open_source(files[0].parent),
        choose_engine(CpuBackend(), extractors.of_vgg16(vgg16.find_weights(), SMALL_SIDE), SMALL_SIDE),
        store=opened,
        store_config=StoreConfig(**store),
        observer=observer,
    )


def kept_in(root: Path) -> pd.DataFrame:
    """Return all rows of embeddings that a store holds."""
    return pd.concat([pd.read_parquet(file) for file in files_of(root)], ignore_index=True)


def n_embedded(result: gpu_cluster.RunResult) -> int:
    assert result.findings is not None
    return result.findings.embeddings.n_computed


def n_computed(done: Finished) -> int:
    return int(done.json("run.json")["n_computed"])


def without_override() -> None:
    """Have permissions mean something to root too, in the process that is about to start."""
    drop, read_and_write, read_and_search = 24, 1, 2
    prctl = ctypes.CDLL(None).prctl
    # Who is not root may not, and need not.
    prctl(drop, read_and_write, 0, 0, 0)
    prctl(drop, read_and_search, 0, 0, 0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 96 KiB: room for a scan and a few shards."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96k", "none", place], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"needs to mount a file system: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


# What is kept


def test_what_is_kept_is_found_again_byte_for_byte(root):
    hashes, x = some(5)
    # Every bit pattern: not a number, infinities, the smallest and both zeros.
    x[0, :6] = [np.nan, np.inf, -np.inf, np.finfo(np.float32).smallest_subnormal, 0.0, -0.0]
    shards_in(root).keep(hashes, x, [None] * 5)
    kept = found(shards_in(root), hashes)
    assert np.stack([kept[content][0] for content in hashes]).tobytes() == x.tobytes()


def test_content_with_a_reason_has_no_embedding(root):
    hashes, x = some(3)
    shards_in(root).keep(hashes, x, [None, "röd, \n damaged", None])
    kept = found(shards_in(root), hashes)
    assert [kept[content][1] for content in hashes] == [None, "röd, \n damaged", None]
    assert [bool(np.isnan(kept[content][0]).all()) for content in hashes] == [False, True, False]
    assert kept_in(root)["embedding"].isna().tolist() == [False, True, False]


def test_rows_around_one_with_a_reason_stay_their_own(root):
    hashes, x = some(4)
    shards_in(root).keep(hashes, x, ["bad", None, "bad", None])
    kept = found(shards_in(root), hashes[::-1])
    np.testing.assert_array_equal(kept[hashes[1]][0], x[1])
    np.testing.assert_array_equal(kept[hashes[3]][0], x[3])


def test_only_what_is_wanted_is_found(root):
    hashes, x = some(6)
    shards_in(root).keep(hashes, x, [None] * 6)
    others, _ = some(3, first=100)
    assert sorted(found(shards_in(root), [others[0], hashes[4], *others[1:], hashes[1]])) == [hashes[1], hashes[4]]


def test_a_hash_in_two_shards_is_found_once_and_the_newest_counts(root):
    hashes, x = some(3)
    shards = shards_in(root)
    # The newest is written first, so that the order of writing and of names are not what decides.
    for seconds, add in ((2000, 1), (1000, 0), (1500, 2)):
        before = set(files_of(root))
        shards.keep(hashes, x + np.float32(add), [None] * 3)
        (written,) = set(files_of(root)) - before
        os.utime(written, (seconds, seconds))
    kept = found(shards, hashes)
    np.testing.assert_array_equal(np.stack([kept[content][0] for content in hashes]), x + np.float32(1))


def test_the_same_rows_twice_are_one_shard(root):
    hashes, x = some(3)
    shards_in(root).keep(hashes, x, [None] * 3)
    shards_in(root).keep(hashes, x, [None] * 3)
    assert len(files_of(root)) == 1


def test_another_recipe_finds_nothing(root):
    hashes, x = some(3)
    shards_in(root).keep(hashes, x, [None] * 3)
    assert found(Store(root, Observer()).embeddings({**KEY, "backbone": "other"}), hashes) == {}


@pytest.mark.parametrize("name", [b"caf\xe9", b"content_hash=1", b"two\nlines", "写真".encode(), b"%41 #?"], ids=ascii)
def test_a_store_of_any_name_works(tmp_path, name):
    hashes, x = some(3)
    shards_in(tmp_path / os.fsdecode(name)).keep(hashes, x, [None] * 3)
    assert sorted(found(shards_in(tmp_path / os.fsdecode(name)), hashes)) == hashes


def test_a_second_job_computes_nothing_and_has_the_same_embeddings_bit_by_bit(tmp_path, root):
    files = write_pictures(tmp_path / "in", 5)
    first, second = embedded(files, root), embedded(files, root)
    assert (first.n_computed, second.n_computed) == (5, 0)
    np.testing.assert_array_equal(second.x, first.x)


def test_a_picture_moved_and_renamed_is_not_computed_again(tmp_path, root):
    files = write_pictures(tmp_path / "in", 3)
    embedded(files, root)
    (tmp_path / "there").mkdir()
    moved = [file.rename(tmp_path / "there" / f"x{file.name}") for file in files]
    assert embedded(moved, root).n_computed == 0


def test_forced_embeddings_are_computed_again_and_count_from_then_on(tmp_path, root):
    files = write_pictures(tmp_path / "in", 3)
    right = embedded(files, root)
    (shard,) = files_of(root)
    table = pq.read_table(shard)
    hashes = table["content_hash"].to_pylist()
    # What an earlier version might have got wrong.
    EmbeddingShards(shard.parent, KEY, Observer()).keep(hashes, np.zeros((3, 1024), np.float32), [None] * 3)
    assert not embedded(files, root).x.any()
    assert embedded(files, root, force=True).n_computed == 3
    np.testing.assert_array_equal(embedded(files, root).x, right.x)


def test_without_a_store_none_is_made(tmp_path, cache):
    files = write_pictures(tmp_path / "in", 2)
    gpu_cluster.embed(files, image_size=32, no_cache=True)
    assert not cache.exists()


def test_a_bad_picture_is_not_looked_into_again_and_keeps_its_reason(tmp_path, root):
    files = write_pictures(tmp_path / "in", 3)
    files[1].write_bytes(files[1].read_bytes()[:-30])
    first, second = embedded(files, root), embedded(files, root)
    assert second.n_computed == 0
    assert first.bad == second.bad
    assert list(second.bad) == [1]


def bigger_inside() -> bytes:
    """Return an icon whose header promises 128 x 128 pixels, and that holds a PNG of 256 x 256."""
    png = io.BytesIO()
    picture(1, (256, 256)).save(png, "PNG")
    block = b"ic07" + (len(png.getvalue()) + 8).to_bytes(4, "big") + png.getvalue()
    return b"icns" + (len(block) + 8).to_bytes(4, "big") + block


def test_a_picture_of_as_many_pixels_as_allowed_is_taken(tmp_path):
    # A TIFF, which Pillow decodes, of an odd number of pixels: Pillow is told half of what is allowed.
    picture(1, (33, 33)).save(tmp_path / "odd.tif")
    assert gpu_cluster.embed(tmp_path / "odd.tif", image_size=32, max_pixels=33 * 33).shape == (1, 1024)


def test_a_reason_that_comes_of_the_options_is_not_kept(tmp_path):
    # Of 20,001 pixels at most the header has fewer, the picture inside more.
    (tmp_path / "icon.icns").write_bytes(bigger_inside())
    with pytest.raises(DataError, match="more pixels inside than --max-pixels allows"):
        gpu_cluster.embed(tmp_path / "icon.icns", image_size=32, max_pixels=20_001)
    with pytest.raises(DataError, match="This is not one of the allowed sizes"):
        gpu_cluster.embed(tmp_path / "icon.icns", image_size=32)


# Files become unreadable when the scan is done and readable again when all is embedded, as a network drive might.
AWAY_WHILE_EMBEDDING = """
import sys
from pathlib import Path
import gpu_cluster
from gpu_cluster.events import Observer

class Away(Observer):
    def stage_finished(self, stage, elapsed_s):
        mode = {"scan": 0o000, "embed": 0o644}.get(stage)
        if mode is not None:
            (Path(sys.argv[1]) / "001.png").chmod(mode)

result = gpu_cluster.run(sys.argv[1], image_size=32, k=2, out=sys.argv[2], observer=Away())
print(len(result.manifest.bad))
"""


@pytest.mark.slow
def test_a_picture_that_could_not_be_read_once_is_read_again_by_the_next_job(tmp_path):
    write_pictures(tmp_path / "in", 4)
    arguments = [sys.executable, "-c", AWAY_WHILE_EMBEDDING, tmp_path / "in", tmp_path / "first"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, preexec_fn=without_override)
    assert done.stdout == "1\n", done.stderr
    result = gpu_cluster.run(tmp_path / "in", image_size=32, k=2, out=tmp_path / "second")
    assert result.manifest.counts()["ok"] == 4


class Changing(Observer):
    """Changes files as soon as the first batch is embedded."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = list(files)

    def progress(self, stage: str, done: int, total: int) -> None:
        for file in self._files if stage == "embed" else []:
            picture(1000).save(file)
            os.utime(file, (1, 1))


def test_a_picture_that_changes_while_the_job_runs_is_bad_and_not_kept(tmp_path, root):
    files = aged(write_pictures(tmp_path / "in", 4))
    first = embedded(files, root, Changing(files[1:2]))
    assert first.bad == {1: "it changed while the job ran"}
    assert len(kept_in(root)) == 3


def test_pictures_that_all_change_while_the_job_runs_leave_no_shard(tmp_path, root):
    files = aged(write_pictures(tmp_path / "in", 2))
    embedded(files, root, Changing(files))
    assert files_of(root) == []


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


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_shard_is_set_aside_and_its_rows_are_computed_again(tmp_path, root, damage):
    files = write_pictures(tmp_path / "in", 6)
    right = embedded(files, root)
    (shard,) = files_of(root)
    damage(shard)
    damaged = shard.read_bytes()
    observer = Noticing()
    again = embedded(files, root, observer)
    assert again.n_computed == 6
    np.testing.assert_array_equal(again.x, right.x)
    assert (shard.parent / DAMAGED / shard.name).read_bytes() == damaged
    (notice,) = observer.notices
    assert notice.startswith("A shard of the store is damaged and set aside")
    assert str(shard) in notice


def test_a_damaged_shard_costs_no_row_of_another(tmp_path, root):
    files = write_pictures(tmp_path / "in", 6)
    embedded(files, root, shard_size=2)
    DAMAGE["embedding"](files_of(root)[1])
    assert embedded(files, root).n_computed == 2


def test_what_a_damaged_shard_held_is_taken_from_an_older_one(tmp_path, root):
    hashes, x = some(3)
    shards = shards_in(root)
    shards.keep(hashes, x, [None] * 3)
    (old,) = files_of(root)
    os.utime(old, (1000, 1000))
    shards.keep(hashes, x + 1, [None] * 3)
    (new,) = set(files_of(root)) - {old}
    DAMAGE["embedding"](new)
    np.testing.assert_array_equal(found(shards, hashes)[hashes[2]][0], x[2])


def test_a_shard_of_another_schema_is_set_aside_and_its_rows_are_computed_again(tmp_path, root):
    files = write_pictures(tmp_path / "in", 3)
    right = embedded(files, root)
    (shard,) = files_of(root)
    hashes = pq.read_table(shard)["content_hash"].to_pylist()
    schema = pa.schema([("content_hash", pa.string()), ("embedding", pa.list_(pa.float64(), 3)), ("more", pa.string())])
    other = ScanShards(shard.parent, {}, [], Observer())
    other.schema = schema
    shard.unlink()
    other.append({"content_hash": hashes, "embedding": [[1.0, 2.0, 3.0]] * 3, "more": ["x"] * 3})
    observer = Noticing()
    again = embedded(files, root, observer)
    np.testing.assert_array_equal(again.x, right.x)
    assert len(observer.notices) == 1
    assert len(list((shard.parent / DAMAGED).iterdir())) == 1


def test_a_damaged_shard_of_a_scan_is_set_aside_and_the_files_are_looked_at_again(tmp_path, root):
    files = aged(write_pictures(tmp_path / "in", 3))
    right = scanned(files, Store(root, Observer()))
    (shard,) = files_of(root, "scans")
    os.truncate(shard, 100)
    observer = Noticing()
    assert scanned(files, Store(root, observer)).files == right.files
    assert len(observer.notices) == 1
    assert len(files_of(root, "scans")) == 1


def test_a_half_written_temporary_file_is_ignored(tmp_path, root):
    files = write_pictures(tmp_path / "in", 3)
    embedded(files, root)
    (shard,) = files_of(root)
    (shard.parent / f".{shard.name}.4711.tmp").write_bytes(shard.read_bytes()[:1000])
    observer = Noticing()
    assert embedded(files, root, observer).n_computed == 0
    assert observer.notices == ["3 of 3 pictures are in the store of embeddings already"]


@pytest.mark.parametrize("content", [None, b"", b"[]", b'{"schema": 1'], ids=["gone", "empty", "a list", "cut"])
def test_embeddings_are_found_without_a_readable_key(tmp_path, root, content):
    files = write_pictures(tmp_path / "in", 3)
    embedded(files, root)
    (key,) = (root / "embeddings").glob("*/*key.json")
    key.unlink()
    key.write_bytes(content or b"")
    assert embedded(files, root).n_computed == 0


# Jobs at once


def test_a_shard_that_vanishes_while_they_are_listed_hides_no_other(root):
    hashes, x = some(3)
    shards = shards_in(root)
    shards.keep(hashes, x, [None] * 3)
    # Listed, and gone when it is looked at: as when another job sets it aside just then.
    (shards.folder / "shard-00000000000000000000000000000000.parquet").symlink_to("gone")
    assert sorted(found(shards, hashes)) == hashes


def test_two_jobs_of_one_process_number_keep_the_same_shard_at_once(root):
    # In containers every job may be process 1; here they are threads of one process.
    hashes, x = some(3)
    errors: list[StoreError] = []

    def keep() -> None:
        for _ in range(50):
            try:
                shards_in(root).keep(hashes, x, [None] * 3)
            except StoreError as error:
                errors.append(error)

    threads = [threading.Thread(target=keep) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert verify(root, Observer()) == (1, [])


@pytest.mark.slow
@pytest.mark.parametrize("first_of_second", [0, 8], ids=["the same pictures", "overlapping pictures"])
def test_two_processes_at_once_share_a_store_and_both_are_right(tmp_path, cache, first_of_second):
    files = write_pictures(tmp_path / "in", 24)
    lists = (files[:16], files[first_of_second : first_of_second + 16])
    processes = []
    for number, named in enumerate(lists):
        (tmp_path / f"{number}.txt").write_text("\n".join(map(str, named)))
        given = ["run", "--input-list", f"{number}.txt", "--shard-size", "4", *SMALL, "--out", f"run-{number}"]
        processes.append(subprocess.Popen([COMMAND, *given], cwd=tmp_path, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    tables = [pd.read_parquet(tmp_path / f"run-{number}" / "assignments.parquet") for number in range(2)]
    assert [len(table) for table in tables] == [16, 16]
    assert verify(cache, Observer())[1] == []
    right = dict(zip(files, gpu_cluster.embed(files, image_size=32, no_cache=True), strict=True))
    for named in lists:
        kept = gpu_cluster.embed(named, image_size=32)
        expected = np.stack([right[file] for file in named])
        # TensorFlow's result for an image changes by up to 4e-8 of its size with the batch it is in.
        np.testing.assert_allclose(kept, expected, atol=1e-6 * float(np.abs(expected).max()))


def test_a_store_deleted_while_a_job_runs_is_made_again(tmp_path, root):
    files = write_pictures(tmp_path / "in", 6)

    class Deleting(Observer):
        def progress(self, stage: str, done: int, total: int) -> None:
            if stage == "embed" and done == 4:
                shutil.rmtree(root)

    job = embedded(files, root, Deleting(), shard_size=2)
    right = embedded(files, None, shard_size=2)
    np.testing.assert_array_equal(job.x, right.x)
    assert len(kept_in(root)) == 4
    assert verify(root, Observer())[1] == []


# Other readers


@pytest.fixture
def lived_in(tmp_path: Path, root: Path) -> tuple[Path, np.ndarray]:
    """Return a folder of embeddings as it is after a while, and the embeddings."""
    hashes, x = some(600)
    shards = shards_in(root)
    shards.keep(hashes[:300], x[:300], [None] * 300)
    (shard,) = files_of(root)
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
    files = aged(write_pictures(tmp_path / "in", 3))
    manifest = scanned(files, Store(root, Observer()))
    (shard,) = files_of(root, "scans")
    table = pd.read_parquet(shard.parent)
    assert table["path"].tolist() == [os.fsencode(file) for file in files]
    assert table["content_hash"].tolist() == [facts.content_hash for facts in manifest.files]


def test_a_picture_takes_4_kib_and_little_more(root):
    hashes, x = some(256)
    shards_in(root).keep(hashes, x, [None] * 256)
    (shard,) = files_of(root)
    # 1,024 float32; 36 bytes for the hash with its length; the ends of the file shared by 256 rows.
    assert 4096 < shard.stat().st_size / 256 < 4096 + 100


# What the scan found


def unseen_change(file: Path) -> None:
    """Change a file so that neither its size nor its time of change tell."""
    status = file.stat()
    content = bytearray(file.read_bytes())
    # In PNG's last chunk, whose checksum no one reads: still a picture.
    content[-1] ^= 0xFF
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def hashes_of(manifest: Manifest) -> list[str | None]:
    return [facts.content_hash for facts in manifest.files]


def test_an_unchanged_file_is_not_read_again(tmp_path, root):
    files = aged(write_pictures(tmp_path / "in", 3))
    before = scanned(files, Store(root, Observer()))
    unseen_change(files[1])
    assert scanned(files, Store(root, Observer())).files == before.files


def test_rehash_reads_every_file_again_and_counts_from_then_on(tmp_path, root):
    files = aged(write_pictures(tmp_path / "in", 3))
    before = scanned(files, Store(root, Observer()))
    unseen_change(files[1])
    after = scanned(files, Store(root, Observer()), rehash=True)
    assert [one == other for one, other in zip(hashes_of(after), hashes_of(before), strict=True)] == [True, False, True]
    assert scanned(files, Store(root, Observer())).files == after.files


def test_the_command_takes_an_unchanged_file_as_it_was_and_rehash_sees_that_it_is_not(tmp_path):
    files = aged(write_pictures(tmp_path / "in", 4))
    given: dict[str, Any] = {"image_size": 32, "k": 2, "out": tmp_path / "run"}
    computed = [n_embedded(gpu_cluster.run(tmp_path / "in", **given))]
    unseen_change(files[2])
    computed += [n_embedded(gpu_cluster.run(tmp_path / "in", **given, rehash=rehash)) for rehash in (False, True)]
    assert computed == [4, 0, 1]


def test_a_file_of_another_size_is_read_again(tmp_path, root):
    files = aged(write_pictures(tmp_path / "in", 3))
    before = scanned(files, Store(root, Observer()))
    status = files[0].stat()
    files[0].write_bytes(files[0].read_bytes() + b"more")
    os.utime(files[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert hashes_of(scanned(files, Store(root, Observer())))[0] != hashes_of(before)[0]


def test_a_file_of_another_time_of_change_is_read_again(tmp_path, root):
    files = aged(write_pictures(tmp_path / "in", 3))
    before = scanned(files, Store(root, Observer()))
    unseen_change(files[0])
    os.utime(files[0], (1, 1))
    assert hashes_of(scanned(files, Store(root, Observer())))[0] != hashes_of(before)[0]


@pytest.mark.parametrize(("first", "second"), [("a", "a/b"), ("a/b", "a")], ids=["a folder in it", "one it lies in"])
def test_what_a_scan_found_is_used_for_a_related_folder(tmp_path, root, first, second):
    (file,) = aged(write_pictures(tmp_path / "a" / "b", 1))
    named = {
        folder: Manifest(tmp_path / folder, (os.path.relpath(file, tmp_path / folder),)) for folder in (first, second)
    }
    before = scan(
        named[first], open_source(named[first].root), InputConfig(), Observer(), store=Store(root, Observer())
    )
    unseen_change(file)
    after = scan(
        named[second], open_source(named[second].root), InputConfig(), Observer(), store=Store(root, Observer())
    )
    assert after.files == before.files


def test_what_a_scan_found_of_a_name_that_is_not_utf8_is_used_again(tmp_path, root):
    (file,) = write_pictures(tmp_path / os.fsdecode(b"caf\xe9"), 1)
    (file,) = aged([file.rename(file.with_name(os.fsdecode(b"\xff.png")))])
    before = scanned([file], Store(root, Observer()))
    unseen_change(file)
    assert scanned([file], Store(root, Observer())).files == before.files


def test_what_another_pillow_found_is_not_used(root):
    store = Store(root, Observer())
    path = root / "in" / "a.png"
    facts = scanned([*write_pictures(root / "in", 1)], None).files
    store.scans(root / "in", {"pillow": "1"}).keep([path], facts)
    assert store.scans(root / "in", {"pillow": "2"}).known([path]).slice(0, 1) == [None]
    assert store.scans(root / "in", {"pillow": "1"}).known([path]).slice(0, 1) == [facts[0]]


def test_a_file_changed_a_moment_ago_is_not_kept(tmp_path, root):
    old, new = write_pictures(tmp_path / "in", 2)
    aged([old])
    # A minute ahead: whatever the clock says when it is looked at, the file may change again within the same tick.
    ahead = time.time_ns() + 60 * 10**9
    os.utime(new, ns=(ahead, ahead))
    scanned([old, new], Store(root, Observer()))
    (shard,) = files_of(root, "scans")
    assert pd.read_parquet(shard)["path"].tolist() == [os.fsencode(old)]


def test_a_file_changed_in_this_second_is_not_kept_where_times_are_whole_seconds(tmp_path, root):
    old, new = write_pictures(tmp_path / "in", 2)
    aged([old])
    now = int(time.time())
    os.utime(new, (now, now))
    scanned([old, new], Store(root, Observer()))
    (shard,) = files_of(root, "scans")
    assert pd.read_parquet(shard)["path"].tolist() == [os.fsencode(old)]


class Slow(Observer):
    """Holds the scan up for longer than the files named are young."""

    def progress(self, stage: str, done: int, total: int) -> None:
        time.sleep(1.2)


def test_a_file_that_was_new_when_it_was_looked_at_is_not_kept_however_long_the_scan_takes(tmp_path, root):
    (file,) = write_pictures(tmp_path / "in", 1)
    # What counts is the moment of the look: from then on a change within the file's tick of the clock goes unseen. A
    # second ahead, so that a busy machine is in time for the look.
    ahead = time.time_ns() + 10**9
    os.utime(file, ns=(ahead, ahead))
    before = scanned([file], Store(root, Observer()), Slow())
    unseen_change(file)
    assert hashes_of(scanned([file], Store(root, Observer()))) != hashes_of(before)


# A full disk, and other places that cannot be written


def assert_says_what_to_do(done: Finished, place: Path, words: str) -> None:
    """Check for exit code 1 and one line that names the place, what is wrong and both ways out."""
    assert done.code == 1, done.err
    (line,) = done.err.splitlines()
    assert line.startswith("error: cannot use the store of embeddings at ")
    assert str(place) in line
    assert re.search(words, line)
    assert "--cache DIR" in line
    assert "--no-cache" in line


@pytest.mark.slow
def test_a_full_disk_ends_the_job_and_with_room_the_next_goes_on_from_what_was_kept(tmp_path, disk):
    write_pictures(tmp_path / "in", 48)
    given = ("run", tmp_path / "in", *SMALL, "--shard-size", "4", "--cache", disk / "store")
    full = command(*given, out=tmp_path / "run")
    assert_says_what_to_do(full, disk / "store", "No space left on device")
    assert not (tmp_path / "run").exists()
    kept = len(kept_in(disk / "store"))
    assert 0 < kept < 48
    assert list((disk / "store").rglob("*.tmp")) == []
    assert verify(disk / "store", Observer())[1] == []
    subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
    done = command(*given, out=tmp_path / "run")
    assert done.code == 0, done.err
    assert n_computed(done) == 48 - kept
    assert len(kept_in(disk / "store")) == 48


@pytest.mark.slow
def test_files_that_may_not_grow_end_the_job_and_what_was_kept_stays(tmp_path, root):
    files = write_pictures(tmp_path / "in", 24)
    embedded(files[:2], root)
    before = listing(root / "embeddings")

    def no_file_above_20_kib() -> None:
        # A scan of 24 files fits; their embeddings, 48 KiB in a shard, do not.
        resource.setrlimit(resource.RLIMIT_FSIZE, (20 << 10, 20 << 10))

    given = (tmp_path / "in", *SMALL, "--cache", root)
    done = command("run", *given, out=tmp_path / "run", before=no_file_above_20_kib)
    assert_says_what_to_do(done, root, "File too large")
    assert listing(root / "embeddings") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "store"]


def a_file(place: Path) -> Path:
    (place / "store").write_text("mine")
    return place / "store"


def a_folder_that_is_a_file(place: Path) -> Path:
    (place / "store").mkdir()
    (place / "store" / "embeddings").write_text("mine")
    return place / "store"


def a_recipe_that_is_a_file(place: Path) -> Path:
    embedded(sorted((place / "in").iterdir()), place / "store")
    (recipe,) = (place / "store" / "embeddings").iterdir()
    shutil.rmtree(recipe)
    recipe.write_text("mine")
    return place / "store"


def a_link_to_nowhere(place: Path) -> Path:
    (place / "store").symlink_to(place / "nowhere")
    return place / "store"


def a_place_below_a_file(place: Path) -> Path:
    (place / "store").write_text("mine")
    return place / "store" / "deep" / "er"


# As strerror has it, or in better words.
IN_THE_WAY = r"Not a directory|in the way|is a file"
BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a file": (a_file, IN_THE_WAY),
    "below a file": (a_place_below_a_file, IN_THE_WAY),
    "embeddings is a file": (a_folder_that_is_a_file, IN_THE_WAY),
    "a recipe is a file": (a_recipe_that_is_a_file, IN_THE_WAY),
    "a link to nowhere": (a_link_to_nowhere, r"\blink\b|not there|No such file"),
}


@pytest.mark.parametrize(("broken", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_store_ends_the_job_and_loses_nothing(tmp_path, broken, words):
    write_pictures(tmp_path / "in", 2)
    store = broken(tmp_path)
    before = listing(tmp_path)
    done = command("run", tmp_path / "in", *SMALL, "--cache", store, out=tmp_path / "run")
    assert_says_what_to_do(done, tmp_path / "store", words)
    # What the scan found may be kept meanwhile.
    after = {name: content for name, content in listing(tmp_path).items() if not name.startswith("store/scans")}
    assert after == {name: content for name, content in before.items() if not name.startswith("store/scans")}


def test_a_damaged_shard_that_cannot_be_set_aside_ends_the_job_and_loses_nothing(tmp_path, root):
    files = write_pictures(tmp_path / "in", 2)
    embedded(files, root)
    (shard,) = files_of(root)
    os.truncate(shard, 100)
    (shard.parent / DAMAGED).write_text("in the way")
    before = listing(root / "embeddings")
    with pytest.raises(StoreError, match="cannot use the store of embeddings"):
        embedded(files, root)
    assert listing(root / "embeddings") == before


def test_a_store_without_permission_to_write_ends_the_job(tmp_path, root):
    write_pictures(tmp_path / "in", 2)
    for folder in ("embeddings", "scans"):
        (root / folder).mkdir(parents=True)
        (root / folder).chmod(0o555)
    done = command("run", tmp_path / "in", *SMALL, "--cache", root, out=tmp_path / "run", before=without_override)
    assert_says_what_to_do(done, root, "Permission denied")


def test_a_store_on_a_disk_that_is_read_only_ends_the_job(tmp_path, disk):
    write_pictures(tmp_path / "in", 2)
    Store(disk / "store", Observer())
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    done = command("run", tmp_path / "in", *SMALL, "--cache", disk / "store", out=tmp_path / "run")
    assert_says_what_to_do(done, disk / "store", "Read-only file system|Permission denied")


def test_a_store_that_cannot_be_written_is_seen_before_anything_is_embedded(tmp_path):
    write_pictures(tmp_path / "in", 2)
    (tmp_path / "file").write_text("in the way")
    seen: list[str] = []

    class Stages(Observer):
        def stage_started(self, stage: str) -> None:
            seen.append(stage)

    with pytest.raises(StoreError):
        gpu_cluster.run(tmp_path / "in", image_size=32, cache=tmp_path / "file", observer=Stages())
    assert seen == ["scan"]


def test_a_run_folder_says_how_many_pictures_were_computed(tmp_path, root):
    write_pictures(tmp_path / "in", 4)
    results = [gpu_cluster.run(tmp_path / "in", image_size=32, cache=root, out=tmp_path / "run") for _ in range(2)]
    assert [n_embedded(result) for result in results] == [4, 0]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["n_computed"] == 0


def test_a_process_that_reads_the_store_ends_well_every_time(root):
    shards = shards_in(root)
    for first in range(0, 500, 50):
        hashes, x = some(50, first)
        shards.keep(hashes, x, [None] * 50)
    code = f"""
from pathlib import Path
from gpu_cluster.store.maintenance import verify
from gpu_cluster.events import Observer
assert verify(Path({os.fspath(root)!r}), Observer()) == (10, [])
"""
    # With Arrow's threads one in some twenty aborts (apache/arrow#34314).
    codes = [subprocess.run([sys.executable, "-c", code], check=False).returncode for _ in range(5)]
    assert codes == [0] * 5

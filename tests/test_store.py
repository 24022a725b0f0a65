"""The store of embeddings: whole or not there, every change noticed, no lock, a full disk survived."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

import gpu_cluster as api
from gpu_cluster.errors import StoreError
from gpu_cluster.events import Observer, Recorder
from gpu_cluster.results import FloatArray
from gpu_cluster.store import EmbeddingShards, Store

from .conftest import COMMAND, gpu_cluster, write_pictures

KEY = {"n_features": 4, "backbone": "test"}
SMALL = ("--image-size", "32", "--k", "3", "--k-range", "2:4")


def shards_in(root: Path, observer: Observer | None = None) -> EmbeddingShards:
    return Store(root, observer or Observer()).embeddings(KEY)


def rows(n: int, start: int = 0) -> tuple[list[str], FloatArray]:
    names = [f"{number:032x}" for number in range(start, start + n)]
    return names, np.random.default_rng(start).normal(size=(n, 4)).astype(np.float32)


def found(shards: EmbeddingShards, wanted: list[str]) -> dict[str, FloatArray | str]:
    got: dict[str, FloatArray | str] = {}
    for at, x, reasons in shards.find(wanted):
        for index, row, reason in zip(at, x, reasons, strict=True):
            assert wanted[index] not in got, "found twice"
            got[wanted[index]] = reason or row
    return got


def embedding_shards(cache: Path) -> list[Path]:
    return sorted((cache / "embeddings").glob("*/shard-*.parquet"))


# Kept and found


def test_what_is_kept_is_found_again_to_the_last_bit(tmp_path):
    names, x = rows(5)
    shards_in(tmp_path).keep(names, x, [None] * 5)
    got = found(shards_in(tmp_path), [names[3], "f" * 32, names[0]])
    assert list(got) == [names[0], names[3]] or list(got) == [names[3], names[0]]
    np.testing.assert_array_equal(got[names[3]], x[3])
    np.testing.assert_array_equal(got[names[0]], x[0])


def test_a_content_that_cannot_be_decoded_has_its_reason_and_no_embedding(tmp_path):
    names, x = rows(3)
    shards_in(tmp_path).keep(names, x, [None, "cut short", None])
    got = found(shards_in(tmp_path), names)
    assert got[names[1]] == "cut short"
    np.testing.assert_array_equal(got[names[2]], x[2])
    (shard,) = (tmp_path / "embeddings").glob("*/shard-*.parquet")
    assert pd.read_parquet(shard)["embedding"].isna().tolist() == [False, True, False]


def test_of_two_rows_of_one_content_the_newer_counts(tmp_path):
    names, old = rows(3)
    new = old + 1
    shards = shards_in(tmp_path)
    shards.keep(names, old, [None] * 3)
    time.sleep(0.02)
    shards.keep(names, new, [None] * 3)
    np.testing.assert_array_equal(found(shards, names)[names[1]], new[1])


def test_shards_are_parquet_that_pandas_and_arrow_read_as_they_are(tmp_path, cache):
    write_pictures(tmp_path / "in", 6)
    x = api.embed(sorted((tmp_path / "in").iterdir()), image_size=32, shard_size=4)
    assert len(embedding_shards(cache)) == 2
    table = pd.concat([pd.read_parquet(shard) for shard in embedding_shards(cache)])
    assert sorted(map(tuple, np.stack(list(table["embedding"])))) == sorted(map(tuple, x))
    folder = embedding_shards(cache)[0].parent
    dataset = pyarrow.dataset.dataset([os.fspath(path) for path in embedding_shards(cache)])
    assert dataset.schema.field("embedding").type.list_size == 512
    assert dataset.count_rows() == 6
    assert (folder / "key.json").read_text().count("VGG16") == 1


def test_an_embedding_takes_two_kib_on_disk(tmp_path):
    key = {"n_features": 512}
    store = Store(tmp_path, Observer()).embeddings(key)
    sizes = []
    for n in (1000, 3000):
        store.keep([f"{number:032x}" for number in range(n)], np.random.rand(n, 512).astype(np.float32), [None] * n)
        sizes.append(max(path.stat().st_size for path in (tmp_path / "embeddings").glob("*/shard-*.parquet")))
    # 2048 bytes of numbers, 36 of the hash, and the levels that tell lists from nulls.
    assert (sizes[1] - sizes[0]) / 2000 < 2200


# Damage


def flip(position: float) -> object:
    def change(shard: Path) -> None:
        content = bytearray(shard.read_bytes())
        content[int(position * (len(content) - 1))] ^= 1
        shard.write_bytes(content)

    return change


DAMAGE = {
    "first byte": flip(0),
    "a hash": flip(0.02),
    "a number": flip(0.5),
    "the footer": flip(0.97),
    "last byte": flip(1),
    "cut": lambda shard: shard.write_bytes(shard.read_bytes()[:-20]),
    "empty": lambda shard: shard.write_bytes(b""),
    "text": lambda shard: shard.write_text("no parquet"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_shard_is_set_aside_and_its_rows_are_computed_again(tmp_path, cache, damage):
    files = write_pictures(tmp_path / "in", 8)
    options: dict[str, Any] = {"image_size": 32, "shard_size": 4, "batch_size": 4}
    before = api.embed(files, **options)
    shard = embedding_shards(cache)[0]
    DAMAGE[damage](shard)  # type: ignore[operator]
    observer = Recorder()
    after = api.embed(files, observer=observer, **options)
    np.testing.assert_array_equal(after, before)
    (notice,) = [notice for notice in observer.notices if "damaged" in notice]
    assert shard.name in notice
    assert (shard.parent / "damaged" / shard.name).is_file()
    assert gpu_cluster("cache", "verify").code == 0
    assert len(embedding_shards(cache)) == 2


def test_what_a_killed_writer_left_is_passed_over(tmp_path):
    names, x = rows(3)
    shards = shards_in(tmp_path)
    shards.keep(names, x, [None] * 3)
    (shards.folder / ".shard-0.parquet.1.tmp").write_bytes(b"half")
    assert len(found(shards, names)) == 3


# Two at once


@pytest.mark.slow
def test_two_jobs_at_once_on_one_store_are_both_right(tmp_path, cache):
    files = write_pictures(tmp_path / "a", 60)
    (tmp_path / "b").mkdir()
    for file in files[20:]:
        shutil.copy(file, tmp_path / "b")
    options = (
        "--image-size",
        "32",
        "--k",
        "3",
        "--k-range",
        "2:3",
        "--shard-size",
        "4",
        "--batch-size",
        "4",
        "--quiet",
    )
    jobs = [
        subprocess.Popen([COMMAND, "run", tmp_path / name, *options, "--out", tmp_path / f"run-{name}-{number}"])
        for name, number in (("a", 1), ("b", 1), ("a", 2))
    ]
    assert [job.wait(timeout=120) for job in jobs] == [0, 0, 0]
    assert gpu_cluster("cache", "verify").code == 0
    for name, number in (("a", 1), ("b", 1), ("a", 2)):
        alone = gpu_cluster("run", tmp_path / name, *options, "--no-cache", out=tmp_path / f"alone-{name}")
        one, other = (
            pd.read_csv(folder / "assignments.csv") for folder in (alone.folder, tmp_path / f"run-{name}-{number}")
        )
        assert one["cluster"].tolist() == other["cluster"].tolist()
        # An embedding depends on the batch it is in by 4e-8, the whitened space by some more.
        np.testing.assert_allclose(one["distance"], other["distance"], atol=1e-4)


# A disk that is full, a folder that is broken


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 320 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=320k", "tmpfs", place], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("a tmpfs cannot be mounted here: that takes root")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_the_job_with_what_to_do_and_the_store_still_verifies(tmp_path, tiny_disk):
    write_pictures(tmp_path / "in", 300)
    command = ("run", tmp_path / "in", *SMALL, "--shard-size", "32", "--cache")
    done = gpu_cluster(*command, tiny_disk / "store", out=tmp_path / "run")
    assert done.code == 1
    (error,) = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert "No space left on device" in error
    assert "--cache DIR" in error
    assert not (tmp_path / "run").exists()
    n_kept = sum(pq.read_metadata(shard).num_rows for shard in embedding_shards(tiny_disk / "store"))
    assert 0 < n_kept < 300
    assert gpu_cluster("cache", "verify", "--cache", tiny_disk / "store").code == 0
    shutil.copytree(tiny_disk / "store", tmp_path / "larger")
    again = gpu_cluster(*command, tmp_path / "larger", out=tmp_path / "run")
    assert again.code == 0
    assert again.json("run.json")["n_computed"] == 300 - n_kept


@pytest.mark.parametrize("kind", ["a file", "a file inside", "a link to nothing", "below a file"])
def test_a_store_that_is_no_folder_is_a_clear_error_before_work_starts(tmp_path, kind):
    write_pictures(tmp_path / "in", 5)
    store = tmp_path / "store"
    if kind == "a file":
        store.write_text("mine")
    elif kind == "a file inside":
        store.mkdir()
        (store / "embeddings").write_text("mine")
    elif kind == "a link to nothing":
        store.symlink_to("nowhere/at/all")
    else:
        store.write_text("mine")
        store = store / "below"
    done = gpu_cluster("run", tmp_path / "in", *SMALL, "--cache", store, out=tmp_path / "run")
    assert done.code == 1
    (error,) = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert "cannot use the store of embeddings" in error
    assert "--no-cache" in error
    assert not (tmp_path / "run").exists()


def test_a_store_on_a_file_system_that_is_read_only_is_a_clear_error(tmp_path, tiny_disk):
    write_pictures(tmp_path / "in", 5)
    subprocess.run(["mount", "-o", "remount,ro", tiny_disk], check=True)
    done = gpu_cluster("run", tmp_path / "in", *SMALL, "--cache", tiny_disk / "store", out=tmp_path / "run")
    assert done.code == 1
    assert "Read-only file system" in done.err


def test_a_store_that_is_removed_while_the_job_runs_is_made_again(tmp_path, cache):
    files = write_pictures(tmp_path / "in", 8)

    class Remover(Observer):
        def progress(self, stage: str, done: int, total: int) -> None:
            if (stage, done) == ("embed", 4):
                shutil.rmtree(cache, ignore_errors=True)

    x = api.embed(files, image_size=32, shard_size=4, batch_size=4, observer=Remover())
    assert x.shape == (8, 512)
    assert embedding_shards(cache)


def test_a_shard_that_another_job_prunes_while_it_is_looked_for_is_not_missed(tmp_path):
    names, x = rows(4)
    shards = shards_in(tmp_path)
    shards.keep(names, x, [None] * 4)
    listed = shards.names()
    shutil.rmtree(shards.folder)
    assert shards.read(listed[0]) is None


def test_a_folder_that_cannot_be_listed_is_a_store_error(tmp_path):
    shards = shards_in(tmp_path)
    shards.folder.parent.mkdir(exist_ok=True)
    shards.folder.write_text("in the way")
    with pytest.raises(StoreError, match="cannot use the store"):
        shards.names()


# What the scan found


def scan_shards(cache: Path) -> int:
    return len(list((cache / "scans").glob("*/shard-*.parquet")))


@pytest.mark.slow
def test_a_folder_shares_what_its_scan_found_with_those_in_it_and_above_it(tmp_path, cache):
    files = write_pictures(tmp_path / "in" / "deep", 4)
    for file in files:
        # Older than the tick of the clock, whose files the scan does not trust.
        os.utime(file, (1_000_000_000.5, 1_000_000_000.5))
    for number, folder in enumerate(("in", "in/deep", ".")):
        done = gpu_cluster("run", tmp_path / folder, *SMALL, "--quiet", out=tmp_path / f"out/{number}")
        assert done.code == 0, done.err
    assert scan_shards(cache) == 1


@pytest.mark.slow
def test_a_file_that_changed_just_now_is_not_trusted(tmp_path, cache):
    files = write_pictures(tmp_path / "in", 5)
    ahead = time.time() + 3600
    os.utime(files[0], (ahead, ahead))
    gpu_cluster("run", tmp_path / "in", *SMALL, "--quiet", out=tmp_path / "out")
    (shard,) = (cache / "scans").glob("*/shard-*.parquet")
    assert [os.path.basename(path) for path in pq.read_table(shard)["path"].to_pylist()] == [
        f"{number:03d}.png".encode() for number in range(1, 5)
    ]


# The commands


@pytest.mark.slow
def test_info_says_what_is_kept(tmp_path, cache):
    write_pictures(tmp_path / "in", 5)
    gpu_cluster("run", tmp_path / "in", *SMALL, "--quiet", out=tmp_path / "run")
    said = gpu_cluster("cache", "info")
    assert said.code == 0
    assert "5 rows in 1 shards" in said.out
    assert "backbone VGG16" in said.out
    told = json.loads(gpu_cluster("cache", "info", "--json").out)
    assert [(recipe["kind"], recipe["n_rows"]) for recipe in told] == [("embeddings", 5), ("scans", 5)]


@pytest.mark.slow
def test_verify_finds_damage_and_prune_removes_it(tmp_path, cache):
    write_pictures(tmp_path / "in", 5)
    gpu_cluster("run", tmp_path / "in", *SMALL, "--quiet", out=tmp_path / "run")
    (shard,) = embedding_shards(cache)
    shard.write_bytes(shard.read_bytes()[:-1])
    said = gpu_cluster("cache", "verify")
    assert said.code == 1
    assert "1 damaged ones were set aside" in said.out
    assert gpu_cluster("cache", "verify").code == 0
    assert gpu_cluster("cache", "prune").out == "0.0 MB freed\n"
    assert not list((cache / "embeddings").glob("*/damaged/*"))


@pytest.mark.slow
def test_prune_keeps_what_is_of_use_and_takes_what_is_not(tmp_path, cache):
    write_pictures(tmp_path / "in", 5)
    write_pictures(tmp_path / "gone", 4)
    for name in ("in", "gone"):
        gpu_cluster("run", tmp_path / name, *SMALL, "--quiet", out=tmp_path / f"run-{name}")
    shutil.rmtree(tmp_path / "gone")
    leftover = embedding_shards(cache)[0].with_name(".shard-1.parquet.9.tmp")
    leftover.write_bytes(b"half")
    os.utime(leftover, (0, 0))
    assert gpu_cluster("cache", "prune").code == 0
    assert not leftover.exists()
    assert scan_shards(cache) == 1
    gpu_cluster("run", tmp_path / "in", *SMALL, "--quiet", out=tmp_path / "again")
    assert '"n_computed": 0' in (tmp_path / "again" / "run.json").read_text()
    gpu_cluster("cache", "prune", "--unused-days", "0")
    assert embedding_shards(cache) == []


def test_a_cache_that_is_not_there_is_an_error(tmp_path):
    done = gpu_cluster("cache", "info", "--cache", tmp_path / "nowhere")
    assert done.code == 1
    assert "nothing is kept at" in done.err


def test_a_process_that_reads_the_store_ends_well_every_time(tmp_path):
    names, x = rows(50)
    shards = shards_in(tmp_path)
    for number in range(10):
        shards.keep([f"{number}{name[1:]}" for name in names], x, [None] * 50)
    code = f"""
from pathlib import Path
from gpu_cluster.cache import verify
from gpu_cluster.events import Observer
assert verify(Path({os.fspath(tmp_path)!r}), Observer()) == (10, [])
"""
    # With Arrow's threads one in some twenty aborts (apache/arrow#34314).
    codes = [subprocess.run([sys.executable, "-c", code], check=False).returncode for _ in range(5)]
    assert codes == [0] * 5

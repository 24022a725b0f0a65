"""The store: what is kept is found again, by jobs at once too, and another recipe finds nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pandas as pd
import pytest

from gpu_cluster.errors import StoreError
from gpu_cluster.events import Observer
from gpu_cluster.store.maintenance import verify
from gpu_cluster.store.store import Store
from tests.helpers import (
    shards_of,
)
from tests.store.embeddings import KEY, found, shards_in, some


def test_what_is_kept_is_found_again_byte_for_byte(root):
    hashes, x = some(5)
    # The largest, the smallest and both zeros.
    limits = np.finfo(np.float32)
    x[0, :5] = [limits.max, limits.min, limits.smallest_subnormal, 0.0, -0.0]
    shards_in(root).keep(hashes, x, [None] * 5)
    kept = found(shards_in(root), hashes)
    assert np.stack([kept[content][0] for content in hashes]).tobytes() == x.tobytes()


def test_content_with_a_reason_has_no_embedding(root):
    hashes, x = some(3)
    shards_in(root).keep(hashes, x, [None, "röd, \n damaged", None])
    kept = found(shards_in(root), hashes)
    assert [kept[content][1] for content in hashes] == [None, "röd, \n damaged", None]
    assert [bool(np.isnan(kept[content][0]).all()) for content in hashes] == [False, True, False]
    assert pd.concat(map(pd.read_parquet, shards_of(root)))["embedding"].isna().tolist() == [False, True, False]


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
        before = set(shards_of(root))
        shards.keep(hashes, x + np.float32(add), [None] * 3)
        (written,) = set(shards_of(root)) - before
        os.utime(written, (seconds, seconds))
    kept = found(shards, hashes)
    np.testing.assert_array_equal(np.stack([kept[content][0] for content in hashes]), x + np.float32(1))


def test_the_same_rows_twice_are_one_shard(root):
    hashes, x = some(3)
    shards_in(root).keep(hashes, x, [None] * 3)
    shards_in(root).keep(hashes, x, [None] * 3)
    assert len(shards_of(root)) == 1


def test_another_recipe_finds_nothing(root):
    hashes, x = some(3)
    shards_in(root).keep(hashes, x, [None] * 3)
    assert found(Store(root, Observer()).embeddings({**KEY, "backbone": "other"}), hashes) == {}


@pytest.mark.parametrize("name", [b"caf\xe9", b"content_hash=1", b"two\nlines", "写真".encode(), b"%41 #?"], ids=ascii)
def test_a_store_of_any_name_works(tmp_path, name):
    hashes, x = some(3)
    shards_in(tmp_path / os.fsdecode(name)).keep(hashes, x, [None] * 3)
    assert sorted(found(shards_in(tmp_path / os.fsdecode(name)), hashes)) == hashes


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

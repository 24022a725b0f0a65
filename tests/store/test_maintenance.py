"""`gpu-cluster cache`: what it says, what it sets aside, what it removes, and above all what it leaves alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpu_cluster as package
from gpu_cluster.config import InputConfig
from gpu_cluster.events import Observer
from gpu_cluster.images.places import open_source
from gpu_cluster.images.scan import scan
from gpu_cluster.manifest import Manifest
from gpu_cluster.store.embeddings import EmbeddingShards
from gpu_cluster.store.shards import DAMAGED, KEY_FILE, is_shard
from gpu_cluster.store.store import Store
from tests.helpers import TINY, Finished, called, n_computed, settle, write_pictures

KEY = {"backbone": "none", "n_features": 512}
DAY_S = 24 * 3600


def kept(root: Path, n: int = 5, **key: object) -> EmbeddingShards:
    """Keep n embeddings."""
    shards = Store(root, Observer()).embeddings({**KEY, **key})
    shards.keep([f"{number:032x}" for number in range(n)], np.ones((n, 512), np.float32), [None] * n)
    return shards


def shard(shards: EmbeddingShards) -> Path:
    (name,) = shards.names()
    return shards.folder / name


def scanned(folder: Path, root: Path) -> Path:
    """Scan a folder of two pictures, an hour old, and return where that is kept."""
    files = write_pictures(folder, 2)
    for file in files:
        os.utime(file, (time.time() - 3600, time.time() - 3600))
    settle()
    before = set((root / "scans").glob("*"))
    manifest = Manifest(folder, tuple(file.name for file in files))
    scan(manifest, open_source(manifest.root), InputConfig(), Observer(), store=Store(root, Observer()))
    (new,) = set((root / "scans").glob("*")) - before
    return new


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def unused(folder: Path, days: float) -> None:
    """Date a recipe's last use back."""
    os.utime(folder, (time.time() - days * DAY_S,) * 2)


def cache_command(name: str, root: Path, *options: str) -> Finished:
    return called("cache", name, "--cache", root, *options)


# info


def test_info_says_of_each_recipe_what_is_kept(tmp_path):
    shards = kept(tmp_path / "store")
    done = cache_command("info", tmp_path / "store")
    assert done.code == 0
    place, line, key = done.out.splitlines()
    assert place == str(tmp_path / "store")
    size = shard(shards).stat().st_size / 1e6
    assert re.fullmatch(
        rf"embeddings {shards.folder.name}: 5 rows in 1 shard, {size:.1f} MB, last used \d{{4}}-\d\d-\d\d", line
    )
    assert key.strip() == "backbone none, n_features 512"


def test_info_as_json_holds_all_that_is_known(tmp_path):
    shards = kept(tmp_path / "store")
    size = shard(shards).stat().st_size
    unused(shards.folder, days=3)
    (recipe,) = json.loads(cache_command("info", tmp_path / "store", "--json").out)
    # A second for the clock.
    assert recipe.pop("last_used") == pytest.approx(time.time() - 3 * DAY_S, abs=60)
    assert recipe == {
        "folder": str(shards.folder),
        "kind": "embeddings",
        "key": KEY,
        "n_shards": 1,
        "n_rows": 5,
        "n_bytes": size,
        "n_damaged": 0,
    }


def test_info_names_the_folder_of_a_scan(tmp_path):
    scanned(tmp_path / "in", tmp_path / "store")
    (recipe,) = json.loads(cache_command("info", tmp_path / "store", "--json").out)
    assert (recipe["kind"], recipe["n_rows"], recipe["key"]["root"]) == ("scans", 2, str(tmp_path / "in"))


def test_info_counts_what_was_set_aside(tmp_path):
    shards = kept(tmp_path / "store")
    damage(shard(shards))
    cache_command("verify", tmp_path / "store")
    assert "0 rows in 0 shards, 0.0 MB, 1 damaged set aside" in cache_command("info", tmp_path / "store").out


def test_info_of_an_empty_store_says_so(tmp_path):
    Store(tmp_path / "store", Observer())
    assert cache_command("info", tmp_path / "store").out.splitlines()[1:] == ["the store is empty"]
    assert json.loads(cache_command("info", tmp_path / "store", "--json").out) == []


def test_info_of_a_store_whose_name_is_not_utf8(tmp_path):
    root = tmp_path / os.fsdecode(b"caf\xe9")
    kept(root)
    done = cache_command("info", root)
    assert done.code == 0, done.err
    assert "5 rows in 1 shard" in done.out


# verify


def test_verify_of_a_store_as_it_was_written_is_0(tmp_path):
    kept(tmp_path / "store")
    scanned(tmp_path / "in", tmp_path / "store")
    done = cache_command("verify", tmp_path / "store")
    assert (done.code, done.out) == (0, "2 shards unchanged, 0 damaged shards set aside\n")
    assert re.fullmatch(r"verify: \d\.\d s\n", done.err)


def test_verify_sets_what_is_damaged_aside_with_1_and_is_0_from_then_on(tmp_path):
    kept(tmp_path / "store")
    shards = kept(tmp_path / "store", n=6)
    path = max((shards.folder / name for name in shards.names()), key=lambda path: path.stat().st_size)
    damage(path)
    first = cache_command("verify", tmp_path / "store")
    assert first.code == 1
    assert str(path) in first.out
    assert first.out.splitlines()[-1] == "1 shard unchanged, 1 damaged shard set aside"
    assert (path.parent / DAMAGED / path.name).exists()
    second = cache_command("verify", tmp_path / "store")
    assert (second.code, second.out) == (0, "1 shard unchanged, 0 damaged shards set aside\n")


@pytest.mark.parametrize("with_key", [True, False], ids=["with a key", "without"])
def test_verify_names_a_shard_of_another_recipe_with_1(tmp_path, with_key):
    mine, theirs = kept(tmp_path / "store"), kept(tmp_path / "store", n=6, backbone="another")
    os.link(shard(theirs), mine.folder / shard(theirs).name)
    if not with_key:
        (mine.folder / KEY_FILE).unlink()
    done = cache_command("verify", tmp_path / "store")
    assert done.code == 1
    assert f"it was made with the settings of another folder): {mine.folder / shard(theirs).name}" in done.out
    assert done.out.splitlines()[-1] == "2 shards unchanged, 1 damaged shard set aside"


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"n_features": null}'], ids=["empty", "list", "bare", "null"])
def test_verify_leaves_good_shards_where_their_key_cannot_be_read(tmp_path, content):
    shards = kept(tmp_path / "store")
    (key,) = shards.folder.glob("*key.json")
    key.write_bytes(content)
    done = cache_command("verify", tmp_path / "store")
    assert len(shards.names()) == 1, done.out + done.err


# prune


def test_prune_removes_what_was_set_aside_and_no_shard(tmp_path):
    shards = kept(tmp_path / "store")
    kept(tmp_path / "store", n=6)
    size = (shards.folder / shards.names()[0]).stat().st_size
    damage(shards.folder / shards.names()[0])
    cache_command("verify", tmp_path / "store")
    done = cache_command("prune", tmp_path / "store")
    assert (done.code, done.out) == (0, f"{size / 1e6:,.1f} MB freed\n")
    assert list(shards.folder.glob(f"{DAMAGED}/*")) == []
    assert len(shards.names()) == 1


def test_prune_removes_leftovers_of_killed_jobs_and_not_what_is_being_written(tmp_path):
    shards = kept(tmp_path / "store")
    old, young = (shards.folder / f".{name}.4711-0a1b2c3d.tmp" for name in (f"shard-{'5' * 32}.parquet", "_key.json"))
    for path, days in ((old, 2), (young, 0.5)):
        path.write_bytes(b"half")
        unused(path, days)
    cache_command("prune", tmp_path / "store")
    assert (old.exists(), young.exists(), len(shards.names())) == (False, True, 1)


def test_prune_removes_the_scans_of_folders_that_are_gone(tmp_path):
    there, gone = (scanned(tmp_path / name, tmp_path / "store") for name in ("there", "gone"))
    (tmp_path / "gone").rename(tmp_path / "moved")
    cache_command("prune", tmp_path / "store")
    assert (there.exists(), gone.exists()) == (True, False)


def test_prune_keeps_the_scan_of_a_folder_whose_name_is_not_utf8(tmp_path):
    found = scanned(tmp_path / os.fsdecode(b"caf\xe9"), tmp_path / "store")
    cache_command("prune", tmp_path / "store")
    assert found.exists()


def test_prune_keeps_what_no_run_has_used_for_years_unless_told(tmp_path):
    shards = kept(tmp_path / "store")
    unused(shards.folder, days=2000)
    cache_command("prune", tmp_path / "store")
    assert len(shards.names()) == 1


def test_prune_removes_recipes_unused_for_so_many_days_and_no_other(tmp_path):
    old, young = kept(tmp_path / "store", backbone="old"), kept(tmp_path / "store", backbone="young")
    unused(old.folder, days=31)
    unused(young.folder, days=29)
    cache_command("prune", tmp_path / "store", "--unused-days", "30")
    assert (old.folder.exists(), len(young.names())) == (False, 1)


@pytest.mark.slow
def test_a_run_that_takes_all_from_the_store_uses_it(tmp_path, cache):
    write_pictures(tmp_path / "in", 3)
    for _ in range(2):
        package.run(tmp_path / "in", **TINY, out=tmp_path / "run")
        (recipe,) = (cache / "embeddings").iterdir()
        last_used = recipe.stat().st_mtime
        unused(recipe, days=31)
    assert last_used == pytest.approx(time.time(), abs=60)


@pytest.mark.slow
def test_a_run_after_prune_computes_nothing(tmp_path, cache):
    write_pictures(tmp_path / "in", 3)
    given: dict[str, Any] = {**TINY, "out": tmp_path / "run"}
    package.run(tmp_path / "in", **given)
    assert called("cache", "prune").code == 0
    again = package.run(tmp_path / "in", **given)
    assert n_computed(again) == 0


@pytest.mark.parametrize("options", [(), ("--unused-days", "0")], ids=["plain", "all that is unused"])
@pytest.mark.parametrize("kind", ["scans", "embeddings"])
def test_prune_of_a_folder_that_is_no_store_removes_nothing(tmp_path, kind, options):
    # A --cache typed wrong: a hospital's folder has scans in it too.
    (tmp_path / kind / "patient" / "deep").mkdir(parents=True)
    files = [tmp_path / kind / "patient" / name for name in ("x.dcm", "deep/y.dcm", "key.json", ".a.tmp")]
    for file in files:
        file.write_text("{}")
    (tmp_path / kind / "patient" / DAMAGED).mkdir()
    files.append(tmp_path / kind / "patient" / DAMAGED / "z.dcm")
    files[-1].write_text("mine")
    for file in files:
        unused(file, days=100)
    cache_command("prune", tmp_path, *options)
    assert [file.exists() for file in files] == [True] * len(files)


def test_prune_removes_nothing_of_others_from_a_recipe(tmp_path):
    shards = kept(tmp_path / "store")
    (shards.folder / "notes.txt").write_text("mine")
    unused(shards.folder, days=31)
    cache_command("prune", tmp_path / "store", "--unused-days", "30")
    assert (shards.folder / "notes.txt").exists()
    assert not any(is_shard(path.name) for path in shards.folder.iterdir())


def test_prune_removes_nothing_of_others_whose_names_are_like_those_of_the_store(tmp_path):
    shards = kept(tmp_path / "store")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    own = shard(shards)
    taken = shutil.copy(own, elsewhere)
    linked = shards.folder / f"shard-{'7' * 32}.parquet"
    linked.symlink_to(taken)
    (shards.folder / DAMAGED).symlink_to(elsewhere)
    # A folder with a name as the store gives them, but with no key that has this digest.
    strange = tmp_path / "store" / "embeddings" / ("ab" * 8)
    strange.mkdir()
    mine = [shards.folder / "shard-mine.parquet", shards.folder / ".shard-mine.parquet.tmp"]
    mine += [strange / own.name, strange / ".shard-x.parquet.77-0a1b2c3d.tmp"]
    for file in mine:
        file.write_text("mine")
        unused(file, days=100)
    for folder in (shards.folder, strange):
        unused(folder, days=100)
    assert cache_command("prune", tmp_path / "store", "--unused-days", "30").code == 0
    assert [file.exists() for file in (*mine, Path(taken), linked)] == [True] * 6
    assert not own.exists()


@pytest.mark.parametrize("name", ["info", "verify", "prune"])
def test_a_cache_that_is_not_there_is_one_line_with_1(tmp_path, name):
    done = cache_command(name, tmp_path / "absent")
    assert (done.code, done.out) == (1, "")
    where = tmp_path / "absent"
    assert done.err == f"error: there is no store at {str(where)!r}; name the folder with --cache DIR\n"


@pytest.mark.parametrize("name", ["info", "verify", "prune"])
def test_a_store_with_a_file_in_its_way_is_one_line_with_1(tmp_path, name):
    (tmp_path / "embeddings").write_text("mine")
    done = cache_command(name, tmp_path)
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert line.startswith("error: cannot use the store of embeddings at ")


def test_fewer_than_0_unused_days_are_wrong_use(tmp_path):
    done = cache_command("prune", tmp_path, "--unused-days", "-1")
    assert done.code == 2
    assert "--unused-days" in done.err

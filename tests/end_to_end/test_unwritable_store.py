"""A full disk, and other places where no store can be: one line that says what to do, and nothing is lost."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import gpu_cluster
from gpu_cluster.errors import StoreError
from gpu_cluster.events import Observer
from gpu_cluster.store.maintenance import verify
from gpu_cluster.store.shards import DAMAGED
from gpu_cluster.store.store import Store
from tests.helpers import (
    Finished,
    called,
    embedded,
    kept,
    listing,
    n_computed,
    permissions_count,
    shards_of,
    write_pictures,
)
from tests.helpers import gpu_cluster as command

SMALL = ("--features", "vgg16", "--image-size", "32", "--k", "2", "--quiet")


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
    full = called(*given, out=tmp_path / "run")
    assert_says_what_to_do(full, disk / "store", "No space left on device")
    assert not (tmp_path / "run").exists()
    n_kept = len(kept(disk / "store"))
    assert 0 < n_kept < 48
    assert list((disk / "store").rglob("*.tmp")) == []
    assert verify(disk / "store", Observer())[1] == []
    subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
    done = called(*given, out=tmp_path / "run")
    assert done.code == 0, done.err
    assert n_computed(done) == 48 - n_kept
    assert len(kept(disk / "store")) == 48


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
    done = called("run", tmp_path / "in", *SMALL, "--cache", store, out=tmp_path / "run")
    assert_says_what_to_do(done, tmp_path / "store", words)
    # What the scan found may be kept meanwhile.
    after = {name: content for name, content in listing(tmp_path).items() if not name.startswith("store/scans")}
    assert after == {name: content for name, content in before.items() if not name.startswith("store/scans")}


def test_a_damaged_shard_that_cannot_be_set_aside_ends_the_job_and_loses_nothing(tmp_path, root):
    files = write_pictures(tmp_path / "in", 2)
    embedded(files, root)
    (shard,) = shards_of(root)
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
    with permissions_count():
        done = called("run", tmp_path / "in", *SMALL, "--cache", root, out=tmp_path / "run")
    assert_says_what_to_do(done, root, "Permission denied")


def test_a_store_on_a_disk_that_is_read_only_ends_the_job(tmp_path, disk):
    write_pictures(tmp_path / "in", 2)
    Store(disk / "store", Observer())
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    done = called("run", tmp_path / "in", *SMALL, "--cache", disk / "store", out=tmp_path / "run")
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

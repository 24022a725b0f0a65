"""Pictures that change between two runs, and while one runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gpu_cluster import run
from gpu_cluster.events import Observer
from tests.helpers import (
    TINY,
    age,
    assignments,
    kept,
    n_computed,
    picture,
    write_pictures,
)

# Whole jobs: together they take more than 10 s.
pytestmark = pytest.mark.slow


@pytest.fixture
def bitmaps(tmp_path: Path) -> list[Path]:
    """Pictures whose size does not depend on what they show."""
    files = write_pictures(tmp_path / "in", 6, suffix=".bmp")
    age(files)
    return files


def test_a_picture_edited_in_place_is_all_that_is_computed(tmp_path, bitmaps):
    first = assignments(run(tmp_path / "in", **TINY, out=tmp_path / "run"))
    picture(100).save(bitmaps[3])
    result = run(tmp_path / "in", **TINY, out=tmp_path / "run")
    assert n_computed(result) == 1
    changed = assignments(result)["content_hash"] != first["content_hash"]
    assert changed.tolist() == [False, False, False, True, False, False]


def test_an_edit_that_sets_the_time_of_change_back_is_all_that_is_computed_and_counts_from_then_on(tmp_path, bitmaps):
    results = [run(tmp_path / "in", **TINY, out=tmp_path / "run")]
    picture(100).save(bitmaps[3])
    bitmaps[4].chmod(0o600)
    age(bitmaps)
    results += [run(tmp_path / "in", **TINY, out=tmp_path / "run") for _ in range(2)]
    assert [n_computed(result) for result in results] == [6, 1, 0]
    hashes = [[facts.content_hash for facts in result.manifest.files] for result in results]
    assert hashes[2] == hashes[1] != hashes[0]


def test_a_picture_that_was_moved_is_not_computed_again(tmp_path, bitmaps):
    run(tmp_path / "in", **TINY, out=tmp_path / "run")
    bitmaps[3].rename(tmp_path / "in" / "moved.bmp")
    assert n_computed(run(tmp_path / "in", **TINY, out=tmp_path / "run")) == 0


class Edits(Observer):
    """Does something to the files when the scan is over, before any is embedded."""

    def __init__(self, edit: Callable[[], object]) -> None:
        self._edit = edit

    def stage_finished(self, stage: str, elapsed_s: float) -> None:
        if stage == "scan":
            self._edit()


def write_anew(file: Path) -> None:
    """Replace the content, and set the time of change back."""
    picture(100).save(file)
    age([file])


CHANGES: dict[str, Callable[[Path], object]] = {
    "edited": lambda file: picture(100).save(file),
    "edited, with its time set back": write_anew,
    "cut short": lambda file: os.truncate(file, 1000),
    "removed": os.unlink,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_file_that_changes_between_scan_and_embedding_is_bad_and_says_so(tmp_path, bitmaps, change):
    observer = Edits(lambda: change(bitmaps[3]))
    result = run(tmp_path / "in", **TINY, out=tmp_path / "run", observer=observer)
    assert result.manifest.bad == {3: "it changed while the job ran"}
    assert assignments(result)["path"].tolist() == ["000.bmp", "001.bmp", "002.bmp", "004.bmp", "005.bmp"]


def test_a_file_of_which_only_the_status_changes_between_scan_and_embedding_is_good(tmp_path, bitmaps):
    result = run(
        tmp_path / "in", **TINY, out=tmp_path / "run", observer=Edits(lambda: [file.chmod(0o600) for file in bitmaps])
    )
    assert result.manifest.bad == {}


def test_an_embedding_of_a_file_that_changed_is_not_kept_under_the_old_hash(tmp_path, cache, bitmaps):
    before = bitmaps[3].read_bytes()
    run(tmp_path / "in", **TINY, out=tmp_path / "run", observer=Edits(lambda: picture(100).save(bitmaps[3])))
    assert len(kept(cache)) == 5
    bitmaps[3].write_bytes(before)
    assert n_computed(run(tmp_path / "in", **TINY, out=tmp_path / "run")) == 1


def test_a_file_that_changes_while_its_shard_is_computed_is_bad_too(tmp_path, cache):
    files = write_pictures(tmp_path / "in", 6)

    class EditsLate(Observer):
        """Edits a file that is decoded already, of a shard that is not whole yet."""

        def progress(self, stage, done, total):
            if (stage, done) == ("embed", 4):
                picture(100).save(files[0])

    result = run(tmp_path / "in", **TINY, batch_size=2, out=tmp_path / "run", observer=EditsLate())
    assert result.manifest.bad == {0: "it changed while the job ran"}
    assert len(kept(cache)) == 5

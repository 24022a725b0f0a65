"""Pictures that change between two runs, and while one runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpu_cluster import run
from gpu_cluster.backend import CpuBackend
from gpu_cluster.config import EmbedConfig, StoreConfig
from gpu_cluster.embedding.embed import embed
from gpu_cluster.embedding.engines import choose_engine
from gpu_cluster.events import Observer
from gpu_cluster.images.places import open_source
from gpu_cluster.results import Embeddings
from gpu_cluster.store.store import Store
from tests.helpers import (
    SMALL_SIDE,
    TINY,
    age,
    assignments,
    embedded,
    kept,
    network,
    picture,
    scanned,
    write_pictures,
)


@pytest.fixture
def bitmaps(tmp_path: Path) -> list[Path]:
    """Pictures whose size does not depend on what they show."""
    files = write_pictures(tmp_path / "in", 6, suffix=".bmp")
    age(files)
    return files


def hashes(files: list[Path], root: Path) -> list[str | None]:
    """Return the content hashes of files as a scan finds them."""
    return [facts.content_hash for facts in scanned(files, Store(root, Observer())).files]


def test_a_picture_edited_in_place_is_all_that_is_computed(root, bitmaps):
    embedded(bitmaps, root)
    first = hashes(bitmaps, root)
    picture(100).save(bitmaps[3])
    assert embedded(bitmaps, root).n_computed == 1
    changed = [one != other for one, other in zip(hashes(bitmaps, root), first, strict=True)]
    assert changed == [False, False, False, True, False, False]


def test_an_edit_that_sets_the_time_of_change_back_is_all_that_is_computed_and_counts_from_then_on(root, bitmaps):
    assert embedded(bitmaps, root).n_computed == 6
    first = hashes(bitmaps, root)
    picture(100).save(bitmaps[3])
    bitmaps[4].chmod(0o600)
    age(bitmaps)
    assert embedded(bitmaps, root).n_computed == 1
    second = hashes(bitmaps, root)
    assert embedded(bitmaps, root).n_computed == 0
    assert hashes(bitmaps, root) == second != first


def test_a_picture_that_was_moved_is_not_computed_again(root, bitmaps):
    embedded(bitmaps, root)
    moved = bitmaps[3].rename(bitmaps[3].with_name("moved.bmp"))
    assert embedded([*bitmaps[:3], *bitmaps[4:], moved], root).n_computed == 0


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


def embedded_after(
    edit: Callable[[], object], files: list[Path], root: Path, observer: Observer | None = None, **options: Any
) -> Embeddings:
    """Scan files, do something to them, and embed them."""
    store = Store(root, Observer())
    manifest = scanned(files, store)
    edit()
    config = EmbedConfig(image_size=SMALL_SIDE.image_size, **options)
    engine = choose_engine(CpuBackend(), network(), config)
    source = open_source(files[0].parent)
    return embed(manifest, source, engine, store=store, store_config=StoreConfig(), observer=observer or Observer())


CHANGED = "it changed while the job ran"


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_file_that_changes_between_scan_and_embedding_is_bad_and_says_so(root, bitmaps, change):
    assert embedded_after(lambda: change(bitmaps[3]), bitmaps, root).bad == {3: CHANGED}


def test_a_file_that_changes_between_scan_and_embedding_has_no_row_in_the_tables(tmp_path, bitmaps):
    observer = Edits(lambda: picture(100).save(bitmaps[3]))
    result = run(tmp_path / "in", **TINY, out=tmp_path / "run", observer=observer)
    assert result.manifest.bad == {3: CHANGED}
    assert assignments(result)["path"].tolist() == ["000.bmp", "001.bmp", "002.bmp", "004.bmp", "005.bmp"]


def test_a_file_of_which_only_the_status_changes_between_scan_and_embedding_is_good(root, bitmaps):
    found = embedded_after(lambda: [file.chmod(0o600) for file in bitmaps], bitmaps, root)
    assert found.bad == {}


def test_an_embedding_of_a_file_that_changed_is_not_kept_under_the_old_hash(root, bitmaps):
    before = bitmaps[3].read_bytes()
    embedded_after(lambda: picture(100).save(bitmaps[3]), bitmaps, root)
    assert len(kept(root)) == 5
    bitmaps[3].write_bytes(before)
    assert embedded(bitmaps, root).n_computed == 1


def test_a_file_that_changes_while_its_shard_is_computed_is_bad_too(root, tmp_path):
    files = write_pictures(tmp_path / "in", 6)

    class EditsLate(Observer):
        """Edits a file that is decoded already, of a shard that is not whole yet."""

        def progress(self, stage, done, total):
            if (stage, done) == ("embed", 4):
                picture(100).save(files[0])

    found = embedded_after(lambda: None, files, root, EditsLate(), batch_size=2)
    assert found.bad == {0: CHANGED}
    assert len(kept(root)) == 5

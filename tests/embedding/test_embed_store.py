"""Embeddings and the store: nothing is computed twice, and only what is right is kept."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import gpu_cluster
from gpu_cluster.errors import DataError
from gpu_cluster.events import Observer
from gpu_cluster.store.embeddings import EmbeddingShards
from gpu_cluster.store.maintenance import verify
from gpu_cluster.store.shards import read_key
from tests.helpers import age, embedded, kept, picture, shards_of, without_override, write_pictures


def test_a_second_job_computes_nothing_and_has_the_same_embeddings_bit_by_bit(tmp_path, root):
    files = write_pictures(tmp_path / "in", 5)
    first, second = embedded(files, root), embedded(files, root)
    assert (first.n_computed, second.n_computed) == (5, 0)
    np.testing.assert_array_equal(second.x.whole(), first.x.whole())


def test_a_picture_moved_and_renamed_is_not_computed_again(tmp_path, root):
    files = write_pictures(tmp_path / "in", 3)
    embedded(files, root)
    (tmp_path / "there").mkdir()
    moved = [file.rename(tmp_path / "there" / f"x{file.name}") for file in files]
    assert embedded(moved, root).n_computed == 0


def test_forced_embeddings_are_computed_again_and_count_from_then_on(tmp_path, root):
    files = write_pictures(tmp_path / "in", 3)
    right = embedded(files, root)
    (shard,) = shards_of(root)
    table = pq.read_table(shard)
    hashes = table["content_hash"].to_pylist()
    # What an earlier version might have got wrong.
    wrong = np.zeros((3, 1024), np.float32)
    EmbeddingShards(shard.parent, read_key(shard.parent), Observer()).keep(hashes, wrong, [None] * 3)
    assert not embedded(files, root).x.whole().any()
    assert embedded(files, root, force=True).n_computed == 3
    np.testing.assert_array_equal(embedded(files, root).x.whole(), right.x.whole())


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
    assert gpu_cluster.embed(tmp_path / "odd.tif", features="vgg16", image_size=32, max_pixels=33 * 33).shape == (
        1,
        1024,
    )


def test_a_reason_that_comes_of_the_options_is_not_kept(tmp_path):
    # Of 20,001 pixels at most the header has fewer, the picture inside more.
    (tmp_path / "icon.icns").write_bytes(bigger_inside())
    with pytest.raises(DataError, match="more pixels inside than --max-pixels allows"):
        gpu_cluster.embed(tmp_path / "icon.icns", image_size=32, max_pixels=20_001)
    with pytest.raises(DataError, match="This is not one of the allowed sizes"):
        gpu_cluster.embed(tmp_path / "icon.icns", image_size=32)


# A folder becomes unreadable when the scan is done and readable again when all is embedded, as a network drive might.
AWAY_WHILE_EMBEDDING = """
import sys
from pathlib import Path
from gpu_cluster.events import Observer
from tests.helpers import embedded

class Away(Observer):
    def progress(self, stage, done, total):
        if stage == "scan" and done == total:
            files[1].parent.chmod(0o000)

root, *files = map(Path, sys.argv[1:])
print(embedded(files, root, Away()).bad)
files[1].parent.chmod(0o755)
"""


@pytest.mark.slow
def test_a_picture_that_could_not_be_read_once_is_read_again_by_the_next_job(tmp_path, root):
    files = write_pictures(tmp_path / "in", 4)
    (tmp_path / "in" / "away").mkdir()
    files[1] = files[1].rename(tmp_path / "in" / "away" / "001.png")
    arguments = [sys.executable, "-c", AWAY_WHILE_EMBEDDING, root, *files]
    done = subprocess.run(
        arguments,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=without_override,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout == "{1: 'it changed while the job ran'}\n", done.stderr
    assert len(kept(root)) == 3
    again = embedded(files, root)
    assert (again.bad, again.n_computed) == ({}, 1)


class Changing(Observer):
    """Changes files as soon as the first batch is embedded."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = list(files)

    def progress(self, stage: str, done: int, total: int) -> None:
        for file in self._files if stage == "embed" else []:
            picture(1000).save(file)
            os.utime(file, (1, 1))


def test_a_picture_that_changes_while_the_job_runs_is_bad_and_not_kept(tmp_path, root):
    files = age(write_pictures(tmp_path / "in", 4))
    first = embedded(files, root, Changing(files[1:2]))
    assert first.bad == {1: "it changed while the job ran"}
    assert len(kept(root)) == 3


def test_a_picture_that_is_gone_by_now_is_bad_and_no_reason_is_kept(tmp_path, root):
    files = write_pictures(tmp_path / "in", 3)

    class Removing(Observer):
        def progress(self, stage: str, done: int, total: int) -> None:
            if stage == "scan" and done == total:
                files[1].unlink()

    found = embedded(files, root, Removing())
    assert found.bad == {1: "it changed while the job ran"}
    assert len(kept(root)) == 2


def test_pictures_that_all_change_while_the_job_runs_leave_no_shard(tmp_path, root):
    files = age(write_pictures(tmp_path / "in", 2))
    embedded(files, root, Changing(files))
    assert shards_of(root) == []


def test_a_store_deleted_while_a_job_runs_is_made_again(tmp_path, root):
    files = write_pictures(tmp_path / "in", 6)

    class Deleting(Observer):
        def progress(self, stage: str, done: int, total: int) -> None:
            if stage == "embed" and done == 4:
                shutil.rmtree(root)

    job = embedded(files, root, Deleting(), shard_size=2)
    right = embedded(files, None, shard_size=2)
    np.testing.assert_array_equal(job.x.whole(), right.x.whole())
    assert len(kept(root)) == 4
    assert verify(root, Observer())[1] == []

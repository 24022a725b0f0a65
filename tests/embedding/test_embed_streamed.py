"""A matrix that the device does not hold stays in shards: killed jobs go on, and a full disk is said in words."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu_cluster.backend import CpuBackend, HeldRows
from gpu_cluster.config import EmbedConfig, StoreConfig
from gpu_cluster.embedding.embed import embed
from gpu_cluster.embedding.extractors import Extractor
from gpu_cluster.errors import InterruptedJobError, StoreError
from gpu_cluster.events import Observer
from gpu_cluster.images.places import open_source
from gpu_cluster.results import Embeddings
from gpu_cluster.store.store import Store
from gpu_cluster.store.stored import StoredRows
from tests.embedding.test_embed_stopped import ShowsTheBatch
from tests.forks import run_program
from tests.helpers import TINY_OPTIONS, called, kept, listing, scanned, shards_of, write_pictures

N = 40
EXTRACTOR = Extractor({"features": "mean colours and those of the batch"}, 4, lambda _precision: lambda x: x)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pictures of which one is broken, and so is its copy; another has a copy too."""
    folder = tmp_path_factory.mktemp("pictures")
    found = write_pictures(folder, N)
    found[9].write_bytes(found[9].read_bytes()[:-60])
    for number in (3, 9):
        (folder / f"copy{number}.png").write_bytes(found[number].read_bytes())
    return sorted(folder.iterdir())


@pytest.fixture
def _streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CpuBackend, "holds", lambda *_: False)


def embedded(files: list[Path], root: Path | None, scratch: Path | None = None, **options: Any) -> Embeddings:
    observer = options.pop("observer", Observer())
    store = None if root is None else Store(root, observer)
    return embed(
        scanned(files, store),
        open_source(files[0].parent),
        ShowsTheBatch(CpuBackend(), EXTRACTOR, EmbedConfig(batch_size=4)),
        store=store,
        store_config=StoreConfig(**{"shard_size": 16, **options}),
        observer=observer,
        scratch=scratch,
    )


@pytest.fixture(scope="module")
def held(files: list[Path]) -> Embeddings:
    found = embedded(files, None)
    assert isinstance(found.x, HeldRows)
    return found


def assert_same(found: Embeddings, held: Embeddings) -> None:
    assert isinstance(found.x, StoredRows)
    np.testing.assert_array_equal(found.x.whole(), held.x.whole())
    np.testing.assert_array_equal(found.rows, held.rows)
    assert found.bad == held.bad


@pytest.mark.usefixtures("_streamed")
def test_what_stays_in_the_store_is_the_matrix_with_its_bad_files_and_copies(files, held, root):
    assert len(held.bad) == 2
    # Some of them, a shard, are in the store before.
    embedded(files[:16], root)
    first, again = embedded(files, root), embedded(files, root)
    assert (first.n_computed > 0, again.n_computed) == (True, 0)
    assert_same(first, held)
    assert_same(again, held)


@pytest.mark.usefixtures("_streamed")
def test_without_a_store_it_stays_in_the_folder_that_is_given(files, held, tmp_path):
    scratch = tmp_path / "embeddings"
    found = embedded(files, None, scratch)
    assert_same(found, held)
    assert len(list(scratch.glob("shard-*.parquet"))) == 3


@pytest.mark.usefixtures("_streamed")
def test_forced_embeddings_are_the_new_ones(files, held, root):
    embedded(files, root)
    assert_same(embedded(files, root, force=True), held)


class StopAtOnce(Observer):
    n = 0

    def progress(self, stage: str, done: int, total: int) -> None:
        self.n += stage == "embed"

    def stopping(self) -> bool:
        return self.n > 0


@pytest.mark.usefixtures("_streamed")
def test_a_stop_without_a_store_names_no_folder_that_would_be_gone(files, tmp_path):
    with pytest.raises(InterruptedJobError) as stopped:
        embedded(files, None, tmp_path / "embeddings", observer=StopAtOnce(), no_cache=True)
    assert str(stopped.value).endswith("embedded: with --no-cache nothing is kept, and the same command begins again")


# Even the smallest matrix is too large to be held.
STREAMED = """
import os, signal, sys
from pathlib import Path
from gpu_cluster.backend import CpuBackend
from tests.embedding.test_embed_streamed import Observer, embedded
CpuBackend.holds = lambda *_: False

class Killed(Observer):
    def progress(self, stage, done, total):
        if stage == "embed" and done > 30:
            os.kill(os.getpid(), signal.SIGKILL)

embedded(sorted(Path(sys.argv[1]).iterdir()), Path(sys.argv[2]), observer=Killed())
"""


@pytest.mark.usefixtures("_streamed")
def test_a_killed_stream_goes_on_where_it_was(files, held, root):
    done = run_program(STREAMED, files[0].parent, root, cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(kept(root)) == 16
    found = embedded(files, root)
    assert found.n_computed == N - 16
    assert_same(found, held)
    assert len(shards_of(root)) == 3


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for 64 KiB."""
    folder = tmp_path / "full"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a full disk needs a mount, which is not allowed here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.usefixtures("_streamed")
def test_a_full_disk_without_a_store_says_where_and_what_to_do(files, full):
    (full / "filling").write_bytes(bytes(60_000))
    with pytest.raises(StoreError) as error:
        embedded(files, None, full / "embeddings", no_cache=True)
    assert str(error.value) == (
        f"cannot write embeddings to '{full / 'embeddings'}', where they lie until the job ends: No space left on "
        "device; nothing was left: make room there, choose a place with more room with --out, or leave out --no-cache, "
        "so that the store keeps them"
    )
    assert [path for path in (full / "embeddings").iterdir() if path.suffix == ".parquet"] == []


@pytest.mark.usefixtures("_streamed")
def test_a_store_on_a_full_disk_keeps_what_it_has(files, full):
    embedded(files[:8], full / "store")
    n_kept = len(kept(full / "store"))
    room = os.statvfs(full)
    (full / "filling").write_bytes(bytes(room.f_bavail * room.f_bsize))
    with pytest.raises(StoreError, match="No space left on device; what it holds stays as it is"):
        embedded(files, full / "store")
    assert len(kept(full / "store")) == n_kept == 8


@pytest.mark.usefixtures("_streamed")
def test_a_run_without_a_store_streams_and_leaves_only_its_results(tmp_path, files):
    # All of them but --quiet.
    done = called("run", files[0].parent, "--no-cache", *TINY_OPTIONS[1:], out=tmp_path / "runs" / "one")
    assert done.code == 0, done.err
    assert "of memory, besides the network's" in done.out
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["one"]
    assert "embeddings" not in os.listdir(tmp_path / "runs" / "one")


@pytest.mark.usefixtures("_streamed")
def test_a_run_without_a_store_on_a_full_disk_ends_with_an_error_and_leaves_nothing(full, files):
    (full / "filling").write_bytes(bytes(40_000))
    done = called("run", files[0].parent, "--no-cache", *TINY_OPTIONS, out=full / "one")
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith("error: cannot write embeddings to ")
    assert "Traceback" not in done.err
    assert list(listing(full)) == ["filling"]

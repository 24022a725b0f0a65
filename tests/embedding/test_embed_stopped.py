"""Embedding that is stopped or killed after any batch: it goes on with the batches that it would have had."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu_cluster.backend import CpuBackend, IntArray
from gpu_cluster.config import EmbedConfig, InputConfig, StoreConfig
from gpu_cluster.embedding.embed import embed
from gpu_cluster.embedding.engines import Engine
from gpu_cluster.embedding.extractors import Extractor
from gpu_cluster.embedding.tasks import EngineRecipe
from gpu_cluster.embedding.work import Elsewhere
from gpu_cluster.errors import InterruptedJobError
from gpu_cluster.events import Observer
from gpu_cluster.executor import Reporter, Serial, Stage
from gpu_cluster.images.places import open_source
from gpu_cluster.images.source import Picture
from gpu_cluster.results import Embeddings
from gpu_cluster.store.store import Store
from tests.embedding.mean_colours import MeanColours, decoded
from tests.helpers import age, kept, scanned, shards_of, write_pictures

BATCH, SHARD = 3, 8
# The sizes of the batches of 22 contents, a line for each shard; the last batch of each is that of the second look.
SIZES = (
    *(3, 3, 2),
    *(3, 3, 1, 1),
    *(3, 2, 1),
)
N, N_BATCHES = sum(SIZES), len(SIZES)
# The last batch of the second shard is the broken picture, which has no embedding.
BROKEN = 7


class ShowsTheBatch(MeanColours):
    """Gives each picture a number that tells all pictures of its batch; like TensorFlow it cannot decode everything."""

    def squares(self, pictures: Sequence[Picture], configs: Any) -> Iterator[tuple[IntArray, tuple[Any, ...]]]:
        own = [at for at, one in enumerate(pictures) if one.suffix == ".png" and not self._broken(one)]
        for first in range(0, len(own), self.batch_size):
            part = own[first : first + self.batch_size]
            yield np.array(part), (np.stack([self.square(decoded(pictures[at])) for at in part]),)

    def features(self, pixels: Any) -> Any:
        own = super().features(pixels)
        return np.column_stack([own, np.full(len(own), own.sum(dtype=np.float64), np.float32)])

    @staticmethod
    def _broken(picture: Picture) -> bool:
        try:
            decoded(picture)
        except Exception:  # noqa: BLE001 - whatever Pillow raises
            return True
        return False


class Stop(Observer):
    """Asks to stop when so many batches are embedded."""

    def __init__(self, n: int) -> None:
        self.n = n

    def progress(self, stage: str, done: int, total: int) -> None:
        self.n -= stage == "embed"

    def stopping(self) -> bool:
        return self.n <= 0


class KilledError(Exception):
    """The job ends here, and writes nothing more."""


class Kill(Stop):
    """Ends the job when so many batches are embedded, before anything else is written."""

    def progress(self, stage: str, done: int, total: int) -> None:
        super().progress(stage, done, total)
        if self.n <= 0:
            raise KilledError

    def stopping(self) -> bool:
        return False


class CtrlC(Kill):
    """Raises where Ctrl-C in Python may: when so many batches are embedded."""

    def progress(self, stage: str, done: int, total: int) -> None:
        try:
            super().progress(stage, done, total)
        except KilledError:
            raise KeyboardInterrupt from None


def engine() -> ShowsTheBatch:
    extractor = Extractor({"features": "mean colours and those of the batch"}, 4, lambda _precision: lambda x: x)
    return ShowsTheBatch(CpuBackend(), extractor, EmbedConfig(batch_size=BATCH))


def embedded(
    files: Sequence[Path],
    root: Path | None,
    observer: Observer | None = None,
    *,
    elsewhere: Elsewhere | None = None,
    **store: Any,
) -> Embeddings:
    observer = observer or Observer()
    opened = None if root is None else Store(root, observer)
    return embed(
        scanned(files, opened),
        open_source(files[0].parent),
        engine(),
        store=opened,
        store_config=StoreConfig(**{"shard_size": SHARD, **store}),
        observer=observer,
        elsewhere=elsewhere,
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pictures of which some are for the second look, one is broken and one is a copy."""
    folder = tmp_path_factory.mktemp("pictures")
    found = write_pictures(folder, 22)
    for number in (1, 4, 18):
        found[number] = found[number].rename(found[number].with_suffix(".tif"))
    found[9].write_bytes(found[9].read_bytes()[:-60])
    (folder / "copy.png").write_bytes(found[3].read_bytes())
    return age(sorted(folder.iterdir()))


@pytest.fixture(autouse=True, params=["held", "in shards"])
def _where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a store, the embeddings are held in memory, or stay in its shards."""
    if request.param == "in shards":
        monkeypatch.setattr(CpuBackend, "holds", lambda *_: False)


@pytest.fixture(scope="module")
def alone(files: list[Path]) -> Embeddings:
    """What the job ends with that nobody stops."""
    return embedded(files, None)


def assert_same(found: Embeddings, expected: Embeddings) -> None:
    np.testing.assert_array_equal(found.x.whole(), expected.x.whole())
    np.testing.assert_array_equal(found.rows, expected.rows)
    assert found.bad == expected.bad


def test_a_picture_shows_in_which_batch_it_was_embedded(files, alone):
    # Or else these tests would show nothing.
    assert len(alone.bad) == 1
    assert not np.array_equal(embedded(files, None, shard_size=SHARD - 1).x.whole(), alone.x.whole())


@pytest.mark.parametrize("n", range(1, N_BATCHES + 1))
def test_a_job_stopped_after_any_batch_keeps_it_and_ends_as_one_left_alone(files, alone, root, n):
    with pytest.raises(InterruptedJobError, match="run the same command again to go on"):
        embedded(files, root, Stop(n))
    assert len(kept(root)) == sum(SIZES[:n])
    rerun = embedded(files, root)
    assert_same(rerun, alone)
    assert rerun.n_computed == N - sum(SIZES[:n]) - (n < BROKEN)
    assert len(kept(root)) == len(set(kept(root))) == N


# Within each shard, at the end of the first one, with the broken picture, and at the end.
@pytest.mark.parametrize("n", [1, 3, 4, BROKEN, N_BATCHES - 1, N_BATCHES])
def test_a_job_killed_after_any_batch_ends_as_one_left_alone(files, alone, root, n):
    with pytest.raises(KilledError):
        embedded(files, root, Kill(n))
    n_kept = len(kept(root))
    assert n_kept in (0, SHARD, 2 * SHARD)
    rerun = embedded(files, root)
    assert_same(rerun, alone)
    assert rerun.n_computed == N - n_kept - (n_kept < sum(SIZES[:BROKEN]))


def test_a_job_stopped_after_each_batch_ends_as_one_left_alone(files, alone, root):
    for _ in range(N_BATCHES):
        # What is read from the store counts as progress too: a stop there is before the first batch.
        with pytest.raises(InterruptedJobError):
            embedded(files, root, Stop(len(shards_of(root)) + 1))
    last = embedded(files, root)
    assert last.n_computed == 0
    assert_same(last, alone)


# With a quarter of the pictures in the store, there are two batches less: after the first, within and after the last.
@pytest.mark.parametrize("n", [1, 4, N_BATCHES - 2])
@pytest.mark.parametrize("end", [Stop, Kill])
def test_a_job_that_found_some_of_its_pictures_in_the_store_ends_as_one_left_alone(files, tmp_path, end, n):
    for root in (tmp_path / "stopped", tmp_path / "alone"):
        embedded(files[::4], root)
    with pytest.raises((InterruptedJobError, KilledError)):
        embedded(files, tmp_path / "stopped", end(1 + n))
    assert_same(embedded(files, tmp_path / "stopped"), embedded(files, tmp_path / "alone"))


def test_a_job_interrupted_in_python_keeps_the_batches_that_are_complete(files, root):
    with pytest.raises(KeyboardInterrupt):
        embedded(files, root, CtrlC(2))
    assert len(kept(root)) == 2 * BATCH


def test_pictures_added_here_and_there_are_all_that_is_computed_and_are_written_together(files, root):
    added = {files[0], files[10], files[20]}
    embedded([file for file in files if file not in added], root)
    before = shards_of(root)
    assert embedded(files, root).n_computed == 3
    assert len(shards_of(root)) == len(before) + 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "; they are kept in '{folder}': run the same command again to go on"),
        (
            {"force": True},
            "; they are kept in '{folder}': leave out --force to go on; with --force the same command begins again",
        ),
        ({"no_cache": True}, ": with --no-cache nothing is kept, and the same command begins again"),
    ],
    ids=["kept", "--force", "--no-cache"],
)
def test_a_job_that_was_stopped_says_how_to_go_on(files, root, options, words):
    with pytest.raises(InterruptedJobError) as stopped:
        embedded(files, None if "no_cache" in options else root, Stop(1), **options)
    folder = shards_of(root)[0].parent if shards_of(root) else None
    assert str(stopped.value) == f"interrupted with 3 of 22 pictures embedded{words.format(folder=folder)}"


def test_a_job_stopped_before_its_first_batch_names_no_folder_where_anything_is_kept(files, root):
    class Stopped(Observer):
        def stopping(self) -> bool:
            return True

    with pytest.raises(InterruptedJobError, match=r"^interrupted with 0 of 22 pictures embedded: run the same command"):
        embedded(files, root, Stopped())


@dataclass(frozen=True)
class Recipe(EngineRecipe):
    """Makes the engine whose numbers tell the batch."""

    def make(self) -> Engine:
        return engine()


class Hasty(Serial):
    """Tells each task to end after its first batch, as a worker does that lost its scheduler for a while."""

    is_remote = True

    def map_in_order(self, function: Any, tasks: Any, stage: Stage) -> Iterator[Any]:
        return (function(task, EndsNow()) for task in tasks)


class EndsNow(Reporter):
    def progress(self, done: int) -> None:
        pass

    def stopping(self) -> bool:
        return True


def test_what_a_task_did_not_embed_is_given_out_again_in_the_same_batches(files, alone, root):
    found = embedded(files, root, elsewhere=Elsewhere(Hasty(), Recipe(), InputConfig()))
    assert_same(found, alone)

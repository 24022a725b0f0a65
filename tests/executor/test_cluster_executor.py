"""Tasks in the workers of a cluster: order, retries, and what happens to tasks that end their workers.

The workers are forked, as many of them are started; `end_to_end/test_workers.py` has some that are spawned.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from gpu_cluster.config import ExecutorConfig, InputConfig, StoreConfig
from gpu_cluster.embedding.embed import embed
from gpu_cluster.embedding.work import Elsewhere
from gpu_cluster.errors import ConfigError, StoreError
from gpu_cluster.executor import Executor, Lost, RefusedWorkerError, Reporter, Stage, opened
from gpu_cluster.images.places import open_source
from gpu_cluster.images.scan import scan
from gpu_cluster.manifest import Manifest
from gpu_cluster.store.store import Store
from tests.clusters import forked_workers, wait_for
from tests.executor.killers import KillerRecipe, KillingFiles
from tests.helpers import Noticing, kept, scanned, write_pictures

dask = pytest.importorskip("dask", reason="needs the extra dask")
pytest.importorskip("distributed", reason="needs the extra dask")

# Clusters that are started, and workers that die: together they take more than 10 s.
pytestmark = pytest.mark.slow


class Watching(Noticing):
    """Keeps the progress too, and asks to stop when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[int] = []
        self.stops = False

    def progress(self, stage: str, done: int, total: int) -> None:
        self.done.append(done)

    def stopping(self) -> bool:
        return self.stops


@pytest.fixture(scope="module", autouse=True)
def _forked() -> Iterator[None]:
    with forked_workers():
        yield


@pytest.fixture(scope="module")
def _opened(_forked: None) -> Iterator[tuple[Executor, Watching]]:
    observer = Watching()
    with opened(ExecutorConfig(workers=3), "cpu", observer) as executor:
        yield executor, observer


@pytest.fixture
def workers(_opened: tuple[Executor, Watching]) -> Executor:
    """Three workers, which all these tests share; a machine of two cores has none for the third one alone."""
    return _opened[0]


def results(executor: Executor, function: Callable[..., Any], tasks: list[Any], observer: Watching) -> list[Any]:
    return list(executor.map_in_order(function, tasks, Stage("embed", observer, len(tasks))))


def slow_at_first(task: int, reporter: Reporter) -> int:
    time.sleep(0.5 if task == 0 else 0.01)
    reporter.progress(1)
    return task * task


def test_results_come_in_the_order_of_the_tasks_and_progress_never_steps_back(workers):
    observer = Watching()
    assert results(workers, slow_at_first, list(range(8)), observer) == [task * task for task in range(8)]
    assert observer.done == sorted(observer.done)
    assert observer.done[-1] == 8


def test_the_tasks_are_shared_out(workers):
    def tasks() -> dict[str, int]:
        return {address: share.n_tasks for address, share in workers.shares().get("embed", {}).items()}

    before = tasks()
    results(workers, slow_at_first, list(range(12)), Watching())
    done = {address: n - before.get(address, 0) for address, n in tasks().items()}
    assert sum(done.values()) == 12
    assert sum(n > 0 for n in done.values()) == 3


def without_room(task: int, reporter: Reporter) -> int:
    raise StoreError(f"no room for {task}")


def test_what_a_task_raises_is_raised_by_the_job(workers):
    with pytest.raises(StoreError, match="no room for 3"):
        results(workers, without_room, [3], Watching())
    assert results(workers, slow_at_first, [5], Watching()) == [25]


def dies_once(marker: Path, reporter: Reporter) -> str:
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def dies(task: int, reporter: Reporter) -> int:
    if task == 1:
        os._exit(11)
    return task


def test_a_task_whose_worker_is_killed_is_done_by_another(workers, tmp_path):
    observer = Watching()
    assert results(workers, dies_once, [tmp_path / "marker"], observer) == ["done"]
    assert sum("died during a task of embed; others do it" in notice for notice in observer.notices) == 1


def test_a_task_that_ends_its_workers_is_lost_and_the_others_are_not(workers):
    found = results(workers, dies, [0, 1, 2], Watching())
    assert [found[0], found[2]] == [0, 2]
    assert isinstance(found[1], Lost)
    assert found[1].reason.startswith("2 workers died one after the other, the last one was ")


def test_a_worker_that_dies_before_its_result_is_fetched_costs_nothing_but_the_task(workers, tmp_path, monkeypatch):
    real = workers._fetch
    killed: list[int] = []

    def fetch(future: Any) -> None:
        if future.status == "finished" and not killed:
            (pid,) = {int(file.name) for file in tmp_path.iterdir()}
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)
        real(future)

    monkeypatch.setattr(workers, "_fetch", fetch)
    assert results(workers, notes_its_process, [tmp_path], Watching()) == ["done"]
    assert {int(file.name) for file in tmp_path.iterdir()} >= set(killed)
    assert len(killed) == 1


def notes_its_process(folder: Path, reporter: Reporter) -> str:
    (folder / str(os.getpid())).touch()
    return "done"


def until_told(file: Path, reporter: Reporter) -> str:
    file.touch()
    while not reporter.stopping():
        time.sleep(0.05)
    return file.name


def test_a_job_that_is_asked_to_stop_gets_what_its_tasks_in_work_have(tmp_path):
    class Stopping(Watching):
        def stopping(self) -> bool:
            return (tmp_path / "begun").exists()

    with opened(ExecutorConfig(workers=1), "cpu", Watching()) as own:
        assert results(own, until_told, [tmp_path / "begun", tmp_path / "never"], Stopping()) == ["begun"]
    assert not (tmp_path / "never").exists()


def test_tasks_wait_while_no_worker_is_there(workers):
    pids = {pid for (pid,) in results(workers, own_process, [0, 1, 2, 3], Watching())}
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert results(workers, slow_at_first, [0, 1, 2], Watching()) == [0, 1, 4]


def own_process(task: int, reporter: Reporter) -> list[int]:
    time.sleep(0.3)
    return [os.getpid()]


def fits_nobody(task: int, reporter: Reporter) -> int:
    raise RefusedWorkerError("has 1 and not 2 as this job")


def test_when_all_workers_are_refused_the_job_ends_and_says_why():
    why = r"no worker can be used: the worker \S+ has 1 and not 2 as this job"
    with opened(ExecutorConfig(workers=1), "cpu", Watching()) as own, pytest.raises(ConfigError, match=why):
        results(own, fits_nobody, [0], Watching())


def test_a_picture_that_kills_its_worker_is_found_and_all_others_are_embedded(workers, tmp_path):
    files = write_pictures(tmp_path / "in", 12)
    store, observer = Store(tmp_path / "store", Watching()), Watching()
    manifest = scanned(files, store)
    content = manifest.files[5].content_hash

    def found(recipe: KillerRecipe, elsewhere: Elsewhere | None, store: Store) -> Any:
        engine = recipe.make()
        return embed(
            manifest,
            open_source(files[0].parent),
            engine,
            store=store,
            store_config=StoreConfig(shard_size=6),
            observer=observer,
            elsewhere=elsewhere,
        )

    recipe = KillerRecipe(str(content))
    lost = found(recipe, Elsewhere(workers, recipe, InputConfig()), store)
    right = found(KillerRecipe(), None, Store(tmp_path / "other", Watching()))
    assert list(lost.bad) == [5]
    assert lost.bad[5].startswith("it ends the process that embeds it: 2 workers died one after the other")
    assert lost.rows.tolist() == [row for row in range(12) if row != 5]
    np.testing.assert_array_equal(lost.x.whole(), np.delete(right.x.whole(), 5, axis=0))
    assert sorted(kept(tmp_path / "store")) == sorted(
        str(facts.content_hash) for row, facts in enumerate(manifest.files) if row != 5
    )


def test_a_file_that_kills_its_worker_in_the_scan_is_found_and_all_others_are_scanned(workers, tmp_path):
    files = write_pictures(tmp_path / "in", 5)
    manifest = Manifest(tmp_path / "in", tuple(file.name for file in files))
    found = scan(manifest, KillingFiles(tmp_path / "in"), InputConfig(), Watching(), executor=workers)
    assert list(found.bad) == [3]
    assert found.bad[3].startswith("it ends the process that reads its header: 2 workers died one after the other")
    assert [bool(facts.content_hash) for facts in found.files] == [True, True, True, False, True]


class Traced:
    """Leaves a file named after each process that unpickles it; some processes cannot."""

    def __init__(self, folder: Path, only: int | None = None) -> None:
        self.folder = folder
        self.only = only

    def __reduce__(self) -> Any:
        return _traced, (self.folder, self.only)


def _traced(folder: Path, only: int | None) -> Traced:
    (folder / str(os.getpid())).touch()
    if only not in (None, os.getpid()):
        raise ImportError("no card here")
    return Traced(folder, only)


def takes_anything(task: Any, reporter: Reporter) -> int:
    return os.getpid()


def test_a_task_is_unpickled_by_its_worker_only(workers, tmp_path):
    # The scheduler of a local cluster is in this process. One of another cluster may have no card for arrays of a card.
    found = results(workers, takes_anything, [Traced(tmp_path)], Watching())
    assert [str(pid) for pid in found] == [file.name for file in tmp_path.iterdir()]


def test_a_worker_that_cannot_load_a_task_is_refused(tmp_path):
    with (
        opened(ExecutorConfig(workers=1), "cpu", Watching()) as own,
        pytest.raises(ConfigError, match=r"cannot load a task of this job \(ImportError: no card here\)"),
    ):
        results(own, takes_anything, [Traced(tmp_path, only=os.getpid())], Watching())


def test_a_token_that_another_job_removes_at_this_moment_is_no_error(workers, tmp_path):
    (tmp_path / ".gpu-cluster-gone").symlink_to(tmp_path / "nothing")
    workers.share(tmp_path, "the store")


# A scheduler in an environment without gpu-cluster.
BARE = """
import sys

class WithoutUs:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "gpu_cluster":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, WithoutUs())
from distributed.cli.dask_scheduler import main
main()
"""


def test_a_scheduler_that_cannot_load_gpu_cluster_is_refused_before_work_starts(tmp_path):
    file = tmp_path / "scheduler.json"
    options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
    with subprocess.Popen([sys.executable, "-c", BARE, *options, "--scheduler-file", str(file)]) as scheduler:
        try:
            with (
                pytest.raises(ConfigError, match=r"the scheduler tcp://\S+ cannot load gpu-cluster"),
                opened(ExecutorConfig(scheduler_file=file), "cpu", Watching()),
            ):
                pass
        finally:
            scheduler.terminate()


class Impatient(Watching):
    """Asks to stop after half a minute, so that a job that would wait without end fails its test."""

    def __init__(self) -> None:
        super().__init__()
        self.until = time.monotonic() + 30

    def stopping(self) -> bool:
        return time.monotonic() > self.until


def test_a_task_whose_only_worker_is_killed_is_done_by_the_one_that_takes_its_place(tmp_path):
    with opened(ExecutorConfig(workers=1), "cpu", Watching()) as own:
        assert results(own, dies_once, [tmp_path / "marker"], Impatient()) == ["done"]


def hangs_once(marker: Path, reporter: Reporter) -> str:
    if not marker.exists():
        marker.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)
    return "done"


def test_a_worker_that_hangs_loses_its_task_to_another_and_is_ended(tmp_path, monkeypatch):
    # The variable of a user counts, and not what this job would set. Dask looks so often, and a worker counts as hung
    # after 5 s without a sign of life, its lower limit.
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL", "1s")
    with (
        dask.config.set({"distributed.scheduler.worker-ttl": "1s"}),
        opened(ExecutorConfig(workers=2), "cpu", Watching()) as own,
    ):
        observer = Impatient()
        assert results(own, hangs_once, [tmp_path / "marker"], observer) == ["done"]
    assert any("died during a task of embed; others do it" in notice for notice in observer.notices)
    hung = int((tmp_path / "marker").read_text())
    wait_for(lambda: not psutil.pid_exists(hung), "the end of the worker that hung")

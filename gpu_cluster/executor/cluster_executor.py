"""The executor that runs tasks in the workers of a Dask cluster.

It gives each worker one task at a time, so that it is known during which task a worker died. This module must not know
what a task does, or how the cluster was started.
"""

from __future__ import annotations

import os
import pickle
import queue
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from gpu_cluster.errors import ConfigError, InterruptedJobError, JobError
from gpu_cluster.events import Observer
from gpu_cluster.executor import worker
from gpu_cluster.executor.base import Executor, Lost, RefusedWorkerError, Reporter, Share, Stage
from gpu_cluster.executor.clusters import PATIENCE_S
from gpu_cluster.executor.ordered import Ordered
from gpu_cluster.executor.workers import LOST, Workers, reached
from gpu_cluster.files import printable
from gpu_cluster.words import count

T = TypeVar("T")
R = TypeVar("R")

# So often the job looks whether it is asked to stop.
_HEARING_S = 0.1
# The end of a job waits no longer for a scheduler that does not answer.
_FAREWELL_S = 5
# Tokens that a killed job left in a shared folder are removed when they are this old.
_STALE_S = 7 * 86_400.0
_TOKEN = ".gpu-cluster-"


class ClusterExecutor(Executor):
    """Runs the tasks in the workers of a Dask cluster, one at a time in each of them.

    Attributes
    ----------
    workers : the workers of the cluster
    """

    is_remote = True

    def __init__(self, client: Any, observer: Observer, *, joined: bool) -> None:
        self.workers = Workers(client, observer)
        self._client = client
        self._observer = observer
        self._joined = joined
        token = uuid.uuid4().hex
        self._job = worker.JobOfWorker(token, worker.versions())
        self._heard: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._fetched: dict[Any, worker.Done | Exception] = {}
        self._shares: dict[str, dict[str, Share]] = {}
        self._tokens: list[Path] = []
        # Calls of `map_in_order` that did not end yet: the scan makes some while another one waits.
        self._open: list[Ordered[Any, Any]] = []
        client.subscribe_topic(token, self._hear)

    def begin(self, n_wanted: int | None) -> None:
        """Wait for the workers, and refuse those that cannot do the tasks of this job."""
        if self._joined:
            self._check_scheduler()
            self._wait_for_workers(n_wanted or 1)
        self.workers.begin(self._job)
        place = "in this machine" if not self._joined else f"of the cluster at {self._client.scheduler.address}"
        n = self.workers.n_usable()
        self._observer.notice(f"Tasks run in {count(n, 'worker')} {place}{self._dashboard()}")

    def map_in_order(
        self, function: Callable[[T, Reporter], R], tasks: Iterable[T], stage: Stage
    ) -> Iterator[R | Lost]:
        run = Ordered(self, function, iter(tasks), stage)
        self._open.append(run)
        try:
            yield from run.results()
        finally:
            self._open.remove(run)
            if run.running:
                # Whoever leaves early needs no more results.
                self.stop()
                with suppress(Exception):
                    self._client.cancel(list(run.running))
                for future in run.running:
                    self._fetched.pop(future, None)

    def share(self, folder: Path, what: str) -> None:
        token = folder / f"{_TOKEN}{self._job.token[:16]}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for stale in folder.glob(f"{_TOKEN}*"):
                # Another job may remove its own at this moment.
                with suppress(FileNotFoundError):
                    if time.time() - stale.stat().st_mtime > _STALE_S:
                        stale.unlink()
            token.write_text(self._job.token, encoding="ascii")
        except OSError as error:
            raise ConfigError(
                f"{what} {printable(str(folder))!r} cannot be written on {socket.gethostname()}: {error.strerror}"
            ) from error
        self._tokens.append(token)
        self._add_sight(worker.Sight(what, str(token), self._job.token))
        for address, (host, file, wrong) in self.workers.ask(worker.write_beside, str(token)).items():
            self._tokens.append(Path(file))
            unseen = None if Path(file).is_file() else f"what it wrote there is not there on {socket.gethostname()}"
            if wrong or unseen:
                self.workers.ask(worker.remove, file)
                raise ConfigError(self._not_shared(what, folder, address, host, wrong or unseen))

    def show(self, file: Path, what: str) -> None:
        self._add_sight(worker.Sight(what, str(file), os.stat(file).st_size))

    def shares(self) -> Mapping[str, Mapping[str, Share]]:
        return self._shares

    @property
    def client(self) -> Any:
        return self._client

    def close(self) -> None:
        """Remove what this job left in shared folders and in the scheduler."""
        for token in self._tokens:
            with suppress(OSError):
                token.unlink()
        if self._client.status == "running":
            with suppress(Exception):
                self._client.unsubscribe_topic(self._job.token)
                self._scheduler("event_clear", name=self._job.token)

    def look(self) -> bool:
        """Look which workers are there; return whether the scheduler has answered."""
        return self.workers.look(self._job)

    def submit(self, function: Callable[..., Any], attempt: int, task: Any, workers: frozenset[str]) -> Any:
        """Begin a task in one of these workers; return its future."""
        # Dask's scheduler unpickles all arguments. Those of a task may be arrays of a card, and it may have none.
        work = pickle.dumps((function, task))
        with reached():
            # If all of these are gone when it begins, another one does it, and refuses if it does not fit.
            future = self._client.submit(
                worker.run_task,
                work,
                self._job,
                attempt,
                pure=False,
                workers=sorted(workers),
                allow_other_workers=True,
            )
        future.add_done_callback(self._begin_to_fetch)
        return future

    def take_back(self, future: Any) -> None:
        """Let nobody begin a task any more."""
        with reached():
            self._client.cancel([future])

    def is_ready(self, future: Any) -> bool:
        """Return whether a task has ended, or its result is here already."""
        return future in self._fetched or future.done()

    def fetched(self, future: Any) -> worker.Done | None:
        """Return what a finished task gave, or None while that is on its way.

        Raises
        ------
        JobError
            When it cannot be fetched.
        """
        found = self._fetched.pop(future, None)
        if isinstance(found, Exception):
            raise JobError(f"the result of a task cannot be fetched: {type(found).__name__}: {found}") from found
        return found

    def _begin_to_fetch(self, future: Any) -> None:
        # A thread for each result: neither that which hears signals, nor Dask's only one for callbacks, may wait for a
        # worker's answer. When the client is closed meanwhile, the answer never comes, and nobody waits for the thread.
        threading.Thread(target=self._fetch, args=(future,), daemon=True, name="fetch").start()

    def _fetch(self, future: Any) -> None:
        try:
            if future.status == "finished":
                # If the worker dies before it hands this over, the task runs again elsewhere, and this waits for it.
                self._fetched[future] = future.result()
        except Exception as error:  # noqa: BLE001 - the thread of the job raises it
            if future.status == "finished":
                self._fetched[future] = error
        self._heard.put(lambda: None)

    def hear(self) -> None:
        """Wait a moment for news of tasks, and take them."""
        with suppress(queue.Empty):
            self._heard.get(timeout=_HEARING_S)()
            while True:
                self._heard.get_nowait()()

    def refuse(self, error: RefusedWorkerError) -> None:
        """Give no more tasks to the worker that raised this.

        Raises
        ------
        ConfigError
            When it was the last one.
        """
        address, _, wrong = str(error).partition(" ")
        self.workers.refuse(address, wrong)
        self.workers.check()

    def add(self, done: worker.Done, stage: Stage) -> None:
        """Count a finished task for its worker, and report it."""
        share = self._shares.setdefault(stage.name, {}).setdefault(done.address, Share(done.host))
        share.n_tasks, share.n_items = share.n_tasks + 1, share.n_items + done.n_items
        share.busy_s += done.elapsed_s
        stage.observer.task_finished(stage.name, f"{done.address} on {done.host}", done.n_items, done.elapsed_s)

    def check_alive(self) -> None:
        """Raise a JobError if the scheduler is gone."""
        if self._client.status != "running":
            raise JobError(LOST)

    def stop(self) -> None:
        """Ask the tasks in work to end."""
        if self._client.status == "running":
            with suppress(Exception):
                self._scheduler("event_set", name=self._job.token)

    def _scheduler(self, what: str, **given: Any) -> None:
        self._client.sync(getattr(self._client.scheduler, what), **given, callback_timeout=_FAREWELL_S)

    def _hear(self, event: tuple[float, Any]) -> None:
        # This runs in a thread of Dask.
        self._heard.put(partial(self._tell, *event[1]))

    def _tell(self, attempt: int, done: int, since_s: float) -> None:
        for run in self._open:
            run.told(attempt, done, since_s)

    def _add_sight(self, sight: worker.Sight) -> None:
        self._job = replace(self._job, sights=(*self._job.sights, sight))
        for address, (host, wrong) in self.workers.ask(worker.seen, sight).items():
            if wrong is not None:
                raise ConfigError(self._not_shared(sight.what, Path(sight.path), address, host, wrong))

    def _not_shared(self, what: str, path: Path, address: str, host: str, wrong: str | None) -> str:
        return (
            f"{what} must be seen by all workers at the same path: {printable(str(path))!r} is there on "
            f"{socket.gethostname()}, and for the worker {address} on {host} {wrong}; use a folder that is shared, or "
            "workers on this machine (--workers)"
        )

    def _check_scheduler(self) -> None:
        """Check that the scheduler can load gpu-cluster: it unpickles what it passes on to the workers."""
        try:
            with reached():
                self._client.run_on_scheduler(worker.versions)
        except JobError:
            raise
        except Exception as error:
            raise ConfigError(
                f"the scheduler {self._client.scheduler.address} cannot load gpu-cluster ({type(error).__name__}: "
                f"{error}): start it in an environment with the same gpu-cluster and Dask as the workers"
            ) from error

    def _wait_for_workers(self, n_wanted: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while (n := self._count()) < n_wanted:
            if self._observer.stopping():
                raise InterruptedJobError("interrupted while the job waited for workers; run the same command again")
            if time.monotonic() > deadline:
                if n:
                    self._observer.notice(f"{count(n, 'worker')} of {n_wanted:,} came within {PATIENCE_S:.0f} s")
                    return
                raise JobError(
                    f"no worker came to the scheduler {self._client.scheduler.address} within {PATIENCE_S:.0f} s; "
                    "start some: dask worker ADDRESS --nthreads 1"
                )
            time.sleep(_HEARING_S)

    def _count(self) -> int:
        with reached():
            return len(self._client.nthreads())

    def _dashboard(self) -> str:
        return f"; Dask's dashboard: {self._client.dashboard_link}" if find_spec("bokeh") is not None else ""

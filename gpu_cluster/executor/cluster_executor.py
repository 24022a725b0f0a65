"""The executor that runs tasks in the workers of a Dask cluster.

It gives each worker one task at a time, so that it is known during which task a worker died. This module must not know
what a task does, or how the cluster was started.
"""

from __future__ import annotations

import os
import queue
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, TypeVar

from gpu_cluster.errors import ConfigError, InterruptedJobError, JobError
from gpu_cluster.events import Observer
from gpu_cluster.executor import worker
from gpu_cluster.executor.base import Executor, Lost, RefusedWorkerError, Reporter, Share, Stage
from gpu_cluster.executor.clusters import PATIENCE_S
from gpu_cluster.files import printable
from gpu_cluster.words import count

T = TypeVar("T")
R = TypeVar("R")

# After a request to stop, tasks in work are waited for this long at least: they end after their batch.
_FINISHING_S = 8.0
# So often the job looks whether it is asked to stop, and whether the workers are there.
_HEARING_S, _LOOKING_S = 0.1, 2.0
# A task during which so many workers died is not tried once more: most likely it is the task that ends them.
_MOST_DEATHS = 2
# Tokens that a killed job left in a shared folder are removed when they are this old.
_STALE_S = 7 * 86_400.0
_TOKEN = ".gpu-cluster-"


class ClusterExecutor(Executor):
    """Runs the tasks in the workers of a Dask cluster, one at a time in each of them."""

    is_remote = True

    def __init__(self, client: Any, observer: Observer, *, joined: bool) -> None:
        self._client = client
        self._observer = observer
        self._joined = joined
        token = uuid.uuid4().hex
        self._job = worker.JobOfWorker(token, worker.versions())
        self._heard: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._refused: dict[str, str] = {}
        self._shares: dict[str, Share] = {}
        self._tokens: list[Path] = []
        self._told: Callable[[int, int, float], None] = _to_nobody
        client.subscribe_topic(token, self._hear)

    def begin(self, n_wanted: int | None) -> None:
        """Wait for the workers, and refuse those that cannot do the tasks of this job."""
        if self._joined:
            self._wait_for_workers(n_wanted or 1)
        found = self._ask(worker.what_is_wrong, self._job)
        for address, wrong in found.items():
            if wrong is not None:
                self._refuse(address, wrong)
        if not self._usable():
            raise ConfigError(f"no worker can be used: {'; '.join(self._refused.values())}")
        n = len(self._usable())
        place = "in this machine" if not self._joined else f"of the cluster at {self._client.scheduler.address}"
        self._observer.notice(f"Tasks run in {count(n, 'worker')} {place}{self._dashboard()}")

    def map_in_order(
        self, function: Callable[[T, Reporter], R], tasks: Iterable[T], stage: Stage
    ) -> Iterator[R | Lost]:
        run = _Run(self, function, iter(enumerate(tasks)), stage)
        try:
            yield from run.results()
        finally:
            if run.running:
                # Whoever leaves early needs no more results.
                self._stop()
                self._client.cancel(list(run.running))

    def share(self, folder: Path, what: str) -> None:
        token = folder / f"{_TOKEN}{self._job.token[:16]}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for stale in folder.glob(f"{_TOKEN}*"):
                if time.time() - stale.stat().st_mtime > _STALE_S:
                    stale.unlink(missing_ok=True)
            token.write_text(self._job.token, encoding="ascii")
        except OSError as error:
            raise ConfigError(
                f"{what} {printable(str(folder))!r} cannot be written on {socket.gethostname()}: {error.strerror}"
            ) from error
        self._tokens.append(token)
        self._add_sight(worker.Sight(what, str(token), self._job.token))
        for address, (host, file, wrong) in self._ask(worker.write_beside, str(token)).items():
            self._tokens.append(Path(file))
            unseen = None if Path(file).is_file() else f"what it wrote there is not there on {socket.gethostname()}"
            if wrong or unseen:
                raise ConfigError(self._not_shared(what, folder, address, host, wrong or unseen))

    def show(self, file: Path, what: str) -> None:
        self._add_sight(worker.Sight(what, str(file), os.stat(file).st_size))

    def shares(self) -> Mapping[str, Share]:
        return self._shares

    def close(self) -> None:
        """Remove what this job left in shared folders, and forget its topic."""
        for token in self._tokens:
            with suppress(OSError):
                token.unlink()
        with suppress(Exception):
            self._client.unsubscribe_topic(self._job.token)

    def slots(self) -> int:
        """Return how many tasks can be in work at once.

        Raises
        ------
        ConfigError
            When all workers were refused.
        """
        usable = self._usable()
        if not usable and self._refused:
            raise ConfigError(f"no worker can be used: {'; '.join(self._refused.values())}")
        return len(usable)

    def submit(self, function: Callable[..., Any], number: int, task: Any) -> Any:
        """Begin a task in some worker; return its future."""
        # A task is bound to those that were not refused, and loosely, because all of them may be gone later.
        bound = {"workers": sorted(self._usable()), "allow_other_workers": True} if self._refused else {}
        future = self._client.submit(worker.run_task, function, task, self._job, number, pure=False, **bound)
        future.add_done_callback(lambda done: self._heard.put(lambda: None))
        return future

    def hear(self) -> None:
        """Wait a moment for news of tasks, and take them."""
        with suppress(queue.Empty):
            self._heard.get(timeout=_HEARING_S)()
            while True:
                self._heard.get_nowait()()

    def when_told(self, tell: Callable[[int, int, float], None]) -> None:
        """Set who is told of the progress of a task: its number, items done, and the seconds since it told before."""
        self._told = tell

    def refuse(self, error: RefusedWorkerError) -> None:
        """Give no more tasks to the worker that raised this."""
        address, _, wrong = str(error).partition(" ")
        self._refuse(address, wrong)

    def add(self, done: worker.Done, stage: Stage) -> None:
        """Count a finished task for its worker, and report it."""
        share = self._shares.setdefault(done.address, Share(done.host))
        share.n_tasks, share.n_items = share.n_tasks + 1, share.n_items + done.n_items
        share.busy_s += done.elapsed_s
        stage.observer.task_finished(stage.name, f"{done.address} on {done.host}", done.n_items, done.elapsed_s)

    def check_alive(self) -> None:
        """Raise a JobError if the scheduler is gone."""
        if self._client.status != "running":
            raise JobError(
                "the scheduler of the Dask cluster cannot be reached any more; what is finished is kept in the store: "
                "run the same command again with a cluster that is there, or without one"
            )

    def stop(self) -> None:
        """Ask the tasks in work to end."""
        self._stop()

    def _stop(self) -> None:
        from distributed import Event

        if self._client.status == "running":
            with suppress(Exception):
                Event(self._job.token, client=self._client).set()

    def _usable(self) -> set[str]:
        return set(self._client.nthreads()) - self._refused.keys()

    def _refuse(self, address: str, wrong: str) -> None:
        if address not in self._refused:
            self._refused[address] = f"the worker {address} {wrong}"
            self._observer.notice(f"The worker {address} gets no tasks: it {wrong}")

    def _hear(self, event: tuple[float, Any]) -> None:
        # This runs in a thread of Dask.
        number, done, since_s = event[1]
        self._heard.put(lambda: self._told(number, done, since_s))

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        """Run a function in every worker that was not refused; one in which it fails is refused."""
        found = self._client.run(function, *arguments, workers=sorted(self._usable()), on_error="return")
        for address, error in found.items():
            if isinstance(error, Exception):
                self._refuse(address, f"cannot run gpu-cluster ({type(error).__name__}: {error})")
        return {address: answer for address, answer in found.items() if not isinstance(answer, Exception)}

    def _add_sight(self, sight: worker.Sight) -> None:
        self._job = replace(self._job, sights=(*self._job.sights, sight))
        for address, (host, wrong) in self._ask(worker.seen, sight).items():
            if wrong is not None:
                raise ConfigError(self._not_shared(sight.what, Path(sight.path), address, host, wrong))

    def _not_shared(self, what: str, path: Path, address: str, host: str, wrong: str | None) -> str:
        return (
            f"{what} must be seen by all workers at the same path: {printable(str(path))!r} is there on "
            f"{socket.gethostname()}, and for the worker {address} on {host} {wrong}; use a folder that is shared, or "
            "workers on this machine (--workers)"
        )

    def _wait_for_workers(self, n_wanted: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while len(self._client.nthreads()) < n_wanted:
            if self._observer.stopping():
                raise InterruptedJobError("interrupted while the job waited for workers; run the same command again")
            if time.monotonic() > deadline:
                n = len(self._client.nthreads())
                if n:
                    self._observer.notice(f"{count(n, 'worker')} of {n_wanted:,} came within {PATIENCE_S:.0f} s")
                    return
                raise JobError(
                    f"no worker came to the scheduler {self._client.scheduler.address} within {PATIENCE_S:.0f} s; "
                    "start some: dask worker ADDRESS --nthreads 1"
                )
            time.sleep(_HEARING_S)

    def _dashboard(self) -> str:
        return f"; Dask's dashboard: {self._client.dashboard_link}" if find_spec("bokeh") is not None else ""


def _to_nobody(_number: int, _done: int, _since_s: float) -> None:
    """No task is in work."""


@dataclass
class _Try:
    """A task in work: its number, itself, during how many of its attempts a worker died, and the items done."""

    number: int
    task: Any
    deaths: int = 0
    done: int = 0


class _Run(Generic[T, R]):
    """One call of `ClusterExecutor.map_in_order`."""

    def __init__(
        self,
        executor: ClusterExecutor,
        function: Callable[[T, Reporter], R],
        tasks: Iterator[tuple[int, T]],
        stage: Stage,
    ) -> None:
        self._executor = executor
        self._function = function
        self._tasks = tasks
        self._stage = stage
        self._again: list[_Try] = []
        self.running: dict[Any, _Try] = {}
        self._results: dict[int, R | Lost] = {}
        self._done = 0
        self._longest_s = 0.0
        self._slots = executor.slots()
        self._looked = self._seen = time.monotonic()
        executor.when_told(self._told)

    def results(self) -> Iterator[R | Lost]:
        """Yield the results, in the order of the tasks."""
        following, stopped = 0, None
        while True:
            if stopped is None and self._stage.observer.stopping():
                stopped = time.monotonic()
                self._executor.stop()
            if stopped is None:
                self._begin()
            elif time.monotonic() - stopped > max(_FINISHING_S, 2 * self._longest_s):
                return
            if not self.running:
                return
            self._executor.hear()
            self._executor.check_alive()
            self._look()
            for future in [future for future in self.running if future.done()]:
                self._take(future)
            while following in self._results:
                yield self._results.pop(following)
                following += 1

    def _begin(self) -> None:
        while len(self.running) < self._slots:
            one = self._again.pop() if self._again else None
            if one is None:
                number, task = next(self._tasks, (-1, None))
                if number < 0:
                    return
                one = _Try(number, task)
            self.running[self._executor.submit(self._function, one.number, one.task)] = one

    def _look(self) -> None:
        """Count the workers from time to time; give up when there have been none for long."""
        now = time.monotonic()
        if now - self._looked < _LOOKING_S:
            return
        self._looked = now
        n = self._executor.slots()
        if n:
            self._seen, self._slots = now, n
        elif now - self._seen > PATIENCE_S:
            raise JobError(
                f"there has been no worker for {PATIENCE_S:.0f} s; what is finished is kept in the store: run the "
                "same command again"
            )

    def _take(self, future: Any) -> None:
        from distributed import KilledWorker

        one = self.running[future]
        if future.status == "finished":
            try:
                done: worker.Done = future.result(timeout=_HEARING_S)
            except TimeoutError:
                # It is on its way.
                return
            self._results[one.number] = done.result
            self._told(one.number, done.n_items, 0.0)
            self._executor.add(done, self._stage)
        elif future.status == "error":
            error = future.exception()
            if isinstance(error, RefusedWorkerError):
                self._executor.refuse(error)
                self._slots = self._executor.slots()
                self._retry(one)
            elif isinstance(error, KilledWorker):
                one.deaths += 1 + int(error.allowed_failures)
                self._after_death(one, error)
            else:
                raise error
        else:
            self._executor.check_alive()
            # The worker is gone, with the task or with its result.
            self._retry(one)
        del self.running[future]

    def _after_death(self, one: _Try, error: Any) -> None:
        address = getattr(error.last_worker, "address", "")
        self._stage.observer.notice(f"The worker {address} died during a task of {self._stage.name}; others do it")
        if one.deaths < _MOST_DEATHS:
            self._retry(one)
            return
        self._told(one.number, 0, 0.0)
        self._results[one.number] = Lost(f"{one.deaths} workers died one after the other, the last one was {address}")

    def _retry(self, one: _Try) -> None:
        self._told(one.number, 0, 0.0)
        self._again.append(replace(one))

    def _told(self, number: int, done: int, since_s: float) -> None:
        self._longest_s = max(self._longest_s, since_s)
        for one in self.running.values():
            if one.number == number:
                self._done += done - one.done
                one.done = done
                self._stage.progress(self._done)

"""Gives out the tasks of one call to a cluster, one for each worker; yields their results in the order of the tasks.

A task whose worker is lost is given out again. This module must not know what a task does.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from gpu_cluster.errors import JobError
from gpu_cluster.executor.base import Lost, RefusedWorkerError, Reporter, Stage
from gpu_cluster.executor.clusters import PATIENCE_S

if TYPE_CHECKING:
    from gpu_cluster.executor.cluster_executor import ClusterExecutor

T = TypeVar("T")
R = TypeVar("R")

# After a request to stop, tasks in work are waited for this long at least: they end after their batch.
_FINISHING_S = 8.0
# So often the job looks which workers are there.
_LOOKING_S = 0.5
# A task during which so many workers died is not tried once more: most likely it is the task that ends them.
_MOST_DEATHS = 2

# No two attempts have the same number, so what a worker tells of an attempt that was given up counts for no other.
_attempts = itertools.count()


@dataclass
class _Try:
    """A task in work.

    Attributes
    ----------
    position : of the task among all
    deaths : during how many of its attempts a worker died
    attempt : the number of this attempt
    done : its items that are done
    workers : those that this attempt was given to
    """

    position: int
    task: Any
    deaths: int = 0
    attempt: int = -1
    done: int = 0
    workers: frozenset[str] = frozenset()


class Ordered(Generic[T, R]):
    """One call of `ClusterExecutor.map_in_order`."""

    def __init__(
        self,
        executor: ClusterExecutor,
        function: Callable[[T, Reporter], R],
        tasks: Iterator[T],
        stage: Stage,
    ) -> None:
        self._executor = executor
        self._function = function
        self._tasks = enumerate(tasks)
        self._stage = stage
        self._waiting: list[_Try] = []
        self.running: dict[Any, _Try] = {}
        self._results: dict[int, R | Lost] = {}
        self._done = 0
        self._longest_s = 0.0
        self._looked = -_LOOKING_S
        self._seen = time.monotonic()

    def results(self) -> Iterator[R | Lost]:
        """Yield the results, in the order of the tasks."""
        following, stopped = 0, None
        while True:
            if stopped is None and self._stage.observer.stopping():
                stopped = time.monotonic()
                self._executor.stop()
            if stopped is None:
                self._look()
                self._begin()
            elif time.monotonic() - stopped > max(_FINISHING_S, 2 * self._longest_s):
                return
            # While no worker is there, nothing is running, and tasks wait all the same.
            if not self.running and (not self._waiting or stopped is not None):
                return
            self._executor.hear()
            self._executor.check_alive()
            for future in [future for future in self.running if self._executor.is_ready(future)]:
                self._take(future)
            while following in self._results:
                yield self._results.pop(following)
                following += 1

    def _begin(self) -> None:
        while True:
            if not self._waiting:
                # One task is taken ahead: only so is it known, while there is no worker, whether any is left.
                self._waiting += [_Try(position, task) for position, task in itertools.islice(self._tasks, 1)]
            if not self._waiting or len(self.running) >= self._executor.workers.n_usable():
                return
            # Results that an earlier one keeps back are held, so there must not be many; what is given out again comes
            # first of all.
            if len(self._results) >= self._stage.most_ahead and self._waiting[-1].attempt < 0:
                return
            one = self._waiting.pop()
            one.attempt, one.workers = next(_attempts), self._executor.workers.usable()
            self.running[self._executor.submit(self._function, one.attempt, one.task, one.workers)] = one

    def _look(self) -> None:
        """Look who is there from time to time; give up when there has been no worker for long."""
        now = time.monotonic()
        if now - self._looked < _LOOKING_S:
            return
        self._looked = now
        answered = self._executor.look()
        if answered:
            self._take_back()
        if answered and self._executor.workers.n_usable():
            self._seen = now
        elif now - self._seen > PATIENCE_S:
            refused = self._executor.workers.why_refused()
            raise JobError(
                f"there has been no worker for {PATIENCE_S:.0f} s{f' ({refused})' if refused else ''}; what is "
                "finished is kept in the store: run the same command again"
            )

    def _take_back(self) -> None:
        """Take back the tasks whose workers are all gone.

        If there was no worker at all when such a task came to Dask, Dask gives it to none that joins later.
        """
        for future, one in list(self.running.items()):
            if self._executor.workers.are_gone(one.workers) and not self._executor.is_ready(future):
                self._executor.take_back(future)
                self._retry(one)
                del self.running[future]

    def _take(self, future: Any) -> None:
        from distributed import KilledWorker

        one = self.running[future]
        done = self._executor.fetched(future)
        if done is not None:
            self._results[one.position] = done.result
            self.told(one.attempt, done.n_items, 0.0)
            self._executor.add(done, self._stage)
        elif future.status == "error":
            error = future.exception()
            if isinstance(error, RefusedWorkerError):
                self._retry(one)
                self._executor.refuse(error)
            elif isinstance(error, KilledWorker):
                one.deaths += 1 + int(error.allowed_failures)
                self._after_death(one, error)
            else:
                raise error
        elif future.status == "cancelled":
            self._executor.check_alive()
            self._retry(one)
        else:
            # Its result is on its way; or the worker is gone with it, and Dask runs the task again.
            return
        del self.running[future]

    def _after_death(self, one: _Try, error: Any) -> None:
        address = getattr(error.last_worker, "address", "")
        self._executor.workers.died(address)
        self._stage.observer.notice(f"The worker {address} died during a task of {self._stage.name}; others do it")
        if one.deaths < _MOST_DEATHS:
            self._retry(one)
            return
        self.told(one.attempt, 0, 0.0)
        self._results[one.position] = Lost(f"{one.deaths} workers died one after the other, the last one was {address}")

    def _retry(self, one: _Try) -> None:
        self.told(one.attempt, 0, 0.0)
        self._waiting.append(replace(one))

    def told(self, attempt: int, done: int, since_s: float) -> None:
        """Count the items of an attempt that are done, if it is one of these; it told before so many seconds ago."""
        self._longest_s = max(self._longest_s, since_s)
        for one in self.running.values():
            if one.attempt == attempt:
                self._done += done - one.done
                one.done = done
                self._stage.progress(self._done)

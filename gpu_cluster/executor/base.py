"""The interface of an executor, which runs tasks, and the one that runs them in this process.

This module must not know Dask, or what a task does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gpu_cluster.errors import GpuClusterError
from gpu_cluster.events import Observer

T = TypeVar("T")
R = TypeVar("R")


class Reporter(ABC):
    """What a task reports to, wherever it runs."""

    @abstractmethod
    def progress(self, done: int) -> None:
        """So many items of the task are done by now."""

    @abstractmethod
    def stopping(self) -> bool:
        """Return whether the task should end at the next moment when nothing is lost, with what it has."""


class RefusedWorkerError(GpuClusterError):
    """A worker cannot do the tasks of this job; the message says what was expected and what it has."""


@dataclass(frozen=True)
class Lost:
    """What stands in place of a result: the workers that ran the task died, and so they would again."""

    reason: str


@dataclass
class Share:
    """What one worker has done in one stage: so many tasks with so many items, in so many seconds."""

    host: str
    n_tasks: int = 0
    n_items: int = 0
    busy_s: float = 0.0


@dataclass(frozen=True)
class Stage:
    """What an executor needs to know of a stage.

    Attributes
    ----------
    name, observer : the stage, and who is told of its progress
    total, done_before : its items in all, and those done before the first task
    most_ahead : how many results may be held at most because an earlier one is missing
    """

    name: str
    observer: Observer
    total: int
    done_before: int = 0
    most_ahead: int = 4_096

    def progress(self, done: int) -> None:
        """Report that so many items of the tasks are done."""
        self.observer.progress(self.name, self.done_before + done, self.total)


class Executor(ABC):
    """Runs tasks.

    Attributes
    ----------
    is_remote : whether tasks run in other processes; they and their results are pickled then
    """

    is_remote: bool

    @abstractmethod
    def map_in_order(
        self, function: Callable[[T, Reporter], R], tasks: Iterable[T], stage: Stage
    ) -> Iterator[R | Lost]:
        """Yield the result of each task, in their order.

        When the stage's observer asks to stop, no further task is begun: the results end with those of the tasks that
        were in work.

        Raises
        ------
        JobError
            When the workers cannot be reached any more.
        GpuClusterError
            What a task raised.
        """

    @abstractmethod
    def share(self, folder: Path, what: str) -> None:
        """Check that this process and all workers see the same folder; each of them must be able to write there.

        Raises
        ------
        ConfigError
            When they do not; the message names both sides.
        """

    @abstractmethod
    def show(self, file: Path, what: str) -> None:
        """Check that all workers see the same file as this process.

        Raises
        ------
        ConfigError
            When they do not; the message names both sides.
        """

    @abstractmethod
    def shares(self) -> Mapping[str, Mapping[str, Share]]:
        """Return what each worker has done so far, by stage and by its address; nothing if there are no workers."""

    @property
    def client(self) -> Any:
        """The client of the Dask cluster whose workers run the tasks; None without workers."""
        return None


class Serial(Executor):
    """Runs the tasks in this process."""

    is_remote = False

    def map_in_order(
        self, function: Callable[[T, Reporter], R], tasks: Iterable[T], stage: Stage
    ) -> Iterator[R | Lost]:
        reporter = _Here(stage)
        for task in tasks:
            if stage.observer.stopping():
                return
            yield function(task, reporter)
            reporter.next()

    def share(self, folder: Path, what: str) -> None:
        pass

    def show(self, file: Path, what: str) -> None:
        pass

    def shares(self) -> Mapping[str, Mapping[str, Share]]:
        return {}


class _Here(Reporter):
    """Reports to the observer of the stage directly."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._before = self._done = 0

    def progress(self, done: int) -> None:
        self._done = done
        self._stage.progress(self._before + done)

    def next(self) -> None:
        """The next task begins."""
        self._before, self._done = self._before + self._done, 0

    def stopping(self) -> bool:
        return self._stage.observer.stopping()

"""The events that a running job reports to its observers: stages, progress and decisions.

A job and its stages call an `Observer`; the command line shows the events, and `events.jsonl` records them. This module
must not know images or clusters.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import IO, Any

from gpu_cluster.errors import InterruptedJobError


def interrupted(go_on: str = "run the same command again") -> InterruptedJobError:
    """Return the error of a job that was asked to stop when it had written nothing; `go_on` says what to do."""
    return InterruptedJobError(f"interrupted; no results were written: {go_on}")


class Observer:
    """An observer that ignores every event; subclasses override the methods that they need."""

    def job_started(self, go_on: str) -> None:
        """The job begins; `go_on` says in words what to do if it is interrupted."""

    def stage_started(self, stage: str) -> None:
        """A stage of the job begins."""

    def stage_finished(self, stage: str, elapsed_s: float) -> None:
        """A stage has ended after `elapsed_s` seconds."""

    def stage_failed(self, stage: str) -> None:
        """A stage has ended with an error, which is passed on to the caller."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` items of a stage are done."""

    def task_finished(self, stage: str, worker: str, n_items: int, elapsed_s: float) -> None:
        """A worker has done a task of a stage, with so many items; this is told only if there are workers."""

    def notice(self, message: str) -> None:
        """The job has decided or found something that the user should know."""

    def stopping(self) -> bool:
        """Return whether the job should end, with an error, at the next moment when nothing is lost."""
        return False


class EventLog(Observer):
    """Writes every event as one JSON line to a stream (`events.jsonl`)."""

    def __init__(self, stream: IO[str], rewrite: Callable[[str], str] = str) -> None:
        """Set the stream, and what is done to each message before it is written."""
        self._stream = stream
        self._rewrite = rewrite

    def stage_started(self, stage: str) -> None:
        self._write("stage_started", stage=stage)

    def stage_finished(self, stage: str, elapsed_s: float) -> None:
        self._write("stage_finished", stage=stage, elapsed_s=round(elapsed_s, 6))

    def stage_failed(self, stage: str) -> None:
        self._write("stage_failed", stage=stage)

    def progress(self, stage: str, done: int, total: int) -> None:
        self._write("progress", stage=stage, done=done, total=total)

    def task_finished(self, stage: str, worker: str, n_items: int, elapsed_s: float) -> None:
        self._write("task_finished", stage=stage, worker=worker, n_items=n_items, elapsed_s=round(elapsed_s, 6))

    def notice(self, message: str) -> None:
        self._write("notice", message=self._rewrite(message))

    def _write(self, event: str, **fields: Any) -> None:
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()


class Observers(Observer):
    """Several observers as one."""

    def __init__(self, *others: Observer) -> None:
        self._others = list(others)

    def job_started(self, go_on: str) -> None:
        for other in self._others:
            other.job_started(go_on)

    def stage_started(self, stage: str) -> None:
        for other in self._others:
            other.stage_started(stage)

    def stage_finished(self, stage: str, elapsed_s: float) -> None:
        for other in self._others:
            other.stage_finished(stage, elapsed_s)

    def stage_failed(self, stage: str) -> None:
        for other in self._others:
            other.stage_failed(stage)

    def progress(self, stage: str, done: int, total: int) -> None:
        for other in self._others:
            other.progress(stage, done, total)

    def task_finished(self, stage: str, worker: str, n_items: int, elapsed_s: float) -> None:
        for other in self._others:
            other.task_finished(stage, worker, n_items, elapsed_s)

    def notice(self, message: str) -> None:
        for other in self._others:
            other.notice(message)

    def stopping(self) -> bool:
        return any(other.stopping() for other in self._others)


class Recorder(Observers):
    """Records the seconds of each stage and the notices of a job, and passes every event on to other observers."""

    def __init__(self, *others: Observer) -> None:
        super().__init__(*others)
        self.stages_s: dict[str, float] = {}
        self.notices: list[str] = []
        self._go_on = "run the same command again"

    def job_started(self, go_on: str) -> None:
        self._go_on = go_on
        super().job_started(go_on)

    def add(self, other: Observer) -> None:
        """Pass events on to `other` too, beginning with the notices so far."""
        for message in self.notices:
            other.notice(message)
        self._others.append(other)

    @contextmanager
    def stage(self, stage: str) -> Iterator[None]:
        """Time the stage that runs in the `with` block.

        Raises
        ------
        InterruptedJobError
            When an observer asks to stop. This is needed if some library has caught the exception of a signal.
        """
        if self.stopping():
            raise interrupted(self._go_on)
        self.stage_started(stage)
        start = time.perf_counter()
        try:
            yield
        except BaseException:
            self.stage_failed(stage)
            raise
        self.stages_s[stage] = time.perf_counter() - start
        self.stage_finished(stage, self.stages_s[stage])

    def notice(self, message: str) -> None:
        self.notices.append(message)
        super().notice(message)

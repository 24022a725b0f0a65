"""What runs in a worker: each task, what is checked before a worker's first task, and the reports to the job.

This module must not know what a task does.
"""

from __future__ import annotations

import os
import pickle
import socket
import threading
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

from gpu_cluster.backend import installed
from gpu_cluster.executor.base import RefusedWorkerError, Reporter

# A task tells of its progress, and asks whether the job stops, this often at most.
_TELLING_S, _ASKING_S = 0.2, 0.5

# What must be the same in all processes of a job, because results depend on it.
_PACKAGES = ("gpu-cluster", "numpy", "pillow", "pyarrow")
# Not every installation has these; a worker must have them if the job has, and else none.
_EXTRA_PACKAGES = ("pi-heif", "rawpy")


@dataclass(frozen=True)
class Sight:
    """A file that every worker must see: what it is in words, its path, and its content or its size in bytes."""

    what: str
    path: str
    content: str | int


@dataclass(frozen=True)
class JobOfWorker:
    """What a worker must know of a job: its name, the versions that it needs, and what it must see."""

    token: str
    versions: tuple[tuple[str, str], ...]
    sights: tuple[Sight, ...] = ()


@dataclass(frozen=True)
class Done:
    """What comes back from a task: its result, who did it, and how many items it had done in how many seconds."""

    result: Any
    address: str
    host: str
    n_items: int
    elapsed_s: float


# A worker that has several threads runs one task of ours at a time: an engine uses all cores of its process.
_one_at_a_time = threading.Lock()
# The jobs that this process may do tasks of: what was found out once is not looked for again.
_fitting: set[JobOfWorker] = set()


def run_task(work: bytes, job: JobOfWorker, attempt: int) -> Done:
    """Run a task in this worker; `work` is the pickle of a function of a task and a `Reporter`, and of its task.

    Raises
    ------
    RefusedWorkerError
        When the worker does not fit the job; the message begins with its address.
    """
    from distributed import get_worker

    worker = get_worker()
    if job not in _fitting:
        wrong = what_does_not_fit(job)
        if wrong is not None:
            raise RefusedWorkerError(f"{worker.address} {wrong}")
        _fitting.add(job)
    try:
        function, task = pickle.loads(work)
    except Exception as error:
        # The job has pickled it, so this process has not what that one has, such as a card.
        raise RefusedWorkerError(
            f"{worker.address} cannot load a task of this job ({type(error).__name__}: {error})"
        ) from error
    reporter = _ToTheJob(worker, worker.get_current_task(), job.token, attempt)
    with _one_at_a_time:
        start = time.monotonic()
        try:
            result = function(task, reporter)
        except RefusedWorkerError as error:
            raise RefusedWorkerError(f"{worker.address} {error}") from error
        return Done(result, worker.address, socket.gethostname(), reporter.done, time.monotonic() - start)


@dataclass
class _ToTheJob(Reporter):
    """Reports to the job through the scheduler."""

    worker: Any
    key: Any
    token: str
    attempt: int
    done: int = 0
    _told: float = field(default_factory=time.monotonic)
    _asked: float = field(default_factory=time.monotonic)
    _stopping: bool = False

    def progress(self, done: int) -> None:
        self.done, now = done, time.monotonic()
        if now - self._told > _TELLING_S:
            self.worker.log_event(self.token, (self.attempt, done, now - self._told))
            self._told = now

    def stopping(self) -> bool:
        from distributed import Event, get_client

        now = time.monotonic()
        if not self._stopping and now - self._asked > _ASKING_S:
            self._asked = now
            try:
                self._stopping = self._dropped() or bool(Event(self.token, client=get_client()).is_set())
            except Exception:  # noqa: BLE001 - without a scheduler, nobody waits for this task
                self._stopping = True
        return self._stopping

    def _dropped(self) -> bool:
        """Return whether nobody waits for the task: the job was killed, or has given it up."""
        task = self.worker.state.tasks.get(self.key)
        return task is None or task.state == "cancelled"


def versions() -> tuple[tuple[str, str], ...]:
    """Return the versions of this process that results depend on."""
    extras = installed(*_EXTRA_PACKAGES)
    return (
        ("Python", python_version().rpartition(".")[0]),
        *((name, version(name)) for name in _PACKAGES),
        *((name, extras.get(name, "not installed")) for name in _EXTRA_PACKAGES),
    )


def what_does_not_fit(job: JobOfWorker) -> str | None:
    """Return in words why this process cannot do tasks of a job, or None."""
    theirs = dict(versions())
    other = [f"{name} {theirs[name]} and not {ours}" for name, ours in job.versions if theirs[name] != ours]
    if other:
        return f"has {', '.join(other)} as this job"
    for sight in job.sights:
        host, unseen = seen(sight)
        if unseen is not None:
            return f"does not see {sight.what} as this job does: {sight.path!r} {unseen} on {host}"
    return None


def seen(sight: Sight) -> tuple[str, str | None]:
    """Return the name of this machine, and in words how a file differs from what it should be, or None."""
    path = Path(sight.path)
    try:
        if isinstance(sight.content, int):
            size = path.stat().st_size
            wrong = None if size == sight.content else f"has {size:,} bytes and not {sight.content:,}"
        else:
            wrong = None if path.read_text(encoding="ascii") == sight.content else "is another file"
    except (OSError, ValueError) as error:
        wrong = f"cannot be read ({getattr(error, 'strerror', None) or error})"
    return socket.gethostname(), wrong


def write_beside(token: str) -> tuple[str, str, str | None]:
    """Write a file beside a token; return this machine, the file, and in words why that failed, or None."""
    host = socket.gethostname()
    file = f"{token}.{host}.{os.getpid()}"
    try:
        Path(file).write_text("", encoding="ascii")
    except OSError as error:
        return host, file, f"cannot be written beside ({error.strerror})"
    return host, file, None


def remove(file: str) -> None:
    """Remove what this process wrote beside a token, which the job may not see."""
    Path(file).unlink(missing_ok=True)

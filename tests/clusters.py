"""What the tests of workers share: jobs with workers, and Dask clusters that are started apart, as real processes.

Most of them are forked: a worker of a cluster that is started apart is then one process that has all imported, without
Dask's nanny, which would start another one in the place of a worker that ends.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

from tests.forks import Forked, start_server
from tests.helpers import COMMAND, Finished, shards_of

DASK = COMMAND.with_name("dask")

# Many shards, and some seconds of embedding, in a job of small pictures.
N_PICTURES, SHARD = 40, 4
N_SHARDS = -(-N_PICTURES // SHARD)
SHARDED = ("--features", "vgg16", "--image-size", "64", "--batch-size", "2", "--shard-size", str(SHARD))
QUICK = ("--k", "2", "--k-range", "2:2", "--n-init", "2")

# What is waited for takes seconds; this is for a machine with much else to do.
PATIENCE_S = 240


def wait_for(happened: Callable[[], bool], what: str) -> None:
    """Wait until something has happened, and fail if it does not."""
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.02)


@dataclass
class Driver:
    """A job that was started, with all processes that it was seen to have."""

    process: Forked
    folder: Path
    printed: IO[str]
    family: set[psutil.Process] = field(default_factory=set)

    def said(self) -> str:
        """Return what it has printed so far, without errors and progress."""
        # Both processes share the place in the file, so it must not be moved.
        return os.pread(self.printed.fileno(), 1 << 20, 0).decode("utf-8", "replace")

    def workers(self) -> list[psutil.Process]:
        """Return the worker processes of its local cluster."""
        found = []
        for child in psutil.Process(self.process.pid).children():
            self.family.add(child)
            with suppress(psutil.Error):
                if "spawn_main" in " ".join(child.cmdline()):
                    found.append(child)
                self.family.update(child.children(recursive=True))
        return found

    def wait_until(self, happened: Callable[[], bool]) -> None:
        """Wait for what it does; it must not end before that."""

        def ended_or_happened() -> bool:
            assert self.process.poll() is None or happened(), f"the job ended before:\n{self.process.communicate()[1]}"
            return happened()

        wait_for(ended_or_happened, "what the job was to do")

    def signal_all(self, number: int) -> None:
        """Signal all processes of the job, as a terminal does and a batch system."""
        os.killpg(self.process.pid, number)

    def end(self) -> Finished:
        """Wait for its end."""
        _, err = self.process.communicate(timeout=PATIENCE_S)
        return Finished(self.process.returncode, self.said(), err, self.folder)

    def left(self) -> list[psutil.Process]:
        """Return those of its processes that still run, after they had time to end."""
        return psutil.wait_procs(self.family, timeout=PATIENCE_S / 4)[1]


@contextmanager
def driver(*arguments: str | Path, out: Path) -> Iterator[Driver]:
    """Start a job in a group of processes of its own, and leave none of them behind."""
    with (
        tempfile.TemporaryFile("w+") as printed,
        Forked(*arguments, "--out", out, stdout=printed.fileno(), start_new_session=True) as process,
    ):
        try:
            yield Driver(process, out, printed)
        finally:
            _end(process)


def _end(process: Forked | subprocess.Popen[str]) -> None:
    """End a process with all of its group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # One that was forked a moment ago is not in a group of its own yet.
    process.kill()
    process.wait()


@contextmanager
def forked_workers() -> Iterator[None]:
    """Have the local clusters of this process fork their workers; those that are spawned import for a second each."""
    import dask

    start_server()
    ours = {"distributed.worker.multiprocessing-method": "forkserver", "distributed.nanny.environ": dict(os.environ)}
    with dask.config.set(ours):
        yield


# What is a scheduler or a worker, as the command `dask` is.
_PROGRAM = "from distributed.cli.dask_{} import main\nmain()\n"


@dataclass
class Cluster:
    """A scheduler and workers that were started apart from any job."""

    folder: Path
    scheduler: Forked | subprocess.Popen[str]
    workers: list[Forked | subprocess.Popen[str]] = field(default_factory=list)

    @property
    def file(self) -> Path:
        return self.folder / "scheduler.json"

    @property
    def options(self) -> tuple[str | Path, ...]:
        """The options of a job that joins."""
        return ("--scheduler-file", self.file, "--workers", str(len(self.workers)))

    def add_worker(self, before: str = "", *, by_command: bool = False) -> None:
        """Start a worker, by the command and with a nanny or forked; a forked one runs the program `before` first."""
        log = self.folder / f"worker-{len(self.workers)}"
        given: list[str | Path] = ["--scheduler-file", self.file, "--nthreads", "1", "--no-dashboard"]
        self.workers.append(
            _dask("worker", *given, log=log)
            if by_command
            else _forked("worker", *given, "--no-nanny", log=log, before=before)
        )
        wait_for(lambda: "Starting established connection" in log.read_text(), "a worker's start")

    def address(self, number: int) -> str:
        """Return the address of a worker."""
        found = re.findall(r"Start worker at: +(\S+)", (self.folder / f"worker-{number}").read_text())
        return str(found[-1])


def _dask(what: str, *arguments: str | Path, log: Path) -> subprocess.Popen[str]:
    with log.open("wb") as stream:
        return subprocess.Popen(
            [DASK, what, *arguments], stdout=stream, stderr=stream, text=True, cwd=log.parent, start_new_session=True
        )


def _forked(what: str, *arguments: str | Path, log: Path, before: str = "") -> Forked:
    with log.open("wb") as stream:
        return Forked(
            *arguments,
            program=before + _PROGRAM.format(what),
            cwd=log.parent,
            stdout=stream.fileno(),
            stderr=stream.fileno(),
            start_new_session=True,
        )


@contextmanager
def cluster(folder: Path, n_workers: int, *, by_command: bool = False) -> Iterator[Cluster]:
    """Start a cluster with so many workers; its processes end with the block."""
    folder.mkdir()
    start = _dask if by_command else _forked
    given: list[str | Path] = ["--port", "0", "--scheduler-file", folder / "scheduler.json", "--no-dashboard"]
    made = Cluster(folder, start("scheduler", *given, log=folder / "scheduler"))
    try:
        wait_for(made.file.exists, "the scheduler's start")
        for _ in range(n_workers):
            made.add_worker(by_command=by_command)
        yield made
    finally:
        for process in (*made.workers, made.scheduler):
            _end(process)


def n_shards(store: Path) -> int:
    """Return how many shards of embeddings a store has."""
    return len(shards_of(store))

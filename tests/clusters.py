"""What the tests of workers share: jobs with workers, and Dask clusters that are started apart, as real processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

from tests.helpers import COMMAND, Finished, shards_of

DASK = COMMAND.with_name("dask")

# Many shards, and some seconds of embedding, in a job of small pictures.
N_PICTURES, SHARD = 64, 4
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

    process: subprocess.Popen[str]
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
def driver(*arguments: str | Path, out: Path, env: Mapping[str, str] | None = None) -> Iterator[Driver]:
    """Start a job in a group of processes of its own, and leave none of them behind."""
    with (
        tempfile.TemporaryFile("w+") as printed,
        subprocess.Popen(
            [COMMAND, *arguments, "--out", out],
            stdout=printed,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - one system call
        ) as process,
    ):
        try:
            yield Driver(process, out, printed)
        finally:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """End a process with all of its group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@dataclass
class Cluster:
    """A scheduler and workers that were started apart from any job."""

    folder: Path
    scheduler: subprocess.Popen[str]
    workers: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def file(self) -> Path:
        return self.folder / "scheduler.json"

    @property
    def options(self) -> tuple[str | Path, ...]:
        """The options of a job that joins."""
        return ("--scheduler-file", self.file, "--workers", str(len(self.workers)))

    def add_worker(self, *before: str, env: Mapping[str, str] | None = None, nanny: bool = True) -> psutil.Process:
        """Start a worker, by a command that begins with `before`; return its process, or that of its nanny."""
        log = self.folder / f"worker-{len(self.workers)}"
        given: list[str | Path] = ["--scheduler-file", self.file, "--nthreads", "1", "--no-dashboard"]
        with log.open("w") as stream:
            started = subprocess.Popen(
                [*before, DASK, "worker", *given, *([] if nanny else ["--no-nanny"])],
                stdout=stream,
                stderr=stream,
                text=True,
                cwd=self.folder,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        self.workers.append(started)
        wait_for(lambda: "Starting established connection" in log.read_text(), "a worker's start")
        return psutil.Process(started.pid)

    def address(self, number: int) -> str:
        """Return the address of a worker."""
        found = re.findall(r"Start worker at: +(\S+)", (self.folder / f"worker-{number}").read_text())
        return str(found[-1])


@contextmanager
def cluster(folder: Path, n_workers: int, env: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """Start a cluster with so many workers; its processes end with the block."""
    folder.mkdir()
    with (folder / "scheduler").open("w") as log:
        scheduler = subprocess.Popen(
            [DASK, "scheduler", "--port", "0", "--scheduler-file", folder / "scheduler.json", "--no-dashboard"],
            stdout=log,
            stderr=log,
            text=True,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    made = Cluster(folder, scheduler)
    try:
        wait_for(made.file.exists, "the scheduler's start")
        for _ in range(n_workers):
            made.add_worker()
        yield made
    finally:
        for process in (*made.workers, scheduler):
            _end(process)


def n_shards(store: Path) -> int:
    """Return how many shards of embeddings a store has."""
    return len(shards_of(store))

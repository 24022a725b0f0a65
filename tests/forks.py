"""Processes that begin with everything imported: they are forked from one that has imported it once.

A job imports for two seconds before it does anything, and the tests start hundreds of them. What is forked is a process
as any other: it has its own number, its output is a pipe of its own, it hears signals, and it can be killed. What only
a new interpreter shows (what is imported, a descriptor that is closed, a setting that is read at the start, a limit on
the memory) needs `subprocess` and the real command.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from io import BufferedReader, BufferedWriter, FileIO, TextIOWrapper
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

# What a job imports. TensorFlow is not among it: it starts threads, and a fork has none of them.
_IMPORTED = (
    "sklearn.cluster",
    "sklearn.decomposition",
    "sklearn.manifold",
    "sklearn.metrics",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "pandas",
    "pyarrow.parquet",
    "ncnn",
    "distributed.deploy",
    "gpu_cluster.cli.main",
    "gpu_cluster.jobs.run",
    "gpu_cluster.jobs.predict",
    "gpu_cluster.jobs.compare",
    "gpu_cluster.embedding.engines.ncnn",
    "gpu_cluster.executor.cluster_executor",
    "gpu_cluster.report.page",
    "gpu_cluster.report.plots",
)

_COMMAND = Path(sys.executable).with_name("gpu-cluster")


@cache
def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    return context


def start_server() -> None:
    """Start the process that the others are forked from, if it does not run yet."""
    _server()
    forkserver.ensure_running()


@dataclass(frozen=True)
class _What:
    """What a process is to be."""

    arguments: list[str]
    program: str | None
    cwd: str
    env: dict[str, str]
    new_session: bool


class _Descriptors:
    """Descriptors that go to a process with the message that starts it."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, tuple(DupFd(number) for number in self.numbers)


def _received(*sent: Any) -> _Descriptors:
    return _Descriptors(*(one.detach() for one in sent))


class Forked:
    """The command, or a program, in a process of its own; as much of `subprocess.Popen` as the tests need."""

    def __init__(
        self,
        *arguments: str | os.PathLike[str],
        program: str | None = None,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        start_new_session: bool = False,
    ) -> None:
        """Start `gpu-cluster` with these arguments, or the source of a program.

        Standard input is /dev/null if none is given; standard output and error are pipes if none are given.
        """
        pipes = [os.pipe() if given is None else None for given in (stdout, stderr)]
        nothing = os.open(os.devnull, os.O_RDONLY)
        written = [given if pipe is None else pipe[1] for given, pipe in zip((stdout, stderr), pipes, strict=True)]
        what = _What(
            [os.fspath(argument) for argument in arguments],
            program,
            os.fspath(cwd or Path.cwd()),
            dict(os.environ if env is None else env),
            start_new_session,
        )
        sent = _Descriptors(nothing if stdin is None else stdin, *written)  # type: ignore[arg-type]
        self._process = _server().Process(target=_be, args=(what, sent))
        self._process.start()
        os.close(nothing)
        for pipe in pipes:
            if pipe is not None:
                os.close(pipe[1])
        self.stdout, self.stderr = (None if pipe is None else FileIO(pipe[0]) for pipe in pipes)
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | Any:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired("a forked process", timeout)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end, and return what it printed that was not read, on standard output and on standard error."""
        end = None if timeout is None else time.monotonic() + timeout
        streams = [stream for stream in (self.stdout, self.stderr) if stream is not None]
        found: dict[FileIO | None, bytes] = dict.fromkeys(streams, b"")
        with selectors.DefaultSelector() as selector:
            for stream in streams:
                selector.register(stream, selectors.EVENT_READ)
            while selector.get_map():
                ready = selector.select(None if end is None else max(0, end - time.monotonic()))
                if not ready and timeout is not None:
                    raise subprocess.TimeoutExpired("a forked process", timeout)
                for key, _ in ready:
                    part = os.read(key.fd, 1 << 16)
                    found[key.fileobj] += part  # type: ignore[index]
                    if not part:
                        selector.unregister(key.fileobj)
        self.wait(None if end is None else max(0.1, end - time.monotonic()))
        printed, errors = (found.get(stream, b"").decode("utf-8", "replace") for stream in (self.stdout, self.stderr))
        return printed, errors

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        self.wait()


def run_program(
    source: str, *arguments: str | os.PathLike[str], cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the source of a program as `python -c` does, in a process that has imported what a job imports."""
    with Forked(*arguments, program=source, cwd=cwd, env=env) as process:
        try:
            printed, errors = process.communicate(timeout=600)
        finally:
            process.kill()
        return subprocess.CompletedProcess(["-c", *arguments], process.wait(), printed, errors)


def _be(what: _What, descriptors: _Descriptors) -> None:
    """Be the command or the program, in the process that was forked."""
    # A shell starts what runs in its background with SIGINT ignored, and the tests may run there.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if what.new_session:
        os.setsid()
    for number, sent in enumerate(descriptors.numbers):
        os.dup2(sent, number)
        os.close(sent)
    # Those that are there belong to the output of the tests, and know whether it is a file or a terminal.
    sys.stdin = TextIOWrapper(BufferedReader(FileIO(0, "r", closefd=False)), "utf-8")
    sys.stdout, sys.stderr = (
        TextIOWrapper(
            BufferedWriter(FileIO(number, "w", closefd=False)),
            what.env.get("PYTHONIOENCODING", "utf-8"),
            errors,
            line_buffering=number == 2 or os.isatty(number),
        )
        for number, errors in ((1, "strict"), (2, "backslashreplace"))
    )
    os.chdir(what.cwd)
    os.environ.clear()
    os.environ.update(what.env)
    main = sys.modules["__main__"]
    try:
        if what.program is None:
            # The processes that a job starts, those of its workers, import what this one was started from.
            main.__file__, main.__spec__ = str(_COMMAND), None
            sys.argv = [str(_COMMAND), *what.arguments]
            from gpu_cluster.cli.main import main as command

            command()
        else:
            sys.argv = ["-c", *what.arguments]
            exec(compile(what.program, "<program>", "exec"), {"__name__": "__main__"})
    finally:
        # A process ends with them, but not one of a fork server.
        atexit._run_exitfuncs()

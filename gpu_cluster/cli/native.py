"""Keeps apart what the command prints on standard error and what libraries print there.

C and C++ libraries (libjpeg, libtiff, TensorFlow) write to file descriptor 2, and Python packages to `sys.stderr`.
While a command runs, both are a file in memory, whose content is logged from time to time; the command itself writes to
a copy of the descriptor that the process was started with. From Python, as in a notebook, nothing of this happens.

When the process dies of a signal (an abort, a segmentation fault), Python's faulthandler still writes to the copy where
the process was, and a second, very small process, which waits for this moment, writes the last words of the libraries;
a command starts it with `watch` before it loads a library that may say something.
"""

from __future__ import annotations

import faulthandler
import fcntl
import io
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from gpu_cluster.events import Observer

#: The name under which the output of libraries is logged.
LOG = "gpu_cluster.libraries"

log = logging.getLogger(LOG)

# It ends with the process that started it: without a word if that process wrote a byte into the pipe before.
_WATCHER = r"""
import os, sys
alive, kept = map(int, sys.argv[1:])
if not os.read(alive, 1):
    size = os.fstat(kept).st_size
    text = os.pread(kept, 20_000, max(0, size - 20_000)).decode("utf-8", "replace")
    shown = "".join(one if one.isprintable() or one in "\n\t" else f"\\x{ord(one):02x}" for one in text)
    if shown.strip():
        os.write(2, f"what libraries wrote before the process ended:\n{shown}".encode())
"""


class _Kept:
    """The output of libraries, and the stream that standard error was."""

    def __init__(self, descriptor: int, stream: TextIO) -> None:
        self.descriptor = descriptor
        self.stream = stream
        # Tells the process that writes last words, if there is one, that there are none.
        self.tell: Callable[[], None] | None = None


_kept: _Kept | None = None
# Stages may report from several threads.
_reading = threading.Lock()


def errors() -> TextIO:
    """Return the stream on which the command prints its errors and its progress."""
    return sys.stderr if _kept is None else _kept.stream


def errors_descriptor() -> int:
    """Return the file descriptor of `errors`, for a handler of a signal, which must not use a stream."""
    return 2 if _kept is None else _kept.stream.fileno()


@contextmanager
def kept_apart() -> Iterator[None]:
    """Keep the output of libraries apart for the block. If that is not possible here, it is printed as it comes."""
    global _kept  # noqa: PLW0603 - a process has one standard error
    try:
        _kept = _redirected()
    except (OSError, ValueError):
        yield
        return
    with suppress(OSError, ValueError, RuntimeError):
        faulthandler.enable(_kept.stream)
    try:
        yield
    finally:
        log_new_output()
        kept, _kept = _kept, None
        kept.stream.flush()
        faulthandler.disable()
        os.dup2(kept.stream.fileno(), 2)
        if kept.tell is not None:
            kept.tell()
        os.close(kept.descriptor)


def _redirected() -> _Kept:
    """Let descriptor 2 be a file in memory.

    Raises
    ------
    OSError, ValueError
        When this cannot be done, or standard error is not descriptor 2, as in a test.
    """
    if not isinstance(sys.stderr, io.TextIOWrapper) or sys.stderr.fileno() != 2:
        raise ValueError("standard error is not descriptor 2")
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("gpu-cluster-libraries")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    # Whoever writes there writes at its end, also after it was emptied.
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_APPEND)
    sys.stderr.flush()
    stream = open(  # noqa: SIM115 - it is open for as long as the process
        os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace"
    )
    os.dup2(descriptor, 2)
    return _Kept(descriptor, stream)


def watch() -> None:
    """Keep the last words of libraries if this process dies of a signal; nothing happens if it has been done before."""
    if _kept is not None and _kept.tell is None:
        _kept.tell = _watch(_kept)


def _watch(kept: _Kept) -> Callable[[], None]:
    """Start the process that writes the last words of libraries; return what tells it that there are none."""
    alive, ours = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _WATCHER, str(alive), str(kept.descriptor)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=kept.stream.fileno(),
            pass_fds=(alive, kept.descriptor),
            # Ctrl-C, which the terminal sends to all processes of the job, must not end it before the job.
            start_new_session=True,
        )
    except OSError:
        os.close(ours)
        return lambda: None
    finally:
        os.close(alive)

    def tell() -> None:
        with suppress(OSError):
            os.write(ours, b".")
        os.close(ours)
        with suppress(subprocess.TimeoutExpired):
            process.wait(2)

    return tell


def log_new_output() -> None:
    """Log, line by line, what libraries have written since the last time."""
    with _reading:
        if _kept is None or not (size := os.fstat(_kept.descriptor).st_size):
            return
        text = os.pread(_kept.descriptor, size, 0)
        os.ftruncate(_kept.descriptor, 0)
    for line in text.decode("utf-8", "replace").splitlines():
        if line.strip():
            log.info("%s", line)


class LibraryOutput(Observer):
    """Logs the output of libraries whenever the job reports something, so that it stands where it belongs."""

    def stage_finished(self, stage: str, elapsed_s: float) -> None:
        log_new_output()

    def stage_failed(self, stage: str) -> None:
        log_new_output()

    def progress(self, stage: str, done: int, total: int) -> None:
        log_new_output()

    def notice(self, message: str) -> None:
        log_new_output()

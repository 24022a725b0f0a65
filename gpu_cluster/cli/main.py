"""The entry point of the process: handles signals and standard streams, prints errors on one line, sets exit codes."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

import typer

from gpu_cluster.cli import native
from gpu_cluster.cli.commands import app, signals
from gpu_cluster.cli.output import print_error, set_log
from gpu_cluster.cli.signals import Terminated
from gpu_cluster.errors import ConfigError, GpuClusterError, InterruptedJobError


def main() -> None:
    """Run the command line and end the process with its exit code."""
    # First, because listening opens a pipe, whose ends would get the descriptors of closed streams.
    _fill_closed_descriptors()
    signals.listen()
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal's encoding lacks is shown as an escape; without this it would end the job.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    try:
        with native.kept_apart():
            set_log(logging.WARNING, libraries=debug)
            code = _run(arguments, debug=debug)
    # The signal came before the command began, or after its end.
    except (KeyboardInterrupt, Terminated):
        code = _print_interrupted()
    logging.captureWarnings(False)
    if signals.number is not None:
        _end_at_once(code)
    sys.exit(code)


def _run(arguments: Sequence[str], *, debug: bool) -> int:
    """Run the command line; print an error on one line, and return the exit code."""
    try:
        _check_arguments(arguments)
        # Without standalone mode Typer does not print usage errors itself, so that every error stays on one line.
        code = app(args=arguments, standalone_mode=False)
        if code == 128 + signal.SIGINT:
            # Typer silently turns a KeyboardInterrupt in a command into this code.
            raise KeyboardInterrupt
    except (GpuClusterError, typer.TyperException) as error:
        message = error.format_message() if isinstance(error, typer.TyperException) else str(error)
        print_error(message, with_traceback=debug)
        return 128 + (signals.number or 0) if isinstance(error, InterruptedJobError) else error.exit_code
    except (KeyboardInterrupt, typer.Abort, Terminated):
        return _print_interrupted()
    except Exception as error:  # noqa: BLE001 - the last resort: one line and an exit code, not a traceback
        if signals.number is not None:
            # While a C extension is imported, it may turn the exception of a signal into an ImportError.
            return _print_interrupted()
        found = " ".join(str(error).split())
        unexpected = f"unexpected {type(error).__name__}: {found}; please report it with what --debug prints"
        print_error(unexpected, with_traceback=debug)
        return 1
    return int(code or 0)


def _end_at_once(code: int) -> None:
    """End the process without waiting for threads that still decode or compute what nobody needs any more."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _fill_closed_descriptors() -> None:
    """Open the standard streams of a process that was started without them.

    Otherwise the first files that it opens would get their descriptors, and be written to as if they were the streams.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # `open` uses the lowest free descriptor, which is this one.
            os.open(os.devnull, os.O_RDWR)
    # Python has set a stream that was closed at its start to None.
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _check_arguments(arguments: Sequence[str]) -> None:
    """Refuse empty arguments: as a path, an empty argument would mean the current folder."""
    for number, argument in enumerate(arguments, start=1):
        if not argument or (argument.startswith("--") and argument.endswith("=")):
            raise ConfigError(
                f"argument {number} is empty: expected a value, found {argument!r}; is a variable of the shell not set?"
            )


def _print_interrupted() -> int:
    """Print that the job was interrupted, and return the exit code of a process that was ended by a signal."""
    print_error(f"interrupted; no results were written: {signals.go_on}")
    return 128 + (signals.number or signal.SIGINT)

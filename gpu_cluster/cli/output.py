"""The only way to the terminal: single lines, JSON and the log here, and with `console` all other text.

File names, labels, the fields of a model and the text of an error may contain anything. So every character that a
terminal would obey is shown as an escape here, before colours are added: these two modules must not know what is
printed. This module does without Rich, so that help and errors come at once.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import typer

from gpu_cluster.cli import native
from gpu_cluster.words import UNSAFE, escaped


class Patient:
    """A stream that drops all output once it can no longer be written, because this must not end a job of hours.

    This happens when the reader of a pipe has ended, the terminal is gone, or the disk with the log is full.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._patience():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._patience():
            self._stream.flush()

    @contextmanager
    def _patience(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            # Python writes buffered output when it ends, and would fail again without this.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


def write_error(text: str) -> None:
    """Write text to standard error as it is, but for unsafe characters; it has its own line end."""
    stream = Patient(native.errors())
    stream.write(escaped(text))
    stream.flush()


def print_error(message: str, *, with_traceback: bool = False) -> None:
    """Print on one line of standard error why a command failed; `with_traceback` prints the traceback before it."""
    # What libraries said of it comes before the error.
    native.log_new_output()
    before = ""
    if with_traceback:
        import traceback

        before = traceback.format_exc()
    write_error(f"{before}error: {on_one_line(message)}\n")


def print_note(message: str) -> None:
    """Print on one line of standard error what the user may not expect, but what is no error."""
    write_error(f"note: {on_one_line(message)}\n")


def on_one_line(message: str) -> str:
    """Return a message with its line ends and other white space as single spaces."""
    return " ".join(message.split())


def as_json(value: Any, **options: Any) -> str:
    r"""Return JSON, in which unsafe characters are written as `\uNNNN`, which means the same to its readers."""
    text = json.dumps(value, **options)
    return UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def print_json(value: Any) -> None:
    """Print JSON that can be read; if it cannot be printed, the command fails."""
    typer.echo(as_json(value, indent=2))


class _Log(logging.Handler):
    """Prints the log on standard error; what other packages than this one log only if `libraries` is true."""

    def __init__(self, *, libraries: bool) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        self._libraries = libraries

    def emit(self, record: logging.LogRecord) -> None:
        if not self._libraries and (record.name == native.LOG or not record.name.startswith("gpu_cluster")):
            return
        try:
            from gpu_cluster.cli.console import errors_console

            errors_console().print(self.format(record), markup=False)
        except Exception:  # noqa: BLE001 - a log line that cannot be printed must not end a job
            self.handleError(record)


def set_log(level: int, *, libraries: bool = False) -> None:
    """Print the log from this level on; with `libraries`, also the warnings of libraries and what they print."""
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, _Log):
            root.removeHandler(handler)
    root.addHandler(_Log(libraries=libraries))
    logging.getLogger("gpu_cluster").setLevel(level)
    logging.captureWarnings(True)

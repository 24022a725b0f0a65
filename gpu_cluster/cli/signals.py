"""Handles Ctrl-C, SIGTERM and SIGHUP, so that a job ends at a moment when nothing is lost. This module must not know
what the job does."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from contextlib import suppress
from types import FrameType

from gpu_cluster.cli.native import errors_descriptor
from gpu_cluster.events import Observer

_FINISHING = b"interrupted: the job ends after the batch of pictures in work; press Ctrl-C again to end it at once\n"
_BUSY = b"interrupted: the job ends as soon as the computation in work lets it, and in some seconds at the latest\n"

# Python hands a signal to its handler only between two steps of the main thread, and a library may compute for minutes
# in one step. A signal that is not handled after the first time is acknowledged; after the second, the process ends.
_ACKNOWLEDGED_S, _DEAF_S = 1.0, 8.0
# The same for a second Ctrl-C; where it is handled, what was finished is kept, which may take the longer time.
_DEAF_AGAIN_S, _KEEPING_S = 0.7, 5.0


class Terminated(BaseException):
    """SIGTERM or SIGHUP has arrived; it is raised inside the job, so that the job removes its temporary folder."""


class Signals(Observer):
    """Ends the job on Ctrl-C, SIGTERM and SIGHUP: at once, or in the stage embed after the batch of pictures in work.

    Attributes
    ----------
    number : the first signal that has arrived; None before
    go_on : what to do after an interruption, in words
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.go_on = "run the same command again"
        self._stage: str | None = None
        self._n_handled = 0
        self._watched = False

    def listen(self) -> None:
        """Install the handlers.

        SIGINT stays ignored if it is, as for a job in the background of a shell, and so does SIGHUP, as under `nohup`.
        """
        signal.signal(signal.SIGTERM, self._handle)
        for number in (signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)
        if not self._watched:
            self._watched = True
            here, there = os.pipe()
            os.set_blocking(there, False)
            signal.set_wakeup_fd(there, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(here,), daemon=True, name="signals").start()

    def job_started(self, go_on: str) -> None:
        self.go_on = go_on

    def stage_started(self, stage: str) -> None:
        self._stage = stage

    def stage_finished(self, stage: str, elapsed_s: float) -> None:
        self._stage = None

    def stage_failed(self, stage: str) -> None:
        self._stage = None

    def stopping(self) -> bool:
        return self.number is not None

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._n_handled += 1
        first = self.number is None
        self.number = number if first else self.number
        # Schedulers may send these several times, so later ones are ignored. A second Ctrl-C ends the job at once.
        for ignored in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(ignored, signal.SIG_IGN)
        if first and self._stage == "embed":
            _say(_FINISHING)
            return
        # A further Ctrl-C must not interrupt the cleaning up.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    def _watch(self, arrived: int) -> None:
        """Acknowledge signals, and end the process, if the main thread does not come to handle them.

        The system writes the number of each signal to a pipe, whose other end is `arrived`.
        """
        first, told = 0, False
        begun = again = None
        while True:
            if select.select([arrived], [], [], None if begun is None else 0.1)[0]:
                (number,) = os.read(arrived, 1)
                if begun is None and number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    first, begun = number, time.monotonic()
                elif number == signal.SIGINT:
                    again = again or time.monotonic()
            if begun is None:
                continue
            since_first, since_again = (time.monotonic() - (at or time.monotonic()) for at in (begun, again))
            if not self._n_handled and since_first > _ACKNOWLEDGED_S and not told:
                told = True
                _say(_BUSY)
            is_deaf = not self._n_handled and since_first > _DEAF_S
            is_deaf |= since_again > (_DEAF_AGAIN_S if self._n_handled < 2 else _KEEPING_S)
            if is_deaf:
                # The temporary folder stays; the next job with the same --out removes it.
                os._exit(128 + first)


def _say(line: bytes) -> None:
    # If the message cannot be written, the job ends all the same.
    with suppress(OSError):
        os.write(errors_descriptor(), line)

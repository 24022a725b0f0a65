"""Handles Ctrl-C and SIGTERM, so that a job ends at a moment when nothing is lost. This module must not know what the
job does."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from types import FrameType

from gpu_cluster.cli.native import errors_descriptor
from gpu_cluster.events import Observer

_FINISHING = b"interrupted: the job ends after the batch of pictures in work; press Ctrl-C again to end it at once\n"


class Terminated(BaseException):
    """SIGTERM has arrived; it is raised inside the job, so that the job removes its temporary folder."""


class Signals(Observer):
    """Ends the job on Ctrl-C and SIGTERM: at once, or in the stage embed after the batch of pictures in work.

    Attributes
    ----------
    number : the first signal that has arrived; None before
    go_on : what to do after an interruption, in words
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.go_on = "run the same command again"
        self._stage: str | None = None

    def listen(self) -> None:
        """Install the handlers; SIGINT stays ignored if it is, as for a job in the background of a shell."""
        signal.signal(signal.SIGTERM, self._handle)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._handle)

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
        first = self.number is None
        self.number = number if first else self.number
        # Schedulers may send SIGTERM several times, so later ones are ignored. A second Ctrl-C ends the job at once.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if first and self._stage == "embed":
            # If the message cannot be written, the batch is still finished.
            with suppress(OSError):
                os.write(errors_descriptor(), _FINISHING)
            return
        # A further Ctrl-C must not interrupt the cleaning up.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

"""Ctrl-C and SIGTERM: a job ends at a moment that loses nothing. Must not know what the job does."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from types import FrameType

from gpu_cluster.events import Observer


class Terminated(BaseException):
    """SIGTERM came; raised where the job is, so that what it staged is cleared away."""


class Signals(Observer):
    """Ends the job on Ctrl-C and SIGTERM: at once, or, while it embeds, when the current shard is kept."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._stage: str | None = None

    def listen(self) -> None:
        """Take the signals; SIGINT not where it is ignored, as in the background of a shell."""
        signal.signal(signal.SIGTERM, self._handle)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._handle)

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
        # Schedulers signal more than once, so a second TERM says nothing new; a second Ctrl-C does.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if first and self._stage == "embed":
            # Where nobody can be told, the shard is finished all the same.
            with suppress(OSError):
                os.write(2, b"interrupted: finishing the current shard; Ctrl-C ends at once, and loses it\n")
            return
        # Nothing may break into the clearing away.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

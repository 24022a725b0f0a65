"""Shows the progress of a job in a notebook, as one line that changes.

This module must not know jobs. It loads no library: in a notebook, IPython is there already.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from gpu_cluster.events import Observer

# So often the line changes at most, because each change is sent to the browser.
_EVERY_S = 0.2


def default_observer() -> Observer | None:
    """Return what shows progress where nobody has given an observer: a line in a notebook, and nothing elsewhere."""
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    # The IPython of a terminal has no kernel.
    return ProgressLine(_displayed()) if hasattr(shell, "kernel") else None


class ProgressLine(Observer):
    """Tells in one line what a job does now, and at the end how long each stage took.

    Parameters
    ----------
    show
        Shows a line in place of the one before.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._took: dict[str, float] = {}
        self._started = self._shown = 0.0

    def stage_started(self, stage: str) -> None:
        self._started = self._shown = time.perf_counter()
        self._show(f"{stage} ...")

    def progress(self, stage: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if now - self._shown < _EVERY_S or not done:
            return
        self._shown = now
        left_s = (total - done) * (now - self._started) / done
        self._show(f"{stage}: {done:,} of {total:,}, {left_s:.0f} s left")

    def stage_finished(self, stage: str, elapsed_s: float) -> None:
        self._took[stage] = elapsed_s
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self._took.items())
        self._show(f"{sum(self._took.values()):.1f} s: {stages.replace('_', ' ')}")

    def stage_failed(self, stage: str) -> None:
        self._show(f"{stage}: failed after {time.perf_counter() - self._started:.1f} s")


def _displayed() -> Callable[[str], None]:
    """Return the function that shows a line below the cell that runs, in place of the one before."""
    from IPython.display import display

    handle: Any = None

    def show(line: str) -> None:
        nonlocal handle
        content = {"text/plain": line}
        if handle is None:
            handle = display(content, raw=True, display_id=True)
        else:
            handle.update(content, raw=True)

    return show

"""Prints progress, decisions and what the smaller commands found. Only `cli` uses this module.

A terminal gets a progress bar and tables; a pipe or a file gets plain lines.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from gpu_cluster.cli.console import errors_console, open_console
from gpu_cluster.cli.output import print_note
from gpu_cluster.events import Observer
from gpu_cluster.files import printable
from gpu_cluster.words import count

if TYPE_CHECKING:
    from gpu_cluster.jobs.doctor import Diagnosis
    from gpu_cluster.jobs.selftest_verdict import SelftestVerdict
    from gpu_cluster.store.maintenance import Recipe

_UNITS = {
    "scan": "files",
    "embed": "images",
    "reduce": "images",
    "sweep": "k",
    "verify": "shards",
    "export": "pictures",
}
_PLAIN_EVERY_S = 5.0
# Workers whose speeds are shown beside the progress.
_MOST_SPEEDS = 8


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} {task.fields['unit']}/s" if task.speed else "")


class _Workers(ProgressColumn):
    """Shows the speed of each worker, if there are several."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["workers"])


class TerminalObserver(Observer):
    """Shows progress on standard error and decisions on standard output."""

    def __init__(self) -> None:
        self._out = open_console(soft_wrap=True)
        self._errors = errors_console()
        self._bar: Progress | None = None
        self._started = self._last_line = 0.0
        # Items and seconds of each worker's finished tasks in this stage.
        self._workers: dict[str, tuple[int, float]] = {}

    def stage_started(self, stage: str) -> None:
        self._started = self._last_line = time.perf_counter()
        self._workers.clear()
        if stage in _UNITS and self._errors.is_terminal:
            columns = (TextColumn("{task.description:6}"), BarColumn(), MofNCompleteColumn(), _Speed(), _Workers())
            self._bar = Progress(*columns, TimeRemainingColumn(), console=self._errors, transient=True)
            self._bar.add_task(stage, total=None, unit=_UNITS[stage], workers="")
            self._bar.start()

    def progress(self, stage: str, done: int, total: int) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total)
        elif not self._errors.is_terminal and done < total:
            self._plain_progress(stage, done, total)

    def task_finished(self, stage: str, worker: str, n_items: int, elapsed_s: float) -> None:
        n, busy_s = self._workers.get(worker, (0, 0.0))
        self._workers[worker] = (n + n_items, busy_s + elapsed_s)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], workers=self._speeds())

    def _speeds(self) -> str:
        """Return in words how fast each worker is; an empty text if there are none."""
        speeds = [n / busy_s for n, busy_s in self._workers.values() if busy_s]
        if not speeds:
            return ""
        shown = " + ".join(f"{speed:.1f}" for speed in speeds[:_MOST_SPEEDS])
        return f"{count(len(speeds), 'worker')}: {shown}{' + ...' if len(speeds) > _MOST_SPEEDS else ''}/s"

    def stage_failed(self, stage: str) -> None:
        self._remove_bar()

    def stage_finished(self, stage: str, elapsed_s: float) -> None:
        self._remove_bar()
        self._errors.print(f"{stage}: {elapsed_s:.1f} s", markup=False)

    def notice(self, message: str) -> None:
        # Only the console of a live progress bar can print above it. A bar on a terminal does not disturb a file.
        live = self._bar is not None and self._out.is_terminal
        (self._errors if live else self._out).print(message, markup=False)

    def _remove_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _plain_progress(self, stage: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if done and now - self._last_line >= _PLAIN_EVERY_S:
            self._last_line = now
            rate = done / (now - self._started)
            left_s = (total - done) / rate
            workers = f" ({self._speeds()})" if self._workers else ""
            line = f"{stage}: {done:,} of {total:,} {_UNITS[stage]}, {rate:.1f}/s{workers}, {left_s:.0f} s left"
            self._errors.print(line, markup=False)


def print_done(message: str) -> None:
    """Print what a command has done; if this cannot be printed, the command still counts as done."""
    open_console(soft_wrap=True).print(message, markup=False)


def open_page(page: Path) -> None:
    """Open a page in the browser; if there is no page or no browser, say so: the command has done its work."""
    import webbrowser

    if not page.is_file():
        print_note("there is no report to open")
        return
    try:
        opened = webbrowser.open(page.as_uri())
    except (OSError, webbrowser.Error):
        opened = False
    if not opened:
        print_note(f"no browser could be opened here; the report is {printable(page.as_uri())}")


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """Print the checks as a table, with the remedy for each check that fails."""
    # The printed text is the only result, so the command fails if it cannot be printed.
    console = open_console(patient=False, soft_wrap=True)
    marks = {"ok": "ok", "missing": "FAIL", "absent": "-"}
    width = max(len(check.name) for check in diagnosis.checks)
    for check in diagnosis.checks:
        console.print(f"{marks[check.status]:4}  {check.name:{width}}  {check.found}", markup=False)
        if check.remedy:
            console.print(f"{'':4}  {'':{width}}  -> {check.remedy}", markup=False)
    verdict = "can run here" if diagnosis.works else "cannot run here"
    console.print(f"gpu-cluster --device {diagnosis.device} {verdict}", markup=False)


def print_cache(root: Path, recipes: Sequence[Recipe]) -> None:
    """Print what the store keeps: each recipe and each scanned folder."""
    # The printed text is the only result, so the command fails if it cannot be printed.
    console = open_console(patient=False, soft_wrap=True)
    console.print(printable(str(root)), markup=False)
    for recipe in recipes:
        used = datetime.fromtimestamp(recipe.last_used).strftime("%Y-%m-%d")
        damaged = f", {recipe.n_damaged} damaged set aside" if recipe.n_damaged else ""
        rows = f"{count(recipe.n_rows, 'row')} in {count(recipe.n_shards, 'shard')}"
        size = f"{rows}, {recipe.n_bytes / 1e6:,.1f} MB{damaged}"
        if recipe.kind == "parts":
            parts = f"{count(recipe.n_rows, 'part')} of results, {recipe.n_bytes / 1e6:,.1f} MB"
            console.print(f"parts: {parts}, last used {used}", markup=False)
            continue
        console.print(f"{recipe.kind} {recipe.folder.name}: {size}, last used {used}", markup=False)
        console.print(
            f"    {', '.join(f'{name} {value}' for name, value in recipe.as_json()['key'].items())}", markup=False
        )
    if not recipes:
        console.print("the store is empty", markup=False)


def print_verdict(verdict: SelftestVerdict) -> None:
    """Print the comparison of the devices, one line for each row, with its tolerance and the reason for it."""
    # In a log, the table is wide enough to have each row on one line.
    console = open_console(width=None if sys.stdout.isatty() else 160)
    marks = {True: "ok", False: "MISS", None: ""}
    table = Table(pad_edge=False)
    for title in ("", "", "CPU", "GPU", "error", "tolerance", "why"):
        table.add_column(title, overflow="fold")
    for row in verdict.rows:
        error = "" if row.error is None else f"{row.error:.2g}"
        tolerance = "" if row.tolerance is None else f"{row.tolerance:g}"
        cells = (marks[row.ok], row.name, row.cpu, row.gpu or "", error, tolerance, row.reason)
        table.add_row(*map(Text, cells))
    console.print(table)
    console.print(verdict.not_tried or f"{'passed' if verdict.passed else 'MISSED'}", markup=False)

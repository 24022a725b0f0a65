"""What every bench gives to `make bench`: rows of one table, each a ratio of two times that were measured in turn.

A bench is a module of this folder with a function `measure(quick: bool) -> list[Row]`; with `quick`, it takes seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    name : what is measured, and with what it is compared
    ours_s : seconds that this project takes, the least of all rounds; None if the row is about what its `note` says
    other_s : seconds of the other way, the least of all rounds; None if there is none
    ratio : how many times faster ours is, from the two minima; None without an `other_s`
    spread : (largest - smallest) / smallest of the ratios of the rounds, or of `ours_s` without an `other_s`; None for
        a figure that does not vary
    note : what else there is to say
    """

    name: str
    ours_s: float | None
    other_s: float | None = None
    ratio: float | None = None
    spread: float | None = None
    note: str = ""


def compared(name: str, ours: Callable[[], object], other: Callable[[], object], *, rounds: int, note: str = "") -> Row:
    """Time two ways of doing the same in turn, so that both meet the same neighbours on the machine."""
    times = [(timed(ours), timed(other)) for _ in range(rounds)]
    return of_times(name, [one for one, _ in times], [two for _, two in times], note=note)


def of_times(name: str, ours_s: Sequence[float], other_s: Sequence[float] = (), *, note: str = "") -> Row:
    """Return the row of the seconds of several rounds; `other_s` has as many, or none."""
    if not other_s:
        return Row(name, min(ours_s), spread=_spread(ours_s), note=note)
    ratios = [other / ours for ours, other in zip(ours_s, other_s, strict=True)]
    return Row(name, min(ours_s), min(other_s), min(other_s) / min(ours_s), _spread(ratios), note)


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that some work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def table(rows: Sequence[Row]) -> str:
    """Return rows as a table in Markdown, ratios first."""
    titles = ("times faster", "spread", "ours, s", "other, s", "what", "note")
    cells = [
        (
            "" if row.ratio is None else f"{row.ratio:.2f}",
            "" if row.spread is None else f"{row.spread:.0%}",
            "" if row.ours_s is None else f"{row.ours_s:.3g}",
            "" if row.other_s is None else f"{row.other_s:.3g}",
            row.name,
            row.note,
        )
        for row in rows
    ]
    lines = [f"| {' | '.join(line)} |" for line in (titles, *cells)]
    return "\n".join([lines[0], "|---:" * 4 + "|---" * 2 + "|", *lines[1:]])


def _spread(values: Sequence[float]) -> float:
    return (max(values) - min(values)) / min(values)

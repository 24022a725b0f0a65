"""Turns the groups of a finished run into the cards of its page, and counts their labels.

This module must not know which pictures a page can show.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gpu_cluster.report.html import visible
from gpu_cluster.report.pictures import MOST_CARDS, Chosen, Shown
from gpu_cluster.results import Contingency
from gpu_cluster.run_folder import PLOTS, FinishedRun
from gpu_cluster.words import count

# Labels of a group that are named; the others are counted together.
_MOST_LABELS = 6

_MOST_ROWS = 500


def cards(run: FinishedRun, chosen: Chosen, shown: Shown) -> Iterator[dict[str, Any]]:
    """Yield the content of the card of each group, largest group first."""
    clusters = run.pictures["cluster"].to_numpy()
    silhouettes = run.pictures["silhouette"].to_numpy(np.float64)
    digits = max(2, len(str(int(run.metrics["k"]) - 1)))
    for number, (size, members, strips) in enumerate(zip(chosen.sizes, chosen.members, chosen.strips, strict=True)):
        known = silhouettes[clusters == number]
        known = known[~np.isnan(known)]
        nearest, farthest = strips
        yield {
            "number": number,
            "size": count(size, "picture"),
            "n": size,
            "n_listed": len(members),
            "silhouette": f"{known.mean():.2f}" if len(known) else "not computed",
            "labels": labels(run, number),
            "nearest": shown.all(nearest),
            "farthest": shown.all(farthest),
            "sheet": f"{PLOTS}/cluster_{number:0{digits}d}.png",
        }


def contingency(run: FinishedRun) -> Contingency | None:
    """Return the counts of the run's labels in its groups; None without labels."""
    content = run.metrics["class_by_cluster"]
    return None if content is None else Contingency(tuple(content["classes"]), np.array(content["counts"]))


def labels(run: FinishedRun, number: int) -> dict[str, Any] | None:
    """Return the labels of a group, the most frequent first, and how many pictures have others or none.

    A share is that of the pictures of the group that have a label. None without labels.
    """
    table = contingency(run)
    if table is None:
        return None
    n = int(table.counts[:, number].sum())
    every = table.most_frequent(number, most=len(table.classes))
    # One label too many is named rather than counted as "1 other".
    named = every if len(every) <= _MOST_LABELS + 1 else every[:_MOST_LABELS]
    others = every[len(named) :]
    return {
        "named": [
            {"name": visible(label), "count": f"{of:,}", "share": round(share, 3), "percent": f"{share:.0%}"}
            for label, of in named
            for share in [table.share(number, of)]
        ],
        "n_others": len(others),
        "in_others": f"{sum(of for _, of in others):,}",
        "without": int(run.metrics["cluster_sizes"][number]) - n,
    }


def crosstab(run: FinishedRun) -> dict[str, Any] | None:
    """Return the table of labels by group; None without labels."""
    table = run.metrics["class_by_cluster"]
    if table is None:
        return None
    rows = [
        {"name": visible(name), "counts": counts[:MOST_CARDS], "most": max(counts)}
        for name, counts in zip(table["classes"], table["counts"], strict=True)
    ]
    return {"groups": range(min(int(run.metrics["k"]), MOST_CARDS)), "rows": rows[:_MOST_ROWS]}

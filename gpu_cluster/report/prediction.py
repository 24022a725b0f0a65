"""Turns predictions into a page of one file: where the new pictures went, and which are far from their group.

This module must not know how the pictures were assigned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpu_cluster.backend import FloatArray, IntArray
from gpu_cluster.files import escaped, write_explained, write_whole
from gpu_cluster.images.places import open_source
from gpu_cluster.images.source import LocalFiles
from gpu_cluster.images.thumbnails import Thumbnails
from gpu_cluster.manifest import Manifest
from gpu_cluster.report.groups import labels
from gpu_cluster.report.html import Links, are_files, render, visible
from gpu_cluster.report.pictures import ALONE, MOST_CARDS, Shown
from gpu_cluster.run_folder import FinishedRun
from gpu_cluster.words import count

# Every page has this line, by which a later prediction recognises a page that it may replace.
MARK = '<meta name="generator" content="gpu-cluster predict">'

# Largest number of pictures that are shown: far ones, new ones of a group, and those of the run for comparison.
_MOST_FAR, _MOST_NEW, _EXAMPLES = 100, 24, 4

# Of the pictures that were clustered, 1 in 100 is far from its group. From this share on, the page says that the new
# ones may show something else.
_MANY_FAR = 0.1


@dataclass(frozen=True)
class Assigned:
    """New pictures and the clusters of a run that they were assigned to; the arrays are host and have n rows.

    Attributes
    ----------
    rows : (n,) row of the manifest
    clusters : (n,)
    distances : (n,) float32; to the centre of the cluster
    far : (n,) bool
    far_distances : (k,) float32; a picture of the cluster is far above this distance
    """

    manifest: Manifest
    rows: IntArray
    clusters: IntArray
    distances: FloatArray
    far: Any
    far_distances: FloatArray


def write_prediction_page(file: Path, run: FinishedRun, new: Assigned, table: Path, *, portable: bool = False) -> None:
    """Write the page of predictions; `table` is the file with all of them. A portable page has no links to pictures.

    Raises
    ------
    JobError
        When it cannot be written; an earlier page stays as it is.
    """
    content = _render(file.parent, run, new, table, portable=portable).encode()
    with write_explained(file):
        write_whole(file, content)


class _New:
    """Describes new pictures for the template, as `Shown` does those of the run."""

    def __init__(self, new: Assigned, links: Links | None) -> None:
        self._new = new
        self._paths = [escaped(new.manifest.paths[row]) for row in new.rows]
        self._thumbnails = Thumbnails(open_source(new.manifest.root, new.manifest.signed), self._paths)
        self._links = links

    def all(self, places: IntArray) -> list[dict[str, Any]]:
        self._thumbnails.make(places.tolist(), ALONE)
        return [self._one(int(place)) for place in places]

    def _one(self, place: int) -> dict[str, Any]:
        new, path = self._new, self._paths[place]
        group = int(new.clusters[place])
        times = _times(new)[place]
        return {
            "source": self._thumbnails.uri(place),
            "link": None if self._links is None else self._links.to(path),
            "name": visible(path),
            "alt": f"{visible(path)}, assigned to group {group}",
            "group": group,
            "beyond": f"{times:.2f} times as far as the limit of the group" if np.isfinite(times) else "",
            "far": bool(new.far[place]),
        }


def _times(new: Assigned) -> FloatArray:
    """Return each distance as a multiple of the distance from which on a picture of its cluster is far."""
    limits = new.far_distances[new.clusters].astype(np.float64)
    times: FloatArray = np.divide(new.distances, limits, out=np.full(len(limits), np.inf), where=limits > 0)
    return times


def _render(folder: Path, run: FinishedRun, new: Assigned, table: Path, *, portable: bool) -> str:
    linked = not portable and are_files(new.manifest.paths)
    pictures = _New(new, Links(new.manifest.root, folder) if linked else None)
    far = np.flatnonzero(new.far)
    farthest = far[np.argsort(-_times(new)[far], kind="stable")][:_MOST_FAR]
    bad = [(escaped(new.manifest.paths[row]), why) for row, why in sorted(new.manifest.bad.items())]
    return render(
        "prediction.html",
        {
            "mark": MARK,
            "title": f"New pictures in the groups of {visible(run.folder.absolute().name)}",
            "answer": _answer(new, len(far)),
            "clarity": "weak" if len(far) > _MANY_FAR * len(new.rows) else "clear",
            "table": visible(table.name),
            "far": pictures.all(farthest),
            "n_far": len(far),
            "linked": linked,
            "groups": list(_groups(None if portable else folder, run, new, pictures)),
            "n_groups": len(np.unique(new.clusters)),
            "n_empty": int(run.metrics["k"]) - len(np.unique(new.clusters)),
            "bad": [{"name": visible(path), "reason": visible(why)} for path, why in bad],
        },
    )


def _answer(new: Assigned, n_far: int) -> str:
    n = len(new.rows)
    if not n:
        return "None of the new files could be read."
    words = (
        f"{count(n, 'new picture')}: {n - n_far:,} lie within their group, {n_far:,} are far from the nearest group."
    )
    if n_far > _MANY_FAR * n:
        words += (
            " That is many: of the pictures of the run itself, about 1 in 100 is far. The new pictures may show "
            "something that the run has no group for. Look at the far ones; to give them groups, run again with them."
        )
    return words


def _groups(folder: Path | None, run: FinishedRun, new: Assigned, pictures: _New) -> Iterator[dict[str, Any]]:
    """Yield the groups that new pictures went to, those with most of them first; without a folder, without links."""
    root, kept = run.thumbnails
    thumbnails = Thumbnails(
        None if root is None else LocalFiles(root),
        run.pictures["path"],
        kept=kept,
        hashes=run.pictures["content_hash"],
    )
    shown = Shown(run, thumbnails, None if root is None or folder is None else Links(root, folder))
    clusters, distances = run.pictures["cluster"].to_numpy(), run.pictures["distance"].to_numpy()
    counts = np.bincount(new.clusters, minlength=int(run.metrics["k"]))
    for number in np.argsort(-counts, kind="stable")[:MOST_CARDS]:
        if not counts[number]:
            return
        examples = np.flatnonzero(clusters == number)
        examples = examples[np.argsort(distances[examples], kind="stable")][:_EXAMPLES].tolist()
        thumbnails.make(examples, ALONE)
        theirs = np.flatnonzero(new.clusters == number)
        theirs = theirs[np.argsort(new.distances[theirs], kind="stable")]
        yield {
            "number": int(number),
            "size": count(int(counts[number]), "new picture"),
            "n_far": int(new.far[theirs].sum()),
            "labels": labels(run, int(number)),
            "examples": shown.all(examples),
            "new": pictures.all(theirs[:_MOST_NEW]),
            "n_more": max(0, len(theirs) - _MOST_NEW),
        }

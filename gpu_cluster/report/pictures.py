"""Chooses which pictures of a finished run its page shows, and describes each: its copy, name, group and link.

This module must not know where on the page they stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpu_cluster.addresses import is_elsewhere
from gpu_cluster.backend import FloatArray, IntArray
from gpu_cluster.errors import DataError
from gpu_cluster.files import printable
from gpu_cluster.images.thumbnails import Thumbnails
from gpu_cluster.report.html import Links, visible
from gpu_cluster.run_folder import FinishedRun
from gpu_cluster.sampling import sorted_sample

# Largest number of pictures on the map, and of pictures with a small copy there and in the lists of the groups. Of more
# pictures, it is those of the lists and a random sample of the others, always the same.
MOST_SHOWN = 50_000
MOST_THUMBNAILS = 4_000

# Largest number of groups with a card, and of pictures in its two strips.
MOST_CARDS, NEAREST, FARTHEST = 100, 8, 4

_MOST_UNCERTAIN, _MOST_PAIRS = 24, 40

# Longest side, in pixels, of a copy that stands alone; of one on a sheet if there are few, and if there are many.
ALONE, ON_SHEET, ON_FULL_SHEET = 160, 96, 64
_FEW = 1_024


def check_inside(run: FinishedRun) -> None:
    """Check that no path of a run leads out of the folder of its pictures.

    Raises
    ------
    DataError
        When one does; no picture was opened then.
    """
    for path in run.pictures["path"]:
        # An escape in a path stands for no dot and no slash (see `files.unescaped`).
        # What is no file is not opened for a run folder that somebody else may have made.
        if not is_elsewhere(path) and (path.startswith("/") or ".." in path.split("/")):
            raise DataError(
                f"the run folder {printable(str(run.folder))!r} names the picture {visible(path)[:200]!r}: "
                "expected paths inside the folder of its pictures, found one that leads out of it; no picture was "
                "opened. Did somebody else make this folder? Run the clustering again to get one of your own"
            )


class Chosen:
    """The rows of the pictures on a page.

    Attributes
    ----------
    members : for each group with a card, all its pictures, or as many as the page holds, nearest to the centre first
    sizes : for each of these groups, how many pictures it has
    strips : for each of these groups, the nearest pictures and the farthest
    uncertain : the lowest silhouettes, lowest first
    pairs : near duplicates with their cosine, highest first
    on_map : ascending
    on_sheets : ascending; those of the map that have a small copy
    """

    def __init__(self, run: FinishedRun) -> None:
        clusters = run.pictures["cluster"].to_numpy()
        distances = run.pictures["distance"].to_numpy()
        n, n_cards = len(clusters), min(int(run.metrics["k"]), MOST_CARDS)
        most = n if n <= MOST_THUMBNAILS else max(1, MOST_THUMBNAILS * 3 // 4 // n_cards)
        self.members: list[list[int]] = []
        self.sizes: list[int] = []
        self.strips: list[tuple[list[int], list[int]]] = []
        for number in range(n_cards):
            rows = np.flatnonzero(clusters == number)
            rows = rows[np.argsort(distances[rows], kind="stable")]
            self.sizes.append(len(rows))
            self.members.append(rows[:most].tolist())
            self.strips.append((rows[:NEAREST].tolist(), rows[NEAREST:][::-1][:FARTHEST].tolist()))
        self.uncertain = least_certain(run.pictures["silhouette"].to_numpy(np.float64))
        self.pairs = _pairs(run)
        listed = np.unique(np.array([row for rows in self.members for row in rows], dtype=np.int64))
        self.on_map = _filled_up(listed, n, MOST_SHOWN)
        self.on_sheets = listed if len(listed) == n else _of(self.on_map, _filled_up(listed, n, MOST_THUMBNAILS))

    @property
    def alone(self) -> list[int]:
        """Rows of the pictures whose copies stand alone; a row can be there twice."""
        strips = [row for strip in self.strips for rows in strip for row in rows]
        return [*strips, *self.uncertain, *(row for pair, _ in self.pairs for row in pair)]

    @property
    def side_on_sheet(self) -> int:
        """Longest side of a copy on a sheet, in pixels."""
        return ON_SHEET if len(self.on_sheets) <= _FEW else ON_FULL_SHEET


def _filled_up(rows: IntArray, n: int, most: int) -> IntArray:
    """Return up to `most` of n rows, ascending: these rows, and a random sample of the others."""
    others = np.setdiff1d(np.arange(n), rows, assume_unique=True)
    sample = sorted_sample(len(others), max(0, most - len(rows)), np.random.RandomState(0))
    return np.union1d(rows, others[sample])


def _of(rows: IntArray, others: IntArray) -> IntArray:
    return np.intersect1d(rows, others, assume_unique=True)


def least_certain(silhouettes: FloatArray) -> list[int]:
    """Return the rows with the lowest silhouettes (n,), lowest first; those whose silhouette is NaN do not count."""
    # Pictures without a silhouette come last, because NaN sorts last.
    lowest = np.argsort(silhouettes, kind="stable")[:_MOST_UNCERTAIN]
    return [int(row) for row in lowest if not np.isnan(silhouettes[row])]


def _pairs(run: FinishedRun) -> list[tuple[tuple[int, int], float]]:
    row_of = {path: row for row, path in enumerate(run.pictures["path"])}
    named = run.near_duplicates[:_MOST_PAIRS].itertuples(index=False)
    return [((row_of[one], row_of[other]), float(cosine)) for one, other, cosine in named]


class Shown:
    """Describes pictures of a run for the template: copy, link to the file, name, group, silhouette."""

    def __init__(self, run: FinishedRun, thumbnails: Thumbnails, links: Links | None) -> None:
        self._pictures = run.pictures
        self._has_labels = run.metrics["class_by_cluster"] is not None
        self._thumbnails = thumbnails
        self._links = links

    def one(self, row: int) -> dict[str, Any]:
        picture = self._pictures.iloc[row]
        name, group, label = visible(picture["path"]), int(picture["cluster"]), picture["label"]
        labelled = self._has_labels and isinstance(label, str) and label
        silhouette = float(picture["silhouette"])
        return {
            "source": self._thumbnails.uri(row),
            "link": None if self._links is None else self._links.to(picture["path"]),
            "name": name,
            "alt": f"{name}, group {group}" + (f", label {visible(label)}" if labelled else ""),
            "group": group,
            "silhouette": "" if np.isnan(silhouette) else f"silhouette {silhouette:.2f}",
        }

    def all(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        return [self.one(row) for row in rows]

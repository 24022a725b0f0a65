"""The names of the groups of a finished run: numbers, labels, or what a user calls them.

A run and a CSV of names enter, a name for each cluster leaves. This module must not know what the names are for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gpu_cluster.config import InputConfig
from gpu_cluster.errors import DataError
from gpu_cluster.files import printable
from gpu_cluster.images.label_table import LabelTable, is_not_utf8
from gpu_cluster.jobs.loaded import LoadedRun

# The share of a group's labelled pictures from which on their label is part of its name.
_MOSTLY = 0.5


def group_names(run: LoadedRun, names: Path | None) -> list[str]:
    """Return the name of each cluster: the one that the user gives it, or its number, and the label if most have one.

    Raises
    ------
    DataError
        When the table of names cannot be read, or does not fit the run.
    """
    width = len(str(run.k - 1))
    groups = [f"{number:0{width}d}" for number in range(run.k)]
    for number, label in enumerate(run.model.cluster_labels or ()):
        theirs = run.assignments["label"][run.clusters == number].dropna()
        if label is not None and (theirs == label).sum() >= _MOSTLY * len(theirs):
            groups[number] += f"-{label}"
    for number, name in {} if names is None else _named(names, run.k).items():
        groups[number] = name
    return groups


def _named(file: Path, k: int) -> Mapping[int, str]:
    """Return the names that a CSV with the columns cluster and name gives to clusters.

    Raises
    ------
    DataError
        When it cannot be read, or names a cluster that the run does not have, or one twice.
    """
    shown = printable(str(file))
    table = LabelTable(file, InputConfig(file_col="cluster", label_col="name"))
    try:
        fits = table.fits()
    except OSError as error:
        raise DataError(f"cannot read --names {shown!r}: {error.strerror}") from error
    if not fits:
        raise DataError(f"--names {shown!r}: expected a CSV with the columns cluster and name in its first line")
    found: dict[int, str] = {}
    for cell, name in table.rows():
        number = int(cell) if cell.strip().isdecimal() else -1
        if not 0 <= number < k:
            raise DataError(
                f"--names {shown!r}: expected the number of a cluster of this run, from 0 to {k - 1}; found "
                f"{printable(cell)!r}"
            )
        if number in found:
            raise DataError(f"--names {shown!r}: expected each cluster once; found {number} twice")
        if name is not None and is_not_utf8(name):
            raise DataError(f"--names {shown!r}: expected UTF-8, found {printable(name)!r}; save it as 'CSV UTF-8'")
        if name is not None:
            found[number] = name
    return found

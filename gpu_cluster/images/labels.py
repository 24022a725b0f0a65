"""Adds labels to a Manifest.

Labels come from a CSV that the user names, from a CSV found in a folder that the user names, or from the names of the
folders. They take no part in any decision; they are only compared with the clusters.
"""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from gpu_cluster.config import InputConfig
from gpu_cluster.errors import DataError
from gpu_cluster.events import Observer
from gpu_cluster.files import printable
from gpu_cluster.manifest import Manifest


def labelled(manifest: Manifest, config: InputConfig, observer: Observer) -> Manifest:
    """Return the manifest with its labels, or as it is if there are no labels.

    Raises
    ------
    DataError
        When the labels do not fit the files, or more than one CSV in the named folders could hold them.
    """
    if config.labels_from_folders:
        return _by_folder(manifest, observer)
    table = config.labels or _find_table(manifest, config)
    return manifest if table is None else _by_table(manifest, table, config, observer)


def _by_folder(manifest: Manifest, observer: Observer) -> Manifest:
    folders = [os.path.basename(os.path.dirname(path)) for path in manifest.paths]
    if not any(folders):
        raise DataError(
            f"--labels-from-folders expects images in folders named after their label; "
            f"all lie directly in {printable(str(manifest.root))!r}"
        )
    return _with_labels(manifest, [printable(folder) or None for folder in folders], "folder names", 0, observer)


def _find_table(manifest: Manifest, config: InputConfig) -> Path | None:
    """Return the only CSV directly in a named folder whose header has both columns; None if there is no such CSV."""
    found = []
    # If the user named nothing, the pictures are the sample set, whose folder is the root.
    named = config.images or ([manifest.root] if config.input_list is None else [])
    for folder in (path for path in named if path.is_dir()):
        for table in sorted(folder.iterdir()):
            if table.suffix.lower() == ".csv" and table.is_file():
                header = _read_header(table)
                if config.file_col in header and config.label_col in header:
                    found.append(table)
    if len(found) > 1:
        names = ", ".join(repr(printable(str(table))) for table in found)
        raise DataError(f"more than one CSV could hold the labels: {names}; choose one with --labels")
    return found[0] if found else None


def _read_header(table: Path) -> list[str]:
    try:
        with _open_table(table) as stream:
            return next(csv.reader(stream), [])
    except csv.Error:
        return []
    except OSError as error:
        raise DataError(
            f"cannot read {printable(str(table))!r}, which may hold labels: {error.strerror}; name one with --labels"
        ) from error


def _open_table(table: Path):  # type: ignore[no-untyped-def]
    # utf-8-sig drops a byte-order mark; surrogate escapes keep file names that are not UTF-8.
    return table.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _by_table(manifest: Manifest, table: Path, config: InputConfig, observer: Observer) -> Manifest:
    rows_of_file = _Rows(manifest, table)
    labels: list[str | None] = [None] * len(manifest)
    n_named = n_without_file = 0
    for name, label in _read_table(table, config):
        row = rows_of_file.find(name)
        if row is None:
            n_without_file += 1
            continue
        n_named += 1
        if None not in (labels[row], label) and labels[row] != label:
            raise DataError(
                f"{printable(str(table))!r} gives {printable(name)!r} two labels, {labels[row]!r} and {label!r}; "
                "expected one label for each file"
            )
        else:
            labels[row] = labels[row] or label
    source = printable(str(table))
    if not any(labels):
        found = f"names {n_named} of the images but gives none a label" if n_named else "names none of the images"
        if config.labels is None:
            observer.notice(f"{source} {found}; going on without labels")
            return manifest
        if n_named:
            raise DataError(f"{source!r} {found}; expected labels in its column {config.label_col!r}")
        raise DataError(
            f"column {config.file_col!r} of {source!r} names none of the {len(manifest)} images; expected names "
            f"relative to {printable(str(manifest.root))!r}, such as {printable(manifest.paths[0])!r}"
        )
    if config.labels is None:
        observer.notice(f"Labels found in {source}")
    return _with_labels(manifest, labels, source, n_without_file, observer)


def _read_table(table: Path, config: InputConfig) -> Iterator[tuple[str, str | None]]:
    source = printable(str(table))
    try:
        with _open_table(table) as stream:
            reader = csv.DictReader(stream)
            header = reader.fieldnames or []
            for column, option in ((config.file_col, "--file-col"), (config.label_col, "--label-col")):
                if column not in header:
                    has = ", ".join(map(repr, header)) or "no header"
                    raise DataError(f"{source!r} has no column {column!r}; it has {has}; name it with {option}")
            for record in reader:
                name, label = record[config.file_col], record[config.label_col]
                if name:
                    yield name, printable(label.strip()) or None if label else None
    except (OSError, csv.Error) as error:
        raise DataError(f"cannot read the labels {source!r}: {getattr(error, 'strerror', None) or error}") from error


def _with_labels(
    manifest: Manifest,
    labels: Sequence[str | None],
    source: str,
    n_without_file: int,
    observer: Observer,
) -> Manifest:
    labelled = replace(manifest, labels=tuple(labels), label_source=source, n_labels_without_file=n_without_file)
    if n_without_file:
        observer.notice(f"{n_without_file} rows of {source} name a file that was not found")
    if labelled.n_files_without_label:
        observer.notice(f"{labelled.n_files_without_label} files have no label in {source}")
    return labelled


class _Rows:
    """Finds the manifest row for a name in a labels CSV."""

    def __init__(self, manifest: Manifest, table: Path) -> None:
        self._bases = (manifest.root, table.absolute().parent)
        self._by_path = {os.path.normpath(manifest.file(row)): row for row in range(len(manifest))}
        self._by_name: dict[str, list[int]] = defaultdict(list)
        for row, path in enumerate(manifest.paths):
            self._by_name[os.path.basename(path)].append(row)

    def find(self, name: str) -> int | None:
        """Return the row for an absolute path, a path relative to the root or the CSV, or an unambiguous file name."""
        for candidate in (name, name.strip()):
            for base in self._bases:
                row = self._by_path.get(os.path.normpath(base / candidate))
                if row is not None:
                    return row
            rows = self._by_name.get(candidate, [])
            if len(rows) == 1:
                return rows[0]
        return None

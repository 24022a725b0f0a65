"""Adds labels to a Manifest.

Labels come from a CSV that the user names, from a CSV found in a folder that the user names, or from the names of the
folders. They take no part in any decision; they are only compared with the clusters.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from gpu_cluster.addresses import folder_name
from gpu_cluster.config import InputConfig
from gpu_cluster.errors import DataError
from gpu_cluster.events import Observer
from gpu_cluster.files import escaped, printable
from gpu_cluster.images.label_table import LabelTable, is_not_utf8
from gpu_cluster.images.names import PicturesByName
from gpu_cluster.manifest import Manifest
from gpu_cluster.words import count

# Rows of a table whose file was not found, that a message names.
_MOST_NAMED = 3


def labelled(manifest: Manifest, config: InputConfig, observer: Observer) -> Manifest:
    """Return the manifest with its labels, or as it is if there are no labels.

    Raises
    ------
    DataError
        When the labels do not fit the files, or more than one CSV in the named folders could hold them.
    """
    if config.labels_from_folders:
        _tell_what_is_not_used(config, observer)
        return _by_folder(manifest)
    table = config.labels or _find_table(manifest, config)
    if table is None:
        _tell_what_is_not_used(config, observer)
        # As they are in tar files.
        if manifest.labels is not None:
            observer.notice(f"Labels found in {manifest.label_source}")
        return manifest
    return _by_table(manifest, table, config, observer)


def _tell_what_is_not_used(config: InputConfig, observer: Observer) -> None:
    """Report options that were given for a labels CSV when there is none."""
    usual = InputConfig()
    names = ("file_col", "label_col", "labels_encoding")
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(config, name) != getattr(usual, name)]
    if given:
        why = "no labels CSV was found; name it with --labels"
        if config.labels_from_folders:
            why = "the labels come from the folders (--labels-from-folders)"
        observer.notice(f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'} not used, because {why}")


def _by_folder(manifest: Manifest) -> Manifest:
    folders = [folder_name(path) for path in manifest.paths]
    if not any(folders):
        raise DataError(
            f"--labels-from-folders expects images in folders named after their label; "
            f"all lie directly in {printable(str(manifest.root))!r}"
        )
    labels = tuple(escaped(folder) or None for folder in folders)
    return replace(manifest, labels=labels, label_source="folder names")


def _find_table(manifest: Manifest, config: InputConfig) -> Path | None:
    """Return the only CSV directly in a named folder whose header has both columns; None if there is no such CSV."""
    found = []
    # If the user named nothing, the pictures are the sample set, whose folder is the root.
    named = config.paths() if config.images else [manifest.root] if config.input_list is None else []
    for folder in (path for path in named if path.is_dir()):
        for table in sorted(folder.iterdir()):
            if table.suffix.lower() == ".csv" and table.is_file():
                try:
                    fits = LabelTable(table, config).fits()
                except OSError as error:
                    raise DataError(
                        f"cannot read {printable(str(table))!r}, which may hold labels: {error.strerror}; name one "
                        "with --labels"
                    ) from error
                if fits:
                    found.append(table)
    if len(found) > 1:
        names = ", ".join(repr(printable(str(table))) for table in found)
        raise DataError(f"more than one CSV could hold the labels: {names}; choose one with --labels")
    return found[0] if found else None


def _by_table(manifest: Manifest, path: Path, config: InputConfig, observer: Observer) -> Manifest:
    table, source = LabelTable(path, config), printable(str(path))
    matched = _match(manifest, table)
    if not any(matched.labels):
        if config.labels is not None:
            raise DataError(_why_no_label(manifest, matched, source, config))
        observer.notice(f"{source} {matched.summary()}; going on without labels")
        return manifest
    if config.labels is None:
        observer.notice(f"Labels found in {source}")
    if matched.without_file:
        n, shown = len(matched.without_file), ", ".join(map(printable, matched.without_file[:_MOST_NAMED]))
        more = f", and {n - _MOST_NAMED:,} more" if n > _MOST_NAMED else ""
        verb = "names" if n == 1 else "name"
        observer.notice(f"{count(n, 'row')} of {source} {verb} a file that was not found: {shown}{more}")
    if matched.ambiguous:
        observer.notice(_ambiguity(manifest, matched, source))
    return replace(
        # The table can lie beside the pictures.
        manifest.without_used(path),
        labels=tuple(matched.labels),
        label_source=source,
        n_labels_without_file=len(matched.without_file),
        n_ambiguous_labels=len(matched.ambiguous),
    )


@dataclass
class _Matched:
    """What a table says of the files: their labels, and the rows that name none or several of them.

    Attributes
    ----------
    labels : one for each row of the manifest
    n_named : rows of the table that name one file
    without_file : the names of files in the rows of the table whose file was not found
    ambiguous : name, and the rows of the manifest, for each row of the table whose name several files have
    """

    labels: list[str | None]
    n_named: int = 0
    without_file: list[str] = field(default_factory=list)
    ambiguous: list[tuple[str, list[int]]] = field(default_factory=list)

    def summary(self) -> str:
        if self.n_named:
            return f"names {count(self.n_named, 'picture')} but gives none a label"
        if self.ambiguous:
            return "names only pictures whose name is in several folders"
        return "names none of the pictures"


def _match(manifest: Manifest, table: LabelTable) -> _Matched:
    """Find the file of each row of the table.

    Raises
    ------
    DataError
        When the table cannot be read, gives a file two labels, or is in an encoding that is not known.
    """
    rows_of_file, matched = PicturesByName(manifest, table.path), _Matched([None] * len(manifest))
    n_odd_found = n_odd_lost = 0
    for name, label in table.rows():
        rows = rows_of_file.find(name)
        n_odd_found += bool(rows) and is_not_utf8(name)
        n_odd_lost += not rows and is_not_utf8(name)
        if not rows:
            matched.without_file.append(name)
        elif len(rows) > 1:
            matched.ambiguous.append((name, rows))
        else:
            matched.n_named += 1
            _give(matched.labels, rows[0], label, name, table)
    # If other names that are not UTF-8 were found, byte by byte, then these are those of files that are gone.
    if n_odd_lost and not n_odd_found:
        raise table.unreadable()
    return matched


def _give(labels: list[str | None], row: int, label: str | None, name: str, table: LabelTable) -> None:
    if label is None:
        return
    if is_not_utf8(label):
        raise table.unreadable()
    label = printable(label)
    if labels[row] not in (None, label):
        raise DataError(
            f"{printable(str(table.path))!r} gives {printable(name)!r} two labels, {labels[row]!r} and {label!r}; "
            "expected one label for each file"
        )
    labels[row] = label


def _why_no_label(manifest: Manifest, matched: _Matched, source: str, config: InputConfig) -> str:
    if matched.n_named:
        return f"{source!r} {matched.summary()}; expected labels in its column {config.label_col!r}"
    if matched.ambiguous:
        return _ambiguity(manifest, matched, repr(source))
    expected = f"expected names relative to {printable(str(manifest.root))!r}, such as {printable(manifest.paths[0])!r}"
    found = f", found {printable(matched.without_file[0])!r}" if matched.without_file else ""
    return (
        f"column {config.file_col!r} of {source!r} names none of the pictures found ({len(manifest):,}); "
        f"{expected}{found}"
    )


def _ambiguity(manifest: Manifest, matched: _Matched, source: str) -> str:
    name, rows = matched.ambiguous[0]
    files = [printable(manifest.paths[row]) for row in rows]
    n, more = len(matched.ambiguous), f" and {len(files) - 2:,} more" if len(files) > 2 else ""
    return (
        f"{count(n, 'row')} of {source} {'gives' if n == 1 else 'give'} no label, because several files have the name: "
        f"{printable(name)!r} can be {', '.join(files[:2])}{more}; write the folder too, as in {files[0]}"
    )

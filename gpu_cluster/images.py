"""Folder and labels -> Manifest.

Enters: the folders and files named, and where their labels are. Leaves: one row a file, sorted by path, each with its
label, then its content hash. Decodes no picture. Must not know what is done with the pictures.
"""

from __future__ import annotations

import csv
import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from gpu_cluster.config import InputConfig, shipped_data
from gpu_cluster.errors import DataError
from gpu_cluster.events import Observer
from gpu_cluster.results import FileFacts, Manifest, printable
from gpu_cluster.run_folder import is_run_folder

# What a folder is searched for; a file named on its own is taken whatever its suffix.
SUFFIXES = frozenset({".bmp", ".gif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


def discover(config: InputConfig, observer: Observer) -> Manifest:
    """Find the images and their labels.

    Without images named, the sample set that comes with the package is taken.

    Raises
    ------
    DataError
        When a path is not there, no image is found, or the labels do not fit.
    """
    named = list(config.images)
    if not named:
        named = [shipped_data() / "flowers"]
        observer.notice(
            "No images named: using the 210 drawn flowers that come with gpu-cluster. "
            "For your own pictures: gpu-cluster run FOLDER"
        )
    manifest = _manifest(named)
    if config.labels_from_folders:
        return _labelled_by_folder(manifest, observer)
    table = config.labels or _find_table(named, config)
    return manifest if table is None else _labelled_by_table(manifest, table, config, observer)


def _manifest(named: Sequence[Path]) -> Manifest:
    files: set[str] = set()
    for path in named:
        if _is_folder(path):
            files.update(_walk(path))
        else:
            files.add(str(path))
    if not files:
        kinds = " ".join(sorted(SUFFIXES))
        folders = ", ".join(repr(printable(str(path))) for path in named)
        raise DataError(f"no images in {folders}; expected files ending in {kinds} (in upper or lower case)")
    if len(named) == 1 and named[0].is_dir():
        root = str(named[0])
    else:
        root = os.path.commonpath([str(path if path.is_dir() else path.parent) for path in named])
    # By bytes, not by locale or surrogates, so that the order is the same on every machine.
    paths = sorted({os.path.relpath(file, root) for file in files}, key=os.fsencode)
    return Manifest(root=Path(root), paths=tuple(paths))


def _is_folder(path: Path) -> bool:
    """Tell a folder from a file; neither is an error."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        where = printable(str(path))
        raise DataError(f"{where!r} does not exist; expected a folder of images or an image file") from None
    except OSError as error:
        raise DataError(f"cannot read {printable(str(path))!r}: {error.strerror}") from error
    if not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
        raise DataError(f"{printable(str(path))!r} is a pipe, a socket or a device; expected a folder or an image file")
    return stat.S_ISDIR(status.st_mode)


def read_files(manifest: Manifest, observer: Observer) -> Manifest:
    """Read every file once for its size and the hash of its content; after all that costs less has been checked."""
    facts = []
    files = [manifest.file(row) for row in range(len(manifest))]
    # Hashing and reading both release Python's lock.
    with ThreadPoolExecutor() as pool:
        for done, fact in enumerate(pool.map(_facts, files), start=1):
            facts.append(fact)
            observer.progress("scan", done, len(files))
    return replace(manifest, files=tuple(facts))


def _facts(file: Path) -> FileFacts:
    try:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16))
            return FileFacts(size=stream.tell(), content_hash=digest.hexdigest())
    except OSError:
        # Decoding it will fail too, and then the reason is reported.
        return FileFacts(size=None, content_hash=None)


def _walk(folder: Path) -> Iterator[str]:
    """Yield the image files below a folder, through symbolic links but never twice through one folder."""
    seen: set[tuple[int, int]] = set()

    def fail(error: OSError) -> None:
        raise DataError(f"cannot read the folder {printable(str(error.filename))!r}: {error.strerror}") from error

    for directory, subdirectories, names in os.walk(folder, followlinks=True, onerror=fail):
        status = os.stat(directory)
        if (status.st_dev, status.st_ino) in seen or is_run_folder(names):
            subdirectories.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        # Folders before links to them: which of its names a file gets must not depend on the file system's order.
        subdirectories[:] = sorted(
            (name for name in subdirectories if not name.startswith(".")),
            key=lambda name: (os.path.islink(os.path.join(directory, name)), os.fsencode(name)),
        )
        for name in names:
            path = os.path.join(directory, name)
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES and not _is_special(path):
                yield path


def _is_special(path: str) -> bool:
    """Tell pipes, sockets and devices, which would be waited for forever; what is not there is reported later."""
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def _labelled_by_folder(manifest: Manifest, observer: Observer) -> Manifest:
    folders = [os.path.basename(os.path.dirname(path)) for path in manifest.paths]
    if not any(folders):
        raise DataError(
            f"--labels-from-folders expects images in folders named after their label; "
            f"all lie directly in {printable(str(manifest.root))!r}"
        )
    return _with_labels(manifest, [printable(folder) or None for folder in folders], "folder names", 0, observer)


def _find_table(named: Sequence[Path], config: InputConfig) -> Path | None:
    """Return the one CSV directly in a folder named whose header has both columns."""
    found = []
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
    with _open_table(table) as stream:
        try:
            return next(csv.reader(stream), [])
        except csv.Error:
            return []


def _open_table(table: Path):  # type: ignore[no-untyped-def]
    # utf-8-sig drops a byte-order mark; surrogate escapes keep file names that are not UTF-8.
    return table.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _labelled_by_table(manifest: Manifest, table: Path, config: InputConfig, observer: Observer) -> Manifest:
    rows_of_file = _Rows(manifest, table)
    labels: list[str | None] = [None] * len(manifest)
    n_without_file = 0
    for name, label in _read_table(table, config):
        row = rows_of_file.find(name)
        if row is None:
            n_without_file += 1
        elif None not in (labels[row], label) and labels[row] != label:
            raise DataError(
                f"{printable(str(table))!r} gives {printable(name)!r} two labels, {labels[row]!r} and {label!r}; "
                "expected one a file"
            )
        else:
            labels[row] = labels[row] or label
    source = printable(str(table))
    if not any(labels):
        if config.labels is None:
            observer.notice(f"{source} names none of the images; going on without labels")
            return manifest
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
                if name and name.strip():
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
    """Finds the manifest row that a name in a labels CSV means."""

    def __init__(self, manifest: Manifest, table: Path) -> None:
        self._bases = (manifest.root, table.absolute().parent)
        self._by_path = {os.path.normpath(manifest.file(row)): row for row in range(len(manifest))}
        self._by_name: dict[str, list[int]] = defaultdict(list)
        for row, path in enumerate(manifest.paths):
            self._by_name[os.path.basename(path)].append(row)

    def find(self, name: str) -> int | None:
        """Return the row of an absolute name, one relative to the images or the CSV, or an unambiguous bare name."""
        for candidate in (name, name.strip()):
            for base in self._bases:
                row = self._by_path.get(os.path.normpath(base / candidate))
                if row is not None:
                    return row
            rows = self._by_name.get(candidate, [])
            if len(rows) == 1:
                return rows[0]
        return None

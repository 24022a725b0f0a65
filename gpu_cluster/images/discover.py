"""Finds the picture files in the folders, files and lists that the user names, and sorts them by path.

This module must not know what is in a picture beyond its first bytes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from gpu_cluster.columns import Texts
from gpu_cluster.config import PicturesConfig, shipped_data
from gpu_cluster.errors import DataError
from gpu_cluster.events import Observer
from gpu_cluster.files import printable
from gpu_cluster.images.names import listed_names
from gpu_cluster.images.source import LocalFiles
from gpu_cluster.manifest import Manifest


def discover(config: PicturesConfig, observer: Observer) -> Manifest:
    """Find the pictures; if the user names none, use the sample set that comes with the package.

    Raises
    ------
    DataError
        When a path does not exist or cannot be read, or no picture is found.
    """
    if config.images or config.input_list is not None:
        return _manifest(config.images, config.input_list)
    observer.notice(
        "No images named: using the 210 drawn flowers that come with gpu-cluster. "
        "For your own pictures: gpu-cluster run FOLDER"
    )
    return _manifest([sample_set()], None)


def sample_set() -> Path:
    """Return the folder of the sample set."""
    return shipped_data() / "flowers"


def _manifest(named: Sequence[Path], input_list: Path | None) -> Manifest:
    files: set[str] = set()
    bad_files: dict[str, str] = {}
    passed_over: set[str] = set()
    # Otherwise a path relative to the folder that all of them have in common could begin with two dots.
    named = [Path(os.path.realpath(path)) if ".." in path.parts else path for path in named]
    for path in named:
        if _is_folder(path):
            listing = LocalFiles(path).list()
            files |= listing.locations
            bad_files |= listing.bad
            passed_over |= listing.passed_over
        else:
            files.add(str(path))
    if input_list is not None:
        names = listed_names(input_list, "--input-list")
        files.update(os.path.normpath(os.path.join(input_list.parent, name)) for name in names)
    files |= bad_files.keys()
    # A file that is named by itself is read, whatever a folder that holds it too would make of it.
    passed_over -= files
    if not files:
        where = ", ".join(repr(printable(str(path))) for path in (*named, *([input_list] if input_list else [])))
        raise DataError(
            f"no images in {where}; expected image files, by their content (JPEG, PNG, WebP, TIFF, ...) or their name"
        )
    if len(named) == 1 and named[0].is_dir() and input_list is None:
        root = str(named[0])
    else:
        folders = [str(path if path.is_dir() else path.parent) for path in named]
        root = os.path.commonpath([*folders, *(os.path.dirname(file) for file in files)])
    # Sorted by bytes and not by locale or surrogates, so that the order is the same on every machine.
    paths = Texts(map(os.fsdecode, sorted({os.fsencode(os.path.relpath(file, root)) for file in files})))
    others = tuple(sorted((os.path.relpath(file, root) for file in passed_over), key=os.fsencode))
    why = {os.path.relpath(file, root): reason for file, reason in bad_files.items()}
    bad = {row: why[path] for row, path in enumerate(paths) if path in why} if why else {}
    return Manifest(root=Path(root), paths=paths, bad=bad, passed_over=others)


def _is_folder(path: Path) -> bool:
    """Return whether a path is a folder; raise a DataError if it is neither a folder nor a regular file."""
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

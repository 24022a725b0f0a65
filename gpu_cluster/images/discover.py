"""Finds the pictures in the folders, files, tar files, addresses and lists that the user names, and sorts them by path.

This module must not know what is in a picture beyond its first bytes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpu_cluster.addresses import check_address, in_tar, is_address, local_path, member_of, public
from gpu_cluster.columns import Texts
from gpu_cluster.config import PicturesConfig, StoreConfig, shipped_data
from gpu_cluster.errors import DataError
from gpu_cluster.events import Observer
from gpu_cluster.facts import FileFacts
from gpu_cluster.files import printable
from gpu_cluster.images.names import listed_names
from gpu_cluster.images.places import Objects, is_tar_file
from gpu_cluster.images.source import Listing, LocalFiles
from gpu_cluster.images.tar_scan import TarScan
from gpu_cluster.manifest import Manifest


def discover(config: PicturesConfig, observer: Observer, tars: TarScan | None = None) -> Manifest:
    """Find the pictures; if the user names none, use the sample set that comes with the package.

    What is in tar files is found by `tars`, which reads them; by default, by one that keeps nothing.

    Raises
    ------
    DataError
        When a path does not exist or cannot be read, or no picture is found.
    InterruptedJobError
        When the observer asked to stop.
    """
    tars = tars or TarScan(config, StoreConfig(no_cache=True), observer)
    if config.images or config.input_list is not None:
        return _manifest(config, tars)
    observer.notice(
        "No images named: using the 210 drawn flowers that come with gpu-cluster. "
        "For your own pictures: gpu-cluster run FOLDER"
    )
    return _manifest(config.model_copy(update={"images": (sample_set(),)}), tars)


def sample_set() -> Path:
    """Return the folder of the sample set."""
    return shipped_data() / "flowers"


@dataclass
class _Found:
    """What was found in all places that the user named; paths are absolute here."""

    local: Listing = field(default_factory=Listing)
    remote: Listing = field(default_factory=Listing)
    tars: list[tuple[str, Path | str]] = field(default_factory=list)
    signed: dict[str, str] = field(default_factory=dict)

    def add(self, place: Path | str) -> None:
        """Add what one name means: a folder, a picture, a tar file, or an address of one of these."""
        if isinstance(place, str):
            self._add_address(place)
            return
        is_folder = _is_folder(place)
        if is_folder:
            _extend(self.local, LocalFiles(place).list())
        elif is_tar_file(place):
            self.tars.append((str(place), place))
        else:
            self.local.locations.add(str(place))

    def _add_address(self, address: str) -> None:
        shown = public(address)
        if shown != address:
            self.signed[shown] = address
        if is_tar_file(address):
            self.tars.append((shown, address))
            return
        listing = Objects(self.signed, address).list()
        # As a list may name them, or a page link to them.
        for location in [location for location in listing.locations if public(location) != location]:
            listing.locations.discard(location)
            listing.locations.add(public(location))
            self.signed[public(location)] = location
        _extend(self.remote, listing)

    def name(self, file: str) -> None:
        """Add a picture that a list names."""
        path = local_path(file) if is_address(file) else file
        if path is None:
            shown = public(check_address(file))
            self.remote.locations.add(shown)
            if shown != file:
                self.signed[shown] = file
        else:
            self.local.locations.add(os.path.normpath(path))


def _extend(to: Listing, other: Listing) -> None:
    to.locations |= other.locations
    to.bad |= other.bad
    to.passed_over |= other.passed_over
    to.facts |= other.facts
    to.labels |= other.labels


def _manifest(config: PicturesConfig, tars: TarScan) -> Manifest:
    found, input_list = _Found(), config.input_list
    # Otherwise a path relative to the folder that all of them have in common could begin with two dots.
    named = [
        Path(os.path.realpath(place)) if isinstance(place, Path) and ".." in place.parts else place
        for place in config.images
    ]
    for place in named:
        found.add(place)
    if input_list is not None:
        try:
            for name in listed_names(input_list, "--input-list"):
                found.name(name if is_address(name) else os.path.join(input_list.parent, name))
        except ValueError as error:
            raise DataError(f"--input-list {printable(str(input_list))!r}: {error}") from error
    found.local.locations |= found.local.bad.keys()
    found.remote.locations |= found.remote.bad.keys()
    in_tars = tars.list(found.tars)
    n = len(found.local.locations) + len(found.remote.locations) + len(in_tars.facts) + len(in_tars.bad)
    if not n:
        shown = [*(public(str(place)) for place in named), *([str(input_list)] if input_list else [])]
        where = ", ".join(repr(printable(name)) for name in shown)
        raise DataError(
            f"no images in {where}; expected image files, by their content (JPEG, PNG, WebP, TIFF, ...) or their name"
        )
    return _sorted(found, in_tars, _root(named, found, listed=input_list is not None))


def _root(named: Sequence[Path | str], found: _Found, *, listed: bool) -> Path:
    """Return the folder that paths are relative to."""
    paths = [place for place in named if isinstance(place, Path)]
    if len(named) == 1 and len(paths) == 1 and paths[0].is_dir() and not listed:
        return paths[0]
    folders = [str(path if path.is_dir() else path.parent) for path in paths]
    folders += [os.path.dirname(file) for file in found.local.locations]
    return Path(os.path.commonpath(folders) if folders else "/")


def _sorted(found: _Found, in_tars: Listing, root: Path) -> Manifest:
    """Return the manifest: paths in the order of their bytes, and the pictures of a tar file as they lie in it."""

    def relative(path: str) -> str:
        if is_address(path):
            return path
        member = member_of(path)
        if member is not None and path not in found.local.locations:
            return in_tar(os.path.relpath(member[0], root), member[1])
        return os.path.relpath(path, root)

    # Sorted by bytes and not by locale or surrogates, so that the order is the same on every machine.
    local = {os.fsencode(os.path.relpath(file, root)) for file in found.local.locations}
    passed_over = found.local.passed_over - found.local.locations
    others = tuple(sorted(map(relative, passed_over | found.remote.passed_over | in_tars.passed_over), key=os.fsencode))
    why = {relative(file): reason for file, reason in (found.local.bad | found.remote.bad | in_tars.bad).items()}
    if not (found.remote.locations or found.tars):
        paths: Sequence[str] = Texts(map(os.fsdecode, sorted(local)))
        bad = {row: why[path] for row, path in enumerate(paths) if path in why} if why else {}
        return Manifest(root=root, paths=paths, bad=bad, passed_over=others)
    rows: list[tuple[bytes, int, str]] = [(path, 0, os.fsdecode(path)) for path in local]
    rows += [(os.fsencode(location), 0, location) for location in found.remote.locations]
    rows += [(os.fsencode(relative(tar)), 0, relative(tar)) for tar in in_tars.bad]
    facts = dict(found.remote.facts)
    for at, (location, one) in enumerate(in_tars.facts.items(), start=1):
        path = relative(location)
        facts[path] = one
        member = member_of(path)
        assert member is not None, "see TarScan"
        rows.append((os.fsencode(member[0]), at, path))
    names = [path for _key, _at, path in sorted(rows)]
    labels = {relative(location): label for location, label in in_tars.labels.items()}
    nothing = FileFacts()
    return Manifest(
        root=root,
        paths=names,
        bad={row: why[path] for row, path in enumerate(names) if path in why},
        passed_over=others,
        listed=[facts.get(path, nothing) for path in names],
        signed=found.signed,
        labels=[labels.get(path) for path in names] if labels else None,
        label_source="the files .cls and .json in the tar files" if labels else None,
    )


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

"""Folder and labels -> Manifest.

Enters: the folders and files named, and where their labels are. Leaves: one row a file, sorted by path, each with its
label; then what one look at each file finds: format, pixels, orientation, content hash, or why it cannot be used.
Decodes no picture. Must not know what is done with the pictures.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import logging
import os
import stat
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import IO

from gpu_cluster.config import InputConfig, shipped_data
from gpu_cluster.errors import DataError
from gpu_cluster.events import Observer
from gpu_cluster.images import decode
from gpu_cluster.images.labels import labelled
from gpu_cluster.results import FileFacts, Manifest, printable
from gpu_cluster.run_folder import is_run_folder
from gpu_cluster.store.store import ScanShards, Store

log = logging.getLogger(__name__)

# Files that are scanned together, and kept as one shard.
_SCAN_SLICE = 4096
# A file with more bytes a pixel than this (two pictures of 16-bit RGBA, and room for small ones) is no picture that
# --max-pixels allows; decoders read a file whole.
_BYTES_A_PIXEL, _ROOM_BYTES = 16, 64 << 20
# A file may change once more without its time of change telling: within a tick of the clock, or within two seconds
# on file systems that keep whole seconds only.
_TICK_NS, _WHOLE_SECONDS_NS = 20_000_000, 2_000_000_000


def discover(config: InputConfig, observer: Observer, *, with_labels: bool = True) -> Manifest:
    """Find the images and, unless told otherwise, their labels.

    Without images named, the sample set that comes with the package is taken.

    Raises
    ------
    DataError
        When a path is not there, no image is found, or the labels do not fit.
    """
    named = list(config.images)
    if not named and config.input_list is None:
        named = [shipped_data() / "flowers"]
        observer.notice(
            "No images named: using the 210 drawn flowers that come with gpu-cluster. "
            "For your own pictures: gpu-cluster run FOLDER"
        )
    manifest = _manifest(named, config.input_list)
    return labelled(manifest, named, config, observer) if with_labels else manifest


@dataclass
class _Found:
    """Files by path, and the folders and list entries that are no files, each with its reason."""

    files: set[str] = field(default_factory=set)
    bad: dict[str, str] = field(default_factory=dict)
    n_passed_over: int = 0


def _manifest(named: Sequence[Path], input_list: Path | None) -> Manifest:
    found = _Found()
    for path in named:
        if _is_folder(path):
            _walk(path, found)
        else:
            found.files.add(str(path))
    if input_list is not None:
        found.files.update(_read_list(input_list))
    if found.n_passed_over:
        log.info("passed over %d files that are no pictures, neither by content nor by name", found.n_passed_over)
    files = found.files | found.bad.keys()
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
    # By bytes, not by locale or surrogates, so that the order is the same on every machine.
    file_of = {os.path.relpath(file, root): file for file in files}
    paths = sorted(file_of, key=os.fsencode)
    bad = {row: found.bad[file_of[path]] for row, path in enumerate(paths) if file_of[path] in found.bad}
    return Manifest(root=Path(root), paths=tuple(paths), bad=bad)


def _read_list(input_list: Path) -> Iterator[str]:
    """Yield the files that a list names, relative to the folder that it lies in."""
    try:
        content = input_list.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read --input-list {printable(str(input_list))!r}: {error.strerror}") from error
    # As `find -print0` writes it, for names with newlines in them.
    names = content.split(b"\0") if b"\0" in content else content.removeprefix(b"\xef\xbb\xbf").splitlines()
    if not any(name.strip() for name in names):
        raise DataError(f"--input-list {printable(str(input_list))!r} is empty; expected one image file a line")
    for name in names:
        if name.strip():
            yield os.path.normpath(os.path.join(input_list.parent, os.fsdecode(name)))


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


def scan(
    manifest: Manifest, config: InputConfig, observer: Observer, *, store: Store | None = None, rehash: bool = False
) -> Manifest:
    """Look at every file once, some at a time: its header and the hash of its content.

    What an earlier scan kept of a file is taken where path, size and time of change are the same, unless `rehash`.

    Raises
    ------
    StoreError
        When what was found cannot be kept.
    """
    files = [manifest.file(row) for row in range(len(manifest))]
    kept = None if store is None else store.scans(manifest.root, {"pillow": version("pillow")})
    known = None if kept is None or rehash else kept.known(files)
    facts: list[FileFacts] = []
    # Reading and hashing release Python's lock.
    with decode.limited(None), _threads() as pool:
        for first in range(0, len(files), _SCAN_SLICE):
            part = files[first : first + _SCAN_SLICE]
            # Before the first look: a file that was older than its tick then cannot change unseen after its own.
            started_ns = time.time_ns()
            earlier = known.slice(first, first + len(part)) if known is not None else [None] * len(part)
            found: list[FileFacts] = []
            looks = pool.map(_look, part, earlier, itertools.repeat(config.max_pixels))
            for done, one in enumerate(looks, start=first + 1):
                found.append(one)
                observer.progress("scan", done, len(files))
            _keep(kept, part, earlier, found, started_ns)
            facts += found
    return _with_facts(manifest, facts, config)


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Give a pool of threads that an interrupt does not keep busy with what it has not begun."""
    pool = ThreadPoolExecutor()
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _keep(
    kept: ScanShards | None,
    files: Sequence[Path],
    earlier: Sequence[FileFacts | None],
    found: Sequence[FileFacts],
    now: int,
) -> None:
    """Keep what is new and sure to be seen when it changes."""
    new = [
        position
        for position, (before, one) in enumerate(zip(earlier, found, strict=True))
        if one is not before and one.content_hash and (one.mtime_ns or 0) + _clock_ns(one.mtime_ns or 0) < now
    ]
    if kept is not None and new:
        kept.keep([files[position] for position in new], [found[position] for position in new])


def _clock_ns(mtime_ns: int) -> int:
    return _TICK_NS if mtime_ns % 1_000_000_000 else _WHOLE_SECONDS_NS


def _look(file: Path, earlier: FileFacts | None, max_pixels: int) -> FileFacts:
    try:
        # Opening a pipe would wait for its other end, if not for this.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return FileFacts(reason=_why_not_opened(file, error))
    status = os.fstat(descriptor)
    why = _why_not_read(status, max_pixels)
    if why is not None:
        os.close(descriptor)
        return FileFacts(reason=why)
    with os.fdopen(descriptor, "rb") as stream:
        if earlier is not None and (earlier.size, earlier.mtime_ns) == (status.st_size, status.st_mtime_ns):
            return earlier
        try:
            digest = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16))
            size = stream.tell()
            stream.seek(0)
            facts = _header(stream, file.suffix)
        except OSError as error:
            return FileFacts(reason=f"cannot be read: {error.strerror or error}")
    return replace(facts, size=size, mtime_ns=status.st_mtime_ns, content_hash=digest.hexdigest())


def _why_not_read(status: os.stat_result, max_pixels: int) -> str | None:
    if stat.S_ISDIR(status.st_mode):
        return "a folder, not a file"
    if not stat.S_ISREG(status.st_mode):
        return "a pipe, a socket or a device, not a file"
    if status.st_size > max_pixels * _BYTES_A_PIXEL + _ROOM_BYTES:
        return f"{status.st_size} bytes, more than a picture of --max-pixels {max_pixels} can need"
    return None


def _header(stream: IO[bytes], suffix: str) -> FileFacts:
    head = stream.read(decode.HEAD_BYTES)
    stream.seek(0)
    try:
        header = decode.read_header(stream, suffix)
    # Pillow's readers raise whatever a broken file makes them stumble over; none may end the job.
    except Exception as error:  # noqa: BLE001
        return FileFacts(reason=decode.reason(head, error))
    return FileFacts(
        format=header.format,
        mode=header.mode,
        width=header.width,
        height=header.height,
        orientation=header.orientation,
    )


def _why_not_opened(file: Path, error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "a link that leads back to itself"
    if isinstance(error, FileNotFoundError) and file.is_symlink():
        return "a link to a file that is not there"
    known = {errno.ENOENT: "not there", errno.EACCES: "no permission to read it"}
    return known.get(error.errno or 0, f"cannot be opened: {error.strerror}")


def _with_facts(manifest: Manifest, facts: Sequence[FileFacts], config: InputConfig) -> Manifest:
    bad: dict[int, str] = {}
    duplicates: dict[int, int] = {}
    first_of: dict[str, int] = {}
    for row, one in enumerate(facts):
        why = manifest.bad.get(row) or one.reason or _too_large(one, config.max_pixels)
        if why is not None:
            bad[row] = why
        elif one.content_hash is not None and first_of.setdefault(one.content_hash, row) != row:
            duplicates[row] = first_of[one.content_hash]
    return replace(manifest, files=tuple(facts), bad=bad, duplicates=duplicates)


def _too_large(facts: FileFacts, max_pixels: int) -> str | None:
    if (facts.width or 0) * (facts.height or 0) <= max_pixels:
        return None
    return f"{facts.width} x {facts.height} pixels, more than --max-pixels {max_pixels} allows"


def _walk(folder: Path, found: _Found) -> None:
    """Find the pictures below a folder, through symbolic links but never twice through one folder."""
    seen: set[tuple[int, int]] = set()
    unsure: list[str] = []

    def fail(error: OSError) -> None:
        if error.filename == str(folder):
            raise DataError(f"cannot read the folder {printable(str(folder))!r}: {error.strerror}") from error
        found.bad[error.filename] = f"a folder that cannot be read: {error.strerror}"

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
            if name.startswith(".") or _is_special(path):
                continue
            if os.path.splitext(name)[1].lower() in decode.suffixes():
                found.files.add(path)
            else:
                unsure.append(path)
    with _threads() as pool:
        begin_as_pictures = list(pool.map(_begins_as_a_picture, unsure))
    found.files.update(path for path, is_picture in zip(unsure, begin_as_pictures, strict=True) if is_picture)
    found.n_passed_over += len(unsure) - sum(begin_as_pictures)


def _begins_as_a_picture(path: str) -> bool:
    try:
        with open(path, "rb") as stream:
            return decode.format_of(stream.read(decode.HEAD_BYTES)) is not None
    except OSError:
        return False


def _is_special(path: str) -> bool:
    """Tell pipes, sockets and devices, which would be waited for forever; what is not there is reported later."""
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False

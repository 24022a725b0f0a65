"""Looks at each file of a Manifest once: its format, size, orientation, colour profile and content hash, or a reason.

Decodes no picture, but for those that are no files of this machine, of which it keeps small copies. This module must
not know what is done with the pictures.
"""

from __future__ import annotations

import io
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import numpy as np

from gpu_cluster.addresses import common_folder, is_address
from gpu_cluster.columns import Column
from gpu_cluster.config import DecodingConfig
from gpu_cluster.events import Observer, interrupted
from gpu_cluster.executor import Executor, Lost, Reporter, Serial, Stage
from gpu_cluster.files import ChangedError, content_hash
from gpu_cluster.images import decode, decoders, icc, thumbnails
from gpu_cluster.images.room import Room
from gpu_cluster.images.source import Source, Stat, UnreadableError, reading_threads
from gpu_cluster.manifest import FileFacts, FileTable, Manifest
from gpu_cluster.store.copies import CopyShards
from gpu_cluster.store.store import ScanShards, Store

log = logging.getLogger(__name__)

# Files that are scanned together and kept in the store as one shard.
_SCAN_SLICE = 4096
# The same where reading takes longer than a look into the store, and how many are read at once.
_REMOTE_SLICE, _REMOTE_THREADS = 512, 32
# Of the contents of pictures that are no files of this machine, as many bytes are held at once.
HELD = Room(1 << 30)
# Decoders read a whole file into memory, so larger files than this are refused: 16 bytes for each pixel that
# --max-pixels allows (twice as many as 16-bit RGBA needs), and 64 MiB more so that small limits allow normal files.
_BYTES_A_PIXEL, _ROOM_BYTES = 16, 64 << 20
# A file can change again without a new time of change if this happens within one tick of the clock, or within two
# seconds on file systems that store whole seconds only.
_TICK_NS, _WHOLE_SECONDS_NS = 20_000_000, 2_000_000_000


@dataclass(frozen=True)
class _ScanTask:
    """A slice of the files.

    Attributes
    ----------
    earlier : what earlier scans found about each file; None if nothing is known about any
    listed : what is known of each file without a look at it; empty if nothing is known of any
    root : the folder that the locations are relative to, as the store names it
    place : the folder and the key of the shards that keep new facts; None if none does
    copies : the same of the shards that keep small copies of pictures that are no files of this machine
    """

    source: Source
    locations: Sequence[str]
    earlier: Sequence[FileFacts | None] | None
    listed: Sequence[FileFacts]
    config: DecodingConfig
    root: str
    place: tuple[Path, Mapping[str, Any]] | None
    copies: tuple[Path, Mapping[str, Any]] | None


def scan(
    manifest: Manifest,
    source: Source,
    config: DecodingConfig,
    observer: Observer,
    *,
    store: Store | None = None,
    rehash: bool = False,
    executor: Executor | None = None,
) -> Manifest:
    """Read the header of every file and hash its content, several files at a time.

    If the store has the facts of a file with the same path, size and times of change, they are used instead, unless
    `rehash` is set. The tasks of an executor look at the files, or this process does.

    Raises
    ------
    InterruptedJobError
        When the observer asked to stop.
    StoreError
        When the store cannot be written.
    """
    kept = None if store is None else store.scans(_root_of(manifest), {"pillow": version("pillow")})
    copies = None if store is None or not len(manifest.listed) else store.copies()
    known = None if kept is None or rehash else kept.known(_Files(manifest))

    def task(first: int, last: int) -> _ScanTask:
        return _ScanTask(
            source,
            manifest.paths[first:last],
            None if known is None else known.slice(first, last),
            manifest.listed[first:last],
            config,
            str(manifest.root),
            None if kept is None else (kept.folder, kept.key),
            None if copies is None else (copies.folder, copies.key),
        )

    size = _REMOTE_SLICE if len(manifest.listed) else _SCAN_SLICE
    facts = FileTable(_looked_at(task, len(manifest), executor or Serial(), observer, size))
    return _with_facts(manifest, facts, config)


def _root_of(manifest: Manifest) -> Path | str:
    """Return what all places of the pictures have in common, by which the store keeps their facts."""
    if not len(manifest.listed) or not is_address(manifest.paths[0]) or not is_address(manifest.paths[-1]):
        return manifest.root
    return common_folder(manifest.paths[0], manifest.paths[-1]) or manifest.root


class _Files(Column[str]):
    """The full paths of the files of a manifest."""

    def __init__(self, manifest: Manifest) -> None:
        self._root, self._paths = str(manifest.root), manifest.paths

    def __len__(self) -> int:
        return len(self._paths)

    def item(self, row: int) -> str:
        return _full_name(self._root, self._paths[row])


def _full_name(root: str, location: str) -> str:
    return location if is_address(location) else os.path.join(root, location)


def _looked_at(
    task: Callable[[int, int], _ScanTask], n: int, executor: Executor, observer: Observer, size: int
) -> Iterator[FileFacts]:
    """Yield the facts of all n files, in their order; `task` returns the one for a slice of `size` files."""
    waiting = [(first, min(first + size, n)) for first in range(0, n, size)]
    tasks = (task(*part) for part in waiting)
    done = 0
    for (first, last), found in zip(
        waiting, executor.map_in_order(_look_at_slice, tasks, Stage("scan", observer, n)), strict=False
    ):
        if isinstance(found, Lost):
            facts: Sequence[FileFacts] = list(
                _after_loss(task, (first, last), found, executor, Stage("scan", observer, n, first))
            )
        else:
            facts = found
        yield from facts
        done += len(facts)
        # After a request to stop, those of a slice are not complete, but those of a later one may be.
        if done < last:
            break
    if done < n:
        raise interrupted()


def _after_loss(
    task: Callable[[int, int], _ScanTask], part: tuple[int, int], lost: Lost, executor: Executor, stage: Stage
) -> Iterator[FileFacts]:
    """Yield the facts of the files of a slice whose task ended its workers; the file that does so has a reason."""
    first, last = part
    if last - first == 1:
        yield FileFacts(reason=f"it ends the process that reads its header: {lost.reason}")
        return
    middle = (first + last) // 2
    for half in ((first, middle), (middle, last)):
        for found in executor.map_in_order(_look_at_slice, [task(*half)], stage):
            if isinstance(found, Lost):
                yield from _after_loss(task, half, found, executor, stage)
            else:
                yield from found


def _look_at_slice(task: _ScanTask, reporter: Reporter) -> Sequence[FileFacts]:
    """Look at the files of a task, in any process; keep the facts that are new.

    After a request to stop, only the facts of the files that were looked at until then are kept and returned.
    """
    # Threads help here: reading and hashing release Python's global lock.
    n_threads = _REMOTE_THREADS if task.listed else None
    copies: dict[str, bytes] | None = {} if task.copies is not None else None
    with decoders.within(task.config), decode.limited(None), reading_threads(n_threads) as pool:
        # This time must be from before the first look: `_keep` keeps only the facts of files that were older than a
        # tick at this time, so that a later change is sure to give another time of change.
        started_ns = time.time_ns()
        earlier = task.earlier or [None] * len(task.locations)
        looks = pool.map(
            _look,
            itertools.repeat(task.source),
            task.locations,
            earlier,
            task.listed or itertools.repeat(None, len(task.locations)),
            itertools.repeat(task.config.max_pixels),
            itertools.repeat(copies),
        )
        found: list[FileFacts] = []
        for done, one in enumerate(looks, start=1):
            found.append(one)
            reporter.progress(done)
            if reporter.stopping():
                pool.shutdown(cancel_futures=True)
                break
    _keep(task, earlier, found, started_ns)
    if task.copies is not None and copies:
        CopyShards(*task.copies, Observer()).keep(copies)
    return found


def _keep(task: _ScanTask, earlier: Sequence[FileFacts | None], found: Sequence[FileFacts], now: int) -> None:
    """Keep the new facts of those files whose next change is sure to be noticed; not a reason that may pass."""
    new = [
        position
        for position, (before, one) in enumerate(zip(earlier[: len(found)], found, strict=True))
        if one is not before
        # What is in tar files is kept with them.
        and one.offset is None
        and one.content_hash
        and one.profile is not None
        and next_change_shows(one, now)
    ]
    if task.place is not None and new:
        files = [_full_name(task.root, task.locations[position]) for position in new]
        ScanShards(*task.place, (), Observer()).keep(files, [found[position] for position in new])


def next_change_shows(of: FileFacts | Stat, now: int) -> bool:
    """Return whether a change after `now`, in nanoseconds since 1970, is sure to give another time or version."""
    return of.version is not None or max(map(_noticed_from_ns, (of.mtime_ns, of.ctime_ns))) < now


def _noticed_from_ns(time_ns: int | None) -> int:
    """Return from when on another change is sure to give a time other than this one."""
    time_ns = time_ns or 0
    return time_ns + (_TICK_NS if time_ns % 1_000_000_000 else _WHOLE_SECONDS_NS)


def too_many_bytes(size: int, max_pixels: int) -> str | None:
    """Return why a file is too large to be read whole; None if it is not."""
    if size <= max_pixels * _BYTES_A_PIXEL + _ROOM_BYTES:
        return None
    return f"{size} bytes, more than a picture of --max-pixels {max_pixels} can need"


def may_pass(facts: FileFacts) -> bool:
    """Return whether facts have a reason that may be none at another time, with other options or other packages."""
    return facts.reason is not None and facts.profile is None


def facts_of(content: bytes, suffix: str) -> FileFacts:
    """Return what a picture's content says: its hash, and its header or a reason."""
    stream = io.BytesIO(content)
    digest = content_hash(stream)
    stream.seek(0)
    return replace(_header(stream, suffix, None), content_hash=digest)


def _look(  # noqa: PLR0911 - a reason, or facts, of each of the ways to know a file
    source: Source,
    location: str,
    earlier: FileFacts | None,
    listed: FileFacts | None,
    max_pixels: int,
    copies: dict[str, bytes] | None,
) -> FileFacts:
    """Return the facts of a file; a small copy of one that is no file of this machine goes to `copies`, by its hash."""
    if listed is not None and (listed.content_hash or listed.reason):
        return listed
    try:
        stream, stat = source.open(location, listed)
    except UnreadableError as error:
        return FileFacts(reason=str(error))
    suffix = os.path.splitext(location)[1]
    with stream:
        reason = too_many_bytes(stat.size, max_pixels)
        if reason is not None:
            return FileFacts(reason=reason)
        known = _still_known(earlier, stat)
        if known is not None and known.profile is not None:
            return known
        try:
            if source.local_path(location) is None:
                with HELD.taken(stat.size):
                    content = stream.read()
                    facts = facts_of(content, suffix)
                    if copies is not None and facts.reason is None:
                        copies[str(facts.content_hash)] = thumbnails.copy_of(content, suffix)
                return replace(facts, size=stat.size, mtime_ns=stat.mtime_ns, version=stat.version)
            # The version that found these facts did not look at the profile, so the header is read once more.
            digest = content_hash(stream) if known is None else known.content_hash
            stream.seek(0)
            facts = _header(stream, suffix, None if known is None else known.n_scans)
        except OSError as error:
            changed = isinstance(error, ChangedError)
            return FileFacts(reason=str(error) if changed else f"cannot be read: {error.strerror or error}")
    return replace(facts, size=stat.size, mtime_ns=stat.mtime_ns, ctime_ns=stat.ctime_ns, content_hash=digest)


def _still_known(earlier: FileFacts | None, stat: Stat) -> FileFacts | None:
    """Return what an earlier scan found of a file, unless the file may have changed since."""
    own = (stat.size, stat.mtime_ns, stat.version)
    if earlier is None or (earlier.size, earlier.mtime_ns, earlier.version) != own:
        return None
    if stat.mtime_ns is None and stat.ctime_ns is None and stat.version is None:
        # Nothing would tell of a change.
        return None
    if earlier.ctime_ns is None and stat.ctime_ns is not None:
        # The version that found these facts did not look at this time. To read every file again could cost hours, for
        # changes that went unnoticed with that version too; from now on they are noticed.
        return replace(earlier, ctime_ns=stat.ctime_ns)
    return earlier if earlier.ctime_ns == stat.ctime_ns else None


def _header(stream: IO[bytes], suffix: str, n_scans: int | None) -> FileFacts:
    try:
        header = decoders.current().header(stream, suffix, n_scans=n_scans)
    except decoders.UndecodableError as error:
        # At another time, or with other packages, there may be no reason, so the next scan looks at the header again.
        return FileFacts(reason=str(error), profile=icc.NONE if error.lasting else None)
    return FileFacts(
        format=header.format,
        mode=header.mode,
        width=header.width,
        height=header.height,
        orientation=header.orientation,
        n_scans=header.n_scans,
        profile=header.profile,
    )


def _with_facts(manifest: Manifest, facts: FileTable, config: DecodingConfig) -> Manifest:
    bad = {row: _too_large(facts[row], config.max_pixels) for row in facts.larger_than(config.max_pixels)}
    bad |= {row: str(facts[row].reason) for row in facts.with_reason()}
    bad |= manifest.bad
    return replace(manifest, files=facts, bad=dict(sorted(bad.items())), duplicates=_duplicates(facts, bad))


def _duplicates(facts: FileTable, bad: Mapping[int, str]) -> dict[int, int]:
    """Return the first row with the same content for each row that has an earlier one."""
    hashes = facts.hashes()
    rows = np.setdiff1d(np.flatnonzero(hashes.any(axis=1)), list(bad), assume_unique=True)
    # `lexsort` keeps the order of equal rows, so the first of them comes first.
    order = rows[np.lexsort(hashes[rows].T)]
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (hashes[order[1:]] != hashes[order[:-1]]).any(axis=1)
    first = order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))]
    copies = np.sort(order[~begins])
    first_of = np.empty(len(facts), np.int64)
    first_of[order] = first
    return dict(zip(copies.tolist(), first_of[copies].tolist(), strict=True))


def _too_large(facts: FileFacts, max_pixels: int) -> str:
    return f"{facts.width} x {facts.height} pixels, more than --max-pixels {max_pixels} allows"

"""Finds the pictures in tar files and looks at each of them, in one pass over each file.

Input: tar files. Output: what the scan of a folder gives (see `scan`) for the pictures in them, in the order in which
they lie, and the labels that lie beside them. What the store knows of a file that is as before is not read again. This
module must not know what is done with the pictures.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from gpu_cluster.addresses import in_tar, public
from gpu_cluster.backend.cores import usable_cores
from gpu_cluster.config import InputConfig, PicturesConfig, StoreConfig
from gpu_cluster.events import Observer, interrupted
from gpu_cluster.facts import FileFacts
from gpu_cluster.files import printable
from gpu_cluster.images import decode, decoders, formats, scan, tar_files, thumbnails
from gpu_cluster.images.places import stat_of_tar
from gpu_cluster.images.source import Listing, Stat, reading_threads
from gpu_cluster.store.store import Store, open_store
from gpu_cluster.store.tars import KnownTar, TarMember, TarShards

# Members beside a picture, of the same name but for the suffix, that hold its label.
_CLS, _JSON = ".cls", ".json"
_MOST_LABEL_BYTES = 1 << 20
# What is kept of each of them, and of all in one tar file.
_LONGEST_LABEL, _MOST_KEPT_BYTES = 4096, 256 << 20
# Tar files that are read at once, and of each the members that are looked at ahead of the one that is taken.
_TARS_AT_ONCE, _AHEAD = 4, 16
# Small copies that are written together.
_COPIES_TOGETHER = 4096


@dataclass
class _Tar:
    """One tar file: what its locations begin with, where it is, and what became of it."""

    name: str
    place: Path | str
    found: KnownTar | None = None
    reason: str | None = None


@dataclass(frozen=True)
class _Look:
    """A member, and what is found out about it: in another thread if it is a picture."""

    member: tar_files.Member
    facts: Future[tuple[FileFacts, bytes]] | None = None
    content: bytes | None = None

    def done(self) -> tuple[TarMember, bytes]:
        """Return what is kept of it, and its small copy; nothing if there is none."""
        facts, copy = (None, b"") if self.facts is None else self.facts.result()
        one = self.member
        return TarMember(one.name, one.offset, one.size, facts, self.content), copy


class TarScan:
    """Lists the pictures in tar files, and looks at them."""

    def __init__(self, config: PicturesConfig, store: StoreConfig, observer: Observer) -> None:
        """Set the limits, what keeps what is found out, and who is told; the store is opened if it is needed."""
        self._config = config
        # Only jobs that use labels name it.
        self._label_col = config.label_col if isinstance(config, InputConfig) else InputConfig().label_col
        self._store_config = store
        self._observer = observer
        self._store: Store | None = None
        self._shards: dict[str, TarShards] = {}

    def list(self, named: list[tuple[str, Path | str]]) -> Listing:
        """Return the pictures of tar files, each named by what its locations begin with and where it is.

        A file that cannot be read is bad; one that is cut short is too, and what comes before is used.

        Raises
        ------
        InterruptedJobError
            When the observer asked to stop; what was found of the files that were read to their end is kept.
        StoreError
            When the store cannot be read or written.
        """
        listing = Listing()
        if not named:
            return listing
        self._store = open_store(self._store_config, self._observer)
        if self._store is not None:
            key = {"pillow": version("pillow")}
            folders = {os.path.dirname(_stored_name(place)) for _name, place in named}
            self._shards = {folder: self._store.tars(folder, key) for folder in folders}
        n_cores = usable_cores()
        with (
            decoders.within(self._config),
            decode.limited(None),
            reading_threads(n_cores) as lookers,
            reading_threads(min(n_cores, _TARS_AT_ONCE)) as readers,
        ):
            tars = [_Tar(name, place) for name, place in named]
            for done, tar in enumerate(readers.map(lambda tar: self._read(tar, lookers), tars), start=1):
                if tar.found is None and tar.reason is None:
                    raise interrupted()
                self._add(listing, tar)
                self._observer.progress("scan", done, len(tars))
        return listing

    def _read(self, tar: _Tar, lookers: ThreadPoolExecutor) -> _Tar:
        """Fill in what is found of a tar file; nothing if the observer asks to stop."""
        if self._observer.stopping():
            return tar
        # From before the look, as in `scan`.
        started_ns = time.time_ns()
        try:
            stat = stat_of_tar(tar.place)
        except OSError as error:
            tar.reason = f"cannot be opened: {error.strerror or error}"
            return tar
        store, name = self._store, _stored_name(tar.place)
        shards = self._shards.get(os.path.dirname(name))
        known = None if shards is None or self._store_config.rehash else shards.known(name)
        if known is not None and stat == Stat(known.size, known.mtime_ns, known.ctime_ns, known.version):
            tar.found = known
            self._look_again(tar, known, stat)
            return tar
        members: list[TarMember] = []
        copies: dict[str, bytes] = {}
        try:
            with tar_files.TarFile(tar.place, stat.size, stat.state) as opened:
                for member, copy in self._looked_at(opened, lookers):
                    members.append(member)
                    if copy and member.facts is not None:
                        copies[str(member.facts.content_hash)] = copy
                    if store is not None and len(copies) >= _COPIES_TOGETHER:
                        store.copies().keep(copies)
                        copies = {}
                    if self._observer.stopping():
                        return tar
        except tar_files.DamagedTarError as error:
            tar.reason = str(error)
        except OSError as error:
            tar.reason = f"cannot be read: {error.strerror or error}"
        tar.found = KnownTar(name, stat.size, stat.mtime_ns, stat.ctime_ns, stat.version, members)
        if store is not None and copies:
            store.copies().keep(copies)
        # A file with a reason is read again by the next scan: it may be complete then.
        if shards is not None and tar.reason is None and scan.next_change_shows(stat, started_ns):
            shards.keep(tar.found)
        return tar

    def _look_again(self, tar: _Tar, known: KnownTar, stat: Stat) -> None:
        """Look again at the pictures of a tar file that is as before, as far as what was wrong with them may pass."""
        members, copies = list(known.members), dict[str, bytes]()
        again = [at for at, one in enumerate(members) if one.facts is not None and scan.may_pass(one.facts)]
        if not again:
            return
        try:
            with tar_files.TarFile(tar.place, stat.size, stat.state) as opened:
                for at in again:
                    one = members[at]
                    suffix = os.path.splitext(one.name)[1].lower()
                    facts, copy = self._facts_of(opened, tar_files.Member(one.name, one.offset, one.size), suffix)
                    members[at] = replace(one, facts=facts)
                    if copy:
                        copies[str(facts.content_hash)] = copy
        except OSError as error:
            tar.reason = f"cannot be read: {error.strerror or error}"
            return
        tar.found = replace(known, members=members)
        if tar.found != known and self._store is not None:
            self._shards[os.path.dirname(known.name)].keep(tar.found)
            if copies:
                self._store.copies().keep(copies)

    def _looked_at(self, tar: tar_files.TarFile, lookers: ThreadPoolExecutor) -> Iterator[tuple[TarMember, bytes]]:
        """Yield the members with their small copies; a few of them are held, while others are looked at."""
        begun: deque[_Look] = deque()
        damage: Exception | None = None
        looks = self._begun(tar, lookers)
        while True:
            try:
                look = next(looks, None)
            except (tar_files.DamagedTarError, OSError) as error:
                look, damage = None, error
            if look is None:
                break
            begun.append(look)
            if len(begun) > _AHEAD:
                yield begun.popleft().done()
        # What comes before the damage is used.
        while begun:
            yield begun.popleft().done()
        if damage is not None:
            raise damage

    def _begun(self, tar: tar_files.TarFile, lookers: ThreadPoolExecutor) -> Iterator[_Look]:
        n_kept = 0
        for member in tar.members():
            base = os.path.basename(member.name)
            if not base or base.startswith(".") or "__MACOSX" in member.name.split("/"):
                continue
            suffix = os.path.splitext(base)[1].lower()
            if suffix in (_CLS, _JSON) and member.size <= _MOST_LABEL_BYTES:
                content = _kept_of(tar.read(member.offset, member.size), suffix)
                n_kept += len(content or b"")
                if n_kept > _MOST_KEPT_BYTES:
                    raise tar_files.DamagedTarError(f"more than {_MOST_KEPT_BYTES:,} bytes of labels; split it")
                yield _Look(member, content=content)
            elif self._is_picture(tar, member, suffix):
                yield _Look(member, lookers.submit(self._facts_of, tar, member, suffix))
            else:
                yield _Look(member)

    def _is_picture(self, tar: tar_files.TarFile, member: tar_files.Member, suffix: str) -> bool:
        if suffix in formats.suffixes():
            return True
        head = tar.read(member.offset, min(member.size, formats.HEAD_BYTES))
        return formats.format_of(head) is not None

    def _facts_of(self, tar: tar_files.TarFile, member: tar_files.Member, suffix: str) -> tuple[FileFacts, bytes]:
        reason = scan.too_many_bytes(member.size, self._config.max_pixels)
        if reason is not None:
            return FileFacts(reason=reason), b""
        with scan.HELD.taken(member.size):
            content = tar.read(member.offset, member.size)
            facts = scan.facts_of(content, suffix)
            return facts, thumbnails.copy_of(content, suffix) if facts.reason is None else b""

    def _add(self, listing: Listing, tar: _Tar) -> None:
        if tar.reason is not None:
            listing.bad[tar.name] = tar.reason
        if tar.found is None:
            return
        found, texts, passed_over = tar.found, dict[str, bytes](), set[str]()
        pictures: dict[str, FileFacts] = {}
        for member in found.members:
            location = in_tar(tar.name, member.name)
            if member.content is not None:
                texts[member.name] = member.content
            if member.facts is None:
                passed_over.add(location)
                continue
            # As when a tar file is unpacked, the last one of a name counts; so it has the place of the last one too.
            pictures.pop(member.name, None)
            pictures[member.name] = replace(
                member.facts,
                size=member.size,
                mtime_ns=found.mtime_ns,
                ctime_ns=found.ctime_ns,
                version=found.version,
                offset=member.offset,
            )
        for name, (label, beside) in _labels(pictures, texts, self._label_col).items():
            listing.labels[in_tar(tar.name, name)] = label
            passed_over.discard(in_tar(tar.name, beside))
        facts = {in_tar(tar.name, name): one for name, one in pictures.items()}
        listing.facts |= facts
        listing.passed_over |= passed_over - facts.keys()


def _stored_name(place: Path | str) -> str:
    """Return the name by which the store knows a tar file."""
    return public(place) if isinstance(place, str) else str(place)


def _labels(pictures: Iterable[str], texts: dict[str, bytes], column: str) -> dict[str, tuple[str, str]]:
    """Return the label of each picture that has one, and the name of the member that holds it."""
    found = {}
    for name in pictures:
        stem = _stem(name)
        for suffix in (_CLS, _JSON):
            beside = f"{stem}{suffix}"
            if beside not in texts:
                continue
            text = _text_of(texts[beside], suffix, column)
            if text is not None:
                found[name] = (text, beside)
                break
    return found


def _stem(name: str) -> str:
    """Return what a picture and the members that belong to it have in common: all before the first dot of the name."""
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}{base.partition('.')[0]}"


def _kept_of(content: bytes, suffix: str) -> bytes | None:
    """Return what can be a label of the content of a member: of JSON, all values that one can be; None if nothing is.

    Which of them is the label can be another one in the next job.
    """
    if suffix == _CLS:
        return content if len(content) <= _LONGEST_LABEL else None
    try:
        held = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(held, dict):
        return None
    texts = {name: str(value) for name, value in held.items() if isinstance(value, str | int | float)}
    return json.dumps({name: text for name, text in texts.items() if len(text) <= _LONGEST_LABEL}).encode()


def _text_of(content: bytes, suffix: str, column: str) -> str | None:
    """Return the label that a member holds; None if it holds none."""
    try:
        text = content.decode("utf-8-sig")
        if suffix == _JSON:
            text = json.loads(text).get(column, "")
        # JSON can have half of a pair of surrogates, which is no character.
        return printable(text.strip()) or None
    except (ValueError, RecursionError):
        return None

"""Finds the pictures in tar files and looks at each of them, in one pass over each file.

Input: tar files. Output: what the scan of a folder gives (see `scan`) for the pictures in them, in the order in which
they lie, and the labels that lie beside them. What the store knows of a file that is as before is not read again. This
module must not know what is done with the pictures.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from gpu_cluster.addresses import in_tar, public
from gpu_cluster.backend.cores import usable_cores
from gpu_cluster.config import InputConfig, PicturesConfig, StoreConfig
from gpu_cluster.events import Observer, interrupted
from gpu_cluster.facts import FileFacts
from gpu_cluster.files import printable
from gpu_cluster.images import decoders, formats, scan, tar_files, thumbnails
from gpu_cluster.images.places import stat_of_tar
from gpu_cluster.images.source import Listing, Stat
from gpu_cluster.store.store import Store, open_store
from gpu_cluster.store.tars import KnownTar, TarMember

# Members beside a picture, of the same name but for the suffix, that hold its label.
_CLS, _JSON = ".cls", ".json"
_MOST_LABEL_BYTES = 1 << 20
# The contents of one file that are held at once.
_AT_ONCE_BYTES = 256 << 20


@dataclass
class _Tar:
    """One tar file: what it is called, where it is, and what became of it."""

    name: str
    place: Path | str
    found: KnownTar | None = None
    reason: str | None = None


@dataclass
class TarScan:
    """Lists tar files for `discover`.

    Attributes
    ----------
    config, store : the options of the job that are used
    events : who is told
    """

    config: PicturesConfig
    store: StoreConfig
    events: Observer
    _opened: list[Store | None] = field(default_factory=list)

    def list(self, named: list[tuple[str, Path | str]]) -> Listing:
        """Return the pictures of tar files, each named by what its locations begin with and where it is.

        A file that cannot be read is bad; one that is cut short is too, and what comes before is used.

        Raises
        ------
        InterruptedJobError
            When the observer asked to stop; what was found of the files that were read to their end is kept.
        """
        listing = Listing()
        if not named:
            return listing
        with decoders.within(self.config), ThreadPoolExecutor(usable_cores()) as pool:
            tars = [_Tar(name, place) for name, place in named]
            for done, tar in enumerate(pool.map(self._read, tars), start=1):
                if tar.found is None and tar.reason is None:
                    raise interrupted()
                self._add(listing, tar)
                self.events.progress("scan", done, len(tars))
        return listing

    def _kept(self) -> Store | None:
        if not self._opened:
            self._opened.append(open_store(self.store, self.events))
        return self._opened[0]

    def _read(self, tar: _Tar) -> _Tar:
        """Fill in what is found of a tar file; nothing if the observer asks to stop."""
        if self.events.stopping():
            return tar
        try:
            stat = stat_of_tar(tar.place)
        except OSError as error:
            tar.reason = f"cannot be opened: {error.strerror or error}"
            return tar
        store = self._kept()
        name = public(tar.place) if isinstance(tar.place, str) else str(tar.place)
        shards = None if store is None else store.tars(os.path.dirname(name), {"pillow": version("pillow")})
        known = None if shards is None or self.store.rehash else shards.known(name)
        if known is not None and (known.size, known.mtime_ns, known.ctime_ns, known.version) == (
            stat.size,
            stat.mtime_ns,
            stat.ctime_ns,
            stat.version,
        ):
            tar.found = known
            return tar
        members: list[TarMember] = []
        copies: dict[str, bytes] = {}
        try:
            with tar_files.TarFile(tar.place, stat.size, stat.state) as opened:
                for member in self._looked_at(opened, stat, copies):
                    members.append(member)
                    if self.events.stopping():
                        return tar
        except tar_files.DamagedTarError as error:
            tar.reason = str(error)
        except OSError as error:
            tar.reason = f"cannot be read: {error.strerror or error}"
        tar.found = KnownTar(name, stat.size, stat.mtime_ns, stat.ctime_ns, stat.version, members)
        if store is not None and copies:
            store.copies().keep(copies)
        # A file with a reason is read again by the next scan: it may be complete then.
        if shards is not None and tar.reason is None:
            shards.keep(tar.found)
        return tar

    def _looked_at(self, tar: tar_files.TarFile, stat: Stat, copies: dict[str, bytes]) -> Iterator[TarMember]:
        for member in tar.members():
            base = os.path.basename(member.name)
            if not base or base.startswith(".") or "__MACOSX" in member.name.split("/"):
                continue
            suffix = os.path.splitext(base)[1].lower()
            label = suffix in (_CLS, _JSON)
            if label and member.size <= _MOST_LABEL_BYTES:
                yield TarMember(member.name, member.offset, member.size, content=tar.read(member.offset, member.size))
                continue
            too_large = scan.too_many_bytes(member.size, self.config.max_pixels)
            is_picture = suffix in formats.suffixes()
            if not is_picture and not label:
                head = tar.read(member.offset, min(member.size, formats.HEAD_BYTES))
                is_picture = formats.format_of(head) is not None
            if not is_picture:
                yield TarMember(member.name, member.offset, member.size)
            elif too_large is not None:
                yield TarMember(member.name, member.offset, member.size, facts=FileFacts(reason=too_large))
            else:
                content = tar.read(member.offset, member.size)
                yield TarMember(member.name, member.offset, member.size, facts=self._facts_of(content, suffix, copies))

    def _facts_of(self, content: bytes, suffix: str, copies: dict[str, bytes]) -> FileFacts:
        facts = scan.facts_of(content, suffix)
        if facts.reason is None and facts.content_hash is not None:
            copies[facts.content_hash] = thumbnails.copy_of(content, suffix)
        return facts

    def _add(self, listing: Listing, tar: _Tar) -> None:
        if tar.reason is not None:
            listing.bad[tar.name] = tar.reason
        if tar.found is None:
            return
        found, texts = tar.found, {}
        for member in found.members:
            location = in_tar(tar.name, member.name)
            if member.content is not None:
                texts[member.name] = member.content
            if member.facts is None:
                listing.passed_over.add(location)
                continue
            # As when a tar file is unpacked, the last one of a name counts; so it has the place of the last one too.
            listing.facts.pop(location, None)
            listing.facts[location] = replace(
                member.facts,
                size=member.size,
                mtime_ns=found.mtime_ns,
                ctime_ns=found.ctime_ns,
                version=found.version,
                offset=member.offset,
            )
        listing.passed_over -= listing.facts.keys()
        of_pictures = {name for member in found.members if member.facts is not None for name in [member.name]}
        labels = _labels(of_pictures, texts, getattr(self.config, "label_col", InputConfig().label_col))
        for name, (label, beside) in labels.items():
            listing.labels[in_tar(tar.name, name)] = label
            listing.passed_over.discard(in_tar(tar.name, beside))


def _labels(pictures: set[str], texts: dict[str, bytes], column: str) -> dict[str, tuple[str, str]]:
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


def _text_of(content: bytes, suffix: str, column: str) -> str | None:
    """Return the label that a member holds; None if it holds none."""
    try:
        text = content.decode("utf-8-sig")
        if suffix == _JSON:
            held = json.loads(text)
            value = held.get(column) if isinstance(held, dict) else None
            text = "" if value is None or isinstance(value, dict | list) else str(value)
    except (ValueError, RecursionError):
        return None
    return printable(text.strip()) or None

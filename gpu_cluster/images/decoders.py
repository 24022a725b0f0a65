"""Reads headers and pixels of pictures so that none of them can harm the job.

Most pictures are plain: JPEGs and PNGs that need little memory and time, and whose colours are sRGB. The job itself
reads these, with several threads. All others are read by processes of their own (`decoding_process`), each with a limit
of memory and time; one that dies or is too slow is replaced, and its picture has a reason. How many pictures are
decoded at once follows from the free memory. This module must not know what is done with a picture.
"""

from __future__ import annotations

import functools
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import IO, Any

import numpy as np

from gpu_cluster.backend.cores import usable_cores
from gpu_cluster.backend.memory import free_host_bytes
from gpu_cluster.config import DecodingConfig
from gpu_cluster.images import decode, formats, icc
from gpu_cluster.images.decode import Header, Pixels
from gpu_cluster.images.decoding_process import DecodingProcess
from gpu_cluster.images.room import Room
from gpu_cluster.manifest import FileFacts

# What the job itself decodes: it needs at most this many bytes, and the passes over all pixels of its scans add up to
# at most this many pixels (some seconds' work).
_PLAIN_BYTES, _PLAIN_WORK = 768 << 20, 1_000_000_000
# Bytes a pixel that decoding and resizing take, by the kind of picture; `scripts/bench_decode.py` measures them.
_JPEG_BYTES, _SEVERAL_SCANS_BYTES, _PNG_BYTES = 12, 20, 24
# What a JPEG that is reduced takes beside the reduced picture, for each pixel that is stored: the content of the file,
# and if it has several scans, all its frequencies.
_FILE_BYTES, _FREQUENCIES_BYTES = 4, 10
_OTHER_BYTES, _WIDE_BYTES = 24, 48
# The decoders of these formats work on copies of several bytes for each value.
_WIDE_FORMATS = frozenset({"AVIF", "JPEG2000", "WEBP"})
# A baseline JPEG has one scan for each colour at most, and its preview another one.
_FEW_SCANS = 4
# What a decoder takes beside the pixels; the header of a picture never needs more.
_ROOM_BYTES = 256 << 20
# Pictures for each core that are read at once from a server.
_WAITING = 8
# Profiles that are remembered.
_MOST_PROFILES = 1024
# Pictures that are decoded at once share this part of the free memory; a single one may take up to the second part.
_SHARE, _SHARE_ALONE = 1 / 8, 1 / 2


class UndecodableError(Exception):
    """A picture cannot be decoded; the message is the reason in plain words.

    Attributes
    ----------
    lasting : whether the file itself is at fault, so that it cannot be decoded at another time or elsewhere
    """

    def __init__(self, reason: str, *, lasting: bool) -> None:
        super().__init__(reason)
        self.lasting = lasting


def bytes_needed(facts: FileFacts | Header, at_least: int | None = None) -> int:
    """Return an upper estimate of the memory that decoding and resizing a picture takes, in bytes.

    `at_least` is that of `decode.decode`: a JPEG that is reduced while it is decoded takes less.
    """
    width, height = facts.width or 0, facts.height or 0
    n_pixels = width * height
    if facts.format in decode.JPEG_FORMATS:
        several = facts.mode == "CMYK" or facts.n_scans is None or facts.n_scans > _FEW_SCANS
        ratio = decode.reduction(width, height, at_least)
        if ratio == 1:
            return n_pixels * (_SEVERAL_SCANS_BYTES if several else _JPEG_BYTES)
        reduced = -(-width // ratio) * -(-height // ratio) * _JPEG_BYTES
        return reduced + n_pixels * (_FREQUENCIES_BYTES if several else _FILE_BYTES)
    if facts.format == "PNG":
        return n_pixels * _PNG_BYTES
    return n_pixels * (_WIDE_BYTES if facts.format in _WIDE_FORMATS else _OTHER_BYTES)


def is_plain(facts: FileFacts | Header) -> bool:
    """Return whether the job itself may decode a picture; of a JPEG the number of scans must be known."""
    if icc.is_foreign(facts.profile):
        return False
    if facts.format in decode.JPEG_FORMATS:
        work = math.inf if facts.n_scans is None else (facts.width or 0) * (facts.height or 0) * facts.n_scans
        return work <= _PLAIN_WORK and bytes_needed(facts) <= _PLAIN_BYTES
    return facts.format == "PNG" and bytes_needed(facts) <= _PLAIN_BYTES


class Decoders:
    """Reads pictures within limits; its methods may be called by several threads at once.

    Attributes
    ----------
    n_at_once : the number of pictures that are worth reading at once
    limits : pixels of a picture, and seconds that decoding it may take
    """

    def __init__(self, config: DecodingConfig) -> None:
        self.limits = _limits(config)
        self._config = config
        free = free_host_bytes()
        self._room = Room(int(free * _SHARE))
        self._most_alone = int(free * _SHARE_ALONE)
        self.n_at_once = usable_cores()
        self._places = threading.Semaphore(self.n_at_once)
        self._lock = threading.Lock()
        # What profiles turned out to be, by what they say of themselves and the mode of their pictures.
        self._profiles: dict[tuple[str, str], str] = {}
        self._idle: list[DecodingProcess] = []
        self._all: set[DecodingProcess] = set()
        self._closed = False

    def n_plain_at_once(self, most_bytes: int, *, are_here: bool = True) -> int:
        """Return how many plain pictures, each of which needs at most `most_bytes`, may be decoded at once.

        Pictures that are no files of this machine are more at once, because most of them wait for their server.
        """
        n_at_once = self.n_at_once * (1 if are_here else _WAITING)
        return max(1, min(n_at_once, self._room.n_bytes // max(1, most_bytes)))

    def header(self, stream: IO[bytes], suffix: str = "", *, n_scans: int | None = None) -> Header:
        """Read the header of a picture, which is open at its first byte, without decoding it.

        `n_scans` is the number of scans of a JPEG, if it is known already.

        Raises
        ------
        UndecodableError
            When it is no usable picture.
        OSError
            When the file cannot be read.
        """
        head = stream.read(formats.HEAD_BYTES)
        stream.seek(0)
        kind = formats.format_of(head)
        if kind not in ("JPEG", "PNG"):
            # To read the header of a WebP is to set two pictures of its size aside, which nothing is written to.
            aside = 8 * self._config.max_pixels if kind == "WebP" else 0
            return Header(*self._ask(stream, suffix, 0, aside=aside, wanted="header")[0]["header"])
        try:
            header = decode.read_header(stream, suffix, plain=True, n_scans=n_scans)
        # On a broken file Pillow's readers can raise any type of error, and none of them may end the job.
        except Exception as error:
            # Pillow's own OSErrors have no errno; this one says that the file cannot be read.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise UndecodableError(formats.reason(head, error), lasting=not formats.is_passing(error)) from error
        return self._with_usable_profile(header, stream, suffix) if icc.is_foreign(header.profile) else header

    def _with_usable_profile(self, header: Header, stream: IO[bytes], suffix: str) -> Header:
        """Return the header with its profile as Little CMS finds it, which reads each profile once."""
        name = (header.profile, header.mode)
        if name not in self._profiles:
            stream.seek(0)
            found = Header(*self._ask(stream, suffix, 0, wanted="header")[0]["header"])
            if len(self._profiles) >= _MOST_PROFILES:
                self._profiles.clear()
            self._profiles[name] = found.profile
        return replace(header, profile=self._profiles[name])

    def pixels(
        self,
        stream: IO[bytes],
        suffix: str,
        facts: FileFacts | Header,
        *,
        at_least: int | None = None,
        profiles: bool = True,
    ) -> Pixels:
        """Return the picture (h, w, 3) uint8, RGB, upright, on white, of a file that is open at its first byte.

        `facts` are what its header says; the picture is decoded in a process of its own. `at_least` and
        `profiles` are those of `decode.decode`.

        Raises
        ------
        UndecodableError
            When it cannot be decoded within the limits.
        """
        more: dict[str, Any] = {"at_least": at_least, "profiles": profiles}
        reply, pixels = self._ask(stream, suffix, bytes_needed(facts, at_least), wanted="pixels", **more)
        return pixels.reshape(reply["shape"])

    def small(self, stream: IO[bytes], suffix: str, side: int) -> Pixels:
        """Return the picture as `pixels` does, with no side longer than `side`.

        Raises
        ------
        UndecodableError
            When it cannot be decoded within the limits.
        """
        header = self.header(stream, suffix)
        stream.seek(0)
        if is_plain(header):
            with self._room.taken(bytes_needed(header)):
                try:
                    return np.asarray(decode.shrunk(stream, suffix, side, plain=True))
                # As above.
                except Exception as error:
                    raise UndecodableError(formats.reason(b"", error), lasting=not formats.is_passing(error)) from error
        reply, pixels = self._ask(stream, suffix, bytes_needed(header), wanted="small", side=side)
        return pixels.reshape(reply["shape"])

    def close(self) -> None:
        """End all processes, also those that decode; whoever waits for one gets an error."""
        with self._lock:
            self._closed = True
            processes, self._all = list(self._all), set()
        for process in processes:
            process.end()

    def _ask(
        self, stream: IO[bytes], suffix: str, n_bytes: int, *, wanted: str, aside: int = 0, **more: Any
    ) -> tuple[dict[str, Any], Pixels]:
        if n_bytes > self._most_alone:
            raise UndecodableError(
                f"decoding it takes about {n_bytes >> 20:,} MiB, more than half of the memory that is free "
                f"({2 * self._most_alone >> 20:,} MiB)",
                lasting=False,
            )
        config = self._config
        asked = {
            "wanted": wanted,
            "suffix": suffix,
            # The scan reads every header, so that the reason can name the size of a picture that is too large.
            "max_pixels": None if wanted == "header" else config.max_pixels,
            "most_seconds": config.max_decode_seconds,
            **more,
        }
        with _as_file(stream) as (descriptor, n_bytes_file), self._places, self._room.taken(n_bytes + _ROOM_BYTES):
            # Some decoders read the whole file first.
            asked["most_bytes"] = n_bytes + aside + _ROOM_BYTES + 2 * n_bytes_file
            process = self._take()
            try:
                reply, pixels = process.ask(asked, descriptor, config.max_decode_seconds)
            except TimeoutError as error:
                raise UndecodableError(
                    f"not decoded within --max-decode-seconds {config.max_decode_seconds:g}", lasting=False
                ) from error
            except (OSError, EOFError) as error:
                raise UndecodableError(self._why_it_died(process), lasting=False) from error
            finally:
                self._give_back(process)
        if "reason" in reply:
            raise UndecodableError(reply["reason"], lasting=reply.get("lasting", False))
        return reply, pixels

    def _take(self) -> DecodingProcess:
        with self._lock:
            if self._closed:
                raise UndecodableError("the job ended before it was decoded", lasting=False)
            if self._idle:
                return self._idle.pop()
            process = DecodingProcess()
            self._all.add(process)
            return process

    def _give_back(self, process: DecodingProcess) -> None:
        with self._lock:
            if process.usable and not self._closed:
                self._idle.append(process)
                return
            self._all.discard(process)
        process.end()

    def _why_it_died(self, process: DecodingProcess) -> str:
        if self._closed:
            return "the job ended before it was decoded"
        return f"its decoder crashed ({process.how_it_died()})"


@contextmanager
def _as_file(stream: IO[bytes]) -> Iterator[tuple[int, int]]:
    """Give the block the descriptor of an open file with the content of a stream, and its size in bytes."""
    try:
        descriptor = stream.fileno()
    except OSError:
        # The picture is not a file of this machine; `fileno` of a stream without one raises an OSError.
        with _in_memory() as copy:
            shutil.copyfileobj(stream, copy)
            copy.flush()
            yield copy.fileno(), copy.tell()
    else:
        yield descriptor, os.fstat(descriptor).st_size


def _in_memory() -> IO[bytes]:
    """Return a file that lies on no disk, and has a descriptor; where the system has none, one without a name."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("picture"), "w+b")
    return tempfile.TemporaryFile()


_current: Decoders | None = None


@contextmanager
def limited(config: DecodingConfig) -> Iterator[Decoders]:
    """Read pictures within the limits of `config` in the block, in all threads; `current` returns the decoders."""
    global _current  # noqa: PLW0603 - the limits belong to the process, like Pillow's own
    earlier = _current
    _current = Decoders(config)
    try:
        with decode.limited(config.max_pixels):
            yield _current
    finally:
        _current.close()
        _current = earlier


@contextmanager
def within(config: DecodingConfig) -> Iterator[Decoders]:
    """Read pictures within the limits of `config`, by the decoders of the block that has the same limits, if any."""
    if _current is not None and _current.limits == _limits(config):
        yield _current
        return
    with limited(config) as opened:
        yield opened


def _limits(config: DecodingConfig) -> tuple[int, float]:
    return config.max_pixels, config.max_decode_seconds


def current() -> Decoders:
    """Return the decoders of the block that `limited` has opened, or ones with the default limits."""
    return _current or _default()


@functools.cache
def _default() -> Decoders:
    return Decoders(DecodingConfig())

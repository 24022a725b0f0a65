"""A process that decodes one picture at a time for the job, which may end it at any moment: both ends of it.

`DecodingProcess` is the job's end, and `main` runs in the process. It knows no paths: each request comes with an open
file over a socket. A request and a reply are a JSON text with its length in front; the pixels of a picture follow their
reply. This module must not know which pictures are decoded like this (see `decoders`).
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from typing import IO, Any

import numpy as np

from gpu_cluster.errors import JobError
from gpu_cluster.images import decode, formats
from gpu_cluster.images.decode import Pixels

_LENGTH = struct.Struct("<I")
# Pixels are sent in parts of about this many bytes, so that a picture that was turned is not copied as a whole.
_PART_BYTES = 1 << 22

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from gpu_cluster.images.decoding_process import main; main()"
)
# A process whose connection has broken is ending by itself; this is enough for the system to clear it away.
_DYING_SECONDS = 5


class DecodingProcess:
    """A process that decodes, and the socket to it.

    Attributes
    ----------
    usable : whether it waits for the next request
    """

    def __init__(self) -> None:
        if not sys.executable:
            raise JobError("cannot start a process to decode pictures: Python does not know its own program")
        here, there = socket.socketpair()
        search = json.dumps([place for place in (str(Path(__file__).parents[2]), *sys.path) if place])
        with there:
            # With -P the folder in which the job was started is not searched for modules. What decoders print about
            # broken files goes where that of the job's own libraries goes.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, search],
                stdin=there.fileno(),
                stdout=subprocess.DEVNULL,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )
        self._connection = here
        self.usable = True

    def ask(self, asked: dict[str, Any], descriptor: int, seconds: float) -> tuple[dict[str, Any], Pixels]:
        """Send a request with an open file, and return the reply and the pixels that belong to it, flat.

        Raises
        ------
        TimeoutError
            When the reply does not come within `seconds`.
        EOFError, OSError
            When the process has died.
        """
        self.usable = False
        self._connection.settimeout(seconds)
        _send(self._connection, asked, descriptor)
        reply = _receive_message(self._connection)
        if reply is None:
            raise EOFError("the process has ended")
        pixels = np.empty(math.prod(reply["shape"]) if "shape" in reply else 0, np.uint8)
        view, n_received = pixels.data, 0
        while n_received < len(pixels):
            n = self._connection.recv_into(view[n_received:])
            if not n:
                raise EOFError("the process has ended")
            n_received += n
        self.usable = True
        return reply, pixels

    def how_it_died(self) -> str:
        """Return in words how the process ended, which it is about to do if it has not yet."""
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(_DYING_SECONDS)
            return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        return "it closed its connection"

    def end(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._connection.close()


def main() -> None:
    """Answer requests until the job closes its end of the socket, which is this process's standard input."""
    # Ctrl-C and the signals of schedulers reach every process of a group; the job alone decides what they mean.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=0) as connection:
        while request := _receive(connection):
            asked, descriptor = request
            with os.fdopen(descriptor, "rb") as stream:
                reply, pixels = _answer(asked, stream)
            _send(connection, reply)
            if pixels is not None:
                rows = max(1, _PART_BYTES // max(1, pixels.shape[1] * 3))
                for top in range(0, len(pixels), rows):
                    connection.sendall(np.ascontiguousarray(pixels[top : top + rows]).data)


def _send(connection: socket.socket, message: dict[str, Any], descriptor: int | None = None) -> None:
    """Send a message, and with it an open file."""
    text = json.dumps(message).encode()
    content = _LENGTH.pack(len(text)) + text
    if descriptor is None:
        connection.sendall(content)
    else:
        n_sent = socket.send_fds(connection, [content], [descriptor])
        connection.sendall(content[n_sent:])


def _take(connection: socket.socket, n_bytes: int) -> bytes:
    """Receive this many bytes; fewer if the other end is closed."""
    found = bytearray()
    while len(found) < n_bytes and (part := connection.recv(n_bytes - len(found))):
        found += part
    return bytes(found)


def _receive_message(connection: socket.socket, begun: bytes = b"") -> dict[str, Any] | None:
    """Receive a message whose first bytes were received already; None if the other end is closed."""
    head = begun + _take(connection, _LENGTH.size - len(begun))
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    text = _take(connection, length)
    return dict(json.loads(text)) if len(text) == length else None


def _receive(connection: socket.socket) -> tuple[dict[str, Any], int] | None:
    begun, descriptors, _flags, _address = socket.recv_fds(connection, _LENGTH.size, 1)
    message = _receive_message(connection, begun) if begun else None
    return None if message is None else (message, descriptors[0])


def _answer(asked: dict[str, Any], stream: IO[bytes]) -> tuple[dict[str, Any], Pixels | None]:
    _set_limits(asked["most_bytes"], asked["most_seconds"])
    suffix, head = asked["suffix"], b""
    try:
        stream.seek(0)
        head = stream.read(formats.HEAD_BYTES)
        stream.seek(0)
        with decode.limited(asked["max_pixels"]):
            if asked["wanted"] == "header":
                return {"header": astuple(decode.read_header(stream, suffix))}, None
            if asked["wanted"] == "pixels":
                pixels = decode.decode(stream, suffix, at_least=asked["at_least"], profiles=asked["profiles"])
            else:
                pixels = np.asarray(decode.shrunk(stream, suffix, asked["side"]))
        return {"shape": pixels.shape}, pixels
    # On a broken file Pillow's readers can raise any type of error, and none of them may end this process.
    except Exception as error:  # noqa: BLE001
        if formats.is_memory(error):
            return {"reason": f"it needs more memory than the {asked['most_bytes'] >> 20:,} MiB that it may have"}, None
        return {"reason": formats.reason(head, error), "lasting": not formats.is_passing(error)}, None


def _set_limits(most_bytes: int, most_seconds: float) -> None:
    """Limit the memory that this process may take in addition, and its processor time, should the job be gone."""
    statm = Path("/proc/self/statm")
    # Elsewhere than on Linux the address space of a process is not limited by its use.
    if statm.exists():
        used = int(statm.read_text().split()[0]) * resource.getpagesize()
        _lower(resource.RLIMIT_AS, used + most_bytes)
    spent = resource.getrusage(resource.RUSAGE_SELF)
    _lower(resource.RLIMIT_CPU, int(spent.ru_utime + spent.ru_stime + most_seconds) + 2)


def _lower(kind: int, limit: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))

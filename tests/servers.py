"""Servers of pictures for the tests: a real S3 server in a process of its own, and one that misbehaves as told."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

# The secret is one that no other text has in it, so that a test can look for it.
SECRET = "secret-0f6c2d7be1a94c53"
KEYS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}

# As werkzeug logs a request; it gives those with another status than 200 a colour.
_REQUEST = re.compile(r'"(?:\x1b\[\d+m)*(GET|HEAD|PUT|POST|DELETE) (\S+) HTTP/')


@dataclass(frozen=True)
class S3Server:
    """A real S3 server (moto's) with one bucket, and the log of its requests.

    Attributes
    ----------
    port : of 127.0.0.1
    log : a line for each request
    """

    port: int
    log: Path
    bucket: str = "bucket"

    @property
    def environment(self) -> dict[str, str]:
        """What a client of this server needs."""
        return KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}"}

    def put(self, files: Mapping[str, bytes]) -> None:
        """Write objects, which are given by their keys."""
        client = self.client()
        for key, content in files.items():
            client.put_object(Bucket=self.bucket, Key=key, Body=content)

    def client(self) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=SECRET,
            region_name=KEYS["AWS_DEFAULT_REGION"],
        )

    def reads(self, prefix: str = "") -> Counter[str]:
        """Return how often each object below a prefix was asked for, of all requests of the log."""
        found = _REQUEST.findall(self.log.read_text(encoding="utf-8"))
        paths = [unquote(urlsplit(target).path) for method, target in found if method == "GET"]
        start = f"/{self.bucket}/"
        keys = [path.removeprefix(start) for path in paths if path.startswith(start) and path != start]
        return Counter(key for key in keys if key.startswith(prefix))


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Start moto's server, which writes its log into the folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "requests.log"
    command: list[str | Path] = [Path(sys.executable).with_name("moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as stream, subprocess.Popen(command, stdout=stream, stderr=stream) as process:
        try:
            server = S3Server(port, log)
            _wait_for(port, process)
            server.client().create_bucket(Bucket=server.bucket)
            yield server
        finally:
            process.kill()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, "the server ended"
        assert time.monotonic() < deadline, "the server does not answer"
        with suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=5).close()
            return
        time.sleep(0.05)


# The server that misbehaves

FaultName = Literal[
    "status",
    "drop",
    "late",
    "trickle",
    "too long",
    "too short",
    "size listed",
    "other content",
    "no range",
    "endless",
    "no head",
    "no size",
]


@dataclass
class Fault:
    """What goes wrong with a file.

    Attributes
    ----------
    name : `status`: answers with the status `value`; `drop`: ends the connection in the middle of the content; `late`:
        answers after `value` seconds; `trickle`: a byte each `value` seconds; `too long`, `too short`: says that the
        content is so many bytes longer or shorter than what it sends; `size listed`: lists the file with `value` bytes
        more; `other content`: sends other bytes, as many; `no range`: sends the whole file whatever was asked for;
        `endless`: sends a content without end; `no head`: answers HEAD with the status `value`, or 501; `no size`: does
        not say how many bytes come
    times : for how many requests of the content; None for all
    after : how many requests are answered rightly before
    """

    name: FaultName
    value: float = 0
    times: int | None = None
    after: int = 0


@dataclass(frozen=True)
class Request:
    """A request that was answered: its method, the path, and the `Range` that it asked for."""

    method: str
    path: str
    range: str | None


@dataclass
class FaultyServer:
    """A web server of files held in memory, which also speaks as much of S3 as reading needs.

    Its pages of folders are HTML with links. As S3, the first part of a path is the bucket.

    Attributes
    ----------
    files : content by path, without the slash before it
    faults : by path
    requests : all that it was asked for, in order
    versions : whether it sends ETag and Last-Modified
    ranges : whether it knows Range
    n_sent : bytes of contents that were sent
    """

    port: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, Fault] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    versions: bool = True
    ranges: bool = True
    n_sent: int = 0
    lock: Any = field(default_factory=Lock)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def environment(self) -> dict[str, str]:
        """What an S3 client of this server needs."""
        return KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}"}

    def reset(self, files: Mapping[str, bytes]) -> None:
        """Begin again with other files and no faults."""
        with self.lock:
            self.faults.clear()
            self.requests.clear()
            self.files, self.versions, self.ranges, self.n_sent = dict(files), True, True, 0

    def reads(self) -> Counter[str]:
        """Return how often the content of each file was asked for."""
        with self.lock:
            return Counter(one.path for one in self.requests if one.method == "GET" and one.path in self.files)

    def fault(self, path: str, method: str) -> Fault | None:
        """Return the fault of a request; one that passes is counted down."""
        with self.lock:
            found = self.faults.get(path)
            if found is None:
                return None
            # What is wrong with the content is not counted by HEAD.
            counts = method == "GET" or found.name in ("status", "late")
            if found.after:
                found.after -= counts
                return None
            if found.times is None or not counts:
                return found if found.times != 0 else None
            found.times -= 1
            return found if found.times >= 0 else None


@contextmanager
def faulty_server(files: Mapping[str, bytes] | None = None) -> Iterator[FaultyServer]:
    """Start a server in threads of this process, and end it with the block."""
    state = FaultyServer(files=dict(files or {}))
    with _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": state})) as server:
        state.port = server.server_address[1]
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            state.faults.clear()
            server.shutdown()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    # Many readers at once.
    request_queue_size = 128

    def handle_error(self, *_given: Any) -> None:
        """Say nothing: a client that goes away is not of interest."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: FaultyServer

    def log_message(self, *_given: Any) -> None:
        """Say nothing: the requests are in `FaultyServer.requests`."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path).lstrip("/")
        query = parse_qs(parts.query)
        with self.state.lock:
            self.state.requests.append(Request(self.command, path, self.headers.get("Range")))
        fault = self.state.fault(path, self.command)
        if fault is not None and fault.name == "late":
            time.sleep(fault.value)
        if fault is not None and fault.name == "status":
            self._send(int(fault.value), b"refused", "text/plain")
        elif fault is not None and fault.name == "no head" and self.command == "HEAD":
            self._send(int(fault.value) or 501, b"", "text/plain")
        elif "list-type" in query:
            self._send(200, self._listed(path.rstrip("/"), query.get("prefix", [""])[0]), "application/xml")
        elif path in self.state.files:
            self._send_file(path, self.state.files[path], fault)
        elif (page := self._page(path)) is not None:
            self._send(200, page, "text/html; charset=utf-8")
        else:
            self._send(404, b"not there", "text/plain")

    def _send(self, status: int, content: bytes, kind: str, more: Mapping[str, str] = MappingProxyType({})) -> None:
        self.send_response(status)
        for name, value in more.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _send_file(self, path: str, content: bytes, fault: Fault | None) -> None:
        name, value = ("", 0.0) if fault is None else (fault.name, fault.value)
        version = hashlib.md5(content).hexdigest()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        whole = len(content)
        if name == "other content":
            content = bytes(byte ^ 255 for byte in content)
        if asked is None or not self.state.ranges or name in ("no range", "endless"):
            self.send_response(200)
            said = whole
        else:
            first, last = int(asked[1]), min(int(asked[2] or whole - 1), whole - 1)
            if first >= whole:
                self._send(416, b"", "text/plain", {"Content-Range": f"bytes */{whole}"})
                return
            content = content[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{whole}")
            said = len(content)
        said += {"too long": int(value), "too short": -int(value)}.get(name, 0)
        kinds = {".tar": "application/x-tar", ".html": "text/html", ".txt": "text/plain"}
        self.send_header("Content-Type", kinds.get(os.path.splitext(path)[1], "image/png"))
        if name in ("endless", "no size", "too long", "too short"):
            self.send_header("Connection", "close")
        if name not in ("endless", "no size"):
            self.send_header("Content-Length", str(said))
        if self.state.versions:
            self.send_header("ETag", f'"{version}"')
            self.send_header("Last-Modified", "Tue, 14 Nov 2023 22:13:20 GMT")
        self.end_headers()
        if self.command == "HEAD":
            return
        self._send_content(content, name, value)

    def _send_content(self, content: bytes, name: str, value: float) -> None:
        if name == "endless":
            self.close_connection = True
            while self.state.faults:
                self._write(content + bytes(1 << 16))
        elif name == "no size":
            self._write(content)
            self.close_connection = True
        elif name == "drop":
            self._write(content[: len(content) // 2])
            self._hang_up()
        elif name == "trickle":
            for at in range(len(content)):
                self._write(content[at : at + 1])
                self.wfile.flush()
                time.sleep(value)
        elif name in ("too long", "too short"):
            self._write(content)
            self._hang_up()
        else:
            self._write(content)

    def _write(self, content: bytes) -> None:
        self.wfile.write(content)
        with self.state.lock:
            self.state.n_sent += len(content)

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _page(self, path: str) -> bytes | None:
        """Return the page of a folder: a link for each file and each folder in it; None if it is no folder."""
        start = path if not path or path.endswith("/") else f"{path}/"
        below = [name.removeprefix(start) for name in self.state.files if name.startswith(start)]
        names = sorted({f"{first}{slash}" for first, slash, _rest in (name.partition("/") for name in below)})
        if not names:
            return None
        links = "".join(f'<li><a href="{quote(name)}">{escape(name)}</a></li>' for name in names)
        return f'<html><body><ul><li><a href="../">..</a></li>{links}</ul></body></html>'.encode()

    def _listed(self, bucket: str, prefix: str) -> bytes:
        """Return the objects of a bucket as S3's ListObjectsV2 does."""
        rows = []
        for path, content in sorted(self.state.files.items()):
            key = path.removeprefix(f"{bucket}/")
            if key == path or not key.startswith(prefix):
                continue
            fault = self.state.faults.get(path)
            more = int(fault.value) if fault is not None and fault.name == "size listed" else 0
            rows.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>2023-11-14T22:13:20.000Z</LastModified>"
                f"<ETag>&quot;{hashlib.md5(content).hexdigest()}&quot;</ETag><Size>{len(content) + more}</Size>"
                "<StorageClass>STANDARD</StorageClass></Contents>"
            )
        return (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{escape(bucket)}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(rows)}</KeyCount>"
            f"<MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>{''.join(rows)}</ListBucketResult>"
        ).encode()


@contextmanager
def in_environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment for the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

"""Reads what lies at an address, by fsspec: lists it, says what is known of an object without reading it, and reads it.

What may pass, such as a server that is too busy, is tried again a few times. Nothing is written to the disk. An error
says in plain words what happened; it never has the words of a library, which can hold signed addresses. This module
must not know what the objects are.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import AsyncIterable, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from gpu_cluster.addresses import WEB, public, scheme
from gpu_cluster.errors import ConfigError
from gpu_cluster.files import printable
from gpu_cluster.images import retries
from gpu_cluster.images.retries import RemoteError, check_status, tried

if TYPE_CHECKING:
    from asyncio import Timeout

# Jobs on folders of this machine import this module too, so `asyncio` and `html.parser` wait until they are needed.

# The extra that has what a scheme needs.
_EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
    "http": "http",
    "https": "http",
}
_S3 = ("s3", "s3a")
# What servers answer to HEAD if they do not know it, or if an address lets its reader do nothing but read.
_NO_HEAD = frozenset({400, 403, 405, 501})
# An empty object has no first byte.
_NO_SUCH_PART = 416
# Facts that change with the content of an object, by the names that fsspec's file systems give them.
_VERSIONS = (
    "ETag",
    "etag",
    "md5Hash",
    "md5",
    "Content-MD5",
    "content_md5",
    "Digest",
    "generation",
    "VersionId",
    "hash",
)
_TIMES = ("LastModified", "last_modified", "Last-Modified", "updated", "mtime", "modified", "created")
_CHUNK_BYTES = 1 << 20
# A link takes about a hundred bytes on a page.
_MOST_PAGE_BYTES = 64 << 20
# A server can link to folders in folders without end.
_MOST_LEVELS, _MOST_PAGES = 50, 100_000
# Readers at once, as many as the scan has threads and some more.
_CONNECTIONS = 64
_NO_PARTS = "its server sends no parts of files, and so no members of a tar file"


@dataclass(frozen=True, slots=True)
class Object:
    """What is known of an object without reading it.

    Attributes
    ----------
    address : without what lets its reader in
    size : bytes; None if its server does not say it
    mtime_ns : time of change, nanoseconds since 1970; None if its server does not say it
    version : a number made of what the server says of this content, such as an ETag; None if it says nothing
    kind : its media type, such as text/html; empty if its server does not say it
    """

    address: str
    size: int | None
    mtime_ns: int | None
    version: int | None
    kind: str = ""


def look(address: str) -> Object | None:
    """Return what is known of an object; None if the address is that of a folder.

    Raises
    ------
    RemoteError
        When it is not there or cannot be looked at.
    ConfigError
        When a package is missing that the scheme needs.
    """
    system, path = _system_of(address)
    if scheme(address) in WEB:
        info = tried(lambda: _synced(system, _head, system, path, timeout=retries.patience.attempt_s))
    else:
        info = tried(lambda: system.info(path))
    return None if info.get("type") == "directory" else _object(public(address), info)


def objects(address: str, fail: Callable[[str, RemoteError], None]) -> Iterator[Object]:
    """Yield every object below the address of a folder; `fail` is told of each folder below it that cannot be listed.

    On the web, these are what the pages of folders link to. Elsewhere fsspec lists all of them at once, and holds what
    it says of each.

    Raises
    ------
    RemoteError
        When it cannot be listed.
    """
    system, path = _system_of(address)
    if scheme(address) in WEB:
        yield from _linked(system, path, fail)
        return
    found = tried(lambda: system.find(path, detail=True))
    for name, info in found.items():
        if info.get("type") == "file" and not name.endswith("/"):
            yield _object(name if "://" in name else f"{scheme(address)}://{name}", info)


def _linked(system: Any, first: str, fail: Callable[[str, RemoteError], None]) -> Iterator[Object]:
    """Yield what the page of a folder of a web server links to, and those of the folders below it."""
    from gpu_cluster.images.web_page import links_in

    waiting, seen, n_pages = [first], {first}, 0
    while waiting:
        page = waiting.pop()
        n_pages += 1
        if n_pages > _MOST_PAGES:
            raise RemoteError(f"it has more than {_MOST_PAGES:,} folders; name some of them", lasting=True)
        try:
            if page.count("/") > first.rstrip("/").count("/") + 1 + _MOST_LEVELS:
                raise RemoteError(f"more than {_MOST_LEVELS} folders in one another", lasting=True)
            links = links_in(_page(system, page), page)
        except RemoteError as error:
            if page == first:
                raise
            fail(page, error)
            continue
        for link in links:
            if link not in seen:
                seen.add(link)
                if link.endswith("/"):
                    waiting.append(link)
                else:
                    yield Object(link, None, None, None)


def _page(system: Any, address: str) -> bytes:
    content: bytes = tried(lambda: _synced(system, _get, system, address, 0, _MOST_PAGE_BYTES + 1, whole=True))
    if len(content) > _MOST_PAGE_BYTES:
        raise RemoteError(f"its page has more than {_MOST_PAGE_BYTES} bytes", lasting=True)
    return content


def read(address: str, size: int | None, *, most: int | None = None) -> bytes:
    """Read a whole object: as many bytes as `size` says, or `most` at most if no size is known.

    Raises
    ------
    RemoteError
        When it cannot be read, or has another size.
    """
    if size == 0:
        return b""
    limit = size if size is not None else most
    content = tried(lambda: _whole(address, limit, exact=size is not None))
    if size is None and most is not None and len(content) > most:
        raise RemoteError(f"it has more than {most} bytes", lasting=True)
    return content


def _whole(address: str, limit: int | None, *, exact: bool) -> bytes:
    # One byte more is asked for: so it is noticed if there is more, and a server that lies fills no memory.
    content = _part(address, 0, None if limit is None else limit + 1, whole=True)
    if exact and limit is not None and len(content) != limit:
        more = "more" if len(content) > limit else f"{len(content)}"
        raise RemoteError(f"its server says that it has {limit} bytes and sends {more}")
    return content


def read_part(address: str, first: int, last: int) -> bytes:
    """Read the bytes from `first` to before `last` of an object.

    Raises
    ------
    RemoteError
        When they cannot be read, or there are fewer.
    """

    def part() -> bytes:
        content = _part(address, first, last)
        if len(content) != last - first:
            raise RemoteError(f"its server was asked for {last - first} bytes and sends {len(content)}")
        return content

    return tried(part)


def _part(address: str, first: int, last: int | None, *, whole: bool = False) -> bytes:
    system, path = _system_of(address)
    if scheme(address) in WEB:
        return bytes(_synced(system, _get, system, path, first, last, whole=whole))
    if scheme(address) in _S3:
        return bytes(_synced(system, _get_of_s3, system, path, first, last, whole=whole))
    if getattr(system, "async_impl", False):
        timeout = retries.patience.attempt_s + max(0, (last or 0) - first) / retries.patience.slowest_bytes_per_s
        return bytes(_synced(system, system._cat_file, path, timeout=timeout, start=first, end=last))
    return bytes(system.cat_file(path, start=first, end=last))


def _synced(system: Any, function: Callable[..., Any], *given: Any, timeout: float | None = None, **named: Any) -> Any:
    """Return what a coroutine of an fsspec file system gives, which runs in fsspec's thread."""
    from fsspec.asyn import sync

    return sync(system.loop, function, *given, timeout=timeout, **named)


async def _head(system: Any, url: str) -> dict[str, Any]:
    """Return what a web server says of an object.

    It is asked for the first byte if it refuses HEAD, as it does where an address was signed for reading only.
    """
    session = await system.set_session()
    for method, asked in (("HEAD", {}), ("GET", {"Range": "bytes=0-0"})):
        headers = {"Accept-Encoding": "identity"} | asked
        async with session.request(method, system.encode_url(url), headers=headers, allow_redirects=True) as reply:
            if method == "HEAD" and reply.status in _NO_HEAD:
                continue
            if reply.status != _NO_SUCH_PART:
                check_status(reply.status)
            names = {name.lower(): name for name in (*_VERSIONS, *_TIMES)}
            found = {names[name.lower()]: value for name, value in reply.headers.items() if name.lower() in names}
            # Of a part, the size of the whole is behind a slash: `bytes 0-0/2048`.
            said = "Content-Length" if reply.status == 200 else "Content-Range"
            length = reply.headers.get(said, "").rpartition("/")[2].strip()
            kind = reply.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            return {**found, "size": int(length) if length.isdecimal() else None, "mimetype": kind, "type": "file"}
    raise AssertionError("the second request returns or raises")


async def _get(system: Any, url: str, first: int, last: int | None, *, whole: bool) -> bytes:
    """Return the bytes of an object of a web server from `first` to before `last`, or all of them to its end.

    What is to be read whole is asked for without a range, and no more is taken than `last` says.
    """
    import asyncio

    headers = {"Accept-Encoding": "identity"} | ({} if whole else {"Range": _range(first, last)})
    async with asyncio.timeout(retries.patience.attempt_s) as limit:
        session = await system.set_session()
        async with session.get(system.encode_url(url), headers=headers, allow_redirects=True) as reply:
            check_status(reply.status)
            if first and reply.status != 206:
                raise RemoteError(_NO_PARTS, lasting=True)
            return await _taken(reply.content.iter_chunked(_CHUNK_BYTES), first, last, limit)


async def _get_of_s3(system: Any, path: str, first: int, last: int | None, *, whole: bool) -> bytes:
    """Return the same of an object of S3. s3fs itself would hold all that its server sends."""
    import asyncio

    bucket, key, version = system.split_path(path)
    asked = {"Bucket": bucket, "Key": key} | ({"VersionId": version} if version else {})
    asked |= {} if whole else {"Range": _range(first, last)}
    async with asyncio.timeout(retries.patience.attempt_s) as limit:
        reply = await system._call_s3("get_object", **asked)
        async with reply["Body"] as body:
            if first and reply["ResponseMetadata"]["HTTPStatusCode"] != 206:
                raise RemoteError(_NO_PARTS, lasting=True)
            return await _taken(body.iter_chunks(_CHUNK_BYTES), first, last, limit)


def _range(first: int, last: int | None) -> str:
    return f"bytes={first}-{'' if last is None else last - 1}"


async def _taken(parts: AsyncIterable[bytes], first: int, last: int | None, limit: Timeout) -> bytes:
    """Return the first of the bytes that a server sends, as many as lie between `first` and `last`."""
    import asyncio

    start = asyncio.get_running_loop().time()
    wanted = None if last is None else last - first
    # One array: a server that sends single bytes would fill the memory with objects.
    taken = bytearray()
    async for part in parts:
        taken += part
        if wanted is not None and len(taken) >= wanted:
            del taken[wanted:]
            break
        limit.reschedule(start + retries.patience.attempt_s + len(taken) / retries.patience.slowest_bytes_per_s)
    return bytes(taken)


def _system_of(address: str) -> tuple[Any, str]:
    """Return fsspec's file system for an address, and the path in it.

    Raises
    ------
    ConfigError
        When a package is missing, or no file system has such addresses.
    """
    place = scheme(address)
    try:
        import fsspec
    except ImportError:
        raise _missing(address) from None
    try:
        if place in WEB:
            return _web(), address
        # Listings that are kept would take memory, and hide what has changed.
        more: dict[str, Any] = {"use_listings_cache": False}
        if place in _S3:
            # Failures are counted here, not by three libraries one in the other.
            once = {"mode": "standard", "total_max_attempts": 1}
            more |= {"config_kwargs": {"retries": once, "max_pool_connections": _CONNECTIONS}}
        # Not by `url_to_fs`, which takes what follows a `::` in a name for another address.
        kind = fsspec.get_filesystem_class(place)
        system, path = (
            fsspec.filesystem(place, **kind._get_kwargs_from_urls(address), **more),
            kind._strip_protocol(address),
        )
        if hasattr(system, "retries"):
            system.retries = 1
        return system, path
    except ImportError:
        raise _missing(address) from None
    except ValueError as error:
        if place in fsspec.available_protocols():
            raise RemoteError(f"its address is not one of {place}", lasting=True) from error
        known = ", ".join(f"{name}://" for name in ("s3", "gs", "az", "https"))
        raise ConfigError(
            f"nothing reads addresses that begin with {place}://; expected one of {known} or another that fsspec "
            f"knows, or a path; found {printable(public(address))!r}"
        ) from None


@functools.cache
def _web() -> Any:
    from aiohttp import ClientTimeout
    from fsspec.implementations.http import HTTPFileSystem

    # The limit of aiohttp, five minutes for all of a request, is replaced by those of `Patience`.
    return HTTPFileSystem(use_listings_cache=False, client_kwargs={"timeout": ClientTimeout(total=None)})


def _missing(address: str) -> ConfigError:
    place = scheme(address)
    extra = _EXTRAS.get(place)
    if extra is None:
        words = f"a package for fsspec that reads {place}://"
    else:
        words = f"the extra {extra}: from a checkout, pip install '.[{extra}]'"
    return ConfigError(f"{printable(public(address))!r}: to read {place}:// needs {words}")


def _object(address: str, info: Mapping[str, Any]) -> Object:
    size = info.get("size")
    time_of_change = next((info[name] for name in _TIMES if info.get(name)), None)
    versions = [f"{name}={info[name]}" for name in _VERSIONS if info.get(name)]
    mtime_ns = _nanoseconds(time_of_change)
    # A time that cannot be read tells of a change too, as it is written.
    if not versions and time_of_change is not None and mtime_ns is None:
        versions = [str(time_of_change)]
    version = None
    if versions:
        digest = hashlib.blake2b("\n".join(versions).encode("utf-8", "surrogateescape"), digest_size=8).digest()
        # The sign bit is left out: -1 stands for None in columns.
        version = int.from_bytes(digest) >> 1
    return Object(address, size, mtime_ns, version, str(info.get("mimetype") or ""))


def _nanoseconds(given: Any) -> int | None:
    """Return a time as nanoseconds since 1970; None if it is none that can be read."""
    if isinstance(given, str):
        try:
            given = datetime.fromisoformat(given)
        except ValueError:
            try:
                given = parsedate_to_datetime(given)
            except ValueError:
                return None
    if isinstance(given, int | float):
        return int(given * 1_000_000_000)
    if not isinstance(given, datetime):
        return None
    whole = given if given.tzinfo else given.replace(tzinfo=UTC)
    since = whole - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1000

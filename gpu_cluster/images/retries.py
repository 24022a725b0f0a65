"""Tries again what may pass, such as a server that is too busy, and says in plain words why something failed.

An error never has the words of a library, which can hold signed addresses. This module must not know what is tried.
"""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from gpu_cluster.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for.

    Attributes
    ----------
    tries : how often that is tried which may pass
    first_pause_s, longest_pause_s : pauses between the tries; each is twice the one before, and a little more or less,
        so that many readers do not come back at the same moment
    attempt_s, slowest_bytes_per_s : one try may take so long, and as long as this speed needs for the bytes that came:
        a server that sends a byte now and then must not hold the job
    """

    tries: int = 5
    first_pause_s: float = 0.25
    longest_pause_s: float = 8.0
    attempt_s: float = 60.0
    slowest_bytes_per_s: float = 100_000


# One for the process: what a server needs depends on no option of a job.
patience = Patience()
# Statuses of HTTP that may pass, beside those from 500 on.
_PASSING = frozenset({408, 425, 429})
_REFUSED = {401: "no permission to read it", 403: "no permission to read it", 404: "not there", 410: "not there"}
# What the errors of libraries are called when a connection ends too early.
_DROPPED = ("Connect", "Disconnected", "Payload", "Incomplete", "ResponseStreaming", "HTTPClient", "ClientResponse")


class RemoteError(OSError):
    """What lies at an address cannot be read; `strerror` is the reason in plain words.

    Attributes
    ----------
    lasting : whether to try again is of no use
    """

    def __init__(self, reason: str, *, lasting: bool = False) -> None:
        super().__init__(errno.EIO, reason)
        self.lasting = lasting


def check_status(status: int) -> None:
    """Raise what a status of HTTP means, if it is that of an error.

    Raises
    ------
    RemoteError
        When it is.
    """
    if status >= 400:
        raise _refused(status)


def _refused(status: int) -> RemoteError:
    reason = _REFUSED.get(status, f"its server answered with status {status}")
    return RemoteError(reason, lasting=status < 500 and status not in _PASSING)


def _status_of(error: BaseException) -> int | None:
    """Return the status of HTTP that an error of a library, or its cause, has; None if it has none."""
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)
        if isinstance(response, Mapping):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            status = getattr(one, "status_code", None) or getattr(one, "code", None)
        if isinstance(status, int) and 400 <= status < 600:
            return status
    return None


def tried(act: Callable[[], T]) -> T:
    """Return what a function returns, which is called again after errors that may pass.

    Raises
    ------
    RemoteError
        When it failed for good, or every time.
    """
    for attempt in range(patience.tries):
        try:
            return act()
        except ConfigError:
            raise
        # Each library below fsspec has errors of its own.
        except Exception as error:  # noqa: BLE001
            found = _explained(error)
            if found.lasting:
                raise found from None
            if attempt == patience.tries - 1:
                raise RemoteError(f"{found.strerror} (tried {patience.tries} times)") from None
        pause_s = min(patience.longest_pause_s, patience.first_pause_s * 2**attempt)
        time.sleep(pause_s * random.uniform(0.75, 1.25))
    raise AssertionError("the last attempt returns or raises")


def _explained(error: Exception) -> RemoteError:
    """Return an error in plain words; never those of a library, which may have the address with its signature."""
    if isinstance(error, RemoteError):
        return error
    name = type(error).__name__
    lasting = False
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        reason, lasting = "not there", True
    elif isinstance(error, IsADirectoryError):
        reason, lasting = "a folder", True
    elif "Credentials" in name:
        reason, lasting = "no credentials were found that it needs", True
    elif isinstance(error, PermissionError) or "Unauthorized" in name:
        reason, lasting = "no permission to read it", True
    elif "Certificate" in name or "SSL" in name:
        reason, lasting = "the certificate of its server is not accepted", True
    elif isinstance(error, TimeoutError) or "Timeout" in name:
        reason = "its server is too slow"
    elif isinstance(error, ConnectionError) or any(word in name for word in _DROPPED):
        reason = "the connection to its server failed"
    elif (status := _status_of(error)) is not None:
        return _refused(status)
    else:
        reason = f"its server could not give it ({name})"
    return RemoteError(reason, lasting=lasting)

"""Names of pictures that are no paths: addresses such as `s3://bucket/a.jpg`, and members of tar files.

Input: texts. Output: what they name, and what of them may be shown. This module must not know how anything is read.
"""

from __future__ import annotations

import itertools
import posixpath
import re
from urllib.parse import parse_qsl, quote, unquote, urlencode, urljoin, urlsplit, urlunsplit

# A letter and a colon alone begin a path on Windows.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
TAR = ".tar"
MEMBER = "::"
# Where the name of a tar file ends in a location, and that of its member begins. An address can have parameters.
_IN_TAR_HERE = re.compile(r"\.tar::", re.IGNORECASE)
_IN_TAR = re.compile(r"\.tar(\?.*?)?::", re.IGNORECASE)
# Parameters of an address by which its server lets the reader in, and those that come only with one of them.
_SECRET = re.compile(
    r"x-(amz|goog|ms|oss|cos|bz|akamai)-.*|.*signature|sig|.*token.*|.*secret.*|.*password.*|passwd|pwd|"
    r"api[_-]?key|key|auth.*|awsaccesskeyid|googleaccessid|key-pair-id|credential.*|policy|hmac|jwt|sas",
    re.IGNORECASE,
)
# An address in another one, which fsspec would read through the first; a password in it would be shown.
_CHAINED = re.compile(r"::[A-Za-z][A-Za-z0-9+.-]+://")
WEB = ("http", "https")
_AZURE = ("az", "abfs", "abfss")
# What a list on a server may name, beside addresses of the same scheme: it may be a stranger's, and must not have
# files of this machine read.
_OF_SERVERS = (*WEB, "s3", "s3a", "gs", "gcs", *_AZURE)
# Of braces such as {000..099}.
_MOST_NAMES = 1_000_000
_WITH_SECRET = re.compile(r"expires|se|st|sp|sv|sr|spr|sdd|sip|skoid|sktid|skt|ske|sks|skv|hash", re.IGNORECASE)


def is_address(text: str) -> bool:
    """Return whether a text is an address (`scheme://...`) and not a path."""
    return _ADDRESS.match(text) is not None


def scheme(address: str) -> str:
    """Return the scheme of an address, in small letters."""
    return address.partition("://")[0].lower()


def check_address(address: str) -> str:
    """Return an address, without spaces around it.

    Raises
    ------
    ValueError
        When it has a user name or a password in it, which would be shown wherever the address is, or another address.
    """
    address = address.strip()
    if _CHAINED.search(address):
        raise ValueError(
            f"an address has no other address in it; found one after the :: of {scheme(address)}://...::...: name the "
            "pictures by addresses of their own"
        )
    place, _, rest = address.partition("://")
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    # The name of a container of Azure comes before the @ of its account.
    if "@" in host and not (scheme(address).startswith("abfs") and ":" not in host.partition("@")[0]):
        raise ValueError(
            f"an address has no user name and no password in it; found some before the @ of {place}://...@"
            f"{host.rpartition('@')[2]}: give credentials in the way that the library for {place} finds them (see "
            "docs/sources.md)"
        )
    try:
        urlsplit(address)
    except ValueError:
        raise ValueError(f"an address of {place}:// has a server whose name is none; found {host!r}") from None
    return address


def local_path(address: str) -> str | None:
    """Return the path that an address such as `file:///photos` means; None if it is that of a server."""
    return unquote(urlsplit(address).path) if scheme(address) == "file" else None


def named_by(listed_at: str, name: str) -> str:
    """Return the address that a name in a list means: an address, or one relative to that of the list.

    Raises
    ------
    ValueError
        When it is an address that a list on a server may not name, or one that `check_address` refuses.
    """
    own = scheme(listed_at)
    if is_address(name):
        if scheme(name) not in (own, *_OF_SERVERS):
            raise ValueError(f"a list on a server names pictures on servers; found an address of {scheme(name)}://")
        return check_address(name)
    if own in WEB:
        # Without this, a name with a colon in it could be taken for an address.
        name = name if ":" not in name.partition("/")[0] else f"./{name}"
        return check_address(urljoin(public(listed_at), name))
    place, _, rest = listed_at.partition("://")
    bucket, _, key = rest.partition("/")
    named = posixpath.join("/", posixpath.dirname(key), name)
    # Two slashes can be part of a name there.
    return f"{place}://{bucket}{posixpath.normpath(named) if {'.', '..'} & set(name.split('/')) else named}"


def public(address: str) -> str:
    """Return an address without what lets its reader in: parameters such as a signature or a token, and the fragment.

    Two addresses of the same picture that were signed at different times are the same then.
    """
    if scheme(address) not in (*WEB, *_AZURE):
        return address
    parts = urlsplit(address)
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    if scheme(address) in _AZURE:
        # Azure's signatures are copied into its other addresses too, though they are of no use there.
        signed = any(_SECRET.fullmatch(name) for name, _value in pairs)
        return address.partition("?")[0] if signed else address
    if any(_SECRET.fullmatch(name) for name, _value in pairs):
        pairs = [
            (name, value) for name, value in pairs if not (_SECRET.fullmatch(name) or _WITH_SECRET.fullmatch(name))
        ]
        return urlunsplit((*parts[:3], urlencode(pairs, quote_via=quote), ""))
    return urlunsplit((*parts[:4], ""))


def member_of(location: str) -> tuple[str, str] | None:
    """Return the tar file and the name in it of a location such as `000.tar::rose/1.jpg`; None if it is no such one."""
    found = (_IN_TAR if is_address(location) else _IN_TAR_HERE).search(location)
    return None if found is None else (location[: found.end() - len(MEMBER)], location[found.end() :])


def is_elsewhere(location: str) -> bool:
    """Return whether a location is an address or a member of a tar file, and so no path of a file."""
    return is_address(location) or member_of(location) is not None


def in_tar(tar: str, name: str) -> str:
    """Return the location of a member of a tar file."""
    return f"{tar}{MEMBER}{name}"


def is_tar(name: str) -> bool:
    """Return whether a path or an address is that of a tar file, by its suffix."""
    path = urlsplit(name).path if is_address(name) else name
    return path.lower().endswith(TAR)


def expanded(text: str) -> list[str]:
    """Return the names that a text with numbers in braces means, in their order: `{000..099}.tar` are a hundred.

    Raises
    ------
    ValueError
        When the braces count downwards, or mean more than a million names.
    """
    found = re.search(r"\{(\d+)\.\.(\d+)\}", text)
    if found is None:
        return [text]
    first, last = int(found[1]), int(found[2])
    if not first <= last < first + _MOST_NAMES:
        raise ValueError(f"numbers in braces go upwards, at most {_MOST_NAMES:,} of them; found {found[0]!r}")
    # As in a shell: the numbers have as many digits as the longer end, if one begins with a nought.
    padded = any(end.startswith("0") and len(end) > 1 for end in found.groups())
    digits = max(map(len, found.groups())) if padded else 0
    names = [f"{text[: found.start()]}{number:0{digits}d}{text[found.end() :]}" for number in range(first, last + 1)]
    return [one for name in names for one in expanded(name)]


def last_name(address: str) -> str:
    """Return the last name in an address, or its server's name if there is no other."""
    return [part for part in re.split(r"[/?#]+", address) if part][-1]


def folder_name(location: str) -> str:
    """Return the name of the folder that a picture lies in; an empty one if it lies in none that the location names."""
    member = member_of(location)
    name = location if member is None else member[1]
    if is_address(name):
        name = name.partition("://")[2]
    return name.rpartition("/")[0].rpartition("/")[2]


def base_name(location: str) -> str:
    """Return the last part of a location's name."""
    member = member_of(location)
    return (location if member is None else member[1]).rpartition("/")[2]


def common_folder(first: str, last: str) -> str:
    """Return the longest address of a folder that two addresses have in common; an empty text if there is none.

    Of sorted addresses, the first and the last tell what all of them have in common.
    """
    shared = list(
        itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first.split("/"), last.split("/"), strict=False))
    )
    folder = "/".join(part for part, _ in shared[: len(first.split("/")) - 1])
    return folder if len(shared) > 2 else ""

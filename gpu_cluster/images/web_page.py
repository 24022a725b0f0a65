"""Finds what the page of a folder links to, as web servers make such pages.

Input: the page and its address. Output: addresses. This module must not know how anything is read.
"""

from __future__ import annotations

from html.parser import HTMLParser
from urllib.parse import urljoin, urlsplit, urlunsplit


def links_in(content: bytes, address: str) -> list[str]:
    """Return the addresses below that of a page which it links to, each once, in their order.

    What only shows the same page in another order, as `?C=M;O=D` of Apache, is left out, and so is what lies elsewhere.
    """
    parts = urlsplit(address)
    path = parts.path.rpartition("/")[0] if parts.path.lower().endswith((".html", ".htm")) else parts.path
    folder = urlunsplit((*parts[:2], path.rstrip("/") + "/", "", ""))
    parser = _Links()
    parser.feed(content.decode("utf-8", "replace"))
    found = dict[str, None]()
    for link in parser.found:
        try:
            target = urlsplit(urljoin(folder, link.strip()))
        except ValueError:
            continue
        whole = urlunsplit((*target[:4], ""))
        if whole.startswith(folder) and target.path != urlsplit(folder).path:
            found[whole] = None
    return list(found)


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]

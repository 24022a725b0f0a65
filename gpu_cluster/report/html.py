"""What the pages share: templates, text that is safe to show, and pictures with their names and links.

This module must not know what a page says.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gpu_cluster.addresses import is_elsewhere
from gpu_cluster.images.source import LocalFiles
from gpu_cluster.images.thumbnails import real_location


def render(template: str, values: Mapping[str, Any]) -> str:
    """Fill a template of the folder `assets`; it gets the style and the script with their sha256 for its policy."""
    import jinja2
    import markupsafe

    style, script = _asset("report.css"), _asset("report.js")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["breakable"] = breakable
    return environment.get_template(template).render(
        style=markupsafe.Markup(style),
        script=markupsafe.Markup(script),
        style_sha256=_sha256(style),
        script_sha256=_sha256(script),
        **values,
    )


def breakable(name: str) -> Any:
    """Return the name of a file with the places at which a narrow column may break it, rather than inside its parts."""
    import markupsafe

    parts = re.split(r"(?<=[/_-])(?=.)|(?=\.[^./]+$)", name)
    return markupsafe.Markup("<wbr>").join(part for part in parts if part)


def _asset(name: str) -> str:
    return (resources.files("gpu_cluster.report") / "assets" / name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def visible(text: str) -> str:
    r"""Return a name with every character that does not print (control characters, marks of direction) as an escape."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def are_files(paths: Iterable[str]) -> bool:
    """Return whether all pictures are files in folders, which a page can link to."""
    return not any(map(is_elsewhere, paths))


class Links:
    """Addresses of picture files for a page in the folder `folder`.

    They are relative where the pictures and the page have a folder in common, so that both can be moved together, and
    begin with `file:` otherwise.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self._source = LocalFiles(root)
        root, folder = root.absolute(), folder.absolute()
        if Path(os.path.commonpath([root, folder])) == Path(root.anchor):
            self.base = f"{root.as_uri().rstrip('/')}/"
        else:
            self.base = f"{quote(os.fsencode(os.path.relpath(root, folder)))}/"

    def to(self, path: str) -> str:
        """Return the address of the file of a path as a table shows it."""
        return self.base + self.part(path)

    def part(self, path: str) -> str:
        """Return the address without its base."""
        return quote(os.fsencode(real_location(self._source, path)))


def is_plain(path: str) -> bool:
    """Return whether a script can make the address from the name that is shown: nothing in it is an escape."""
    return visible(path) == path and "\\x" not in path

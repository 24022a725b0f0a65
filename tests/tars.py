"""Tar files for tests: with pictures in them, and with whatever a stranger may write into one."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.helpers import picture


def png(seed: int) -> bytes:
    """Return a small picture of its own as PNG."""
    stream = io.BytesIO()
    picture(seed).save(stream, "png")
    return stream.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes] | tarfile.TarInfo], **options: Any) -> Path:
    """Write a tar file with such members: names with contents, or headers without content."""
    with tarfile.open(path, "w", **options) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            name, content = member
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return path


def of_kind(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    """Return the header of a member that is no regular file."""
    header = tarfile.TarInfo(name)
    header.type, header.linkname = kind, link
    return header

"""Files to find: of odd names, and not one of them a picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gpu_cluster.config import InputConfig
from gpu_cluster.events import Recorder
from gpu_cluster.jobs.prepare import find_labelled
from gpu_cluster.manifest import Manifest

ODD_NAMES = [
    "a space.png",
    " leading space.png",
    "trailing space .png",
    "a,comma.png",
    'a"double quote.png',
    '"quoted".png',
    "an'apostrophe.png",
    "a\nnewline.png",
    "a\r\nreturn and newline.png",
    "a\ttab.png",
    "a;semicolon.png",
    "a\\backslash.png",
    "-dash.png",
    "#hash.png",
    "~tilde.png",
    "$HOME.png",
    "%41.png",
    "[brackets]*.png",
    "{0}.png",
    "naïve.png",
    "nai\u0308ve.png",
    "写真.png",
    "🌼.png",
    os.fsdecode(b"caf\xe9.png"),
    os.fsdecode(b"\xff\xfe.png"),
]


def touch(folder: Path, *names: str) -> list[Path]:
    """Write a file of its own content for each name, which may lie in subfolders."""
    files = [folder / name for name in names]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.fsencode(file))
    return files


def find(*images: Path, **options: Any) -> tuple[Manifest, list[str]]:
    """Return the manifest and what the user was told."""
    recorder = Recorder()
    return find_labelled(InputConfig(images=images, **options), recorder), recorder.notices

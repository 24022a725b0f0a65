"""Hostile folders: what lies in them never ends, cannot be read, or has a name or a time like no other.

They are made beside each other in a folder; not all of them are possible for every user and on every file system.
"""

from __future__ import annotations

import os
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

from tests.helpers import picture

# Of a file whose bytes never end, and that says it has none.
ENDLESS = "/proc/self/pagemap"
N_NESTED = 1000

# Names that a terminal, a table or a spreadsheet may take for something else.
ODD_NAMES = (
    "\x1b]0;a title\x07.png",
    "\x1b[2J\x1b[31mred.png",
    "=1+1.png",
    "a\nline.png",
    "bad\\xff.png",
    os.fsdecode(b"bad\xff.png"),
    "\u202egnp.exe.png",
    "<img src=x onerror=alert(1)>.png",
    "a" * 250 + ".png",
)


def write_endless(folder: Path) -> None:
    """Write a link to a file without an end, a link to itself and one to nothing: all are bad files."""
    folder.mkdir(parents=True)
    (folder / "endless.png").symlink_to(ENDLESS)
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "nowhere.png").symlink_to("not there.png")


def write_special(folder: Path) -> None:
    """Write a pipe, a socket, and links to a device and to the folder itself: none of them is a file."""
    folder.mkdir(parents=True)
    os.mkfifo(folder / "pipe.png")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "again").symlink_to(".")
    at = os.open(folder, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as one:
            # The path of a socket has at most 108 bytes.
            one.bind(f"/proc/self/fd/{at}/socket.png")
    finally:
        os.close(at)


def write_nested(folder: Path, depth: int = N_NESTED) -> Path:
    """Write a picture in the last of `depth` folders, each in the one before; return its path."""
    deepest = folder.joinpath(*["a"] * depth)
    place = os.getcwd()
    folder.mkdir(parents=True)
    try:
        os.chdir(folder)
        for _ in range(depth):
            os.mkdir("a")
            os.chdir("a")
        picture(77).save("deep.png")
    finally:
        os.chdir(place)
    return deepest / "deep.png"


def remove_nested(folder: Path) -> None:
    """Remove what `write_nested` wrote, which Python 3.11 cannot: it calls itself for each folder."""
    subprocess.run(["rm", "-r", "--", folder], check=True)


def write_odd_names(folder: Path) -> list[Path]:
    """Write a picture of each odd name that the file system takes."""
    folder.mkdir(parents=True)
    files = []
    for seed, name in enumerate(ODD_NAMES, start=100):
        with suppress(OSError):
            (folder / name).touch()
            with (folder / name).open("wb") as stream:
                picture(seed).save(stream, "PNG")
            files.append(folder / name)
    return files


def write_odd_times(folder: Path) -> list[Path]:
    """Write a picture that changed in 1600 and one that will change in 3000, or as near as the file system gets."""
    folder.mkdir(parents=True)
    files = []
    for seed, second in enumerate((-11_676_096_000, 32_503_680_000), start=200):
        file = folder / f"time {seed}.png"
        picture(seed).save(file)
        os.utime(file, (second, second))
        files.append(file)
    return files


def write_unreadable(folder: Path) -> None:
    """Write a folder and a file that may not be read (but by root)."""
    folder.mkdir(parents=True)
    (folder / "closed").mkdir()
    picture(300).save(folder / "closed.png")
    (folder / "closed.png").chmod(0)
    (folder / "closed").chmod(0)

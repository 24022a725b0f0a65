"""Names of files and folders that every system accepts, and that clash nowhere."""

from __future__ import annotations

import os
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_cluster.report.exports.names import MOST_BYTES, Tree, portable, portable_folder

LONG = "é" * 120 + ".png"

TABLE = {
    "plain": ("a b.PNG", "a b.PNG"),
    "other alphabets": ("花 é.jpg", "花 é.jpg"),
    "hidden": (".a.png", ".a.png"),
    "parent": ("..", "_"),
    "here": (".", "_"),
    "empty": ("", "_"),
    "spaces only": ("   ", "_"),
    "absolute": ("/etc/passwd", "_etc_passwd"),
    "separator of Windows": ("a\\b", "a_b"),
    "newline": ("a\nb.png", "a_b.png"),
    "NUL": ("a\0b", "a_b"),
    "mark of direction": ("a\u202egnp.exe", "a_gnp.exe"),
    "what Windows forbids": ('<>:"|?*', "_______"),
    "stream of Windows": ("a.png:b", "a.png_b"),
    "dots at the end": ("a.. ", "a___"),
    "device": ("CON", "_CON"),
    "device with a suffix": ("nul.tar.gz", "_nul.tar.gz"),
    "device with a raised digit": ("com¹.txt", "_com¹.txt"),
    "no device": ("console.png", "console.png"),
    "bytes that are not UTF-8": ("g\udce9rard.png", "g%E9rard.png"),
    "half of a character": ("a\ud83d", "a_"),
    "as long as allowed": (LONG, LONG),
    "too long": ("é" * 200 + ".png", "é" * 125 + ".png"),
    "too long without a suffix": ("a" * 300, "a" * 255),
    "too long a suffix": ("a." + "b" * 300, "a." + "b" * 253),
}


@pytest.mark.parametrize(("name", "expected"), TABLE.values(), ids=TABLE)
def test_a_name_becomes_one_that_every_system_accepts(name, expected):
    assert portable(name) == expected


@pytest.mark.parametrize(("name", "expected"), [(".git", "_git"), ("..", "_"), ("a.b", "a.b")])
def test_a_folder_of_a_group_is_not_hidden(name, expected):
    assert portable_folder(name) == expected


def test_a_relative_path_is_kept_below_its_folder():
    tree = Tree()
    assert tree.file("2024/june/a.png", tree.folder("cats")) == PurePosixPath("cats/2024/june/a.png")


def test_names_that_differ_only_in_case_or_in_how_accents_are_written_get_numbers():
    tree, cats = Tree(), PurePosixPath("cats")
    names = ["a.png", "A.png", "\u00e9.png", "e\u0301.png", "a (2).png"]
    found = [str(tree.file(name, cats)) for name in names]
    assert found == ["cats/a.png", "cats/A (2).png", "cats/\u00e9.png", "cats/e\u0301 (2).png", "cats/a (2) (2).png"]


def test_names_that_became_the_same_get_numbers_and_a_folder_keeps_its_own():
    tree, here = Tree(), PurePosixPath()
    assert [str(tree.file(path, here)) for path in ("a:b/1.png", "a?b/1.png", "a:b/2.png")] == [
        "a_b/1.png",
        "a_b (2)/1.png",
        "a_b/2.png",
    ]


def test_a_file_and_a_folder_of_one_name_get_two_names():
    tree, here = Tree(), PurePosixPath()
    assert [str(tree.file(path, here)) for path in ("a", "a/b.png", "a")] == ["a", "a (2)/b.png", "a (3)"]


def test_a_reserved_name_is_given_to_nothing_else():
    tree = Tree()
    tree.reserve("export.csv")
    assert str(tree.folder("EXPORT.CSV")) == "EXPORT (2).CSV"


@given(st.lists(st.text(st.characters(), max_size=300), max_size=20), st.text(st.characters(), max_size=300))
def test_whatever_the_names_are_paths_stay_inside_are_short_enough_and_differ(paths, group):
    tree = Tree()
    within = tree.folder(group, hidden=False)
    found = [tree.file(path, within) for path in paths]
    assert len({str(path).casefold() for path in found}) == len(paths)
    for path in found:
        assert path.is_relative_to(within)
        assert path == PurePosixPath(os.path.normpath(path))
        assert not {"..", ".", ""} & set(path.parts)
        assert all(0 < len(part.encode()) <= MOST_BYTES for part in path.parts)

"""Texts without absolute paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu_cluster.errors import ConfigError
from gpu_cluster.portable import check_root, rewriting

CONFIG = {"input": {"images": ["/data/my pics"], "labels": "/home/ann/a list.csv"}, "store": {"cache": "/big/store"}}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("the pictures in /data/my pics/a/b.jpg", "the pictures in my pics/a/b.jpg"),
        ("Labels found in /home/ann/a list.csv", "Labels found in a list.csv"),
        ("'/home/ann/runs/one two' is an earlier run", "'~/runs/one two' is an earlier run"),
        ("cannot read '/srv/some where/x.bin': denied", "cannot read 'x.bin': denied"),
        ("see file:///home/ann/runs/report.html", "see ~/runs/report.html"),
        ('File "/usr/lib/python3/os.py", line 3', 'File "os.py", line 3'),
        ("shards in /big/store/ab/cd", "shards in store/ab/cd"),
        ("/big/storehouse and my/big/store stay apart", "storehouse and my/big/store stay apart"),
        ("3.5 images/s and/or 1/2, https://example.org/a/b", "3.5 images/s and/or 1/2, https://example.org/a/b"),
    ],
)
def test_a_text_loses_its_absolute_paths_and_nothing_else(monkeypatch, text, shown):
    monkeypatch.setenv("HOME", "/home/ann")
    assert rewriting(CONFIG, Path("/data/my pics"))(text) == shown


@pytest.mark.parametrize("root", ["/", "/home", "/home/ann"])
def test_tables_that_would_name_the_folders_above_the_users_own_are_refused(monkeypatch, root):
    monkeypatch.setenv("HOME", "/home/ann")
    with pytest.raises(ConfigError, match="name one folder that holds all of them"):
        check_root(Path(root), ["ann/a.jpg"])
    check_root(Path("/home/ann/pictures"), ["a.jpg"])
    check_root(Path("/data"), ["a.jpg"])

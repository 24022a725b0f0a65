"""Files are written whole, reading one ends, and a path can be read back from its cell in a table."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_cluster.files import ChangedError, NotAFileError, escaped, open_regular, unescaped


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user who may write in a folder but not list it")
def test_a_file_is_written_where_the_folder_cannot_be_flushed(tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    code = (
        "import os, sys; from pathlib import Path; from gpu_cluster.files import write_whole; os.chdir(sys.argv[1]); "
        "os.setuid(54321); write_whole(Path('a.txt'), b'whole')"
    )
    place.chmod(0o333)
    done = subprocess.run([sys.executable, "-c", code, place], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [(file.name, file.read_text()) for file in place.iterdir()] == [("a.txt", "whole")]


# What the names of files are made of, where escapes could be mistaken.
PARTS = st.sampled_from([b"\\", b"x", b"\\xff", b"\\x5c", b"\\x0d", b"ff", b"\xff", b"\r", b"\xc3\xa9", b"\xc3", b"F"])


@given(st.lists(PARTS, max_size=6).map(b"".join))
def test_a_path_can_be_read_back_from_its_cell(name):
    cell = escaped(os.fsdecode(name))
    assert os.fsencode(unescaped(cell)) == name
    cell.encode()
    assert "\r" not in cell


def test_a_backslash_that_begins_no_escape_is_left_in_its_cell():
    assert [escaped(name) for name in ("a\\b.png", "\\xyz", "\\xFF")] == ["a\\b.png", "\\xyz", "\\xFF"]
    assert escaped("bad\\xff.png") == "bad\\x5cxff.png"


def test_an_escape_of_a_slash_or_a_dot_leads_nowhere():
    assert unescaped("\\x2e\\x2e\\x2fa.png") == "\\x2e\\x2e\\x2fa.png"


@pytest.mark.parametrize("size", [0, 1, 1000, 1 << 20])
def test_a_file_is_read_as_it_is_from_any_place(tmp_path, size):
    content = os.urandom(size)
    (tmp_path / "a").write_bytes(content)
    stream, status = open_regular(tmp_path / "a")
    with stream:
        assert (stream.read(), status.st_size) == (content, size)
        assert stream.seek(0, os.SEEK_END) == size
        assert stream.read(1) == b""
        stream.seek(size // 2)
        assert b"".join(iter(lambda: stream.read(100_000), b"")) == content[size // 2 :]


@pytest.mark.parametrize("size", [1000, 1 << 20])
@pytest.mark.parametrize("change", [-10, 10])
def test_a_file_that_became_longer_or_shorter_after_it_was_opened_is_an_error(tmp_path, size, change):
    (tmp_path / "a").write_bytes(b"a" * size)
    with open_regular(tmp_path / "a")[0] as stream:
        os.truncate(tmp_path / "a", size + change)
        with pytest.raises(ChangedError, match="changed while it was read"):
            stream.read()


def test_what_is_no_file_is_an_error_that_does_not_wait(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(NotAFileError, match="not a file"):
            open_regular(path)

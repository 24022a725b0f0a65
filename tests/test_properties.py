"""Whatever the names of the files and whatever a labels CSV or a list of files holds."""

from __future__ import annotations

import csv
import os
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_cluster.config import InputConfig
from gpu_cluster.errors import DataError
from gpu_cluster.events import Observer
from gpu_cluster.images import discover
from gpu_cluster.results import printable

# Any name that Linux takes, and that does not hide the file; short, so that its folder fits too.
NAMES = (
    st.binary(min_size=1, max_size=40)
    .map(lambda name: name.replace(b"\0", b"0").replace(b"/", b"_").lstrip(b"."))
    .filter(lambda name: name.strip() != b"")
    .map(lambda name: os.fsdecode(name + b".png"))
)
# NUL is not for CSV files; labels are stripped, and their carriage returns shown as escapes.
LABELS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=20)
JUNK = st.one_of(st.binary(max_size=200), st.text(max_size=100).map(lambda text: text.encode("utf-8", "replace")))


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES, LABELS, min_size=1, max_size=6))
def test_every_file_gets_the_label_that_the_table_gives_its_name(label_of):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "in")
        folder.mkdir()
        for file in label_of:
            (folder / file).touch()
        table = Path(name, "labels.csv")
        with table.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
            csv.writer(stream).writerows([("file", "label"), *label_of.items()])
        expected = {file: printable(label.strip()) or None for file, label in label_of.items()}
        try:
            manifest = discover(InputConfig(images=(folder,), labels=table), Observer())
        except DataError as error:
            # A name with spaces around it may be that of another file without them; nothing but spaces is no label.
            assert "two labels" in str(error) or not any(expected.values())  # noqa: PT017
            return
        assert len(manifest) == len(label_of)
        assert dict(zip(manifest.paths, manifest.labels or (), strict=True)) == expected


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([b"", b"file,label\n", b"\xef\xbb\xbffile,label\r\n", b'file,label\n"a.png']), JUNK)
def test_whatever_a_table_holds_it_is_read_or_refused_with_a_reason(start, rest):
    with tempfile.TemporaryDirectory() as name:
        Path(name, "a.png").touch()
        table = Path(name, "labels.csv")
        table.write_bytes(start + rest)
        try:
            manifest = discover(InputConfig(images=(Path(name),), labels=table), Observer())
        except DataError as error:
            assert "labels.csv" in str(error)  # noqa: PT017
        else:
            assert manifest.labels is not None


@settings(max_examples=150, deadline=None)
@given(JUNK)
def test_whatever_a_list_of_files_holds_each_name_is_a_row_or_the_list_is_refused(content):
    with tempfile.TemporaryDirectory() as name:
        names = Path(name, "list.txt")
        names.write_bytes(content)
        try:
            manifest = discover(InputConfig(input_list=names), Observer())
        except DataError as error:
            assert "list.txt" in str(error)  # noqa: PT017
        else:
            assert len(manifest) >= 1

"""What tests/test_properties.py leaves out: names of nothing but spaces, NUL in labels, fields beyond csv's limit."""

from __future__ import annotations

import csv
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from gpu_cluster.config import InputConfig
from gpu_cluster.errors import DataError
from gpu_cluster.events import Observer
from gpu_cluster.files import printable
from gpu_cluster.jobs.prepare import find_labelled
from gpu_cluster.manifest import Manifest

# Every name that a file can have and a scan does not pass over, and names that look like text more often.
NAMES = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.text("aé \t\n\r\"',;\\~$*写\ufeff", min_size=1, max_size=8).map(os.fsencode),
).filter(lambda name: b"\0" not in name and b"/" not in name and not name.startswith(b"."))
LABELS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(NAMES, LABELS, min_size=1, max_size=8))
@example({b" ": "blank"})
@example({b"a.png ": "x", b"a.png": "y"})
def test_each_file_of_a_table_gets_its_label_whatever_the_names(label_of):
    expected = {os.fsdecode(name): printable(label.strip()) or None for name, label in label_of.items()}
    # Without any label there is nothing to give; that is an error of its own.
    assume(any(expected.values()))
    with tempfile.TemporaryDirectory() as place:
        folder, table = Path(place, "in"), Path(place, "labels.csv")
        folder.mkdir()
        for name in expected:
            (folder / name).write_bytes(b"\x89PNG\r\n\x1a\n")
        with table.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
            rows = [(os.fsdecode(name), label) for name, label in label_of.items()]
            csv.writer(stream).writerows([("file", "label"), *rows])
        manifest = find_labelled(InputConfig(images=(folder,), labels=table), Observer())
    assert dict(zip(manifest.paths, manifest.labels or (), strict=True)) == expected


def outcome(config: InputConfig) -> Manifest | DataError:
    """Return what comes out; any other error than a DataError is a failure."""
    try:
        return find_labelled(config, Observer())
    except DataError as error:
        return error


CSV_BYTES = st.one_of(
    st.binary(max_size=300),
    st.lists(st.sampled_from([b"file", b"label", b",", b'"', b"\n", b"\r", b"\0", b"a.png", b"\xff", b";"])).map(
        b"".join
    ),
)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(CSV_BYTES, st.sampled_from([b"", b"file,label\n", b"\xef\xbb\xbffile,label\n", b"label,file,file\n"]))
@example(b"x" * 140_000 + b",y\n", b"file,label\n")
@example(b'"a.png', b"file,label\n")
@example(b"x" * 140_000, b"")
@example(b"\xef\xbb", b"")
def test_any_bytes_as_a_table_named_or_found_are_read_or_refused(content, start):
    with tempfile.TemporaryDirectory() as place:
        Path(place, "a.png").touch()
        table = Path(place, "labels.csv")
        table.write_bytes(start + content)
        named = outcome(InputConfig(images=(Path(place),), labels=table))
        found = outcome(InputConfig(images=(Path(place),)))
    assert isinstance(named, DataError) or named.labels is not None
    # A table that begins as a picture does is one more file.
    assert isinstance(found, DataError) or len(found) >= 1


@settings(max_examples=100, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=300),
        st.lists(st.sampled_from([b"..", b"/", b"a", b"\n", b"\0", b"\xff", b" "])).map(b"".join),
    )
)
@example(b"//a\n/b\n")
@example(b"/\n")
@example(b"..\n" * 3)
def test_any_bytes_as_a_list_of_files_are_rows_or_refused(content):
    with tempfile.TemporaryDirectory() as place:
        names = Path(place, "list.txt")
        names.write_bytes(content)
        manifest = outcome(InputConfig(input_list=names))
    assert isinstance(manifest, DataError) or len(manifest) >= 1

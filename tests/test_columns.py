"""The columns of the manifest give back what they were given, and take little memory."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_cluster.columns import Names, Texts
from gpu_cluster.facts import FileFacts, FileTable
from gpu_cluster.manifest import Manifest

# What `os.fsdecode` makes of the name of a file: any bytes.
NAMES = st.lists(st.binary(max_size=20).map(os.fsdecode))


@settings(max_examples=40, deadline=None)
@given(NAMES)
def test_texts_are_those_that_were_given_whatever_their_bytes(names):
    texts = Texts(iter(names))
    assert list(texts) == names
    assert texts == tuple(names)
    assert texts[1:3] == tuple(names[1:3])
    assert [texts[-1 - row] for row in range(len(names))] == names[::-1]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(st.none() | st.text(max_size=3)))
def test_names_are_those_that_were_given(names):
    assert Names(names) == tuple(names)


def test_an_item_that_is_not_there_is_an_error_and_another_column_is_not_equal():
    texts = Texts(["a", "b"])
    for row in (2, -3):
        with pytest.raises(IndexError, match="below 2"):
            texts[row]
    assert texts != ("a",)
    assert texts != ("a", "c")
    assert texts != Texts(["a", "b", "c"])


NUMBERS = st.none() | st.integers(-2, 2**70)
FACTS = st.builds(
    FileFacts,
    size=NUMBERS,
    mtime_ns=st.none() | st.integers(-(2**64), 2**64),
    ctime_ns=NUMBERS,
    content_hash=st.none() | st.text(max_size=3) | st.binary(min_size=16, max_size=16).map(bytes.hex),
    format=st.sampled_from([None, "JPEG", "PNG"]),
    mode=st.sampled_from([None, "RGB", "L"]),
    width=NUMBERS,
    height=NUMBERS,
    orientation=st.integers(-1, 300),
    n_scans=NUMBERS,
    profile=st.sampled_from([None, "", "sRGB", "Display P3 0123456789abcdef"]),
    reason=st.none() | st.text(max_size=3),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(FACTS, max_size=20))
def test_facts_are_those_that_were_given_also_where_they_do_not_fit(facts):
    table = FileTable(facts)
    assert list(table) == facts
    assert table.column("mtime_ns") == [one.mtime_ns for one in facts]
    assert table.column("content_hash") == [one.content_hash for one in facts]
    assert table.with_reason() == [row for row, one in enumerate(facts) if one.reason is not None]
    large = [row for row, one in enumerate(facts) if max(one.width or 0, 0) * max(one.height or 0, 0) > 100]
    assert table.larger_than(100) == large


@pytest.mark.parametrize(
    "facts",
    [FileFacts(size=-1), FileFacts(mtime_ns=-(2**63)), FileFacts(content_hash="0" * 32), FileFacts(n_scans=-1)],
    ids=str,
)
def test_a_fact_that_looks_like_none_is_not_taken_for_it(facts):
    assert list(FileTable([facts, FileFacts()])) == [facts, FileFacts()]


def test_a_manifest_takes_at_most_120_bytes_a_file():
    n = 20_000
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    manifest = Manifest(
        Path("/pictures"),
        [f"folder {number % 100}/picture {number:08d}.jpg" for number in range(n)],
        [FileFacts(9, 10**18 + i, 10**18 + i, f"{i:032x}", "JPEG", "RGB", 640, 480, 1, 1) for i in range(n)],
        labels=[f"label {number % 100}" for number in range(n)],
    )
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(manifest.files) == n
    assert taken / n < 120

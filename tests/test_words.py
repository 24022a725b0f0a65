"""Numbers with their nouns, and text for terminals and spreadsheets."""

from __future__ import annotations

import pytest

from gpu_cluster.words import count, escaped, for_spreadsheet, from_spreadsheet


@pytest.mark.parametrize(
    ("n", "expected"), [(0, "0 pictures"), (1, "1 picture"), (2, "2 pictures"), (2000, "2,000 pictures")]
)
def test_one_is_singular_and_all_other_numbers_are_plural(n, expected):
    assert count(n, "picture") == expected


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@a", "\ta", "\ra", "\na", "'=1", "''@a"])
def test_what_begins_as_a_formula_gets_an_apostrophe_and_loses_it_again(text):
    assert for_spreadsheet(text) == f"'{text}"
    assert from_spreadsheet(for_spreadsheet(text)) == text


@pytest.mark.parametrize("text", ["", "a", "a=1", "'a", "1", " =1"])
def test_any_other_text_stays_as_it_is_in_a_spreadsheet(text):
    assert for_spreadsheet(text) == from_spreadsheet(text) == text


def test_unsafe_characters_are_shown_as_escapes():
    assert escaped("\x1b[2J\x07\x7f\x9b\u202e\u2066\udcff") == r"\x1b[2J\x07\x7f\x9b\u202e\u2066\udcff"
    others = "a\tb\nc \u00e9 \u05e2\u05d1 \U0001f469\u200d\U0001f680"
    assert escaped(others) == others

"""Numbers with their nouns."""

from __future__ import annotations

import pytest

from gpu_cluster.words import count


@pytest.mark.parametrize(
    ("n", "expected"), [(0, "0 pictures"), (1, "1 picture"), (2, "2 pictures"), (2000, "2,000 pictures")]
)
def test_one_is_singular_and_all_other_numbers_are_plural(n, expected):
    assert count(n, "picture") == expected

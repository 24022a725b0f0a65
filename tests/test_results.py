"""The records that the stages pass to each other, where they say something in words."""

from __future__ import annotations

import numpy as np
import pytest

from gpu_cluster.results import Contingency


@pytest.mark.parametrize(
    ("counts", "size", "expected"),
    [
        ((5, 5), 10, "mostly dress (50%)"),
        ((3, 2), 10, "mostly dress (60% of the 5 labelled)"),
        ((1, 3), 4, "mostly hat (75%)"),
        ((31, 30, 39), 100, "most often shoe (39%)"),
        # Less than a half, but shown as 50%.
        ((100, 50, 51), 201, "mostly dress (50%)"),
        ((0, 0), 10, ""),
    ],
)
def test_the_most_frequent_label_is_mostly_that_of_a_cluster_only_from_a_half_of_its_labelled_pictures_on(
    counts, size, expected
):
    table = Contingency(("dress", "hat", "shoe")[: len(counts)], np.array(counts)[:, None])
    assert table.in_words(0, size) == expected

"""Tables of two groupings, and what scikit-learn computes from the groupings themselves."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from gpu_cluster.clustering.contingency import adjusted_rand, contingency


def test_a_table_counts_the_rows_of_each_pair():
    found = contingency(np.array([0, 1, 1, 1]), np.array([2, 0, 0, 2]), 2, 3)
    np.testing.assert_array_equal(found, [[0, 0, 1], [2, 0, 1]])


@pytest.mark.parametrize("alike", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 2), (50, 4), (30_000, 15)])
def test_adjusted_rand_is_scikit_learns_to_the_last_digit(n, k, alike):
    random = np.random.default_rng(n)
    one = random.integers(0, k, n)
    other = np.where(random.random(n) < alike, one, random.integers(0, k, n))
    assert adjusted_rand(contingency(one, other, k, k)) == adjusted_rand_score(one, other)

"""The matrix on the device is put in its final order in its own memory."""

from __future__ import annotations

import numpy as np
import pytest

from gpu_cluster.backend import CpuBackend
from gpu_cluster.embedding import kept
from gpu_cluster.embedding.kept import OnDevice


@pytest.mark.parametrize("left_out", [[], [0], [2, 3], [5]])
def test_copies_and_files_that_turned_out_bad_take_no_second_matrix(monkeypatch, left_out):
    monkeypatch.setattr(kept, "_MOVED_ROWS", 2)
    # Files 1, 3 and 7 are copies of earlier ones.
    content_of = np.array([0, 0, 1, 0, 2, 3, 4, 3, 5])
    x = np.random.default_rng(0).random((6, 4), dtype=np.float32)
    matrix = OnDevice(content_of, 4, CpuBackend())
    matrix.computed(np.arange(6), x)
    whole = matrix._x
    good = content_of[~np.isin(content_of, left_out)]
    found = matrix.rows(good)
    np.testing.assert_array_equal(found.whole(), x[good])
    assert found.shape == (len(good), 4)
    assert np.shares_memory(found.whole(), whole)

"""The distances of rows to all centres, which the estimator gives, are the same on every backend."""

from __future__ import annotations

import numpy as np
import pytest

from gpu_cluster.backend import HeldRows
from gpu_cluster.clustering import kmeans
from gpu_cluster.clustering.copies import equal_rows
from gpu_cluster.clustering.sequence import find_groups
from gpu_cluster.config import ClusterConfig, ClusteringConfig, SweepConfig
from gpu_cluster.events import Recorder


def test_every_row_has_its_distance_to_every_centre(backend):
    random = np.random.default_rng(0)
    x, centres = (random.normal(size=(n, 5)).astype(np.float32) for n in (40, 3))
    found = backend.to_host(kmeans.all_distances(backend.from_host(x), backend.from_host(centres), backend))
    assert found.dtype == np.float32
    # Sums of five squares in float32.
    np.testing.assert_allclose(found, np.linalg.norm(x[:, None] - centres[None], axis=2), rtol=1e-6)


def test_the_nearest_centre_of_all_is_that_of_the_clustering(backend):
    x = np.random.default_rng(1).normal(size=(60, 6)).astype(np.float32)
    config = ClusteringConfig(sweep=SweepConfig(k_range="3:3"), cluster=ClusterConfig(n_init=2))
    found = find_groups(HeldRows(backend.from_host(x), backend), config, backend=backend, events=Recorder())
    distances = backend.to_host(kmeans.all_distances(found.projection.x, found.clustering.centres, backend))
    np.testing.assert_array_equal(distances.argmin(axis=1), backend.to_host(found.clustering.labels))


@pytest.mark.parametrize(
    ("rows", "expected"), [([1, 2, 3], None), ([1, 2, 1], [0, 1, 0]), ([5, 5, 5, 2], [0, 0, 0, 3]), ([1], None)]
)
def test_each_of_equal_rows_has_the_first_of_them_as_its_original(rows, expected):
    found = equal_rows(np.array(rows, np.float32)[:, None] * np.ones((1, 4), np.float32))
    assert (None if found is None else found.tolist()) == expected

"""Starts, restarts and the shared arithmetic, against scikit-learn's own k-means."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score

from gpu_cluster.backend import CpuBackend
from gpu_cluster.clustering import kmeans
from gpu_cluster.config import ClusterConfig

BACKEND = CpuBackend()


def blobs(n: int = 600, d: int = 8, spread: float = 3.0) -> np.ndarray:
    x, _ = make_blobs(n, d, centers=9, cluster_std=spread, random_state=1)
    return x.astype(np.float32)


def fit(x: np.ndarray, k: int, seed: int = 0, sample: int = 20_000, **options: object) -> kmeans.Partition:
    return kmeans.fit(x, k, ClusterConfig.model_validate(options), sample=sample, seed=seed, backend=BACKEND)


@pytest.mark.parametrize("seed", [0, 1, 42])
@pytest.mark.parametrize("k", [1, 2, 7, 15])
def test_partition_is_scikit_learns_own_for_the_same_seed(k, seed):
    x = blobs()
    expected = KMeans(k, random_state=seed, n_init=10).fit(x)
    found = fit(x, k, seed)
    # Blobs that overlap have rows between two centres; ours take one more step towards the means.
    assert adjusted_rand_score(expected.labels_, found.labels) > 0.99
    assert found.inertia == pytest.approx(expected.inertia_, rel=1e-4)


def test_labels_are_the_nearest_of_the_centres_returned():
    x = blobs()
    found = fit(x, 9)
    distances = np.linalg.norm(x[:, None, :] - found.centres[None, :, :], axis=2)
    np.testing.assert_array_equal(found.labels, distances.argmin(axis=1))
    np.testing.assert_allclose(found.squared_distances, distances.min(axis=1) ** 2, rtol=1e-4)


def test_the_same_seed_gives_the_same_bits():
    first, second = fit(blobs(), 12, seed=3), fit(blobs(), 12, seed=3)
    np.testing.assert_array_equal(first.centres, second.centres)
    np.testing.assert_array_equal(first.squared_distances, second.squared_distances)


def test_more_restarts_never_give_a_higher_inertia():
    x = blobs()
    inertias = [fit(x, 15, n_init=n_init).inertia for n_init in (1, 5, 20)]
    assert inertias == sorted(inertias, reverse=True)
    assert inertias[-1] < inertias[0]


def test_starts_above_the_limit_come_from_a_fixed_sample_of_the_rows():
    x = np.arange(kmeans.START_ROWS + 5000, dtype=np.float32)[:, None]
    first, second = (list(kmeans.Starts(x, sample=len(x), seed=7, backend=BACKEND).draw(5, 2)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert np.isin(first, x).all()


def test_identical_rows_end_in_one_cluster_that_holds_them_all():
    found = fit(np.ones((20, 4), np.float32), 5)
    assert len(np.unique(found.labels)) == 1
    assert found.inertia == 0


def test_as_many_clusters_as_rows_have_no_inertia():
    x = blobs(12)
    found = fit(x, 12)
    assert len(np.unique(found.labels)) == 12
    assert found.inertia == pytest.approx(0, abs=1e-6)


def test_sums_and_sizes_by_cluster_do_not_depend_on_the_blocks():
    random = np.random.default_rng(0)
    x, labels = random.normal(size=(50_000, 700)).astype(np.float32), random.integers(0, 3, 50_000)
    sums = kmeans.cluster_sums(x, labels, 4, BACKEND)
    expected = [x[labels == cluster].sum(axis=0, dtype=np.float64) for cluster in range(4)]
    # float64 sums of float32 numbers, in another order.
    np.testing.assert_allclose(sums, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(kmeans.cluster_sizes(labels, 4, BACKEND), np.bincount(labels, minlength=4))


def test_agreement_is_the_adjusted_rand_index_of_the_best_restart_with_the_others():
    x = blobs(spread=0.7)
    first, second = (labels_of_start(x, 6, number) for number in (0, 1))
    found = fit(x, 6, n_init=2).agreement
    assert found == pytest.approx(adjusted_rand_score(first, second), abs=1e-12)
    assert found is not None
    assert found < 0.9
    assert fit(x, 6, n_init=1).agreement is None


def labels_of_start(x: np.ndarray, k: int, number: int) -> np.ndarray:
    """Return the labels that the start of that number leads to."""
    backend, config = CpuBackend(), ClusterConfig()
    starts = list(kmeans.Starts(x, sample=len(x), seed=0, backend=backend).draw(k, number + 1))[number]
    found = backend.fit_kmeans(x, starts, max_iter=config.max_iter, tol=config.tol)
    return kmeans.nearest(x, found.centres, backend)

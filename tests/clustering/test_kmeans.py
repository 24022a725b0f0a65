"""Starts, restarts and the shared arithmetic, against scikit-learn's own k-means."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score

from gpu_cluster.backend import CpuBackend, KMeansFit
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


def test_starts_above_the_sample_are_those_below_it():
    # Whole numbers, of which no sum is rounded.
    x = np.random.default_rng(0).integers(0, 9, (500, 3)).astype(np.float32)
    above, below = (list(kmeans.Starts(x, sample=n, seed=1, backend=BACKEND).draw(7, 3)) for n in (100, 500))
    np.testing.assert_array_equal(above, below)
    assert {centres.dtype for centres in above} == {np.dtype(np.float32)}


def test_starts_of_one_k_do_not_depend_on_what_was_drawn_before():
    starts = kmeans.Starts(blobs(), sample=1000, seed=3, backend=BACKEND)
    first = list(starts.draw(4, 2))
    list(starts.draw(9, 3))
    np.testing.assert_array_equal(list(starts.draw(4, 2)), first)


def test_above_the_sample_the_best_restart_on_it_ends_with_all_rows():
    x = blobs(4000, spread=1.0)
    full, found = fit(x, 9), fit(x, 9, sample=500)
    assert adjusted_rand_score(full.labels, found.labels) > 0.99
    assert found.inertia == pytest.approx(full.inertia, rel=1e-3)
    on_sample = kmeans.sampled(x, 500, seed=0, backend=BACKEND)
    assert len(np.unique(on_sample, axis=0)) == 500
    starts = kmeans.Starts(x, sample=500, seed=0, backend=BACKEND).draw(9, 10)
    best = kmeans.best_restart(on_sample, starts, ClusterConfig(), seed=0, backend=BACKEND)
    assert found.agreement == best.agreement
    assert found.inertia < np.square(x - best.centres[kmeans.nearest(x, best.centres, BACKEND)]).sum(dtype=np.float64)


def test_without_a_sample_the_centres_of_the_sweep_lead_to_the_bits_of_a_new_fit():
    x = blobs()
    expected = fit(x, 6)
    given = KMeansFit(expected.centres, expected.n_iter)
    found = kmeans.finish(x, given, ClusterConfig(), sample=len(x), backend=BACKEND)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.squared_distances, expected.squared_distances)
    assert (found.inertia, found.n_iter) == (expected.inertia, expected.n_iter)


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
    x, labels = random.normal(size=(25_000, 700)).astype(np.float32), random.integers(0, 3, 25_000)
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

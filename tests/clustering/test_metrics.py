"""Formulas against scikit-learn's, and curves whose knee is known."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.datasets import make_blobs

from gpu_cluster.backend import CpuBackend, cpu
from gpu_cluster.backend.memory import AT_A_TIME_BYTES
from gpu_cluster.clustering import kmeans, metrics
from gpu_cluster.config import ClusterConfig

BACKEND = CpuBackend()


@pytest.fixture(params=[2, 5, 30])
def clustered(request):
    x, _ = make_blobs(200, 6, centers=7, cluster_std=2.5, random_state=3)
    x = x.astype(np.float32)
    return x, kmeans.fit(x, request.param, ClusterConfig(), sample=20_000, seed=0, backend=BACKEND)


def test_davies_bouldin_equals_scikit_learns(clustered):
    x, found = clustered
    k = len(found.centres)
    sizes = kmeans.cluster_sizes(found.labels, k, BACKEND)
    spreads = kmeans.cluster_sums(np.sqrt(found.squared_distances)[:, None], found.labels, k, BACKEND)[:, 0] / sizes
    score = metrics.davies_bouldin(np, found.centres.astype(np.float64), spreads)
    # float32 distances on both sides.
    assert float(score) == pytest.approx(sk.davies_bouldin_score(x, found.labels), rel=1e-5)


def test_davies_bouldin_of_many_clusters_is_that_of_scikit_learn_and_takes_bounded_memory():
    random = np.random.default_rng(0)
    k, d = 1_500, 64
    labels = np.repeat(np.arange(k), 2)
    x = random.normal(size=(2 * k, d))
    centres = (x[::2] + x[1::2]) / 2
    spreads = np.linalg.norm(x[::2] - centres, axis=1)
    tracemalloc.start()
    score = metrics.davies_bouldin(np, centres, spreads)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert float(score) == pytest.approx(sk.davies_bouldin_score(x, labels), rel=1e-9)
    # All differences at once are k x k x d float64.
    assert peak < k * k * d * 8 / 2


def test_calinski_harabasz_equals_scikit_learns(clustered):
    x, found = clustered
    sizes = kmeans.cluster_sizes(found.labels, len(found.centres), BACKEND)
    mean = x.mean(axis=0, dtype=np.float64)
    score = metrics.calinski_harabasz(np, found.centres.astype(np.float64), sizes, mean, found.inertia)
    # float32 distances on both sides.
    assert float(score) == pytest.approx(sk.calinski_harabasz_score(x, found.labels), rel=1e-5)


def test_davies_bouldin_of_two_clusters_with_one_centre_is_finite():
    assert float(metrics.davies_bouldin(np, np.zeros((2, 3)), np.ones(2))) == 0


def test_silhouettes_of_all_rows_equal_scikit_learns(clustered):
    x, found = clustered
    values, rows = metrics.silhouettes(x, found.labels, len(found.centres), sample=1000, seed=0, backend=BACKEND)
    np.testing.assert_array_equal(rows, np.arange(200))
    # scikit-learn rounds the distances to float32.
    np.testing.assert_allclose(values, sk.silhouette_samples(x, found.labels), atol=1e-6)


def test_silhouettes_above_the_limit_are_taken_on_a_fixed_sample(clustered):
    x, found = clustered
    k = len(found.centres)
    values, rows = metrics.silhouettes(x, found.labels, k, sample=80, seed=5, backend=BACKEND)
    again, same_rows = metrics.silhouettes(x, found.labels, k, sample=80, seed=5, backend=BACKEND)
    assert len(rows) == 80
    np.testing.assert_array_equal(rows, same_rows)
    np.testing.assert_array_equal(values, again)
    np.testing.assert_allclose(values, sk.silhouette_samples(x[rows], found.labels[rows]), atol=1e-6)


@pytest.mark.parametrize("k", [2, 40])
def test_silhouettes_of_several_blocks_far_from_the_origin_equal_scikit_learns(k):
    # Rows that are not of unit length, one alone in its cluster, and numbers of clusters that are not used.
    x = (100 * np.random.default_rng(0).normal(size=(4_500, 5)) + 1000).astype(np.float32)
    labels = 3 * (np.arange(4_500) % k) + 1
    labels[7] = 0
    found = metrics.silhouette_samples(x, labels, BACKEND)
    assert found[7] == 0
    np.testing.assert_allclose(found, sk.silhouette_samples(x, labels), atol=1e-6)


def test_silhouettes_of_equal_rows_are_numbers():
    found = metrics.silhouette_samples(np.full((6, 3), 0.1, np.float32), np.arange(6) % 2, BACKEND)
    assert np.isfinite(found).all()


# One pair of blocks at a time, or as many as `Backend.each` has room for.
@pytest.mark.parametrize(("cores", "most"), [(1, 200e6), (16, 1.1 * AT_A_TIME_BYTES)])
def test_silhouettes_hold_no_matrix_of_all_distances(monkeypatch, cores, most):
    monkeypatch.setattr(cpu, "usable_cores", lambda: cores)
    n = 10_000
    x = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
    tracemalloc.start()
    metrics.silhouette_samples(x, np.arange(n) % 3, BACKEND)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # All distances would take 800 MB.
    assert peak < most


def test_mean_silhouettes_of_several_labels_equal_scikit_learns_one_by_one():
    x, _ = make_blobs(4_500, 6, centers=7, cluster_std=2.5, random_state=3)
    x = x.astype(np.float32)
    random = np.random.default_rng(0)
    nearest = [np.linalg.norm(x[:, None] - x[None, :k], axis=2).argmin(axis=1) for k in (2, 9)]
    groupings = [*nearest, 5 * random.integers(0, 4, len(x)), np.zeros(len(x), int), np.arange(len(x))]
    found = metrics.mean_silhouettes(x, groupings, BACKEND)
    # scikit-learn's distances of float32 rows are rounded to float32 too.
    assert found[:3] == pytest.approx([sk.silhouette_score(x, labels) for labels in groupings[:3]], abs=1e-7)
    # One cluster, and one a row: not defined.
    assert found[3:] == [None, None]


def test_mean_silhouettes_are_those_of_each_row():
    x = np.random.default_rng(1).normal(size=(300, 4)).astype(np.float32)
    labels = np.arange(300) % 3
    values, _ = metrics.silhouettes(x, labels, 3, sample=300, seed=0, backend=BACKEND)
    assert metrics.mean_silhouettes(x, [labels], BACKEND) == pytest.approx([metrics.mean_or_none(values)], abs=1e-7)


@pytest.mark.parametrize("k", [1, 4])
def test_silhouettes_are_not_defined_for_one_cluster_or_one_a_row(k):
    x = np.arange(4, dtype=np.float32)[:, None]
    values, rows = metrics.silhouettes(x, np.arange(4) % k, k, sample=100, seed=0, backend=BACKEND)
    assert values.size == rows.size == 0
    assert metrics.mean_or_none(values) is None


def test_matched_accuracy_takes_the_best_one_to_one_matching():
    # By hand: cat-1 (3), dog-0 (4), fox-2 (1) of 11 beat taking the largest of each row, which is cluster 0 twice.
    counts = np.array([[2, 3, 0], [4, 0, 0], [1, 0, 1]])
    assert metrics.matched_accuracy(counts) == pytest.approx(8 / 11)


def test_matched_accuracy_counts_clusters_left_over_as_wrong():
    assert metrics.matched_accuracy(np.array([[5, 5, 0], [0, 0, 10]])) == pytest.approx(15 / 20)


def test_knee_of_a_bent_curve_is_its_bend():
    ks = list(range(2, 12))
    inertias = [1000 - 150 * k if k <= 6 else 106 - k for k in ks]
    assert metrics.knee(ks, inertias) == 6


@pytest.mark.parametrize("inertias", [[100.0, 50.0], [7.0, 7.0, 7.0, 7.0], [40.0, 30.0, 20.0, 10.0]])
def test_no_knee_in_two_points_a_flat_or_a_straight_line(inertias):
    assert metrics.knee(range(2, 2 + len(inertias)), inertias) is None


def test_farthest_from_the_chord_is_the_deepest_point_of_the_curve():
    assert metrics.farthest_from_chord([2, 3, 4, 5], [100.0, 40.0, 20.0, 10.0]) == 3


@pytest.mark.parametrize("inertias", [[3.0], [3.0, 1.0], [2.0, 2.0, 2.0]])
def test_farthest_from_the_chord_of_a_line_is_its_first_k(inertias):
    assert metrics.farthest_from_chord(range(4, 4 + len(inertias)), inertias) == 4

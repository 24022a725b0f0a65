"""k-means that goes on with all rows, for several numbers of clusters at once, against one number in plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score

from gpu_cluster.backend import CpuBackend
from gpu_cluster.clustering import carry_on as module
from gpu_cluster.clustering import kmeans
from gpu_cluster.clustering.carry_on import best_on_more_rows, carry_on, without_one
from gpu_cluster.config import ClusterConfig

BACKEND = CpuBackend()


def rows(n: int = 3000) -> np.ndarray:
    # Not at the origin, where nothing could cancel.
    x, _ = make_blobs(n, 5, centers=6, cluster_std=3.0, random_state=2)
    return (x + 20).astype(np.float32)


def assigned(x: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, float]:
    squares = np.square(x[:, None, :].astype(np.float64) - centres[None, :, :]).sum(axis=2)
    return squares.argmin(axis=1), float(squares.min(axis=1).sum())


@pytest.mark.parametrize("n_iter", [1, 3])
def test_each_set_of_centres_moves_as_lloyds_algorithm_moves_it(n_iter, monkeypatch):
    x = rows()
    starts = [x[:k] for k in (2, 5, 9)]
    # Several blocks, the last one shorter.
    monkeypatch.setattr(module, "_BLOCK_VALUES", 16 * 700)
    for found, centres in zip(carry_on(x, starts, max_iter=n_iter, backend=BACKEND), starts, strict=True):
        expected = centres.astype(np.float64)
        for _ in range(n_iter):
            labels, _inertia = assigned(x, expected)
            expected = np.stack([x[labels == label].mean(axis=0, dtype=np.float64) for label in range(len(expected))])
        # A row between two centres moves a mean of some hundred rows by a little.
        np.testing.assert_allclose(found.centres, expected, atol=0.05)
        assert found.inertia == pytest.approx(assigned(x, found.centres)[1], rel=1e-6)
        assert found.n_iter == n_iter


def test_it_ends_when_no_inertia_falls_any_more():
    x = np.repeat(np.eye(4, dtype=np.float32), 50, axis=0)
    (found,) = carry_on(x, [np.eye(4, dtype=np.float32)], max_iter=300, backend=BACKEND)
    assert found.n_iter == 1
    assert found.inertia == pytest.approx(0, abs=1e-9)


def test_it_ends_after_some_iterations():
    x = np.random.default_rng(0).uniform(size=(20_000, 2)).astype(np.float32)
    (found,) = carry_on(x, [x[:30]], max_iter=300, backend=BACKEND)
    assert found.n_iter == module.MOST_ITERATIONS


def test_a_centre_without_rows_stays_where_it_is():
    x = rows(200)
    far = np.full((1, 5), -1e4, np.float32)
    (found,) = carry_on(x, [np.concatenate([x[:2], far])], max_iter=2, backend=BACKEND)
    np.testing.assert_array_equal(found.centres[2:], far)


def test_restarts_on_a_sample_are_compared_on_more_rows():
    x = rows()
    config = ClusterConfig()
    starts = list(kmeans.Starts(x, sample=len(x), seed=0, backend=BACKEND).draw(6, 5))
    found = best_on_more_rows(x[:300], x, starts, config, backend=BACKEND)
    sampled = [BACKEND.fit_kmeans(x[:300], start, max_iter=config.max_iter, tol=config.tol) for start in starts]
    all_rows = carry_on(x, [fit.centres for fit in sampled], max_iter=config.max_iter, backend=BACKEND)
    assert found.inertia == pytest.approx(min(carried.inertia for carried in all_rows), rel=1e-6)
    best = next(number for number, one in enumerate(all_rows) if one.inertia == found.inertia)
    labels = [kmeans.nearest(x, one.centres, BACKEND) for one in all_rows]
    agreed = [adjusted_rand_score(labels[best], other) for number, other in enumerate(labels) if number != best]
    assert found.agreement == pytest.approx(np.mean(agreed), abs=1e-12)
    assert found.fit.n_iter == sampled[best].n_iter + all_rows[best].n_iter


def test_the_centre_whose_rows_are_nearest_to_the_others_is_left_out():
    x = rows()
    centres = np.stack([x[assigned(x, x[:6])[0] == label].mean(axis=0) for label in range(6)])
    inertias = [assigned(x, np.delete(centres, left_out, axis=0))[1] for left_out in range(6)]
    expected = np.delete(centres, int(np.argmin(inertias)), axis=0)
    np.testing.assert_array_equal(without_one(x, centres, backend=BACKEND), expected)

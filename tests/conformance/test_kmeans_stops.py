"""Where k-means stops: cuVS's own rule, imitated, and what the backend makes of it, against scikit-learn's labels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score

import gpu_cluster
from gpu_cluster.backend import Backend, CpuBackend, HeldRows
from gpu_cluster.clustering.kmeans import Starts, nearest
from gpu_cluster.clustering.reduce import reduce
from gpu_cluster.config import ReduceConfig
from tests.helpers import FLOWERS

from . import cuml_imitation

K = 10
CPU = CpuBackend()
TOLERANCES = (1e-4, 1e-2)


@pytest.fixture(scope="module")
def spaces() -> dict[str, np.ndarray]:
    """Return spaces to cluster in: pooled features of real pictures as they are, wide blobs, and one of unit length."""
    pictures = sorted(map(str, FLOWERS.glob("*.png")))[::2]
    maps = gpu_cluster.embed(
        pictures, features="vgg16", pooling="flatten", image_size=64, device="cpu", no_cache=True
    ).reshape(len(pictures), -1, 512)

    def space(pooled: np.ndarray, **options: object) -> np.ndarray:
        return np.asarray(reduce(HeldRows(pooled, CPU), ReduceConfig.model_validate(options), backend=CPU).x)

    as_it_is = {"scaling": "none", "whitening": 0, "normalize": False}
    wide, _ = make_blobs(2000, 14, centers=K, cluster_std=100, center_box=(-200, 200), random_state=0)
    return {
        "average pooling": space(maps.mean(axis=1), **as_it_is),
        "max pooling": space(maps.max(axis=1), **as_it_is),
        "blobs of variance 10^4": wide.astype(np.float32),
        "unit length": space(maps.mean(axis=1)),
    }


def agreements(x: np.ndarray, backend: Backend, tol: float, fit: Callable[[np.ndarray], np.ndarray]) -> list[float]:
    """Return, for some starts, the adjusted Rand index of scikit-learn's labels with those of the centres of `fit`."""
    found = []
    for starts in Starts(x, sample=len(x), seed=0, backend=CPU).draw(K, 4):
        theirs = nearest(x, CPU.fit_kmeans(x, starts, max_iter=300, tol=tol).centres, CPU)
        found.append(adjusted_rand_score(theirs, nearest(x, fit(starts), CPU)))
    return found


SPACES = ("average pooling", "max pooling", "blobs of variance 10^4", "unit length")


@pytest.mark.parametrize("tol", TOLERANCES)
@pytest.mark.parametrize("name", SPACES)
def test_labels_are_scikit_learns_whatever_the_scale_of_the_space(backend: Backend, spaces, name, tol):
    x = spaces[name]

    def fit(starts: np.ndarray) -> np.ndarray:
        found = backend.fit_kmeans(backend.from_host(x), backend.from_host(starts), max_iter=300, tol=tol)
        return backend.to_host(found.centres)

    assert agreements(x, backend, tol, fit) == [1.0] * 4


@pytest.mark.parametrize("name", SPACES[:3])
def test_the_rule_of_cuvs_alone_stops_too_early_where_rows_are_not_of_unit_length(spaces, name):
    """Why the GPU does not give its tolerance to cuML: the change of the inertia would end k-means, not the centres."""
    x = spaces[name]

    def fit(starts: np.ndarray) -> np.ndarray:
        tol = 1e-4 * float(x.var(axis=0, dtype=np.float64).mean())
        engine = cuml_imitation.KMeans(n_clusters=K, init=starts, n_init=1, max_iter=300, tol=tol).fit(x)
        assert engine.n_iter_ <= 3
        return engine.cluster_centers_

    assert min(agreements(x, CPU, 1e-4, fit)) < 0.9


def test_a_large_tolerance_stops_where_scikit_learn_stops(backend: Backend, spaces):
    x = spaces["blobs of variance 10^4"]
    for starts in Starts(x, sample=len(x), seed=0, backend=CPU).draw(K, 2):
        theirs = CPU.fit_kmeans(x, starts, max_iter=300, tol=0.05)
        found = backend.fit_kmeans(backend.from_host(x), backend.from_host(starts), max_iter=300, tol=0.05)
        assert found.n_iter == theirs.n_iter
        assert 1 < found.n_iter < CPU.fit_kmeans(x, starts, max_iter=300, tol=0).n_iter
        # The centres themselves, which are far from standing still: float32 sums of some hundred rows.
        np.testing.assert_allclose(backend.to_host(found.centres), theirs.centres, atol=1e-2)

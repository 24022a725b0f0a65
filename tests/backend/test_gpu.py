"""What the GPU's backend asks cuML for, by running it on NumPy with cuML imitated: see `cuml_imitation`."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import make_blobs

from gpu_cluster.backend import CpuBackend, GpuBackend, HeldRows, HostRows, gpu, memory, places
from gpu_cluster.backend.blockwise import as_it_is
from gpu_cluster.clustering.metrics import silhouette_samples
from tests.conformance import cuml_imitation

CPU = CpuBackend()
GIB = 1 << 30


class ImitatedPCA:
    """`cuml.decomposition.PCA`, which refuses a single column."""

    def __init__(self, *, n_components: int, svd_solver: str, output_type: str) -> None:
        self._n_components = n_components

    def fit(self, x: np.ndarray) -> ImitatedPCA:
        assert x.shape[1] > 1, "Parameter n_cols: number of columns cannot be less than two"
        found = CPU.fit_pca(HeldRows(x, CPU), self._n_components, scale=as_it_is)
        self.mean_, self.components_, self.explained_variance_ = found.mean, found.components, found.explained_variance
        return self


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> GpuBackend:
    """Return the GPU's backend on NumPy's arrays, with 16 GiB free and no pool."""
    cupy = ModuleType("cupy")
    cupy.__dict__.update(vars(np), asnumpy=np.asarray)
    cluster: Any = ModuleType("cuml.cluster")
    for name in ("KMeans", "HDBSCAN", "SpectralClustering"):
        setattr(cluster, name, getattr(cuml_imitation, name))
    decomposition: Any = ModuleType("cuml.decomposition")
    decomposition.PCA = ImitatedPCA
    modules = {"cupy": cupy, "cuml": ModuleType("cuml"), "cuml.cluster": cluster, "cuml.decomposition": decomposition}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(GpuBackend, "free_bytes", lambda self: 16 * GIB)
    monkeypatch.setattr(gpu, "_free_in_pool", lambda: 0)
    return GpuBackend()


@pytest.mark.parametrize("n", [3, 40, 400])
def test_hdbscan_counts_neighbours_as_scikit_learn_does(backend, n):
    # Groups that overlap, so that one neighbour more or less matters.
    x = make_blobs(n, 4, centers=3, cluster_std=1.5, center_box=(-4, 4), random_state=1)[0].astype(np.float32)
    expected = CPU.group(x, "hdbscan", k=0, seed=0)
    np.testing.assert_array_equal(backend.group(x, "hdbscan", k=0, seed=0), expected)


def test_one_neighbour_more_would_give_other_groups():
    """The data of the test above can tell the difference."""
    x = make_blobs(400, 4, centers=3, cluster_std=1.5, center_box=(-4, 4), random_state=1)[0].astype(np.float32)
    wrong = cuml_imitation.HDBSCAN(min_cluster_size=5).fit_predict(x)
    assert (wrong != CPU.group(x, "hdbscan", k=0, seed=0)).any()


@pytest.mark.parametrize("n", [10, 40])
def test_spectral_clustering_finds_as_many_groups_as_it_says_and_no_more(backend, n):
    x = make_blobs(n, 4, centers=n // 3, cluster_std=0.01, random_state=0)[0].astype(np.float32)
    most = backend.most_groups("spectral", n)
    assert most == (n - 1) // 3
    assert len(set(backend.group(x, "spectral", k=most, seed=0).tolist())) == most
    # cuml#8569: what `most_groups` is there to avoid.
    assert len(set(backend.group(x, "spectral", k=most + 1, seed=0).tolist())) == 1


@pytest.mark.parametrize("tol", [0, 1e-4, 1e-2])
def test_kmeans_gives_scikit_learns_centres_at_any_scale(backend, tol):
    x = make_blobs(1000, 8, centers=10, cluster_std=100, center_box=(-200, 200), random_state=2)[0].astype(np.float32)
    found = backend.fit_kmeans(x, x[:10], max_iter=300, tol=tol)
    expected = CPU.fit_kmeans(x, x[:10], max_iter=300, tol=tol)
    # float32 sums of some hundred numbers around a hundred.
    np.testing.assert_allclose(found.centres, expected.centres, atol=1e-2)
    # scikit-learn sees one iteration later that no label changed.
    assert expected.n_iter - 1 <= found.n_iter <= expected.n_iter


@pytest.fixture
def wide_blobs() -> np.ndarray:
    return make_blobs(1000, 8, centers=10, cluster_std=100, center_box=(-200, 200), random_state=2)[0].astype(
        np.float32
    )


@pytest.fixture
def space(backend, monkeypatch, wide_blobs) -> HostRows:
    """Return a space for which the card has no room."""
    monkeypatch.setattr(places, "WINDOW_BYTES", 0)
    monkeypatch.setattr(backend, "free_bytes", lambda: 1000)
    found = backend.empty_space(wide_blobs.shape)
    found[:, :] = wide_blobs
    return found


@pytest.mark.parametrize("tol", [0, 1e-4])
def test_kmeans_streamed_from_the_host_gives_scikit_learns_centres(
    backend, monkeypatch, caplog, wide_blobs, space, tol
):
    read: list[int] = []

    class Watched(cuml_imitation.KMeans):
        def fit(self, x):
            super().fit(x)
            read.extend(self.read)
            return self

    monkeypatch.setattr(sys.modules["cuml.cluster"], "KMeans", Watched)
    monkeypatch.setattr(gpu, "_BUFFER_BYTES", 4 * 8 * 300)
    caplog.set_level("INFO", "gpu_cluster")
    found = backend.fit_kmeans(space, wide_blobs[:10], max_iter=300, tol=tol)
    expected = CPU.fit_kmeans(wide_blobs, wide_blobs[:10], max_iter=300, tol=tol)
    np.testing.assert_allclose(found.centres, expected.centres, atol=1e-2)
    assert max(read) == 300
    assert "k-means on the card, streamed from the host: 1,000 x 8 float32" in caplog.text


def test_kmeans_of_a_space_on_the_host_takes_the_card_where_it_has_room_by_then(backend, monkeypatch, space, caplog):
    monkeypatch.setattr(backend, "free_bytes", lambda: 16 * GIB)
    caplog.set_level("INFO", "gpu_cluster")
    found = backend.fit_kmeans(space, space.on_host[:10], max_iter=300, tol=1e-4)
    expected = CPU.fit_kmeans(space.on_host, space.on_host[:10], max_iter=300, tol=1e-4)
    np.testing.assert_allclose(found.centres, expected.centres, atol=1e-2)
    assert "k-means on the card: " in caplog.text


def test_other_algorithms_take_a_space_on_the_host_to_the_card_as_a_whole(backend, space):
    found = backend.group(space, "hdbscan", k=0, seed=0)
    np.testing.assert_array_equal(found, backend.group(space.on_host, "hdbscan", k=0, seed=0))


def test_a_space_that_does_not_fit_the_card_counts_as_memory_of_the_host(backend, monkeypatch):
    n, given = 10_000_000, {"whole": False, "backend": backend}
    monkeypatch.setattr(backend, "free_bytes", lambda: 16 * GIB)
    fitting = memory.needed_host_bytes(n, 1024, 32, 20, **given)
    monkeypatch.setattr(backend, "free_bytes", lambda: 1 * GIB)
    assert memory.needed_host_bytes(n, 1024, 32, 20, **given) - fitting == 4 * n * 32


@pytest.mark.parametrize(
    ("shape", "free", "solver"),
    [
        ((200, 1024), 16 * GIB, "cuML's PCA, full"),
        ((1_000_000, 1024), 16 * GIB, "cuML's PCA, full"),
        # The matrix takes 4 GB, its scaled copy and cuML's 8 more.
        ((1_000_000, 1024), 7 * GIB, "covariance by blocks"),
        ((3_000_000, 1024), 64 * GIB, "covariance by blocks"),
        ((5_000, 25_088), 64 * GIB, "Gram matrix by blocks"),
        ((50_000, 25_088), 64 * GIB, "cuML's PCA, full"),
        ((50, 1), 16 * GIB, "covariance by blocks"),
    ],
)
def test_cuml_does_the_pca_where_the_matrix_and_its_copies_fit(backend, monkeypatch, shape, free, solver):
    monkeypatch.setattr(backend, "free_bytes", lambda: free)
    ours = "covariance by blocks" if shape[1] <= shape[0] else "Gram matrix by blocks"
    assert ("cuML's PCA, full" if backend._suits_cuml(*shape) else ours) == solver


@pytest.mark.parametrize(("free", "solver"), [(16 * GIB, "cuML's PCA, full"), (0, "covariance by blocks")])
def test_both_ways_to_fit_pca_give_the_same(backend, monkeypatch, free, solver):
    x = np.random.default_rng(0).normal(size=(300, 20)).astype(np.float32) * np.geomspace(3, 0.1, 20, dtype=np.float32)
    monkeypatch.setattr(backend, "free_bytes", lambda: free)
    found = backend.fit_pca(HeldRows(x, backend), 4, scale=lambda rows: rows * 2)
    expected = CPU.fit_pca(HeldRows(2 * x, CPU), 4, scale=as_it_is)
    assert found.solver == solver
    np.testing.assert_allclose(found.explained_variance, expected.explained_variance, rtol=1e-5)
    np.testing.assert_allclose(np.abs((found.components * expected.components).sum(axis=1)), 1, atol=1e-5)


def test_what_the_pool_has_not_given_out_counts_as_free(monkeypatch):
    statistics: Any = ModuleType("rmm.statistics")
    statistics.get_statistics = lambda: SimpleNamespace(current_bytes=1 * GIB)
    mr: Any = ModuleType("rmm.mr")
    pool = SimpleNamespace(pool_size=lambda: 3 * GIB)
    mr.get_current_device_resource = lambda: SimpleNamespace(get_upstream=lambda: pool)
    rmm: Any = ModuleType("rmm")
    rmm.mr, rmm.statistics = mr, statistics
    for module in (rmm, mr, statistics):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    assert gpu._free_in_pool() == 2 * GIB


def test_silhouettes_ask_no_library_of_the_device(backend, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuml", None)
    x, labels = make_blobs(60, 3, centers=3, random_state=0)
    assert silhouette_samples(x, labels, backend).shape == (60,)

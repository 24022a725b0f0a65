"""k-means on the cards of several workers: real workers of Dask, with CuPy and cuml.dask imitated on NumPy."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import make_blobs

distributed = pytest.importorskip("distributed", reason="needs the extra dask")

from gpu_cluster.backend import CpuBackend, GpuBackend, HostRows, gpu, multi_gpu, places  # noqa: E402
from tests.conformance import cuml_dask_imitation, cuml_imitation  # noqa: E402

CPU = CpuBackend()
N_WORKERS = 3


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Return a client of workers in this process, where imitated modules can be seen by them.

    As that of a job, it is not the client that Dask takes where none is given.
    """
    with (
        distributed.LocalCluster(
            n_workers=N_WORKERS, threads_per_worker=1, processes=False, dashboard_address=None, protocol="inproc"
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as found,
    ):
        yield found


@pytest.fixture
def uuids(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Pretend a card for each worker; return the cards' UUIDs, which are given out in turn."""
    cards = [bytes([number]) * 16 for number in range(N_WORKERS)]
    given = iter(cards * 100)
    runtime = SimpleNamespace(getDevice=lambda: 0, getDeviceProperties=lambda _number: {"uuid": next(given)})
    cupy = ModuleType("cupy")
    cupy.__dict__.update(vars(np), asnumpy=np.asarray)
    cupy.cuda = SimpleNamespace(is_available=lambda: True, runtime=runtime)  # type: ignore[attr-defined]
    cluster: Any = ModuleType("cuml.dask.cluster")
    cluster.KMeans = cuml_dask_imitation.KMeans
    empty: Any = ModuleType("cuml.cluster")
    empty.KMeans = None
    modules = {"cuml": ModuleType("cuml"), "cuml.dask": ModuleType("cuml.dask"), "cuml.cluster": empty}
    for name, module in {"cupy": cupy, **modules, "cuml.dask.cluster": cluster}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(GpuBackend, "free_bytes", lambda self: 100_000)
    monkeypatch.setattr(gpu, "_free_in_pool", lambda: 0)
    return cards


@pytest.fixture
def x() -> np.ndarray:
    return make_blobs(1000, 8, centers=10, cluster_std=100, center_box=(-200, 200), random_state=2)[0].astype(
        np.float32
    )


def test_each_card_is_counted_once_with_its_free_memory(client, uuids):
    assert list(multi_gpu.cards(client).values()) == [100_000] * N_WORKERS
    uuids_of_one_card = SimpleNamespace(getDevice=lambda: 0, getDeviceProperties=lambda _number: {"uuid": b"one card"})
    sys.modules["cupy"].cuda.runtime = uuids_of_one_card
    assert list(multi_gpu.cards(client).values()) == [100_000]


def test_a_worker_without_a_card_is_none_of_them(client, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert multi_gpu.cards(client) == {}


def test_every_worker_gets_an_equal_share_in_pieces(client, uuids, monkeypatch, x):
    monkeypatch.setattr(multi_gpu, "PIECE_BYTES", 4 * 8 * 100)
    workers = list(multi_gpu.cards(client))
    found = multi_gpu.fit_kmeans(x, x[:10], client=client, workers=workers, max_iter=1, least_shift=0)
    assert found.n_iter == 1
    assert sorted(cuml_dask_imitation.KMeans.placed.values()) == [333, 333, 334]
    expected = CPU.fit_kmeans(x, x[:10], max_iter=1, tol=0)
    np.testing.assert_allclose(found.centres, expected.centres, atol=1e-2)


@pytest.fixture
def space(uuids, monkeypatch, client, x) -> tuple[GpuBackend, HostRows]:
    """Return a backend, and a space of which each card holds a third of the rows, at 96 bytes a row, and none all."""
    monkeypatch.setattr(places, "WINDOW_BYTES", 0)
    monkeypatch.setattr(places, "STREAMED_BYTES", 0)
    monkeypatch.setattr(GpuBackend, "free_bytes", lambda self: 334 * 96)
    backend = GpuBackend()
    backend.join(client)
    found = backend.empty_space(x.shape)
    found[:, :] = x
    return backend, found


@pytest.mark.parametrize("tol", [0, 1e-4])
def test_a_space_that_only_the_cards_together_hold_ends_where_scikit_learn_ends(caplog, space, x, tol):
    caplog.set_level("INFO", "gpu_cluster")
    backend, on_host = space
    found = backend.fit_kmeans(on_host, x[:10], max_iter=300, tol=tol)
    expected = CPU.fit_kmeans(x, x[:10], max_iter=300, tol=0)
    # It ends when ten iterations move no centre, so never before scikit-learn.
    np.testing.assert_allclose(found.centres, expected.centres, atol=1e-2)
    assert found.n_iter >= CPU.fit_kmeans(x, x[:10], max_iter=300, tol=tol).n_iter - 1
    assert "k-means on several cards: 1,000 x 8 float32" in caplog.text


@pytest.mark.parametrize("error", [RuntimeError("NCCL error"), OSError("connection lost"), MemoryError("bad_alloc")])
def test_if_the_cards_fail_together_one_goes_on_alone(monkeypatch, caplog, space, x, error):
    class Failing(cuml_dask_imitation.KMeans):
        def fit(self, _rows):
            raise error

    monkeypatch.setattr(sys.modules["cuml.dask.cluster"], "KMeans", Failing)
    monkeypatch.setattr(sys.modules["cuml.cluster"], "KMeans", cuml_imitation.KMeans)
    backend, on_host = space
    found = backend.fit_kmeans(on_host, x[:10], max_iter=300, tol=1e-4)
    expected = CPU.fit_kmeans(x, x[:10], max_iter=300, tol=1e-4)
    np.testing.assert_allclose(found.centres, expected.centres, atol=1e-2)
    assert f"k-means on 3 cards failed: {type(error).__name__}: {error}; k-means goes on with this card" in caplog.text


@pytest.mark.parametrize("max_iter", [1, 10, 14])
def test_it_ends_after_max_iter(client, uuids, monkeypatch, x, max_iter):
    workers = list(multi_gpu.cards(client))
    monkeypatch.setattr(multi_gpu, "ITERATIONS_A_CALL", 3)
    slow = x[:40]
    found = multi_gpu.fit_kmeans(x, slow[-2:], client=client, workers=workers, max_iter=max_iter, least_shift=0)
    assert found.n_iter <= max_iter
    expected = CPU.fit_kmeans(x, slow[-2:], max_iter=found.n_iter, tol=0)
    np.testing.assert_allclose(found.centres, expected.centres, atol=1e-2)

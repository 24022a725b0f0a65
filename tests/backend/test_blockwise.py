"""The array-API PCA against scikit-learn's, on NumPy and on arrays that NumPy cannot read, in one block and in many."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize

from gpu_cluster.backend import Backend, CpuBackend, HeldRows, blockwise, rows
from gpu_cluster.backend.blockwise import as_it_is, fit_pca
from gpu_cluster.clustering.reduce import scale
from tests.conformance.strict import StrictBackend


@pytest.fixture(params=[CpuBackend, StrictBackend])
def backend(request: pytest.FixtureRequest) -> Backend:
    made: Backend = request.param()
    return made


@pytest.fixture(params=["one block", "many blocks"])
def _in_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "many blocks":
        # Seven rows of the widest matrix here.
        monkeypatch.setattr(blockwise, "_BLOCK_SIZE", 7 * 300)
        monkeypatch.setattr(rows, "BLOCK_ROWS", 7)


def matrix(n: int, d: int) -> np.ndarray:
    """Return rows far from the origin, none below 0, whose directions differ in strength."""
    random = np.random.default_rng(n)
    x = random.normal(size=(n, d)) * np.geomspace(3, 0.1, d) + 5
    return np.maximum(x, 0).astype(np.float32)


@pytest.mark.usefixtures("_in_blocks")
@pytest.mark.parametrize(
    ("n", "d", "solver"),
    [(200, 40, "covariance by blocks"), (40, 40, "covariance by blocks"), (60, 300, "Gram matrix by blocks")],
)
def test_axes_and_variances_are_scikit_learns(backend, n, d, solver):
    x = matrix(n, d)
    found = fit_pca(
        HeldRows(backend.from_host(x), backend), 6, scale=lambda rows: scale(rows, "l2", backend), backend=backend
    )
    expected = PCA(6, svd_solver="full").fit(normalize(x).astype(np.float64))
    total = np.var(normalize(x), axis=0, dtype=np.float64, ddof=1).sum()
    assert found.solver == solver
    # Rows are scaled and multiplied in float32; sums are float64, and the axes and the mean end in float32.
    np.testing.assert_allclose(found.explained_variance, expected.explained_variance_, rtol=1e-5)
    np.testing.assert_allclose(backend.to_host(found.mean), expected.mean_, atol=1e-6)
    assert found.total_variance == pytest.approx(total, rel=1e-5)
    # Signs are free.
    components = backend.to_host(found.components)
    signs = np.sign((components * expected.components_).sum(axis=1))[:, None]
    np.testing.assert_allclose(components * signs, expected.components_, atol=2e-5)
    np.testing.assert_allclose(components @ components.T, np.eye(6), atol=1e-6)


@pytest.mark.usefixtures("_in_blocks")
@pytest.mark.parametrize(("n", "d"), [(60, 20), (12, 300)])
def test_a_direction_without_variance_has_none_and_no_nan(backend, n, d):
    random = np.random.default_rng(0)
    # Two directions.
    x = (random.uniform(size=(n, 2)) @ random.uniform(size=(2, d))).astype(np.float32)
    found = fit_pca(HeldRows(backend.from_host(x), backend), 6, scale=as_it_is, backend=backend)
    assert np.isfinite(backend.to_host(found.components)).all()
    # The rounding of products in float32; `reduce` drops what is below 1e-6.
    assert (found.explained_variance[2:] < 1e-7 * found.explained_variance[0]).all()


def far_away(random: np.random.Generator) -> np.ndarray:
    """Rows a thousand times as far from the origin as from each other."""
    return 1000 + random.normal(size=(900, 40)) * np.geomspace(3, 0.1, 40)


def of_unequal_strength(random: np.random.Generator) -> np.ndarray:
    """Directions whose variances differ by 10^6, none along a column."""
    turn, _ = np.linalg.qr(random.normal(size=(40, 40)))
    return (random.normal(size=(900, 40)) * np.geomspace(1, 1e-3, 40)) @ turn


def sorted_by_group(random: np.random.Generator) -> np.ndarray:
    """A first block that is nothing like the others, as in a folder that is sorted by what its pictures show."""
    return np.repeat([[0.0], [50.0], [-20.0]], [100, 500, 300], axis=0) + random.normal(size=(900, 40))


@pytest.mark.parametrize("made", [far_away, of_unequal_strength, sorted_by_group])
@pytest.mark.parametrize("block_rows", [100, 2048])
def test_variances_are_those_in_float64_however_badly_the_data_are_conditioned(backend, monkeypatch, made, block_rows):
    monkeypatch.setattr(rows, "BLOCK_ROWS", block_rows)
    x = made(np.random.default_rng(0)).astype(np.float32)
    found = fit_pca(HeldRows(backend.from_host(x), backend), 8, scale=as_it_is, backend=backend)
    expected = PCA(8, svd_solver="full").fit(x.astype(np.float64))
    # What products in float32 leave, of the largest variance; `reduce` drops what is below 1e-6.
    most = 3e-7 * expected.explained_variance_[0]
    np.testing.assert_allclose(found.explained_variance, expected.explained_variance_, rtol=0, atol=most)
    np.testing.assert_allclose(backend.to_host(found.mean), expected.mean_, rtol=1e-6, atol=1e-6)
    assert found.total_variance == pytest.approx(np.var(x, axis=0, dtype=np.float64, ddof=1).sum(), rel=1e-6)


def test_a_single_column_which_cuml_refuses_is_its_own_axis(backend):
    x = matrix(50, 1)
    found = fit_pca(HeldRows(backend.from_host(x), backend), 1, scale=as_it_is, backend=backend)
    np.testing.assert_allclose(found.explained_variance, x.var(axis=0, ddof=1, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(np.abs(backend.to_host(found.components)), 1)


def test_no_second_matrix_is_made(monkeypatch):
    x = np.ones((40_000, 64), np.float32)
    x[::2, ::3] = 2
    # A tenth of the rows a block.
    monkeypatch.setattr(rows, "BLOCK_ROWS", 4_000)
    assert peak(x, lambda rows: scale(rows, "sqrt-l2", CpuBackend())) < x.nbytes


def test_25088_columns_of_few_pictures_need_no_covariance():
    x = np.random.default_rng(0).random((80, 25_088), np.float32)
    # The covariance would take 5 GB in float64. Besides the matrix there are some float64 copies of its only block.
    assert peak(x, as_it_is) < 12 * x.nbytes


def peak(x: np.ndarray, scaled) -> int:
    """Return the bytes that fitting allocates at most."""
    tracemalloc.start()
    fit_pca(HeldRows(x, CpuBackend()), 5, scale=scaled, backend=CpuBackend())
    _now, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most

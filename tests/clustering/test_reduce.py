"""The space that is clustered, against scikit-learn and on data where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize

from gpu_cluster.backend import CpuBackend, HeldRows
from gpu_cluster.clustering.reduce import count_components, reduce, scale
from gpu_cluster.config import ReduceConfig
from gpu_cluster.results import Projection


def embeddings(n: int = 90, d: int = 512, seed: int = 0) -> np.ndarray:
    """Features like VGG16's: not negative, half of them 0, a few directions that matter."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, 6)) @ random.normal(size=(6, d)) + 0.3 * random.normal(size=(n, d))
    return np.maximum(x, 0).astype(np.float32)


def project(x: np.ndarray, sweep_space: str = "projection", **options: object) -> Projection:
    return reduce(
        HeldRows(x, CpuBackend()), ReduceConfig.model_validate(options), sweep_space=sweep_space, backend=CpuBackend()
    )


def test_default_space_is_the_documented_recipe_written_out_with_scikit_learn():
    x = embeddings(300)
    fit = PCA(17, svd_solver="full")
    by_hand = normalize(fit.fit_transform(normalize(x)) / fit.explained_variance_**0.35)
    found = project(x).x
    # Signs of components are arbitrary; distances between rows are not.
    np.testing.assert_allclose(found @ found.T, by_hand @ by_hand.T, atol=1e-4)


@pytest.mark.parametrize(("n", "expected"), [(2, 1), (5, 4), (60, 8), (210, 14), (720, 26), (10_000, 32)])
def test_auto_components_are_the_root_of_n_from_8_to_32_and_at_most_n_minus_1(n, expected):
    assert count_components("auto", n, 512) == expected


def test_components_asked_for_are_cut_to_what_the_rows_can_span():
    assert project(embeddings(5), pca=100).x.shape == (5, 4)


def test_minmax_scales_every_column_and_leaves_constant_ones_at_zero():
    x = np.array([[1, 7, -1], [3, 7, 0], [2, 7, 3]], np.float32)
    expected = np.array([[0, 0, 0], [1, 0, 0.25], [0.5, 0, 1]])
    found = project(x, scaling="minmax", pca="none", whitening=0, normalize=False)
    np.testing.assert_allclose(found.x, expected, atol=1e-7)


def test_a_row_of_zeros_stays_zeros():
    x = embeddings(10)
    x[4] = 0
    found = scale(x, "sqrt-l2", CpuBackend())
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[4], 0)


def test_scaling_none_and_pca_none_leave_the_embeddings_alone():
    x = embeddings(12)
    found = project(x, scaling="none", pca="none", normalize=False)
    np.testing.assert_array_equal(found.x, x)
    assert found.space == "embeddings as they are"


def test_components_whitened_in_full_have_unit_variance():
    found = project(embeddings(200), normalize=False, whitening=0.5).x
    np.testing.assert_allclose(found.var(axis=0, ddof=1), 1, rtol=1e-3)


def test_a_part_of_whitening_keeps_that_part_of_the_variances():
    plain = project(embeddings(200), normalize=False, whitening=0).x.var(axis=0, ddof=1)
    partly = project(embeddings(200), normalize=False, whitening=0.35).x.var(axis=0, ddof=1)
    # Divided by the variance to the power of 0.35, a component keeps its variance to the power of 0.3; float32.
    np.testing.assert_allclose(partly, plain**0.3, rtol=1e-3)


def test_directions_in_which_nothing_varies_are_dropped():
    random = np.random.default_rng(1)
    # Three directions in 512 columns: whitening a fourth would blow rounding up to full size.
    x = (random.uniform(size=(60, 3)) @ random.uniform(size=(3, 512))).astype(np.float32)
    assert project(x, scaling="none").x.shape[1] == 3


def test_rows_equal_up_to_tensorflows_rounding_become_equal():
    random = np.random.default_rng(2)
    one = embeddings(1)
    # TensorFlow's embedding of one picture changes by up to 4e-8 of its size with the batch it is in.
    x = (one * (1 + 4e-8 * random.normal(size=(30, 512)))).astype(np.float32)
    assert np.unique(project(x).x, axis=0).shape == (1, 1)


def test_one_row_goes_through():
    found = project(embeddings(1))
    assert found.x.shape == (1, 1)
    np.testing.assert_array_equal(found.pcs, [[0, 0]])


def test_signs_do_not_depend_on_the_order_of_the_rows():
    x = embeddings(80)
    order = np.random.default_rng(3).permutation(80)
    # Rows summed in another order: float32 rounding through PCA and whitening.
    np.testing.assert_allclose(project(x[order]).x, project(x).x[order], atol=1e-3)


def test_plotted_components_are_those_of_the_scaled_embeddings_with_their_share_of_the_variance():
    x = embeddings(70)
    pca = PCA(2, svd_solver="full").fit(normalize(x))
    found = project(x)
    # Noise makes the two directions near neighbours: float32 rounding turns them a little.
    np.testing.assert_allclose(np.abs(found.pcs), np.abs(pca.transform(normalize(x))), atol=1e-4)
    np.testing.assert_allclose(found.pcs_variance_ratio, pca.explained_variance_ratio_, rtol=1e-4)


def test_sweep_space_scaled_keeps_all_columns():
    found = project(embeddings(40), sweep_space="scaled", scaling="minmax", pca=2)
    assert found.sweep_x.shape == (40, 512)
    assert found.x.shape == (40, 2)
    assert found.sweep_space == "min-max, 512 columns"

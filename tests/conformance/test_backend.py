"""What every backend must do, judged by NumPy in float64 and by scikit-learn on the host."""

from __future__ import annotations

import io
import time
import warnings
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import sklearn.cluster  # noqa: F401  (its threads are counted)
import tensorflow as tf
from sklearn import metrics as sk
from sklearn.datasets import make_blobs
from threadpoolctl import threadpool_info

from gpu_cluster.backend import Backend, CpuBackend, HeldRows
from gpu_cluster.backend.blockwise import as_it_is
from gpu_cluster.clustering.carry_on import carry_on
from gpu_cluster.clustering.kmeans import cluster_sums
from gpu_cluster.clustering.metrics import mean_silhouettes, silhouette_samples
from gpu_cluster.config import Algorithm

from .conftest import gpu

# float32 data: sums of some hundred terms differ by this much with their order.
ROUNDING = 1e-4


@pytest.fixture
def x() -> np.ndarray:
    points, _ = make_blobs(500, 20, centers=6, cluster_std=2.0, random_state=0)
    return points.astype(np.float32)


@pytest.fixture
def labels(x: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x[:, None, :] - x[None, :6, :], axis=2).argmin(axis=1)


def lloyd(x: np.ndarray, centres: np.ndarray, n_iter: int = 300) -> np.ndarray:
    """Run Lloyd's algorithm in float64 until it stands still."""
    x, centres = x.astype(np.float64), centres.astype(np.float64)
    for _ in range(n_iter):
        nearest = np.linalg.norm(x[:, None, :] - centres[None, :, :], axis=2).argmin(axis=1)
        centres = np.stack([x[nearest == cluster].mean(axis=0) for cluster in range(len(centres))])
    return centres


def test_transfers_there_and_back_change_nothing(backend: Backend, x):
    for array in (x, np.arange(5), np.array(2.5)):
        found = backend.to_host(backend.from_host(array))
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype


# The first has fewer rows than columns.
@pytest.mark.parametrize("n", [20, 60, 500, 3000])
def test_pca_is_the_exact_one_in_float64(backend: Backend, n):
    random = np.random.default_rng(n)
    x = (random.normal(size=(n, 40)) * np.linspace(3, 0.1, 40)).astype(np.float32)
    fit = backend.fit_pca(HeldRows(backend.from_host(x), backend), 6, scale=as_it_is)
    _, singular, axes = np.linalg.svd(x.astype(np.float64) - x.mean(axis=0, dtype=np.float64), full_matrices=False)
    np.testing.assert_allclose(fit.explained_variance, singular[:6] ** 2 / (n - 1), rtol=ROUNDING)
    assert fit.total_variance == pytest.approx((singular**2).sum() / (n - 1), rel=ROUNDING)
    np.testing.assert_allclose(backend.to_host(fit.mean), x.mean(axis=0, dtype=np.float64), atol=ROUNDING)
    # Signs are arbitrary. Neighbouring axes turn in each other's plane by rounding over the gap between them.
    cosines = np.abs((backend.to_host(fit.components) * axes[:6]).sum(axis=1))
    np.testing.assert_allclose(cosines, 1, atol=1e-3)


def test_pca_repeats_bit_by_bit(backend: Backend, x):
    first, second = (backend.fit_pca(HeldRows(backend.from_host(x), backend), 4, scale=as_it_is) for _ in range(2))
    np.testing.assert_array_equal(backend.to_host(first.components), backend.to_host(second.components))


@pytest.mark.parametrize("k", [1, 2, 6])
def test_kmeans_from_given_centres_is_lloyds_algorithm(backend: Backend, x, k):
    starts = x[:k]
    fit = backend.fit_kmeans(backend.from_host(x), backend.from_host(starts), max_iter=300, tol=0)
    np.testing.assert_allclose(backend.to_host(fit.centres), lloyd(x, starts), atol=1e-3)
    assert fit.n_iter >= 1


def test_kmeans_stops_after_max_iter(backend: Backend, x):
    starts = x[:6]
    fit = backend.fit_kmeans(backend.from_host(x), backend.from_host(starts), max_iter=2, tol=0)
    np.testing.assert_allclose(backend.to_host(fit.centres), lloyd(x, starts, n_iter=2), atol=1e-3)


@pytest.mark.parametrize("algorithm", get_args(Algorithm))
def test_groups_far_apart_are_found_by_every_algorithm(backend: Backend, algorithm):
    points, truth = make_blobs(400, 8, centers=5, cluster_std=0.5, random_state=3)
    x = backend.from_host(points.astype(np.float32))
    found = backend.to_host(backend.group(x, algorithm, k=5, seed=0))
    assert found.shape == (400,)
    # Of HDBSCAN's a few at the rims are noise.
    assert sk.adjusted_rand_score(truth, found) > 0.9


# Of five rows in four groups most have no neighbour of their own.
@pytest.mark.parametrize(("n", "least"), [(5, 0), (400, 0.98)])
def test_neighbours_in_a_tsne_are_of_one_group(backend: Backend, n, least):
    points, truth = make_blobs(n, 8, centers=4, cluster_std=0.3, random_state=3)
    plane = backend.to_host(backend.tsne(backend.from_host(points.astype(np.float32)), seed=0))
    assert plane.shape == (n, 2)
    assert np.isfinite(plane).all()
    apart = np.linalg.norm(plane[:, None] - plane[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    assert (truth[apart.argmin(axis=1)] == truth).mean() >= least


def test_silhouettes_are_scikit_learns(backend: Backend, x, labels):
    found = silhouette_samples(backend.from_host(x), backend.from_host(labels), backend)
    # float64 throughout; scikit-learn rounds distances to float32.
    np.testing.assert_allclose(backend.to_host(found), sk.silhouette_samples(x, labels), atol=1e-6)


def test_silhouettes_and_centres_repeat_bit_by_bit(backend: Backend, x, labels):
    on_device, codes = backend.from_host(x), backend.from_host(labels)
    silhouettes = [backend.to_host(silhouette_samples(on_device, codes, backend)) for _ in range(2)]
    np.testing.assert_array_equal(silhouettes[0], silhouettes[1])
    sums = [backend.to_host(cluster_sums(on_device, codes, 6, backend)) for _ in range(2)]
    np.testing.assert_array_equal(sums[0], sums[1])


def test_kmeans_carried_on_for_several_k_is_lloyds_algorithm(backend: Backend, x):
    starts = [x[:k] for k in (2, 6)]
    found = carry_on(backend.from_host(x), [backend.from_host(own) for own in starts], max_iter=2, backend=backend)
    for own, start in zip(found, starts, strict=True):
        np.testing.assert_allclose(backend.to_host(own.centres), lloyd(x, start, n_iter=2), atol=1e-3)


def test_mean_silhouettes_of_several_labels_are_scikit_learns(backend: Backend, x, labels):
    groupings = [labels, labels // 2]
    found = mean_silhouettes(backend.from_host(x), [backend.from_host(some) for some in groupings], backend)
    assert found == pytest.approx([sk.silhouette_score(x, some) for some in groupings], abs=1e-6)


def test_silhouettes_are_cumls(x, labels):
    backend = gpu()
    from cuml.metrics.cluster import silhouette_samples as cumls

    on_device, codes = backend.from_host(x), backend.from_host(labels)
    expected = backend.to_host(cumls(on_device, codes.astype("int32"), chunksize=500))
    # cuML's are float32, summed by atomic additions.
    np.testing.assert_allclose(backend.to_host(silhouette_samples(on_device, codes, backend)), expected, atol=ROUNDING)


def test_label_scores_are_scikit_learns(backend: Backend, labels):
    truth = np.random.default_rng(0).permutation(labels // 2)
    found = backend.label_scores(truth, backend.from_host(labels))
    expected = {
        "homogeneity": sk.homogeneity_score(truth, labels),
        "completeness": sk.completeness_score(truth, labels),
        "v_measure": sk.v_measure_score(truth, labels),
        "adjusted_rand": sk.adjusted_rand_score(truth, labels),
        "normalized_mutual_info": sk.normalized_mutual_info_score(truth, labels),
    }
    # Entropies of a few hundred labels, in float64 everywhere.
    assert found == pytest.approx(expected, abs=1e-6)


def test_tables_of_names_and_numbers_come_back_from_csv_and_parquet(backend: Backend, tmp_path):
    # float32 of every size: cuDF's CSV writes at most 10 digits, and fixed decimals between 1e-4 and 1e9.
    values = np.array([0.1, 2 / 3, 1.2345678e-4, 3.4028235e38, 1e-45, 123456.79, np.nan], np.float32)
    words = {"path": ['a "b", c.png', "\u00e9\n.png", *"cdefg"], "label": ["rose", None, *"abcde"]}
    columns = {"path": words["path"], "cluster": backend.from_host(np.arange(7)), "x": backend.from_host(values)}
    table = backend.frames.DataFrame({**columns, "label": backend.frames.Series(words["label"], dtype="str")})
    backend.to_pandas(table).to_csv(tmp_path / "table.csv", index=False, lineterminator="\n")
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    for found in (pd.read_csv(tmp_path / "table.csv", dtype={"x": np.float32}), pd.read_parquet(buffer)):
        np.testing.assert_array_equal(found["x"].to_numpy(np.float32), values)
        assert found["cluster"].tolist() == list(range(7))
        assert found["path"].tolist() == words["path"]
        assert found["label"].fillna("").tolist() == [word or "" for word in words["label"]]


@pytest.mark.parametrize("batch_size", [1, 7, 16, 20])
def test_tensorflows_batches_arrive_in_their_rows(backend: Backend, batch_size):
    source = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    arrived = []
    for first in range(0, 20, batch_size):
        tensor = tf.constant(source[first : first + batch_size]) * 1
        # Copied, as the job copies it into its matrix: the array is a view of the tensor.
        arrived.append(backend.to_host(backend.from_dlpack(tf.experimental.dlpack.to_dlpack(tensor))).copy())
        backend.synchronize()
    np.testing.assert_array_equal(np.concatenate(arrived), source)


def test_memory_and_batches_are_counted(backend: Backend):
    assert backend.free_bytes() > 0
    assert backend.batch_size(224) >= 1
    assert backend.describe()["device"]


def test_a_dlpack_capsule_of_tensorflow_holds_the_rows_and_can_be_taken_once():
    """TensorFlow's side of the hand-over, which is the same on a card; CuPy's side needs one."""
    source = np.arange(12, dtype=np.float32).reshape(4, 3)
    capsule = tf.experimental.dlpack.to_dlpack(tf.constant(source))
    np.testing.assert_array_equal(CpuBackend().from_dlpack(capsule), source)
    with pytest.raises(ValueError, match="incorrect name"):
        CpuBackend().from_dlpack(capsule)


def test_what_is_done_for_each_item_comes_in_the_order_of_the_items(backend):
    def work(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    items = [0.02, 0.0, 0.01, 0.0, 0.0, 0.003]
    assert list(backend.each(work, iter(items), bytes_each=1)) == items


def test_an_error_in_one_item_is_raised_and_threads_and_warnings_are_as_before(backend):
    before, filters = _threads(), list(warnings.filters)
    with pytest.raises(ZeroDivisionError):
        list(backend.each(lambda number: 1 // number, [1, 0, 1], bytes_each=1))
    assert (_threads(), warnings.filters) == (before, filters)


def _threads() -> list[tuple[str, int]]:
    return sorted((one["filepath"], one["num_threads"]) for one in threadpool_info())

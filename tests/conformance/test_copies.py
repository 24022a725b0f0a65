"""What is reported of copies is what is reported of their originals, whatever a product of matrices gives them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import make_blobs

from gpu_cluster.backend import HeldRows
from gpu_cluster.clustering.cluster import cluster
from gpu_cluster.clustering.reduce import reduce
from gpu_cluster.clustering.score import score
from gpu_cluster.clustering.tsne import lay_out
from gpu_cluster.config import ClusterConfig, ReduceConfig, ReportConfig, ScoreConfig
from gpu_cluster.events import Observer
from gpu_cluster.manifest import Manifest

N = 200


@pytest.fixture
def originals() -> np.ndarray:
    """Every row of the second half is a copy of one in the first; two of the first half are copies of row 3."""
    firsts = np.arange(N // 2)
    firsts[[40, 70]] = 3
    return np.concatenate([firsts, firsts])


@pytest.fixture
def embeddings(originals) -> np.ndarray:
    """Rows whose copies differ in their last bits, as they do behind a product of matrices."""
    points, _ = make_blobs(N, 40, centers=4, cluster_std=2.0, random_state=0)
    x = points.astype(np.float32)[originals]
    x *= 1 + np.float32(1e-6) * np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    return x


@pytest.mark.parametrize("sample", [N, 60])
def test_copies_get_all_that_their_originals_get(backend, embeddings, originals, sample):
    given: dict[str, Any] = {"backend": backend, "originals": originals}
    random: dict[str, Any] = {**given, "seed": 0, "observer": Observer()}
    projection = reduce(HeldRows(backend.from_host(embeddings), backend), ReduceConfig(), **given)
    clustering = cluster(projection.x, 4, ClusterConfig(n_init=2), sample=20_000, **random)
    scores = score(projection.x, clustering, ScoreConfig(silhouette_sample=sample), **random)
    layout = lay_out(projection.x, projection.pcs, ReportConfig(layout_sample=sample), **random)
    for values in (clustering.labels, clustering.distances, projection.pcs):
        found = backend.to_host(values)
        np.testing.assert_array_equal(found, found[originals])
    for found in (scores.silhouettes, layout):
        np.testing.assert_array_equal(found, found[originals])
    # Of the rows at one distance the original, which comes first, is the medoid.
    np.testing.assert_array_equal(clustering.medoids, originals[clustering.medoids])
    # What the sample holds of an original or of any of its copies is told of all of them.
    assert (~np.isnan(scores.silhouettes)).sum() >= scores.n_silhouette


def test_originals_are_positions_among_the_rows_and_none_where_nothing_is_a_copy(tmp_path):
    paths = tuple("abcde")
    manifest = Manifest(tmp_path, paths, bad={1: "damaged"}, duplicates={3: 0, 4: 2})
    np.testing.assert_array_equal(manifest.originals(np.array([0, 2, 3, 4])), [0, 1, 0, 1])
    assert Manifest(tmp_path, paths).originals(np.arange(5)) is None

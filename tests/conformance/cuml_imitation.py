"""What cuML 26.10 does otherwise than scikit-learn, in NumPy, written from its sources.

It stands for cuML on machines without a card. Only the numbers are imitated, not the speed. Each class has the
parameters and attributes that `gpu.py` uses.
"""

from __future__ import annotations

import numpy as np
from sklearn import cluster as sk


class KMeans:
    """`cuml.cluster.KMeans` from given centres, in float32, with the stopping rule of cuVS (cuvs/cluster/kmeans.hpp).

    It ends when the inertia divided by the one before is above 1 - tol, or when the squared shift of the centres is
    below tol. `read` are the rows that it had on the card at a time: all of them, or with `device_buffer_samples` a
    buffer of that many rows of the host.
    """

    def __init__(
        self,
        *,
        n_clusters: int,
        init: np.ndarray,
        n_init: int,
        max_iter: int,
        tol: float,
        device_buffer_samples: int = 0,
        output_type: str = "numpy",
    ) -> None:
        assert tol > 0, "invalid parameter (tol<=0)"
        assert init.shape[0] == n_clusters
        assert n_init == 1
        self._init, self._max_iter, self._tol, self._buffered = init, max_iter, tol, device_buffer_samples
        self.read: list[int] = []

    def _nearest(self, x: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        step = self._buffered or len(x)
        parts = [x[first : first + step] for first in range(0, len(x), step)]
        self.read += [len(part) for part in parts]
        labels, squared = zip(*(nearest(part, centres) for part in parts), strict=True)
        return np.concatenate(labels), np.concatenate(squared)

    def fit(self, x: np.ndarray) -> KMeans:
        assert isinstance(x, np.ndarray)
        centres, before = self._init.astype(np.float32), np.float32(0)
        for n_iter in range(1, self._max_iter + 1):
            labels, squared = self._nearest(x, centres)
            cost = squared.sum(dtype=np.float32)
            moved = centres.copy()
            for label in np.unique(labels):
                moved[label] = x[labels == label].mean(axis=0, dtype=np.float32)
            shift = np.square(moved - centres).sum(dtype=np.float32)
            centres = moved
            done = cost != 0 and n_iter > 1 and cost / before > 1 - self._tol
            before = cost
            self.n_iter_ = n_iter
            if done or shift < self._tol:
                break
        self.cluster_centers_ = centres
        self.labels_ = self._nearest(x, centres)[0].astype(np.int32)
        return self


def nearest(x: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the label and the squared distance of the nearest centre, by |x|^2 - 2 x c + |c|^2 in float32."""
    squared = np.square(x).sum(axis=1)[:, None] - 2 * x @ centres.T + np.square(centres).sum(axis=1)
    labels = squared.argmin(axis=1)
    return labels, np.maximum(squared[np.arange(len(x)), labels], 0)


class HDBSCAN:
    """`cuml.cluster.HDBSCAN`: `min_samples` does not count the row itself (cuml/cluster/hdbscan/hdbscan.pyx)."""

    def __init__(
        self, *, min_cluster_size: int = 5, min_samples: int | None = None, output_type: str = "numpy"
    ) -> None:
        counted = (min_samples or min_cluster_size) + 1
        self._engine = sk.HDBSCAN(min_cluster_size=min_cluster_size, min_samples=counted, copy=True)

    def fit_predict(self, x: np.ndarray) -> np.ndarray:
        return self._engine.fit_predict(x)


class SpectralClustering:
    """`cuml.cluster.SpectralClustering`: one label if there are more groups than eigenvectors (cuml#8569)."""

    def __init__(self, *, n_clusters: int, n_neighbors: int, random_state: int, output_type: str = "numpy") -> None:
        self._k = n_clusters
        self._engine = sk.SpectralClustering(
            n_clusters=n_clusters, affinity="nearest_neighbors", n_neighbors=n_neighbors, random_state=random_state
        )

    def fit_predict(self, x: np.ndarray) -> np.ndarray:
        if self._k > (len(x) - 1) // 3:
            return np.zeros(len(x), np.int32)
        return self._engine.fit_predict(x)

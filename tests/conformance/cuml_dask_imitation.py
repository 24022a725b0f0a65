"""What `cuml.dask.cluster.KMeans` 26.10 does with its input, over a real Dask client, written from its source.

Each worker is asked for its own pieces, as lists, and everything that it computes from them is checked to be there:
cuML takes the pieces where they lie. Only the numbers are imitated; there is no NCCL.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from distributed import futures_of, wait

from .cuml_imitation import nearest


class KMeans:
    """One process a card: the sums of the rows of each worker are added up in every iteration.

    A call stops as cuVS does, in float32: see `cuml_imitation.KMeans`. `placed` are the rows that each worker held.
    """

    placed: dict[str, int]

    def __init__(
        self, *, client: Any, n_clusters: int, init: np.ndarray, n_init: int, max_iter: int, tol: float
    ) -> None:
        assert isinstance(init, np.ndarray)
        assert init.shape[0] == n_clusters
        assert n_init == 1
        assert tol > 0
        self._client, self._init, self._max_iter, self._tol = client, init, max_iter, tol

    def fit(self, rows: Any) -> KMeans:
        assert len(rows.chunks[1]) == 1, "Input array cannot be chunked along axis 1"
        pieces = futures_of(self._client.persist(rows))
        wait(pieces)
        holders = self._client.who_has(pieces)
        by_worker: dict[str, list[Any]] = {}
        for piece in pieces:
            by_worker.setdefault(holders[piece.key][0], []).append(piece)
        type(self).placed = {
            worker: self._client.submit(_count, parts, workers=[worker], pure=False).result()
            for worker, parts in by_worker.items()
        }
        centres, before = self._init, np.float32(np.inf)
        for n_iter in range(1, self._max_iter + 1):
            sums, sizes, cost = self._pass(by_worker, centres)
            moved = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centres).astype(np.float32)
            shift = np.square(moved - centres).sum(dtype=np.float32)
            centres, self.n_iter_ = moved, n_iter
            if (n_iter > 1 and cost / before > 1 - self._tol) or shift < self._tol:
                break
            before = cost
        self.cluster_centers_ = centres
        return self

    def _pass(self, by_worker: dict[str, list[Any]], centres: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.float32]:
        found = self._client.gather(
            [
                self._client.submit(_sums, parts, centres, workers=[worker], pure=False)
                for worker, parts in by_worker.items()
            ]
        )
        sums, sizes, costs = (np.sum(part, axis=0) for part in zip(*found, strict=True))
        return sums, sizes, np.float32(costs)


def _count(parts: list[np.ndarray]) -> int:
    return sum(len(part) for part in parts)


def _sums(parts: list[np.ndarray], centres: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    rows = np.concatenate(parts)
    labels, squared = nearest(rows, centres)
    member = labels[:, None] == np.arange(len(centres))
    return member.T @ rows.astype(np.float64), member.sum(axis=0), float(squared.sum())

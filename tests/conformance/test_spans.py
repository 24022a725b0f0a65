"""What is mapped over spans of rows: the same to the byte in this process and in workers, on every device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gpu_cluster import executor as executors
from gpu_cluster.backend import Backend
from gpu_cluster.backend.rows import SPAN_ROWS
from gpu_cluster.clustering.reduce import reduce
from gpu_cluster.config import ExecutorConfig, ReduceConfig
from gpu_cluster.events import Observer
from gpu_cluster.store.embeddings import ScratchShards
from gpu_cluster.store.stored import StoredRows

N, D = 2 * SPAN_ROWS + 100, 12


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Embeddings in two shards; rows that follow each other lie in both."""
    folder = tmp_path_factory.mktemp("shards")
    x = np.random.default_rng(0).gamma(2, size=(N, D)).astype(np.float32) * np.arange(1, D + 1, dtype=np.float32)
    kept = ScratchShards(folder, {"n_features": D}, Observer())
    found = [kept.keep([f"{row:032x}" for row in range(at, N, 2)], x[at::2], [None] * len(x[at::2])) for at in (0, 1)]
    return [path for path in found if path is not None]


@pytest.fixture(scope="module")
def workers() -> Iterator[executors.Executor]:
    with executors.opened(ExecutorConfig(workers=2), "cpu", Observer()) as executor:
        yield executor


@pytest.mark.parametrize("scaling", ["sqrt-l2", "minmax"])
def test_reduce_gives_the_same_bytes_in_workers(backend: Backend, shards, workers, scaling):
    def rows(executor: executors.Executor | None) -> StoredRows:
        shard_of, row_of = np.arange(N, dtype=np.int32) % 2, np.arange(N, dtype=np.int32) // 2
        return StoredRows(shards, shard_of, row_of, D, backend, executor=executor)

    before = workers.shares().get("reduce", {})
    n_before = sum(share.n_tasks for share in before.values())
    here, there = (
        reduce(rows(executor), ReduceConfig(scaling=scaling, pca=4), backend=backend) for executor in (None, workers)
    )
    # Three spans are read twice, and with columns scaled by their range once more.
    n_tasks = sum(share.n_tasks for share in workers.shares()["reduce"].values()) - n_before
    assert n_tasks == (9 if scaling == "minmax" else 6)
    for name in ("x", "pcs"):
        one, other = (backend.to_host(getattr(projection, name)) for projection in (here, there))
        assert one.shape[0] == N
        assert one.tobytes() == other.tobytes()

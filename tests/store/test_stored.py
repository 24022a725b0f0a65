"""Embeddings that are read from shards in blocks are those of a matrix in memory, block by block and bit by bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gpu_cluster.backend import CpuBackend, HeldRows, Rows, rows
from gpu_cluster.clustering.near_duplicates import find_near_duplicates
from gpu_cluster.clustering.reduce import reduce
from gpu_cluster.config import ReduceConfig
from gpu_cluster.errors import StoreError
from gpu_cluster.events import Observer
from gpu_cluster.store import stored
from gpu_cluster.store.stored import StoredRows
from tests.store.embeddings import shards_in, some

CPU = CpuBackend()
N, D = 90, 1024


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    # Blocks of 7 rows, of which three are read at a time.
    monkeypatch.setattr(rows, "BLOCK_ROWS", 7)
    monkeypatch.setattr(stored, "BLOCK_ROWS", 7)
    monkeypatch.setattr(stored, "WINDOW_BYTES", 4 * D * 7 * 3)


def written(root: Path, order: np.ndarray) -> tuple[np.ndarray, StoredRows]:
    """Keep N embeddings in shards of 16, in some order; return them in the order of their hashes, and as stored."""
    hashes, x = some(N)
    x = np.abs(x)
    shards, at = [], {}
    for first in range(0, N, 16):
        part = order[first : first + 16]
        shards.append(shards_in(root).keep([hashes[row] for row in part], x[part], [None] * len(part)))
        at.update({int(row): (len(shards) - 1, place) for place, row in enumerate(part)})
    # A copy of another picture lies where that lies.
    originals = [*range(N), 3, 50, 3]
    places = np.array([at[row] for row in originals])
    found = StoredRows([one for one in shards if one is not None], places[:, 0], places[:, 1], D, CPU)
    return x[originals], found


@pytest.fixture(params=["in order", "in any order"])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[np.ndarray, StoredRows]:
    order = np.arange(N) if request.param == "in order" else np.random.default_rng(0).permutation(N)
    return written(tmp_path, order)


def test_no_rows_are_an_empty_matrix(both):
    x, found = both
    nothing = np.empty(0, np.int64)
    taken = found.take(nothing)
    assert (taken.shape, taken.dtype) == (x[nothing].shape, x.dtype)


def test_the_blocks_are_those_of_the_matrix_each_time_they_are_read(both):
    x, found = both
    held = HeldRows(x, CPU)
    assert found.shape == held.shape == (N + 3, D)
    for _ in range(2):
        pairs = list(zip(found.blocks(), held.blocks(), strict=True))
        assert len(pairs) == 14
        for (slice_, block), (expected_slice, expected) in pairs:
            assert slice_ == expected_slice
            np.testing.assert_array_equal(block, expected)


def test_some_rows_and_all_rows_are_those_of_the_matrix(both):
    x, found = both
    chosen = np.array([91, 4, 4, 60, 0])
    np.testing.assert_array_equal(found.take(chosen), x[chosen])
    np.testing.assert_array_equal(found.whole(), x)


@pytest.mark.parametrize(
    "options", [{}, {"scaling": "minmax"}, {"scaling": "l2", "pca": "none"}], ids=["default", "minmax", "no PCA"]
)
def test_what_is_made_of_them_does_not_depend_on_where_they_are(both, options):
    x, found = both

    def made(of: Rows) -> list[np.ndarray]:
        space = reduce(of, ReduceConfig.model_validate(options), backend=CPU, sweep_space="scaled")
        return [space.x, space.pcs, space.sweep_x]

    for one, other in zip(made(found), made(HeldRows(x, CPU)), strict=True):
        np.testing.assert_array_equal(one, other)
    pairs = [find_near_duplicates(of, backend=CPU, observer=Observer()) for of in (found, HeldRows(x, CPU))]
    assert pairs[0] == pairs[1]
    assert {(pair.row, pair.other) for pair in pairs[0]} >= {(50, 91)}


def test_a_reader_that_stops_early_leaves_nothing_behind(both):
    _, found = both
    blocks = found.blocks()
    next(blocks)
    blocks.close()
    assert len(list(found.blocks())) == 14


def test_a_shard_that_is_gone_says_what_to_do(both):
    _, found = both
    found._shards[2].unlink()
    with pytest.raises(StoreError, match=r"shard-.*\.parquet' again: it was removed.*no_cache=True.*same command"):
        list(found.blocks())


def test_a_shard_that_was_cut_short_says_what_to_do(both):
    _, found = both
    found._shards[0].write_bytes(found._shards[0].read_bytes()[:-100])
    with pytest.raises(StoreError, match="removed or changed while the job ran"):
        found.whole()

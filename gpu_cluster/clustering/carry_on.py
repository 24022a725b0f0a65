"""Carries k-means on with all rows, for several numbers of clusters in the same passes.

Input: a matrix x (n, d), and for each k the centres that restarts on a sample of its rows ended with. Output: better
centres, and their inertia over all rows. This module must not know how the sample was drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from gpu_cluster.backend import Array, Backend, KMeansFit
from gpu_cluster.backend.blockwise import blocks
from gpu_cluster.clustering.kmeans import agreement, bytes_of_a_fit, is_better, means, nearest, one_hot
from gpu_cluster.config import ClusterConfig

# Most iterations over all rows. The sample's centres are the means of some hundred rows or more of each cluster, so
# that the first iteration gains nearly all that can be gained; a clustering that is used goes on until it ends.
MOST_ITERATIONS = 5
# They end before, when an iteration has lowered no inertia by more than this share.
_GAIN = 1e-4

# Values in the temporaries of one block of rows: a CPU keeps as many in its cache.
_BLOCK_VALUES = 1 << 20


@dataclass(frozen=True)
class Carried:
    """Centres (k, d), the sum of the squared distances of all rows to the nearest, and iterations over all rows."""

    centres: Array
    inertia: float
    n_iter: int


@dataclass(frozen=True)
class Best:
    """The best of some restarts: its centres and iterations, its inertia, and the agreement of the others with it."""

    fit: KMeansFit
    inertia: float
    agreement: float | None


def best_on_more_rows(
    sample: Array, more: Array, starts: Iterable[Array], config: ClusterConfig, *, backend: Backend
) -> Best:
    """Restart k-means on a sample (m, d), carry all restarts on with more rows (n, d), and compare them there.

    What restarts find depends on the sample where it is small, so that they agree less than on more rows; some
    iterations with these make up for it.
    """

    def restart(start: Array) -> KMeansFit:
        return backend.fit_kmeans(sample, start, max_iter=config.max_iter, tol=config.tol)

    ended = list(backend.each(restart, starts, bytes_each=bytes_of_a_fit(sample)))
    found = carry_on(more, [fit.centres for fit in ended], max_iter=config.max_iter, backend=backend)
    best = 0
    for number, carried in enumerate(found):
        if is_better(carried.inertia, found[best].inertia):
            best = number
    labels = [backend.to_host(nearest(more, carried.centres, backend)) for carried in found]
    centres = found[best].centres
    return Best(
        KMeansFit(centres, ended[best].n_iter + found[best].n_iter),
        found[best].inertia,
        agreement(labels, best, centres.shape[0]),
    )


def carry_on(x: Array, starts: Sequence[Array], *, max_iter: int, backend: Backend) -> list[Carried]:
    """Run some iterations of Lloyd's algorithm on x (n, d) from each of several sets of centres (k, d) float32.

    Each pass over the rows serves all sets: the products of a block of rows with all centres are one product of
    matrices. Beyond x, memory for two float64 numbers for each row and column of a block, and (K, d) float64 sums, K
    being the number of centres in all sets.
    """
    squares = _sum_of_squares(x, backend)
    found: list[Carried] = []
    centres = list(starts)
    for n_iter in range(min(MOST_ITERATIONS, max_iter) + 1):
        sums, sizes = _assign(x, centres, backend)
        before, found = (
            found,
            [
                Carried(own, squares + _without_squares(own, its_sums, its_sizes, backend), n_iter)
                for own, its_sums, its_sizes in zip(centres, sums, sizes, strict=True)
            ],
        )
        if before and all(new.inertia >= old.inertia * (1 - _GAIN) for old, new in zip(before, found, strict=True)):
            break
        centres = [means(*each, backend) for each in zip(sums, sizes, centres, strict=True)]
    return found


def without_one(x: Array, centres: Array, *, backend: Backend) -> Array:
    """Return the centres (k - 1, d) without the one whose rows of x (n, d) are nearest to the other centres.

    Without it, the inertia grows least: each of its rows then belongs to the centre that was its second nearest.
    """
    xp, k = backend.xp, centres.shape[0]
    offsets = xp.sum(centres * centres, axis=1)
    cost: Array = 0.0
    for rows in blocks(x.shape[0], k):
        apart = xp.astype(offsets - 2 * (x[rows, :] @ xp.matrix_transpose(centres)), xp.float64)
        member = one_hot(xp.argmin(apart, axis=1), k, backend)
        second = xp.min(xp.where(member > 0, xp.full_like(apart, np.inf), apart), axis=1)
        cost = cost + xp.sum(member * (second - xp.min(apart, axis=1))[:, None], axis=0)
    kept = np.delete(np.arange(k), int(np.argmin(backend.to_host(cost))))
    return xp.take(centres, backend.from_host(kept), axis=0)


def _sum_of_squares(x: Array, backend: Backend) -> float:
    xp, total = backend.xp, 0.0
    for rows in blocks(x.shape[0], x.shape[1], most=_BLOCK_VALUES):
        block = xp.astype(x[rows, :], xp.float64)
        total = total + xp.sum(block * block)
    return float(backend.to_host(total))


def _without_squares(centres: Array, sums: Array, sizes: Array, backend: Backend) -> float:
    """Return what is to be added to the sum of |x|^2 for the inertia: the sums of -2 x c and of |c|^2 over the rows."""
    xp = backend.xp
    centres = xp.astype(centres, xp.float64)
    return float(backend.to_host(xp.sum(sizes[:, None] * centres * centres - 2 * centres * sums)))


def _assign(x: Array, centres: Sequence[Array], backend: Backend) -> tuple[list[Array], list[Array]]:
    """Return for each set of centres (k, d) the sums (k, d) and sizes (k,) float64 of the clusters of nearest rows."""
    xp = backend.xp
    axes = xp.concat(list(centres))
    offsets = xp.sum(axes * axes, axis=1)[:, None]
    ends = np.cumsum([own.shape[0] for own in centres])
    parts = [slice(int(end) - own.shape[0], int(end)) for own, end in zip(centres, ends, strict=True)]
    codes = [backend.from_host(np.arange(own.shape[0]))[:, None] for own in centres]

    def of_block(rows: slice) -> tuple[Array, Array]:
        block = x[rows, :]
        # |x - c|^2 without |x|^2, one row for each centre: so an argmin reads whole rows of memory.
        apart = offsets - 2 * (axes @ xp.matrix_transpose(block))
        members = [xp.argmin(apart[part, :], axis=0)[None, :] == code for part, code in zip(parts, codes, strict=True)]
        member = xp.astype(xp.concat(members), xp.float64)
        return member @ xp.astype(block, xp.float64), xp.sum(member, axis=1)

    sums: Array = 0.0
    sizes: Array = 0.0
    parts_of_x = blocks(x.shape[0], int(ends[-1]), most=_BLOCK_VALUES)
    for its_sums, its_sizes in backend.each(of_block, parts_of_x, bytes_each=16 * _BLOCK_VALUES):
        sums, sizes = sums + its_sums, sizes + its_sizes
    return [sums[part, :] for part in parts], [sizes[part] for part in parts]

"""Embeddings -> pictures that show nearly the same: copies at another size or quality, cropped a little, brightened.

Must not know clusters or labels.
"""

from __future__ import annotations

import numpy as np

from gpu_cluster.backend import Array, Backend, IntArray
from gpu_cluster.clustering import kmeans
from gpu_cluster.events import Observer
from gpu_cluster.results import NearDuplicate

# Cosine of the default embeddings. Of 8 photos saved again at quality 50, brightened or cropped by a twentieth all are
# above it, scaled to half 5 of 8, cropped by a fifth none; of 210 flowers drawn apart the nearest two have 0.95.
NEARLY_THE_SAME = 0.97

# Every picture is compared with every other: 0.8 TFLOP at this many.
MOST_IMAGES = 20_000


def find_near_duplicates(
    x: Array, *, backend: Backend, observer: Observer, originals: IntArray | None = None
) -> tuple[NearDuplicate, ...]:
    """Return for each row of the embeddings x (n, d) the one most like it where their cosine is above 0.97.

    Each pair is named once. Copies of the same bytes, as `originals` names them (see `copies`), are no pairs.
    """
    xp = backend.xp
    n_rows = x.shape[0]
    rows = np.arange(n_rows) if originals is None else np.flatnonzero(originals == np.arange(n_rows))
    n = len(rows)
    if n > MOST_IMAGES:
        observer.notice(f"Near duplicates are looked for among up to {MOST_IMAGES:,} pictures; there are {n:,}")
        return ()
    x = xp.take(x, backend.from_host(rows), axis=0)
    x = x / kmeans.row_norms(x, backend)
    pairs: dict[tuple[int, int], float] = {}
    numbers = backend.from_host(np.arange(n))
    for part in kmeans.blocks(n, n):
        cosines = x[part, :] @ xp.matrix_transpose(x)
        cosines = xp.where(numbers[part, None] == numbers[None, :], -xp.ones_like(cosines), cosines)
        best, which = backend.to_host(xp.max(cosines, axis=1)), backend.to_host(xp.argmax(cosines, axis=1))
        for at in np.flatnonzero(best > NEARLY_THE_SAME):
            one, other = sorted((part.start + int(at), int(which[at])))
            pairs[one, other] = float(best[at])
    found = [
        NearDuplicate(int(rows[one]), int(rows[other]), min(cosine, 1.0)) for (one, other), cosine in pairs.items()
    ]
    return tuple(sorted(found, key=lambda pair: (-round(pair.cosine, 4), pair.row, pair.other)))

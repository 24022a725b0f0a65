"""Finds near duplicates: copies of a picture at another size or quality, cropped a little, or brightened.

Input: embeddings (n, d). Output: pairs of rows. This module must not know clusters or labels.
"""

from __future__ import annotations

import numpy as np

from gpu_cluster.backend import Backend, IntArray, Rows
from gpu_cluster.backend.blockwise import blocks
from gpu_cluster.clustering import kmeans
from gpu_cluster.events import Observer
from gpu_cluster.results import NearDuplicate

# Cosine of two embeddings. It was measured on 8 photos with VGG16 alone: all 8 copies are above it when saved again at
# quality 50, when brightened and when cropped by a twentieth; 5 of 8 when scaled to half; none when cropped by a fifth.
# Of the 210 flowers, which were drawn separately, the nearest two have 0.95. On 8 other photos, VGG16 and the default
# features side by side: saved at quality 50 8 and 7, brightened 8 and 8, cropped by a twentieth 8 and 8, scaled to half
# 2 and 1; the nearest two drawn flowers 0.95 and 0.94.
NEARLY_THE_SAME = 0.97

# Every picture is compared with every other, which takes 0.8 TFLOP for this many.
MOST_IMAGES = 20_000


def find_near_duplicates(
    embeddings: Rows, *, backend: Backend, observer: Observer, originals: IntArray | None = None
) -> tuple[NearDuplicate, ...]:
    """Return, for each row of the embeddings (n, d), the row most like it if their cosine is above 0.97.

    Each pair appears once. Copies with the same bytes, as named by `originals` (see `copies`), do not count as pairs.
    For more than 20,000 pictures this reports a notice and returns no pairs.
    """
    xp = backend.xp
    n_rows = embeddings.shape[0]
    rows = np.arange(n_rows) if originals is None else np.flatnonzero(originals == np.arange(n_rows))
    n = len(rows)
    if n > MOST_IMAGES:
        observer.notice(f"Near duplicates were not searched: there are {n:,} pictures, more than {MOST_IMAGES:,}")
        return ()
    x = embeddings.take(rows)
    x = x / kmeans.row_norms(x, backend)
    pairs: dict[tuple[int, int], float] = {}
    numbers = backend.from_host(np.arange(n))
    for part in blocks(n, n):
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

"""Embeddings to keep in a store, and what is found of them again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gpu_cluster.events import Observer
from gpu_cluster.store.embeddings import EmbeddingShards
from gpu_cluster.store.store import Store

KEY = {"backbone": "none", "n_features": 1024}


def some(n: int, first: int = 0) -> tuple[list[str], np.ndarray]:
    """Return n content hashes, and numbers to keep for them."""
    hashes = [f"{number:032x}" for number in range(first, first + n)]
    return hashes, np.random.default_rng(first).normal(size=(n, 1024)).astype(np.float32)


def shards_in(root: Path, observer: Observer | None = None) -> EmbeddingShards:
    return Store(root, observer or Observer()).embeddings(KEY)


def found(shards: EmbeddingShards, wanted: Sequence[str]) -> dict[str, tuple[np.ndarray, str | None]]:
    """Return what is kept of each hash; a hash that comes twice is an error."""
    kept: dict[str, tuple[np.ndarray, str | None]] = {}
    for shard in shards.find(wanted):
        for index, row, why in zip(shard.at, shard.x, shard.reasons, strict=True):
            assert wanted[index] not in kept
            kept[wanted[index]] = (row, why)
    return kept

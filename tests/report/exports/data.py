"""Rows of a run that the tests of the exports have in common: names and labels that a format can stumble over."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from gpu_cluster.backend import CpuBackend, HeldRows

NAMES = [
    "a.png",
    "sub/b.png",
    r"na\xefve.png",
    "tab\there.png",
    '"quoted", \u202eright.png',
    r"back\slash.png",
    "trailing .png",
]
LABELS = ["rose", None, "tab\there", "new\nline", "=1+1", "", "\u00e9 \U0001f339"]


def assigned(names: list[str] = NAMES, **columns: Any) -> pd.DataFrame:
    """Return a table like `assignments.parquet`."""
    n = len(names)
    random = np.random.default_rng(n)
    found = {
        "path": names,
        "cluster": np.arange(n, dtype=np.int32) % 3,
        "label": pd.Series((LABELS * n)[:n], dtype="str"),
        "distance": random.random(n, dtype=np.float32),
        "silhouette": random.random(n, dtype=np.float32) - np.float32(0.5),
        "is_medoid": np.arange(n) < 3,
        **{name: random.normal(size=n).astype(np.float32) for name in ("pc1", "pc2", "tsne1", "tsne2")},
        "content_hash": [f"{number:032x}" for number in range(n)],
    }
    return pd.DataFrame(found | columns)


def held(x: np.ndarray) -> HeldRows:
    return HeldRows(x, CpuBackend())


def vectors(n: int, d: int = 40) -> np.ndarray:
    return np.random.default_rng(n).normal(size=(n, d)).astype(np.float32)

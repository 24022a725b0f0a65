"""A backend whose arrays refuse to leave their device, and a record of everything that does.

It stands for a card on machines that have none: arrays are array-api-strict's, on a device that NumPy cannot read.
Its PCA and the rule that ends its k-means are those of the GPU's backend, in the array API; one iteration of k-means is
what cuML does, imitated. Other engines compute as on the CPU, behind the seam, as cuML would on the card.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import IO, Any

import array_api_strict
import numpy as np
import pandas as pd
import pytest

from gpu_cluster.backend import Array, CpuBackend, HostRows, KMeansFit, PCAFit, Rows
from gpu_cluster.backend.base import HostArray, Scaling
from gpu_cluster.backend.blockwise import fit_pca, lloyd
from gpu_cluster.config import Algorithm

from . import cuml_imitation

# cuML wants a tolerance above 0.
TINY = float(np.finfo(np.float32).tiny)

DEVICE = array_api_strict.Device("device1")

# Ways off the device that array-api-strict leaves open, besides the one that it closes (`__array__`).
_SIDE_DOORS = ("__dlpack__", "__iter__", "__float__", "__int__", "__bool__", "__index__", "__complex__")


class LeakError(AssertionError):
    """Something left the device other than by `to_host`."""


class Table:
    """Stands for cuDF's DataFrame: its columns can be arrays of the device, it writes Parquet, and no text."""

    def __init__(self, columns: Mapping[str, Any]) -> None:
        on_device = type(array_api_strict.asarray(0))
        self.inside = pd.DataFrame(
            {name: _inside(column) if isinstance(column, on_device) else column for name, column in columns.items()}
        )

    def to_parquet(self, file: IO[bytes], *, index: bool) -> None:
        self.inside.to_parquet(file, index=index)


class StrictBackend(CpuBackend):
    """The CPU's engines on arrays that only `to_host` can read; `transfers` are the shapes that it did."""

    name = "strict"

    def __init__(self, *, most_rows: int | None = None) -> None:
        """Make a device; one that has room for spaces of up to `most_rows` rows only, if that is given."""
        self.transfers: list[tuple[int, ...]] = []
        self._most_rows = most_rows

    @property
    def xp(self) -> ModuleType:
        return array_api_strict

    @property
    def frames(self) -> Any:
        return SimpleNamespace(DataFrame=Table, Series=pd.Series)

    def to_pandas(self, table: Table) -> pd.DataFrame:
        return table.inside

    def to_host(self, array: Array) -> HostArray:
        self.transfers.append(tuple(array.shape))
        return _inside(array).copy()

    def from_host(self, array: HostArray) -> Array:
        return array_api_strict.asarray(array, device=DEVICE)

    def from_dlpack(self, capsule: Any) -> Array:
        return self.from_host(super().from_dlpack(capsule))

    def empty(self, shape: tuple[int, int]) -> Array:
        return self.from_host(super().empty(shape))

    def empty_space(self, shape: tuple[int, int]) -> Array:
        fits = self._most_rows is None or shape[0] <= self._most_rows
        return self.empty(shape) if fits else HostRows(shape, self)

    def strongest(self, symmetric: Array, m: int) -> tuple[Array, Array, float]:
        values, vectors = array_api_strict.linalg.eigh(symmetric)
        return values[-m:], vectors[:, -m:], float(np.sum(_inside(values)))

    def fit_pca(self, x: Rows, n_components: int, *, scale: Scaling) -> PCAFit:
        return fit_pca(x, n_components, scale=scale, backend=self)

    def fit_kmeans(self, x: Array, starts: Array, *, max_iter: int, tol: float) -> KMeansFit:
        def iterate(centres: Array) -> tuple[Array, Array]:
            init, streamed = _inside(centres), isinstance(x, HostRows)
            fit = cuml_imitation.KMeans(
                n_clusters=len(init),
                init=init,
                n_init=1,
                max_iter=1,
                tol=TINY,
                device_buffer_samples=1000 if streamed else 0,
            )
            fit.fit(x.on_host if streamed else _inside(x))
            return self.from_host(fit.cluster_centers_), self.from_host(fit.labels_)

        return lloyd(x, starts, iterate, max_iter=max_iter, tol=tol, backend=self)

    def group(self, x: Array, algorithm: Algorithm, *, k: int, seed: int) -> Array:
        return self.from_host(super().group(_inside(x), algorithm, k=k, seed=seed))

    def tsne(self, x: Array, *, seed: int) -> Array:
        return self.from_host(super().tsne(_inside(x), seed=seed))

    def label_scores(self, truth: HostArray, labels: Array) -> dict[str, float]:
        return super().label_scores(truth, _inside(labels))


def _inside(array: Array) -> HostArray:
    """Read an array as the device itself does."""
    assert array.device == DEVICE, f"an array of shape {array.shape} was made on {array.device}, not on the device"
    return np.asarray(array._array)


@contextmanager
def side_doors_closed() -> Iterator[None]:
    """Make every other way of reading an array of the device raise `LeakError`."""
    kind = type(array_api_strict.asarray(0))
    with pytest.MonkeyPatch.context() as patch:
        for name in _SIDE_DOORS:
            patch.setattr(kind, name, _closed(name, getattr(kind, name)))
        yield


def _closed(name: str, original: Any) -> Any:
    def door(self: Any, *arguments: Any, **keywords: Any) -> Any:
        if self.device == DEVICE:
            raise LeakError(f"{name} of an array of shape {self.shape} on the device")
        return original(self, *arguments, **keywords)

    return door

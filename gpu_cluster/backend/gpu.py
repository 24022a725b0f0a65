"""The GPU: CuPy, cuML and cuDF on one device.

Do not assume that this code has run on a GPU unless README's 'verified' section says so. `tests/contract` checks every
call in this file against the signatures of the locked wheels.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from gpu_cluster.backend import multi_gpu, tensorflow_devices
from gpu_cluster.backend.base import (
    N_NEIGHBOURS,
    Array,
    Backend,
    HostArray,
    KMeansFit,
    PCAFit,
    Scaling,
    perplexity,
    smallest_group,
)
from gpu_cluster.backend.blockwise import fit_pca, lloyd, mean_variance
from gpu_cluster.backend.places import KMeansPlace, Where, choose_kmeans
from gpu_cluster.backend.rows import HeldRows, HostRows, Rows
from gpu_cluster.config import Algorithm, Precision
from gpu_cluster.errors import DeviceError

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

_GIB = 1 << 30

# Largest share of the GPU's free memory with which the pool starts; TensorFlow needs the rest for the network.
_POOL_SHARE = 0.6
# Memory of one 224 x 224 picture in VGG16: the two largest layers, 224 x 224 x 64 float32 each, exist at the same time,
# and the convolution's workspace needs as much again.
_BYTES_A_PICTURE = 4 * 224 * 224 * 64 * 4
_LARGEST_BATCH = 256

# A matrix with more columns than this and than rows is not given to cuML's PCA, which computes a covariance (d, d) and
# all its eigenvectors, however few the rows are.
_WIDE = 4096
# Largest number of values in a matrix that is given to cuML's PCA, which counts them in 32 bits in places.
_MOST_VALUES = 2**31 - 1

# cuML requires a tolerance above 0; this one never ends an iteration.
_NO_TOLERANCE = float(np.finfo(np.float32).tiny)
# Bytes of a space that k-means copies to the card at a time when it is streamed from the host.
_BUFFER_BYTES = 1 << 28


class GpuBackend(Backend):
    """Computes on the first visible CUDA device; arrays are CuPy's and stay there until `to_host`."""

    name = "gpu"
    precisions: tuple[Precision, ...] = ("tf32", "float32", "float16")
    engines: tuple[str, ...] = ("tensorflow",)
    shard_size = 4096
    tensorflow_device = tensorflow_devices.CARD
    computes_on_host = False
    pads_batches = True
    # The size in bytes of the pool that this process has claimed.
    _claimed: ClassVar[int | None] = None

    def __init__(self) -> None:
        # The Dask client of a cluster whose cards may help.
        self._client: Any = None

    @property
    def xp(self) -> ModuleType:
        import cupy

        return cupy  # type: ignore[no-any-return]

    @property
    def frames(self) -> ModuleType:
        import cudf

        return cudf  # type: ignore[no-any-return]

    def to_pandas(self, table: Any) -> pd.DataFrame:
        return table.to_pandas()  # type: ignore[no-any-return]

    def claim_device(self, matrix_bytes: int) -> None:
        # Only once in a process, because the pool cannot be replaced while arrays are alive. It grows by itself when a
        # later matrix is larger.
        if GpuBackend._claimed is None:
            GpuBackend._claimed = _claim(matrix_bytes)

    def share_device_with(self, library: str) -> None:
        if library == "tensorflow" and (reason := tensorflow_devices.why_no_card()):
            raise DeviceError(f"the network cannot run on the GPU: {reason}; gpu-cluster doctor says what to do")

    def batch_size(self, image_size: int) -> int:
        a_picture = _BYTES_A_PICTURE * (image_size / 224) ** 2
        fitting = int(self.free_bytes() * (1 - _POOL_SHARE) / a_picture)
        return int(np.clip(1 << max(fitting, 1).bit_length() - 1, 1, _LARGEST_BATCH))

    @property
    def repeats(self) -> dict[str, str]:
        return {
            "to_the_byte": "embeddings that the store holds; and, for the same clustered space and the same labels, "
            "centres, distances, inertia, silhouettes, Davies-Bouldin and Calinski-Harabasz scores",
            "within_a_tolerance": "embeddings that the network computes again, principal components and t-SNE, up to "
            "rounding; labels of pictures between two centres, because cuML's k-means adds up in the order in which "
            "threads finish; gpu-cluster selftest shows the tolerances",
        }

    def describe(self) -> dict[str, Any]:
        import cupy

        properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())
        _free, total = cupy.cuda.runtime.memGetInfo()
        libraries = ("cupy-cuda12x", "cuml-cu12", "cudf-cu12", "rmm-cu12", "numpy")
        return {
            "device": self.name,
            "processor": properties["name"].decode(),
            "compute_capability": f"{properties['major']}.{properties['minor']}",
            "memory_bytes": total,
            "driver_cuda": cupy.cuda.runtime.driverGetVersion(),
            "versions": {name: version(name) for name in libraries},
        }

    def from_dlpack(self, capsule: Any) -> Array:
        import cupy

        # This passes the capsule and not the tensor: CuPy would pass a stream to the tensor, which TensorFlow refuses.
        return cupy.from_dlpack(capsule)

    def to_host(self, array: Array) -> HostArray:
        import cupy

        return np.asarray(cupy.asnumpy(array))

    def from_host(self, array: HostArray) -> Array:
        import cupy

        return cupy.asarray(array)

    def synchronize(self) -> None:
        import cupy

        cupy.cuda.get_current_stream().synchronize()

    def free_bytes(self) -> int:
        import cupy

        free, _total = cupy.cuda.runtime.memGetInfo()
        return int(free)

    def available_bytes(self) -> int:
        """Return the memory that is free on the card or, in the pool that this process has claimed, not given out."""
        return self.free_bytes() + _free_in_pool()

    def peak_bytes(self) -> int:
        import rmm.statistics

        found = rmm.statistics.get_statistics()
        return 0 if found is None else int(found.peak_bytes)

    def claimed_bytes(self) -> int:
        return GpuBackend._claimed or 0

    def empty(self, shape: tuple[int, int]) -> Array:
        import cupy

        return cupy.empty(shape, dtype=cupy.float32)

    def empty_space(self, shape: tuple[int, int]) -> Array:
        place = self._place(shape)
        if place.where is Where.CARD:
            return self.empty(shape)
        log.info("the space is kept in the memory of the host, and read in blocks: %s", place.reason)
        return HostRows(shape, self)

    def holds_space(self, shape: tuple[int, int]) -> bool:
        return self._place(shape).where is Where.CARD

    def join(self, client: Any) -> None:
        self._client = client

    def _place(self, shape: tuple[int, int], cards: Sequence[int] = ()) -> KMeansPlace:
        return choose_kmeans(*shape, self.available_bytes(), cards)

    def holds(self, matrix_bytes: int) -> bool:
        # The network needs the rest.
        return matrix_bytes <= _POOL_SHARE * self.available_bytes()

    def strongest(self, symmetric: Array, m: int) -> tuple[Array, Array, float]:
        import cupy

        values, vectors = cupy.linalg.eigh(symmetric)
        return values[-m:], vectors[:, -m:], float(cupy.sum(values))

    def fit_pca(self, x: Rows, n_components: int, *, scale: Scaling) -> PCAFit:
        import cupy
        from cuml.decomposition import PCA

        if not (isinstance(x, HeldRows) and self._suits_cuml(*x.shape)):
            return fit_pca(x, n_components, scale=scale, backend=self)
        scaled = scale(x.whole())
        fit = PCA(n_components=n_components, svd_solver="full", output_type="cupy").fit(scaled)
        return PCAFit(
            mean=cupy.ravel(fit.mean_),
            # In row order, which the matrix products with it read.
            components=cupy.ascontiguousarray(fit.components_),
            explained_variance=cupy.asnumpy(fit.explained_variance_).astype(np.float64),
            total_variance=float(cupy.var(scaled, axis=0, dtype=cupy.float64, ddof=1).sum()),
            solver="cuML's PCA, full",
        )

    def _suits_cuml(self, n: int, d: int) -> bool:
        """Return whether cuML's PCA can fit a matrix (n, d) and has the memory for it."""
        # The scaled copy and cuML's own in column order; the covariance, its eigenvectors and the solver's work space.
        needed = 4 * (2 * n * d + 5 * d * d)
        too_wide = d > max(n, _WIDE)
        # cuML refuses a single column.
        return d > 1 and not too_wide and n * d <= _MOST_VALUES and needed <= self.available_bytes()

    def fit_kmeans(self, x: Array, starts: Array, *, max_iter: int, tol: float) -> KMeansFit:
        if not isinstance(x, HostRows):
            return self._fit(x, starts, max_iter=max_iter, tol=tol)
        cards: dict[str, int] = {}
        if self._client is not None:
            try:
                cards = multi_gpu.cards(self._client)
            except DeviceError as error:
                log.warning("%s; k-means runs on this card alone", error)
        place = self._place(x.shape, list(cards.values()))
        log.info("k-means on %s: %s", place.where, place.reason)
        if place.where is Where.CARDS:
            try:
                return self._fit_on_cards(x, starts, list(cards), max_iter=max_iter, tol=tol)
            except DeviceError as error:
                log.warning("%s; k-means goes on with this card alone, streamed from the host", error)
        if place.where is Where.CARD:
            # The card has room by now: the embeddings were in it when the space was made.
            return self._fit(x.whole(), starts, max_iter=max_iter, tol=tol)
        buffered = max(1, _BUFFER_BYTES // (4 * x.shape[1]))
        return self._fit(x, starts, max_iter=max_iter, tol=tol, buffered=buffered)

    def _fit(self, x: Array, starts: Array, *, max_iter: int, tol: float, buffered: int = 0) -> KMeansFit:
        """Run k-means on this card, on x (n, d) there, or on the host and copied `buffered` rows at a time."""
        from cuml.cluster import KMeans

        k, rows = starts.shape[0], x.on_host if buffered else x

        # One iteration at a time: cuML would compare the tolerance with the relative change of the inertia too, from
        # its second iteration on, and stop long before scikit-learn does (cuvs/cluster/kmeans.hpp). In float32 even the
        # smallest tolerance stops it when rounding makes the inertia grow.
        def iterate(centres: Array) -> tuple[Array, Array]:
            fit = KMeans(
                n_clusters=k,
                init=centres,
                n_init=1,
                max_iter=1,
                tol=_NO_TOLERANCE,
                device_buffer_samples=buffered,
                output_type="cupy",
            ).fit(rows)
            return fit.cluster_centers_, fit.labels_

        return lloyd(x, starts, iterate, max_iter=max_iter, tol=tol, backend=self)

    def _fit_on_cards(
        self, x: HostRows, starts: Array, workers: Sequence[str], *, max_iter: int, tol: float
    ) -> KMeansFit:
        fit = multi_gpu.fit_kmeans(
            x.on_host,
            self.to_host(starts),
            client=self._client,
            workers=workers,
            max_iter=max_iter,
            least_shift=multi_gpu.least_shift(tol, mean_variance(x, self)),
        )
        return KMeansFit(self.from_host(fit.centres), fit.n_iter)

    def group(self, x: Array, algorithm: Algorithm, *, k: int, seed: int) -> Array:
        import cupy
        from cuml.cluster import HDBSCAN, SpectralClustering
        from sklearn.cluster import AgglomerativeClustering

        n = x.shape[0]
        if isinstance(x, HostRows):
            x = x.whole()
        if algorithm == "ward":
            # cuML has only single linkage, so Ward runs on the host with scikit-learn.
            found = AgglomerativeClustering(n_clusters=k, linkage="ward").fit_predict(self.to_host(x))
            return cupy.asarray(found, dtype=cupy.int64)
        if algorithm == "hdbscan":
            size = min(smallest_group(n), n)
            # cuML does not count the row itself among the neighbours, and scikit-learn does.
            found = HDBSCAN(min_cluster_size=size, min_samples=max(1, size - 1), output_type="cupy").fit_predict(x)
            return cupy.asarray(found, dtype=cupy.int64)
        found = SpectralClustering(
            n_clusters=k, n_neighbors=min(N_NEIGHBOURS, n - 1), random_state=seed, output_type="cupy"
        ).fit_predict(x)
        return cupy.asarray(found, dtype=cupy.int64)

    def most_groups(self, algorithm: Algorithm, n: int) -> int:
        # cuML computes at most this many eigenvectors, and with fewer of them than groups it gives all rows one label
        # (cuml#8569).
        return max(1, (n - 1) // 3) if algorithm == "spectral" else n

    def tsne(self, x: Array, *, seed: int) -> Array:
        from cuml.manifold import TSNE

        n = x.shape[0]
        neighbours = min(90, n - 1)
        return TSNE(
            init="pca", perplexity=perplexity(n), n_neighbors=neighbours, random_state=seed, output_type="cupy"
        ).fit_transform(x)

    def label_scores(self, truth: HostArray, labels: Array) -> dict[str, float]:
        import cupy
        from cuml.metrics.cluster import (
            adjusted_rand_score,
            completeness_score,
            homogeneity_score,
            v_measure_score,
        )

        classes = cupy.asarray(truth, dtype=cupy.int32)
        found = labels.astype(cupy.int32)
        v_measure = float(v_measure_score(classes, found))
        return {
            "homogeneity": float(homogeneity_score(classes, found)),
            "completeness": float(completeness_score(classes, found)),
            "v_measure": v_measure,
            "adjusted_rand": float(adjusted_rand_score(classes, found)),
            # cuML does not have this score; normalised by the arithmetic mean it equals the V-measure (Rosenberg and
            # Hirschberg 2007).
            "normalized_mutual_info": v_measure,
        }


def _claim(matrix_bytes: int) -> int:
    """Make the pool of GPU memory from which CuPy and cuML take theirs, and return its size in bytes."""
    import cupy
    import rmm
    import rmm.statistics
    from rmm.allocators.cupy import rmm_cupy_allocator

    # This is for the embeddings, their scaled copy, PCA's copy in column order, and the temporaries of blocks of rows.
    wanted = 3 * matrix_bytes + _GIB // 2
    free, _total = cupy.cuda.runtime.memGetInfo()
    # RMM requires a multiple of 256 bytes.
    initial = int(min(wanted, _POOL_SHARE * free)) // 256 * 256
    rmm.reinitialize(pool_allocator=True, initial_pool_size=initial)
    rmm.statistics.enable_statistics()
    cupy.cuda.set_allocator(rmm_cupy_allocator)
    return initial


def _free_in_pool() -> int:
    """Return the bytes that RMM's pool has claimed and not given out; 0 before `claim_device`."""
    import rmm.mr
    import rmm.statistics

    used = rmm.statistics.get_statistics()
    if used is None:
        return 0
    # The statistics wrap the pool.
    pool = rmm.mr.get_current_device_resource().get_upstream()
    return max(0, int(pool.pool_size()) - int(used.current_bytes))


def describe_gpus() -> list[str]:
    """Return a text for every visible GPU with its name, memory and compute capability."""
    import cupy

    words = []
    for number in range(cupy.cuda.runtime.getDeviceCount()):
        properties = cupy.cuda.runtime.getDeviceProperties(number)
        memory = properties["totalGlobalMem"] / _GIB
        capability = f"{properties['major']}.{properties['minor']}"
        words.append(f"{number}: {properties['name'].decode()}, {memory:.0f} GiB, compute capability {capability}")
    return words

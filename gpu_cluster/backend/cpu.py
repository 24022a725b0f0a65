"""The CPU: NumPy, pandas and scikit-learn."""

from __future__ import annotations

import platform
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from itertools import chain, islice
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from gpu_cluster.backend import tensorflow_devices
from gpu_cluster.backend.base import (
    N_NEIGHBOURS,
    Array,
    Backend,
    Found,
    HostArray,
    Item,
    KMeansFit,
    PCAFit,
    Scaling,
    perplexity,
    smallest_group,
)
from gpu_cluster.backend.blockwise import fit_pca
from gpu_cluster.backend.cores import usable_cores
from gpu_cluster.backend.memory import AT_A_TIME_BYTES, free_host_bytes
from gpu_cluster.backend.rows import WINDOW_BYTES, Rows
from gpu_cluster.config import Algorithm, Precision

if TYPE_CHECKING:
    import pandas as pd


# The iterations of t-SNE on so few rows are short. OpenMP's threads wait for each other after each of them by keeping
# their cores busy, so that several threads take ten times as long as one where something else runs too.
_ONE_THREAD_ROWS = 500


class CpuBackend(Backend):
    """Computes on the CPU; its device memory is the host's, so both transfers are the identity."""

    name = "cpu"
    precisions: tuple[Precision, ...] = ("float32",)
    engines: tuple[str, ...] = ("ncnn", "tensorflow")
    shard_size = 256
    tensorflow_device = tensorflow_devices.CPU
    computes_on_host = True
    # Padding would cost as much work as pictures.
    pads_batches = False

    @property
    def xp(self) -> ModuleType:
        return np

    @property
    def frames(self) -> ModuleType:
        import pandas as pd

        return pd

    def to_pandas(self, table: Any) -> pd.DataFrame:
        return cast("pd.DataFrame", table)

    def claim_device(self, matrix_bytes: int) -> None:
        pass

    def share_device_with(self, library: str) -> None:
        if library != "tensorflow":
            return
        # A GPU build of TensorFlow sees the cards too. They stay visible to it, because a later job of this process may
        # be for a card; the engine places this backend's work on the CPU.
        tensorflow_devices.prepare()

    def batch_size(self, image_size: int) -> int:
        # Larger batches are no faster: a few pictures are enough for the convolutions to keep every core busy.
        return 32

    @property
    def repeats(self) -> dict[str, str]:
        return {"to_the_byte": "all results, on the same machine with the same versions"}

    def describe(self) -> dict[str, Any]:
        libraries = ("numpy", "scikit-learn", "pandas")
        return {
            "device": self.name,
            "processor": platform.processor() or platform.machine(),
            "threads": usable_cores(),
            "versions": {name: version(name) for name in libraries},
        }

    def from_dlpack(self, capsule: Any) -> Array:
        return np.from_dlpack(_Capsule(capsule))

    def synchronize(self) -> None:
        pass

    def free_bytes(self) -> int:
        return free_host_bytes()

    def peak_bytes(self) -> int:
        import resource

        # ru_maxrss is in kibibytes on Linux and in bytes on macOS.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak

    def claimed_bytes(self) -> int:
        return 0

    def to_host(self, array: Array) -> HostArray:
        return np.asarray(array)

    def from_host(self, array: HostArray) -> Array:
        return array

    def empty(self, shape: tuple[int, int]) -> Array:
        return np.empty(shape, np.float32)

    def holds(self, matrix_bytes: int) -> bool:
        # A stream that reads a larger one in blocks takes as much memory.
        return matrix_bytes <= WINDOW_BYTES

    def each(self, work: Callable[[Item], Found], items: Iterable[Item], *, bytes_each: int) -> Iterator[Found]:
        """Do several items at the same time, each on one thread.

        This is faster than one after the other with all threads in each: the threads of OpenMP and BLAS wait for each
        other after every step by keeping their cores busy, so that they take the time of whatever else runs there.
        """
        n_workers = min(usable_cores(), AT_A_TIME_BYTES // max(1, bytes_each))
        if n_workers == 1:
            return map(work, items)
        waiting = iter(items)
        first = list(islice(waiting, 2))
        # Of work for scikit-learn, such as restarts of k-means, it has been loaded before.
        if len(first) == 2 or "sklearn" in sys.modules:
            return _at_the_same_time(work, chain(first, waiting), n_workers)
        return _alone(work, first)

    def strongest(self, symmetric: Array, m: int) -> tuple[Array, Array, float]:
        # NumPy's computes all eigenvectors, which takes several times as long.
        from scipy.linalg import eigh

        d = symmetric.shape[0]
        values, vectors = eigh(symmetric, subset_by_index=(d - m, d - 1))
        return values, vectors, float(np.trace(symmetric))

    def fit_pca(self, x: Rows, n_components: int, *, scale: Scaling) -> PCAFit:
        return fit_pca(x, n_components, scale=scale, backend=self)

    def fit_kmeans(self, x: Array, starts: Array, *, max_iter: int, tol: float) -> KMeansFit:
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning

        k = starts.shape[0]
        with warnings.catch_warnings():
            # scikit-learn warns of fewer distinct rows than clusters; clustering.cluster reports this itself.
            warnings.simplefilter("ignore", ConvergenceWarning)
            fit = KMeans(n_clusters=k, init=starts, n_init=1, max_iter=max_iter, tol=tol).fit(x)
        return KMeansFit(centres=fit.cluster_centers_.astype(np.float32), n_iter=int(fit.n_iter_))

    def group(self, x: Array, algorithm: Algorithm, *, k: int, seed: int) -> Array:
        from sklearn.cluster import HDBSCAN, AgglomerativeClustering, SpectralClustering

        n = x.shape[0]
        if algorithm == "ward":
            return AgglomerativeClustering(n_clusters=k, linkage="ward").fit_predict(x)
        if algorithm == "hdbscan":
            return HDBSCAN(min_cluster_size=min(smallest_group(n), n), copy=True).fit_predict(x)
        with warnings.catch_warnings():
            # scikit-learn warns of a graph in several parts, but this is normal for groups that are far apart.
            warnings.filterwarnings("ignore", "Graph is not fully connected", UserWarning)
            return SpectralClustering(
                n_clusters=k, affinity="nearest_neighbors", n_neighbors=min(N_NEIGHBOURS, n - 1), random_state=seed
            ).fit_predict(x)

    def most_groups(self, algorithm: Algorithm, n: int) -> int:
        return n

    def tsne(self, x: Array, *, seed: int) -> Array:
        from sklearn.manifold import TSNE

        n = x.shape[0]
        # Half of scikit-learn's default number of iterations: starting from principal components, the layout no longer
        # changes much after these.
        layout = TSNE(init="pca", perplexity=perplexity(n), max_iter=500, random_state=seed)
        if n > _ONE_THREAD_ROWS:
            return layout.fit_transform(x)
        (found,) = _at_the_same_time(layout.fit_transform, [x], 1)
        return found

    def label_scores(self, truth: HostArray, labels: Array) -> dict[str, float]:
        from sklearn import metrics

        homogeneity, completeness, v_measure = metrics.homogeneity_completeness_v_measure(truth, labels)
        return {
            "homogeneity": float(homogeneity),
            "completeness": float(completeness),
            "v_measure": float(v_measure),
            "adjusted_rand": float(metrics.adjusted_rand_score(truth, labels)),
            "normalized_mutual_info": float(metrics.normalized_mutual_info_score(truth, labels)),
        }


def _alone(work: Callable[[Item], Found], items: Iterable[Item]) -> Iterator[Found]:
    """Do a single item with one thread of BLAS too, so that its bits are the same, but without loading scikit-learn.

    That takes half a second, which a rerun has no other use for.
    """
    from threadpoolctl import threadpool_limits

    for item in items:
        with threadpool_limits(1, user_api="blas"):
            found = work(item)
        yield found


def _at_the_same_time(work: Callable[[Item], Found], items: Iterable[Item], n_workers: int) -> Iterator[Found]:
    # Imported before its libraries are counted: their threads are limited too.
    from sklearn.cluster import KMeans  # noqa: F401
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import ThreadpoolController

    libraries = ThreadpoolController()

    def one_thread() -> None:
        # The number of OpenMP's threads belongs to the thread that sets it, so there is nothing to restore.
        libraries.limit(limits=1, user_api="openmp")

    pool = ThreadPoolExecutor(n_workers, initializer=one_thread)
    ahead: deque[Future[Found]] = deque()
    # BLAS's number of threads and the filters of warnings belong to the process. What is called here sets and restores
    # both, in any order; because they are set here too, each restores what it must, and this block the rest.
    with libraries.limit(limits=1, user_api="blas"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        try:
            for item in items:
                ahead.append(pool.submit(work, item))
                if len(ahead) >= 2 * n_workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


class _Capsule:
    """Wraps a DLPack capsule of host memory in the object with the two methods that NumPy expects."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        # kDLCPU in dlpack.h.
        return 1, 0

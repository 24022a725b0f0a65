"""Embeddings to clusters, as a clusterer of scikit-learn.

An array of embeddings enters; labels, centres and distances leave. This module must not know where the embeddings come
from.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from gpu_cluster.backend import HeldRows
from gpu_cluster.backend.memory import memory_error_explained
from gpu_cluster.clustering import kmeans
from gpu_cluster.clustering.copies import as_originals, equal_rows
from gpu_cluster.clustering.reduce import apply
from gpu_cluster.clustering.sequence import find_groups
from gpu_cluster.clustering.sweep import check_ks
from gpu_cluster.config import ClusterConfig, Device, ReduceConfig, RunConfig, SweepConfig
from gpu_cluster.errors import DataError
from gpu_cluster.events import Recorder
from gpu_cluster.jobs.prepare import choose_device
from gpu_cluster.options import build_config
from gpu_cluster.results import Reduction, Sweep
from gpu_cluster.verdict import judge

# Defaults are declared in the config alone.
_REDUCE, _SWEEP, _CLUSTER, _RUN = ReduceConfig(), SweepConfig(), ClusterConfig(), RunConfig()


class ImageClusterer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """Clusters embeddings as `gpu-cluster run` does: PCA, whitening, a choice of k, k-means.

    Its clusters are those of `run` for the same embeddings in the same order, seed and options; `run` sorts its
    pictures by path.

    Parameters
    ----------
    n_clusters : int or None
        Number of clusters; None lets `select` choose it among the numbers of `k_range`.
    select : {"agreement", "elbow", "silhouette"}
        Choose the number where restarts of k-means agree most, at the knee of the inertia, or by the silhouette.
    k_range : range, str or None
        Numbers of clusters to try, such as `range(2, 16)` or `"2:15"`. None is `2:15`, cut to the number of rows; or
        `n_clusters` alone, if that is given.
    scaling, pca, whitening, normalize
        The space that is clustered, as in `gpu_cluster.run`.
    n_init, max_iter, tol
        How k-means runs, as in `gpu_cluster.run`.
    random_state : int, RandomState or None
        Seed of every random number. By default it is that of `run`, so that a fit repeats; None takes another seed in
        every fit.
    device : {"auto", "cpu", "gpu"}

    Attributes
    ----------
    labels_ : (n,) int64; the cluster of each row, from 0, the largest cluster first
    cluster_centers_ : (n_clusters_, m) float32; in the space that is clustered, which `space_` says in words
    n_clusters_ : int; number of clusters found; it is less than `n_clusters` if fewer rows differ
    inertia_ : float; sum of the squared distances of the rows to the centres
    agreement_ : float; mean adjusted Rand index of the best restart with the others, which chose k; NaN with only one
        restart
    verdict_ : Verdict; whether the groups are clear; `print(model.verdict_)` says it in a sentence
    notices_ : tuple of str; what the user should know of this fit, in sentences
    sweep_ : dict of arrays `k`, `inertia`, `silhouette` and `agreement`, one value for each number that was tried
    n_iter_ : int; iterations of k-means
    space_ : str; what was done to the embeddings before k-means
    n_features_in_ : int
    feature_names_in_ : (n_features_in_,) str; only if the embeddings had names
    """

    def __init__(
        self,
        n_clusters: int | None = None,
        *,
        select: str = _SWEEP.select,
        k_range: range | str | None = _SWEEP.k_range,
        scaling: str = _REDUCE.scaling,
        pca: int | str = _REDUCE.pca,
        whitening: float = _REDUCE.whitening,
        normalize: bool = _REDUCE.normalize,
        n_init: int = _CLUSTER.n_init,
        max_iter: int = _CLUSTER.max_iter,
        tol: float = _CLUSTER.tol,
        random_state: int | np.random.RandomState | None = _RUN.seed,
        device: Device = _RUN.device,
    ) -> None:
        self.n_clusters = n_clusters
        self.select = select
        self.k_range = k_range
        self.scaling = scaling
        self.pca = pca
        self.whitening = whitening
        self.normalize = normalize
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803 - scikit-learn's names
        """Cluster embeddings X (n, d); y takes no part.

        Raises
        ------
        ConfigError
            When a parameter cannot be used, or a number of clusters is larger than n.
        DataError
            When `scaling` takes square roots, and a number is below 0.
        DeviceError
            When the device cannot be used, or has too little memory.
        """
        config = self._config()
        x = self._checked(X, config.reduce.scaling, reset=True)
        check_ks(config.sweep, len(x))
        backend, events = choose_device(config).backend, Recorder()
        with memory_error_explained("clustering", len(x), x.shape[1], backend):
            backend.claim_device(x.nbytes)
            rows = HeldRows(backend.from_host(x), backend)
            found = find_groups(rows, config, backend=backend, events=events, originals=equal_rows(x))
        clustering, sweep = found.clustering, found.sweep
        self._reduction = _moved(found.projection.reduction, backend.to_host)
        self.labels_ = np.asarray(backend.to_host(clustering.labels))
        self.cluster_centers_ = np.asarray(backend.to_host(clustering.centres))
        self.n_clusters_ = clustering.k
        self.inertia_ = clustering.inertia
        self.agreement_ = np.nan if sweep.agreement is None else sweep.agreement
        self.verdict_ = judge(sweep.best_k, len(x), sweep.agreement)
        self.notices_ = tuple(events.notices)
        self.sweep_ = _columns(sweep)
        self.n_iter_ = clustering.n_iter
        self.space_ = found.projection.space
        return self

    def predict(self, X: Any) -> npt.NDArray[np.int64]:  # noqa: N803 - scikit-learn's name
        """Return for embeddings X (n, d) the cluster (n,) whose centre is nearest.

        Raises
        ------
        NotFittedError
            Before `fit`.
        DataError, DeviceError
            As for `fit`.
        """
        labels: npt.NDArray[np.int64] = self._of_space(X, kmeans.nearest)
        return labels

    def transform(self, X: Any) -> npt.NDArray[np.float32]:  # noqa: N803 - scikit-learn's name
        """Return for embeddings X (n, d) the distances (n, n_clusters_) to the centres, in the space of these.

        Raises
        ------
        NotFittedError
            Before `fit`.
        DataError, DeviceError
            As for `fit`.
        """
        distances: npt.NDArray[np.float32] = self._of_space(X, kmeans.all_distances)
        return distances

    def _of_space(self, given: Any, computed: Any) -> Any:
        """Return what a function computes from the embeddings in the space that is clustered, and the centres."""
        check_is_fitted(self)
        x = self._checked(given, self._reduction.scaling, reset=False)
        # Of the parameters, those of the fit no longer matter: they may have been set anew since.
        backend = choose_device(build_config(RunConfig, device=self.device)).backend
        with memory_error_explained("clustering", len(x), x.shape[1], backend):
            backend.claim_device(x.nbytes)
            reduction = _moved(self._reduction, backend.from_host)
            space, _pcs = apply(reduction, HeldRows(backend.from_host(x), backend), backend)
            found = computed(space, backend.from_host(self.cluster_centers_), backend)
            return np.asarray(backend.to_host(as_originals(found, equal_rows(x), backend)))

    def _checked(self, given: Any, scaling: str, *, reset: bool) -> npt.NDArray[np.float32]:
        """Return embeddings as float32, checked as scikit-learn does; `reset` remembers their number of columns."""
        x: npt.NDArray[np.float32] = validate_data(self, given, reset=reset, dtype=np.float32, order="C")
        if scaling == "sqrt-l2" and x.min() < 0:
            raise DataError(
                f"scaling 'sqrt-l2' takes square roots, and the embeddings have numbers below 0, such as {x.min():g}: "
                "use another scaling"
            )
        return x

    def _config(self) -> RunConfig:
        """Return the parameters as the config of a run."""
        names = ("select", "scaling", "pca", "whitening", "normalize", "n_init", "max_iter", "tol", "device")
        options = {name: getattr(self, name) for name in names}
        ks, seed = self.k_range, self.random_state
        if ks is None and self.n_clusters is not None:
            k = build_config(RunConfig, k=self.n_clusters).sweep.k
            ks = f"{k}:{k}"
        if seed is None or isinstance(seed, np.random.RandomState):
            seed = check_random_state(seed).randint(np.iinfo(np.int32).max)
        return build_config(RunConfig, k=self.n_clusters, k_range=ks, seed=seed, **options)

    @property
    def _n_features_out(self) -> int:
        return int(self.n_clusters_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def _moved(reduction: Reduction, move: Any) -> Reduction:
    """Return a reduction with its arrays moved to or from the host."""
    arrays = {one.name: getattr(reduction, one.name) for one in fields(reduction)}
    return replace(reduction, **{name: move(one) for name, one in arrays.items() if hasattr(one, "shape")})


def _columns(sweep: Sweep) -> dict[str, Any]:
    """Return the points of a sweep as arrays; a value that is not defined is NaN."""
    names = ("inertia", "silhouette", "agreement")
    columns = {name: np.array([getattr(point, name) for point in sweep.points], np.float64) for name in names}
    return {"k": np.array([point.k for point in sweep.points]), **columns}

"""The habit of scikit-learn: pictures to embeddings as a transformer, embeddings to clusters as a clusterer.

Both are thin: the embedders run the job `embed`, and the clusterer runs the steps of `clustering` on arrays. Their
parameters are the options of `run` and have the same defaults; where scikit-learn has another name for one, it has that
name here: `n_clusters` is `k`, and `random_state` is `seed`. This module must not know run folders.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
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
from gpu_cluster.config import (
    ClusterConfig,
    Device,
    EmbedConfig,
    EmbedJobConfig,
    EngineName,
    Pooling,
    Precision,
    ReduceConfig,
    RunConfig,
    SweepConfig,
)
from gpu_cluster.errors import DataError
from gpu_cluster.events import Recorder
from gpu_cluster.jobs.embed import count_features, embed, embed_pictures
from gpu_cluster.jobs.prepare import choose_device
from gpu_cluster.options import build_config
from gpu_cluster.results import Reduction, Sweep
from gpu_cluster.verdict import judge

__all__ = ["ImageClusterer", "ImageEmbedder", "VGG16Embedder"]

# Defaults are declared in the config alone.
_EMBED, _REDUCE, _SWEEP, _CLUSTER, _RUN = EmbedConfig(), ReduceConfig(), SweepConfig(), ClusterConfig(), RunConfig()


class ImageEmbedder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Turns pictures into embeddings with pretrained networks; nothing is learnt from the pictures.

    The parameters are the options of `gpu-cluster run` that set how pictures are embedded; `help(gpu_cluster.embed)`
    describes them.

    Parameters
    ----------
    features : str
        What describes a picture, as in `gpu_cluster.run`; by default VGG16 and EfficientNet-Lite2.
    pooling : str
        How VGG16's feature maps become numbers.
    image_size : int or None
        Side of the square that the network sees, in pixels; None is that for which its weights were made.
    resize : {"bilinear", "nearest"}
    crop : bool
        Whether the square in the picture's middle is cut out; else the whole picture is made square. It is the option
        `fit` of `run`, whose name is that of a method here.
    engine, precision, batch_size, weights, device, cache, no_cache
        As in `gpu_cluster.run`. Embeddings of files are kept in the store, so that none is computed twice; those of
        pictures in memory are not.

    Examples
    --------
    >>> ImageEmbedder(features="vgg16", image_size=32).fit_transform(["a.jpg", "b.jpg"]).shape  # doctest: +SKIP
    (2, 1024)
    """

    def __init__(
        self,
        features: str = _EMBED.features,
        *,
        pooling: Pooling = _EMBED.pooling,
        image_size: int | None = _EMBED.image_size,
        resize: str = _EMBED.resize,
        crop: bool = _EMBED.fit == "crop",
        engine: EngineName = _EMBED.engine,
        precision: Precision | None = _EMBED.precision,
        batch_size: int | None = _EMBED.batch_size,
        weights: str | os.PathLike[str] | None = _EMBED.weights,
        device: Device = _RUN.device,
        cache: str | os.PathLike[str] | None = _RUN.store.cache,
        no_cache: bool = _RUN.store.no_cache,
    ) -> None:
        self.features = features
        self.pooling = pooling
        self.image_size = image_size
        self.resize = resize
        self.crop = crop
        self.engine = engine
        self.precision = precision
        self.batch_size = batch_size
        self.weights = weights
        self.device = device
        self.cache = cache
        self.no_cache = no_cache

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803 - scikit-learn's names
        """Check the parameters; the pictures are not looked at.

        Raises
        ------
        ConfigError
            When a parameter cannot be used.
        """
        self._config()
        return self

    def transform(self, X: Any) -> npt.NDArray[np.float32]:  # noqa: N803 - scikit-learn's name
        """Embed pictures.

        Parameters
        ----------
        X
            The paths of n image files; or n pictures in memory, each an array (h, w, 3) uint8, RGB, or an image of
            Pillow; or one array (n, h, w, 3) uint8. A column of paths, such as one of a data frame, is a list of paths.

        Returns
        -------
        (n, d) float32; d is 1,024 for VGG16 with its default pooling, and 2,304 for the default features

        Raises
        ------
        DataError
            When some of them cannot be embedded; the message names them with their reasons.
        GpuClusterError
            For everything else that stops the job (see `gpu_cluster.errors`).
        """
        config, pictures = self._config(), _listed(X)
        are_paths = [isinstance(one, str | os.PathLike) for one in pictures]
        if all(are_paths):
            return embed([Path(path) for path in pictures], config)
        if any(are_paths):
            raise DataError(
                f"expected paths of files, or pictures in memory; found {sum(are_paths):,} paths among "
                f"{len(pictures):,}: give the ones or the others"
            )
        return embed_pictures(pictures, config)

    @property
    def _n_features_out(self) -> int:
        return count_features(self._config())

    def _config(self) -> EmbedJobConfig:
        options = {
            "fit": "crop" if self.crop else "stretch",
            **{name: getattr(self, name) for name in ("features", "image_size", "resize", "engine", "precision")},
            **{name: getattr(self, name) for name in ("batch_size", "weights", "device", "cache", "no_cache")},
        }
        if self.pooling != _EMBED.pooling:
            # The name of the features may have it too.
            options["pooling"] = self.pooling
        return build_config(EmbedJobConfig, **options)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array, tags.input_tags.string = False, True
        tags.transformer_tags.preserves_dtype = []
        return tags


class VGG16Embedder(ImageEmbedder):
    """Turns pictures into embeddings (n, 1024) with VGG16 (ImageNet): an `ImageEmbedder` with this network alone.

    The parameters are those of `ImageEmbedder`, without `features`. With another `pooling` than the default, there are
    other numbers of columns: 512 for `gem`, `max` and `average`.
    """

    features = "vgg16"

    def __init__(
        self,
        *,
        pooling: Pooling = _EMBED.pooling,
        image_size: int | None = _EMBED.image_size,
        resize: str = _EMBED.resize,
        crop: bool = _EMBED.fit == "crop",
        engine: EngineName = _EMBED.engine,
        precision: Precision | None = _EMBED.precision,
        batch_size: int | None = _EMBED.batch_size,
        weights: str | os.PathLike[str] | None = _EMBED.weights,
        device: Device = _RUN.device,
        cache: str | os.PathLike[str] | None = _RUN.store.cache,
        no_cache: bool = _RUN.store.no_cache,
    ) -> None:
        self.pooling = pooling
        self.image_size = image_size
        self.resize = resize
        self.crop = crop
        self.engine = engine
        self.precision = precision
        self.batch_size = batch_size
        self.weights = weights
        self.device = device
        self.cache = cache
        self.no_cache = no_cache


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


def _listed(given: Any) -> Sequence[Any]:
    """Return the paths or pictures that a transformer was given, one by one.

    Raises
    ------
    DataError
        When it is a single one.
    """
    if isinstance(given, str | os.PathLike):
        raise DataError(f"expected a list of paths of image files; found one path, {os.fspath(given)!r}: give [path]")
    if hasattr(given, "iloc"):
        given = np.asarray(given)
    if isinstance(given, np.ndarray) and given.ndim == 3 and given.shape[2] == 3:
        raise DataError(
            f"expected a list of pictures, or an array (n, h, w, 3); found one picture {given.shape}: give [picture]"
        )
    if isinstance(given, np.ndarray) and given.ndim == 2 and given.shape[1] == 1:
        given = given[:, 0]
    try:
        return list(given)
    except TypeError:
        raise DataError(
            f"expected a list of paths of image files, or of pictures; found {type(given).__name__}"
        ) from None


def _moved(reduction: Reduction, move: Any) -> Reduction:
    """Return a reduction with its arrays moved to or from the host."""
    arrays = {one.name: getattr(reduction, one.name) for one in fields(reduction)}
    return replace(reduction, **{name: move(one) for name, one in arrays.items() if hasattr(one, "shape")})


def _columns(sweep: Sweep) -> dict[str, Any]:
    """Return the points of a sweep as arrays; a value that is not defined is NaN."""
    names = ("inertia", "silhouette", "agreement")
    columns = {name: np.array([getattr(point, name) for point in sweep.points], np.float64) for name in names}
    return {"k": np.array([point.k for point in sweep.points]), **columns}

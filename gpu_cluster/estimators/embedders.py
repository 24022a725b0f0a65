"""Pictures to embeddings, as transformers of scikit-learn.

Paths or pictures in memory enter, an array of embeddings leaves. This module must not know what they are used for.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin

from gpu_cluster.config import Device, EmbedConfig, EmbedJobConfig, EngineName, Pooling, Precision, StoreConfig
from gpu_cluster.errors import DataError
from gpu_cluster.jobs.embed import count_features, embed, embed_pictures
from gpu_cluster.options import build_config

# Defaults are declared in the config alone.
_EMBED, _STORE, _DEVICE = EmbedConfig(), StoreConfig(), EmbedJobConfig().device


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
        device: Device = _DEVICE,
        cache: str | os.PathLike[str] | None = _STORE.cache,
        no_cache: bool = _STORE.no_cache,
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
        device: Device = _DEVICE,
        cache: str | os.PathLike[str] | None = _STORE.cache,
        no_cache: bool = _STORE.no_cache,
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

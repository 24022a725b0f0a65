"""The features that a job can be asked for, by name: one registry for every command.

Input: the names that a config has, and weights. Output: what computes these features. This module must not know which
engine runs them, or what becomes of the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import get_args

from gpu_cluster.config import EmbedConfig, Pooling, feature_parts
from gpu_cluster.embedding import efficientnet_lite, extractors, vgg16
from gpu_cluster.embedding.extractors import Extractor, Joined
from gpu_cluster.errors import ConfigError
from gpu_cluster.words import did_you_mean

_VGG16, _LITE2 = "vgg16", "efficientnet-lite2"
# With weights farther apart than these, one part says nothing.
_LEAST_SHARE, _MOST_SHARE = 0.001, 1_000
# A preset, which has features of its own and more.
_NOTEBOOK = "notebook"

# What may be named as one part of `--features`. `vgg16` alone has the pooling of `--pooling`.
NAMES = (
    _VGG16,
    *(f"{_VGG16}-{pooling}" for pooling in get_args(Pooling)),
    _LITE2,
    "colours",
    "hog",
    *extractors.KERAS_MODELS,
)


class Weights:
    """The weights of the networks of one job; each file is read when it is first needed."""

    def __init__(self, named: Path | None = None) -> None:
        """Set the file that the user named for VGG16, if any."""
        self._named = named

    @cached_property
    def vgg16(self) -> vgg16.Weights:
        """Those of VGG16; raises WeightsError when they cannot be used."""
        return vgg16.find_weights(self._named)

    @cached_property
    def efficientnet_lite2(self) -> efficientnet_lite.Weights:
        """Those of EfficientNet-Lite2; raises WeightsError when they cannot be used."""
        return efficientnet_lite.find_weights()


def extractor_of(config: EmbedConfig, weights: Weights) -> Extractor | Joined:
    """Return what computes the features that a config names.

    Raises
    ------
    ConfigError
        When a name is not known or named twice, a weight is no number above 0, or an option belongs to a network that
        is not among them.
    WeightsError
        When the weights of a network are not on this machine, or cannot be used.
    """
    named = list(_parts(config.features))
    _check_options(config, [name for name, _share in named])
    parts = tuple(_MAKERS[name](config, weights) for name, _share in named)
    return parts[0] if len(parts) == 1 else Joined(parts, tuple(share for _name, share in named))


def weights_of(*features: Extractor | Joined) -> list[tuple[Path, str]]:
    """Return the file and the sha256 of the weights of each network among these features, each once."""
    every = (part for one in features for part in one.parts)
    files = ((part.weights, str(part.key["weights"])) for part in every if part.weights is not None)
    return list(dict.fromkeys(files))


def check_names(features: str) -> None:
    """Check the names and weights of features without looking for the weights of networks.

    Raises
    ------
    ConfigError
        See `extractor_of`.
    """
    for _part in _parts(features):
        pass


def here(name: str) -> bool:
    """Tell whether the weights that features need are on this machine; nothing is read."""
    return name not in extractors.KERAS_MODELS or extractors.keras_weights(name).is_file()


def has_vgg16(features: str) -> bool:
    """Tell whether VGG16 is one of the parts of features."""
    return any(name == _VGG16 or name.startswith(f"{_VGG16}-") for name, _share in _parts(features))


def check_scaling(features: str, scaling: str) -> None:
    """Refuse the scaling that takes square roots for features with numbers below 0.

    Raises
    ------
    ConfigError
        When it cannot be used.
    """
    if scaling == "sqrt-l2" and has_below_0(features):
        raise ConfigError(
            f"--scaling sqrt-l2 needs features none of which is below 0; found {features}: use another scaling, or "
            "other features"
        )


def has_below_0(features: str) -> bool:
    """Tell whether features have numbers below 0."""
    names = [name for name, _share in _parts(features)]
    return any(name in extractors.KERAS_MODELS and extractors.KERAS_MODELS[name].below_0 for name in names)


def _parts(features: str) -> Iterator[tuple[str, float]]:
    """Yield the name and the weight of each part."""
    seen: set[str] = set()
    for name, share in feature_parts(features):
        if name == _NOTEBOOK:
            raise ConfigError(
                f"--features: {_NOTEBOOK!r} is a preset, which has more than features of its own: use --preset {name}"
            )
        if name not in NAMES:
            raise ConfigError(
                f"--features: unknown {name!r}{did_you_mean(name, NAMES)}; known are {', '.join(NAMES)}, and several "
                "of them joined by +"
            )
        # A single one with its pooling in its name is `vgg16` in every config.
        network = _VGG16 if name.startswith(f"{_VGG16}-") else name
        if network in seen:
            raise ConfigError(f"--features: expected each network once, found {network} twice in {features!r}")
        seen.add(network)
        yield name, _share(share, features) if share else 1.0


def _share(text: str, features: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not _LEAST_SHARE <= share <= _MOST_SHARE:
        raise ConfigError(
            f"--features: expected a weight from {_LEAST_SHARE} to {_MOST_SHARE:,} after each colon, found {text!r} in "
            f"{features!r}"
        )
    return share


def _check_options(config: EmbedConfig, names: Sequence[str]) -> None:
    if _VGG16 in names:
        return
    if config.pooling != EmbedConfig().pooling:
        raise ConfigError(
            f"--pooling: it is for VGG16, which is not among the features {config.features!r}; found "
            f"{config.pooling!r}: leave it out"
        )
    if config.weights is not None:
        raise ConfigError(
            f"--weights: it names weights of VGG16, which is not among the features {config.features!r}; found "
            f"{str(config.weights)!r}: leave it out"
        )


def _of_keras(name: str) -> Callable[[EmbedConfig, Weights], Extractor]:
    def make(config: EmbedConfig, _weights: Weights) -> Extractor:
        return extractors.of_keras(name, config.side)

    return make


_MAKERS: Mapping[str, Callable[[EmbedConfig, Weights], Extractor]] = {
    _VGG16: lambda config, weights: extractors.of_vgg16(weights.vgg16, config),
    _LITE2: lambda config, weights: extractors.of_efficientnet_lite2(
        weights.efficientnet_lite2, config.image_size or efficientnet_lite.SIDE
    ),
    "colours": lambda _config, _weights: extractors.colour_histogram(),
    "hog": lambda config, _weights: extractors.oriented_gradients(config.side),
    **{name: _of_keras(name) for name in extractors.KERAS_MODELS},
}

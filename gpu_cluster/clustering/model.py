"""Writes and reads the model of a run, which `predict` needs: `model.json` and `arrays.npz`, without pickle.

Everything that is read is checked: the checksum of the whole model, the name, shape and type of every array, and that
all values are finite. This module must not know where a clustering comes from or what is predicted.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpu_cluster.backend import Array, Backend, FloatArray
from gpu_cluster.bounded import MIB, MOST_HEADER_BYTES, UnfitError, parse_json, read, read_npz
from gpu_cluster.config import EARLIER_DECODING, EARLIER_ENGINE, EARLIER_FEATURES, EmbedConfig, ReduceConfig
from gpu_cluster.errors import DataError
from gpu_cluster.files import printable
from gpu_cluster.results import Reduction

SCHEMA = 2

# The options of embedding that change the numbers.
_EMBED_OPTIONS = ("engine", "features", "pooling", "image_size", "resize", "fit", "decoding")

# The largest files that are read, and the characters that an error shows.
_MOST_JSON_BYTES, _MOST_ARRAY_BYTES = 64 * MIB, 4_096 * MIB
_MOST_SHOWN = 500

_REDUCTION_ARRAYS = ("low", "span", "mean", "components", "divisors")


@dataclass(frozen=True)
class Model:
    """A space and the clusters in it.

    Attributes
    ----------
    embed : how pictures became embeddings; only the options that change the numbers. `engine` is the one that ran. None
        if the embeddings were given
    features : what computed the embeddings: network, sha256 of its weights, pooling, of joined ones of each part; or
        that they were given
    reduction : how embeddings become the space
    centres : (k, m) float32, device
    far_distances : (k,) float32, host; a picture farther from its cluster's centre than this counts as far
    cluster_labels : most frequent label of each cluster, None for a cluster without one; None if there were no labels
    """

    embed: EmbedConfig | None
    features: Mapping[str, Any]
    reduction: Reduction
    centres: Array
    far_distances: FloatArray
    cluster_labels: Sequence[str | None] | None

    @property
    def n_features(self) -> int:
        """How many numbers describe one picture."""
        return int(self.reduction.mean.shape[0])


def save_model(folder: Path, model: Model, backend: Backend) -> None:
    """Write a model into a new folder."""
    reduction = model.reduction
    arrays = {
        name: backend.to_host(getattr(reduction, name))
        for name in _REDUCTION_ARRAYS
        if getattr(reduction, name) is not None
    }
    arrays |= {"centres": backend.to_host(model.centres), "far_distances": model.far_distances.astype(np.float32)}
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "embed": None if model.embed is None else {name: getattr(model.embed, name) for name in _EMBED_OPTIONS},
        "features": dict(model.features),
        "reduction": {"scaling": reduction.scaling, "kept": reduction.kept, "normalize": reduction.normalize},
        "cluster_labels": None if model.cluster_labels is None else list(model.cluster_labels),
        "arrays": {name: {"shape": array.shape, "dtype": str(array.dtype)} for name, array in arrays.items()},
    }
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    content["sha256"] = checksum(content, stream.getvalue())
    folder.mkdir()
    (folder / "arrays.npz").write_bytes(stream.getvalue())
    (folder / "model.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def checksum(content: Mapping[str, Any], arrays: bytes) -> str:
    """Return the sha256 of a model: of its JSON without this checksum, keys sorted, and of the bytes of its arrays."""
    rest = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode() + arrays).hexdigest()


def load_model(folder: Path, backend: Backend) -> Model:
    """Read and check a model.

    Raises
    ------
    DataError
        When there is no model, it is damaged, or its schema is another one.
    """
    text = _read(folder, "model.json", _MOST_JSON_BYTES)
    try:
        content = parse_json(text)
    except ValueError as error:
        raise _damaged(folder, str(error)) from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise DataError(
            f"the model {printable(str(folder))!r} is of schema {repr(schema)[:_MOST_SHOWN]}, and this version reads "
            f"{SCHEMA!r}: run the clustering again, which takes its embeddings from the store"
        )
    # A model made by another program may have the right checksum and still be invalid; NumPy, zipfile and the checks
    # then raise many types of errors.
    try:
        shapes = _shapes(content)
        declared = sum(4 * math.prod(shape) + MOST_HEADER_BYTES for shape in shapes.values())
        stored = _read(folder, "arrays.npz", min(declared, _MOST_ARRAY_BYTES))
        if content.get("sha256") != checksum(content, stored):
            raise ValueError(f"its sha256 is not {content.get('sha256')}")
        arrays = read_npz(stored, shapes)
        embed, scaling = _check(content, arrays, shapes)
    except (DataError, ImportError):
        raise
    except Exception as error:
        what = "" if type(error) is ValueError else f"{type(error).__name__} "
        raise _damaged(folder, f"{what}{error}") from error
    on_device = {name: backend.from_host(array) for name, array in arrays.items()}
    reduction = Reduction(
        scaling=scaling,
        kept=content["reduction"]["kept"],
        normalize=content["reduction"]["normalize"],
        **{name: on_device.get(name) for name in _REDUCTION_ARRAYS},
    )
    names = content["cluster_labels"]
    return Model(
        embed,
        content["features"],
        reduction,
        on_device["centres"],
        arrays["far_distances"],
        names,
    )


def _read(folder: Path, name: str, most_bytes: int) -> bytes:
    """Read a file of a model, or raise the DataError that says why it cannot be read."""
    try:
        return read(folder / name, most_bytes)
    except FileNotFoundError as error:
        raise DataError(
            f"no model at {printable(str(folder))!r}: expected the folder that `gpu-cluster run` left, which holds "
            f"model/{name}"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read the model {printable(str(folder))!r}: {error.strerror or error}") from error
    except UnfitError as error:
        raise _damaged(folder, str(error)) from error


def _shapes(content: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape that each array must have, from what the JSON declares.

    Raises
    ------
    Exception
        Whatever the checks stumble over; `load_model` turns it into a DataError.
    """
    facts, declared = content["reduction"], content["arrays"]
    kept, (c, d), k = facts["kept"], declared["components"]["shape"], declared["centres"]["shape"][0]
    if not all(type(size) is int and size >= 1 for size in (c, d, k)):
        raise ValueError(f"expected whole numbers from 1 on, found {c}, {d} and {k}")
    if not (kept is None or (type(kept) is int and 1 <= kept <= c)) or not isinstance(facts["normalize"], bool):
        raise ValueError(f"reduction {facts}")
    shapes: dict[str, tuple[int, ...]] = {
        "mean": (d,),
        "components": (c, d),
        "centres": (k, d if kept is None else kept),
        "far_distances": (k,),
    }
    if facts["scaling"] == "minmax":
        shapes |= {"low": (d,), "span": (d,)}
    if "divisors" in declared and kept is not None:
        shapes |= {"divisors": (kept,)}
    if set(declared) != set(shapes):
        raise ValueError(f"expected the arrays {', '.join(sorted(shapes))}, found {', '.join(sorted(declared))}")
    return shapes


def _check(
    content: Mapping[str, Any], arrays: Mapping[str, FloatArray], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[EmbedConfig | None, str]:
    """Check the rest of a model's content; return its embedding options, if a network ran, and its scaling.

    Raises
    ------
    Exception
        Whatever the checks stumble over; `load_model` turns it into a DataError.
    """
    embed = None if content["embed"] is None else _embedding(content["embed"])
    scaling = ReduceConfig(scaling=content["reduction"]["scaling"]).scaling
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"expected {name} finite, float32 {shapes[name]}; found values that are not finite")
    labels, (k,) = content["cluster_labels"], shapes["far_distances"]
    if labels is not None and not (
        isinstance(labels, list) and len(labels) == k and all(isinstance(label, str | None) for label in labels)
    ):
        raise ValueError(f"expected a label or null for each of {k} clusters")
    # A label that is no Unicode could not be written into a table.
    for label in labels or ():
        (label or "").encode()
    if not isinstance(content["features"], dict):
        raise TypeError("features are no object")
    if (embed is None) != (content["features"].get("given") is True):
        raise ValueError("embeddings both given and computed, or neither")
    return embed, scaling


def _embedding(declared: Mapping[str, Any]) -> EmbedConfig:
    """Return how pictures became embeddings.

    Raises
    ------
    Exception
        Whatever the checks stumble over; `load_model` turns it into a DataError.
    """
    earlier = {"engine": EARLIER_ENGINE, "decoding": EARLIER_DECODING, "features": EARLIER_FEATURES}
    options = {**earlier, **declared}
    if options["engine"] == "auto":
        raise ValueError("engine 'auto'")
    known, found = EmbedConfig().decoding, options["decoding"]
    if type(found) is int and found > known:
        raise DataError(
            f"the model has its pictures by version {found} of decoding, and this gpu-cluster knows version "
            f"{EARLIER_DECODING} to {known}: use the gpu-cluster that made it, or run the clustering again"
        )
    return EmbedConfig.model_validate({name: options[name] for name in _EMBED_OPTIONS})


def _damaged(folder: Path, why: str) -> DataError:
    shown = " ".join(why.split())[:_MOST_SHOWN]
    return DataError(
        f"the model {printable(str(folder))!r} is damaged ({shown}): run the clustering again, which takes its "
        "embeddings from the store"
    )

"""Writes and reads the model of a run, which `predict` needs: `model.json` and `arrays.npz`, without pickle.

Everything that is read is checked: the checksum of the whole model, the name, shape and type of every array, and that
all values are finite. This module must not know where a clustering comes from or what is predicted.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpu_cluster.backend import Array, Backend, FloatArray
from gpu_cluster.config import EmbedConfig, ReduceConfig
from gpu_cluster.errors import DataError
from gpu_cluster.files import printable
from gpu_cluster.results import Reduction

SCHEMA = 2

# The options of embedding that change the numbers.
_EMBED_OPTIONS = ("pooling", "image_size", "resize", "fit")
_REDUCTION_ARRAYS = ("low", "span", "mean", "components", "divisors")


@dataclass(frozen=True)
class Model:
    """A space and the clusters in it.

    Attributes
    ----------
    embed : how pictures became embeddings; only the options that change the numbers
    features : what computed the embeddings: network, sha256 of its weights, pooling
    reduction : how embeddings become the space
    centres : (k, m) float32, device
    far_distances : (k,) float32, host; a picture farther from its cluster's centre than this counts as far
    cluster_labels : most frequent label of each cluster, None for a cluster without one; None if there were no labels
    """

    embed: EmbedConfig
    features: Mapping[str, Any]
    reduction: Reduction
    centres: Array
    far_distances: FloatArray
    cluster_labels: Sequence[str | None] | None


def save_model(folder: Path, model: Model, backend: Backend) -> None:
    """Write a model into a new folder."""
    reduction = model.reduction
    arrays = {
        name: backend.to_host(getattr(reduction, name))
        for name in _REDUCTION_ARRAYS
        if getattr(reduction, name) is not None
    }
    arrays |= {"centres": backend.to_host(model.centres), "far_distances": model.far_distances.astype(np.float32)}
    content = {
        "schema": SCHEMA,
        "embed": {name: getattr(model.embed, name) for name in _EMBED_OPTIONS},
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
    try:
        text = (folder / "model.json").read_bytes()
        stored = (folder / "arrays.npz").read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            f"no model at {printable(str(folder))!r}: expected the folder that `gpu-cluster run` left, which holds "
            f"model/{Path(error.filename or '').name}"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read the model {printable(str(folder))!r}: {error.strerror or error}") from error
    try:
        content = json.loads(text)
    except ValueError as error:
        raise _damaged(folder, str(error)) from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else None
        raise DataError(
            f"the model {printable(str(folder))!r} is of schema {found!r}, and this version reads {SCHEMA!r}: run the "
            "clustering again, which takes its embeddings from the store"
        )
    if content.get("sha256") != checksum(content, stored):
        raise _damaged(folder, f"its sha256 is not {content.get('sha256')}")
    try:
        with np.load(io.BytesIO(stored), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        embed, scaling = _check(content, arrays)
    except (MemoryError, ImportError):
        raise
    # A model made by another program may have the right checksum and still be invalid; NumPy, zipfile and the checks
    # then raise many types of errors.
    except Exception as error:
        raise _damaged(folder, f"{type(error).__name__} {error}") from error
    on_device = {name: backend.from_host(array) for name, array in arrays.items()}
    reduction = Reduction(
        scaling=scaling,
        kept=content["reduction"]["kept"],
        normalize=content["reduction"]["normalize"],
        **{name: on_device.get(name) for name in _REDUCTION_ARRAYS},
    )
    names = content["cluster_labels"]
    return Model(embed, content["features"], reduction, on_device["centres"], arrays["far_distances"], names)


def _check(content: Mapping[str, Any], arrays: Mapping[str, FloatArray]) -> tuple[EmbedConfig, str]:
    """Check a model's content; return its embedding options and its scaling.

    Raises
    ------
    Exception
        Whatever the checks stumble over; `load_model` turns it into a DataError.
    """
    embed = EmbedConfig.model_validate({name: content["embed"][name] for name in _EMBED_OPTIONS})
    facts = content["reduction"]
    scaling = ReduceConfig(scaling=facts["scaling"]).scaling
    kept, normalize = facts["kept"], facts["normalize"]
    centres, components = arrays["centres"], arrays["components"]
    d, c, k = components.shape[-1], components.shape[0], centres.shape[0]
    if not (kept is None or (isinstance(kept, int) and 1 <= kept <= c)) or not isinstance(normalize, bool):
        raise ValueError(f"reduction {facts}")
    shapes: dict[str, tuple[int, ...]] = {
        "mean": (d,),
        "components": (c, d),
        "centres": (k, d if kept is None else kept),
        "far_distances": (k,),
    }
    if scaling == "minmax":
        shapes |= {"low": (d,), "span": (d,)}
    if "divisors" in arrays and kept is not None:
        shapes |= {"divisors": (kept,)}
    if set(arrays) != set(shapes):
        raise ValueError(f"expected the arrays {', '.join(sorted(shapes))}, found {', '.join(sorted(arrays))}")
    for name, shape in shapes.items():
        array = arrays[name]
        if array.dtype != np.float32 or array.shape != shape or not np.isfinite(array).all():
            raise ValueError(f"expected {name} finite, float32 {shape}; found {array.dtype} {array.shape}")
    labels = content["cluster_labels"]
    if labels is not None and (len(labels) != k or not all(isinstance(label, str | None) for label in labels)):
        raise ValueError(f"expected a label or null for each of {k} clusters")
    if not isinstance(content["features"], dict):
        raise TypeError("features are no object")
    return embed, scaling


def _damaged(folder: Path, why: str) -> DataError:
    return DataError(
        f"the model {printable(str(folder))!r} is damaged ({' '.join(why.split())}): run the clustering again, which "
        "takes its embeddings from the store"
    )

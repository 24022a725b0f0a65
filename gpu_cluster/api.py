"""The Python API: what the command line does, as two functions."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpu_cluster import vgg16
from gpu_cluster.backend import select
from gpu_cluster.config import EmbedConfig, build_config
from gpu_cluster.embed import check_precision, embed_files
from gpu_cluster.errors import ConfigError, DataError
from gpu_cluster.events import Observer
from gpu_cluster.pipeline import run_job
from gpu_cluster.results import RunResult, printable

PathLike = str | os.PathLike[str]


def run(
    images: PathLike | Iterable[PathLike] = (),
    *,
    config: PathLike | None = None,
    observer: Observer | None = None,
    **options: Any,
) -> RunResult:
    """Cluster a folder of images and leave a run folder, as `gpu-cluster run` does.

    Parameters
    ----------
    images
        A folder, a file, or several of them; none for the sample set that comes with the package.
    config
        A TOML file, or the `run.json` of an earlier run.
    observer
        Is told about stages, progress and decisions.
    **options
        The options of the command line by their names with underscores: `k_range="2:20"`, `preset="notebook"`, ...

    Returns
    -------
    RunResult
        `folder` is the run folder, `findings` hold the clustering and its scores.

    Raises
    ------
    GpuClusterError
        See `gpu_cluster.errors`.
    """
    given = tuple(_paths(images)) or None
    return run_job(build_config(config, images=given, **options), observer)


def embed(
    paths: PathLike | Iterable[PathLike], *, observer: Observer | None = None, **options: Any
) -> npt.NDArray[np.float32]:
    """Embed image files with VGG16 (ImageNet, average pooling).

    Parameters
    ----------
    paths
        An image file, or several.
    observer
        Is told about progress.
    **options
        Of the section `embed`: `resize`, `fit`, `image_size`, `batch_size`, `precision`, `weights`; and `device`.

    Returns
    -------
    (n, 512) float32, host; in the order of `paths`

    Raises
    ------
    DataError
        When a file cannot be decoded; the message names the first.
    """
    known = {"device", *EmbedConfig.model_fields}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]!r} of embed; known are {', '.join(sorted(known))}")
    job = build_config(**options)
    config = job.embed
    files = _paths(paths)
    if not files:
        return np.empty((0, vgg16.N_FEATURES), np.float32)
    backend = select(job.device).backend
    check_precision(config, backend)
    weights = vgg16.find_weights(config.weights)
    found = embed_files(files, weights, config, backend=backend, observer=observer or Observer())
    if found.bad:
        first = min(found.bad)
        raise DataError(
            f"{len(found.bad)} of {len(files)} files cannot be embedded; the first is "
            f"{printable(str(files[first]))!r}: {found.bad[first]}"
        )
    return np.asarray(backend.to_host(found.x))


def _paths(named: PathLike | Iterable[PathLike]) -> list[Path]:
    return [Path(named)] if isinstance(named, str | os.PathLike) else [Path(path) for path in named]

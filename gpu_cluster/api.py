"""The Python API: what the command line does, as functions."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpu_cluster.config import EmbedConfig, StoreConfig
from gpu_cluster.errors import ConfigError
from gpu_cluster.events import Observer
from gpu_cluster.jobs.compare import compare as compare_job
from gpu_cluster.jobs.embed import embed as embed_job
from gpu_cluster.jobs.predict import Prediction
from gpu_cluster.jobs.predict import predict as predict_job
from gpu_cluster.jobs.run import run as run_job
from gpu_cluster.options import build_config, check_options
from gpu_cluster.results import Comparison, RunResult

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
    check_options("run", options)
    given = _paths(images) or None
    return run_job(build_config(config, images=given, **options), observer)


def compare(
    images: PathLike | Iterable[PathLike] = (),
    *,
    features: Iterable[str] = (),
    algorithms: Iterable[str] = (),
    config: PathLike | None = None,
    observer: Observer | None = None,
    **options: Any,
) -> Comparison:
    """Compare kinds of features and algorithms on a folder of images, as `gpu-cluster compare` does.

    Parameters
    ----------
    images, config, observer
        As of `run`.
    **options
        The options of the command line by their names with underscores.
    features
        Of `gpu_cluster.compare.FEATURES`; without any, those that this machine has what it takes for.
    algorithms
        Of `gpu_cluster.compare.ALGORITHMS`; without any, all.

    Returns
    -------
    Comparison
        `folder` holds the table and the plot, `rows` are the table's.

    Raises
    ------
    GpuClusterError
        See `gpu_cluster.errors`.
    """
    check_options("compare", options)
    job = build_config(
        config,
        images=_paths(images) or None,
        features=tuple(features) or None,
        algorithms=tuple(algorithms) or None,
        **options,
    )
    return compare_job(job, observer)


def predict(
    run: PathLike,
    images: PathLike | Iterable[PathLike],
    *,
    out: PathLike,
    observer: Observer | None = None,
    **options: Any,
) -> Prediction:
    """Assign images to the clusters of a finished run, as `gpu-cluster predict` does.

    Parameters
    ----------
    run
        The run folder.
    images
        A folder, a file, or several of them.
    out
        The table to write, `.csv` or `.parquet`.
    observer
        Is told about progress.
    **options
        The options of the command line by their names with underscores.

    Raises
    ------
    GpuClusterError
        See `gpu_cluster.errors`.
    """
    return predict_job(Path(run), build_config(images=_paths(images), **options), Path(out), observer)


def embed(
    paths: PathLike | Iterable[PathLike], *, observer: Observer | None = None, **options: Any
) -> npt.NDArray[np.float32]:
    """Embed image files with VGG16 (ImageNet).

    Parameters
    ----------
    paths
        An image file, or several.
    observer
        Is told about progress.
    **options
        Of the section `embed`: `pooling`, `resize`, `fit`, `image_size`, `batch_size`, `precision`, `weights`; of the
        section `store`: `cache`, `no_cache`, `force`, `rehash`, `shard_size`; and `device`, `max_pixels`. What the
        store holds is not computed again.

    Returns
    -------
    (n, d) float32, host; d is 1,024, or what another `pooling` gives; in the order of `paths`

    Raises
    ------
    DataError
        When a file cannot be decoded; the message names the first.
    """
    known = {"device", "max_pixels", *EmbedConfig.model_fields, *StoreConfig.model_fields}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]!r} of embed; known are {', '.join(sorted(known))}")
    return embed_job([Path(path) for path in _paths(paths)], build_config(**options), observer)


def _paths(named: PathLike | Iterable[PathLike]) -> tuple[PathLike, ...]:
    return (named,) if isinstance(named, str | os.PathLike) else tuple(named)

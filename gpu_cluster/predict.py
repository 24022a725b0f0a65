"""The job `predict`: new pictures to the clusters of a finished run, one row a picture."""

from __future__ import annotations

import io
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpu_cluster import features, kmeans, picture, vgg16
from gpu_cluster.backend import Backend, select
from gpu_cluster.config import JobConfig
from gpu_cluster.embed import check_precision, embed
from gpu_cluster.errors import ConfigError, JobError, WeightsError
from gpu_cluster.events import Observer, Recorder
from gpu_cluster.images import discover, scan
from gpu_cluster.model import Model, load_model
from gpu_cluster.reduce import apply
from gpu_cluster.report import write_bad_files
from gpu_cluster.results import Embeddings, FloatArray, IntArray, Manifest, printable
from gpu_cluster.store import open_store


@dataclass(frozen=True)
class Prediction:
    """What `predict` found, row by row of the files that could be decoded.

    Attributes
    ----------
    out : the table
    bad_files : the table of the files that could not be decoded, None where all could
    rows : (n,) host; manifest row
    labels : (n,) host; cluster of the run
    distances : (n,) float32, host; to the cluster's centre, in the run's space
    far : (n,) bool, host; farther than 99% of the pictures that the cluster was made of
    """

    out: Path
    bad_files: Path | None
    manifest: Manifest
    rows: IntArray
    labels: IntArray
    distances: FloatArray
    far: np.ndarray


def run_predict(run: Path, config: JobConfig, out: Path, observer: Observer | None = None) -> Prediction:
    """Assign pictures to the clusters of the run folder `run`, and write `out` (`.csv` or `.parquet`).

    Embeds what the store lacks, as the run did: its options of embedding hold, not those of the config.

    Raises
    ------
    DataError
        When the run holds no model that can be used, or there are no pictures.
    WeightsError
        When the weights are not those of the run.
    GpuClusterError
        For everything else that stops a job (see `gpu_cluster.errors`).
    """
    events = Recorder(observer or Observer())
    with events.stage("scan"):
        _check_out(out)
        backend = select(config.device).backend
        check_precision(config.embed, backend)
        model = load_model(run / "model", backend)
        weights = vgg16.find_weights(config.embed.weights)
        _check_weights(model, weights)
        manifest = discover(config.input, events, with_labels=False)
        store = open_store(config.store, events)
        manifest = scan(manifest, config.input, events, store=store, rehash=config.store.rehash)
    how = model.embed.model_copy(update={"batch_size": config.embed.batch_size, "precision": config.embed.precision})
    with picture.limited(config.input.max_pixels), events.stage("embed"):
        given: dict[str, Any] = {"store": store, "store_config": config.store, "backend": backend, "observer": events}
        embeddings = embed(manifest, features.of_vgg16(weights, how), how, **given)
    manifest = manifest.with_bad(embeddings.bad)
    with events.stage("predict"):
        found = _assign(model, embeddings, manifest, out, backend)
    return found


def _check_out(out: Path) -> None:
    """Refuse, before work starts, a file that cannot be written."""
    if out.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"--out: expected a .csv or a .parquet file; found {printable(str(out))!r}")
    folder = out.absolute().parent
    if out.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"--out: {printable(str(out))!r} cannot be written: expected a file in a folder that can be")


def _check_weights(model: Model, weights: vgg16.Weights) -> None:
    theirs = model.features.get("weights")
    if theirs != weights.sha256:
        raise WeightsError(
            f"the run was made with other weights: expected sha256 {theirs}, found {weights.sha256} in "
            f"{printable(str(weights.path))!r}; give the run's weights with --weights"
        )


def _assign(model: Model, embeddings: Embeddings, manifest: Manifest, out: Path, backend: Backend) -> Prediction:
    if embeddings.x.shape[0]:
        x, pcs = apply(model.reduction, embeddings.x, backend)
        on_device = kmeans.nearest(x, model.centres, backend)
        squared = kmeans.squared_distances(x, model.centres, on_device, backend)
        labels, plane = backend.to_host(on_device), backend.to_host(pcs)
        distances = backend.to_host(backend.xp.sqrt(squared))
    else:
        labels, plane, distances = np.empty(0, np.int64), np.empty((0, 2), np.float32), np.empty(0, np.float32)
    far = distances > model.far_distances[labels]
    bad_files = out.with_name(f"{out.stem}.bad_files.csv") if manifest.bad else None
    found = Prediction(out, bad_files, manifest, embeddings.rows, labels, distances, far)
    columns: dict[str, Any] = {
        "path": [printable(manifest.paths[row]) for row in embeddings.rows],
        "cluster": labels,
        "distance": distances,
        "far": far,
        "pc1": plane[:, 0],
        "pc2": plane[:, 1],
        "content_hash": [manifest.files[row].content_hash for row in embeddings.rows],
    }
    if model.cluster_labels is not None:
        names = backend.frames.Series([model.cluster_labels[label] for label in labels], dtype="str")
        columns = {"path": columns.pop("path"), "cluster": columns.pop("cluster"), "cluster_label": names, **columns}
    table = backend.frames.DataFrame(columns)
    if out.suffix == ".csv":
        _write(out, table.to_csv(index=False, lineterminator="\n").encode())
    else:
        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False)
        _write(out, buffer.getvalue())
    if bad_files is not None:
        write_bad_files(bad_files, manifest)
    return found


def _write(path: Path, content: bytes) -> None:
    """Write a file that is whole, or the earlier one."""
    try:
        descriptor, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.absolute().parent)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
            os.replace(partial, path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise JobError(f"cannot write {printable(str(path))!r}: {error.strerror}; nothing was left") from error

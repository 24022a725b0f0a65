"""The job `predict`: assigns new pictures to the clusters of a finished run; its table has one row for each picture."""

from __future__ import annotations

import csv
import io
import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gpu_cluster.backend import Backend, FloatArray, IntArray, select
from gpu_cluster.clustering import kmeans
from gpu_cluster.clustering.copies import as_originals
from gpu_cluster.clustering.model import Model, load_model
from gpu_cluster.clustering.reduce import apply
from gpu_cluster.config import EmbedConfig, PredictConfig
from gpu_cluster.embedding import features
from gpu_cluster.embedding.embed import embed
from gpu_cluster.embedding.engines import ENGINES, Engine, choose_engine
from gpu_cluster.embedding.extractors import Extractor, Joined, name_of
from gpu_cluster.embedding.given import Given, matched, opened_vectors
from gpu_cluster.embedding.vectors import Vectors
from gpu_cluster.errors import ConfigError, DataError, DeviceError, WeightsError
from gpu_cluster.events import Observer, Recorder
from gpu_cluster.files import escaped, printable, write_explained, write_whole
from gpu_cluster.jobs.prepare import Job, as_written, find_pictures, opened, rewriting_of, scratch_in
from gpu_cluster.manifest import Manifest
from gpu_cluster.portable import check_root
from gpu_cluster.records import Record
from gpu_cluster.report.pictures import check_inside
from gpu_cluster.report.prediction import MARK, Assigned, write_prediction_page
from gpu_cluster.report.tables import BAD_FILES_COLUMNS, csv_of, write_bad_files
from gpu_cluster.results import Embeddings
from gpu_cluster.run_folder import FinishedRun, explained
from gpu_cluster.staging import temporary


@dataclass(frozen=True, repr=False)
class Prediction(Record):
    """The result of `predict`; the arrays have one row for each of the n files that could be used.

    Attributes
    ----------
    out : path of the table
    bad_files : path of the table of files that could not be used; None if all files could be used
    report : path of the page; None unless it was asked for
    rows : (n,) host; manifest row
    labels : (n,) host; cluster of the run
    distances : (n,) float32, host; distance to the cluster's centre, in the run's space
    far : (n,) bool, host; whether it is farther away than 99% of the pictures that formed the cluster
    """

    out: Path
    bad_files: Path | None
    report: Path | None
    manifest: Manifest
    rows: IntArray
    labels: IntArray
    distances: FloatArray
    far: np.ndarray

    def __repr__(self) -> str:
        n_found = self.manifest.counts()["found"]
        counts = f"{len(self.rows):,} of {n_found:,} files found were assigned, {int(self.far.sum()):,} of them far"
        return f"<Prediction: {counts}; table {str(self.out)!r}>"


def predict(
    run: Path,
    config: PredictConfig,
    out: Path,
    observer: Observer | None = None,
    *,
    array: Any = None,
    array_names: Sequence[str] | None = None,
) -> Prediction:
    """Assign pictures to the clusters of the run folder `run`, and write `out` (`.csv` or `.parquet`).

    Pictures whose embeddings the store does not hold are embedded with the options and the engine of the run; only
    `batch_size` and `precision` are those of the config. For a run with embeddings that were given, those of the
    pictures are given too, as for `run`. An earlier table of predictions at `out`, or an empty file, is replaced; any
    other file there is refused.

    Raises
    ------
    ConfigError
        When no pictures are named, `out` cannot be written, `out` is a file that is not a table of predictions, or
        another engine is asked for than that of the run, or a device on which that does not compute. When the run was
        made with embeddings that were given and the config names none, or the other way round.
    DataError
        When the run has no usable model, or one for another version of decoding; or, if a page is asked for, not the
        tables of a run; or there are no pictures.
    DeviceError
        When the engine of the run is not installed.
    WeightsError
        When the weights are not those of the run.
    GpuClusterError
        For everything else that stops a job (see `gpu_cluster.errors`).
    """
    events = Recorder(observer or Observer())
    finished = FinishedRun(run)
    if not config.input.images and config.input.input_list is None:
        if not finished.model.is_dir():
            raise ConfigError(
                f"predict: {printable(str(run))!r} is no run folder; name the folder of a run first, "
                f"and the pictures after it: gpu-cluster predict RUN {printable(str(run))}"
            )
        raise ConfigError("predict: name pictures to assign, as folders, files or --input-list")
    # If `out` is a link, the table is written to where it points, as with a run folder.
    try:
        out = out.resolve() if out.is_symlink() else out
    # For a link that leads back to itself, the type of the error depends on Python's version.
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"--out: {printable(str(out))!r} cannot be written: {error}") from error
    page = _page(out) if config.report.report else None
    _check_out(out, page)
    # Before any folder of pictures is searched, which can take long.
    model, config = _load(run, config, events)
    if page is not None:
        _check_tables(finished)

    with opened_vectors(config.given, array, array_names) as vectors:
        _check_width(run, model, vectors)
        return _predict(finished, config, model, vectors, out, page, events)


def _predict(
    run: FinishedRun,
    config: PredictConfig,
    model: Model,
    vectors: Vectors | None,
    out: Path,
    page: Path | None,
    events: Recorder,
) -> Prediction:
    """Assign pictures, by the network or with vectors that were given; write the tables, and the page if asked for."""

    def find() -> Manifest:
        found = find_pictures(config.input, events, config.store).without_used(*config.given.named())
        if config.report.portable:
            check_root(found.root, found.paths)
        return found

    def with_network(weights: features.Weights, backend: Backend, _manifest: Manifest) -> Engine | Given:
        theirs = _embedding_of(model, config)
        try:
            features.check_names(theirs.features)
        except ConfigError as error:
            raise DataError(
                f"the model {printable(str(run.model))!r} has features that this gpu-cluster does not know ({error}): "
                "use the gpu-cluster that made it, or run the clustering again"
            ) from error
        extractor = features.extractor_of(theirs, weights)
        _check_model(run.folder, model, extractor)
        return choose_engine(backend, extractor, theirs)

    def with_vectors(_backend: Backend, manifest: Manifest) -> Engine | Given:
        assert vectors is not None, "else a network runs"
        return matched(vectors, manifest, events, scaling=model.reduction.scaling)

    given = None if vectors is None else with_vectors
    with opened(config, events, find, with_network, workers=config.executor, without_network=given) as job:
        with ExitStack() as until_assigned:
            scratch = None
            large = not job.backend.holds(4 * len(job.manifest) * job.tools.n_features)
            if (job.store is None or given is not None) and (large or job.executor.is_remote):
                scratch = until_assigned.enter_context(scratch_in(until_assigned.enter_context(temporary(out))))
            with events.stage("embed"):
                embeddings = _embedded(job, model, scratch)
            with events.stage("predict"):
                found = _assign(model, embeddings, job, out)
        if page is None:
            return found
        with events.stage("page"):
            new = Assigned(found.manifest, found.rows, found.labels, found.distances, found.far, model.far_distances)
            with explained(run.folder):
                write_prediction_page(page, run, new, out, portable=config.report.portable)
        return replace(found, report=page)


def _embedding_of(model: Model, config: PredictConfig) -> EmbedConfig:
    """Return how the model embeds pictures, with the options of the job that change nothing."""
    assert model.embed is not None, "a model without a network is used with given embeddings"
    return model.embed.model_copy(update=config.embed.model_dump(include={"batch_size", "precision", "weights"}))


def _embedded(job: Job[PredictConfig, Engine | Given], model: Model, scratch: Path | None) -> Embeddings:
    """Return the embeddings of the pictures: by the network of the run, or those that were given."""
    origin = job.tools
    if isinstance(origin, Given):
        return origin.embeddings(job.manifest, job.backend, job.events, scratch=scratch)
    return embed(
        job.manifest,
        job.source,
        origin,
        store=job.store,
        store_config=job.config.store,
        observer=job.events,
        scratch=scratch,
        may_choose=False,
        elsewhere=job.elsewhere(origin, _embedding_of(model, job.config), scratch),
    )


# A file with exactly these columns is a table of predictions and may be replaced; one with another column, which the
# user may have added, may not. The column of labels exists only if the run had labels.
_COLUMNS = ("path", "cluster", "distance", "far", "pc1", "pc2", "content_hash")
_LABEL_COLUMN = "cluster_label"


def _check_out(out: Path, page: Path | None) -> None:
    """Refuse, before work starts, an `out` that cannot be written or is not a table of predictions; and so its page."""
    if out.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"--out: expected a .csv or a .parquet file; found {printable(str(out))!r}")
    folder = out.absolute().parent
    if out.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"--out: {printable(str(out))!r} cannot be written: expected a file in a writable folder")
    for path, columns in ((out, _COLUMNS), (_bad_files(out), BAD_FILES_COLUMNS)):
        try:
            there = path.lstat()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError(f"--out: {printable(str(path))!r} cannot be written: {error.strerror}") from error
        if not stat.S_ISREG(there.st_mode) or (there.st_size and _columns_of(path) - {_LABEL_COLUMN} != set(columns)):
            raise ConfigError(
                f"--out: {printable(str(path))!r} would be replaced: expected a new file, or what an earlier "
                "`gpu-cluster predict` wrote; found something else"
            )

    if page is not None and page.exists() and not (page.is_file() and MARK in _beginning(page)):
        raise ConfigError(
            f"--report: {printable(str(page))!r} would be replaced: expected a new file, or a page that an earlier "
            "`gpu-cluster predict` wrote; found something else"
        )


def _beginning(page: Path) -> str:
    with page.open("rb") as stream:
        return stream.read(2_000).decode("utf-8", "replace")


def _page(out: Path) -> Path:
    return out.with_suffix(".html")


def _check_tables(run: FinishedRun) -> None:
    """Read what the page needs of the run, so that it is not missed after the work."""
    with explained(run.folder):
        for part in (run.pictures, run.metrics, run.thumbnails):
            len(part)
        check_inside(run)


def _bad_files(out: Path) -> Path:
    return out.with_name(f"{out.stem}.bad_files.csv")


def _columns_of(path: Path) -> set[str]:
    """Return the column names of a table, or an empty set if the file is not a table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix == ".parquet":
            return set(pq.read_schema(path).names)
        with path.open(encoding="utf-8", newline="") as stream:
            # The header of a table of predictions is never longer than this.
            return set(next(csv.reader([stream.readline(1_000)]), []))
    except (OSError, ValueError, csv.Error, pa.ArrowException):
        return set()


def _load(run: Path, config: PredictConfig, events: Recorder) -> tuple[Model, PredictConfig]:
    """Load the model of a run; return it, and the config with the engine and the device with which it can be used.

    Raises
    ------
    GpuClusterError
        When this machine or the config does not let its embeddings be computed as they were for the run.
    """
    folder, shown = FinishedRun(run).model, printable(str(run))
    backend = select(config.device).backend
    model = load_model(folder, backend)
    if model.embed is None:
        _check_given(shown, model, config)
        return model, config
    if config.given.is_given:
        raise ConfigError(
            f"--embeddings: the run {shown!r} was made with a network, whose embeddings do not mix with others; leave "
            "out --embeddings, or run the clustering again with the embeddings of its pictures"
        )
    engine, decoding, asked = model.embed.engine, model.embed.decoding, config.embed.engine
    of = model.embed.features
    if asked not in ("auto", engine):
        raise ConfigError(
            f"--engine {asked}: the run {shown!r} was made with the engine {engine}, and embeddings of two engines do "
            f"not mix; leave out --engine, or run the clustering again with --engine {asked}"
        )
    _check_features(shown, model.embed, config)
    if engine not in backend.engines and config.device == "auto":
        events.notice(f"The run was made with the engine {engine}, which computes on the CPU only: the CPU is used")
        config = config.model_copy(update={"device": "cpu"})
        backend = select("cpu").backend
        model = load_model(folder, backend)
    if engine not in backend.engines:
        raise ConfigError(
            f"the run {shown!r} was made with the engine {engine}, which computes on the CPU only; found "
            f"--device {config.device}: use --device cpu"
        )
    here = ENGINES[engine].installation()
    if here.remedy:
        raise DeviceError(
            f"the run {shown!r} was made with the engine {engine}, found here: {here.found}; {here.remedy}, or run the "
            "clustering again with the engine that is here"
        )
    if engine != backend.engines[0] or decoding != EmbedConfig().decoding or of != EmbedConfig().features:
        events.notice(
            f"The run was made with the features {of}, the engine {engine} and version {decoding} of decoding: these "
            "pictures are embedded so too"
        )
    return model, config.model_copy(update={"embed": config.embed.model_copy(update={"engine": engine})})


def _check_features(shown: str, theirs: EmbedConfig, config: PredictConfig) -> None:
    """Refuse other features than those of the run."""
    if config.embed.features is None:
        return
    # A pooling that is not named is that of the run.
    named = EmbedConfig(features=config.embed.features)
    pooling = named.pooling if "pooling" in named.model_fields_set else theirs.pooling
    if (named.features, pooling) != (theirs.features, theirs.pooling):
        raise ConfigError(
            f"--features {config.embed.features}: the run {shown!r} was made with the features {theirs.features} "
            f"(pooling {theirs.pooling}), and embeddings of other features do not mix with them; leave out --features, "
            "or run the clustering again with these features"
        )


def _check_given(shown: str, model: Model, config: PredictConfig) -> None:
    """Refuse to use a model of embeddings that were given without those of the new pictures."""
    if not config.given.is_given:
        by = model.features.get("by")
        raise ConfigError(
            f"the run {shown!r} was made with embeddings that were given{'' if by is None else f' ({by})'}; give those "
            "of these pictures too, computed in the same way: --embeddings FILE"
        )


def _check_width(run: Path, model: Model, vectors: Vectors | None) -> None:
    """Refuse vectors of another length than those of the run."""
    if vectors is not None and vectors.shape[1] != model.n_features:
        raise DataError(
            f"{vectors.shown}: expected {model.n_features:,} numbers for each picture, as in the run "
            f"{printable(str(run))!r}; found {vectors.shape[1]:,}"
        )


def _check_model(run: Path, model: Model, extractor: Extractor | Joined) -> None:
    """Refuse a model whose number of features is not that of the network, or that was made with other weights."""
    n_features, found = extractor.n_features, model.n_features
    if found != n_features:
        raise DataError(
            f"the model {printable(str(FinishedRun(run).model))!r} is damaged (expected {n_features} features, found "
            f"{found}): run the clustering again, which takes its embeddings from the store"
        )
    parts = extractor.parts
    theirs = model.features.get("joined", [model.features])
    if not isinstance(theirs, list) or len(theirs) != len(parts) or not all(isinstance(one, dict) for one in theirs):
        raise DataError(
            f"the model {printable(str(FinishedRun(run).model))!r} is damaged (expected {len(parts)} parts of its "
            "features): run the clustering again, which takes its embeddings from the store"
        )
    for part, share, one in zip(parts, extractor.shares, theirs, strict=True):
        if one.get("weight", 1.0) != share:
            raise DataError(
                f"the model {printable(str(FinishedRun(run).model))!r} is damaged (expected the weight {share:g} of "
                f"{name_of(part)}, found {one.get('weight')!r}): run the clustering again, which takes its embeddings "
                "from the store"
            )
        if one.get("weights") != part.key.get("weights"):
            remedy = (
                "give the run's weights with --weights"
                if part.key.get("backbone") == "VGG16"
                else "use the gpu-cluster that made it, or run the clustering again"
            )
            raise WeightsError(
                f"the run was made with other weights of {name_of(part)}: expected sha256 {one.get('weights')}, found "
                f"{part.key.get('weights')} in {printable(str(part.weights))!r}; {remedy}"
            )


def _assign(model: Model, embeddings: Embeddings, job: Job[PredictConfig, Engine | Given], out: Path) -> Prediction:
    """Find the cluster of each picture, and write the tables."""
    import pandas as pd

    backend, written = job.backend, job.config.report
    used = [] if isinstance(job.tools, Given) else [job.tools.extractor]
    rewrite = rewriting_of(job.config, job.manifest, out.absolute().parent, *used)
    manifest = as_written(job.manifest.with_bad(embeddings.bad), rewrite)

    if embeddings.x.shape[0]:
        x, pcs = apply(model.reduction, embeddings.x, backend)
        on_device = kmeans.nearest(x, model.centres, backend)
        squared = kmeans.squared_distances(x, model.centres, on_device, backend)
        originals = manifest.originals(embeddings.rows)
        labels, plane, distances = (
            backend.to_host(as_originals(values, originals, backend))
            for values in (on_device, pcs, backend.xp.sqrt(squared))
        )
    else:
        labels, plane, distances = np.empty(0, np.int64), np.empty((0, 2), np.float32), np.empty(0, np.float32)
    far = distances > model.far_distances[labels]
    bad_files = _bad_files(out) if manifest.bad else None
    found = Prediction(out, bad_files, None, manifest, embeddings.rows, labels, distances, far)
    columns: dict[str, Any] = {
        "path": [escaped(manifest.paths[row]) for row in embeddings.rows],
        "cluster": labels,
        "distance": distances,
        "far": far,
        "pc1": plane[:, 0],
        "pc2": plane[:, 1],
        "content_hash": [manifest.files[row].content_hash for row in embeddings.rows],
    }
    if model.cluster_labels is not None:
        names = pd.Series([model.cluster_labels[label] for label in labels], dtype="str")
        columns = {"path": columns.pop("path"), "cluster": columns.pop("cluster"), _LABEL_COLUMN: names, **columns}
    table = pd.DataFrame(columns)
    if out.suffix == ".csv":
        content = csv_of(table, safe=written.safe_csv).encode()
    else:
        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False)
        content = buffer.getvalue()
    with write_explained(out):
        write_whole(out, content)
    with write_explained(_bad_files(out)):
        if bad_files is None:
            # This table may be left from an earlier prediction, and would no longer be true.
            _bad_files(out).unlink(missing_ok=True)
        else:
            write_bad_files(bad_files, manifest, safe=written.safe_csv)
    return found

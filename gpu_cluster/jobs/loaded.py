"""Reads the folder of a finished run into arrays and data frames: `load_run`.

The folder enters, a `LoadedRun` leaves. This module must not know what is done with the results.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_cluster import inventory
from gpu_cluster.backend import CpuBackend
from gpu_cluster.bounded import UnfitError
from gpu_cluster.clustering.model import Model, load_model
from gpu_cluster.errors import DataError
from gpu_cluster.files import printable, unescaped
from gpu_cluster.records import Record
from gpu_cluster.run_folder import (
    ASSIGNMENTS_PARQUET,
    BAD_FILES,
    COMPARISON,
    FinishedRun,
    check_is_run_folder,
    explained,
)
from gpu_cluster.verdict import Verdict, judge

if TYPE_CHECKING:
    import pandas as pd

    from gpu_cluster.backend import FloatArray, IntArray

_DOING = "load the run"


@dataclass(frozen=True, repr=False)
class LoadedRun(Record):
    """The results of a finished run, as its folder holds them; docs/run-folder.md describes each of them.

    The tables that are only sometimes needed (`manifest`, `bad_files`, `near_duplicates`) are read when they are first
    used. A frame or an array is the same object each time: copy it before you change it.

    Attributes
    ----------
    folder : the run folder
    record : the content of `run.json`: versions, device, engine, seconds of each stage, notices
    metrics : the content of `metrics.json`: k, how it was chosen, the sizes of the clusters, all scores
    assignments : one row for each picture that was clustered: `path`, `cluster`, `label`, `distance`, ...
    sweep : one row for each k that was tried: `k`, `inertia`, `silhouette`, `agreement`, ...
    model : what `predict` needs; its arrays are NumPy's
    """

    folder: Path
    record: Mapping[str, Any]
    metrics: Mapping[str, Any]
    assignments: pd.DataFrame
    sweep: pd.DataFrame
    model: Model

    def __repr__(self) -> str:
        return f"<LoadedRun: {self.k} clusters, {len(self.assignments):,} pictures; folder {str(self.folder)!r}>"

    def _repr_html_(self) -> str | None:
        from gpu_cluster.report.notebook import notebook_view

        return notebook_view(self.folder)

    @property
    def config(self) -> Mapping[str, Any]:
        """The options of the run by section, as its version recorded them."""
        options: Mapping[str, Any] = self.record["config"]
        return options

    @property
    def k(self) -> int:
        """Number of clusters."""
        return int(self.metrics["k"])

    @property
    def clusters(self) -> IntArray:
        """Cluster of each row of `assignments`, (n,) int64."""
        clusters: IntArray = self.assignments["cluster"].to_numpy()
        return clusters

    @property
    def centres(self) -> FloatArray:
        """Centre of each cluster in the clustered space, (k, m) float32."""
        centres: FloatArray = self.model.centres
        return centres

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """Path of each row of `assignments` as the file system has it; surrogate escapes for bytes that are no UTF-8.

        It is relative to the folder that was given (`record["root"]`), if that is known.
        """
        return tuple(map(unescaped, self.assignments["path"]))

    @property
    def verdict(self) -> Verdict:
        """Whether the groups are clear, weak or none; `print(run.verdict)` says it in a sentence."""
        return judge(self.k, len(self.assignments), self.metrics["k_agreement"])

    @cached_property
    def manifest(self) -> pd.DataFrame:
        """One row for each file found: `path`, `status`, `reason`, `label`, `content_hash`, `size`, `mtime_ns`."""
        return self._read("manifest")

    @property
    def bad_files(self) -> pd.DataFrame:
        """One row for each file that could not be used: `path`, `reason`."""
        return self.manifest.loc[self.manifest["status"] == "bad", ["path", "reason"]].reset_index(drop=True)

    @cached_property
    def near_duplicates(self) -> pd.DataFrame:
        """One row for each pair of near duplicates: `path`, `other`, `cosine`."""
        return self._read("near_duplicates")

    def _read(self, table: str) -> pd.DataFrame:
        with explained(self.folder, _DOING):
            found: pd.DataFrame = getattr(FinishedRun(self.folder), table)
        return found


def load_run(folder: Path) -> LoadedRun:
    """Read the folder of a finished run; runs of earlier versions are read too.

    Raises
    ------
    DataError
        When it is not the folder of a finished run, when a file in it is damaged or missing, or when the run found no
        picture that it could read.
    """
    check_has_clusters(folder)
    return loaded(FinishedRun(folder))


def loaded(run: FinishedRun) -> LoadedRun:
    """Return what `load_run` does, of a run that has clusters and whose tables may have been read already.

    Raises
    ------
    DataError
        When a file in its folder is damaged or missing.
    """
    folder = run.folder
    with explained(folder, _DOING):
        record, metrics, assignments, sweep = run.record, run.metrics, run.pictures, run.sweep
        dict(record["config"])
        _check_columns(assignments, int(metrics["k"]))
    model = load_model(run.model, CpuBackend())
    with explained(folder, _DOING):
        if len(model.centres) != int(metrics["k"]):
            raise UnfitError(
                f"expected the {metrics['k']} clusters of metrics.json in its model too, not {len(model.centres)}"
            )
    return LoadedRun(folder, record, metrics, assignments, sweep, model)


def _check_columns(assignments: pd.DataFrame, k: int) -> None:
    """Check the columns that a run of any version has, which somebody may have changed.

    Raises
    ------
    UnfitError
        When a path is no text, or a cluster is not one of the k.
    KeyError
        When there is no such column.
    """
    clusters = assignments["cluster"]
    assignments[["label", "distance"]]
    if not all(isinstance(path, str) for path in assignments["path"]):
        raise UnfitError(f"expected a text for each path in {ASSIGNMENTS_PARQUET}")
    if clusters.dtype.kind not in "iu" or not clusters.between(0, k - 1).all():
        raise UnfitError(f"expected clusters from 0 to {k - 1} in {ASSIGNMENTS_PARQUET}")


def check_has_clusters(folder: Path) -> None:
    """Raise the error that says what a folder is, if it is not that of a finished run with clusters.

    Raises
    ------
    DataError
        When it is no run folder, a job still fills it, it is that of a comparison, or the run could read no picture.
    """
    shown = printable(str(folder))
    try:
        found = inventory.read(folder) if folder.is_dir() else None
    except OSError as error:
        raise DataError(f"cannot read {shown!r}: {error.strerror}") from error
    if found is not None and found.files is None:
        raise DataError(
            f"{shown!r} is being written, or was left by a run that was killed: expected the folder of a finished run, "
            f"which will have the name {printable(found.name)!r}; wait for the run to end, or run it again"
        )
    check_is_run_folder(folder)
    if (folder / COMPARISON).exists():
        raise DataError(
            f"{shown!r} is the folder of a comparison, which keeps no clusters: expected the folder that "
            "`gpu-cluster run` left"
        )
    if found is not None and ASSIGNMENTS_PARQUET not in (found.files or ()):
        raise DataError(
            f"{shown!r} holds no clusters, because none of its pictures could be read: the reasons are in {BAD_FILES}"
        )

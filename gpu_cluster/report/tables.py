"""Writes results into the files of the run folder: tables, scores, the record of the run, and plots.

This module must not compute results; it only formats them. docs/run-folder.md describes the formats.

The device's own data frames take what is on the device (clusters, distances, positions) and write it as Parquet. Text
and CSV are pandas': cuDF writes at most 10 digits, which do not give the same float32 when they are read.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_cluster import run_folder
from gpu_cluster.backend import Backend, take
from gpu_cluster.config import ReportConfig
from gpu_cluster.files import escaped, write_whole
from gpu_cluster.images.source import Source
from gpu_cluster.manifest import Manifest
from gpu_cluster.portable import portable_record
from gpu_cluster.report import plots
from gpu_cluster.report.pictures import least_certain
from gpu_cluster.results import Compared, Comparison, Findings, JobRecord, Scores
from gpu_cluster.store.copies import CopyShards
from gpu_cluster.store.parts import Parts
from gpu_cluster.words import for_spreadsheet

if TYPE_CHECKING:
    import pandas as pd


def write_report(
    stage: Path,
    manifest: Manifest,
    source: Source,
    findings: Findings,
    config: ReportConfig,
    *,
    backend: Backend,
    parts: Parts,
    copies: CopyShards | None = None,
) -> None:
    """Write the tables, the scores and the plots of a run into the folder `stage`; `parts` keeps the plots.

    `copies` has small copies of pictures that are no files of this machine.
    """
    safe = config.safe_csv
    write_bad_files(stage / run_folder.BAD_FILES, manifest, safe=safe)
    assignments = _assignments(manifest, findings, backend)
    # Numbers are written with the fewest digits that give the same float32 when they are read.
    _write_csv(stage / run_folder.ASSIGNMENTS, backend.to_pandas(assignments), safe=safe)
    _write_parquet(stage / run_folder.ASSIGNMENTS_PARQUET, assignments)
    _write_csv(stage / run_folder.SWEEP, _sweep_table(findings), safe=safe)
    _write_csv(stage / run_folder.NEAR_DUPLICATES, _near_duplicates_table(manifest, findings), safe=safe)
    write_whole(stage / run_folder.METRICS, run_folder.as_json(_metrics(manifest, findings, backend)))
    plots.draw_all(
        stage / run_folder.PLOTS,
        manifest,
        source,
        findings,
        backend=backend,
        most_thumbnails=config.thumbnails,
        parts=parts,
        copies=copies,
    )


def write_comparison(stage: Path, found: Comparison) -> None:
    """Write the table of a comparison, as CSV and as Markdown, and its plot."""
    import pandas as pd

    table = pd.DataFrame(
        {column.name: [getattr(row, column.name) for row in found.rows] for column in fields(Compared)}
    )
    _write_csv(stage / run_folder.COMPARISON, table, safe=found.config.report.safe_csv)
    page = [*comparison_lines(found), "", conclusion(found)]
    (stage / run_folder.COMPARISON_PAGE).write_text("\n".join(page) + "\n", encoding="utf-8")
    (stage / run_folder.PLOTS).mkdir()
    plots.draw_comparison(stage / run_folder.COMPARISON_PLOT, found)


# The number of different values from which on a column is shown, if it is not 1. Usually all rows have the same number
# of images, so `n_images` needs 2.
_FEWEST_VALUES = {"k": 0, "n_images": 2}

_COMPARED: Mapping[str, tuple[str, str]] = {
    "n_images": ("images", "d"),
    "k": ("groups", "d"),
    "noise": ("noise", ".0%"),
    "silhouette": ("silhouette", ".2f"),
    "stability": ("stability", ".2f"),
    "homogeneity": ("homogeneity", ".2f"),
    "adjusted_rand": ("ARI", ".2f"),
    "normalized_mutual_info": ("NMI", ".2f"),
    "features_s": ("features, s", ".1f"),
    "cluster_s": ("groups, s", ".2f"),
}


def comparison_table(found: Comparison) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return the titles and the rows of the table of a comparison, without the columns that show nothing.

    Groups that could not be made have no number; the reason stands in their third cell.
    """
    n_values = {name: len({getattr(row, name) for row in found.rows} - {None}) for name in _COMPARED}
    shown = {
        name: (title, form)
        for name, (title, form) in _COMPARED.items()
        if n_values[name] >= _FEWEST_VALUES.get(name, 1)
    }
    rows = []
    for row in found.rows:
        values = [getattr(row, name) for name in shown]
        cells = [
            "" if value is None else format(value, form)
            for value, (_, form) in zip(values, shown.values(), strict=True)
        ]
        if row.reason is not None:
            cells = [row.reason, *[""] * (len(shown) - 1)]
        rows.append((row.features, row.algorithm, *cells))
    return ["features", "algorithm", *(title for title, _ in shown.values())], rows


# A bar in a cell of a Markdown table.
_BAR = "\\|"


def comparison_lines(found: Comparison) -> list[str]:
    """Return the table of a comparison in Markdown."""
    titles, rows = comparison_table(found)
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for cells in rows:
        lines.append(f"| {' | '.join(cell.replace('|', _BAR) for cell in cells)} |")
    return lines


# An ARI below this is hardly better than chance.
_RELATED = 0.1

_WHY_NOT_STABILITY = (
    "it says only that the same groups are found again in a part of the pictures, and groups by background or "
    "brightness can be as stable as groups by what is shown"
)


def conclusion(found: Comparison) -> str:
    """Return in plain words which features and algorithm are best, and why stability alone does not say it."""
    stable = max((row for row in found.rows if row.stability is not None), key=_stability, default=None)
    labelled = [row for row in found.rows if row.adjusted_rand is not None]
    if not labelled and stable is None:
        return "Nothing here can be called best: no groups could be compared."
    most_stable = "" if stable is None else f"{_named(stable)} (stability {stable.stability:.2f})"
    if not labelled:
        return (
            f"The groups of {most_stable} are found again most often. Whether they are the best cannot be said without "
            f"labels: {_WHY_NOT_STABILITY}. Look at the pictures of the groups, or give labels for some of them."
        )
    best = max(labelled, key=lambda row: (row.adjusted_rand or 0, _stability(row)))
    words = (
        f"Best by the labels: {_named(best)}, with the highest ARI ({best.adjusted_rand:.2f}; 1 is the same as the "
        "labels)."
    )
    if (best.adjusted_rand or 0) < _RELATED:
        words += " Even this is hardly better than chance: none of these groups are those of the labels."
    if stable is None:
        return words
    if stable is best:
        return f"{words} It is also the most stable, but stability alone does not say it: {_WHY_NOT_STABILITY}."
    theirs = "" if stable.adjusted_rand is None else f", with an ARI of {stable.adjusted_rand:.2f}"
    return (
        f"{words} The most stable is {most_stable}{theirs}. Stability alone does not say which is best: "
        f"{_WHY_NOT_STABILITY}."
    )


def _named(row: Compared) -> str:
    return f"{row.features} with {row.algorithm}"


def _stability(row: Compared) -> float:
    return -1.0 if row.stability is None else row.stability


BAD_FILES_COLUMNS = ("path", "reason")


def write_bad_files(file: Path, manifest: Manifest, *, safe: bool = False) -> None:
    """Write the table of the files that cannot be used; it is only a header if every file was read.

    With `safe`, it is written as `csv_of` writes tables for spreadsheets.
    """
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL if safe else csv.QUOTE_MINIMAL)
    table.writerow(BAD_FILES_COLUMNS)
    for row, why in sorted(manifest.bad.items()):
        cells = (escaped(manifest.paths[row]), why)
        table.writerow(map(for_spreadsheet, cells) if safe else cells)
    write_whole(file, stream.getvalue().encode())


def write_run_record(
    stage: Path, result: JobRecord, findings: Findings | None, *, command: str, backend: Backend
) -> None:
    """Write `manifest.parquet` and `run.json`; the latter can be given as `--config` to repeat the run."""
    manifest = result.manifest
    _write_parquet(stage / run_folder.MANIFEST, _manifest_table(manifest))
    files = [{"path": str(path), "sha256": sha256} for path, sha256 in result.weights]
    record = {
        "gpu_cluster": version("gpu-cluster"),
        "config": result.config.model_dump(mode="json"),
        "command": command,
        "root": str(manifest.root),
        "root_name": manifest.name,
        "files": manifest.counts(),
        # Of the first network, where every version has it; `features` names those of all.
        "weights": files[0] if files else None,
        "weights_of_others": files[1:],
        "features": [dict(part) for part in result.features],
        "embeddings": None if result.embeddings is None else dict(result.embeddings),
        **result.device,
        "repeats": dict(backend.repeats),
        "device_reason": result.device_reason,
        **_facts(findings),
        "stages_s": {stage_name: round(seconds, 3) for stage_name, seconds in result.stages_s.items()},
        "notices": list(result.notices),
    }
    portable = record["config"].get("report", {}).get("portable")
    write_whole(stage / run_folder.RECORD, run_folder.as_json(portable_record(record) if portable else record))


def _manifest_table(manifest: Manifest) -> pd.DataFrame:
    """Return the table with one row for each file found."""
    import pandas as pd

    statuses = [manifest.status(row) for row in range(len(manifest))]
    facts = manifest.facts
    text = {
        "path": [escaped(path) for path in manifest.paths],
        "status": [status for status, _ in statuses],
        "reason": [reason for _, reason in statuses],
        "format": facts.column("format"),
        "mode": facts.column("mode"),
        "profile": facts.column("profile"),
        "content_hash": facts.column("content_hash"),
        "label": list(manifest.labels or [None] * len(manifest)),
    }
    numbers = ("size", "mtime_ns", "width", "height", "orientation")
    # Made as columns of integers: a list in which a number is missing would become floats, which round nanoseconds.
    return pd.DataFrame(
        {name: pd.Series(values, dtype="str") for name, values in text.items()}
        | {name: pd.Series(facts.column(name), dtype="Int64") for name in numbers}
    )


def _assignments(manifest: Manifest, findings: Findings, backend: Backend) -> Any:
    """Return the table with one row for each embedded image, in the order of the manifest."""
    clustering, rows = findings.clustering, findings.embeddings.rows
    is_medoid = np.zeros(len(rows), dtype=bool)
    is_medoid[clustering.medoids] = True
    labels = manifest.labels or (None,) * len(manifest)
    pcs = findings.projection.pcs
    return backend.frames.DataFrame(
        {
            "path": [escaped(manifest.paths[row]) for row in rows],
            "cluster": clustering.labels,
            "label": backend.frames.Series([labels[row] for row in rows], dtype="str"),
            "distance": clustering.distances,
            "silhouette": findings.scores.silhouettes,
            "is_medoid": is_medoid,
            "pc1": pcs[:, 0],
            "pc2": pcs[:, 1],
            "tsne1": findings.tsne[:, 0],
            "tsne2": findings.tsne[:, 1],
            "content_hash": [manifest.files[row].content_hash for row in rows],
        }
    )


def _near_duplicates_table(manifest: Manifest, findings: Findings) -> pd.DataFrame:
    import pandas as pd

    pairs, rows = findings.near_duplicates, findings.embeddings.rows
    return pd.DataFrame(
        {
            "path": pd.Series([escaped(manifest.paths[rows[pair.row]]) for pair in pairs], dtype="str"),
            "other": pd.Series([escaped(manifest.paths[rows[pair.other]]) for pair in pairs], dtype="str"),
            "cosine": pd.Series([round(pair.cosine, 6) for pair in pairs], dtype="float64"),
        }
    )


def _sweep_table(findings: Findings) -> pd.DataFrame:
    import pandas as pd

    sweep, points, best_k = findings.sweep, findings.sweep.points, findings.sweep.best_k
    return pd.DataFrame(
        {
            "k": [point.k for point in points],
            "inertia": [point.inertia for point in points],
            "silhouette": [point.silhouette for point in points],
            "agreement": [point.agreement for point in points],
            "n_iter": [point.n_iter for point in points],
            "elapsed_s": [round(point.elapsed_s, 4) for point in points],
            "chosen": [point.k == best_k for point in points],
            "n_restarted": [sweep.n_restarted] * len(points),
            "n_agreement": [sweep.n_agreement] * len(points),
            "n_silhouette": [sweep.n_silhouette] * len(points),
        }
    )


def _metrics(manifest: Manifest, findings: Findings, backend: Backend) -> dict[str, Any]:
    scores, clustering, sweep = findings.scores, findings.clustering, findings.sweep
    return {
        "k": clustering.k,
        "k_asked": clustering.k_asked,
        "k_chosen_by": sweep.chosen_by,
        "k_agreement": sweep.agreement,
        "k_doubts": sweep.doubts,
        "sweep_n_restarted": sweep.n_restarted,
        "sweep_n_agreement": sweep.n_agreement,
        "sweep_n_silhouette": sweep.n_silhouette,
        "space": findings.projection.space,
        "sweep_space": findings.projection.sweep_space,
        "files": manifest.counts(),
        "n_images": len(findings.embeddings.rows),
        "cluster_sizes": clustering.sizes.tolist(),
        "nearest_other": _nearest_others(findings, backend),
        "internal": dict(scores.internal),
        "n_silhouette": scores.n_silhouette,
        "external": None if scores.external is None else dict(scores.external),
        "labels": _label_counts(manifest, scores),
        "class_by_cluster": None
        if scores.contingency is None
        else {"classes": list(scores.contingency.classes), "counts": scores.contingency.counts.tolist()},
        "holdout": None if scores.holdout is None else dict(scores.holdout),
    }


def _nearest_others(findings: Findings, backend: Backend) -> list[int] | None:
    """Return, for each of the least certain pictures, the other cluster whose centre is nearest; None with one cluster.

    The pictures are in the order of `least_certain`, which is that of the page.
    """
    clustering = findings.clustering
    if clustering.k == 1:
        return None
    rows = np.array(least_certain(findings.scores.silhouettes), dtype=np.int64)
    x = backend.to_host(take(findings.projection.x, rows, backend))
    distances = np.linalg.norm(x[:, None, :] - backend.to_host(clustering.centres)[None, :, :], axis=2)
    distances[np.arange(len(rows)), backend.to_host(clustering.labels)[rows]] = np.inf
    nearest: list[int] = distances.argmin(axis=1).tolist()
    return nearest


def _label_counts(manifest: Manifest, scores: Scores) -> dict[str, Any] | None:
    if manifest.labels is None:
        return None
    return {
        "source": manifest.label_source,
        "n_labelled_images": scores.n_labelled,
        "n_files_without_label": manifest.n_files_without_label,
        "n_labels_without_file": manifest.n_labels_without_file,
        "n_ambiguous_labels": manifest.n_ambiguous_labels,
    }


def _facts(findings: Findings | None) -> dict[str, Any]:
    if findings is None:
        return {}
    embeddings = findings.embeddings
    return {
        "n_computed": embeddings.n_computed,
        "images_per_s": None if embeddings.images_per_s is None else round(embeddings.images_per_s, 3),
        "precision": embeddings.precision,
        "batch_size": embeddings.batch_size,
        "pca_solver": findings.projection.pca_solver,
    }


def csv_of(table: pd.DataFrame, *, safe: bool) -> str:
    """Return a table as CSV; with `safe`, every cell is in quotes, and no text begins as a formula of a spreadsheet."""
    import pandas as pd

    if not safe:
        return table.to_csv(index=False, lineterminator="\n")
    cells = {}
    for name, column in table.items():
        if pd.api.types.is_numeric_dtype(column):
            # As NumPy writes them, and not in quotes as pandas does, which would give a float32 the digits of a float.
            texts = column.to_numpy().astype(str)
        else:
            texts = column.map(for_spreadsheet, na_action="ignore").to_numpy(object)
        cells[name] = np.where(column.isna(), "", texts)
    return pd.DataFrame(cells).to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_ALL)


def _write_csv(path: Path, table: pd.DataFrame, *, safe: bool) -> None:
    path.write_text(csv_of(table, safe=safe), encoding="utf-8", newline="")


def _write_parquet(path: Path, table: Any) -> None:
    # The file is written from memory, because Arrow does not accept a path that is not UTF-8.
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    path.write_bytes(buffer.getvalue())

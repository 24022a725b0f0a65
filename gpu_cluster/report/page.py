"""Turns a finished run folder into report.html, a single file that needs no other file.

File names and labels can contain any text and must not be trusted: Jinja escapes them, the page's script sets them only
as text, and the page's Content-Security-Policy allows only this script and style, by their hashes, and nothing from any
other place. This module must not know devices.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gpu_cluster.bounded import UnfitError
from gpu_cluster.config import EARLIER_ENGINE
from gpu_cluster.errors import DataError, GpuClusterError
from gpu_cluster.events import Observer
from gpu_cluster.files import printable, write_explained
from gpu_cluster.images.source import LocalFiles, Source
from gpu_cluster.images.thumbnails import KeptSmall, Thumbnails
from gpu_cluster.inventory import replace_file
from gpu_cluster.manifest import Manifest, sum_in_words
from gpu_cluster.report.groups import cards, crosstab
from gpu_cluster.report.html import Links, are_files, render, visible
from gpu_cluster.report.kept import KeptCopies, kept_sheets
from gpu_cluster.report.map import map_data
from gpu_cluster.report.pictures import ALONE, MOST_CARDS, Chosen, Shown, check_inside
from gpu_cluster.results import KChoice
from gpu_cluster.run_folder import PAGE, THUMBNAILS, FinishedRun
from gpu_cluster.store.copies import CopyShards
from gpu_cluster.store.parts import Parts
from gpu_cluster.verdict import Verdict, beside_verdict, judge
from gpu_cluster.words import count, given_in_words

_MOST_ROWS = 500

# The most characters of an error of a library that are shown.
_MOST_SHOWN = 500


def write_page(
    run: FinishedRun,
    observer: Observer,
    *,
    root: Path | None = None,
    found: Manifest | None = None,
    portable: bool = False,
    parts: Parts | None = None,
    source: Source | None = None,
    copies: CopyShards | None = None,
) -> Path:
    """Write `report.html` into a finished run folder; it replaces an earlier page. Return its path.

    The small copies of the pictures are kept in the folder. They are made from the pictures the first time; later pages
    show the same copies, wherever the pictures are then.

    Parameters
    ----------
    root
        Where the pictures are now; all of them are read again from there, and the links point there.
    found
        The files of the run, which has just written the folder; the record of a portable run does not say where they
        are. Without it, somebody else may have written the folder: then no path in it may lead out of the folder of the
        pictures, and only files with the contents that the run found are shown.
    portable
        Whether the page has no links to the pictures, and the small copies do not say where the pictures are. This is
        also so if nobody has said it: the record of a portable run does not, unless an earlier `root` did.
    parts
        Keeps small copies for the next run with the same pictures; used only with `found`.
    source, copies
        Where the pictures are that `found` names, and small copies of those that are no files of this machine. Without
        them, only files are read: a run folder of somebody else must not make this machine ask any server.

    Raises
    ------
    DataError
        When the folder is not a finished run of this version, or none of its pictures can be found, and there are no
        copies of them; an earlier page stays as it is.
    JobError
        When the page cannot be written; an earlier page stays as it is.
    """
    with explained(run.folder):
        place, kept = run.thumbnails
        linked = None if portable or not are_files(run.pictures["path"]) else root or place
        place = root or place or (None if found is None else found.root)
        if found is None:
            check_inside(run)
        chosen = Chosen(run)
        copies_kept = None if found is None or parts is None else KeptCopies(parts, run, chosen, found)
        kept = kept if copies_kept is None else copies_kept.by_path()
        if found is not None and source is not None and not kept:
            kept = _kept_with_scans(run, found, source, copies, chosen)
        files = None if place is None else LocalFiles(place)
        thumbnails = Thumbnails(
            source if found is not None and source is not None else files,
            run.pictures["path"],
            kept=kept,
            hashes=run.pictures["content_hash"] if found is None else None,
            again=root is not None,
        )
        thumbnails.make(chosen.alone, ALONE)
        thumbnails.make(chosen.on_sheets, chosen.side_on_sheet)
        if copies_kept is not None and thumbnails.n_looked_for:
            copies_kept.keep(thumbnails.copies())
        _tell_what_is_gone(run, thumbnails, place, observer, asked=root is not None)
        content = _render(run, chosen, thumbnails, linked, parts or Parts(None)).encode()
        shown = thumbnails.copies()
    with write_explained(run.folder / THUMBNAILS):
        replace_file(run.folder, THUMBNAILS, run.thumbnails_file(linked, shown))
    path = run.folder / PAGE
    with write_explained(path):
        replace_file(run.folder, PAGE, content)
    return path


def _tell_what_is_gone(
    run: FinishedRun, thumbnails: Thumbnails, root: Path | None, observer: Observer, *, asked: bool
) -> None:
    """Report pictures that are not where they were; refuse to make a page that shows none of them.

    Raises
    ------
    DataError
        When no picture could be found, so that `root` is wrong, or there is nothing to show.
    """
    gone, n = len(thumbnails.gone), len(run.pictures)
    if not gone:
        # If every copy was kept, no picture was looked for; only the links need it.
        if root is not None and not root.is_dir():
            observer.notice(
                f"The pictures are no longer in {printable(str(root))!r}: the report keeps its small copies of them, "
                "but its links to the files lead nowhere. Give --root DIR with the folder that holds the pictures now"
            )
        return
    first = printable(str(run.pictures["path"].iloc[min(thumbnails.gone)]))
    where = "the folder that a portable run does not name" if root is None else repr(printable(str(root)))
    if (asked or not thumbnails.copies()) and gone >= thumbnails.n_looked_for:
        raise DataError(
            f"cannot make a report of {printable(str(run.folder))!r}: expected its {n:,} pictures in "
            f"{where}, found none of them (the first is {first!r}); give --root DIR with the folder "
            "that holds them now; nothing was changed"
        )
    observer.notice(
        f"{count(gone, 'picture')} of the report {'is' if gone == 1 else 'are'} not in {where}, or "
        f"changed (the first is {first!r}): the report keeps earlier small copies where it has them, and shows grey "
        "squares for the others"
    )


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn any error in the block, which reads a run folder, into a DataError that names the folder."""
    try:
        yield
    except (MemoryError, ImportError, GpuClusterError):
        raise
    # The files in the folder may have been changed or damaged, which can raise any type of error.
    except Exception as error:
        what = "" if isinstance(error, UnfitError) else f"{type(error).__name__}: "
        raise DataError(
            f"cannot make a report of {printable(str(folder))!r}: expected the folder that `gpu-cluster run` left, "
            f"found {what}{' '.join(str(error).split())[:_MOST_SHOWN]}; give the folder as the run left it, or run "
            "the clustering again"
        ) from error


def _kept_with_scans(
    run: FinishedRun, found: Manifest, source: Source, copies: CopyShards | None, chosen: Chosen
) -> dict[str, bytes]:
    """Return small copies of those of the pictures on the page that are no files of this machine, by their paths."""
    good = [row for row in range(len(found)) if row not in found.bad]
    rows = sorted({*chosen.alone, *map(int, chosen.on_sheets)})
    by_location = KeptSmall(source, found, [good[row] for row in rows], copies).by_location()
    shown = list(run.pictures["path"].iloc[rows])
    of = {path: by_location.get(found.paths[good[row]], b"") for path, row in zip(shown, rows, strict=True)}
    return {path: copy for path, copy in of.items() if copy}


def _render(run: FinishedRun, chosen: Chosen, thumbnails: Thumbnails, root: Path | None, parts: Parts) -> str:
    import markupsafe

    links = None if root is None else Links(root, run.folder)
    shown = Shown(run, thumbnails, links)
    sheets = kept_sheets(parts, thumbnails, chosen)
    values = {
        "data_json": markupsafe.Markup(map_data(run, chosen, sheets, links)),
        "sheets": sheets.uris,
        "cards": list(cards(run, chosen, shown)),
        "uncertain": _uncertain(run, chosen, shown),
        "near_duplicates": [{"pictures": shown.all(pair), "alike": _alike(cosine)} for pair, cosine in chosen.pairs],
        "title": f"What is in {visible(_title(run, root))}",
        "linked": links is not None,
        "in_place": run.record["root"] is not None,
        "map_words": _map_words(run, chosen),
    }
    return render("report.html", {**values, **_words(run), **_tables(run)})


def _title(run: FinishedRun, root: Path | None) -> str:
    return run.record["root_name"] if root is None else root.name or str(root)


def _uncertain(run: FinishedRun, chosen: Chosen, shown: Shown) -> list[dict[str, Any]]:
    """Return the least certain pictures, each with the nearest other group; None where the run has not kept it."""
    others = run.metrics.get("nearest_other") or [None] * len(chosen.uncertain)
    pictures = shown.all(chosen.uncertain)
    return [{**picture, "other": other} for picture, other in zip(pictures, others, strict=True)]


def _alike(cosine: float) -> str:
    """Return a cosine as a percentage, rounded down: only pictures with the same embedding are 100% alike."""
    return f"{math.floor(cosine * 1000 + 1e-6) / 10:.1f}% alike"


def _words(run: FinishedRun) -> dict[str, Any]:
    """Return the sentences of the page, by their names in the template."""
    verdict = verdict_of(run)
    return {
        "clarity": verdict.clarity.name.lower().replace("_", "-"),
        "verdict": verdict.words,
        "answer": _answer(run),
        "facts": _facts(run),
        "k_words": _k_words(run),
        "label_words": _label_words(run),
        "command": visible(run.record["command"]),
        "repeated": " ".join(["gpu-cluster run", *(["FOLDER"] if run.is_portable else []), "--config run.json"]),
        "notices": [visible(notice) for notice in run.record["notices"]],
    }


def verdict_of(run: FinishedRun) -> Verdict:
    """Return whether the groups of a finished run are clear."""
    metrics = run.metrics
    return judge(int(metrics["k_asked"]), int(metrics["n_images"]), metrics["k_agreement"])


def _tables(run: FinishedRun) -> dict[str, Any]:
    """Return the tables of the page, their lengths and the only plot, by their names in the template."""
    copies = run.manifest[run.manifest["status"] == "duplicate"]
    bad = run.manifest[run.manifest["status"] == "bad"]
    contradictions = _contradictions(run)
    sweep = [
        {
            "k": int(row.k),
            "inertia": _number(row.inertia, "{:.4g}"),
            "silhouette": _number(row.silhouette, "{:.3f}"),
            "agreement": _number(row.agreement, "{:.3f}"),
            "chosen": bool(row.chosen),
        }
        for _, row in run.sweep.iterrows()
    ]
    return {
        "elbow": f"data:image/png;base64,{base64.b64encode(run.elbow).decode()}",
        "sweep": sweep,
        "n_cards_left_out": max(0, int(run.metrics["k"]) - MOST_CARDS),
        "has_labels": run.metrics["class_by_cluster"] is not None,
        "crosstab": crosstab(run),
        "n_exact": len(copies),
        "exact": _rows(copies, contradictions),
        "n_contradictions": len(contradictions),
        "n_near_duplicates": len(run.near_duplicates),
        "n_bad": len(bad),
        "bad": _rows(bad),
        "record": list(_record(run)),
    }


def _contradictions(run: FinishedRun) -> dict[str, str]:
    """Return, by path, what is said of each exact copy whose label is not that of the file with the same content."""
    labelled = run.manifest[run.manifest["label"].notna()]
    kept = labelled[labelled["status"] == "ok"].set_index("content_hash")["label"]
    copies = labelled[labelled["status"] == "duplicate"]
    pairs = zip(copies["path"], copies["label"], copies["content_hash"].map(kept), strict=True)
    return {
        path: f", but its label is {label}, and the label of that file is {other}"
        for path, label, other in pairs
        if isinstance(other, str) and other != label
    }


def _answer(run: FinishedRun) -> str:
    metrics = run.metrics
    n, k = metrics["n_images"], metrics["k"]
    words = [f"{count(n, 'picture')} in {count(k, 'group')}."]
    how = {
        KChoice.GIVEN: "The number of groups was given.",
        KChoice.AGREEMENT: "This number of groups is the one at which the restarts of k-means agree most.",
        KChoice.SILHOUETTE: "This number of groups is the one with the highest silhouette.",
        KChoice.KNEE: "This number of groups is at the knee of the inertia curve.",
        KChoice.CHORD: "There was no clear knee; this number of groups is the one farthest from the chord.",
        KChoice.ONLY_ONE: "No other number of groups was tried.",
    }[KChoice(metrics["k_chosen_by"])]
    words.append(how)
    words += beside_verdict(metrics["k_doubts"])
    if metrics["external"] is not None:
        external = metrics["external"]
        words.append(
            f"Compared with the labels: adjusted Rand index {external['adjusted_rand']:.2f}, homogeneity "
            f"{external['homogeneity']:.2f} (1 is the same as the labels, 0 is chance)."
        )
    return " ".join(words)


def _facts(run: FinishedRun) -> str:
    record, files = run.record, run.record["files"]
    seconds = sum(record["stages_s"].values())
    where = f"On the {record['device']} ({record['processor']}), {seconds:.1f} s."
    given = record.get("embeddings")
    if given is not None:
        where += f" The embeddings were given{'' if given['by'] is None else ': ' + visible(given['by'])}."
    return f"{count(files['found'], 'file')} found: {sum_in_words(files, 'clustered')}. {where}"


def _map_words(run: FinishedRun, chosen: Chosen) -> str:
    n, n_shown, n_thumbnails = len(run.pictures), len(chosen.on_map), len(chosen.on_sheets)
    words = (
        "Pictures that look alike lie side by side. Point at the map to see the nearest picture; zoom in to see small "
        "copies. Click a picture to see its group alone. To zoom with the wheel, click the map first."
    )
    if n_shown < n:
        words += (
            f" The map shows {n_shown:,} of {n:,} pictures: the nearest to the centres of the groups, and others "
            "chosen at random."
        )
    if n_thumbnails < n_shown:
        words += f" {n_thumbnails:,} of them have a small copy."
    sample = run.record["config"]["report"]["layout_sample"]
    if n > sample:
        words += f" t-SNE was computed for {sample:,} of them; each other picture lies beside its nearest one of these."
    return words


def _k_words(run: FinishedRun) -> str:
    sentences = (
        *run.metrics["k_doubts"],
        f"Each number was tried on the embeddings after these steps: {run.metrics['sweep_space']}",
        *_samples_in_words(run),
    )
    return " ".join(f"{sentence}." for sentence in sentences)


def _samples_in_words(run: FinishedRun) -> Iterator[str]:
    """Yield what was computed on a sample of the pictures when k was chosen; older runs used no sample of restarts."""
    n = run.metrics["n_images"]
    restarted, agreed, scored = (run.metrics.get(f"sweep_n_{of}", n) for of in ("restarted", "agreement", "silhouette"))
    if restarted < n:
        yield (
            f"The restarts ran on a random sample of {restarted:,} of the {n:,} pictures, and their agreement was "
            f"computed on {agreed:,}; the best restart was carried on with all pictures, and the inertia is that of all"
        )
    if scored < n:
        yield f"The silhouettes are those of a random sample of {scored:,} pictures"


def _label_words(run: FinishedRun) -> str:
    labels = run.metrics["labels"]
    if labels is None:
        return ""
    return f"{count(labels['n_labelled_images'], 'picture')} labelled by {visible(labels['source'])}."


def _rows(table: Any, more: Mapping[str, str] | None = None) -> list[dict[str, str]]:
    """Return the files of a table with their reasons, and by path what is to be said `more`."""
    rows = zip(table["path"][:_MOST_ROWS], table["reason"][:_MOST_ROWS], strict=True)
    return [{"name": visible(path), "reason": visible(reason + (more or {}).get(path, ""))} for path, reason in rows]


def _record(run: FinishedRun) -> Iterator[tuple[str, str]]:
    record = run.record
    yield "gpu-cluster", record["gpu_cluster"]
    yield "space", run.metrics["space"]
    yield "device", f"{record['device']}: {record['device_reason']}"
    given = record.get("embeddings")
    if given is None:
        engine, reason = record.get("engine", EARLIER_ENGINE), record.get("engine_reason", "the record names none")
        yield "engine", f"{engine}: {reason}"
        for part in record.get("features", ()):
            yield "features", visible(_part_in_words(part))
        for file in (record["weights"], *record.get("weights_of_others", ())):
            if file is not None:
                yield "weights", f"{visible(file['path'])}, sha256 {file['sha256']}"
    else:
        yield "embeddings", f"{visible(given_in_words(given))}, sha256 {given['sha256']}; no network ran"
    yield from record["versions"].items()
    for stage, seconds in record["stages_s"].items():
        yield f"time for {stage}", f"{seconds:.1f} s"


def _part_in_words(part: Mapping[str, Any]) -> str:
    """Return what a part of the features is: its name, what else there is to say of it, and its weight."""
    name = part.get("backbone") or part["features"]
    known = ("backbone", "features", "weights", "n_features", "weight")
    more = [f"{key} {value}" for key, value in part.items() if key not in known]
    return ", ".join([name, *more, f"{part['n_features']:,} numbers", f"weight {part['weight']:g}"])


def _number(value: float, form: str) -> str:
    return "" if np.isnan(value) else form.format(value)

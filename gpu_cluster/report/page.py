"""Turns a finished run folder into report.html, a single file that needs no other file.

File names and labels can contain any text and must not be trusted: Jinja escapes them, the page's script sets them only
as text, and the page's Content-Security-Policy allows only this script and style, by their hashes, and nothing from any
other place. This module must not know devices.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from gpu_cluster.backend import FloatArray, IntArray
from gpu_cluster.errors import DataError
from gpu_cluster.files import printable, write_explained, write_whole
from gpu_cluster.images.source import open_source
from gpu_cluster.images.thumbnails import COLUMNS, TILE, Thumbnails
from gpu_cluster.manifest import sum_in_words
from gpu_cluster.results import Contingency, KChoice
from gpu_cluster.run_folder import PAGE, FinishedRun
from gpu_cluster.sampling import sorted_sample
from gpu_cluster.words import count

# Largest number of pictures on the map (of more pictures it shows a random sample, always the same), and of thumbnails
# on the map.
MOST_SHOWN = 50_000
MOST_THUMBNAILS = 4_000

_MOST_CARDS, _STRIP, _MOST_UNCERTAIN, _MOST_PAIRS, _MOST_ROWS = 100, 8, 24, 40, 500


def write_page(run: FinishedRun) -> Path:
    """Write `report.html` into a finished run folder; it replaces an earlier page. Return its path.

    Raises
    ------
    DataError
        When the folder is not a finished run of this version.
    JobError
        When the page cannot be written; an earlier page stays as it is.
    """
    with explained(run.folder):
        content = _render(run).encode()
    path = run.folder / PAGE
    with write_explained(path):
        write_whole(path, content)
    return path


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn any error in the block, which reads a run folder, into a DataError that names the folder."""
    try:
        yield
    except (MemoryError, ImportError):
        raise
    # The files in the folder may have been changed or damaged, which can raise any type of error.
    except Exception as error:
        raise DataError(
            f"cannot make a report of {printable(str(folder))!r}: expected the folder that `gpu-cluster run` left, "
            f"found {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error


def _labels(run: FinishedRun) -> list[str] | None:
    """Return the distinct labels, in order; None without labels."""
    table = run.metrics["class_by_cluster"]
    return None if table is None else list(table["classes"])


def _shown(run: FinishedRun) -> IntArray:
    """Return the rows of the pictures on the map."""
    n = len(run.pictures)
    return sorted_sample(n, MOST_SHOWN, np.random.RandomState(0))


def visible(text: str) -> str:
    r"""Return a name with every character that does not print (control characters, marks of direction) as an escape."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _render(run: FinishedRun) -> str:
    import jinja2
    import markupsafe

    assets = resources.files("gpu_cluster.report") / "assets"
    page, style, script = ((assets / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    thumbnails = Thumbnails(open_source(run.root), run.pictures["path"])
    cards, uncertain, pairs = list(_cards(run)), _least_certain(run), _pairs(run)
    named = [row for card in cards for strip in card["strips"] for row in strip["rows"]]
    named += [*uncertain, *(row for pair, _ in pairs for row in pair)]
    on_sheets = _chosen_thumbnails(run, named)
    thumbnails.make([*named, *on_sheets])
    for card in cards:
        for strip in card["strips"]:
            strip["pictures"] = [_picture(run, row, thumbnails) for row in strip["rows"]]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(page).render(
        style=markupsafe.Markup(style),
        script=markupsafe.Markup(script),
        style_sha256=_sha256(style),
        script_sha256=_sha256(script),
        data_json=markupsafe.Markup(_data(run, on_sheets)),
        sheets=list(thumbnails.sheets(on_sheets)),
        cards=cards,
        uncertain=[_picture(run, row, thumbnails) for row in uncertain],
        near_duplicates=[
            {"pictures": [_picture(run, row, thumbnails) for row in pair], "cosine": f"cosine {cosine:.3f}"}
            for pair, cosine in pairs
        ],
        **_words(run, len(on_sheets)),
        **_tables(run),
    )


def _words(run: FinishedRun, n_thumbnails: int) -> dict[str, Any]:
    """Return the sentences of the page, by their names in the template."""
    return {
        "title": f"What is in {visible(run.root.name or str(run.root))}",
        "answer": _answer(run),
        "facts": _facts(run),
        "map_words": _map_words(run, n_thumbnails),
        "k_words": _k_words(run),
        "label_words": _label_words(run),
        "command": visible(run.record["command"]),
        "notices": [visible(notice) for notice in run.record["notices"]],
    }


def _tables(run: FinishedRun) -> dict[str, Any]:
    """Return the tables of the page, their lengths and the only plot, by their names in the template."""
    copies = run.manifest[run.manifest["status"] == "duplicate"]
    bad = run.manifest[run.manifest["status"] == "bad"]
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
        "n_cards_left_out": max(0, int(run.metrics["k"]) - _MOST_CARDS),
        "has_labels": _labels(run) is not None,
        "crosstab": _crosstab(run),
        "n_exact": len(copies),
        "exact": _rows(copies),
        "n_near_duplicates": len(run.near_duplicates),
        "n_bad": len(bad),
        "bad": _rows(bad),
        "record": list(_record(run)),
    }


def _picture(run: FinishedRun, row: int, thumbnails: Thumbnails) -> dict[str, Any]:
    one = run.pictures.iloc[row]
    return {
        "source": thumbnails.source(row),
        "name": visible(one["path"]),
        "cluster": int(one["cluster"]),
        "silhouette": _number(one["silhouette"], "silhouette {:.2f}"),
    }


def _least_certain(run: FinishedRun) -> list[int]:
    """Return the rows with the lowest silhouettes, lowest first."""
    silhouettes = run.pictures["silhouette"].to_numpy(np.float64)
    # Pictures without a silhouette come last, because NaN sorts last.
    lowest = np.argsort(silhouettes, kind="stable")[:_MOST_UNCERTAIN]
    return [int(row) for row in lowest if not np.isnan(silhouettes[row])]


def _pairs(run: FinishedRun) -> list[tuple[tuple[int, int], float]]:
    """Return the rows of the pairs of near duplicates with the highest cosines, and these cosines."""
    row_of = {path: row for row, path in enumerate(run.pictures["path"])}
    named = run.near_duplicates[:_MOST_PAIRS].itertuples(index=False)
    return [((row_of[one], row_of[other]), float(cosine)) for one, other, cosine in named]


def _chosen_thumbnails(run: FinishedRun, named: Sequence[int]) -> list[int]:
    """Return the rows on the map that get a thumbnail: all, or those shown elsewhere too plus a random sample."""
    rows = [int(row) for row in _shown(run)]
    if len(rows) <= MOST_THUMBNAILS:
        return rows
    on_map = set(rows)
    first = [row for row in dict.fromkeys(named) if row in on_map][:MOST_THUMBNAILS]
    others = np.random.RandomState(0).permutation(sorted(on_map - set(first)))[: MOST_THUMBNAILS - len(first)]
    return sorted([*first, *map(int, others)])


def _data(run: FinishedRun, on_sheets: Sequence[int]) -> str:
    """Return the data of the map's script, as JSON text that cannot end the script element that holds it."""
    pictures = run.pictures.iloc[_shown(run)]
    number = {row: at for at, row in enumerate(on_sheets)}
    labels = _labels(run)
    code = {name: at for at, name in enumerate(labels or ())}
    data = {
        "names": [visible(path) for path in pictures["path"]],
        "cluster": pictures["cluster"].tolist(),
        "labels": None if labels is None else [visible(name) for name in labels],
        "label": None if labels is None else [code.get(label, -1) for label in pictures["label"]],
        "silhouette": [None if np.isnan(value) else round(float(value), 2) for value in pictures["silhouette"]],
        "thumb": [number.get(int(row), -1) for row in _shown(run)],
        "tsne": _quantised(pictures[["tsne1", "tsne2"]].to_numpy(np.float64)),
        "pca": _quantised(pictures[["pc1", "pc2"]].to_numpy(np.float64)),
        "size": TILE,
        "columns": COLUMNS,
    }
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    # Only a `<` could end the element or open a comment in it.
    return text.replace("<", "\\u003c")


def _quantised(places: FloatArray) -> str:
    """Return places (n, 2) as base64 of little-endian 16-bit shares of their range, x and y alternating."""
    low, span = places.min(axis=0), np.ptp(places, axis=0)
    shares = (places - low) / np.where(span > 0, span, 1)
    return base64.b64encode(np.round(shares * 65535).astype("<u2").tobytes()).decode()


def _cards(run: FinishedRun) -> Iterator[dict[str, Any]]:
    content = run.metrics["class_by_cluster"]
    table = None if content is None else Contingency(tuple(content["classes"]), np.array(content["counts"]))
    for number in range(min(int(run.metrics["k"]), _MOST_CARDS)):
        members = np.flatnonzero(run.pictures["cluster"].to_numpy() == number)
        nearest = members[np.argsort(run.pictures["distance"].to_numpy()[members], kind="stable")]
        silhouettes = run.pictures["silhouette"].to_numpy(np.float64)[members]
        known = silhouettes[~np.isnan(silhouettes)]
        strips = [{"title": "medoid, and the nearest to the centre", "rows": nearest[:_STRIP].tolist()}]
        if len(nearest) > _STRIP:
            farthest = nearest[_STRIP:][::-1][:_STRIP]
            strips.append({"title": "farthest from the centre", "rows": farthest.tolist()})
        yield {
            "number": number,
            "size": count(len(members), "picture"),
            "silhouette": f"{known.mean():.2f}" if len(known) else "not computed",
            "labels": [] if table is None else _most_frequent(table, number),
            "strips": strips,
        }


def _most_frequent(table: Contingency, cluster: int) -> list[dict[str, Any]]:
    """Return the four most frequent labels of a cluster, with their share of its labelled pictures."""
    return [
        {"name": visible(label), "count": n, "share": round(share, 3), "percent": f"{share:.0%}"}
        for label, n in table.most_frequent(cluster, most=4)
        for share in [table.share(cluster, n)]
    ]


def _answer(run: FinishedRun) -> str:
    metrics = run.metrics
    n, k = metrics["n_images"], metrics["k"]
    words = [f"{count(n, 'picture')} in {count(k, 'group')}."]
    agreement = metrics["k_agreement"]
    how = {
        KChoice.GIVEN: "The number of groups was given",
        KChoice.AGREEMENT: "The number of groups is the one at which restarts of k-means agree most",
        KChoice.SILHOUETTE: "The number of groups is the one with the highest silhouette",
        KChoice.KNEE: "The number of groups is at the knee of the inertia curve",
        KChoice.CHORD: "There was no clear knee; the number of groups is the one farthest from the chord",
        KChoice.ONLY_ONE: "No other number of groups was tried",
    }[KChoice(metrics["k_chosen_by"])]
    sure = "" if agreement is None else f", with an adjusted Rand index of {agreement:.2f} between restarts"
    words.append(f"{how}{sure}.")
    silhouette = metrics["internal"]["silhouette"]
    if silhouette is not None:
        words.append(f"Mean silhouette {silhouette:.2f}.")
    if metrics["external"] is not None:
        external = metrics["external"]
        words.append(
            f"Against the labels: adjusted Rand index {external['adjusted_rand']:.2f}, homogeneity "
            f"{external['homogeneity']:.2f}."
        )
    return " ".join(words)


def _facts(run: FinishedRun) -> str:
    record, files = run.record, run.record["files"]
    seconds = sum(record["stages_s"].values())
    where = f"On the {record['device']} ({record['processor']}), {seconds:.1f} s."
    return f"{count(files['found'], 'file')} found: {sum_in_words(files, 'clustered')}. {where}"


def _map_words(run: FinishedRun, n_thumbnails: int) -> str:
    n = len(run.pictures)
    words = (
        "Pictures that look alike lie side by side. Hover, tap or step through them; click one to see its group alone."
    )
    if len(_shown(run)) < n:
        words += f" The map shows {len(_shown(run)):,} of {n:,} pictures, chosen at random."
    if n_thumbnails < len(_shown(run)):
        words += f" {n_thumbnails:,} of them have a thumbnail."
    sample = run.record["config"]["report"]["layout_sample"]
    if n > sample:
        words += f" t-SNE was computed for {sample:,} of them; each other picture lies beside its nearest one of these."
    return words


def _k_words(run: FinishedRun) -> str:
    sentences = (*run.metrics["k_doubts"], f"Swept in the space: {run.metrics['sweep_space']}")
    return " ".join(f"{sentence}." for sentence in sentences)


def _label_words(run: FinishedRun) -> str:
    labels = run.metrics["labels"]
    if labels is None:
        return ""
    return f"{count(labels['n_labelled_images'], 'picture')} labelled by {visible(labels['source'])}."


def _crosstab(run: FinishedRun) -> dict[str, Any] | None:
    table = run.metrics["class_by_cluster"]
    if table is None:
        return None
    rows = [
        {"name": visible(name), "counts": counts[:_MOST_CARDS], "most": max(counts)}
        for name, counts in zip(table["classes"], table["counts"], strict=True)
    ]
    return {"clusters": range(min(int(run.metrics["k"]), _MOST_CARDS)), "rows": rows[:_MOST_ROWS]}


def _rows(table: Any) -> list[dict[str, str]]:
    rows = zip(table["path"][:_MOST_ROWS], table["reason"][:_MOST_ROWS], strict=True)
    return [{"name": visible(path), "reason": visible(reason)} for path, reason in rows]


def _record(run: FinishedRun) -> Iterator[tuple[str, str]]:
    record = run.record
    yield "gpu-cluster", record["gpu_cluster"]
    yield "space", run.metrics["space"]
    yield "device", f"{record['device']}: {record['device_reason']}"
    yield "weights", f"{visible(record['weights']['path'])}, sha256 {record['weights']['sha256']}"
    yield from record["versions"].items()
    for stage, seconds in record["stages_s"].items():
        yield f"{stage}, s", f"{seconds:.1f}"


def _number(value: float, form: str) -> str:
    return "" if np.isnan(value) else form.format(value)


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

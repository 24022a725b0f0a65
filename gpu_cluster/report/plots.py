"""Draws the plots of a run: elbow, scatter, silhouettes, and a contact sheet for each cluster.

Every cluster has a number, a colour and a marker, because colours alone do not distinguish 30 clusters, and not
everyone sees all colours. This module must not know where the files go beyond the given folder.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gpu_cluster.backend import Backend, FloatArray, IntArray
from gpu_cluster.backend.cores import usable_cores
from gpu_cluster.images.source import Source, reading_threads
from gpu_cluster.images.thumbnails import GREY, KeptSmall, is_unchanged, small
from gpu_cluster.manifest import Manifest
from gpu_cluster.results import Clustering, Comparison, Findings, KChoice, Projection, Scores, Sweep
from gpu_cluster.sampling import sorted_sample
from gpu_cluster.store.copies import CopyShards
from gpu_cluster.store.parts import Parts, fingerprint
from gpu_cluster.verdict import CLEAR_AGREEMENT, WEAK_AGREEMENT
from gpu_cluster.words import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

# From Okabe and Ito 2008, 'Color Universal Design': distinguishable with all common kinds of colour blindness.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#000000")
MARKERS = "os^Dv*PX<>h"
_HATCHES = ("", "////", "....", "xxxx")
_INK = "#333333"

# In a plot of this size, more points than this show nothing more.
_MOST_POINTS = 20_000
# More classes than this do not fit in a legend; the others are drawn in grey.
_MOST_NAMED = 30

# Largest number of characters of a label.
_LONGEST = 60

_TILE = 112
_COLUMNS = 10
_HEAD = 34


def draw_all(
    folder: Path,
    manifest: Manifest,
    source: Source,
    findings: Findings,
    *,
    backend: Backend,
    most_thumbnails: int,
    parts: Parts,
    copies: CopyShards | None = None,
) -> None:
    """Draw every plot of a run as PNG into `folder`; one that `parts` keeps is not drawn again.

    `copies` has small copies of pictures that are no files of this machine.
    """
    folder.mkdir()
    _draw_figures(folder, manifest, findings, backend, parts)
    labels, rows = backend.to_host(findings.clustering.labels), findings.embeddings.rows
    distances = backend.to_host(findings.clustering.distances)
    digits = max(2, len(str(findings.clustering.k - 1)))

    shown_of, sizes = [], []
    for cluster in range(findings.clustering.k):
        members = np.flatnonzero(labels == cluster)
        nearest_first = members[np.argsort(distances[members], kind="stable")]
        shown_of.append([int(rows[member]) for member in nearest_first[:most_thumbnails]])
        sizes.append(len(members))
    kept = KeptSmall(source, manifest, [row for shown in shown_of for row in shown], copies)

    def draw_sheet(cluster: int) -> None:
        shown = shown_of[cluster]
        title = _sheet_title(cluster, sizes[cluster], len(shown), findings.scores)
        content = _sheet(source, manifest, shown, title, parts, kept)
        (folder / f"cluster_{cluster:0{digits}d}.png").write_bytes(content)

    # Threads help here: Pillow releases Python's global lock while it decodes and encodes.
    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(draw_sheet, range(findings.clustering.k)))


def _draw_figures(folder: Path, manifest: Manifest, findings: Findings, backend: Backend, parts: Parts) -> None:
    clustering, scores, projection, sweep = findings.clustering, findings.scores, findings.projection, findings.sweep
    labels, pcs = backend.to_host(clustering.labels), backend.to_host(projection.pcs)

    def draw(name: str, of: object, figure: Callable[[], Figure]) -> None:
        content = parts.made({"part": "plots", "name": name, "of": of}, lambda: _png(figure))
        (folder / f"{name}.png").write_bytes(content)

    tried = [(point.k, point.inertia, point.silhouette, point.agreement) for point in sweep.points]
    draw("elbow", [tried, sweep.best_k, sweep.chosen_by], lambda: elbow(sweep))
    place = [fingerprint(pcs), *map(float, projection.pcs_variance_ratio)]
    names = [f"{cluster}" for cluster in range(clustering.k)]
    draw(
        "scatter",
        [place, fingerprint(labels), clustering.k],
        lambda: scatter(pcs, labels, names, "Clusters", projection),
    )
    if scores.contingency is not None and manifest.labels is not None:
        classes, given = scores.contingency.classes, manifest.labels
        code_of = {name: code for code, name in enumerate(classes)}
        codes = np.array([code_of.get(given[row] or "", -1) for row in findings.embeddings.rows])
        draw(
            "scatter_labels",
            [place, fingerprint(codes), list(classes)],
            lambda: scatter(pcs, codes, classes, "Labels", projection),
        )
    fits = [fingerprint(labels), fingerprint(scores.silhouettes), scores.internal["silhouette"], clustering.k]
    draw("silhouette", fits, lambda: silhouette(labels, clustering, scores))


def _sheet(source: Source, manifest: Manifest, rows: Sequence[int], title: str, parts: Parts, kept: KeptSmall) -> bytes:
    """Return the contact sheet of these rows as PNG."""
    names = [manifest.paths[row] for row in rows]
    # How a picture is decoded depends on its content and, for some formats, on the suffix of its name.
    shown = [(manifest.files[row].content_hash, os.path.splitext(manifest.paths[row])[1]) for row in rows]
    key = {"part": "contact sheets", "title": title, "shown": shown}
    content = parts.find(key)
    if content is None:
        sheet, n_missing = contact_sheet(source, names, title, kept.by_location())
        stream = io.BytesIO()
        # Photos hardly compress: this level takes half the time of Pillow's default for a twentieth more bytes.
        sheet.save(stream, "png", compress_level=2)
        content = stream.getvalue()
        # A picture that has changed since the scan is not the one that the key names.
        if not n_missing and all(is_unchanged(source, manifest.paths[row], manifest.files[row]) for row in rows):
            parts.keep(key, content)
    return content


def elbow(sweep: Sweep) -> Figure:
    """Draw inertia, silhouette and agreement of restarts over k, with the chosen k marked."""
    from matplotlib.ticker import MaxNLocator

    ks = [point.k for point in sweep.points]
    # Fixed places, because to find them takes as long as to draw; all texts but the numbers are known.
    figure, (left, middle, right) = _figure(15, 4.6, columns=3, layout=None)
    figure.subplots_adjust(left=0.075, right=0.99, bottom=0.12, top=0.92, wspace=0.25)
    left.plot(ks, [point.inertia for point in sweep.points], "o-", color=COLOURS[0])
    left.set_ylabel("inertia (sum of squared distances)\nlower is tighter; it always falls: look for the bend")
    middle.plot(ks, [_nan(point.silhouette) for point in sweep.points], "s-", color=COLOURS[2])
    middle.set_ylabel("mean silhouette, at most 1\nhigher is better")
    right.plot(ks, [_nan(point.agreement) for point in sweep.points], "D-", color=COLOURS[3])
    right.set_ylabel("adjusted Rand index with the best restart\nhigher is better; 1: the same groups every time")
    for level, name in ((CLEAR_AGREEMENT, "clear above"), (WEAK_AGREEMENT, "no clear groups below")):
        right.axhline(level, color=_INK, linestyle=":", linewidth=1)
        right.annotate(name, (1, level), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    words = {KChoice.CHORD: "no clear knee", KChoice.AGREEMENT: "restarts agree most", KChoice.ONLY_ONE: ""}
    why = words.get(sweep.chosen_by, sweep.chosen_by)
    for axes in (left, middle, right):
        axes.axvline(sweep.best_k, color=COLOURS[4], linestyle="--", linewidth=1.5)
        axes.set_xlabel("number of clusters k")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
    left.set_title(f"Elbow; k = {sweep.best_k}" + (f" ({why})" if why else ""), loc="left")
    middle.set_title("Silhouette", loc="left")
    right.set_title("Agreement of restarts", loc="left")
    return figure


def scatter(pcs: FloatArray, groups: IntArray, names: Sequence[str], title: str, projection: Projection) -> Figure:
    """Draw images as points in the plane of the first two principal components, by group; group -1 is grey.

    Parameters
    ----------
    pcs
        (n, 2), host.
    groups
        (n,) index into `names`, host.
    """
    figure, (axes,) = _figure(9.5, 6.2)
    n, drawn = len(pcs), _at_most(len(pcs))
    pcs, groups = pcs[drawn], groups[drawn]
    size = float(np.clip(9000 / max(len(pcs), 1), 4, 46))
    other = (groups < 0) | (groups >= _MOST_NAMED)
    if other.any():
        axes.scatter(pcs[other, 0], pcs[other, 1], s=size * 0.6, color=GREY, marker=".", label="others")
    numbers_only = all(name.isdecimal() for name in names)
    for group, name in enumerate(names[:_MOST_NAMED]):
        own = pcs[groups == group]
        axes.scatter(
            own[:, 0], own[:, 1], s=size, alpha=0.8, linewidths=0.3, edgecolors=_INK, label=str(group), **_style(group)
        )
        if numbers_only and len(own):
            _number(axes, np.median(own, axis=0), name, aside=len(own) == 1)
    ratios = projection.pcs_variance_ratio
    axes.set_xlabel(f"PC1 ({ratios[0]:.1%} of the variance)")
    axes.set_ylabel(f"PC2 ({ratios[1]:.1%} of the variance)")
    of_all = f", {len(drawn):,} of {n:,} images" if len(drawn) < n else ""
    axes.set_title(f"{title} in PCA space{of_all}", loc="left")
    columns = 1 if len(names) <= 18 else 2
    legend = axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, ncols=columns, fontsize=9)
    shown = [*(["others"] if other.any() else []), *names[:_MOST_NAMED]]
    for text, name in zip(legend.get_texts(), shown, strict=True):
        # The text is set here and not as the label of the points, because matplotlib hides labels that begin with an
        # underscore. Dollar signs in a label must not turn it into a formula.
        text.set_parse_math(False)
        text.set_text(_short(name))
    return figure


def silhouette(labels: IntArray, clustering: Clustering, scores: Scores) -> Figure:
    """Draw the silhouette of every image as a bar, sorted within its cluster."""
    k = clustering.k
    figure, (axes,) = _figure(8, float(np.clip(2.2 + 0.3 * k, 4, 14)))
    mean = scores.internal["silhouette"]
    if mean is None:
        axes.text(0.5, 0.5, "not defined for this number of clusters", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return figure
    taken = np.flatnonzero(~np.isnan(scores.silhouettes))
    gap = max(1, len(taken) // 150)
    start, ticks = 0, []
    for cluster in range(k):
        values = np.sort(scores.silhouettes[taken[labels[taken] == cluster]])[::-1]
        positions = np.arange(start, start + len(values))
        axes.fill_betweenx(positions, 0, values, step="mid", **_bar_style(cluster))
        ticks.append(start + len(values) / 2)
        start += len(values) + gap
    axes.axvline(mean, color=_INK, linestyle="--", linewidth=1)
    axes.text(mean, -gap, f" mean {mean:.2f}", va="bottom", color=_INK, fontsize=9)
    sizes = clustering.sizes
    axes.set_yticks(ticks, [f"{cluster}  ({sizes[cluster]:,})" for cluster in range(k)], fontsize=9)
    axes.set_ylabel("cluster (images)")
    axes.set_xlabel("silhouette")
    axes.set_ylim(start, -3 * gap)
    axes.set_title("How well each image fits its cluster", loc="left")
    return figure


def draw_comparison(file: Path, found: Comparison) -> None:
    """Draw, for every pair of features and algorithm, how stable the groups are and how close to the labels, as PNG.

    Without labels, the silhouette takes the place of the second plot.
    """
    file.write_bytes(_png(lambda: _compared(found)))


def _compared(found: Comparison) -> Figure:
    features = list(dict.fromkeys(row.features for row in found.rows))
    algorithms = list(dict.fromkeys(row.algorithm for row in found.rows))
    panels = {"adjusted_rand": "ARI with the labels", "stability": "Stability (ARI of subsamples)"}
    if all(row.adjusted_rand is None for row in found.rows):
        panels = {"stability": "Stability (ARI of subsamples)", "silhouette": "Silhouette"}
    figure, every = _figure(3.2 + 2.2 * len(algorithms), 1.4 + 0.55 * len(features), columns=len(panels))
    for axes, (name, title) in zip(every, panels.items(), strict=True):
        values = np.full((len(features), len(algorithms)), np.nan)
        for row in found.rows:
            values[features.index(row.features), algorithms.index(row.algorithm)] = _nan(getattr(row, name))
        axes.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        for (line, column), value in np.ndenumerate(values):
            shown = "" if np.isnan(value) else f"{value:.2f}"
            axes.text(column, line, shown, ha="center", va="center", color="black" if value > 0.5 else "white")
        axes.set_xticks(range(len(algorithms)), algorithms)
        axes.set_yticks(range(len(features)), features if axes is every[0] else [])
        axes.tick_params(length=0)
        axes.set_title(title, loc="left", fontsize=11)
    return figure


def contact_sheet(
    source: Source, locations: Sequence[str], title: str, kept: Mapping[str, bytes] = MappingProxyType({})
) -> tuple[Image, int]:
    """Return an image with a title and below it the thumbnails of pictures, line by line in their order.

    `kept` has small copies, by location, which are used instead of the pictures. Pictures that can no longer be read
    are grey; the number of these is returned too.
    """
    from PIL import Image, ImageDraw, ImageFont

    columns = min(_COLUMNS, max(len(locations), 4))
    lines = -(-len(locations) // columns)
    font = ImageFont.load_default(16)
    width = max(columns * _TILE, int(font.getlength(title)) + 12)
    sheet = Image.new("RGB", (width, _HEAD + lines * _TILE), "white")
    # Pillow applies the limit of --max-pixels to the pixels of a text too; then the sheet has no title.
    with suppress(Image.DecompressionBombError):
        ImageDraw.Draw(sheet).text((6, 7), title, fill=_INK, font=font)
    with reading_threads() as pool:
        found = list(pool.map(lambda location: small(source, location, _TILE - 6, kept.get(location)), locations))
    grey = Image.new("RGB", (_TILE - 6, _TILE - 6), GREY)
    tiles = [grey if tile is None else tile for tile in found]
    for position, tile in enumerate(tiles):
        line, column = divmod(position, columns)
        left = column * _TILE + (_TILE - tile.width) // 2
        top = _HEAD + line * _TILE + (_TILE - tile.height) // 2
        sheet.paste(tile, (left, top))
    return sheet, found.count(None)


def _short(label: str) -> str:
    """Return a label, cut to a length for which a plot has room: a field of a CSV can be very long."""
    return label if len(label) <= _LONGEST else f"{label[: _LONGEST - 1]}…"


def _sheet_title(cluster: int, n_members: int, n_shown: int, scores: Scores) -> str:
    shown = count(n_members, "image") if n_shown == n_members else f"{n_shown} of {count(n_members, 'image')}"
    title = f"Cluster {cluster}: {shown}, nearest to the centre first"
    if scores.contingency is None:
        return title
    frequent = scores.contingency.most_frequent(cluster)
    return "; ".join([title, *(f"{count} are {_short(label)}" for label, count in frequent)])


def _figure(
    width: float, height: float, columns: int = 1, layout: Literal["constrained"] | None = "constrained"
) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, layout=layout)
    every = figure.subplots(1, columns, squeeze=False)[0]
    for axes in every:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, list(every)


def _png(draw: Callable[[], Figure]) -> bytes:
    """Return a figure as PNG; it is drawn with matplotlib's own settings, whatever settings the user has."""
    import matplotlib

    stream = io.BytesIO()
    settings = {name: value for name, value in matplotlib.rcParamsDefault.items() if not name.startswith("backend")}
    with warnings.catch_warnings(), matplotlib.rc_context({**settings, "font.family": "DejaVu Sans"}):
        # The font lacks the letters of some scripts; the user needs no warning that boxes are drawn instead.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        draw().savefig(stream, format="png")
    return stream.getvalue()


def _style(group: int) -> dict[str, Any]:
    # 8 and 11 have no common factor, so the first 88 groups all look different, and a group and the next one differ in
    # both colour and marker.
    return {"color": COLOURS[group % len(COLOURS)], "marker": MARKERS[group % len(MARKERS)]}


def _bar_style(group: int) -> dict[str, Any]:
    # Each round of the colours begins with the next one and has a hatch of its own, so that the first 32 groups all
    # look different. A dark hatch would not be seen on black.
    turn, place = divmod(group, len(COLOURS))
    colour = COLOURS[(place + turn) % len(COLOURS)]
    edge = "white" if colour == COLOURS[-1] and turn else _INK if turn else colour
    return {"facecolor": colour, "edgecolor": edge, "hatch": _HATCHES[turn % len(_HATCHES)], "linewidth": 0.4}


def _number(axes: Axes, at: FloatArray, name: str, *, aside: bool) -> None:
    """Write a cluster's number at a place; with `aside`, beside it, so that it does not hide the only point."""
    box = {
        "boxstyle": "round,pad=0.2",
        "facecolor": "white",
        "edgecolor": _INK,
        "linewidth": 0.6,
        "alpha": 0.9,
    }
    offset = (9, 9) if aside else (0, 0)
    place = (float(at[0]), float(at[1]))
    axes.annotate(name, place, offset, textcoords="offset points", ha="center", va="center", fontsize=9, bbox=box)


def _at_most(n: int) -> IntArray:
    return sorted_sample(n, _MOST_POINTS, np.random.RandomState(0))


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value

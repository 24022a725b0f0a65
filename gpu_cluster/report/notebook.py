"""Shows a finished run inside a notebook, in a few kilobytes of HTML: the verdict, the groups, the plots, the report.

File names and labels can contain any text: Jinja escapes them. The HTML has no script, and loads nothing. This module
must not know notebooks, nor how a run was made.
"""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gpu_cluster.bounded import UnfitError
from gpu_cluster.errors import DataError
from gpu_cluster.images.thumbnails import Thumbnails
from gpu_cluster.report.groups import contingency
from gpu_cluster.report.html import render, visible
from gpu_cluster.report.page import answer, facts, verdict_of
from gpu_cluster.report.pictures import Chosen
from gpu_cluster.run_folder import PAGE, FinishedRun, explained
from gpu_cluster.words import count

# Groups that are shown, pictures of each, and the longest side of these in pixels.
_MOST_GROUPS, _MOST_PICTURES, _SIDE = 12, 6, 72
# Width of a plot in pixels, and its colours, which are few.
_WIDTH, _COLOURS = 720, 64
# A plot of a run has a tenth of this.
_MOST_PIXELS = 20_000_000


def notebook_view(folder: Path) -> str | None:
    """Return the HTML that shows the run of a folder in a notebook; None if the folder is no longer that of a run.

    It reads only the folder: the pictures are the small copies in it, so it does not matter where they are now.
    """
    try:
        with explained(folder):
            return render("notebook.html", _values(FinishedRun(folder)))
    except DataError:
        return None


def _values(run: FinishedRun) -> dict[str, Any]:
    chosen = Chosen(run)
    nearest = [near[:_MOST_PICTURES] for near, _far in chosen.strips[:_MOST_GROUPS]]
    thumbnails = Thumbnails(None, run.pictures["path"], kept=run.thumbnails[1])
    thumbnails.make((row for rows in nearest for row in rows), _SIDE)
    table, paths = contingency(run), run.pictures["path"]
    groups = [
        {
            "number": number,
            "size": count(size, "picture"),
            "labels": "" if table is None else visible(table.in_words(number, size)),
            "pictures": [
                {"source": thumbnails.small_uri(row, _SIDE), "name": visible(paths.iloc[row])} for row in rows
            ],
        }
        for number, (rows, size) in enumerate(zip(nearest, chosen.sizes, strict=False))
    ]
    page, n_left_out = run.folder / PAGE, max(0, int(run.metrics["k"]) - len(groups))
    return {
        "verdict": verdict_of(run).words,
        "answer": answer(run),
        "facts": facts(run),
        "groups": groups,
        "left_out": f"{count(n_left_out, 'smaller group')} {'is' if n_left_out == 1 else 'are'}" if n_left_out else "",
        "plots": [
            {"source": _small_plot(run.scatter), "name": "The pictures by their first two principal components"},
            {"source": _small_plot(run.elbow), "name": "The numbers of groups that were tried"},
        ],
        "link": _address(page) if page.is_file() else None,
        "folder": visible(str(run.folder)),
    }


def _small_plot(png: bytes) -> str:
    """Return a plot as a data URI, small enough for a notebook, which keeps it in its file."""
    from PIL import Image

    with Image.open(io.BytesIO(png), formats=["PNG"]) as plot:
        if plot.width * plot.height > _MOST_PIXELS:
            raise UnfitError(f"expected a plot, found {plot.width} x {plot.height} pixels")
        small = plot.convert("RGB")
    small.thumbnail((_WIDTH, _WIDTH), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.quantize(_COLOURS).save(stream, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _address(page: Path) -> str:
    """Return the address of the report: relative to the working folder, where most notebooks are, if it is below it."""
    relative = os.path.relpath(page)
    return page.absolute().as_uri() if relative.startswith(os.pardir) else quote(os.fsencode(relative))

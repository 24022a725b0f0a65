"""Turns a finished run into the data of the page's script: the map, and the pictures of each group.

This module must not know how they are drawn.
"""

from __future__ import annotations

import base64
import json

import numpy as np

from gpu_cluster.backend import FloatArray
from gpu_cluster.images.thumbnails import COLUMNS, Sheets
from gpu_cluster.report.html import Links, is_plain, visible
from gpu_cluster.report.pictures import Chosen
from gpu_cluster.run_folder import FinishedRun


def map_data(run: FinishedRun, chosen: Chosen, sheets: Sheets, links: Links | None) -> str:
    """Return the data as JSON text that cannot end the script element that holds it."""
    pictures = run.pictures.iloc[chosen.on_map]
    paths = list(pictures["path"])
    on_sheet = {int(row): at for at, row in enumerate(chosen.on_sheets)}
    on_map = {int(row): at for at, row in enumerate(chosen.on_map)}
    table = run.metrics["class_by_cluster"]
    labels = None if table is None else list(table["classes"])
    code = {name: at for at, name in enumerate(labels or ())}
    data = {
        "names": [visible(path) for path in paths],
        # Without links, the page shows only the small copies.
        "base": None if links is None else links.base,
        # The script makes the other addresses from the names.
        "odd": {at: links.part(path) for at, path in enumerate(paths) if links is not None and not is_plain(path)},
        "cluster": pictures["cluster"].tolist(),
        "labels": None if labels is None else [visible(name) for name in labels],
        "label": None if labels is None else [code.get(label, -1) for label in pictures["label"]],
        "silhouette": [None if np.isnan(value) else round(float(value), 2) for value in pictures["silhouette"]],
        "thumb": [on_sheet.get(int(row), -1) for row in chosen.on_map],
        "members": [[on_map[row] for row in rows] for rows in chosen.members],
        "tsne": _quantised(pictures[["tsne1", "tsne2"]].to_numpy(np.float64)),
        "pca": _quantised(pictures[["pc1", "pc2"]].to_numpy(np.float64)),
        "size": chosen.side_on_sheet,
        "columns": COLUMNS,
        "tiles": base64.b64encode(np.array(sheets.sizes, np.uint8).tobytes()).decode(),
    }
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    # Only a `<` could end the element or open a comment in it.
    return text.replace("<", "\\u003c")


def _quantised(places: FloatArray) -> str:
    """Return places (n, 2) as base64 of little-endian 16-bit shares of their range, x and y alternating."""
    low, span = places.min(axis=0), np.ptp(places, axis=0)
    shares = (places - low) / np.where(span > 0, span, 1)
    return base64.b64encode(np.round(shares * 65535).astype("<u2").tobytes()).decode()

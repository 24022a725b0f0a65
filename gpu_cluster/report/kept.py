"""Keeps the small copies of pictures, and the sheets of them, from one run with the same pictures to the next.

This module must not know what the page says of the pictures.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from gpu_cluster.images.places import open_source
from gpu_cluster.images.thumbnails import Sheets, Thumbnails, is_unchanged
from gpu_cluster.manifest import Manifest
from gpu_cluster.report.pictures import ALONE, Chosen
from gpu_cluster.run_folder import FinishedRun
from gpu_cluster.store.parts import Parts, digest


class KeptCopies:
    """The small copies of the pictures on the page of a run that has just ended."""

    def __init__(self, parts: Parts, run: FinishedRun, chosen: Chosen, manifest: Manifest) -> None:
        self._parts = parts
        self._manifest = manifest
        alone = set(chosen.alone)
        self._rows = sorted(alone | {int(row) for row in chosen.on_sheets})
        self._paths = list(run.pictures["path"].iloc[self._rows])
        hashes = run.pictures["content_hash"].iloc[self._rows]
        # The first request for a copy sets its size; how a file is decoded can depend on the suffix of its name.
        sides = [ALONE if row in alone else chosen.side_on_sheet for row in self._rows]
        suffixes = [os.path.splitext(path)[1] for path in self._paths]
        self._key = {"part": "small copies", "of": list(zip(hashes, suffixes, sides, strict=True))}

    def by_path(self) -> dict[str, bytes]:
        """Return the copies by the paths of their pictures; none if they are not kept."""
        kept = self._parts.find(self._key)
        if kept is None:
            return {}
        head, _, content = kept.partition(b"\n")
        ends = list(itertools.accumulate(json.loads(head), initial=0))
        copies = [content[first:last] for first, last in itertools.pairwise(ends)]
        return dict(zip(self._paths, copies, strict=True))

    def keep(self, copies: Mapping[str, bytes]) -> None:
        """Keep the copies, if there is one of every picture and no picture has changed since it was scanned."""
        if len(copies) != len(self._paths) or not self._are_unchanged():
            return
        shown = [copies[path] for path in self._paths]
        self._parts.keep(self._key, json.dumps(list(map(len, shown))).encode() + b"\n" + b"".join(shown))

    def _are_unchanged(self) -> bool:
        manifest, source = self._manifest, open_source(self._manifest.root, self._manifest.signed)
        good = [row for row in range(len(manifest)) if row not in manifest.bad]
        shown = [good[row] for row in self._rows]
        return all(is_unchanged(source, manifest.paths[row], manifest.files[row]) for row in shown)


def kept_sheets(parts: Parts, thumbnails: Thumbnails, chosen: Chosen) -> Sheets:
    """Return the sheets of the pictures on the map; they depend on nothing but the copies on them."""
    rows, side = chosen.on_sheets.tolist(), chosen.side_on_sheet
    key = {"part": "sheets", "side": side, "of": [digest(thumbnails.copy(row)).hex() for row in rows]}
    made = parts.made(key, lambda: json.dumps(asdict(thumbnails.sheets(rows, side))).encode())
    found: dict[str, Any] = json.loads(made)
    return Sheets(found["uris"], [(width, height) for width, height in found["sizes"]])

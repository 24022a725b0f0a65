"""Takes from the store what an earlier run made of the same embeddings: the sweep over k and the t-SNE.

Both depend on the space alone, and on few options. What was told while they were made is told again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from gpu_cluster.backend import Array, Backend, FloatArray, IntArray, KMeansFit
from gpu_cluster.clustering.sequence import find_k
from gpu_cluster.clustering.tsne import checksums, lay_out
from gpu_cluster.config import RunConfig
from gpu_cluster.events import Recorder
from gpu_cluster.results import KChoice, Projection, Sweep, SweepPoint
from gpu_cluster.store.parts import Parts, fingerprint


class KeptResults:
    """The results of one run that the store may have of an earlier one.

    `of` is what the embeddings were made from, for JSON; `parts` are those of the store, where results that had to be
    made are kept.
    """

    def __init__(self, parts: Parts, of: object, config: RunConfig, *, backend: Backend, events: Recorder) -> None:
        self._parts, self._of = parts, of
        self._config, self._backend, self._events = config, backend, events
        self._seen: tuple[Array, str] | None = None

    def sweep(self, projection: Projection) -> Sweep:
        """Return the sweep over k in the space of `projection`.

        The seconds of each k are those that it took when it was computed.
        """
        config = self._config
        options = [config.sweep.model_dump(), config.cluster.model_dump(), config.score.silhouette_sample]
        key = self._key("sweep", options, projection.sweep_x)
        found = self._find(key)
        if found is not None:
            return _read(*found, backend=self._backend)
        heard = Recorder(self._events)
        sweep = find_k(projection, config, backend=self._backend, events=heard)
        self._keep(key, heard, *_written(sweep, backend=self._backend))
        return sweep

    def tsne(self, projection: Projection, originals: IntArray | None) -> FloatArray:
        """Return the t-SNE (n, 2) of the space of `projection`; `originals` as `lay_out` takes them."""
        config, backend = self._config, self._backend
        pcs = fingerprint(backend.to_host(projection.pcs))
        key = self._key("t-SNE", [config.report.layout_sample, pcs], projection.x)
        found = self._find(key)
        if found is not None:
            return np.frombuffer(found[1], np.float32).reshape(-1, 2)
        heard = Recorder(self._events)
        tsne = lay_out(
            projection.x,
            projection.pcs,
            config.report,
            seed=config.seed,
            backend=backend,
            observer=heard,
            originals=originals,
        )
        self._keep(key, heard, {}, tsne.astype(np.float32).tobytes())
        return tsne

    def _key(self, kind: str, options: list[Any], space: Array) -> dict[str, Any]:
        config = self._config
        return {
            "part": kind,
            "of": self._of,
            "options": [config.reduce.model_dump(), config.seed, *options],
            "device": self._backend.describe(),
            "space": self._fingerprint(space),
        }

    def _fingerprint(self, space: Array) -> str:
        # Mostly both parts are of the same space, which can have many rows.
        if self._seen is None or self._seen[0] is not space:
            self._seen = (space, fingerprint(checksums(space, self._backend)))
        return self._seen[1]

    def _find(self, key: Mapping[str, Any]) -> tuple[dict[str, Any], bytes] | None:
        kept = self._parts.find(key)
        if kept is None:
            return None
        head, _, numbers = kept.partition(b"\n")
        facts: dict[str, Any] = json.loads(head)
        for notice in facts.pop("notices"):
            self._events.notice(notice)
        return facts, numbers

    def _keep(self, key: Mapping[str, Any], heard: Recorder, facts: Mapping[str, Any], numbers: bytes) -> None:
        head = json.dumps({"notices": heard.notices, **facts})
        self._parts.keep(key, head.encode() + b"\n" + numbers)


def _written(sweep: Sweep, *, backend: Backend) -> tuple[dict[str, Any], bytes]:
    """Return a sweep as facts that JSON can hold, and the numbers of its centres."""
    facts: dict[str, Any] = {
        "points": [asdict(point) for point in sweep.points],
        "best_k": sweep.best_k,
        "chosen_by": sweep.chosen_by,
        "doubts": sweep.doubts,
        "rows": [sweep.n_restarted, sweep.n_agreement, sweep.n_silhouette],
        "fit": None,
    }
    if sweep.fit is None:
        return facts, b""
    centres = backend.to_host(sweep.fit.centres)
    facts["fit"] = [centres.dtype.str, *centres.shape, sweep.fit.n_iter]
    return facts, centres.tobytes()


def _read(facts: dict[str, Any], numbers: bytes, *, backend: Backend) -> Sweep:
    """Return the sweep that `_written` gave."""
    fit = None
    if facts["fit"] is not None:
        dtype, k, m, n_iter = facts["fit"]
        centres = np.frombuffer(numbers, dtype).reshape(k, m)
        # A copy, because the buffer cannot be written to.
        fit = KMeansFit(backend.from_host(centres.copy()), n_iter)
    n_restarted, n_agreement, n_silhouette = facts["rows"]
    return Sweep(
        points=tuple(SweepPoint(**point) for point in facts["points"]),
        best_k=facts["best_k"],
        chosen_by=KChoice(facts["chosen_by"]),
        doubts=tuple(facts["doubts"]),
        fit=fit,
        n_restarted=n_restarted,
        n_agreement=n_agreement,
        n_silhouette=n_silhouette,
    )

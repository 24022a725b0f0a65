"""What leaves the device: the whole pipeline after embedding, on arrays that only `to_host` can read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu_cluster.backend import Array, HeldRows
from gpu_cluster.clustering import kmeans
from gpu_cluster.clustering.near_duplicates import find_near_duplicates
from gpu_cluster.clustering.sequence import find_clusters
from gpu_cluster.clustering.tsne import lay_out
from gpu_cluster.config import RunConfig
from gpu_cluster.events import Observer, Recorder
from gpu_cluster.images.places import open_source
from gpu_cluster.manifest import FileFacts, Manifest
from gpu_cluster.options import build_config
from gpu_cluster.report.tables import write_report
from gpu_cluster.results import Embeddings, Findings, encode_labels
from gpu_cluster.store.parts import Parts

from .strict import LeakError, StrictBackend, side_doors_closed

# What k-means++ may draw its starts from here, and more rows than that: all rows of a matrix leaving is then always a
# leak. The job's own bound, 20,000 rows, takes far longer and leads through the same lines.
START_ROWS = 200
N = START_ROWS + 60
# Columns of a result: labels, distances, silhouettes, plotted components.
MOST_COLUMNS = 3


@pytest.fixture(autouse=True)
def _few_start_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "START_ROWS", START_ROWS)


def embeddings(n: int, backend: StrictBackend) -> Embeddings:
    random = np.random.default_rng(0)
    centres = random.uniform(size=(5, 512)) ** 3
    x = np.maximum(centres[np.arange(n) % 5] + 0.1 * random.normal(size=(n, 512)), 0).astype(np.float32)
    found = backend.from_host(x)
    return Embeddings(
        HeldRows(found, backend), np.arange(n), {}, n_computed=0, images_per_s=None, precision="float32", batch_size=1
    )


class Plants(Recorder):
    """Does something with the embeddings in the middle of the job."""

    def __init__(self, plant: Callable[[], object]) -> None:
        super().__init__()
        self._plant = plant

    def stage_started(self, stage: str) -> None:
        if stage == "cluster":
            self._plant()


def run_stages(
    preset: str,
    folder: Path,
    n: int,
    plant: Callable[[StrictBackend, Array], object],
    *,
    most_rows: int | None = None,
    **options: Any,
) -> StrictBackend:
    """Run every stage after embedding, the `plant` in their middle, and return the backend with its record."""
    backend = StrictBackend(most_rows=most_rows)
    config = build_config(
        RunConfig,
        preset=preset,
        k_range="4:6",
        k=5,
        n_init=2,
        silhouette_sample=130,
        thumbnails=1,
        layout_sample=100,
        **options,
    )
    labels = tuple(f"kind {row % 5}" for row in range(n))
    paths = tuple(f"{row:05d}.png" for row in range(n))
    manifest = Manifest(folder, paths, (FileFacts(size=1, content_hash="0"),) * n, labels=labels, label_source="test")
    with side_doors_closed():
        found = embeddings(n, backend)
        clusters = find_clusters(
            found.x,
            config,
            backend=backend,
            events=Plants(lambda: plant(backend, found.x.whole())),
            sweep_space=config.sweep.sweep_space,
            holdout=config.score.holdout,
            truth=encode_labels(manifest, found.rows),
        )
        pairs = find_near_duplicates(found.x, backend=backend, observer=Observer())
        x, pcs = clusters.projection.x, clusters.projection.pcs
        tsne = lay_out(x, pcs, config.report, seed=0, backend=backend, observer=Observer())
        findings = Findings(
            found, clusters.projection, clusters.sweep, clusters.clustering, clusters.scores, pairs, tsne
        )
        write_report(folder, manifest, open_source(folder), findings, config.report, backend=backend, parts=Parts(None))
    return backend


def leaks(backend: StrictBackend, n: int) -> list[tuple[int, ...]]:
    """Return the transfers of all rows of something wider than a result."""
    return [shape for shape in backend.transfers if len(shape) == 2 and shape[0] >= n and shape[1] > MOST_COLUMNS]


def nothing(_backend: StrictBackend, _x: Array) -> None:
    pass


@pytest.mark.parametrize("preset", ["default", "notebook"])
def test_only_samples_and_results_leave_the_device(tmp_path, preset):
    backend = run_stages(preset, tmp_path, N, nothing)
    assert leaks(backend, N) == []
    widest = {shape[1] for shape in backend.transfers if len(shape) == 2}
    # The notebook preset sweeps on all 512 columns, and its starts are a sample of their rows.
    assert max(widest) == {"default": 16, "notebook": 512}[preset]
    assert max(shape[0] for shape in backend.transfers if len(shape) == 2 and shape[1] > MOST_COLUMNS) == START_ROWS
    assert (tmp_path / "assignments.parquet").is_file()


@pytest.mark.slow
def test_a_space_that_the_device_has_no_room_for_is_read_in_blocks_and_gives_the_same(tmp_path):
    n, tables = 100, []
    for name, most_rows in (("held", n), ("streamed", n - 1)):
        (tmp_path / name).mkdir()
        # The preset has two spaces: it sweeps on the scaled embeddings, and clusters their principal components.
        run_stages("notebook", tmp_path / name, n, nothing, most_rows=most_rows, sweep_sample=60)
        tables.append([(tmp_path / name / table).read_text() for table in ("assignments.csv", "metrics.json")])
    assert tables[0] == tables[1]


def test_a_planted_transfer_of_the_embeddings_is_caught(tmp_path):
    n = 100
    backend = run_stages("default", tmp_path, n, lambda backend, x: backend.to_host(x))
    # Of so few rows the starts may be drawn from all, but from no more columns than those of the projection.
    assert [shape for shape in leaks(backend, n) if shape[1] > 32] == [(n, 512)]


@pytest.mark.parametrize(
    "door",
    [np.from_dlpack, list, np.asarray, lambda x: float(x[0, 0]), lambda x: bool(x[0, 0]), lambda x: next(iter(x))],
    ids=["from_dlpack", "list", "asarray", "float", "bool", "iter"],
)
def test_a_planted_side_door_is_caught(tmp_path, door):
    with pytest.raises((LeakError, RuntimeError)):
        run_stages("default", tmp_path, 60, lambda _backend, x: door(x))

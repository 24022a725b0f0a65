"""Does the same work on the CPU and on the GPU of this machine and compares the results, to verify a new GPU.

The embeddings are compared first. Everything after them starts on both devices from the CPU's embeddings, so that each
row of the verdict judges one step only. Leaves a `Verdict`, which the command line shows. On a machine without a GPU
the verdict has only the CPU's column and says that the GPU was not tried.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gpu_cluster.backend import Backend, CpuBackend, FloatArray, IntArray
from gpu_cluster.clustering.sequence import find_clusters
from gpu_cluster.config import Device, RunConfig
from gpu_cluster.embedding import extractors, vgg16
from gpu_cluster.embedding.embed import embed
from gpu_cluster.embedding.engines import choose_engine
from gpu_cluster.embedding.extractors import Extractor
from gpu_cluster.events import Observer, Recorder
from gpu_cluster.jobs.prepare import Job, describe_device, find_labelled, opened
from gpu_cluster.manifest import Manifest
from gpu_cluster.options import build_config
from gpu_cluster.results import encode_labels

# The sample set has ten kinds of flowers. The range of k stays the default.
_K = 10

# Largest relative error of the embeddings by precision. In float32 the sums of 13 convolutions are computed in another
# order; tf32 and float16 keep 10 bits of each factor, an error of 5e-4 a product, most of which averages out.
_EMBEDDING_TOLERANCE = {"float32": 1e-4, "tf32": 1e-2, "float16": 2e-2}


@dataclass(frozen=True)
class Measured:
    """The results of one device on the sample set; arrays are on the host."""

    device: Mapping[str, Any]
    precision: str
    embeddings: FloatArray
    images_per_s: float
    stages_s: Mapping[str, float]
    pcs: FloatArray
    inertias: Sequence[float]
    labels: IntArray
    scores: Mapping[str, float]
    transfers: Sequence[tuple[int, ...]]
    peak_bytes: int


@dataclass(frozen=True)
class Row:
    """One line of the verdict; `ok` is None without a GPU to compare with, or for a row without a tolerance."""

    name: str
    cpu: str
    gpu: str | None
    error: float | None = None
    tolerance: float | None = None
    reason: str = ""

    @property
    def ok(self) -> bool | None:
        """Whether the error is within the tolerance."""
        return None if self.error is None or self.tolerance is None else self.error <= self.tolerance


@dataclass(frozen=True)
class Verdict:
    """All rows, the facts about each device, and why the GPU was not tried (None if it was)."""

    rows: tuple[Row, ...]
    devices: Mapping[str, Mapping[str, Any]]
    not_tried: str | None

    @property
    def passed(self) -> bool:
        """Whether no row missed its tolerance."""
        return all(row.ok is not False for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """Return the verdict as values that JSON can hold."""
        rows = [{**asdict(row), "ok": row.ok} for row in self.rows]
        return {"passed": self.passed, "not_tried": self.not_tried, "devices": dict(self.devices), "rows": rows}


def selftest(device: Device, *, image_size: int | None = None, observer: Observer | None = None) -> Verdict:
    """Measure the CPU and, if `device` allows it and one can be used, the GPU, and compare them.

    Raises
    ------
    DeviceError
        When `gpu` is asked for and cannot be used.
    """
    # Without the store, because the computation itself is compared.
    config = build_config(RunConfig, device=device, k=_K, image_size=image_size, no_cache=True)
    events = Recorder(observer or Observer())

    def prepared(weights: vgg16.Weights, _backend: Backend, _manifest: Manifest) -> Extractor:
        return extractors.of_vgg16(weights, config.embed)

    with opened(config, events, lambda: find_labelled(config.input, events), prepared) as job:
        cpu = measure(CpuBackend(), job)
        if job.backend.name == "cpu":
            return Verdict(
                tuple(compare(cpu, None)), {"cpu": cpu.device}, f"the GPU was not tried: {job.choice.reason}"
            )
        gpu = measure(job.backend, job, start_from=cpu.embeddings)
    return Verdict(tuple(compare(cpu, gpu)), {"cpu": cpu.device, "gpu": gpu.device}, None)


def measure(backend: Backend, job: Job[RunConfig, Extractor], start_from: FloatArray | None = None) -> Measured:
    """Embed the sample set on a device, then cluster `start_from` (n, d), host, there; None: its own embeddings."""
    config, events = job.config, Recorder(job.events)
    engine = choose_engine(backend, job.tools, config.embed)
    with events.stage("embed"):
        own = embed(job.manifest, job.source, engine, store=None, store_config=config.store, observer=events)
    embedded = np.asarray(backend.to_host(own.x))
    transfers = _recorded_transfers(backend)
    found = find_clusters(
        backend.from_host(embedded if start_from is None else start_from),
        config,
        backend=backend,
        events=events,
        truth=encode_labels(job.manifest, own.rows),
    )
    every = {**found.scores.internal, **(found.scores.external or {})}
    return Measured(
        device=describe_device(backend, engine),
        precision=own.precision,
        embeddings=embedded,
        images_per_s=own.images_per_s or 0.0,
        stages_s=events.stages_s,
        pcs=np.asarray(backend.to_host(found.projection.pcs)),
        inertias=[point.inertia for point in found.sweep.points],
        labels=np.asarray(backend.to_host(found.clustering.labels)),
        scores={name: value for name, value in every.items() if value is not None},
        transfers=transfers,
        peak_bytes=backend.peak_bytes(),
    )


def compare(cpu: Measured, gpu: Measured | None) -> Iterator[Row]:
    """Yield the rows of the verdict: first those with a tolerance, then those that are only reported."""
    n_images = len(cpu.labels)
    precision = "float32" if gpu is None else gpu.precision
    yield Row(
        "embeddings",
        f"{n_images} x {cpu.embeddings.shape[1]} {cpu.precision}",
        None if gpu is None else gpu.precision,
        None if gpu is None else _relative(gpu.embeddings, cpu.embeddings),
        _EMBEDDING_TOLERANCE[precision],
        f"13 convolutions in {precision}, summed in another order",
    )
    yield Row(
        "PCA, two components",
        f"spread {np.std(cpu.pcs):.4f}",
        None if gpu is None else f"spread {np.std(gpu.pcs):.4f}",
        None if gpu is None else _relative(gpu.pcs, cpu.pcs),
        1e-3,
        "float32 rounding over the gap between neighbouring axes",
    )
    error = None if gpu is None else float(np.max(np.abs(np.divide(gpu.inertias, cpu.inertias) - 1)))
    yield Row(
        "inertia, every k",
        f"{cpu.inertias[0]:.4g} to {cpu.inertias[-1]:.4g}",
        None if gpu is None else f"{gpu.inertias[0]:.4g} to {gpu.inertias[-1]:.4g}",
        error,
        1e-2,
        "the same starts; a row between two centres may fall to either, and a restart end elsewhere",
    )
    yield Row(
        "labels, 1 - ARI",
        f"{len(set(cpu.labels.tolist()))} clusters",
        None if gpu is None else f"{len(set(gpu.labels.tolist()))} clusters",
        None if gpu is None else 1 - CpuBackend().label_scores(cpu.labels, gpu.labels)["adjusted_rand"],
        0.02,
        "as for the inertia",
    )
    for name, value in cpu.scores.items():
        other = None if gpu is None else gpu.scores[name]
        error = None if other is None else abs(other - value) / max(1.0, abs(value))
        yield Row(name, f"{value:.4f}", None if other is None else f"{other:.4f}", error, 0.02, "follows the labels")
    yield from _told(cpu, gpu)


def _told(cpu: Measured, gpu: Measured | None) -> Iterator[Row]:
    def row(name: str, pick: Any) -> Row:
        return Row(name, pick(cpu), None if gpu is None else pick(gpu))

    yield row("images/s", lambda one: f"{one.images_per_s:.1f}")
    yield row("peak memory", lambda one: f"{one.peak_bytes / 1e6:.0f} MB")
    yield row("transfers to the host", lambda one: f"{len(one.transfers)}, largest {_largest(one.transfers)}")
    for stage in cpu.stages_s:
        yield row(f"{stage}, s", lambda one, stage=stage: f"{one.stages_s[stage]:.3f}")


def _relative(found: FloatArray, expected: FloatArray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _largest(transfers: Sequence[tuple[int, ...]]) -> str:
    return " x ".join(map(str, max(transfers, key=math.prod, default=())))


def _recorded_transfers(backend: Backend) -> list[tuple[int, ...]]:
    """Record the shape of everything that leaves the device from now on."""
    shapes: list[tuple[int, ...]] = []
    original = backend.to_host

    def to_host(array: Any) -> Any:
        shapes.append(tuple(array.shape))
        return original(array)

    backend.to_host = to_host  # type: ignore[method-assign]
    return shapes

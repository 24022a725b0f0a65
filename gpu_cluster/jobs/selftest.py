"""Does the same work on the CPU and on the GPU of this machine and compares the results, to verify a new GPU.

The embeddings are compared first. Everything after them starts on both devices from the CPU's embeddings, so that each
row of the verdict judges one step only. Each device works twice, and its two runs are compared byte by byte. The result
is a `SelftestVerdict`, which the command line shows. On a machine without a GPU the verdict has only the CPU's column
and says that the GPU was not tried.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np

from gpu_cluster.backend import Backend, CpuBackend, FloatArray, HeldRows, look_for_gpu
from gpu_cluster.clustering.sequence import find_clusters
from gpu_cluster.config import Device, EngineName, RunConfig
from gpu_cluster.embedding import features
from gpu_cluster.embedding.embed import embed
from gpu_cluster.embedding.engines import Engine, choose_engine
from gpu_cluster.embedding.extractors import Extractor, Joined
from gpu_cluster.events import Observer, Recorder
from gpu_cluster.images.source import Picture
from gpu_cluster.jobs.prepare import Job, describe_device, find_labelled, opened
from gpu_cluster.jobs.selftest_verdict import (
    Clustered,
    Measured,
    SelftestVerdict,
    compare,
    compare_precision,
    compare_runs,
)
from gpu_cluster.manifest import Manifest
from gpu_cluster.options import build_config
from gpu_cluster.results import Embeddings, encode_labels

# The sample set has ten kinds of flowers. The range of k stays the default.
_K = 10

# The options of each space that is clustered, by its name. In the second one rows have lengths of about 40 and columns
# have variances above 1, so that a rule with an absolute size in it shows.
_SPACES: Mapping[str, Mapping[str, Any]] = {
    "": {},
    "not of unit length": {
        **{"features": "vgg16", "pooling": "average"},
        **{"scaling": "none", "whitening": 0.0, "normalize": False},
    },
}

# How often a step is repeated to be timed.
_REPEATS = 3

# The variables of these libraries change what a GPU does, so they are part of the file to send with a report.
_SETTINGS = ("CUDA_", "CUPY_", "NVIDIA_", "RMM_", "TF_", "XLA_")


def selftest(
    device: Device,
    *,
    image_size: int | None = None,
    engine: EngineName = "auto",
    observer: Observer | None = None,
) -> SelftestVerdict:
    """Measure the CPU, with this engine, and, if `device` allows it and one can be used, the GPU; compare them.

    Raises
    ------
    DeviceError
        When `gpu` is asked for and cannot be used.
    """
    # Without the store, because the computation itself is compared.
    config = build_config(RunConfig, device=device, k=_K, image_size=image_size, no_cache=True)
    events = Recorder(observer or Observer())

    def prepared(weights: features.Weights, _backend: Backend, _manifest: Manifest) -> Extractor | Joined:
        return features.extractor_of(config.embed, weights)

    with opened(config, events, lambda: find_labelled(config.input, events, config.store), prepared) as job:
        cpu, again = (measure(CpuBackend(), job, engine=engine) for _ in range(2))
        rows, devices, not_tried = list(compare_runs("cpu", cpu, again)), {"cpu": cpu.device}, None
        if job.backend.name == "cpu":
            rows = [*compare(cpu, None), *rows]
            not_tried = f"the GPU was not tried: {job.choice.reason}"
        else:
            gpu, again = (measure(type(job.backend)(), job, start_from=cpu.starts) for _ in range(2))
            devices["gpu"] = gpu.device
            others = [precision for precision in job.backend.precisions if precision != gpu.precision]
            rows = [
                *compare(cpu, gpu),
                *(
                    compare_precision(one, cpu.embeddings, embed_with({"precision": one}, job.backend, job))
                    for one in others
                ),
                *rows,
                *compare_runs("gpu", gpu, again),
            ]
    return SelftestVerdict(tuple(rows), devices, describe_machine(), not_tried)


def measure(
    backend: Backend,
    job: Job[RunConfig, Extractor | Joined],
    start_from: Mapping[str, FloatArray] | None = None,
    *,
    engine: EngineName = "auto",
) -> Measured:
    """Embed the sample set on a device with an engine, and cluster it there in each space.

    `start_from` has the embeddings (n, d), host, that each space is made of; None: the device's own.
    """
    events = Recorder(job.events)
    chosen = choose_engine(backend, job.tools, job.config.embed.model_copy(update={"engine": engine}))
    with events.stage("embed"):
        own = _embedded(chosen, job, events)
    embeddings = np.asarray(backend.to_host(own.x.whole()))
    speeds = {**time_steps(chosen, job), "all together": own.images_per_s or 0.0}
    if start_from is None:
        start_from = {
            name: embed_with({**options, "engine": engine}, backend, job) if options else embeddings
            for name, options in _SPACES.items()
        }
    transfers = _recorded_transfers(backend)
    spaces = {
        # Only the stages of the default space are timed.
        name: _clustered(
            backend, job, own, _config(job, **options), start_from[name], Recorder() if options else events
        )
        for name, options in _SPACES.items()
    }
    return Measured(
        device=describe_device(backend, chosen),
        precision=own.precision or "",
        embeddings=embeddings,
        speeds=speeds,
        stages_s=events.stages_s,
        spaces=spaces,
        starts=start_from,
        transfers=transfers,
        peak_bytes=backend.peak_bytes(),
        claimed_bytes=backend.claimed_bytes(),
    )


def embed_with(options: Mapping[str, Any], backend: Backend, job: Job[RunConfig, Extractor | Joined]) -> FloatArray:
    """Embed the sample set with these options: (n, d) float32, host."""
    config = _config(job, **options)
    engine = choose_engine(backend, features.extractor_of(config.embed, job.weights), config.embed)
    return np.asarray(backend.to_host(_embedded(engine, job, job.events).x.whole()))


def time_steps(engine: Engine, job: Job[RunConfig, Extractor | Joined]) -> dict[str, float]:
    """Time decoding, the network, and the copy of its result into a matrix, each by itself; in pictures a second."""
    backend, n = engine.backend, engine.batch_size
    files = list(zip(job.manifest.paths, job.manifest.files, strict=True))
    pictures = [Picture(job.source, *files[at % len(files)]) for at in range(2 * n)]
    start = time.perf_counter()
    (_, pixels), *_others = engine.batches(pictures)
    decoded = time.perf_counter()
    # The first batch of a size makes a GPU choose its algorithms, which is no part of the speed.
    engine.features(pixels)
    backend.synchronize()
    before = time.perf_counter()
    for _ in range(_REPEATS):
        features = engine.features(pixels)
        backend.synchronize()
    computed = time.perf_counter()
    x = backend.xp.empty(features.shape, dtype=backend.xp.float32)
    rows = backend.from_host(np.arange(len(x)))
    copying = time.perf_counter()
    for _ in range(_REPEATS):
        x[rows] = features
        backend.synchronize()
    copied = time.perf_counter()
    return {
        "decode": len(pictures) / (decoded - start),
        "network": _REPEATS * n / (computed - before),
        "hand-over": _REPEATS * n / (copied - copying),
    }


def describe_machine() -> dict[str, Any]:
    """Return what a report of a fault needs to say of this machine: versions, what was found of a GPU, settings."""
    return {
        "gpu-cluster": version("gpu-cluster"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "found": {finding.name: "; ".join((finding.found, *finding.notes)) for finding in look_for_gpu()},
        "settings": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_SETTINGS)},
    }


def _config(job: Job[RunConfig, Extractor | Joined], **options: Any) -> RunConfig:
    image_size = job.config.embed.image_size
    return build_config(RunConfig, device=job.config.device, k=_K, image_size=image_size, no_cache=True, **options)


def _embedded(engine: Engine, job: Job[RunConfig, Extractor | Joined], observer: Observer) -> Embeddings:
    return embed(job.manifest, job.source, engine, store=None, store_config=job.config.store, observer=observer)


def _clustered(
    backend: Backend,
    job: Job[RunConfig, Extractor | Joined],
    own: Embeddings,
    config: RunConfig,
    x: FloatArray,
    events: Recorder,
) -> Clustered:
    held = HeldRows(backend.from_host(x), backend)
    found = find_clusters(held, config, backend=backend, events=events, truth=encode_labels(job.manifest, own.rows))
    every = {**found.scores.internal, **(found.scores.external or {})}
    return Clustered(
        pcs=np.asarray(backend.to_host(found.projection.pcs)),
        inertias=[point.inertia for point in found.sweep.points],
        labels=np.asarray(backend.to_host(found.clustering.labels)),
        silhouettes=np.asarray(found.scores.silhouettes),
        scores={name: value for name, value in every.items() if value is not None},
    )


def _recorded_transfers(backend: Backend) -> list[tuple[int, ...]]:
    """Record the shape of everything that leaves the device from now on."""
    shapes: list[tuple[int, ...]] = []
    original = backend.to_host

    def to_host(array: Any) -> Any:
        shapes.append(tuple(array.shape))
        return original(array)

    backend.to_host = to_host  # type: ignore[method-assign]
    return shapes

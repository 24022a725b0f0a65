"""Compares what two devices measured: the rows of the self test, each with its tolerance and the reason for it.

Input: what `selftest` measured on each device. Output: rows. This module must not know how anything was measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gpu_cluster.backend import CpuBackend, FloatArray, IntArray

# Largest relative error of one row of the embeddings, by precision. In float32 the sums of 13 convolutions are computed
# in another order. tf32 keeps 10 bits of each factor, and float16 of each result too: simulated on the CPU, with 24
# pictures, and factors and results rounded in the same way, the largest errors of a row were 1.0e-3 and 1.1e-3. Two of
# these pictures are at least 0.44 apart, so that rows in each other's place are seen.
_EMBEDDING_TOLERANCE = {"float32": 1e-4, "tf32": 3e-3, "float16": 5e-3}


@dataclass(frozen=True)
class Clustered:
    """The clusters of one space; arrays are on the host."""

    pcs: FloatArray
    inertias: Sequence[float]
    labels: IntArray
    silhouettes: FloatArray
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Measured:
    """The results of one device on the sample set; arrays are on the host.

    Attributes
    ----------
    speeds : pictures a second of each step by itself, and of all together
    spaces : the clusters of each space, by the name of the space; '' is the default
    starts : the embeddings (n, d) from which each space was made
    """

    device: Mapping[str, Any]
    precision: str
    embeddings: FloatArray
    speeds: Mapping[str, float]
    stages_s: Mapping[str, float]
    spaces: Mapping[str, Clustered]
    starts: Mapping[str, FloatArray]
    transfers: Sequence[tuple[int, ...]]
    peak_bytes: int
    claimed_bytes: int


@dataclass(frozen=True)
class Row:
    """One line of the verdict; `ok` is None for a row without an error or without a tolerance."""

    name: str
    cpu: str
    gpu: str | None
    error: float | None = None
    tolerance: float | None = None
    reason: str = ""

    @property
    def ok(self) -> bool | None:
        """Whether the error is within the tolerance; an error that is not a number is not."""
        return None if self.error is None or self.tolerance is None else self.error <= self.tolerance


@dataclass(frozen=True)
class SelftestVerdict:
    """All rows, the facts about each device and the machine, and why the GPU was not tried (None if it was)."""

    rows: tuple[Row, ...]
    devices: Mapping[str, Mapping[str, Any]]
    machine: Mapping[str, Any]
    not_tried: str | None

    @property
    def passed(self) -> bool:
        """Whether no row missed its tolerance."""
        return all(row.ok is not False for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """Return the verdict as values that JSON can hold; an error that is not a number becomes a text."""
        rows = [{**asdict(row), "error": _for_json(row.error), "ok": row.ok} for row in self.rows]
        return {
            "passed": self.passed,
            "not_tried": self.not_tried,
            "machine": dict(self.machine),
            "devices": dict(self.devices),
            "rows": rows,
        }


def _for_json(error: float | None) -> float | str | None:
    return error if error is None or math.isfinite(error) else str(error)


def compare(cpu: Measured, gpu: Measured | None) -> Iterator[Row]:
    """Yield the rows that compare the GPU with the CPU, then those that are only reported."""
    precision = "float32" if gpu is None else gpu.precision
    shape = " x ".join(map(str, cpu.embeddings.shape))
    yield Row(
        "embeddings",
        f"{shape} {cpu.precision}",
        precision if gpu else None,
        _largest_error(gpu.embeddings, cpu.embeddings) if gpu else None,
        _EMBEDDING_TOLERANCE[precision],
        f"13 convolutions in {precision}, summed in another order; the row that differs most",
    )
    for name, here in cpu.spaces.items():
        yield from _compare_space(f", {name}" if name else "", here, gpu.spaces[name] if gpu else None)
    yield Row(
        "peak memory",
        f"{cpu.peak_bytes / 1e6:.0f} MB",
        f"{gpu.peak_bytes / 1e6:.0f} of {gpu.claimed_bytes / 1e6:.0f} MB claimed" if gpu else None,
        gpu.peak_bytes / gpu.claimed_bytes if gpu and gpu.claimed_bytes else None,
        1,
        "arrays fit into the memory claimed for them; the network's memory is not counted",
    )
    yield from _told(cpu, gpu)


def compare_precision(precision: str, cpu: FloatArray, gpu: FloatArray) -> Row:
    """Return the row for embeddings (n, d) in another precision that the GPU computes in."""
    reason = "as for the embeddings"
    return Row(
        f"embeddings, {precision}",
        "float32",
        precision,
        _largest_error(gpu, cpu),
        _EMBEDDING_TOLERANCE[precision],
        reason,
    )


def compare_runs(name: str, first: Measured, second: Measured) -> Iterator[Row]:
    """Yield the rows that compare two runs on one device, byte by byte.

    On the CPU nothing may differ. On a GPU the libraries promise no bytes, and the results must agree as they must with
    the CPU's.
    """
    exact = name == "cpu"
    reason = "the same seed gives the same bytes" if exact else "algorithms chosen by timing, sums by float atomics"

    def row(what: str, one: Any, other: Any, error: float, tolerance: float) -> Row:
        one, other = np.asarray(one), np.asarray(other)
        n = int((one.view(np.uint8) != other.view(np.uint8)).reshape(*one.shape, one.itemsize).any(axis=-1).sum())
        words = "same bytes" if n == 0 else f"{n:,} of {one.size:,} values differ"
        error, tolerance = (float(n), 0.0) if exact else (error, tolerance)
        return Row(f"two runs, {what}", words if exact else "", None if exact else words, error, tolerance, reason)

    tolerance = _EMBEDDING_TOLERANCE[first.precision]
    error = _largest_error(second.embeddings, first.embeddings)
    yield row("embeddings", first.embeddings, second.embeddings, error, tolerance)
    for space, one in first.spaces.items():
        other = second.spaces[space]
        in_space = f" {space}".rstrip()
        yield row(f"PCA{in_space}", one.pcs, other.pcs, _relative(other.pcs, one.pcs), 1e-3)
        yield row(f"inertias{in_space}", one.inertias, other.inertias, _ratio(other.inertias, one.inertias), 1e-2)
        yield row(f"labels{in_space}", one.labels, other.labels, _disagreement(one.labels, other.labels), 0.02)
        apart = float(np.max(np.abs(other.silhouettes - one.silhouettes)))
        yield row(f"silhouettes{in_space}", one.silhouettes, other.silhouettes, apart, 1e-3)


def _compare_space(suffix: str, cpu: Clustered, gpu: Clustered | None) -> Iterator[Row]:
    yield Row(
        f"PCA, two components{suffix}",
        f"spread {np.std(cpu.pcs):.4f}",
        f"spread {np.std(gpu.pcs):.4f}" if gpu else None,
        _relative(gpu.pcs, cpu.pcs) if gpu else None,
        1e-3,
        "float32 rounding over the gap between neighbouring axes",
    )
    yield Row(
        f"inertia, every k{suffix}",
        f"{cpu.inertias[0]:.4g} to {cpu.inertias[-1]:.4g}",
        f"{gpu.inertias[0]:.4g} to {gpu.inertias[-1]:.4g}" if gpu else None,
        _ratio(gpu.inertias, cpu.inertias) if gpu else None,
        1e-2,
        "the same starts; a row between two centres may fall to either, and a restart end elsewhere",
    )
    yield Row(
        f"labels, 1 - ARI{suffix}",
        f"{len(set(cpu.labels.tolist()))} clusters",
        f"{len(set(gpu.labels.tolist()))} clusters" if gpu else None,
        _disagreement(cpu.labels, gpu.labels) if gpu else None,
        0.02,
        "as for the inertia",
    )
    for name, value in cpu.scores.items():
        other = gpu.scores[name] if gpu else None
        error = None if other is None else abs(other - value) / max(1.0, abs(value))
        words = None if other is None else f"{other:.4f}"
        yield Row(f"{name}{suffix}", f"{value:.4f}", words, error, 0.02, "follows the labels")


def _told(cpu: Measured, gpu: Measured | None) -> Iterator[Row]:
    def row(name: str, pick: Any) -> Row:
        return Row(name, pick(cpu), pick(gpu) if gpu else None)

    yield row("engine", lambda one: one.device["engine"])
    for step in cpu.speeds:
        yield row(f"{step}, pictures/s", lambda one, step=step: f"{one.speeds[step]:,.1f}")
    yield row("transfers to the host", lambda one: f"{len(one.transfers)}, largest {_largest(one.transfers)}")
    for stage in cpu.stages_s:
        yield row(f"{stage}, s", lambda one, stage=stage: f"{one.stages_s[stage]:.3f}")


def _largest_error(found: FloatArray, expected: FloatArray) -> float:
    """Return the relative error of the row that differs most; not a number if one value is not."""
    sizes = np.maximum(np.linalg.norm(expected, axis=1), np.finfo(np.float32).tiny)
    return float(np.max(np.linalg.norm(found - expected, axis=1) / sizes))


def _relative(found: FloatArray, expected: FloatArray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _ratio(found: Sequence[float], expected: Sequence[float]) -> float:
    return float(np.max(np.abs(np.divide(found, expected) - 1)))


def _disagreement(one: IntArray, other: IntArray) -> float:
    return 1 - CpuBackend().label_scores(one, other)["adjusted_rand"]


def _largest(transfers: Sequence[tuple[int, ...]]) -> str:
    return " x ".join(map(str, max(transfers, key=math.prod, default=())))

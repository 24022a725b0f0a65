"""The backends that the suite runs over. A GPU that is required and not there is a failure, not a skip."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from gpu_cluster.backend import Backend, CpuBackend, GpuBackend, look_for_gpu

from .strict import StrictBackend, side_doors_closed


def gpu() -> Backend:
    """Return the GPU's backend, or skip (fail with GPU_CLUSTER_REQUIRE_GPU=1) with what was looked for and found."""
    missing = [f"{finding.name}: {finding.found}" for finding in look_for_gpu() if not finding.ok]
    if missing and os.environ.get("GPU_CLUSTER_REQUIRE_GPU") == "1":
        pytest.fail(f"GPU_CLUSTER_REQUIRE_GPU=1 and no GPU can be used: {'; '.join(missing)}")
    if missing:
        pytest.skip(f"no GPU can be used: {'; '.join(missing)}")
    backend = GpuBackend()
    backend.claim_device(1 << 28)
    return backend


@pytest.fixture(params=["cpu", "strict", "gpu"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    if request.param == "strict":
        with side_doors_closed():
            yield StrictBackend()
    else:
        yield CpuBackend() if request.param == "cpu" else gpu()

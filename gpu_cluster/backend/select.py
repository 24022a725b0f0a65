"""Chooses the device of a job: from the device asked for and from what this machine has; says why.

The detection claims nothing: it allocates no GPU memory, and without a driver it imports no GPU library.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from gpu_cluster.backend.base import Backend
from gpu_cluster.backend.cpu import CpuBackend
from gpu_cluster.backend.gpu import GpuBackend
from gpu_cluster.config import Device
from gpu_cluster.errors import DeviceError

# Wheels that the `gpu` extra installs.
GPU_WHEELS = ("tensorflow", "cupy-cuda12x", "cuml-cu12", "cudf-cu12", "rmm-cu12")


@dataclass(frozen=True)
class Finding:
    """One thing that a job on a GPU needs: whether it is there, what was found, and what to do if it is not."""

    name: str
    ok: bool
    found: str
    remedy: str


@dataclass(frozen=True)
class Choice:
    """The device of a job, and in words why this one was chosen."""

    backend: Backend
    reason: str


def select(device: Device) -> Choice:
    """Choose the backend: `auto` uses the GPU if one can be used, else the CPU; `gpu` never falls back to the CPU.

    Raises
    ------
    DeviceError
        When a GPU was asked for and cannot be used; the message says what was looked for and found.
    """
    if device == "cpu":
        return Choice(CpuBackend(), "asked for")
    findings = look_for_gpu()
    missing = [finding for finding in findings if not finding.ok]
    if not missing:
        return Choice(GpuBackend(), "asked for" if device == "gpu" else "a GPU is there")
    if device == "gpu":
        looked = "; ".join(f"{finding.name}: {finding.found}" for finding in findings)
        raise DeviceError(f"--device gpu: no GPU can be used ({looked}); {missing[0].remedy}, or use --device cpu")
    return Choice(CpuBackend(), f"no GPU can be used ({missing[0].name}: {missing[0].found})")


def look_for_gpu() -> tuple[Finding, ...]:
    """Look for what a job on a GPU needs: the driver, visible devices, the wheels; if all are there, a CUDA device."""
    findings = [_driver(), _visible_devices(), _wheels()]
    if all(finding.ok for finding in findings):
        findings.append(_cupy_sees_a_device())
    return tuple(findings)


def _driver() -> Finding:
    remedy = "install the NVIDIA driver (535 or newer), or run where the container or the job is given a GPU"
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Finding("driver", False, "libcuda.so.1 not found", remedy)
    code = library.cuInit(0)
    if code != 0:
        return Finding("driver", False, f"libcuda.so.1 is there, cuInit failed with code {code}", remedy)
    number = ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(number))
    return Finding("driver", True, f"CUDA {number.value // 1000}.{number.value % 1000 // 10}", remedy)


def _visible_devices() -> Finding:
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = value is not None and value.strip() in ("", "-1", "NoDevFiles")
    found = "not set" if value is None else repr(value)
    return Finding("CUDA_VISIBLE_DEVICES", not hidden, found, "unset CUDA_VISIBLE_DEVICES or name a device in it")


def _wheels() -> Finding:
    found, missing = [], []
    for wheel in GPU_WHEELS:
        try:
            found.append(f"{wheel} {version(wheel)}")
        except PackageNotFoundError:
            missing.append(wheel)
    words = ", ".join(found) + (f"{', ' if found else ''}no {', no '.join(missing)}" if missing else "")
    return Finding("wheels", not missing, words, "install the gpu extra: pip install 'gpu-cluster[gpu]'")


def _cupy_sees_a_device() -> Finding:
    import cupy

    n = cupy.cuda.runtime.getDeviceCount() if cupy.cuda.is_available() else 0
    return Finding("devices", n > 0, f"{n} seen by CuPy", "check nvidia-smi, and that the driver fits CUDA 12")

"""Chooses the device of a job: from the device asked for and from what this machine has; says why.

The detection takes no memory of the GPU but for the one small operation of TensorFlow, and without a driver it imports
no GPU library. It makes a process use one card only: the first that is visible.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gpu_cluster.backend import tensorflow_devices
from gpu_cluster.backend.base import Backend
from gpu_cluster.backend.cpu import CpuBackend
from gpu_cluster.backend.gpu import GpuBackend
from gpu_cluster.config import Device
from gpu_cluster.errors import DeviceError

# Wheels that the `gpu` extra installs.
GPU_WHEELS = ("tensorflow", "cupy-cuda12x", "cuml-cu12", "cudf-cu12", "rmm-cu12")

# The least driver for cards from a compute capability on: the CUDA release that it has, as CUDA's own number, and the
# number of the driver. RAPIDS 26.10 needs 7.5. TensorFlow 2.21 has code for 6.0 to 8.9; for newer cards it has only an
# intermediate form (PTX) of CUDA 12.5, which an older driver cannot read.
LEAST_DRIVERS = (((7, 5), 12020, "535"), ((9, 0), 12050, "555"))
# The code for the processor that is in TensorFlow's wheel, as `tf.sysconfig.get_build_info` names it. A card runs the
# code of an earlier card of its own generation too.
TENSORFLOW_CODE = ("sm_60", "sm_70", "sm_80", "sm_89")
_COMPILED_FROM = (9, 0)
_BLACKWELL_FROM = (10, 0)


@dataclass(frozen=True)
class Finding:
    """One thing that a job on a GPU needs: whether it is there, what was found, and what to do if it is not.

    `notes` are what the user should know of it although it is there.
    """

    name: str
    ok: bool
    found: str
    remedy: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """The device of a job, in words why this one was chosen, and what the user should know of it."""

    backend: Backend
    reason: str
    notes: tuple[str, ...] = ()


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
        notes = tuple(note for finding in findings for note in finding.notes)
        return Choice(GpuBackend(), "asked for" if device == "gpu" else "a GPU is there", notes)
    if device == "gpu":
        looked = "; ".join(f"{finding.name}: {finding.found}" for finding in findings)
        raise DeviceError(f"--device gpu: no GPU can be used ({looked}); {missing[0].remedy}, or use --device cpu")
    return Choice(CpuBackend(), f"no GPU can be used ({missing[0].name}: {missing[0].found})")


def look_for_gpu() -> tuple[Finding, ...]:
    """Look for what a job on a GPU needs: driver, visible devices, wheels; if all are there, a card that will do.

    Where there is a driver, this process sees only the first visible card from now on.
    """
    # First, because the driver reads the variable when it is started.
    visible = _visible_devices()
    findings = [_driver(), visible, _wheels()]
    for look in (_cupy_sees_a_device, _compute_capability, _tensorflow_sees_it):
        if all(finding.ok for finding in findings):
            findings.append(look())
    return tuple(findings)


def _visible_devices() -> Finding:
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = "not set" if value is None else repr(value)
    remedy = "unset CUDA_VISIBLE_DEVICES or name a device in it"
    if tensorflow_devices.no_card_is_visible():
        return Finding("CUDA_VISIBLE_DEVICES", False, found, remedy)
    if tensorflow_devices.driver() is not None and tensorflow_devices.show_one_card():
        now = os.environ["CUDA_VISIBLE_DEVICES"]
        if now != value:
            found += f"; set to {now!r} for this process, because a job uses one card"
    return Finding("CUDA_VISIBLE_DEVICES", True, found, remedy)


def _driver() -> Finding:
    remedy = "install the NVIDIA driver (535 or newer), or run where the container or the job is given a GPU"
    library = tensorflow_devices.driver()
    if library is None:
        return Finding("driver", False, "libcuda.so.1 not found", remedy)
    code = library.cuInit(0)
    if code != 0:
        return Finding("driver", False, f"libcuda.so.1 is there, cuInit failed with code {code}", remedy)
    number = ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(number))
    return Finding("driver", True, _cuda(number.value), remedy)


def _wheels() -> Finding:
    found = installed(*GPU_WHEELS)
    missing = [wheel for wheel in GPU_WHEELS if wheel not in found]
    words = ", ".join(
        [*(f"{wheel} {number}" for wheel, number in found.items()), *(f"no {wheel}" for wheel in missing)]
    )
    if "tensorflow" in missing and installed("tensorflow-cpu"):
        words += "; the installed tensorflow-cpu cannot use a GPU"
    remedy = (
        "in a new environment (the extras cpu and gpu exclude each other), install the gpu extra from a checkout: "
        "pip install '.[gpu]'"
    )
    return Finding("wheels", not missing, words, remedy)


def installed(*wheels: str) -> dict[str, str]:
    """Return the version of each of these wheels that is installed."""
    found = {}
    for wheel in wheels:
        try:
            found[wheel] = version(wheel)
        except PackageNotFoundError:
            continue
    return found


def _cupy_sees_a_device() -> Finding:
    import cupy

    n = cupy.cuda.runtime.getDeviceCount() if cupy.cuda.is_available() else 0
    note = (
        f"{n} cards are visible to this process, because a library that uses CUDA was loaded before the job began; "
        "TensorFlow takes memory on each of them: set CUDA_VISIBLE_DEVICES=0 before"
    )
    remedy = "check nvidia-smi, and that the driver fits CUDA 12"
    return Finding("devices", n > 0, f"{n} seen by CuPy", remedy, (note,) if n > 1 else ())


def _compute_capability() -> Finding:
    """Hold the card against what the wheels have code for, and the driver against what the card then needs."""
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(0)
    capability, driver = (properties["major"], properties["minor"]), cupy.cuda.runtime.driverGetVersion()
    found = f"{capability[0]}.{capability[1]}, driver for {_cuda(driver)}"
    fitting = [least for least in LEAST_DRIVERS if capability >= least[0]]
    if not fitting:
        oldest = ".".join(map(str, LEAST_DRIVERS[0][0]))
        return Finding("compute capability", False, found, f"use a card of compute capability {oldest} or above")
    _from, least, number = fitting[-1]
    remedy = f"install driver {number} or newer, which such a card needs ({_cuda(least)})"
    return Finding("compute capability", driver >= least, found, remedy, tuple(_notes(capability)))


def _notes(capability: tuple[int, int]) -> list[str]:
    notes = []
    if capability >= _COMPILED_FROM and not _compiled_before():
        kept = f"keeps it in {str(_compiled())!r}"
        if os.environ.get("CUDA_CACHE_DISABLE") == "1":
            kept = "keeps nothing of it, because CUDA_CACHE_DISABLE is 1"
        notes.append(
            f"TensorFlow has no code for compute capability {capability[0]}.{capability[1]}: in a first run the driver "
            f"compiles it, which can take half an hour, and {kept} (CUDA_CACHE_PATH)"
        )
    if capability >= _BLACKWELL_FROM:
        notes.append(
            "there are open reports that TensorFlow fails on cards of this generation (Blackwell; tensorflow#97387, "
            "#99592): run gpu-cluster selftest first"
        )
    return notes


def _compiled() -> Path:
    """Return the folder in which NVIDIA's driver keeps what it compiled."""
    return Path(os.environ.get("CUDA_CACHE_PATH") or Path(os.path.expanduser("~"), ".nv", "ComputeCache"))


def _compiled_before() -> bool:
    try:
        return any(_compiled().iterdir())
    except OSError:
        return False


def _tensorflow_sees_it() -> Finding:
    reason = tensorflow_devices.why_no_card()
    remedy = (
        'see which library TensorFlow misses: TF_CPP_MIN_LOG_LEVEL=0 python -c "import tensorflow as tf; '
        "tf.config.list_physical_devices('GPU')\""
    )
    return Finding("TensorFlow", reason is None, reason or "computes on the card", remedy)


def _cuda(number: int) -> str:
    """Return CUDA's number of a release, such as 12050, as it is written."""
    return f"CUDA {number // 1000}.{number % 1000 // 10}"

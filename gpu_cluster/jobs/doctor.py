"""Checks what a job needs on this machine: whether each thing is there, and what to do if it is not.

Input: a device, weights, an output folder and a store. Output: a list of `Check`s, which the command line shows. On a
GPU it lets TensorFlow do one small operation; otherwise it takes no memory of the device. It writes nothing.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpu_cluster import output
from gpu_cluster.backend import CpuBackend, GpuBackend, describe_gpus, installed, look_for_gpu
from gpu_cluster.backend.cores import usable_cores
from gpu_cluster.config import Device, EngineName
from gpu_cluster.embedding import efficientnet_lite, vgg16
from gpu_cluster.embedding.engines import ENGINES
from gpu_cluster.errors import ConfigError, WeightsError
from gpu_cluster.store.store import default_root

_ENGINE_NAMES = {"tensorflow": "TensorFlow"}

# 'missing': the device asked for cannot work without it. 'absent': it is not there, but that is no fault.
Status = Literal["ok", "missing", "absent"]


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis; `remedy` is empty when there is nothing to do."""

    name: str
    status: Status
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All checks, and whether a job can run on the device asked for."""

    device: Device
    works: bool
    checks: tuple[Check, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the diagnosis as values that JSON can hold."""
        checks = [vars(check) for check in self.checks]
        return {"device": self.device, "works": self.works, "checks": checks}


def diagnose(
    device: Device,
    weights: Path | None = None,
    out: Path | None = None,
    cache: Path | None = None,
    engine: EngineName = "auto",
) -> Diagnosis:
    """Check what a run needs with this device, these weights, this output folder, this store and this engine.

    With `auto` and `cpu` a missing GPU is not a fault.
    """
    common = [_python(), *_engines(device, engine), *_formats(), _threads()]
    common += [_weights(weights), _lite2_weights(), _output(out), _store(cache)]
    gpu = _gpu(needed=device == "gpu")
    checks = (*common, *gpu)
    return Diagnosis(device, works=all(check.status != "missing" for check in checks), checks=checks)


def _python() -> Check:
    supported = (3, 11) <= sys.version_info[:2] < (3, 14)
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Check(
        "Python", "ok" if supported else "missing", found, "" if supported else "use Python 3.11, 3.12 or 3.13"
    )


def _engines(device: Device, asked: EngineName) -> list[Check]:
    """Check the engines; one that is not installed is a fault if it is asked for, or if no other one can be used."""
    usable = (GpuBackend if device == "gpu" else CpuBackend).engines
    needed = usable if asked == "auto" else (asked,)
    found = {name: engine.installation() for name, engine in ENGINES.items()}
    enough = any(not found[name].remedy for name in needed)
    return [
        Check(
            _ENGINE_NAMES.get(name, name),
            "ok" if not one.remedy else "missing" if name in needed and not enough else "absent",
            one.found,
            one.remedy,
        )
        for name, one in found.items()
    ]


def _formats() -> list[Check]:
    """Check the packages that read the pictures of phones and cameras; a job without such pictures needs none."""
    return [
        Check(name, "ok", _words(found))
        if (found := installed(package))
        else Check(name, "absent", f"{package} is not installed", f"from a checkout, pip install '.[{extra}]'")
        for name, package, extra in (("HEIC", "pi-heif", "heic"), ("camera RAW", "rawpy", "raw"))
    ]


def _threads() -> Check:
    return Check("CPU threads", "ok", f"{usable_cores()} of {os.cpu_count()} usable")


def _weights(named: Path | None) -> Check:
    try:
        weights = vgg16.find_weights(named)
    except WeightsError as error:
        return Check("weights", "missing", str(error), "reinstall gpu-cluster, or name a good file with --weights")
    known = "VGG16 ImageNet" if weights.sha256 == vgg16.IMAGENET_SHA256 else "VGG16's layers, not the shipped values"
    return Check("weights", "ok", f"{weights.path} ({known})")


def _lite2_weights() -> Check:
    """Check the weights of the other network of the default features."""
    try:
        weights = efficientnet_lite.find_weights()
    except WeightsError as error:
        return Check("weights of EfficientNet-Lite2", "missing", str(error), "reinstall gpu-cluster")
    return Check("weights of EfficientNet-Lite2", "ok", str(weights.path))


def _output(out: Path | None) -> Check:
    try:
        folder = output.choose(out, name="doctor", inputs=())
    except ConfigError as error:
        return Check("output", "missing", str(error), "choose a folder that can be written with --out")
    return Check("output", "ok", f"{folder.parent} can be written")


def _store(cache: Path | None) -> Check:
    root = cache or default_root()
    there = next(path for path in (root, *root.parents) if path.exists())
    if there.is_dir() and os.access(there, os.R_OK | os.W_OK | os.X_OK):
        return Check("store", "ok", f"{root} can be written")
    remedy = "give the permission, name another folder with --cache, or run with --no-cache"
    return Check("store", "missing", f"{there} is no folder that can be written", remedy)


def _gpu(*, needed: bool) -> list[Check]:
    """Check what a GPU needs; something missing is a fault only if a GPU is needed."""
    fault: Status = "missing" if needed else "absent"
    checks = [
        Check(
            f"GPU {finding.name}",
            "ok" if finding.ok else fault,
            "; ".join((finding.found, *finding.notes)),
            "" if finding.ok else finding.remedy,
        )
        for finding in look_for_gpu()
    ]
    rapids = installed("cuml-cu12", "cudf-cu12", "rmm-cu12")
    releases = {".".join(number.split(".")[:2]) for number in rapids.values()}
    if len(releases) > 1:
        remedy = "install them from one release, from a checkout: pip install '.[gpu]'"
        checks.append(Check("RAPIDS release", fault, f"mixed: {_words(rapids)}", remedy))
    if all(check.status == "ok" for check in checks):
        checks += [Check("GPU", "ok", words) for words in describe_gpus()]
    return checks


def _words(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())

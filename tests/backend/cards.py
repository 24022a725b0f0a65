"""Pretended cards, for what a process does before it computes: no card can be had, and a stub of the driver is refused.

`pretended` lets the detection find a driver, the wheels, cards by a small piece of CuPy's runtime, and TensorFlow's
devices as `PhysicalDevice` objects. Nothing computes on them.
"""

from __future__ import annotations

import ctypes
import os
import sys
from importlib.metadata import PackageNotFoundError
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from gpu_cluster.backend import tensorflow_devices

ON_THE_CARD = "/job:localhost/replica:0/task:0/device:GPU:0"


def _version(wheel: str) -> str:
    """Return that every wheel is installed but the one that a GPU's excludes."""
    if wheel == "tensorflow-cpu":
        raise PackageNotFoundError(wheel)
    return "1.0"


class Driver:
    """The two calls of libcuda that the detection makes."""

    def __init__(self, cuda: int) -> None:
        self.cuda = cuda
        self.visible: str | None = None

    def cuInit(self, _flags: int) -> int:  # noqa: N802 - CUDA's name

        # The driver reads the variable when it starts, and never again.
        self.visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return 0

    def cuDriverGetVersion(self, number: Any) -> int:  # noqa: N802 - CUDA's name
        ctypes.cast(number, ctypes.POINTER(ctypes.c_int)).contents.value = self.cuda
        return 0


def pretended(
    patch: pytest.MonkeyPatch,
    *,
    n: int,
    capability: tuple[int, int] = (8, 0),
    cuda: int = 12040,
    blind: bool = False,
    loaded: bool = False,
) -> Driver:
    """Pretend n cards of one kind and a driver; `blind`: TensorFlow sees none; `loaded`: CUDA was loaded before."""
    driver = Driver(cuda)

    def seen() -> int:
        if driver.visible is None:
            return n
        return len([one for one in driver.visible.split(",") if int(one) < n])

    runtime = SimpleNamespace(
        getDeviceCount=seen,
        getDeviceProperties=lambda _number: {
            "name": b"Pretended",
            "major": capability[0],
            "minor": capability[1],
            "totalGlobalMem": 80 << 30,
        },
        driverGetVersion=lambda: cuda,
    )
    cupy = ModuleType("cupy")
    cupy.cuda = SimpleNamespace(runtime=runtime, is_available=lambda: seen() > 0)  # type: ignore[attr-defined]
    patch.setattr(tensorflow_devices, "driver", lambda: driver)
    patch.setattr(sys.modules["gpu_cluster.backend.select"], "version", _version)
    pretend_tensorflow(patch, 0 if blind else n)
    # Without what this process has loaded for other tests.
    patch.setattr(tensorflow_devices, "_loaded", lambda: loaded)
    patch.setitem(sys.modules, "cupy", cupy)
    return driver


def pretend_tensorflow(patch: pytest.MonkeyPatch, n: int) -> list[Any]:
    """Let TensorFlow say that it has n cards, and that it computes on the first; return those that share memory."""
    import tensorflow as tf
    from tensorflow.python.eager.context import LogicalDevice, PhysicalDevice

    growing: list[Any] = []
    physical = [PhysicalDevice(f"/physical_device:GPU:{number}", "GPU") for number in range(n)]
    logical = [LogicalDevice(f"/device:GPU:{number}", "GPU") for number in range(n)]
    patch.setattr(tf.config, "list_physical_devices", lambda _kind=None: physical)
    patch.setattr(tf.config, "list_logical_devices", lambda _kind=None: logical)
    patch.setattr(tf.config.experimental, "set_memory_growth", lambda card, _on: growing.append(card))
    # Without starting this process's TensorFlow: with a real card, memory growth would not be set for it.
    patch.setattr(tensorflow_devices, "_first_operation", lambda: None)
    patch.setattr(tensorflow_devices, "_operation_on_the_card", lambda: ON_THE_CARD)
    return growing

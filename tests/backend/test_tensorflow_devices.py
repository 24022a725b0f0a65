"""TensorFlow's devices: set up once for the CPU and the card, one card of several, and what a job is told.

The cards are pretended; TensorFlow, its context and its rule that devices are fixed by the first operation are real.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import tensorflow as tf

from gpu_cluster.backend import CpuBackend, GpuBackend, gpu, tensorflow_devices
from gpu_cluster.errors import DeviceError

from .cards import pretend_tensorflow

# TensorFlow takes seconds to import, so one process does it, for the scenario that begins before that; the others begin
# after it, in copies of this process, in which nothing of TensorFlow has been started yet. TensorFlow's own context is
# told of a card that it cannot start, and what is only pretended is named.
_SCENARIOS = """
import os, sys, traceback
from gpu_cluster.backend import CpuBackend, GpuBackend, tensorflow_devices

real = tensorflow_devices.driver, tensorflow_devices._first_operation
tensorflow_devices.driver, tensorflow_devices._first_operation = (lambda: object()), (lambda: None)
os.environ["CUDA_VISIBLE_DEVICES"] = "4,5"
CpuBackend().share_device_with("tensorflow")
print("shown:", os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
tensorflow_devices.driver, tensorflow_devices._first_operation = real
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import tensorflow as tf
from tensorflow.python.eager.context import LogicalDevice, PhysicalDevice, context

def in_either_order():
    for backend in (CpuBackend(), GpuBackend(), CpuBackend()):
        backend.share_device_with("tensorflow")
    (card,) = tf.config.list_physical_devices("GPU")
    print("shared:", tf.config.experimental.get_memory_growth(card))

def started_before():
    tf.zeros(()).numpy()
    CpuBackend().share_device_with("tensorflow")
    print("cpu works")
    GpuBackend().share_device_with("tensorflow")

context()._physical_devices.append(PhysicalDevice("/physical_device:GPU:0", "GPU"))
tf.config.list_logical_devices = lambda kind=None: [LogicalDevice("/device:GPU:0", "GPU")]
tensorflow_devices._operation_on_the_card = lambda: "/device:GPU:0"
os.dup2(1, 2)
for scenario in (in_either_order, started_before):
    if not os.fork():
        try:
            scenario()
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the scenarios have printed, on standard output and error."""
    # Without the cards that this machine may have.
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-c", _SCENARIOS]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    return done.stdout + done.stderr


@pytest.mark.slow
def test_both_devices_can_be_used_in_one_process_in_either_order(said):
    assert "shared: True" in said, said


@pytest.mark.slow
def test_a_tensorflow_that_was_started_without_sharing_memory_is_an_error_on_the_gpu_alone(said):
    assert "cpu works" in said
    assert "DeviceError: the network cannot run on the GPU: this process had set TensorFlow up before" in said
    assert "TF_FORCE_GPU_ALLOW_GROWTH=true" in said


@pytest.mark.slow
def test_a_job_on_the_cpu_shows_tensorflow_one_card_of_several(said):
    assert "shown: 4\n" in said, said


def test_the_cpus_work_stays_on_the_cpu_and_the_cards_is_placed_on_the_card():
    assert (CpuBackend.tensorflow_device, GpuBackend.tensorflow_device) == ("/CPU:0", "/GPU:0")


def test_every_card_that_tensorflow_sees_shares_its_memory(monkeypatch):
    growing = pretend_tensorflow(monkeypatch, 8)
    GpuBackend().share_device_with("tensorflow")
    assert [card.name for card in growing] == [f"/physical_device:GPU:{number}" for number in range(8)]


def test_an_operation_that_did_not_run_on_the_card_is_an_error(monkeypatch):
    pretend_tensorflow(monkeypatch, 1)
    monkeypatch.setattr(tensorflow_devices, "_operation_on_the_card", lambda: "/device:CPU:0")
    with pytest.raises(DeviceError, match="TensorFlow computes on /device:CPU:0 instead; gpu-cluster doctor says"):
        GpuBackend().share_device_with("tensorflow")


def test_an_operation_that_fails_on_the_card_is_an_error_with_its_words(monkeypatch):
    pretend_tensorflow(monkeypatch, 1)

    def fails() -> str:
        raise tf.errors.InternalError(None, None, "no kernel image is available")

    monkeypatch.setattr(tensorflow_devices, "_operation_on_the_card", fails)
    with pytest.raises(DeviceError, match="cannot compute on the card: no kernel image is available"):
        GpuBackend().share_device_with("tensorflow")


def test_a_card_that_cannot_be_started_keeps_no_job_on_the_cpu_from_running(monkeypatch):
    pretend_tensorflow(monkeypatch, 1)
    calls: list[int] = []
    hidden: list[tuple[list[str], str]] = []

    def fails_once() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise tf.errors.InternalError(None, None, "CUDA_ERROR_OUT_OF_MEMORY")

    monkeypatch.setattr(tensorflow_devices, "_first_operation", fails_once)
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda devices, kind: hidden.append((devices, kind)))
    CpuBackend().share_device_with("tensorflow")
    assert hidden == [([], "GPU")]
    calls.clear()
    with pytest.raises(DeviceError, match="cannot start the card: CUDA_ERROR_OUT_OF_MEMORY"):
        GpuBackend().share_device_with("tensorflow")


@pytest.mark.parametrize(
    ("before", "loaded", "after", "in_time"),
    [
        (None, False, "0", True),
        ("3,5", False, "3", True),
        ("GPU-1f2e,GPU-77aa", False, "GPU-1f2e", True),
        ("3", True, "3", True),
        ("-1", False, "-1", True),
        ("3,5", True, "3,5", False),
        (None, True, None, False),
    ],
)
def test_one_card_is_shown_and_a_process_that_has_loaded_cuda_is_left_alone(
    monkeypatch, before, loaded, after, in_time
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if before is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    monkeypatch.setattr(tensorflow_devices, "_loaded", lambda: loaded)
    assert tensorflow_devices.show_one_card() == in_time
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == after
    assert tensorflow_devices.allowed_cards() == before
    # What the function set itself is not undone by monkeypatch.
    if before is None:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)


def test_a_pool_that_could_not_be_made_is_made_the_next_time(monkeypatch):
    sizes = []

    def claim(matrix_bytes: int) -> int:
        sizes.append(matrix_bytes)
        if len(sizes) == 1:
            raise MemoryError("std::bad_alloc: out_of_memory")
        return 1 << 20

    monkeypatch.setattr(gpu, "_claim", claim)
    monkeypatch.setattr(GpuBackend, "_claimed", None)
    with pytest.raises(MemoryError):
        GpuBackend().claim_device(1000)
    GpuBackend().claim_device(1000)
    GpuBackend().claim_device(1000)
    assert sizes == [1000, 1000]
    assert GpuBackend().claimed_bytes() == 1 << 20

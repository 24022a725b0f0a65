"""Which device runs and why, and what happens where it is missing or too small. This machine may have a GPU or not."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import gpu_cluster as api
from gpu_cluster.backend import CpuBackend, look_for_gpu, select
from gpu_cluster.backend.memory import memory_error_explained
from gpu_cluster.errors import ConfigError, DeviceError
from tests.forks import run_program
from tests.helpers import gpu_cluster, write_pictures

HAS_GPU = all(finding.ok for finding in look_for_gpu())
without_gpu = pytest.mark.skipif(HAS_GPU, reason="a GPU can be used here; these are about its absence")


@without_gpu
def test_gpu_asked_for_and_missing_is_code_1_one_line_and_nothing_written(tmp_path):
    write_pictures(tmp_path / "in", 2)
    done = gpu_cluster("run", "in", "--device", "gpu", cwd=tmp_path)
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert line.startswith("error: --device gpu: no GPU can be used (driver: ")
    for looked_for in ("CUDA_VISIBLE_DEVICES: ", "wheels: ", "or use --device cpu"):
        assert looked_for in line
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@without_gpu
def test_auto_takes_the_cpu_and_says_why():
    choice = select("auto")
    assert choice.backend.name == "cpu"
    assert choice.reason.startswith("no GPU can be used (")


def test_the_device_and_the_reason_are_in_the_record_and_the_summary(sample_run):
    record = sample_run.json("run.json")
    assert record["precision"] in ("float32", "tf32")
    assert f"device: {record['device']} ({record['device_reason']}), " in sample_run.out


def test_looking_for_a_gpu_imports_no_engine_where_there_is_no_driver():
    code = (
        "import sys\nfrom gpu_cluster.backend import look_for_gpu\nok = look_for_gpu()[0].ok\n"
        "print(ok or not {'cupy', 'cuml', 'cudf', 'tensorflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.strip() == b"True"


@pytest.mark.parametrize("value", ["", "-1"])
def test_hidden_devices_are_named(value):
    code = "from gpu_cluster.backend import look_for_gpu; print(look_for_gpu()[1])"
    done = run_program(code, env={**os.environ, "CUDA_VISIBLE_DEVICES": value})
    assert "ok=False" in done.stdout
    assert "unset CUDA_VISIBLE_DEVICES" in done.stdout


def test_a_precision_that_the_cpu_has_not_is_wrong_use():
    with pytest.raises(ConfigError, match=r"--precision: the cpu computes in float32; found 'float16'"):
        api.run(device="cpu", precision="float16")


def test_out_of_memory_while_clustering_names_the_matrix_and_what_helps():
    with (
        pytest.raises(DeviceError, match=r"matrix of 2000 x 512 float32, 0\.00 GB, .* GB free: .*--silhouette-sample"),
        memory_error_explained("clustering", 2000, 512, CpuBackend()),
    ):
        # More than any machine has: NumPy refuses at once.
        np.empty((1 << 50, 512), np.float32)

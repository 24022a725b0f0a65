"""The diagnosis: right about this machine, with a remedy for what fails, as a table and as JSON."""

from __future__ import annotations

import json
import os
from importlib.metadata import version

import pytest

from gpu_cluster.backend import look_for_gpu
from gpu_cluster.embedding.engines.tensorflow import find_tensorflow
from gpu_cluster.jobs.doctor import diagnose
from tests.helpers import called

without_gpu = pytest.mark.skipif(
    all(finding.ok for finding in look_for_gpu()), reason="a GPU can be used here; these are about its absence"
)


def test_the_cpu_works_here_and_the_checks_are_right_about_this_machine():
    diagnosis = diagnose("cpu")
    found = {check.name: check for check in diagnosis.checks}
    assert diagnosis.works
    assert version("keras")
    assert found["TensorFlow"].found.endswith("2.21.0")
    assert found["CPU threads"].found == f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} usable"
    assert "VGG16 ImageNet" in found["weights"].found


@without_gpu
def test_a_missing_gpu_is_no_fault_unless_it_is_asked_for():
    assert diagnose("auto").works
    asked = diagnose("gpu")
    assert not asked.works
    (driver,) = [check for check in asked.checks if check.name == "GPU driver"]
    assert driver.status == "missing"
    assert "libcuda.so.1" in driver.found
    assert driver.remedy.startswith("install the NVIDIA driver")


@without_gpu
@pytest.mark.skipif(not find_tensorflow().found.startswith("tensorflow-cpu "), reason="another TensorFlow is installed")
def test_the_tensorflow_that_is_there_and_the_one_that_is_missing_are_told_apart():
    (wheels,) = [check for check in diagnose("gpu").checks if check.name == "GPU wheels"]
    assert "no tensorflow, " in wheels.found
    assert wheels.found.endswith("; the installed tensorflow-cpu cannot use a GPU")
    # As the README says it.
    assert wheels.remedy.endswith("from a checkout: pip install '.[gpu]'")
    assert "exclude each other" in wheels.remedy


def test_every_failing_check_has_a_remedy():
    assert all(check.remedy for check in diagnose("gpu").checks if check.status != "ok")


def test_json_is_valid_and_says_the_same_as_the_exit_code():
    for device in ("cpu", "gpu"):
        done = called("doctor", "--device", device, "--json")
        found = json.loads(done.out)
        assert found["device"] == device
        assert done.code == (0 if found["works"] else 1)
        assert {"name", "status", "found", "remedy"} == set(found["checks"][0])


def test_the_table_marks_what_fails_and_what_to_do(tmp_path):
    done = called("doctor", "--weights", tmp_path / "nowhere.h5")
    assert done.code == 1
    lines = done.out.splitlines()
    (number,) = [number for number, line in enumerate(lines) if line.startswith("FAIL")]
    assert "weights" in lines[number]
    assert "-> reinstall gpu-cluster" in lines[number + 1]
    assert lines[-1] == "gpu-cluster --device auto cannot run here"


def test_an_output_that_cannot_be_written_fails(tmp_path):
    (tmp_path / "file").touch()
    done = called("doctor", "--out", tmp_path / "file")
    assert done.code == 1
    assert "a file is in the way" in done.out


def test_a_store_that_cannot_be_written_fails(tmp_path):
    (tmp_path / "file").touch()
    done = called("doctor", "--cache", tmp_path / "file")
    assert done.code == 1
    assert "file is no folder that can be written" in done.out


def test_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    called("doctor")
    assert list(tmp_path.iterdir()) == []

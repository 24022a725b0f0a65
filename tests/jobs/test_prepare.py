"""What every job checks before it begins."""

from __future__ import annotations

import os
import site
import subprocess
import sys
from pathlib import Path

import pytest

import gpu_cluster
from gpu_cluster.backend import Choice, CpuBackend
from gpu_cluster.config import RunConfig
from gpu_cluster.embedding import vgg16
from gpu_cluster.events import Recorder
from gpu_cluster.images.source import open_source
from gpu_cluster.jobs import prepare
from gpu_cluster.manifest import Manifest
from tests.helpers import listing, write_pictures

CHECKOUT = Path(gpu_cluster.__file__).parents[1]


@pytest.fixture
def without_tensorflow(tmp_path: Path) -> dict[str, str]:
    """An environment in which Python has what a wheel installs without an extra: everything but TensorFlow."""
    installed = tmp_path / "installed"
    installed.mkdir()
    for folder in map(Path, site.getsitepackages()):
        for entry in folder.iterdir():
            if not entry.name.lower().startswith(("tensorflow", "keras")):
                (installed / entry.name).symlink_to(entry)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (CHECKOUT, installed)))}


def python(environment: dict[str, str], place: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    # With -S, Python does not add the installed packages itself.
    command = [sys.executable, "-S", "-c", code, *arguments]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)


COMMAND = "from gpu_cluster.cli.main import main; main()"
REMEDY = ("pip install '.[cpu]'", "'.[gpu]'", "gpu_cluster-0.1.0-py3-none-any.whl[cpu]'")


def test_without_tensorflow_a_job_says_what_to_install_before_it_looks_for_pictures(tmp_path, without_tensorflow):
    write_pictures(tmp_path / "here" / "photos", 3)
    before = listing(tmp_path / "here")
    done = python(without_tensorflow, tmp_path / "here", COMMAND, "run", "photos", "--cache", "store")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "error: TensorFlow, which runs the network, cannot be used: not installed; from a checkout, pip"
    )
    assert all(part in line for part in REMEDY)
    assert listing(tmp_path / "here") == before
    # It comes before the search for pictures, which can take long.
    done = python(without_tensorflow, tmp_path / "here", COMMAND, "run", "absent")
    assert done.stderr.startswith("error: TensorFlow")


def test_without_tensorflow_python_raises_an_error_of_gpu_cluster_that_says_what_to_install(
    tmp_path, without_tensorflow
):
    write_pictures(tmp_path / "photos", 3)
    code = """
import gpu_cluster
for call in (lambda: gpu_cluster.run("photos"), lambda: gpu_cluster.embed("photos/000.png")):
    try:
        call()
    except gpu_cluster.DeviceError as error:
        print(error)
"""
    lines = python(without_tensorflow, tmp_path, code).stdout.splitlines()
    assert len(lines) == 2
    assert all(part in line for line in lines for part in REMEDY)


def test_without_tensorflow_doctor_says_the_same(tmp_path, without_tensorflow):
    done = python(without_tensorflow, tmp_path, COMMAND, "doctor")
    assert done.returncode == 1
    assert "FAIL  TensorFlow" in done.stdout
    assert all(part in done.stdout for part in REMEDY)


NEEDS = "this job will need about {} GB of memory, besides the network's; {} GB are free"
TOO_MUCH = (
    ": the system may end it; end other programs, or take a machine, a container or a batch job with more memory, "
    "fewer pictures, or a smaller --pooling"
)


@pytest.mark.parametrize(
    ("n", "free", "said"),
    [
        (500, 10**12, []),
        (100_000, 10**12, [f"With 100,000 pictures, {NEEDS.format('1.2', '1000.0')}"]),
        (500, 10**6, [f"With 500 pictures, {NEEDS.format('0.8', '0.0')}{TOO_MUCH}"]),
    ],
    ids=["little", "streamed", "too much"],
)
def test_a_job_says_what_memory_it_needs_where_it_is_much_or_more_than_is_free(tmp_path, monkeypatch, n, free, said):
    monkeypatch.setattr(prepare, "free_host_bytes", lambda: free)
    job = prepare.Job(
        config=RunConfig(),
        events=Recorder(),
        weights=vgg16.Weights(tmp_path, "0", {}),
        choice=Choice(CpuBackend(), "told to"),
        manifest=Manifest(tmp_path, ()),
        source=open_source(tmp_path),
        store=None,
        tools=None,
    )
    prepare.tell_memory(job.config, n, 1024, job)
    assert job.events.notices == said

"""What every job checks before it begins."""

from __future__ import annotations

import os
import site
import subprocess
import sys
from pathlib import Path

import pytest

import gpu_cluster
from gpu_cluster.backend import Choice, CpuBackend, memory
from gpu_cluster.config import RunConfig
from gpu_cluster.embedding import features
from gpu_cluster.events import Recorder
from gpu_cluster.executor import Serial
from gpu_cluster.images.places import open_source
from gpu_cluster.jobs import prepare
from gpu_cluster.manifest import Manifest
from tests.helpers import listing, write_pictures

CHECKOUT = Path(gpu_cluster.__file__).parents[1]


def without(tmp_path: Path, *packages: str) -> dict[str, str]:
    """Return an environment in which Python has all that is installed here but for these packages."""
    installed = tmp_path / "installed"
    installed.mkdir()
    for folder in map(Path, site.getsitepackages()):
        for entry in folder.iterdir():
            if not entry.name.lower().startswith(packages):
                (installed / entry.name).symlink_to(entry)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (CHECKOUT, installed)))}


@pytest.fixture
def without_engines(tmp_path: Path) -> dict[str, str]:
    """An environment with what a wheel installs without an extra."""
    return without(tmp_path, "tensorflow", "keras", "ncnn")


def python(environment: dict[str, str], place: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    # With -S, Python does not add the installed packages itself.
    command = [sys.executable, "-S", "-c", code, *arguments]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)


COMMAND = "from gpu_cluster.cli.main import main; main()"
REMEDY = ("pip install '.[cpu]'", "'.[gpu]'", "gpu_cluster-0.1.0-py3-none-any.whl[cpu]'")


@pytest.mark.slow
def test_without_an_engine_a_job_says_what_to_install_before_it_looks_for_pictures(tmp_path, without_engines):
    write_pictures(tmp_path / "here" / "photos", 3)
    before = listing(tmp_path / "here")
    # The search for pictures, which can take long, would find that one folder is not there: that is code 2.
    done = python(without_engines, tmp_path / "here", COMMAND, "run", "photos", "absent", "--cache", "store")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "error: TensorFlow, which runs the network, cannot be used: not installed; ncnn: not installed; from a checkout"
    )
    assert all(part in line for part in REMEDY)
    assert listing(tmp_path / "here") == before


def test_without_an_engine_python_raises_an_error_of_gpu_cluster_that_says_what_to_install(tmp_path, without_engines):
    write_pictures(tmp_path / "photos", 3)
    code = """
import gpu_cluster
for call in (lambda: gpu_cluster.run("photos"), lambda: gpu_cluster.embed("photos/000.png")):
    try:
        call()
    except gpu_cluster.DeviceError as error:
        print(error)
"""
    lines = python(without_engines, tmp_path, code).stdout.splitlines()
    assert len(lines) == 2
    assert all(part in line for line in lines for part in REMEDY)


def test_without_an_engine_doctor_says_the_same(tmp_path, without_engines):
    done = python(without_engines, tmp_path, COMMAND, "doctor")
    assert done.returncode == 1
    assert "FAIL  TensorFlow" in done.stdout
    assert all(part in done.stdout for part in REMEDY)


GIVEN = """
import numpy, gpu_cluster
x, names = numpy.random.default_rng(0).normal(size=(8, 4)), [f"{number:03d}.png" for number in range(8)]
given = {"embeddings": x, "embedding_names": names}
run = gpu_cluster.run("photos", **given, k=2, k_range="2:2", out="run", no_cache=True)
found = gpu_cluster.predict("run", "photos", **given, out="p.csv", no_cache=True)
print(found.labels.tolist() == run.findings.clustering.labels.tolist())
"""


@pytest.mark.slow
def test_without_an_engine_a_job_with_embeddings_that_are_given_works(tmp_path, without_engines):
    write_pictures(tmp_path / "photos", 8)
    done = python(without_engines, tmp_path, GIVEN)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


EMBED = """
import sys, gpu_cluster
assert gpu_cluster.embed("photos/000.png", features="vgg16", image_size=32, no_cache=True).shape == (1, 1024)
print(sorted({"tensorflow", "ncnn"} & set(sys.modules)), flush=True)
# An engine takes seconds to import, so the command runs in the same process.
sys.argv[1:] = ["doctor", "--device", "cpu"]
"""


@pytest.mark.slow
@pytest.mark.parametrize(("packages", "loaded"), [(("ncnn",), ["tensorflow"]), (("tensorflow", "keras"), ["ncnn"])])
def test_with_one_engine_alone_a_job_on_the_cpu_works(tmp_path, packages, loaded):
    environment = without(tmp_path, *packages)
    write_pictures(tmp_path / "photos", 1)
    done = python(environment, tmp_path, EMBED + COMMAND)
    assert done.stdout.splitlines()[:1] == [str(loaded)], done.stderr
    assert done.returncode == 0, done.stdout


# Two commands in one interpreter, as what they import takes most of their time.
RUN_AND_DOCTOR = """
import sys
from gpu_cluster.cli.main import main
for sys.argv[1:] in (["run", "--engine", "ncnn"], ["doctor", "--engine", "ncnn"]):
    try:
        main()
    except SystemExit as end:
        print("code", end.code)
"""


@pytest.mark.slow
def test_without_ncnn_to_ask_for_it_is_an_error_that_says_what_to_install(tmp_path):
    environment = without(tmp_path, "ncnn")
    done = python(environment, tmp_path, RUN_AND_DOCTOR)
    assert (done.returncode, [line for line in done.stdout.splitlines() if line.startswith("code")]) == (
        0,
        ["code 1"] * 2,
    )
    assert (
        "ncnn, which runs the network, cannot be used: not installed; from a checkout, pip install '.[cpu]'"
        in done.stderr
    )
    assert "FAIL  ncnn" in done.stdout


NEEDS = "this job will need about {} GB of memory, besides the network's; {} GB are free"
TOO_MUCH = (
    ": the system may end it; end other programs, or take a machine, a container or a batch job with more memory, "
    "fewer pictures, or a smaller --pooling"
)


@pytest.mark.parametrize(
    ("n", "free", "said"),
    [
        (500, 10**12, []),
        (100_000, 10**12, [f"With 100,000 pictures, {NEEDS.format('1.3', '1000.0')}"]),
        (500, 10**6, [f"With 500 pictures, {NEEDS.format('0.8', '0.0')}{TOO_MUCH}"]),
    ],
    ids=["little", "streamed", "too much"],
)
def test_a_job_says_what_memory_it_needs_where_it_is_much_or_more_than_is_free(tmp_path, monkeypatch, n, free, said):
    monkeypatch.setattr(prepare, "free_host_bytes", lambda: free)
    # Each core has a block of rows in work.
    monkeypatch.setattr(memory, "usable_cores", lambda: 2)
    job = prepare.Job(
        config=RunConfig(),
        events=Recorder(),
        weights=features.Weights(tmp_path),
        choice=Choice(CpuBackend(), "told to"),
        manifest=Manifest(tmp_path, ()),
        source=open_source(tmp_path),
        store=None,
        tools=None,
        executor=Serial(),
    )
    prepare.tell_memory(job.config, n, 1024, job)
    assert job.events.notices == said

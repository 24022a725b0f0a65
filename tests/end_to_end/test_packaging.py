"""What is installed from a wheel works as the checkout does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import gpu_cluster
from tests.helpers import TINY_OPTIONS

ROOT = Path(__file__).parents[2]
LIBRARIES = (
    *("aiohttp", "dask", "distributed", "fsspec", "h5py", "IPython", "jinja2", "keras", "matplotlib", "numpy"),
    *("pandas", "PIL", "pyarrow", "rich", "scipy", "sklearn", "tensorflow", "typer"),
)
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    # Without isolation the build takes hatchling from the lock and asks no registry.
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run([*PIP, *build], check=True)
    (file,) = folder.glob("*.whl")
    return file


@pytest.mark.slow
def test_a_wheel_carries_the_weights_their_attribution_and_the_sample_set(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "gpu_cluster/data/weights/vgg16_imagenet_notop.weights.h5" in names
    assert "gpu_cluster/data/weights/efficientnet_lite2_imagenet.npz" in names
    assert {"gpu_cluster/data/weights/ATTRIBUTION.md", "gpu_cluster/data/weights/LICENSE-Apache-2.0.txt"} <= set(names)
    assert sum(name.startswith("gpu_cluster/data/flowers/") and name.endswith(".png") for name in names) == 210
    assert "gpu_cluster/data/flowers/flower_labels.csv" in names
    assert "gpu_cluster/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "scripts/"))]


@pytest.mark.slow
def test_a_wheel_runs_the_sample_set_from_an_empty_directory(wheel, tmp_path):
    target, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    install = ["install", "--no-deps", "--no-compile", "--target", str(target), str(wheel)]
    subprocess.run([*PIP, *install], check=True)
    # Before the checkout, which is installed in this environment too.
    environment = {**os.environ, "PYTHONPATH": str(target)}
    command = [sys.executable, "-c", "from gpu_cluster.cli.main import main; main()", "run", *TINY_OPTIONS]
    done = subprocess.run([*command, "--out", "result"], cwd=empty, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    record = json.loads((empty / "result" / "run.json").read_text())
    assert Path(record["weights"]["path"]).is_relative_to(target)
    assert record["files"]["found"] == 210


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    done = subprocess.run([Path(sys.executable).with_name("gpu-cluster"), "version"], capture_output=True, check=True)
    assert done.stdout.decode().strip() == project["version"]
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_type_checkers_use_the_types_of_the_package():
    assert (Path(gpu_cluster.__file__).parent / "py.typed").is_file()


@pytest.mark.slow
def test_a_program_of_a_user_is_checked_with_the_types_of_the_package(tmp_path):
    program = (
        "import gpu_cluster",
        "reveal_type(gpu_cluster.run('photos', k=3).folder)",
        "gpu_cluster.run('photos', k='three')",
        "reveal_type(gpu_cluster.ImageClusterer(3).inertia_)",
    )
    (tmp_path / "user.py").write_text("\n".join(program))
    # The types of the libraries that the package uses take most of the time, and none of these is asked for.
    unread = ",".join(f"{name}.*" for name in LIBRARIES)
    (tmp_path / "mypy.ini").write_text(f"[mypy]\n[mypy-{unread}]\nfollow_imports = skip\n")
    # In a folder of Python's own search path, where mypy uses only the types of packages with a py.typed.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", os.devnull, "user.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert [line.partition(": ")[2] for line in done.stdout.splitlines()[:-1]] == [
        'note: Revealed type is "pathlib.Path"',
        'error: Argument "k" to "run" has incompatible type "str"; expected "int | None"  [arg-type]',
        'note: Revealed type is "float"',
    ], done.stdout + done.stderr


def test_the_public_api_is_documented():
    for name in gpu_cluster.__all__:
        assert getattr(gpu_cluster, name).__doc__


@pytest.mark.parametrize("package", ["numpy", "pandas", "pyarrow", "scikit-learn", "pillow", "keras"])
def test_both_locks_hold_the_same_version(package):
    def pinned(lock: str) -> set[str]:
        lines = (ROOT / "scripts" / "locks" / lock).read_text().splitlines()
        return {line.split(" ")[0] for line in lines if line.startswith(f"{package}==")}

    assert pinned("cpu.txt") == pinned("gpu.txt") == pinned("cpu-test.txt")
    assert len(pinned("cpu.txt")) == 1

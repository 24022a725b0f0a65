"""The fixtures that the tests share."""

from __future__ import annotations

import fcntl
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_cluster.config import EngineName, shipped_data
from gpu_cluster.embedding.engines import ENGINES
from tests.helpers import Finished, gpu_cluster


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        # Each process would look through the fonts of the machine, as the store of each test is a new one.
        patch.setenv("MPLCONFIGDIR", str(tmp_path_factory.mktemp("matplotlib")))
        yield


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store of this test and of no other, and none of the user's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "gpu-cluster"


@pytest.fixture(scope="session")
def _sample_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the sample run, for all processes of one session of tests."""
    own = tmp_path_factory.getbasetemp()
    # pytest-xdist gives each of its processes a folder in that of the session.
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "sample"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def sample_store(_sample_folder: Path) -> Path:
    """The store of the sample run, which holds the sample set at 64 pixels a side."""
    return _sample_folder / "store"


@pytest.fixture(scope="session")
def sample_run(_sample_folder: Path, sample_store: Path) -> Finished:
    """The sample set through the whole command, at 64 pixels a side to take seconds instead of half a minute."""
    done = _sample_folder / "done.pickle"
    with (_sample_folder / "lock").open("w") as lock:
        # Whichever process is first makes it, and the others wait for it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            given = ("run", "--k-range", "2:15", "--features", "vgg16", "--image-size", "64", "--cache", sample_store)
            done.write_bytes(pickle.dumps(gpu_cluster(*given, out=_sample_folder / "run")))
        found: Finished = pickle.loads(done.read_bytes())
    return found


@pytest.fixture
def sample_images() -> list[Path]:
    """The files of the sample set, in order."""
    return sorted((shipped_data() / "flowers").glob("*.png"))


@pytest.fixture(params=["ncnn", "tensorflow"])
def engine_name(request: pytest.FixtureRequest) -> EngineName:
    """The name of every engine of the CPU, one after the other."""
    name: EngineName = request.param
    if ENGINES[name].installation().remedy:
        pytest.skip(f"{name} is not installed")
    return name


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where a test may have a store of its own."""
    return tmp_path / "store"

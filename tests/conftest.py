"""The fixtures that the tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_cluster.config import shipped_data
from tests.helpers import NO_REDUCTION, Finished, gpu_cluster, picture, write_pictures

# Tests of the clustering take these from here.
__all__ = ["NO_REDUCTION", "picture", "write_pictures"]


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store of this test and of no other, and none of the user's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "gpu-cluster"


@pytest.fixture(scope="session")
def sample_run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The sample set through the whole command, at 64 pixels a side to take seconds instead of half a minute."""
    return gpu_cluster("run", "--k-range", "2:15", "--image-size", "64", out=tmp_path_factory.mktemp("sample") / "run")


@pytest.fixture
def sample_images() -> list[Path]:
    """The files of the sample set, in order."""
    return sorted((shipped_data() / "flowers").glob("*.png"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where a test may have a store of its own."""
    return tmp_path / "store"

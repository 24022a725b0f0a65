"""What the tests share: real processes, real pictures, the shipped weights; nothing is mocked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from gpu_cluster.config import InputConfig, shipped_data
from gpu_cluster.events import Observer
from gpu_cluster.images import decode
from gpu_cluster.images.scan import scan
from gpu_cluster.images.source import Picture, open_source
from gpu_cluster.manifest import Manifest
from gpu_cluster.results import Reduction

COMMAND = Path(sys.executable).with_name("gpu-cluster")

# For results that only have to be shown.
NO_REDUCTION = Reduction("none", None, None, None, None, None, None, normalize=False)

# Real photos that cannot be part of the repository; where they are, the tests that need them run.
PHOTOS = Path(os.environ.get("GPU_CLUSTER_TEST_PHOTOS", Path(__file__).parents[2] / "shared" / "data"))


def photos(name: str) -> Path:
    """Return a folder or file of the real photos, or skip the test."""
    path = PHOTOS / name
    if not path.exists():
        pytest.skip(f"needs {name} of the real photos, which are not part of the repository (GPU_CLUSTER_TEST_PHOTOS)")
    return path


@dataclass(frozen=True)
class Finished:
    """A command that has ended, and the run folder it was told to write."""

    code: int
    out: str
    err: str
    folder: Path

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.folder / name)

    def json(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / name).read_text(encoding="utf-8"))
        return content


def gpu_cluster(
    *arguments: str | Path, out: Path | None = None, cwd: Path | None = None, before: Callable[[], None] | None = None
) -> Finished:
    """Run the real command in a process of its own, that does `before` first; `out` becomes `--out`."""
    given = [os.fspath(argument) for argument in arguments]
    if out is not None:
        given += ["--out", os.fspath(out)]
    done = subprocess.run([COMMAND, *given], capture_output=True, cwd=cwd, timeout=600, check=False, preexec_fn=before)
    return Finished(
        code=done.returncode,
        out=done.stdout.decode("utf-8", "replace"),
        err=done.stderr.decode("utf-8", "replace"),
        folder=out or Path(),
    )


@contextmanager
def started(*arguments: str | Path, cwd: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """Start the real command, and leave none behind."""
    with subprocess.Popen(
        [COMMAND, *arguments],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what runs in its background with SIGINT ignored, and these tests may run there.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - one system call
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for what a started command does; it must not end before that."""
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, "the command ended before it could be stopped"
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.01)


def picture(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """Draw a small picture of smooth colours that no other seed gives."""
    random = np.random.default_rng(seed)
    corners = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize(size, Image.Resampling.BICUBIC)


def decoded(file: Path) -> np.ndarray[Any, Any]:
    """Decode a file as the second look does, by Pillow."""
    with file.open("rb") as stream:
        return decode.decode(stream, file.suffix)


def scanned_pictures(files: Sequence[Path]) -> list[Picture]:
    """Scan files of any folders, and return them as an engine takes them."""
    source = open_source(Path("/"))
    manifest = scan(Manifest(Path("/"), tuple(map(str, files))), source, InputConfig(), Observer())
    return [Picture(source, path, facts) for path, facts in zip(manifest.paths, manifest.files, strict=True)]


def write_pictures(folder: Path, n: int, suffix: str = ".png") -> list[Path]:
    """Write n different pictures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:03d}{suffix}" for number in range(n)]
    for seed, file in enumerate(files):
        picture(seed).save(file)
    return files


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

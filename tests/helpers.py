"""What the tests share: real processes, real pictures, and what a run and a store hold; nothing is mocked."""

from __future__ import annotations

import ctypes
import io
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from gpu_cluster import RunResult
from gpu_cluster.backend import CpuBackend
from gpu_cluster.cli.main import main
from gpu_cluster.config import EmbedConfig, InputConfig, StoreConfig, shipped_data
from gpu_cluster.embedding import extractors, vgg16
from gpu_cluster.embedding.embed import embed
from gpu_cluster.embedding.engines import choose_engine
from gpu_cluster.embedding.extractors import Extractor
from gpu_cluster.events import Observer
from gpu_cluster.images import decode
from gpu_cluster.images.places import open_source
from gpu_cluster.images.scan import scan
from gpu_cluster.images.source import Picture
from gpu_cluster.manifest import Manifest
from gpu_cluster.results import Embeddings, Reduction
from gpu_cluster.store.shards import is_shard
from gpu_cluster.store.store import Store
from tests.forks import Forked

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
    if before is None:
        with Forked(*given, cwd=cwd) as process:
            try:
                printed, errors = process.communicate(timeout=600)
            finally:
                process.kill()
            return Finished(process.wait(), printed, errors, out or Path())
    # What is to be done before anything else, such as a limit on the memory, needs a new interpreter.
    done = subprocess.run([COMMAND, *given], capture_output=True, cwd=cwd, timeout=600, check=False, preexec_fn=before)
    printed, errors = (said.decode("utf-8", "replace") for said in (done.stdout, done.stderr))
    return Finished(done.returncode, printed, errors, out or Path())


def called(*arguments: str | Path, out: Path | None = None, cwd: Path | None = None) -> Finished:
    """Run the command in this process, for what it says, what it leaves and the code it ends with.

    It saves the seconds of a process that has to import what this one has. What libraries write past Python, and what
    only a real process does, needs `gpu_cluster`.
    """
    given = [os.fspath(argument) for argument in arguments]
    if out is not None:
        given += ["--out", os.fspath(out)]
    printed = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    log, printers = logging.getLogger("gpu_cluster"), logging.getLogger().handlers[:]
    level = log.level
    try:
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed[0]), redirect_stderr(printed[1]):
            patch.setattr(sys, "argv", [str(COMMAND), *given])
            if cwd is not None:
                patch.chdir(cwd)
            with pytest.raises(SystemExit) as end:
                main()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        # Whatever this process does next would be as quiet as the command was told to be.
        log.setLevel(level)
        logging.getLogger().handlers[:] = printers
    said, complained = (stream.buffer.getvalue().decode("utf-8", "replace") for stream in printed)
    return Finished(code=int(end.value.code or 0), out=said, err=complained, folder=out or Path())


@contextmanager
def started(*arguments: str | Path, cwd: Path | None = None) -> Iterator[Forked]:
    """Start the real command, and leave none behind."""
    with open(os.devnull, "wb") as nothing, Forked(*arguments, cwd=cwd, stdout=nothing.fileno()) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until(happened: Callable[[], bool], process: Forked | subprocess.Popen[Any]) -> None:
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


# What is enough where what comes of the pictures is not the point: most of such a job is its plots and its page.
TINY: dict[str, Any] = {"features": "vgg16", "image_size": 32, "k": 2, "k_range": "2:2", "n_init": 2}
TINY_OPTIONS = (
    *("--quiet", "--features", "vgg16", "--image-size", "32"),
    *("--k", "2", "--k-range", "2:2", "--n-init", "2"),
)


SMALL_SIDE = EmbedConfig(image_size=32)

# Many shards in a job of seconds.
SHARD = 16
SHARDED = ("--features", "vgg16", "--image-size", "32", "--batch-size", "8", "--shard-size", str(SHARD))

FLOWERS = shipped_data() / "flowers"
N_FLOWERS = 210


def age(files: Sequence[Path]) -> list[Path]:
    """Give files a time of change long ago: the scan does not trust what changed a moment before it."""
    for file in files:
        os.utime(file, ns=(1_700_000_000_500_000_000, 1_700_000_000_500_000_000))
    settle()
    return list(files)


@contextmanager
def memory_folder() -> Iterator[Path]:
    """Make a folder in memory, where Linux has one: it is quick, and keeps times from before 1901 too."""
    folder = tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    try:
        yield Path(folder)
    finally:
        # Python 3.11 removes no folder that is 1,000 folders deep.
        subprocess.run(["rm", "-r", folder], check=True)


def settle() -> None:
    """Wait for a tick of the clock: the time of status change cannot be set back."""
    time.sleep(0.05)


def listing(folder: Path) -> dict[str, bytes | str | None]:
    """Return all that lies in a folder, hidden or not: content of files, targets of links."""
    found: dict[str, bytes | str | None] = {}
    for path in folder.rglob("*"):
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = content
    return found


def everything(folder: Path) -> list[str]:
    """Return the names of all that lies right in a folder, hidden or not."""
    return sorted(os.listdir(folder))


# Of a job that has its first batch of embeddings.
EMBEDDED = '"stage": "embed", "done"'


def logged(place: Path, event: str) -> bool:
    """Tell whether a run that is being staged in a folder, or below it, has written an event like this one."""
    return any(event in log.read_text() for log in place.glob("**/.*/events.jsonl"))


def without_override() -> None:
    """Have permissions mean something to root too, in the process that is about to start."""
    drop, read_and_write, read_and_search = 24, 1, 2
    prctl = ctypes.CDLL(None).prctl
    # Who is not root may not, and need not.
    prctl(drop, read_and_write, 0, 0, 0)
    prctl(drop, read_and_search, 0, 0, 0)


@contextmanager
def permissions_count() -> Iterator[None]:
    """Have permissions mean something to root too, in this thread and in those that it starts meanwhile.

    `os.access` goes on to say what root may: who asks that needs a process `without_override`.
    """
    libc = ctypes.CDLL(None)
    # The version of the interface, and this thread; of the capabilities the first word has those that are in effect.
    header, before = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, before)
    override, read_and_search = 1 << 1, 1 << 2
    libc.capset(header, (ctypes.c_uint32 * 6)(before[0] & ~(override | read_and_search), *before[1:]))
    try:
        yield
    finally:
        libc.capset(header, before)


# What a run leaves


def n_computed(result: RunResult | Finished) -> int:
    """Return how many embeddings a run computed."""
    if isinstance(result, Finished):
        return int(result.json("run.json")["n_computed"])
    assert result.findings is not None
    return result.findings.embeddings.n_computed


def assignments(result: RunResult) -> pd.DataFrame:
    return pd.read_csv(result.folder / "assignments.csv")


# What lies in a store


def shards_of(store: Path, kind: str = "embeddings") -> list[Path]:
    """Return the finished shards of a store."""
    return sorted(path for path in (store / kind).glob("*/*") if is_shard(path.name))


@dataclass(frozen=True)
class Stamp:
    """What tells a file from one that was written in its place with the same bytes."""

    inode: int
    mtime_ns: int
    content: bytes


def stamps(store: Path) -> dict[str, Stamp]:
    """Return the finished shards of embeddings by name."""
    found = {file: file.stat() for file in shards_of(store)}
    return {file.name: Stamp(status.st_ino, status.st_mtime_ns, file.read_bytes()) for file, status in found.items()}


def kept(store: Path) -> list[str]:
    """Return the content hash of every row of every shard of embeddings."""
    return [content for shard in shards_of(store) for content in pq.read_table(shard)["content_hash"].to_pylist()]


class Noticing(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, message: str) -> None:
        self.notices.append(message)


@cache
def network() -> Extractor:
    """Return VGG16 at 32 pixels a side; it is read and built once, however often a test embeds with it."""
    made = extractors.of_vgg16(vgg16.find_weights(), SMALL_SIDE)
    return replace(made, build=cache(made.build))


def scanned(files: Sequence[Path], store: Store | None, observer: Observer | None = None, **options: Any) -> Manifest:
    root = files[0].parent
    manifest = Manifest(root, tuple(os.path.relpath(file, root) for file in files))
    return scan(manifest, open_source(root), InputConfig(), observer or Observer(), store=store, **options)


def embedded(files: Sequence[Path], root: Path | None, observer: Observer | None = None, **store: Any) -> Embeddings:
    """Scan and embed files as a job does, in one batch unless told otherwise."""
    observer = observer or Observer()
    opened = None if root is None else Store(root, observer)
    return embed(
        scanned(files, opened, observer),
        open_source(files[0].parent),
        choose_engine(CpuBackend(), network(), SMALL_SIDE),
        store=opened,
        store_config=StoreConfig(**store),
        observer=observer,
    )

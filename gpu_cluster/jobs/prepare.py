"""How every job begins, and how those that leave a folder end.

What can be wrong with the device, the options, the weights, the store, the output or the pictures is found here, before
work starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from gpu_cluster import run_folder
from gpu_cluster.backend import Backend, Choice, select
from gpu_cluster.config import CompareConfig, InputConfig, JobConfig, RunConfig
from gpu_cluster.embedding import vgg16
from gpu_cluster.embedding.engines import Engine
from gpu_cluster.errors import NothingReadableError
from gpu_cluster.events import EventLog, Observer, Recorder
from gpu_cluster.files import printable
from gpu_cluster.images import decode
from gpu_cluster.images.discover import discover
from gpu_cluster.images.labels import labelled
from gpu_cluster.images.scan import scan
from gpu_cluster.images.source import Source, open_source
from gpu_cluster.manifest import Manifest
from gpu_cluster.store.store import Store, open_store

C = TypeVar("C", bound=JobConfig)
T = TypeVar("T")


@dataclass(frozen=True)
class Job(Generic[C, T]):
    """A job that can start.

    Attributes
    ----------
    tools : what the job made of the weights for its own work: its engine, its model, ...
    """

    config: C
    events: Recorder
    weights: vgg16.Weights
    choice: Choice
    manifest: Manifest
    source: Source
    store: Store | None
    tools: T

    @property
    def backend(self) -> Backend:
        return self.choice.backend


@contextmanager
def opened(
    config: C,
    events: Recorder,
    find: Callable[[], Manifest],
    make: Callable[[vgg16.Weights, Backend, Manifest], T],
) -> Iterator[Job[C, T]]:
    """Open a job: the device, the pictures that `find` finds, the weights, what `make` makes of them, the store.

    The cheapest look comes first and the look into every picture last. Until the block ends, decoders are held to
    `--max-pixels`.

    Raises
    ------
    GpuClusterError
        For whatever is wrong (see `gpu_cluster.errors`); nothing is written then.
    """
    with events.stage("scan"):
        choice = select(config.device)
        manifest = find()
        weights = vgg16.find_weights(config.embed.weights)
        tools = make(weights, choice.backend, manifest)
        store = open_store(config.store, events)
        source = open_source(manifest.root)
        manifest = scan(manifest, source, config.input, events, store=store, rehash=config.store.rehash)
    with decode.limited(config.input.max_pixels):
        yield Job(config, events, weights, choice, manifest, source, store, tools)


def find_labelled(config: InputConfig, observer: Observer) -> Manifest:
    """Find the pictures and their labels.

    Raises
    ------
    DataError
        When there are no pictures, or the labels do not fit them.
    """
    return labelled(discover(config, observer), config, observer)


def choose_folder(config: RunConfig | CompareConfig, manifest: Manifest, *, prefix: str = "") -> Path:
    """Return the run folder to write; `prefix` comes before its name where none is given.

    Raises
    ------
    ConfigError
        When it cannot be written.
    """
    return run_folder.choose(config.report.out, name=f"{prefix}{manifest.root.name}", inputs=config.input.named())


def describe_device(backend: Backend, engine: Engine) -> dict[str, Any]:
    """Return what the device and the engine say of themselves, for `run.json`."""
    facts = backend.describe()
    return facts | {"versions": {**facts["versions"], **engine.versions()}}


@contextmanager
def filled(folder: Path, events: Recorder) -> Iterator[run_folder.Staged]:
    """Give the folder of a job to fill, with the log of its events in it; it is there when the block ends."""
    with (
        run_folder.staged(folder) as stage,
        (stage.path / run_folder.EVENTS).open("w", encoding="utf-8") as log,
    ):
        events.add(EventLog(log))
        yield stage


def nothing_readable(manifest: Manifest, folder: Path) -> NothingReadableError:
    """Return the error of a job none of whose files could be decoded."""
    return NothingReadableError(
        f"none of the {len(manifest)} files found could be decoded; the reasons are in "
        f"{printable(str(folder / run_folder.BAD_FILES))!r}"
    )

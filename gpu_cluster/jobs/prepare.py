"""What the jobs that leave a folder have in common: what is looked at before work starts, and the folder they fill."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gpu_cluster import run_folder
from gpu_cluster.backend import Backend, Choice, select
from gpu_cluster.clustering.sweep import check_ks
from gpu_cluster.config import JobConfig
from gpu_cluster.embedding import vgg16
from gpu_cluster.embedding.embed import check_precision
from gpu_cluster.errors import NothingReadableError
from gpu_cluster.events import EventLog, Recorder
from gpu_cluster.images import decode
from gpu_cluster.images.scan import discover, scan
from gpu_cluster.results import Findings, Manifest, RunResult, printable
from gpu_cluster.store.store import Store, open_store

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """A job that can start: its device, its pictures, its store, and the folder that it will leave."""

    config: JobConfig
    events: Recorder
    weights: vgg16.Weights
    choice: Choice
    manifest: Manifest
    store: Store | None
    folder: Path

    @property
    def backend(self) -> Backend:
        return self.choice.backend

    def result(self, manifest: Manifest, findings: Findings | None = None) -> RunResult:
        """Return what is known when the job is done."""
        return RunResult(
            folder=self.folder,
            config=self.config,
            manifest=manifest,
            findings=findings,
            weights=(self.weights.path, self.weights.sha256),
            device=self.backend.describe(),
            device_reason=self.choice.reason,
            stages_s=self.events.stages_s,
            notices=self.events.notices,
        )


def prepare(
    config: JobConfig, events: Recorder, make: Callable[[vgg16.Weights], T], *, prefix: str = ""
) -> tuple[Job, T]:
    """Look at the device, the options, the weights, the folder and every picture, the dearest last.

    Also makes of the weights what the job embeds with. `prefix` comes before the name of the run folder where none is
    given.

    Raises
    ------
    GpuClusterError
        For whatever is wrong (see `gpu_cluster.errors`); nothing is written then.
    """
    choice = select(config.device)
    check_precision(config.embed, choice.backend)
    manifest = discover(config.input, events)
    check_ks(config.sweep, len(manifest))
    weights = vgg16.find_weights(config.embed.weights)
    made = make(weights)
    folder = run_folder.choose(config.report.out, name=f"{prefix}{manifest.root.name}", inputs=config.input.named())
    store = open_store(config.store, events)
    manifest = scan(manifest, config.input, events, store=store, rehash=config.store.rehash)
    return Job(config, events, weights, choice, manifest, store, folder), made


@contextmanager
def filled(job: Job) -> Iterator[run_folder.Staged]:
    """Give the folder of a job to fill, with the log of its events in it; it is there when the block ends."""
    with (
        decode.limited(job.config.input.max_pixels),
        run_folder.staged(job.folder) as stage,
        (stage.path / "events.jsonl").open("w", encoding="utf-8") as log,
    ):
        job.events.add(EventLog(log))
        yield stage


def nothing_readable(manifest: Manifest, folder: Path) -> NothingReadableError:
    """Return the error of a job none of whose files could be decoded."""
    return NothingReadableError(
        f"none of the {len(manifest)} files found could be decoded; the reasons are in "
        f"{printable(str(folder / 'bad_files.csv'))!r}"
    )

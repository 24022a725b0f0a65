"""What the jobs have in common: how each of them begins, and how those that write a folder end.

The device, the options, the weights, the store, the output and the pictures are checked here, before work starts.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from gpu_cluster import executor as executors
from gpu_cluster import output, run_folder, staging
from gpu_cluster.backend import Backend, Choice, select
from gpu_cluster.backend.memory import fits_in_words, free_host_bytes, needed_host_bytes
from gpu_cluster.clustering.reduce import count_components
from gpu_cluster.config import (
    ClusteringConfig,
    CompareConfig,
    Device,
    EmbedConfig,
    ExecutorConfig,
    InputConfig,
    JobConfig,
    PicturesConfig,
    PredictConfig,
    RunConfig,
    StoreConfig,
    parse_k_range,
)
from gpu_cluster.embedding import features
from gpu_cluster.embedding.engines import Engine, check_installed
from gpu_cluster.embedding.extractors import Extractor, Joined
from gpu_cluster.embedding.tasks import FeaturesRecipe
from gpu_cluster.embedding.work import Elsewhere
from gpu_cluster.errors import ConfigError, NothingReadableError
from gpu_cluster.events import EventLog, Observer, Recorder
from gpu_cluster.executor import Executor
from gpu_cluster.files import printable
from gpu_cluster.images import decoders
from gpu_cluster.images.discover import discover
from gpu_cluster.images.labels import labelled
from gpu_cluster.images.places import open_source
from gpu_cluster.images.scan import scan
from gpu_cluster.images.source import Source
from gpu_cluster.images.tar_scan import TarScan
from gpu_cluster.manifest import Manifest
from gpu_cluster.portable import Rewrite, check_root, rewriting, unchanged
from gpu_cluster.store.copies import CopyShards
from gpu_cluster.store.store import Store, how_to_go_on, open_store
from gpu_cluster.words import count

log = logging.getLogger(__name__)

SERIAL = ExecutorConfig()
NO_STORE = StoreConfig(no_cache=True)

C = TypeVar("C", bound=JobConfig)
T = TypeVar("T")


@dataclass(frozen=True)
class Job(Generic[C, T]):
    """A job whose checks have passed, with all that its stages need.

    Attributes
    ----------
    weights : those of the network; None if the embeddings are given
    tools : what the job itself prepared for its work from the weights, such as its engine or its model
    """

    config: C
    events: Recorder
    weights: features.Weights
    choice: Choice
    manifest: Manifest
    source: Source
    store: Store | None
    tools: T
    executor: Executor

    @property
    def backend(self) -> Backend:
        return self.choice.backend

    @property
    def copies(self) -> CopyShards | None:
        """Where small copies of pictures that are no files of this machine are kept; None if there are none."""
        return None if self.store is None or not len(self.manifest.listed) else self.store.copies()

    def elsewhere(self, engine: Engine, embed: EmbedConfig, scratch: Path | None) -> Elsewhere | None:
        """Return what embeds pictures in other processes with such an engine; None if this process does it.

        `embed` names the features that the engine computes.

        Raises
        ------
        ConfigError
            When the embeddings would lie in a folder that not all of these processes share.
        """
        if not self.executor.is_remote:
            return None
        if self.store is None:
            if scratch is None:
                raise ConfigError(
                    "--no-cache: workers hand over embeddings in a folder, and this job has none; leave out "
                    "--no-cache, or --workers and --scheduler"
                )
            self.executor.share(scratch, "the folder of the results")
        device: Device = "gpu" if self.backend.name == "gpu" else "cpu"
        ran = embed.model_copy(update={"engine": engine.name})
        recipe = FeaturesRecipe(device, ran, tuple(range(len(engine.parts))))
        return Elsewhere(self.executor, recipe, self.config.input)


@contextmanager
def opened(
    config: C,
    events: Recorder,
    find: Callable[[], Manifest],
    make: Callable[[features.Weights, Backend, Manifest], T],
    *,
    workers: ExecutorConfig = SERIAL,
    without_network: Callable[[Backend, Manifest], T] | None = None,
) -> Iterator[Job[C, T]]:
    """Check and open what a job needs, and give it to the block as a `Job`.

    `find` lists the pictures, `make` prepares the job's own tools, and `workers` names those that do its tasks. If the
    embeddings are given, `without_network` prepares the tools, and no engine and no weights are looked for. The cheap
    checks come first; reading every picture's header comes last. Until the block ends, pictures are decoded
    within the config's limits, and the workers are there.

    Raises
    ------
    GpuClusterError
        For whatever is wrong (see `gpu_cluster.errors`); no results are written then.
    """
    events.job_started(how_to_go_on(config.store))
    with ExitStack() as until_the_end:
        with events.stage("scan"):
            choice = choose_device(config)
            for note in choice.notes:
                events.notice(note)
            weights = features.Weights(config.embed.weights)
            if without_network is None:
                check_installed(config.embed.engine, choice.backend)
                manifest = find()
                tools = make(weights, choice.backend, manifest)
            else:
                manifest = find()
                tools = without_network(choice.backend, manifest)
            store = open_store(config.store, events)
            source = open_source(manifest.root, manifest.signed)
            until_the_end.enter_context(decoders.limited(config.input))
            executor = until_the_end.enter_context(executors.opened(workers, choice.backend.name, events))
            choice.backend.join(executor.client)
            _share(executor, manifest, source, store)
            manifest = scan(
                manifest, source, config.input, events, store=store, rehash=config.store.rehash, executor=executor
            )
        yield Job(config, events, weights, choice, manifest, source, store, tools, executor)


def _share(executor: Executor, manifest: Manifest, source: Source, store: Store | None) -> None:
    """Check that the workers of an executor see the store and the pictures of a job."""
    if store is not None:
        executor.share(store.root, "the store")
    for location in manifest.paths:
        file = source.local_path(location)
        # One that is not there, or may not be looked at, is a bad file and says nothing of the workers.
        with suppress(OSError):
            if file is not None:
                executor.show(file, "the pictures")
                return


def choose_device(config: JobConfig) -> Choice:
    """Choose the device; where it is left open, an engine that only the CPU has decides.

    Raises
    ------
    DeviceError
        When a GPU was asked for and cannot be used.
    """
    if config.device == "auto" and config.embed.engine == "ncnn":
        return replace(select("cpu"), reason="--engine ncnn computes on the CPU only")
    return select(config.device)


def find_pictures(config: PicturesConfig, observer: Observer, store: StoreConfig = NO_STORE) -> Manifest:
    """Find the pictures; those in tar files are looked at too, and `store` keeps what was found of them.

    Raises
    ------
    DataError
        When there are no pictures.
    """
    return discover(config, observer, TarScan(config, store, observer))


def find_labelled(config: InputConfig, observer: Observer, store: StoreConfig = NO_STORE) -> Manifest:
    """Find the pictures and their labels; `store` is as for `find_pictures`.

    Raises
    ------
    DataError
        When there are no pictures, or the labels do not fit them.
    """
    return labelled(find_pictures(config, observer, store), config, observer)


def choose_folder(
    config: RunConfig | CompareConfig, manifest: Manifest, observer: Observer, *, prefix: str = ""
) -> Path:
    """Return the run folder to write; without `--out`, its name has the time, `prefix` and the pictures' folder.

    If an earlier run has this name, what will happen to it is reported.

    Raises
    ------
    ConfigError
        When the folder cannot be written, or the job is portable and the tables would name folders above the pictures.
    """
    if config.report.portable:
        check_root(manifest.root, manifest.paths)
    folder = output.choose(
        config.report.out,
        name=f"{prefix}{manifest.name}",
        inputs=(*config.input.named(), *(config.given.named() if isinstance(config, RunConfig) else ())),
        overwrite=config.report.overwrite,
    )
    if config.report.overwrite and config.report.out is None:
        observer.notice("--overwrite replaces nothing without --out: this run gets a new folder")
    new_name = output.earlier_run_moves_to(folder)
    if new_name is not None:
        earlier = f"{printable(str(folder))!r} is an earlier run; when this one is complete, "
        if config.report.overwrite:
            observer.notice(earlier + "it takes the place of the earlier one, which is not kept (--overwrite)")
        else:
            observer.notice(earlier + f"the earlier one is moved to {printable(str(new_name))!r}")
    return folder


def describe_device(backend: Backend, *engines: Engine) -> dict[str, Any]:
    """Return the facts and library versions of the device and the engines, for `run.json`."""
    facts = backend.describe()
    versions = {name: number for engine in engines for name, number in engine.versions().items()}
    reasons = {engine.name: engine.reason for engine in engines}
    return facts | {
        "versions": {**facts["versions"], **versions},
        "engine": ", ".join(reasons),
        "engine_reason": "; ".join(reasons.values()),
    }


def describe_features(*used: Extractor | Joined) -> list[dict[str, Any]]:
    """Return for `run.json` what describes a picture: for each part of each of these features, its facts and weight."""
    described = []
    for one in used:
        described += [
            {**part.key, "n_features": part.n_features, "weight": share}
            for part, share in zip(one.parts, one.shares, strict=True)
        ]
    return described


def describe_workers(executor: Executor) -> dict[str, Any]:
    """Return for `run.json` what each worker has done in each stage; nothing if there were none."""
    done = {
        stage: [{"worker": address, **asdict(share)} for address, share in sorted(shares.items())]
        for stage, shares in executor.shares().items()
    }
    return {"workers": done} if done else {}


@contextmanager
def filled(
    folder: Path, events: Recorder, *, overwrite: bool, rewrite: Rewrite = unchanged
) -> Iterator[staging.Staged]:
    """Give the block a temporary folder to fill, and log the job's events in it.

    When the block ends without an error, the folder gets its final name; an earlier run of this name is moved, or
    replaced if `overwrite` is true. Notices are logged as `rewrite` returns them.
    """
    with (
        staging.staged(folder, overwrite=overwrite) as stage,
        (stage.path / run_folder.EVENTS).open("w", encoding="utf-8") as log,
    ):
        events.add(EventLog(log, rewrite))
        yield stage


@contextmanager
def scratch_in(folder: Path) -> Iterator[Path]:
    """Give the block a place for embeddings in the temporary folder of a job, which is removed with all in it.

    It is made when something is written. If the job is killed, the next job of its name removes it (see `staging`).
    """
    place = folder / run_folder.SCRATCH
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def tell_memory(config: ClusteringConfig, n: int, d: int, job: Job[C, T], *, whole: bool = False) -> None:
    """Say how much memory clustering n embeddings of d numbers will need, and how much is free.

    This is a notice if the embeddings are too many to be held, or do not fit, and is logged otherwise. With `whole`,
    the sweep uses the scaled embeddings themselves.
    """
    m = d if config.reduce.pca == "none" else count_components(config.reduce.pca, n, d)
    k = config.sweep.k or 1
    k = max(k, parse_k_range(config.sweep.k_range or config.sweep.default_range)[-1])
    needed = needed_host_bytes(n, d, m, k, whole=whole, backend=job.backend)
    free = free_host_bytes()
    words = fits_in_words(needed, free)
    if needed > free or not job.backend.holds(4 * n * d):
        job.events.notice(f"With {count(n, 'picture')}, {words}")
    else:
        log.info("%s", words)


def rewriting_of(
    config: RunConfig | CompareConfig | PredictConfig,
    manifest: Manifest,
    folder: Path,
    *used: Extractor | Joined,
) -> Rewrite:
    """Return what is done to each text before it is written: paths are replaced if the job is portable.

    `used` are the features whose weights have paths too.
    """
    if not config.report.portable:
        return unchanged
    files = (path for path, _sha256 in features.weights_of(*used))
    return rewriting(config.model_dump(mode="json"), manifest.root, folder, *files)


def as_written(manifest: Manifest, rewrite: Rewrite) -> Manifest:
    """Return the manifest with its texts (reasons, and where labels came from) as they are to be written."""
    source = manifest.label_source
    return replace(
        manifest,
        bad={row: rewrite(why) for row, why in manifest.bad.items()},
        label_source=None if source is None else rewrite(source),
    )


def nothing_readable(manifest: Manifest, stage: staging.Staged) -> NothingReadableError:
    """Return the error for a job in which no file could be decoded."""
    return NothingReadableError(
        f"{count(len(manifest), 'picture')} found, and none could be decoded; the reasons are in "
        f"{printable(str(stage.folder / run_folder.BAD_FILES))!r}{moved_words(stage)}"
    )


def moved_words(stage: staging.Staged) -> str:
    """Return, for the end of an error, where the earlier run was moved to; an empty text if none was moved."""
    return "" if stage.earlier_run is None else f"; the earlier run is now {printable(str(stage.earlier_run))!r}"

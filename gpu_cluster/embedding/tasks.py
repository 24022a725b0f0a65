"""Embeds one task's pictures in whatever process it runs in, and writes their embeddings as one shard.

Input: where the pictures are, how to make the engine, and where the shard goes. Output: which rows the shard has, and
the reasons of the pictures without an embedding. This module must not know the manifest, or which executor runs it.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gpu_cluster.backend import FloatArray, IntArray, select
from gpu_cluster.backend.rows import WINDOW_BYTES
from gpu_cluster.config import DecodingConfig, Device, EmbedConfig
from gpu_cluster.embedding import features
from gpu_cluster.embedding.engines import Engine, choose_engine
from gpu_cluster.embedding.shards import NOT_FINITE, columns_of, embed_shard
from gpu_cluster.errors import GpuClusterError
from gpu_cluster.events import Observer
from gpu_cluster.executor import RefusedWorkerError, Reporter
from gpu_cluster.facts import FileTable
from gpu_cluster.images import colour, decoders, square
from gpu_cluster.images.source import CHANGED, Picture, Source
from gpu_cluster.store.embeddings import EmbeddingShards, ScratchShards


class EngineRecipe(ABC):
    """How another process makes the engine of a job; it is pickled, and compared with the one before."""

    @abstractmethod
    def make(self) -> Engine:
        """Return the engine; nothing is loaded yet.

        Raises
        ------
        GpuClusterError
            When this process has not what it needs.
        """

    def of_parts(self, _positions: tuple[int, ...]) -> EngineRecipe:
        """Return how the engine is made for some parts of the features; there is one part unless they are joined."""
        return self


@dataclass(frozen=True)
class FeaturesRecipe(EngineRecipe):
    """The engine for the features of a config, with weights of the process that makes it: its own, or those it names.

    Attributes
    ----------
    config : what the features are; its engine is the one that runs in the job
    parts : the positions of the parts that are wanted; an engine for one part alone does not join
    """

    device: Device
    config: EmbedConfig
    parts: tuple[int, ...]

    def make(self) -> Engine:
        backend = select(self.device).backend
        extractor = features.extractor_of(self.config, features.Weights(self.config.weights))
        return choose_engine(backend, extractor.some(self.parts), self.config)

    def of_parts(self, positions: tuple[int, ...]) -> FeaturesRecipe:
        return replace(self, parts=positions)


@dataclass(frozen=True)
class EmbedTask:
    """Pictures whose embeddings are written together.

    Attributes
    ----------
    keys : what the embeddings of each part depend on, as the job's own engine has it
    folders, lasting : the folder of the shards of each key, and whether they are a store's
    limits : the limits within which pictures are decoded
    locations, facts : the pictures, and what the scan found out about them
    borders : where the parts end that `embed_shard` embeds one after the other; the last one is the number of pictures
    """

    recipe: EngineRecipe
    keys: Sequence[Mapping[str, Any]]
    folders: Sequence[Path]
    lasting: bool
    limits: DecodingConfig
    source: Source
    locations: Sequence[str]
    facts: FileTable
    borders: Sequence[int]


@dataclass(frozen=True)
class Embedded:
    """What became of the pictures of a task.

    Attributes
    ----------
    shards : the shard of each part that was written; empty if there was nothing to write
    rows : (s,) positions of the pictures that are the rows of these shards, in their order
    reasons : by position, why a picture has no embedding
    done : (m,) positions of the pictures that have an embedding or a reason; all of them unless the task was stopped
    batch_size : pictures that went through the network together
    """

    shards: tuple[Path, ...]
    rows: IntArray
    reasons: Mapping[int, str]
    done: IntArray
    batch_size: int


def embed_task(task: EmbedTask, reporter: Reporter) -> Embedded:
    """Embed the pictures of a task until the reporter asks to stop; complete batches are written in any case.

    What each part of the network gives is a shard of its own.

    Memory: the embeddings of the task on the host, and a few batches of pixels.

    Raises
    ------
    RefusedWorkerError
        When this process cannot make the engine of the job, or its engine would give other embeddings.
    StoreError
        When the shard cannot be written.
    """
    try:
        engine = _engine(task.recipe)
    except GpuClusterError as error:
        # The job has made this engine itself, so others may have what this process lacks.
        raise RefusedWorkerError(f"cannot make the embeddings of this job: {error}") from error
    for part, key in zip(engine.parts, task.keys, strict=True):
        _check_key(part.key, key)
    engine.backend.claim_device(WINDOW_BYTES)
    engine.build()
    pictures = [Picture(task.source, at, one) for at, one in zip(task.locations, task.facts, strict=True)]
    found = _Found(pictures)
    first = 0
    with decoders.within(task.limits):
        for end in task.borders:
            for batch in embed_shard(pictures[first:end], engine):
                found.add(
                    first + batch.positions, engine.backend.to_host(batch.x), batch.reasons, batch.lasting.tolist()
                )
                reporter.progress(len(found.done))
                if reporter.stopping():
                    return found.written(task, engine)
            first = end
    return found.written(task, engine)


# One engine at a time: a worker loads the network once for all tasks of a job.
@functools.lru_cache(maxsize=1)
def _engine(recipe: EngineRecipe) -> Engine:
    return recipe.make()


def _check_key(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    if theirs == ours:
        return
    other = [
        f"{name} {theirs.get(name)!r} and not {ours.get(name)!r}"
        for name in sorted({*theirs, *ours})
        if theirs.get(name) != ours.get(name)
    ]
    raise RefusedWorkerError(f"would make other embeddings: it has {', '.join(other)} as this job")


class _Found:
    """The embeddings of a task so far."""

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self._pictures = pictures
        self._x: dict[int, FloatArray] = {}
        self._reasons: dict[int, str] = {}
        self._lasting: dict[int, bool] = {}

    @property
    def done(self) -> Mapping[int, bool]:
        """The positions that have a result."""
        return self._lasting

    def add(self, positions: IntArray, x: FloatArray, reasons: Sequence[str | None], lasting: Sequence[bool]) -> None:
        for position, row, why, lasts in zip(positions.tolist(), x, reasons, lasting, strict=True):
            # A copy, because the engine may use this memory again.
            self._x[position] = row.copy()
            self._lasting[position] = bool(lasts)
            if why is not None:
                self._reasons[position] = why

    def written(self, task: EmbedTask, engine: Engine) -> Embedded:
        """Write what depends only on the contents of the pictures as one shard."""
        for position in self._lasting:
            if self._pictures[position].changed():
                self._leave_out(position, CHANGED)
            elif position not in self._reasons and not np.isfinite(self._x[position]).all():
                self._leave_out(position, NOT_FINITE)
        rows = np.array(sorted(at for at, lasts in self._lasting.items() if lasts), dtype=np.int64)
        shards: list[Path] = []
        if len(rows):
            kind = EmbeddingShards if task.lasting else ScratchShards
            x = np.stack([self._x[at] for at in rows.tolist()])
            hashes = [str(self._pictures[at].facts.content_hash) for at in rows]
            reasons = [self._reasons.get(at) for at in rows.tolist()]
            profiles = square.applies_profiles(engine.config)
            conversions = [colour.conversion_of(self._pictures[at].facts, profiles=profiles) for at in rows.tolist()]
            for columns, key, folder in zip(columns_of(engine), task.keys, task.folders, strict=True):
                shard = kind(folder, key, Observer()).keep(hashes, x[:, columns], reasons, conversions=conversions)
                assert shard is not None, "every row has an embedding or a reason"
                shards.append(shard)
        done = np.array(sorted(self._lasting), dtype=np.int64)
        return Embedded(tuple(shards), rows, self._reasons, done, engine.batch_size)

    def _leave_out(self, position: int, why: str) -> None:
        self._reasons[position] = why
        self._lasting[position] = False

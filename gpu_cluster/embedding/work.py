"""What a job knows of the contents that it embeds, and who computes those that are missing: this process, or others.

Input: a manifest, and an engine or an executor. Output: embeddings and reasons. This module must not know how a place
for the embeddings is chosen, or what becomes of them.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpu_cluster.backend import IntArray, Rows
from gpu_cluster.config import DecodingConfig
from gpu_cluster.embedding.engines import Engine
from gpu_cluster.embedding.kept import Kept
from gpu_cluster.embedding.shards import NOT_FINITE, EmbeddedBatch, columns_of, embed_shard
from gpu_cluster.embedding.tasks import Embedded, EmbedTask, EngineRecipe, embed_task
from gpu_cluster.errors import InterruptedJobError
from gpu_cluster.events import Observer
from gpu_cluster.executor import Executor, Lost, Stage
from gpu_cluster.facts import FileTable
from gpu_cluster.images import colour
from gpu_cluster.images.source import CHANGED, Picture, Source
from gpu_cluster.manifest import Manifest
from gpu_cluster.store.embeddings import EmbeddingShards, row_name

# After a request to stop, the batch in work is waited for this long at least.
_PATIENCE_S = 8.0
# So often the thread that waits for a batch looks whether the job is asked to stop.
_HEARING_S = 0.1


@dataclass(frozen=True)
class Elsewhere:
    """What computes embeddings in other processes: their executor, how they make the engine, and their limits."""

    executor: Executor
    recipe: EngineRecipe
    limits: DecodingConfig


def _computed_beside(
    batches: Generator[EmbeddedBatch, None, None], observer: Observer
) -> Generator[EmbeddedBatch, None, None]:
    """Give the caller the batches, which another thread computes, until they end or the observer asks to stop.

    This thread only waits, so it hears signals whatever a decoder or the network does. After a request to stop it waits
    for the batch in work, but no longer than the network took for the longest one, or `_PATIENCE_S` if that is longer.
    """
    pool = ThreadPoolExecutor(1)
    patience = _PATIENCE_S
    try:
        while True:
            stopped = None
            batch = pool.submit(next, batches, None)
            while not wait([batch], _HEARING_S).done:
                if observer.stopping():
                    stopped = stopped or time.monotonic()
                    if time.monotonic() - stopped > patience:
                        return
            found = batch.result()
            if found is None:
                return
            patience = max(patience, found.network_s)
            yield found
    finally:
        # If a batch is in work, this comes after it, and nobody waits for it.
        pool.submit(batches.close)
        pool.shutdown(wait=False)


def _together(shards: Sequence[IntArray], shard_size: int) -> list[list[IntArray]]:
    """Join shards of which little is missing, which are then written together: otherwise there would be many files."""
    joined: list[list[IntArray]] = []
    n = 0
    for shard in shards:
        if not joined or n + len(shard) > shard_size:
            joined.append([])
            n = 0
        joined[-1].append(shard)
        n += len(shard)
    return joined


@dataclass
class Part:
    """What is known of the embeddings that one part of the features gives.

    Attributes
    ----------
    kept : where they are
    shards : where they are written; None if they are not
    done : for each content, whether it has an embedding or a reason
    """

    kept: Kept
    shards: EmbeddingShards | None
    done: npt.NDArray[np.bool_]


class Work:
    """What is known and what is left to compute of the contents of a manifest; each content is computed once.

    In this class, index i is the i-th distinct content. Contents are ordered by the first file in which they occur. A
    content is done when every part of the features is; if it has a reason, it needs none of them.

    Attributes
    ----------
    content_of : (n,) the index of the content of each file that is not bad
    parts : the parts of the features, in their order; chosen before anything else is done
    observer : who is told of the progress
    lasting : whether the shards stay when the job has ended
    """

    lasting = False

    def __init__(
        self, manifest: Manifest, source: Source, observer: Observer, *, go_on: str, profiles: bool = True
    ) -> None:
        bad = manifest.bad
        rows = np.array([row for row in range(len(manifest)) if row not in bad], dtype=np.int64)
        self._manifest = manifest
        self._source = source
        self._rows = rows
        self.observer = observer
        self._go_on = go_on
        self._profiles = profiles
        firsts = np.array([row not in manifest.duplicates for row in rows], dtype=bool)
        self._first_rows = rows[firsts]
        originals = [manifest.duplicates[row] for row in rows[~firsts]]
        self.content_of = np.empty(len(rows), dtype=np.int64)
        self.content_of[firsts] = np.arange(len(self._first_rows))
        self.content_of[~firsts] = np.searchsorted(self._first_rows, originals)
        self.parts: list[Part] = []
        self._n_done = 0
        self._bad: dict[int, str] = {}
        # For each content that was embedded after the last write to the store, whether the store may keep its result.
        self._unwritten: dict[int, bool] = {}

    @property
    def n_rows(self) -> int:
        """Number of files that are not bad."""
        return len(self._rows)

    @property
    def n_contents(self) -> int:
        """Number of distinct contents."""
        return len(self._first_rows)

    def add_part(self, kept: Kept, shards: EmbeddingShards | None) -> None:
        """Add a part of the features, of which nothing is known yet."""
        self.parts.append(Part(kept, shards, np.zeros(self.n_contents, dtype=bool)))

    def count_good(self, contents: npt.NDArray[np.bool_] | None = None) -> int:
        """Return how many contents, of those in a mask (or of all), have an embedding by now."""
        done = self._done() if contents is None else self._done() & contents
        return int(done.sum()) - sum(bool(done[index]) for index in self._bad)

    def count_good_in(self, part: Part) -> int:
        """Return how many contents have an embedding by this part by now."""
        return int(part.done.sum()) - sum(bool(part.done[index]) for index in self._bad)

    def _done(self) -> npt.NDArray[np.bool_]:
        return np.asarray(np.logical_and.reduce([part.done for part in self.parts]))

    def missing(self) -> npt.NDArray[np.bool_]:
        """Return for each content whether it has neither an embedding nor a reason."""
        return ~self._done()

    def untouched(self) -> npt.NDArray[np.bool_]:
        """Return for each content whether no part of it is done."""
        return ~np.asarray(np.logical_or.reduce([part.done for part in self.parts]))

    def missing_alike(self) -> Iterator[tuple[tuple[int, ...], npt.NDArray[np.bool_]]]:
        """Yield the positions of parts that some contents lack, and which contents lack just these."""
        lacks = np.zeros(self.n_contents, np.int64)
        for position, part in enumerate(self.parts):
            lacks |= (~part.done).astype(np.int64) << position
        for code in np.unique(lacks[lacks > 0]).tolist():
            yield tuple(at for at in range(len(self.parts)) if code >> at & 1), lacks == code

    def read_store(self) -> None:
        """Take the embeddings and reasons that the store holds."""
        wanted = self.row_names(np.arange(self.n_contents))
        for position, part in enumerate(self.parts):
            assert part.shards is not None, "without a store, nothing is read"
            for shard in part.shards.find(wanted):
                part.kept.found(shard)
                self._note([position], shard.at, shard.reasons)
                self._progress()
                if self.observer.stopping():
                    raise self._interrupted()

    def compute(self, shards: Sequence[IntArray], engine: Engine, shard_size: int, of: Sequence[int]) -> None:
        """Embed the contents of all shards; the store keeps the results that depend only on the content.

        `of` has the positions of the parts that the engine gives, in their order.
        """
        for pieces in _together(shards, shard_size):
            for piece in pieces:
                try:
                    self._compute_shard(piece, engine, of)
                # Ctrl-C in Python, or a second one on the command line.
                except KeyboardInterrupt:
                    self._write(of)
                    raise
                if self.observer.stopping():
                    self._write(of)
                    raise self._interrupted()
            self._write(of)

    def _compute_shard(self, shard: IntArray, engine: Engine, of: Sequence[int]) -> None:
        """Embed the contents of a shard until the observer asks to stop."""
        if self.observer.stopping():
            return
        limit = engine.batch_size
        embedded = embed_shard([self._picture(index) for index in shard], engine)
        for batch in _computed_beside(embedded, self.observer):
            indices = shard[batch.positions]
            for position, columns in zip(of, columns_of(engine), strict=True):
                self.parts[position].kept.computed(indices, batch.x[:, columns])
            self._note(of, indices, batch.reasons)
            self._unwritten |= zip(indices.tolist(), batch.lasting.tolist(), strict=True)
            self._progress()
            if self.observer.stopping():
                break
        if engine.batch_size < limit:
            self.observer.notice(
                f"Out of memory on the {engine.backend.name}: going on with batches of {engine.batch_size}"
            )

    def compute_elsewhere(
        self, shards: Sequence[IntArray], engine: Engine, shard_size: int, of: Sequence[int], elsewhere: Elsewhere
    ) -> None:
        """Embed the contents of all shards by an executor; a task that ends its workers is split until it is found.

        What a task did not embed, without a request to stop, is given out again. `of` is as in `compute`.
        """
        waiting = _together(shards, shard_size)
        while waiting:
            lost: list[list[IntArray]] = []
            stage = Stage("embed", self.observer, self.n_contents, self._n_done)
            tasks = (self._task(pieces, engine, of, elsewhere) for pieces in waiting)
            for pieces, found in zip(waiting, elsewhere.executor.map_in_order(embed_task, tasks, stage), strict=False):
                if isinstance(found, Lost):
                    lost += self._halves(np.concatenate(pieces), found)
                else:
                    self._take(np.concatenate(pieces), found, engine, of)
                    # A worker that lost its scheduler for a while has ended its task too early.
                    rest = [piece[~self._done_of(piece)] for piece in pieces]
                    lost += [rest] if sum(map(len, rest)) else []
            self._progress()
            if self.observer.stopping():
                raise self._interrupted()
            waiting = lost

    def _task(self, pieces: Sequence[IntArray], engine: Engine, of: Sequence[int], elsewhere: Elsewhere) -> EmbedTask:
        rows = self._first_rows[np.concatenate(pieces)]
        shards = [self.parts[position].shards for position in of]
        return EmbedTask(
            recipe=elsewhere.recipe.of_parts(tuple(of)),
            keys=[part.key for part in engine.parts],
            # The results of tasks come through shards.
            folders=[one.folder for one in shards if one is not None],
            lasting=self.lasting,
            limits=elsewhere.limits,
            source=self._source,
            locations=[self._manifest.paths[row] for row in rows.tolist()],
            facts=FileTable(self._manifest.files[row] for row in rows.tolist()),
            borders=np.cumsum([len(piece) for piece in pieces]).tolist(),
        )

    def _halves(self, contents: IntArray, lost: Lost) -> list[list[IntArray]]:
        """Return two tasks in place of one that was lost; a single picture is what ended the workers."""
        if len(contents) > 1:
            return [[half] for half in np.array_split(contents, 2)]
        self._note([], contents, [f"it ends the process that embeds it: {lost.reason}"])
        return []

    def _take(self, contents: IntArray, found: Embedded, engine: Engine, of: Sequence[int]) -> None:
        """Take the result of a task."""
        if found.shards:
            for position, shard in zip(of, found.shards, strict=True):
                part = self.parts[position]
                assert part.shards is not None, "see _task"
                part.kept.elsewhere(contents[found.rows], shard, part.shards)
        engine.batch_size = max(engine.batch_size, found.batch_size)
        # The executor has reported these, when they were done: earlier than in the order of the tasks.
        self._note(of, contents[found.done], [found.reasons.get(at) for at in found.done.tolist()])

    def _write(self, of: Sequence[int]) -> None:
        """Keep in the store what was embedded since the last call, as one shard for each of these parts."""
        parts = [self.parts[position] for position in of]
        # The embedding of a file that changed after the scan does not match the recorded hash.
        for index in [index for index in self._unwritten if self._picture(index).changed()]:
            self._bad[index] = CHANGED
            self._unwritten[index] = False
        # A row with a reason has any numbers.
        good = np.array(sorted(self._unwritten.keys() - self._bad.keys()), dtype=np.int64)
        if len(good):
            finite = np.logical_and.reduce([part.kept.finite(good) for part in parts])
            for index in good[~finite].tolist():
                self._bad[index] = NOT_FINITE
                self._unwritten[index] = False
        lasting = np.array(sorted(index for index, lasting in self._unwritten.items() if lasting), dtype=np.int64)
        self._unwritten.clear()
        hashes, conversions = self._hashes(lasting), self._conversions(lasting)
        for part in parts:
            shard = None
            if part.shards is not None and len(lasting):
                x, reasons = part.kept.to_write(lasting), [self._bad.get(index) for index in lasting.tolist()]
                shard = part.shards.keep(hashes, x, reasons, conversions=conversions)
            part.kept.written(lasting, shard)

    def finish(self) -> tuple[list[Rows], IntArray, dict[int, str]]:
        """Return the embeddings of each part, the manifest row of each of them, and the reasons by manifest row."""
        bad = {int(self._first_rows[index]): why for index, why in self._bad.items()}
        for row, first in self._manifest.duplicates.items():
            if first in bad:
                bad[row] = f"{self._manifest.status(row)[1]}: {bad[first]}"
        good = np.array([row not in bad for row in self._rows], dtype=bool)
        return [part.kept.rows(self.content_of[good]) for part in self.parts], self._rows[good], bad

    def _note(self, of: Sequence[int], indices: IntArray, reasons: Sequence[str | None]) -> None:
        """Note that some parts of these contents are done, and all parts of those that have a reason."""
        bad = {int(index): why for index, why in zip(indices, reasons, strict=True) if why is not None}
        self._bad |= bad
        n_before = int(self._done_of(indices).sum())
        for position in of:
            self.parts[position].done[indices] = True
        for part in self.parts:
            part.done[list(bad)] = True
        self._n_done += int(self._done_of(indices).sum()) - n_before

    def _done_of(self, indices: IntArray) -> npt.NDArray[np.bool_]:
        return np.asarray(np.logical_and.reduce([part.done[indices] for part in self.parts]))

    def _progress(self) -> None:
        self.observer.progress("embed", self._n_done, self.n_contents)

    def _picture(self, index: int) -> Picture:
        row = int(self._first_rows[index])
        return Picture(self._source, self._manifest.paths[row], self._manifest.files[row])

    def row_names(self, indices: IntArray) -> list[str]:
        """Return the names of the rows of the store that have the embeddings of these contents."""
        return list(map(row_name, self._hashes(indices), self._conversions(indices)))

    def hashes_of_converted(self, indices: IntArray) -> list[str]:
        """Return the content hashes of those of these contents to which something is done after they are decoded."""
        done = self._conversions(indices)
        return [found for found, what in zip(self._hashes(indices), done, strict=True) if what is not None]

    def _hashes(self, indices: IntArray) -> list[str]:
        return [found or "" for found in self._manifest.facts.column("content_hash", self._first_rows[indices])]

    def _conversions(self, indices: IntArray) -> list[str | None]:
        """Return what is done to each of these contents after it is decoded (see `colour.conversion_of`)."""
        rows = self._first_rows[indices]
        return colour.conversions_of(self._manifest.facts, rows, profiles=self._profiles)

    def _interrupted(self) -> InterruptedJobError:
        kept = ""
        folders = [part.shards.folder for part in self.parts if part.shards is not None]
        if self.lasting and folders and self._n_done:
            kept = f"; they are kept in {' and '.join(repr(str(folder)) for folder in folders)}"
        return InterruptedJobError(
            f"interrupted with {self._n_done:,} of {self.n_contents:,} pictures embedded{kept}: {self._go_on}"
        )

"""Embeddings that were computed elsewhere, in place of a network: a file or an array enters, Embeddings leave.

Names are matched to pictures as those of labels are. A picture without a vector is a bad file with that reason; files
with the same content get one vector. This module must not know what becomes of the embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpu_cluster.backend import Backend, FloatArray, HeldRows, IntArray, Rows
from gpu_cluster.backend.memory import memory_error_explained
from gpu_cluster.backend.rows import WINDOW_BYTES
from gpu_cluster.columns import Texts
from gpu_cluster.config import GivenConfig
from gpu_cluster.embedding.given_rows import ChosenRows, room_in
from gpu_cluster.embedding.vectors import ArrayVectors, NpyVectors, Vectors
from gpu_cluster.embedding.vectors_parquet import ParquetVectors
from gpu_cluster.errors import ConfigError, DataError, JobError
from gpu_cluster.events import Observer, interrupted
from gpu_cluster.files import open_regular, printable
from gpu_cluster.images.names import PicturesByName, listed_names
from gpu_cluster.manifest import Manifest
from gpu_cluster.results import Embeddings
from gpu_cluster.store.parts import fingerprint
from gpu_cluster.words import count

# Names that a message shows.
_MOST_NAMED = 3

# What `run.json` has in place of the engine that ran.
NO_ENGINE = {"engine": "none", "engine_reason": "the embeddings were given"}

_NPY, _PARQUET, _ZIP = b"\x93NUMPY", b"PAR1", b"PK\x03\x04"


@contextmanager
def opened_vectors(
    config: GivenConfig, array: Any = None, array_names: Sequence[str] | None = None
) -> Iterator[Vectors | None]:
    """Open the embeddings, check what they declare and their names, and close them at the end; None if none are given.

    Parameters
    ----------
    config
        Names the file, and its list of names.
    array, array_names
        The embeddings in place of a file, if the config says that they are in memory, and their names in place of a
        list.

    Raises
    ------
    ConfigError
        When names are missing, or are given for a file that has its own; or the array is missing.
    DataError
        When they cannot be used; the message says what was expected and what was found.
    """
    with ExitStack() as until_the_end:
        vectors: Vectors | None = None
        if config.embeddings is not None:
            vectors = _opened_file(config.embeddings, config.embedding_names, until_the_end)
        elif config.embeddings_in_memory:
            vectors = _of_array(array, array_names, config.embedding_names)
        if vectors is not None:
            _check_each_once(vectors)
        yield vectors


def _opened_file(path: Path, names: Path | None, until_the_end: ExitStack) -> Vectors:
    shown = printable(str(path))
    try:
        stream = until_the_end.enter_context(open_regular(path)[0])
        beginning = stream.read(len(_NPY))
        stream.seek(0)
    except OSError as error:
        raise DataError(f"cannot read --embeddings {shown!r}: {error.strerror or error}") from error
    if beginning.startswith(_PARQUET):
        if names is not None:
            raise ConfigError(
                f"--embedding-names: the Parquet file {shown!r} has the names in its column 'path'; leave out "
                "--embedding-names"
            )
        return ParquetVectors(path, stream)
    if not beginning.startswith(_NPY):
        what = "an archive, such as .npz" if beginning.startswith(_ZIP) else f"one that begins with {beginning!r}"
        raise DataError(f"--embeddings {shown!r}: expected a .npy file (numpy.save) or a Parquet file; found {what}")
    beside = path.with_suffix(".txt")
    if names is None and not beside.is_file():
        raise ConfigError(
            f"--embeddings {shown!r}: an array has no names; expected a list that names the picture of each row, one "
            f"on each line, at {printable(str(beside))!r} or with --embedding-names"
        )
    names = names or beside
    vectors = NpyVectors(path, stream, Texts(listed_names(names, "--embedding-names")))
    vectors.table = names
    _check_number(vectors, repr(printable(str(names))))
    return vectors


def _of_array(array: Any, names: Sequence[str] | None, file: Path | None) -> Vectors:
    if array is None:
        raise ConfigError(
            "the run to repeat was made with embeddings that were an array in memory, which its record does not hold; "
            "give them again: embeddings=ARRAY in Python, or --embeddings FILE"
        )
    if names is None and file is None:
        raise ConfigError(
            "embeddings: an array has no names; expected embedding_names, a list that names the picture of each row"
        )
    listed = Texts(listed_names(file, "--embedding-names") if names is None and file is not None else names or ())
    vectors = ArrayVectors(array, listed)
    vectors.table = file or vectors.table
    _check_number(vectors, "embedding_names" if file is None else repr(printable(str(file))))
    return vectors


def _check_number(vectors: Vectors, names: str) -> None:
    if len(vectors.names) != vectors.shape[0]:
        n = vectors.shape[0]
        raise DataError(
            f"{names} names {count(len(vectors.names), 'picture')}, and {vectors.shown} has {count(n, 'row')}; "
            "expected one name for each row, in the same order"
        )


def _check_each_once(vectors: Vectors) -> None:
    # Numbers instead of the names, because there may be millions of these.
    hashes = np.fromiter(map(hash, vectors.names), np.int64, len(vectors.names))
    order = np.argsort(hashes, kind="stable")
    for at in np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]]):
        one, other = int(order[at]), int(order[at + 1])
        if vectors.names[one] == vectors.names[other]:
            raise _twice(vectors, one, other)


def _twice(vectors: Vectors, one: int, other: int) -> DataError:
    names = " and ".join(dict.fromkeys(repr(printable(vectors.names[row])) for row in (one, other)))
    return DataError(
        f"{vectors.shown}: expected one row for each picture; the rows {one:,} and {other:,} (counted "
        f"from 0) are both of {names}"
    )


@dataclass(frozen=True, eq=False)
class Given:
    """Vectors that were checked, and the pictures that they are of.

    Attributes
    ----------
    row_of : row of the vectors for each row of the manifest, -1 without one
    finite : for each row of the vectors, whether it has finite numbers
    sums : a checksum of each row of the vectors
    sha256 : of the file, or of the array
    by : what computed them, in words, if that was said
    """

    vectors: Vectors
    row_of: IntArray
    finite: npt.NDArray[np.bool_]
    sums: npt.NDArray[np.uint64]
    sha256: str
    by: str | None = None

    @property
    def n_features(self) -> int:
        return self.vectors.shape[1]

    @property
    def key(self) -> dict[str, Any]:
        """Everything that the embeddings of these pictures depend on."""
        return {"given": self.sha256, "rows": fingerprint(self.row_of)}

    @property
    def features(self) -> dict[str, Any]:
        """What a model says of its embeddings."""
        return {"given": True, "n_features": self.n_features, "by": self.by}

    @property
    def record(self) -> dict[str, Any]:
        """What `run.json` says of them."""
        n, d = self.vectors.shape
        path = None if self.vectors.path is None else str(self.vectors.path)
        dtype = self.vectors.dtype
        return {"path": path, "sha256": self.sha256, "n": n, "n_features": d, "dtype": dtype, "by": self.by}

    def embeddings(
        self, manifest: Manifest, backend: Backend, observer: Observer, *, scratch: Path | None = None
    ) -> Embeddings:
        """Return the embeddings of a scanned manifest.

        Of files with the same content, all get the vector of the first that has one. A matrix that the device holds is
        read into it. A larger one is read from the file in blocks, if its rows lie there in one piece each; if not,
        they are written once to an unnamed file in the folder `scratch`, in the order of the pictures.

        Raises
        ------
        DeviceError
            When the memory of the device is too small.
        InterruptedJobError
            When the observer asked to stop.
        JobError
            When the file was changed meanwhile, or there is no room in `scratch`.
        """
        rows, at, bad = self._chosen(manifest, observer)
        n, d = len(rows), self.n_features
        n_bytes = n * d * np.dtype(np.float32).itemsize
        held = backend.holds(n_bytes) or (scratch is None and self.vectors.plain is None)
        with memory_error_explained("embedding", n, d, backend):
            backend.claim_device(n_bytes if held else WINDOW_BYTES)
            x: Rows
            if held:
                x = self._held(at, backend, observer)
            elif self.vectors.plain is not None:
                x = ChosenRows(self.vectors.plain, at, backend)
            else:
                assert scratch is not None, "without a place for them, they are held"
                x = self._in_order(at, backend, observer, scratch)
        self.vectors.check_unchanged()
        return Embeddings(x=x, rows=rows, bad=bad, n_computed=0, images_per_s=None, precision=None, batch_size=None)

    def _chosen(self, manifest: Manifest, observer: Observer) -> tuple[IntArray, IntArray, dict[int, str]]:
        """Return the rows of the manifest that have a vector, the row of each vector, and why the others are bad."""
        usable = (self.row_of >= 0) & self.finite[self.row_of]
        of_content: dict[int, int] = {}
        good = [row for row in range(len(manifest)) if row not in manifest.bad]
        for row in good:
            if usable[row]:
                of_content.setdefault(manifest.duplicates.get(row, row), int(self.row_of[row]))
        bad, rows, at, n_other = {}, [], [], 0
        for row in good:
            first = manifest.duplicates.get(row, row)
            chosen = of_content.get(first)
            if chosen is None:
                bad[row] = self._why_not(row)
                continue
            rows.append(row)
            at.append(chosen)
            own = self.row_of[row]
            n_other += bool(own >= 0 and self.sums[own] != self.sums[chosen])
        if n_other:
            observer.notice(
                f"{count(n_other, 'picture')} {'has' if n_other == 1 else 'have'} another embedding in "
                f"{self.vectors.shown} than the first file with the same content; that of the first is used for all"
            )
        return np.array(rows, np.int64), np.array(at, np.int64), bad

    def _why_not(self, row: int) -> str:
        path, at = self.vectors.path, self.row_of[row]
        where = "the array of embeddings" if path is None else printable(path.name)
        if at < 0:
            return f"{where} has no embedding of it"
        return f"its embedding in {where} (row {at:,}, counted from 0) has values that are not finite"

    def _placed(self, at: IntArray, observer: Observer) -> Iterator[tuple[IntArray, FloatArray]]:
        """Yield, as the file is read once, the places in `at` whose vectors were read, and these vectors."""
        order = np.argsort(at, kind="stable")
        in_order, n_done = at[order], 0
        for rows, x in self.vectors.blocks():
            first, last = np.searchsorted(in_order, [rows.start, rows.stop])
            if first < last:
                yield order[first:last], x[in_order[first:last] - rows.start]
            n_done += int(last - first)
            observer.progress("embed", n_done, len(at))
            if observer.stopping():
                raise interrupted()

    def _held(self, at: IntArray, backend: Backend, observer: Observer) -> Rows:
        x = backend.empty((len(at), self.n_features))
        for places, part in self._placed(at, observer):
            x[backend.from_host(places)] = backend.from_host(part)
        return HeldRows(x, backend)

    def _in_order(self, at: IntArray, backend: Backend, observer: Observer, scratch: Path) -> Rows:
        """Write the vectors to a file in the order in which they are needed, and return them as they lie there."""
        room = room_in(scratch, (len(at), self.n_features))
        try:
            for places, part in self._placed(at, observer):
                ascending = np.argsort(places)
                room.write(places[ascending], part[ascending])
        except OSError as error:
            raise JobError(
                f"cannot write embeddings to {printable(str(scratch))!r}, where they lie until the job ends: "
                f"{error.strerror or error}; nothing was left: make room there, choose a place with more room with "
                "--out, or give the embeddings as a .npy file in C order, which is read where it lies"
            ) from error
        return ChosenRows(room, np.arange(len(at)), backend)


def matched(vectors: Vectors, manifest: Manifest, observer: Observer, *, scaling: str, by: str | None = None) -> Given:
    """Find the pictures of the vectors, and check the numbers of all that have one; the file is read twice.

    `scaling` is that of the reduction (see `ReduceConfig`). Memory: 17 bytes for each vector, 8 for each picture.

    Raises
    ------
    ConfigError
        When numbers are below 0, and the scaling takes their square roots.
    DataError
        When no picture has a vector, a picture has two, or none of the vectors has finite numbers.
    InterruptedJobError
        When the observer asked to stop.
    """
    row_of = _match(vectors, manifest, observer)
    n = vectors.shape[0]
    wanted, finite, sums = np.zeros(n, bool), np.zeros(n, bool), np.zeros(n, np.uint64)
    wanted[row_of[row_of >= 0]] = True
    factors = np.random.RandomState(0).randint(0, 1 << 63, vectors.shape[1], np.uint64) | np.uint64(1)
    least, n_read = np.inf, 0
    for rows, x in vectors.blocks():
        finite[rows] = np.isfinite(x).all(axis=1)
        # Sums of products modulo 2^64.
        sums[rows] = np.ascontiguousarray(x).view(np.uint32).astype(np.uint64) @ factors
        used = x[wanted[rows] & finite[rows]]
        least = min(least, float(used.min(initial=np.inf)))
        n_read = rows.stop
        if observer.stopping():
            raise interrupted()
    if n_read != n:
        raise DataError(f"{vectors.shown} is damaged: it declares {n:,} rows, found {n_read:,}")
    if not (wanted & finite).any():
        raise DataError(f"{vectors.shown}: expected finite numbers; each vector of a picture has one that is not")
    if scaling == "sqrt-l2" and least < 0:
        raise ConfigError(
            f"--scaling sqrt-l2 takes square roots, and the embeddings in {vectors.shown} have numbers below 0, such "
            f"as {least:g}; use --scaling l2"
        )
    return Given(vectors, row_of, finite, sums, vectors.sha256(observer), by)


def _match(vectors: Vectors, manifest: Manifest, observer: Observer) -> IntArray:
    """Return for each row of the manifest the row of its vector, -1 without one; report what does not fit."""
    pictures = PicturesByName(manifest, vectors.table)
    row_of = np.full(len(manifest), -1, np.int64)
    without: list[int] = []
    ambiguous: list[tuple[int, list[int]]] = []
    for at, name in enumerate(vectors.names):
        found = pictures.find(name)
        if not found:
            without.append(at)
        elif len(found) > 1:
            ambiguous.append((at, found))
        elif row_of[found[0]] >= 0:
            raise _twice(vectors, int(row_of[found[0]]), at)
        else:
            row_of[found[0]] = at
    said = [*_ambiguity(vectors, manifest, ambiguous)]
    if not (row_of >= 0).any():
        first = f"found {printable(vectors.names[without[0]])!r}" if without else said[0]
        raise DataError(
            f"{vectors.shown} names none of the pictures found ({len(manifest):,}); expected names "
            f"relative to {printable(str(manifest.root))!r}, such as {printable(manifest.paths[0])!r}; {first}"
        )
    if without:
        names = _shown([vectors.names[at] for at in without[:_MOST_NAMED]], len(without))
        verb = "names" if len(without) == 1 else "name"
        said.insert(
            0, f"{count(len(without), 'row')} of {vectors.shown} {verb} a picture that is not among these: {names}"
        )
    lacking = np.flatnonzero(row_of < 0)
    if len(lacking):
        names = _shown([manifest.paths[row] for row in lacking[:_MOST_NAMED]], len(lacking))
        said.append(f"{vectors.shown} has no embedding of {count(len(lacking), 'picture')}: {names}")
    for message in said:
        observer.notice(message)
    return row_of


def _shown(first: list[str], n: int) -> str:
    more = f", and {n - len(first):,} more" if n > len(first) else ""
    return ", ".join(map(printable, first)) + more


def _ambiguity(vectors: Vectors, manifest: Manifest, ambiguous: list[tuple[int, list[int]]]) -> Iterator[str]:
    if ambiguous:
        at, rows = ambiguous[0]
        n, files = len(ambiguous), [printable(manifest.paths[row]) for row in rows[:2]]
        more = f" and {len(rows) - 2:,} more" if len(rows) > 2 else ""
        yield (
            f"{count(n, 'row')} of {vectors.shown} {'is' if n == 1 else 'are'} not used, because several files have "
            f"the name: {printable(vectors.names[at])!r} can be {', '.join(files)}{more}; write the folder too, as in "
            f"{files[0]}"
        )

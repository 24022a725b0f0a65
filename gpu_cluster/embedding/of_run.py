"""Finds the embeddings of a finished run again: in the store, or in the file in which they were given.

A run folder and a store enter, the embeddings leave, in the order of the run's assignments. No network is loaded, and
nothing is computed but the joining of features. This module must not know what becomes of the embeddings.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpu_cluster.backend import Backend, CpuBackend, JoinedRows, Rows
from gpu_cluster.bounded import UnfitError
from gpu_cluster.config import EARLIER_DECODING, EARLIER_ENGINE, GivenConfig, PixelsConfig
from gpu_cluster.embedding import efficientnet_lite, vgg16
from gpu_cluster.embedding.engines import ENGINES
from gpu_cluster.embedding.given import matched, opened_vectors
from gpu_cluster.embedding.kept import InShards
from gpu_cluster.errors import ConfigError, DataError
from gpu_cluster.events import Observer, interrupted
from gpu_cluster.files import printable, unescaped
from gpu_cluster.images import colour
from gpu_cluster.manifest import FileFacts, Manifest
from gpu_cluster.run_folder import RECORD, FinishedRun, explained
from gpu_cluster.store.embeddings import EmbeddingShards, row_name
from gpu_cluster.store.shards import folder_name, folders, read_key
from gpu_cluster.store.store import default_root
from gpu_cluster.words import count

_DOING = "read the embeddings of"

# Stands for a version that the record of an earlier version does not hold.
_ANY = "*"


@contextmanager
def embeddings_of_run(
    run: FinishedRun,
    observer: Observer,
    *,
    cache: Path | None = None,
    given: GivenConfig | None = None,
    scratch: Path | None = None,
) -> Iterator[Rows]:
    """Find the embeddings of a finished run, and give the block its rows (n, d), which are read when asked for.

    A row belongs to the picture in the same row of `run.pictures`, and has the numbers that the run clustered: parts of
    joined features with their weights. The rows are those of a `CpuBackend`, so their arrays are NumPy's.

    Parameters
    ----------
    observer
        Is asked whether to stop, and told of damaged shards.
    cache
        The folder of the store; by default the one that the record names, or that of the user.
    given
        Where the embeddings of a run with `--embeddings` are now; by default where they were.
    scratch
        A folder for a copy of given embeddings that are too large to be held and lie in a Parquet file; the copy is
        gone when the block ends. Without it, they are held.

    Raises
    ------
    ConfigError
        When the run was made with embeddings that were given, and it is not known where they are.
    DataError
        When the store lacks some of them; the message says how many, and how to compute them. When the file in which
        they were given is not the same any more, or the folder is not that of a finished run.
    StoreError
        When the store cannot be read.
    InterruptedJobError
        When the observer asked to stop.

    Memory: 100 bytes for each picture, and a shard while it is looked through; while blocks are read, two windows of
    128 MiB for each part of the features.
    """
    with explained(run.folder, _DOING):
        was_given = run.record.get("embeddings") is not None
    if was_given:
        with _given(run, observer, given or _recorded(run), scratch) as rows:
            yield rows
    else:
        yield _stored(run, observer, cache)


def _stored(run: FinishedRun, observer: Observer, cache: Path | None) -> Rows:
    """Return the rows of a run whose embeddings a network computed, as the store holds them."""
    with explained(run.folder, _DOING):
        names, recipes = _row_names(run), _recipes(run.record)
        named = run.record["config"]["store"]["cache"]
    root = cache or (default_root() if named is None else Path(named))
    contents = {name: number for number, name in enumerate(dict.fromkeys(names))}
    content_of = np.fromiter((contents[name] for name in names), np.int64, len(names))
    backend = CpuBackend()
    found = [_found(recipe, root, list(contents), backend, observer) for recipe in recipes]
    missing = ~np.logical_and.reduce([known for _kept, known in found])[content_of]
    if missing.any():
        raise _lacking(run, root, int(missing.sum()), len(names))
    parts = [kept.rows(content_of) for kept, _known in found]
    return parts[0] if len(parts) == 1 else JoinedRows(parts, [recipe.weight for recipe in recipes], backend)


def _row_names(run: FinishedRun) -> list[str]:
    """Return for each picture of a run the name of the row of the store that has its embedding."""
    pictures, manifest, kinds = run.pictures, run.manifest, run.kinds
    good = (manifest["status"] != "bad").to_numpy()
    if list(manifest["path"][good]) != list(pictures["path"]):
        raise UnfitError("expected the same pictures in manifest.parquet and assignments.parquet, in the same order")
    hashes = list(pictures["content_hash"])
    if not all(isinstance(one, str) for one in hashes):
        raise UnfitError("expected a content hash for each picture in assignments.parquet")
    if "profile" not in kinds:
        # A version that did nothing to a picture beyond decoding it.
        return hashes
    profiles = _embed(run.record)["decoding"] != EARLIER_DECODING
    told = [
        tuple(value if isinstance(value, str) else None for value in kind)
        for kind in zip(kinds["format"][good], kinds["profile"][good], strict=True)
    ]
    done = {
        kind: colour.conversion_of(FileFacts(format=kind[0], profile=kind[1]), profiles=profiles) for kind in set(told)
    }
    return [row_name(content, done[kind]) for content, kind in zip(hashes, told, strict=True)]


@dataclass(frozen=True)
class _Recipe:
    """How one part of the embeddings of a run was made.

    Attributes
    ----------
    key : that of its folder in the store; the engine may have `*` in place of a version
    n_features : how many numbers it gives
    weight : of the part among the others
    """

    key: Mapping[str, Any]
    n_features: int
    weight: float


def _embed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of embedding of a run; earlier versions did not have all of them."""
    return {"decoding": EARLIER_DECODING, **record["config"]["embed"]}


def _recipes(record: Mapping[str, Any]) -> list[_Recipe]:
    """Return the recipe of each part of the embeddings, as the record of a run tells it."""
    embed, engine = _embed(record), ENGINES[record.get("engine", EARLIER_ENGINE)]
    same = {
        "fit": embed["fit"],
        "resize": embed["resize"],
        "decode": embed["decoding"],
        "engine": engine.identity_of({"pillow": _ANY, **record["versions"]}, record["device"]),
        "precision": record["precision"],
    }
    recipes = []
    for part in record.get("features") or [_vgg16(record, embed)]:
        facts = {name: value for name, value in part.items() if name != "weight"}
        key = {**facts, **same, "image_size": _side(facts, embed)}
        recipes.append(_Recipe(key, int(part["n_features"]), float(part["weight"])))
    return recipes


def _vgg16(record: Mapping[str, Any], embed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts about the only part of a run of a version that had only VGG16."""
    pooling = embed["pooling"]
    n_features = vgg16.count_features(pooling, PixelsConfig(image_size=embed["image_size"]).side)
    weights = record["weights"]["sha256"]
    return {"backbone": "VGG16", "weights": weights, "pooling": pooling, "n_features": n_features, "weight": 1.0}


def _side(part: Mapping[str, Any], embed: Mapping[str, Any]) -> int:
    """Return the side of the square of pixels that a part of the features was computed from."""
    if embed["image_size"] is None and part.get("backbone") == "EfficientNet-Lite2":
        return efficientnet_lite.SIDE
    return PixelsConfig(image_size=embed["image_size"]).side


def _found(
    recipe: _Recipe, root: Path, wanted: Sequence[str], backend: Backend, observer: Observer
) -> tuple[InShards, npt.NDArray[np.bool_]]:
    """Return where the store has the rows `wanted` of one recipe, and for each of them whether it has it."""
    kept = InShards(len(wanted), recipe.n_features, backend, None, observer)
    known = np.zeros(len(wanted), dtype=bool)
    shards = _shards(recipe, root, wanted, observer)
    for shard in () if shards is None else shards.find(wanted):
        kept.found(shard)
        known[shard.at] = [reason is None for reason in shard.reasons]
        if observer.stopping():
            raise interrupted()
    return kept, known


def _shards(recipe: _Recipe, root: Path, wanted: Sequence[str], observer: Observer) -> EmbeddingShards | None:
    """Return the shards of a recipe; those with most of what is wanted if its engine is not known to the last version.

    Nothing is made if the store has none: another folder may have been meant.
    """
    place = root / "embeddings"
    if _ANY not in recipe.key["engine"]:
        folder = place / folder_name(recipe.key)
        return EmbeddingShards(folder, recipe.key, observer) if folder.is_dir() else None
    found = []
    for folder in folders(place):
        theirs = read_key(folder)
        engine = str(theirs.get("engine"))
        if {**theirs, "engine": recipe.key["engine"]} == recipe.key and fnmatchcase(engine, recipe.key["engine"]):
            found.append(EmbeddingShards(folder, theirs, observer))
    return max(found, key=lambda shards: shards.count(wanted), default=None)


def _lacking(run: FinishedRun, root: Path, n_missing: int, n: int) -> DataError:
    record = run.record
    why = ", because the run was made with --no-cache" if record["config"]["store"]["no_cache"] else ""
    folder = ["FOLDER"] if run.is_portable else []
    command = ["gpu-cluster", "run", *folder, "--config", str(run.folder / RECORD), "--cache", str(root)]
    return DataError(
        f"the store {printable(str(root))!r} lacks the embeddings of {n_missing:,} of the "
        f"{count(n, 'picture')} of {printable(str(run.folder))!r}{why}: name the store that has them with --cache DIR, "
        f"or compute them with `{printable(shlex.join(command))}`, and export the run that this makes"
    )


def _recorded(run: FinishedRun) -> GivenConfig:
    """Return where the embeddings were that a run was given."""
    shown = printable(str(run.folder))
    with explained(run.folder, _DOING):
        recorded = run.record["config"]["given"]
        if recorded["embeddings_in_memory"]:
            raise DataError(
                f"the embeddings of {shown!r} were an array in memory, which its folder does not hold: write it with "
                "numpy.save, run the clustering again with --embeddings FILE, and export that run"
            )
        if recorded["embeddings"] is None:
            raise ConfigError(
                f"{shown!r} was made with embeddings that were given, and does not say in which file, because it is "
                "portable: give it with --embeddings FILE"
            )
        names = recorded["embedding_names"]
        return GivenConfig(embeddings=Path(recorded["embeddings"]), embedding_names=None if names is None else names)


@contextmanager
def _given(run: FinishedRun, observer: Observer, config: GivenConfig, scratch: Path | None) -> Iterator[Rows]:
    """Give the block the rows of a run whose embeddings were given, as their file holds them."""
    with explained(run.folder, _DOING):
        manifest, recorded = _manifest(run), dict(run.record["embeddings"])
    with opened_vectors(config) as vectors:
        assert vectors is not None, "the config names a file"
        found = matched(vectors, manifest, _Quiet(observer), scaling="l2")
        if found.sha256 != recorded["sha256"]:
            raise DataError(
                f"{vectors.shown} is not the file that the run {printable(str(run.folder))!r} was given: expected the "
                f"sha256 {recorded['sha256']}, found {found.sha256}; name the file as it was then with --embeddings "
                "FILE, or run the clustering again with this one"
            )
        embeddings = found.embeddings(manifest, CpuBackend(), _Quiet(observer), scratch=scratch)
        if [manifest.paths[row] for row in embeddings.rows] != list(map(unescaped, run.pictures["path"])):
            raise DataError(
                f"{vectors.shown} and its names give other pictures than those of {printable(str(run.folder))!r}; name "
                "the list of names of that run with --embedding-names FILE"
            )
        yield embeddings.x


def _manifest(run: FinishedRun) -> Manifest:
    """Return what `manifest.parquet` says of the files, as far as names are matched to it."""
    table = run.manifest
    paths, hashes = list(map(unescaped, table["path"])), list(table["content_hash"])
    bad: dict[int, str] = {}
    duplicates: dict[int, int] = {}
    first: dict[str, int] = {}
    for row, status in enumerate(table["status"]):
        if status == "bad":
            bad[row] = str(table["reason"].iloc[row])
        elif first.setdefault(hashes[row], row) != row:
            duplicates[row] = first[hashes[row]]
    # Names in the list may be absolute. Where the run does not say where the pictures were, they are relative.
    recorded = run.record["root"]
    root = Path(os.sep) if recorded is None else Path(recorded)
    return Manifest(root, paths, bad=bad, duplicates=duplicates)


class _Quiet(Observer):
    """Asks another observer whether to stop, and tells it nothing: what is to be said, the run has said."""

    def __init__(self, other: Observer) -> None:
        self._other = other

    def stopping(self) -> bool:
        return self._other.stopping()

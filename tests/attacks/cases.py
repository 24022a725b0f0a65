"""The cases of the fuzzer: a number and a seed give the same case on every machine with the same libraries.

A case is one mutated file, and what it is for: the target says what is done with it. `tests/attacks/cases` keeps those
that ever failed, as `TARGET/NAME`, in which the name is `WHAT FAILED-NAME OF THE FILE`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from tests.attacks import mutations, seeds

# A case that is kept has at most this many bytes.
MOST_BYTES = 20_000
KEPT = Path(__file__).with_name("cases")

# Of 40 cases in a row: most are pictures, the quickest; one is a whole run folder, the slowest.
_TURNS = ("pictures",) * 28 + ("config",) * 4 + ("labels",) * 3 + ("shards",) * 2 + ("weights",) * 2 + ("runs",)

# The files of a run folder that `report` and `predict` read, and those of a store.
RUN_FILES = (
    *("run.json", "metrics.json", "sweep.csv", "near_duplicates.csv", "manifest.parquet", "assignments.parquet"),
    *("thumbnails.parquet", "model/model.json", "model/model.json", "model/arrays.npz", "model/arrays.npz"),
)
STORE_FILES = (
    "embeddings.parquet",
    "named anew embeddings.parquet",
    "scans.parquet",
    "named anew scans.parquet",
    "_key.json",
)


@dataclass(frozen=True)
class Case:
    """A mutated file: what it is for, the name of the file that it is in place of, and its bytes."""

    target: str
    name: str
    content: bytes


def target_of(number: int) -> str:
    """Return the target of a case."""
    return _TURNS[number % len(_TURNS)]


def make(number: int, seed: int, template: Path, *, without: frozenset[int] = frozenset()) -> Case:
    """Return a case; `without` leaves out some of its mutations, by their positions."""
    random = np.random.default_rng([seed, number])
    target = target_of(number)
    names = _names(target)
    name = names[int(random.integers(len(names)))]
    drawn = mutations.draw(name, random)
    kept = [mutation for at, mutation in enumerate(drawn) if at not in without]
    return Case(target, name, mutations.apply(kept, _original(target, name, template)))


def n_mutations(number: int, seed: int) -> int:
    """Return how many mutations a case has."""
    random = np.random.default_rng([seed, number])
    names = _names(target_of(number))
    return len(mutations.draw(names[int(random.integers(len(names)))], random))


def whole(target: str, template: Path) -> Case:
    """Return a case without a mutation, which is good."""
    name = _names(target)[-1]
    return Case(target, name, _original(target, name, template))


def kept() -> Iterator[Path]:
    """Yield the files of the cases that are kept, in order."""
    yield from sorted(path for path in KEPT.glob("*/*") if path.is_file())


def load(file: Path) -> Case:
    """Return a case that is kept."""
    name = file.name.partition("-")[2].replace("@", "/")
    return Case(file.parent.name, name, file.read_bytes())


def keep(case: Case, what: str) -> Path:
    """Write a case among those that are kept, and return its file."""
    folder = KEPT / case.target
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{what.replace('-', ' ')}-{case.name.replace('/', '@')}"
    file.write_bytes(case.content)
    return file


def _names(target: str) -> tuple[str, ...]:
    return {
        "pictures": seeds.picture_names(),
        "weights": tuple(seeds.WEIGHTS),
        "labels": tuple(seeds.LABELS),
        "config": ("options.toml", "run.json"),
        "shards": STORE_FILES,
        "runs": RUN_FILES,
    }[target]


@cache
def _original(target: str, name: str, template: Path) -> bytes:
    match target:
        case "pictures":
            return seeds.picture(name)
        case "weights":
            return seeds.WEIGHTS[name]()
        case "labels":
            return seeds.LABELS[name]()
        case "config" if name == "options.toml":
            return seeds.TOML
        case "shards":
            return stored_file(template / "store", name).read_bytes()
        case _:
            return (template / "run" / name).read_bytes()


def stored_file(store: Path, name: str) -> Path:
    """Return the file of a store that a case of this name takes the place of."""
    if name == "_key.json":
        return next((store / "embeddings").glob("*/_key.json"))
    kind = name.removeprefix("named anew ").removesuffix(".parquet")
    return next((store / kind).glob("*/shard-*.parquet"))

"""Runs jobs on pictures of a server that misbehaves at random, and checks what they leave.

    .venv/bin/python -m scripts.fuzz_remote [--runs 100] [--first 0] [--seed 0]

Each run reads the same small pictures from a web folder, a bucket, or tar files in one of them, while faults that are
drawn for it go wrong with pages, pictures and tar files. It must end with code 0 or 3 and without a traceback; every
file must be counted as ok, bad, duplicate or passed over, with a row and a reason for each bad one. Then the faults are
gone, and the next run with the same store must give the assignments that the folder gives. A run that fails these
checks is printed, and the code is 1.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from gpu_cluster.images import remote
from tests.helpers import TINY_OPTIONS, Finished, called
from tests.servers import Fault, FaultName, FaultyServer, faulty_server, in_environment
from tests.tars import png, write_tar

N_PICTURES = 12
# In the order of the names; those that begin with a small letter come last, and go into the second tar file.
PICTURES = {
    "Broken.png": png(1)[:40],
    "Copy.png": png(0),
    "Notes.txt": b"notes",
    **{f"{'Roses' if number < 6 else 'tulips'}/{number:02d}.png": png(number) for number in range(N_PICTURES)},
}
KINDS = ("web", "s3", "tar on the web", "tar on s3")
QUICK = (*TINY_OPTIONS, "--thumbnails", "1")
# Short, so that a campaign takes minutes. A picture without a fault must be served in the time of one attempt.
HASTY = remote.Patience(tries=3, first_pause_s=0.01, longest_pause_s=0.02, attempt_s=1.5)
LATE_S, BYTE_S = 2.0, 0.2
STATUSES = (400, 403, 404, 408, 410, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Outcome:
    """What became of a run: its kind, the faults by path, what was wrong, and what its bad rows say."""

    kind: str
    faults: dict[str, str]
    wrong: list[str]
    reasons: list[str]


@contextmanager
def server() -> Iterator[FaultyServer]:
    """Give the server of a campaign; jobs are less patient while it is there."""
    import fsspec

    with faulty_server() as found, in_environment(found.environment):
        systems = fsspec.get_filesystem_class("s3")
        systems.clear_instance_cache()
        found.reset({"box/warm": b"up"})
        # The first request of s3fs takes longer than one attempt may.
        remote.look("s3://box/warm")
        before, remote.patience = remote.patience, HASTY
        try:
            yield found
        finally:
            remote.patience = before
            systems.clear_instance_cache()


def reference(folder: Path) -> str:
    """Return the assignments that the same pictures give as files."""
    for name, content in PICTURES.items():
        file = folder / "pictures" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    done = called("run", folder / "pictures", *QUICK, "--cache", folder / "store", out=folder / "run")
    assert done.code == 0, done.err
    return _assignments(done, "")


def try_one(number: int, seed: int, served: FaultyServer, folder: Path, expected: str) -> Outcome:
    """Run a job while the faults of this number happen, and once more without them; return what was found."""
    chance = random.Random(f"{seed} {number}")
    kind = chance.choice(KINDS)
    start = served.address if "web" in kind else "s3://"
    place = f"{start}box/"
    served.reset(_files(kind, folder))
    places = [f"{place}1.tar", f"{place}2.tar"] if "tar" in kind else [place]
    faults = _faults(chance, kind, list(served.files))
    served.faults |= faults
    described = {path: f"{one.name} {one.value:g} times={one.times} after={one.after}" for path, one in faults.items()}
    options = (*QUICK, "--cache", folder / "store")
    done = called("run", *places, *options, out=folder / "run")
    wrong = _wrong(done, served, kind)
    reasons = [] if wrong else [str(reason) for reason in done.table("bad_files.csv")["reason"]]
    served.faults.clear()
    again = called("run", *places, *options, out=folder / "again")
    if again.code != 0 or _assignments(again, place) != expected:
        wrong.append(f"without faults: code {again.code}, other assignments than those of the folder; {again.err}")
    return Outcome(kind, described, wrong, reasons)


def _files(kind: str, folder: Path) -> dict[str, bytes]:
    if "tar" not in kind:
        return {f"box/{name}": content for name, content in PICTURES.items()}
    first = [(name, content) for name, content in PICTURES.items() if not name.startswith("tulips")]
    second = [(name, content) for name, content in PICTURES.items() if name.startswith("tulips")]
    return {
        f"box/{number}.tar": write_tar(folder / f"{number}.tar", members).read_bytes()
        for number, members in ((1, first), (2, second))
    }


def _faults(chance: random.Random, kind: str, paths: Sequence[str]) -> dict[str, Fault]:
    """Draw the faults of a run. With some files, only what passes goes wrong, so that there is something to group."""
    found = {}
    for path in paths:
        if "tulips" not in path and "2.tar" not in path and chance.random() < 0.7:
            found[path] = _fault(chance)
        elif chance.random() < 0.3:
            name: FaultName = chance.choice(("status", "drop"))
            found[path] = Fault(name, chance.choice((500, 503, 429)), times=chance.randint(1, HASTY.tries - 1))
    pages = {"web": ["box/Roses/"], "s3": []}.get(kind, [])
    found |= {page: _fault(chance) for page in pages if chance.random() < 0.3}
    # What lists the place itself may fail at first; if it fails for good there is no job.
    listing = {"web": "box/", "s3": "box"}.get(kind)
    if listing is not None and chance.random() < 0.3:
        found[listing] = Fault("status", chance.choice((500, 503, 429)), times=chance.randint(1, 2))
    return found


def _fault(chance: random.Random) -> Fault:
    name: FaultName = chance.choice(get_args(FaultName))
    value = {
        "status": chance.choice(STATUSES),
        "late": LATE_S,
        "trickle": BYTE_S,
        "too long": chance.randint(1, 5000),
        "too short": chance.randint(1, 1000),
        "size listed": chance.randint(1, 5000),
    }.get(name, 0)
    if name == "other content":
        # Its server says that it is the content as before, which no job can know; so it was that one for the scan.
        return Fault(name, value, times=None, after=1)
    return Fault(name, value, times=chance.choice((None, 1, 2, 3)), after=chance.choice((0, 0, 0, 1)))


def _wrong(done: Finished, served: FaultyServer, kind: str) -> list[str]:
    if done.code not in (0, 3) or "Traceback" in done.out + done.err:
        return [f"code {done.code}: {done.out} {done.err}"]
    wrong = []
    counts = done.json("run.json")["files"]
    if counts["found"] != counts["ok"] + counts["bad"] + counts["duplicate"] + counts["passed_over"]:
        wrong.append(f"the files do not add up: {counts}")
    bad = done.table("bad_files.csv")
    if len(bad) != counts["bad"] or bad["reason"].isna().any():
        wrong.append(f"{counts['bad']} bad files, and these rows: {bad.to_dict('records')}")
    if kind == "s3" and counts["found"] != len(served.files):
        wrong.append(f"{len(served.files)} objects, and found are {counts}")
    return wrong


def _assignments(done: Finished, place: str) -> str:
    table = done.folder / "assignments.csv"
    text = table.read_text(encoding="utf-8") if table.exists() else ""
    for start in (f"{place}1.tar::", f"{place}2.tar::", place):
        text = text.replace(start, "") if start else text
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="number of the first run")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    start = time.monotonic()
    kinds: Counter[str] = Counter()
    names: Counter[str] = Counter()
    n_bad = n_failed = 0
    with tempfile.TemporaryDirectory() as folder, server() as served:
        expected = reference(Path(folder))
        for number in range(given.first, given.first + given.runs):
            with tempfile.TemporaryDirectory() as own:
                found = try_one(number, given.seed, served, Path(own), expected)
            kinds[found.kind] += 1
            names.update(text.partition(" times=")[0].rpartition(" ")[0] for text in found.faults.values())
            n_bad += len(found.reasons)
            if found.wrong:
                n_failed += 1
                print(f"run {number} ({found.kind}; {found.faults}) FAILED: {found.wrong}", flush=True)
    took = f"{time.monotonic() - start:.0f} s"
    print(f"{given.runs} runs from {given.first} on, seed {given.seed}: {n_failed} failed; {took}")
    print("runs by kind: " + ", ".join(f"{name} {n}" for name, n in sorted(kinds.items())))
    print("faults: " + ", ".join(f"{name} {n}" for name, n in sorted(names.items())))
    print(f"bad rows with a reason: {n_bad}")
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Checks that jobs which start together with one --out all get a folder, lose nothing and touch nothing of others.

`names` lets processes claim one name as jobs do, without a job in them. `jobs` starts real jobs: in rounds of new
folders, of an earlier run that they move, and of one that they replace. Both print what went wrong, one line for each,
and at last a summary; the exit code is 1 if anything did.

    .venv/bin/python -m scripts.check_claims names [--processes 8] [--claims 10000] [PLACE]
    .venv/bin/python -m scripts.check_claims jobs [--rounds 50] [--jobs 8] [--unreadable] [--seconds S] [PLACE]
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from gpu_cluster.config import shipped_data
from gpu_cluster.errors import GpuClusterError
from gpu_cluster.inventory import find_earlier_run, first_other, mark
from gpu_cluster.staging import staged

# Claims of one process before all of them meet in a new folder.
_TOGETHER = 10


@dataclass(frozen=True)
class Claim:
    """A claim that came to its end; `replacing` if it may have deleted an earlier run."""

    token: str
    replacing: bool


def plant(place: Path) -> dict[str, str | None]:
    """Put into a folder what no claim may touch; return its content."""
    place.mkdir(parents=True)
    for name in (".run.0a1b2c3d", ".run.old.0a1b2c3d"):
        (place / name / "plots").mkdir(parents=True)
        for file in ("run.json", "bad_files.csv", "plots/elbow.png"):
            (place / name / file).write_text("somebody else's")
    unreadable = place / ".run.deadbeef"
    unreadable.mkdir()
    unreadable.chmod(0)
    # A killed job's folder, in which somebody has put a file.
    theirs = place / ".run.12345678"
    theirs.mkdir()
    mark(theirs, "run")
    (theirs / "thesis.txt").write_text("mine")
    return planted(place)


def planted(place: Path) -> dict[str, str | None]:
    """Return the content of what `plant` made."""
    return {
        str(path): path.read_text() if path.is_file() else None
        for name in (".run.0a1b2c3d", ".run.old.0a1b2c3d", ".run.deadbeef", ".run.12345678")
        for path in sorted((place / name, *(place / name).rglob("*")))
        if path.exists()
    }


def _dead(place: Path) -> None:
    """Leave what a killed job leaves; the first claim clears it away."""
    dead = place / ".run.dead0001"
    dead.mkdir()
    mark(dead, "run")
    (dead / "events.jsonl").write_text("killed")


def _claim(out: Path, token: str, chance: random.Random) -> Claim | None:
    """Claim the name once; None if the job failed on purpose."""
    overwrite, fails = "o" in out.parent.name and chance.random() < 0.5, chance.random() < 0.1
    try:
        with staged(out, overwrite=overwrite) as stage:
            for name in ("run.json", "bad_files.csv"):
                (stage.path / name).write_text(token)
            if chance.random() < 0.3:
                time.sleep(0.001)
            names = sorted(path.name for path in stage.path.iterdir())
            if names != ["bad_files.csv", "inventory.json", "run.json"]:
                raise AssertionError(f"while {token} filled its folder, this was in it: {names}")
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        return None
    return Claim(token, overwrite)


def _work(number: int, outs: list[Path], barrier: Barrier, done: Any) -> None:
    chance = random.Random(number)
    claims, failures = [], []
    for out in outs:
        barrier.wait(300)
        for n in range(_TOGETHER):
            try:
                claims.append(_claim(out, f"{out.parent.name}-{number}-{n}", chance))
            except (GpuClusterError, OSError, AssertionError) as error:
                failures.append(f"{type(error).__name__}: {error}")
    done.put((claims, failures))


def _wrong(place: Path, claims: list[Claim], before: dict[str, str | None]) -> list[str]:
    """Return what is wrong in a folder after all claims of the name `run` in it."""
    wrong = []
    if planted(place) != before:
        wrong.append("something of somebody else was touched")
    visible = [path for path in place.iterdir() if not path.name.startswith(".")]
    hidden = {path.name for path in place.iterdir() if path.name.startswith(".")}
    if left := hidden - {Path(path).relative_to(place).parts[0] for path in before}:
        wrong.append(f"left behind: {sorted(left)}")
    for folder in visible:
        inventory = find_earlier_run(folder)
        if inventory is None or inventory.files is None or first_other(folder, inventory) is not None:
            wrong.append(f"not whole: {folder.name}")
    found = Counter((folder / "run.json").read_text() for folder in visible)
    lost = {claim.token for claim in claims} - found.keys()
    if len(lost) > sum(claim.replacing for claim in claims):
        wrong.append(f"lost: {sorted(lost)}")
    # Real jobs have no tokens, and two may take the same time to the millisecond and so have the same record.
    if twice := [token for token, n in found.items() if claims and n > 1]:
        wrong.append(f"found twice: {twice}")
    return [f"{place.name}: {line}" for line in wrong]


def check_names(place: Path, n_processes: int, n_claims: int) -> int:
    """Let processes claim names; return the number of things that went wrong."""
    # In every second folder, half of the claims are to replace an earlier run; in the others, nothing may be lost.
    rounds = [place / f"{number}{'o' if number % 2 else ''}" for number in range(n_claims // (n_processes * _TOGETHER))]
    before = {folder: plant(folder) for folder in rounds}
    for folder in rounds:
        _dead(folder)
    context = multiprocessing.get_context("fork")
    barrier, done = context.Barrier(n_processes), context.SimpleQueue()
    outs = [folder / "run" for folder in rounds]
    workers = [context.Process(target=_work, args=(number, outs, barrier, done)) for number in range(n_processes)]
    start = time.monotonic()
    for worker in workers:
        worker.start()
    results = [done.get() for _ in workers]
    for worker in workers:
        worker.join()
    claims = [claim for theirs, _ in results for claim in theirs]
    wrong = [failure for _, failures in results for failure in failures]
    for folder in rounds:
        theirs = [claim for claim in claims if claim is not None and claim.token.startswith(f"{folder.name}-")]
        wrong += _wrong(folder, theirs, before[folder])
    summary = {
        "processes": n_processes,
        "claims": len(claims),
        "failed on purpose": claims.count(None),
        "wrong": len(wrong),
        "seconds": round(time.monotonic() - start, 1),
    }
    print(*wrong, json.dumps(summary), sep="\n")
    return len(wrong)


_OPTIONS = ("--quiet", "--image-size", "32", "--k", "2", "--k-range", "2:2", "--n-init", "2")


@dataclass(frozen=True)
class Jobs:
    """Jobs that start together; with a file that cannot be decoded, they take a tenth of the time and end with 3."""

    command: Sequence[str | Path]
    n: int
    code: int


def check_jobs(place: Path, n_rounds: int, n_jobs: int, most_s: float, *, readable: bool) -> int:
    """Start real jobs together, in rounds; return the number of things that went wrong."""
    pictures = place / "pictures"
    pictures.mkdir(parents=True)
    for file in sorted((shipped_data() / "flowers").glob("*.png"))[:6] if readable else []:
        shutil.copy(file, pictures)
    for number in range(0 if readable else 3):
        (pictures / f"{number}.png").write_text(f"no picture {number}")
    command = (Path(sys.executable).with_name("gpu-cluster"), "run", pictures, *_OPTIONS, "--cache", place / "store")
    jobs = Jobs(command, n_jobs, 0 if readable else 3)
    # The store is warm after this, and its folder is the earlier run of other rounds.
    first = subprocess.run([*command, "--out", place / "earlier"], capture_output=True, text=True, check=False)
    if first.returncode != jobs.code:
        sys.exit(first.stderr)
    wrong: list[str] = []
    start, done = time.monotonic(), 0
    while done < n_rounds and time.monotonic() - start < most_s:
        earlier = place / "earlier" if done % 3 else None
        wrong += _round(place / str(done), jobs, earlier=earlier, overwrite=done % 3 == 2)
        done += 1
    summary = {
        "rounds": done,
        "jobs": done * n_jobs,
        "wrong": len(wrong),
        "seconds": round(time.monotonic() - start, 1),
    }
    print(*wrong, json.dumps(summary), sep="\n")
    return len(wrong)


def _round(folder: Path, jobs: Jobs, *, earlier: Path | None, overwrite: bool) -> list[str]:
    """Start jobs together with one name; return what went wrong."""
    before = plant(folder)
    _dead(folder)
    if earlier is not None:
        shutil.copytree(earlier, folder / "run")
    given = [*jobs.command, "--out", folder / "run", *(["--overwrite"] if overwrite else [])]
    started = [
        subprocess.Popen(given, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(jobs.n)
    ]
    ends = [(job.communicate()[1], job.returncode) for job in started]
    wrong = [f"{folder.name}: exit code {code}: {told.strip()}" for told, code in ends if code != jobs.code]
    wrong += _wrong(folder, [], before)
    n_found = len([path for path in folder.iterdir() if not path.name.startswith(".")])
    # A job with --overwrite deletes one earlier run: the first one, or that of a job that ended before it began.
    n_expected = range(1, jobs.n + 1) if overwrite else [jobs.n + (earlier is not None)]
    if n_found not in n_expected:
        wrong.append(f"{folder.name}: expected {n_expected} run folders, found {n_found}")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    names = kinds.add_parser("names", help="claim names, without jobs")
    names.add_argument("--processes", type=int, default=8, help="processes at the same time (default: 8)")
    names.add_argument("--claims", type=int, default=10_000, help="claims of all of them together (default: 10000)")
    jobs = kinds.add_parser("jobs", help="start real jobs")
    jobs.add_argument("--rounds", type=int, default=50, help="rounds (default: 50)")
    jobs.add_argument("--jobs", type=int, default=8, help="jobs that start together (default: 8)")
    jobs.add_argument(
        "--unreadable", action="store_true", help="with a file that cannot be decoded, in a tenth of the time"
    )
    jobs.add_argument("--seconds", type=float, default=math.inf, help="begin no round after so many seconds")
    for kind in (names, jobs):
        kind.add_argument("place", nargs="?", type=Path, help="a new folder to work in, which is kept")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = given.place or Path(temporary) / "place"
        if given.kind == "names":
            n_wrong = check_names(place, given.processes, given.claims)
        else:
            n_wrong = check_jobs(place, given.rounds, given.jobs, given.seconds, readable=not given.unreadable)
    sys.exit(n_wrong > 0)


if __name__ == "__main__":
    main()

"""The fuzzer: mutates small real files, and tries what a job does with them, in processes that may die.

`scripts/fuzz --cases 10000 --seed 0` runs a campaign and prints every case that failed; `--keep` writes those, made
smaller, into `tests/attacks/cases`. A case fails if its process ends by a signal or takes longer than 20 seconds, if an
error is not one of gpu-cluster's own, if the memory grows by far more than a picture needs, or if a row is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from tests.attacks import cases
from tests.forks import run_program

MAX_SECONDS = 20
# TensorFlow is loaded in this time.
_START_S = 120
WORKER = ["-m", "tests.attacks.worker"]
_GROUP = {"pictures": 56, "runs": 1}


@dataclass(frozen=True)
class Failure:
    """A case that failed, by its number or its file, and what was wrong."""

    case: int | Path
    wrong: str


class _Worker:
    """A process that tries cases; it is started when it is needed, and again after it has died."""

    def __init__(self, template: Path, folder: Path) -> None:
        self._given = (template, folder)
        self._log = folder.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None
        self._n_started = 0
        self._ready_for: set[str] = set()

    def ask(self, asked: dict[str, Any], timeout_s: float) -> list[str | None] | str:
        """Return what is wrong with each case of a group; or, if the process has died or is too slow, how, in words."""
        target = asked["target"]
        if target not in self._ready_for:
            ready = self._answer({"prepare": target}, _START_S)
            if ready != b"ready\n":
                raise RuntimeError(
                    f"what is not mutated does not work ({ready!r}), see {self._log}: {_last_words(self._log)}"
                )
            self._ready_for.add(target)
        found = self._answer(asked, timeout_s)
        return found if isinstance(found, str) else json.loads(found)

    def _answer(self, asked: dict[str, Any], timeout_s: float) -> bytes | str:
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(asked).encode() + b"\n")
        process.stdin.flush()
        deadline = time.monotonic() + timeout_s
        answer = b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not answer.endswith(b"\n"):
                if not selector.select(max(0, deadline - time.monotonic())):
                    self.end()
                    return f"hang: more than {timeout_s:.0f} s"
                part = os.read(process.stdout.fileno(), 1 << 16)
                if not part:
                    code = process.wait()
                    self.end()
                    return f"signal {-code}" if code < 0 else f"exit {code}"
                answer += part
        return answer

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
        self._ready_for.clear()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            template, folder = self._given
            self._n_started += 1
            # Decoders say much of thousands of broken files; it is read only if a process does not even start.
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, *WORKER, template, folder / str(self._n_started)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    cwd=Path(__file__).parents[2],
                )
        return self._process


class Fuzzer:
    """Tries cases in several processes, which go on from one group of cases to the next until the end."""

    def __init__(
        self,
        folder: Path,
        n_workers: int,
        *,
        template: Path | None = None,
        tell: Callable[[Failure], object] = lambda failure: None,
    ) -> None:
        self._folder = folder
        self._tell = tell
        self.template = template or folder / "template"
        # To start one takes far longer than to try a case: TensorFlow is loaded there.
        self._workers = [_Worker(self.template, folder / f"worker-{number}") for number in range(n_workers)]

    def __enter__(self) -> Fuzzer:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()

    def prepare(self) -> None:
        """Make the run that cases are mutated from, in a process of its own, so that this one stays small."""
        if not (self.template / "run").is_dir():
            code = "import sys, pathlib; from tests.attacks import seeds; seeds.write_run(pathlib.Path(sys.argv[1]))"
            run_program(code, self.template, cwd=Path(__file__).parents[2]).check_returncode()

    def campaign(self, numbers: Sequence[int], seed: int) -> list[Failure]:
        """Try cases by their numbers."""
        groups = [
            {"target": target, "cases": group, "seed": seed, "without": []} for target, group in _grouped(numbers)
        ]
        return self._all(groups)

    def kept(self, files: Sequence[Path]) -> list[Failure]:
        """Try cases that are kept, each alone."""
        return self._all([{"target": file.parent.name, "files": [str(file)]} for file in files])

    def smallest(self, number: int, seed: int, wrong: str) -> cases.Case:
        """Return a failing case with as few of its mutations as fail in the same way."""
        worker = _Worker(self.template, self._folder / f"smallest-{number}")
        without: frozenset[int] = frozenset()
        kind = _kind(wrong)
        for at in range(cases.n_mutations(number, seed)):
            tried = without | {at}
            asked = {"target": cases.target_of(number), "cases": [number], "seed": seed, "without": sorted(tried)}
            found = worker.ask(asked, MAX_SECONDS)
            if _kind(found if isinstance(found, str) else found[0] or "") == kind:
                without = tried
        worker.end()
        return cases.make(number, seed, self.template, without=without)

    def _all(self, groups: Sequence[dict[str, Any]]) -> list[Failure]:
        waiting: SimpleQueue[dict[str, Any]] = SimpleQueue()
        for group in groups:
            waiting.put(group)

        def work(worker: _Worker) -> list[Failure]:
            found: list[Failure] = []
            while True:
                try:
                    group = waiting.get_nowait()
                except Empty:
                    return found
                for failure in _try(worker, group):
                    self._tell(failure)
                    found.append(failure)

        with ThreadPoolExecutor(len(self._workers)) as pool:
            failures = [one for found in pool.map(work, self._workers) for one in found]
        return sorted(failures, key=lambda one: str(one.case).rjust(12))


def _last_words(log: Path) -> str:
    return log.read_bytes()[-2000:].decode("utf-8", "replace")


def _try(worker: _Worker, group: dict[str, Any]) -> Iterator[Failure]:
    """Try a group; if one of its cases ends the process, try each of them alone."""
    names: list[Any] = group.get("files") or group["cases"]
    alone = len(names) == 1
    found = worker.ask(group, MAX_SECONDS)
    if alone:
        wrong = found if isinstance(found, str) else found[0]
        if wrong is not None:
            yield Failure(Path(names[0]) if "files" in group else names[0], wrong)
        return
    again = names if isinstance(found, str) else [one for one, wrong in zip(names, found, strict=True) if wrong]
    for one in again:
        yield from _try(worker, {**group, "cases": [one]})


def _grouped(numbers: Sequence[int]) -> Iterator[tuple[str, list[int]]]:
    """Split cases into groups of one target, with its name."""
    by_target: dict[str, list[int]] = {}
    for number in numbers:
        target = cases.target_of(number)
        group = by_target.setdefault(target, [])
        group.append(number)
        if len(group) == _GROUP.get(target, 8):
            yield target, by_target.pop(target)
    yield from by_target.items()


def _kind(wrong: str) -> str:
    """Return what kind of failure this is, in a few words."""
    return _without_numbers(wrong.partition(":")[0])


def _without_numbers(wrong: str) -> str:
    return " ".join("".join(one for one in wrong if not one.isdigit()).split())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=300, help="number of cases (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the cases (default: 0)")
    parser.add_argument("--case", type=int, action="append", help="try this case instead; may be given several times")
    parser.add_argument("--only", help="cases of one target only: pictures, config, labels, shards, weights or runs")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--keep", action="store_true", help="write the cases that fail into tests/attacks/cases")
    parser.add_argument(
        "--template", type=Path, help="folder in which the run that is mutated is kept between campaigns"
    )
    given = parser.parse_args()
    numbers = given.case or range(given.cases)
    chosen = [number for number in numbers if given.only in (None, cases.target_of(number))]

    def tell(failure: Failure) -> None:
        assert isinstance(failure.case, int)
        print(f"case {failure.case} ({cases.target_of(failure.case)}): {failure.wrong}", flush=True)

    with (
        tempfile.TemporaryDirectory() as folder,
        Fuzzer(Path(folder), given.workers, template=given.template, tell=tell) as fuzzer,
    ):
        fuzzer.prepare()
        start = time.monotonic()
        failures = fuzzer.campaign(chosen, given.seed)
        elapsed_s = time.monotonic() - start
        seen: set[tuple[str, str]] = set()
        for failure in failures if given.keep else ():
            assert isinstance(failure.case, int)
            # One of each kind is enough.
            alike = cases.target_of(failure.case), _without_numbers(failure.wrong)
            if alike in seen:
                continue
            seen.add(alike)
            smallest = fuzzer.smallest(failure.case, given.seed, failure.wrong)
            if len(smallest.content) > cases.MOST_BYTES:
                print(f"{smallest.name} of case {failure.case} has {len(smallest.content):,} bytes: too large to keep")
                continue
            file = cases.keep(smallest, f"{_kind(failure.wrong)} {given.seed}.{failure.case}")
            print(f"{file}: {len(smallest.content):,} bytes")
    print(
        f"{len(chosen):,} cases of seed {given.seed} in {elapsed_s:.0f} s ({len(chosen) / elapsed_s:.0f} a second): "
        f"{len(failures)} failed"
    )
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()

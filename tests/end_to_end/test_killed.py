"""A job that is killed, really, at any moment: it goes on from there, and nothing is computed twice."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import (
    FLOWERS,
    N_FLOWERS,
    SHARD,
    SHARDED,
    Stamp,
    called,
    everything,
    kept,
    stamps,
    started,
    wait_until,
)

# Kills in a run of the tests. A campaign of more of them takes minutes: GPU_CLUSTER_TEST_KILLS=20 scripts/test -m ''
# tests/end_to_end/test_killed.py
N_KILLS = int(os.environ.get("GPU_CLUSTER_TEST_KILLS", "3"))

# Every fifth picture of the sample set, for a job of seconds with several shards.
N_PICTURES = N_FLOWERS // 5

# Most of the time after the embedding is for what these leave out.
QUICK = ("--k", "8", "--k-range", "8:8", "--n-init", "2", "--thumbnails", "1")


@dataclass(frozen=True)
class Kill:
    """The store before a job was started and after it was killed."""

    before: dict[str, Stamp]
    after: dict[str, Stamp]
    n_kept: int
    verify: int


@dataclass(frozen=True)
class End:
    """What a run left that was let to its end, after none, one or several that were killed."""

    assignments: bytes
    n_computed: int
    n_missing: int
    kept: list[str]
    before: dict[str, Stamp]
    after: dict[str, Stamp]
    beside: list[str]


@dataclass(frozen=True)
class Story:
    """A job killed at several moments, and every end that it came to between them and after."""

    undisturbed: End
    kills: list[Kill]
    ends: list[End]


class _Job:
    """A job with a run folder to be, and a store."""

    def __init__(self, pictures: Path, out: Path, store: Path) -> None:
        self.out = out
        self.store = store
        # At 48 pixels a side much of the job is embedding; at 32 little of it.
        given = ("--features", "vgg16", "--image-size", "48", "--batch-size", "4", "--shard-size", "8", *QUICK)
        where = ("--cache", store, "--out", out, "--overwrite")
        self._command: tuple[str | Path, ...] = ("run", pictures, *given, *where)

    def run(self, *, kill_after_s: float | None) -> Kill | End:
        """Run it to its end, or kill it before."""
        before, n_missing = stamps(self.store), N_PICTURES - len(kept(self.store))
        with started(*self._command) as process:
            try:
                _, found = process.communicate(timeout=kill_after_s)
            except subprocess.TimeoutExpired:
                process.kill()
        if process.returncode == -signal.SIGKILL:
            # Before the store is made there is nothing to verify.
            self.store.mkdir(exist_ok=True)
            verified = called("cache", "verify", "--cache", self.store)
            return Kill(before, stamps(self.store), len(kept(self.store)), verified.code)
        assert process.returncode == 0, found
        return End(
            assignments=(self.out / "assignments.csv").read_bytes(),
            n_computed=json.loads((self.out / "run.json").read_text())["n_computed"],
            n_missing=n_missing,
            kept=kept(self.store),
            before=before,
            after=stamps(self.store),
            beside=everything(self.out.parent),
        )


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """A job on real pictures, killed several times, each time in another part of what it takes undisturbed.

    It has the first engine of the machine, as the store knows no engine.
    Each rerun has the same command and store, until the job has nothing left to embed: then it is let to its end, and
    the next kill is of a job with a new store.
    """
    folder = tmp_path_factory.mktemp("killed")
    pictures = folder / "pictures"
    pictures.mkdir()
    for file in sorted(FLOWERS.glob("*.png"))[::5]:
        (pictures / file.name).symlink_to(file)
    start = time.monotonic()
    undisturbed = _Job(pictures, folder / "undisturbed", folder / "store").run(kill_after_s=None)
    span = time.monotonic() - start
    assert isinstance(undisturbed, End)
    random = np.random.default_rng(27)
    stores = (folder / f"store-{number}" for number in itertools.count())
    kills: list[Kill] = []
    ends: list[End] = []
    job = _Job(pictures, folder / "out" / "run", next(stores))
    for moment in (random.permutation(N_KILLS) + random.random(N_KILLS)) / N_KILLS:
        share = float(moment)
        start = time.monotonic()
        while isinstance(found := job.run(kill_after_s=share * span), End):
            # Quicker than was measured: the same kill is tried on a new one, a little earlier in what this one took.
            ends.append(found)
            job = _Job(pictures, job.out, next(stores))
            share, span = 0.95 * share, min(span, time.monotonic() - start)
            start = time.monotonic()
        kills.append(found)
        if found.n_kept == N_PICTURES:
            last = job.run(kill_after_s=None)
            assert isinstance(last, End)
            ends.append(last)
            job = _Job(pictures, job.out, next(stores))
    last = job.run(kill_after_s=None)
    assert isinstance(last, End)
    return Story(undisturbed, kills, [*ends, last])


@pytest.mark.slow
def test_a_job_killed_at_any_moment_ends_with_the_assignments_of_one_left_alone(killed):
    assert len(killed.kills) == N_KILLS
    assert [end.assignments == killed.undisturbed.assignments for end in killed.ends] == [True] * len(killed.ends)


@pytest.mark.slow
def test_no_shard_is_written_again_after_a_kill(killed):
    steps = [*killed.kills, *killed.ends]
    assert [step.before.items() <= step.after.items() for step in steps] == [True] * len(steps)


@pytest.mark.slow
def test_every_picture_is_kept_once_however_often_the_job_was_killed(killed):
    assert {len(end.kept) for end in killed.ends} == {N_PICTURES}
    assert {len(set(end.kept)) for end in killed.ends} == {N_PICTURES}


@pytest.mark.slow
def test_a_job_that_goes_on_computes_what_was_missing(killed):
    assert [end.n_computed for end in killed.ends] == [end.n_missing for end in killed.ends]


@pytest.mark.slow
def test_the_store_verifies_after_each_kill(killed):
    assert [kill.verify for kill in killed.kills] == [0] * N_KILLS


@pytest.mark.slow
def test_killed_runs_leave_nothing_beside_the_run_folder_once_one_comes_to_its_end(killed):
    assert [end.beside for end in killed.ends] == [["run"]] * len(killed.ends)


def pictures_done(out: Path) -> int:
    """Return how many pictures a run that was killed had embedded, by the log that it left."""
    (log,) = out.parent.glob(f".{out.name}.*/events.jsonl")
    # The kill may have cut the last line.
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
    return max(line["done"] for line in lines if line.get("stage") == "embed" and "done" in line)


@pytest.mark.slow
def test_a_job_killed_while_it_embeds_loses_one_shard_at_most(tmp_path, engine_name):
    out, store = tmp_path / "run", tmp_path / "store"
    with started("run", FLOWERS, *SHARDED, "--engine", engine_name, "--cache", store, "--out", out) as process:
        wait_until(lambda: len(stamps(store)) >= 3, process)
        process.kill()
        process.communicate()
    n_kept, n_done = len(kept(store)), pictures_done(out)
    assert 3 * SHARD <= n_kept <= n_done <= n_kept + SHARD

"""A folder of hostile pictures, beside a few good ones: the job ends, in little memory, and loses none of them.

The tests take a sample of the pictures, and of moments to be signalled at. A campaign takes all pictures, ten moments
for each signal, and 20 minutes: GPU_CLUSTER_TEST_SIGNALS=10 scripts/test -m '' tests/attacks/test_attacks.py
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests.attacks import pictures, places
from tests.attacks.watch import Watched, end_session, watch
from tests.forks import Forked
from tests.helpers import (
    COMMAND,
    TINY_OPTIONS,
    called,
    embedded,
    gpu_cluster,
    shards_of,
    without_override,
    write_pictures,
)

N_SIGNALS = int(os.environ.get("GPU_CLUSTER_TEST_SIGNALS", "1"))
IS_CAMPAIGN = N_SIGNALS > 1
PICTURES = pictures.HOSTILE if IS_CAMPAIGN else pictures.SAMPLE
# A job on the sample is shorter than one on all pictures.
LONGEST_S = 40 if IS_CAMPAIGN else 8

MOST_BYTES = 4 << 30
MOST_SECONDS = 120
# Of the hostile pictures, few take less than this and more than a second.
DECODE_SECONDS = 2
OPTIONS = (*TINY_OPTIONS, "--thumbnails", "8")
LIMITS = ("--max-decode-seconds", str(DECODE_SECONDS))
N_GOOD = 12


def write_hostile(folder: Path) -> set[str]:
    """Write everything that is hostile into a folder, and some good pictures; return the paths to account for."""
    pictures.write_all(folder, PICTURES)
    write_pictures(folder / "good", N_GOOD)
    places.write_endless(folder / "endless")
    places.write_special(folder / "special")
    places.write_odd_names(folder / "names")
    places.write_odd_times(folder / "times")
    found = set()
    for place, _folders, names in os.walk(folder):
        if os.path.basename(place) != "special":
            found |= {os.path.relpath(os.path.join(place, name), folder) for name in names}
    deepest = places.write_nested(folder / "nested")
    return found | {os.path.relpath(deepest, folder)}


@dataclass(frozen=True)
class Attacked:
    """A job on the hostile folder, what it was watched to do and what it left."""

    hostile: Path
    expected: set[str]
    job: Watched
    out: Path
    store: Path

    def manifest(self) -> pd.DataFrame:
        return pd.read_parquet(self.out / "manifest.parquet")

    def status_of(self, path: str) -> str:
        table = self.manifest()
        return str(table.loc[table["path"] == path, "status"].item())


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, set[str]]]:
    folder = tmp_path_factory.mktemp("hostile") / "in"
    yield folder, write_hostile(folder)
    places.remove_nested(folder / "nested")


@pytest.fixture(scope="module")
def attacked(hostile: tuple[Path, set[str]], tmp_path_factory: pytest.TempPathFactory) -> Attacked:
    own = tmp_path_factory.mktemp("attacked")
    out, store = own / "run", own / "store"
    command: list[str | Path] = [COMMAND, "run", hostile[0], *OPTIONS, *LIMITS, "--max-bad-fraction", "1"]
    command += ["--cache", store, "--out", out]
    job = watch(command, most_bytes=MOST_BYTES, timeout_s=2 * MOST_SECONDS)
    return Attacked(*hostile, job, out, store)


@pytest.mark.slow
def test_a_job_on_hostile_pictures_ends_well_if_bad_files_are_allowed(attacked):
    assert attacked.job.code == 0, attacked.job


@pytest.mark.slow
def test_a_job_on_hostile_pictures_takes_less_than_4_gib_and_two_minutes(attacked):
    assert attacked.job.peak_bytes < MOST_BYTES, attacked.job.at_peak
    assert attacked.job.elapsed_s < MOST_SECONDS


@pytest.mark.slow
def test_every_hostile_file_is_accounted_for(attacked):
    table = attacked.manifest()
    # A name that is no text, or that a table cannot hold, has escapes in it there.
    plain = {path for path in attacked.expected if re.fullmatch(r"[\w. /]+", path)}
    assert plain <= set(table["path"])
    assert len(table) == len(attacked.expected)
    statuses = table["status"].value_counts()
    assignments = pd.read_csv(attacked.out / "assignments.csv")
    bad_files = pd.read_csv(attacked.out / "bad_files.csv")
    assert len(assignments) + len(bad_files) == len(table)
    assert len(assignments) == statuses["ok"] + statuses.get("duplicate", 0)
    assert bad_files["reason"].str.strip().ne("").all()


@pytest.mark.slow
@pytest.mark.parametrize("expected", ["good", "bad"])
def test_a_hostile_picture_becomes_what_it_must(attacked, expected):
    table = attacked.manifest().set_index("path")["status"]
    names = [one.name for one in PICTURES if one.expected == expected]
    found = {name: table[name] for name in names}
    assert found == dict.fromkeys(names, "ok" if expected == "good" else "bad")


@pytest.mark.slow
def test_links_to_what_never_ends_or_is_not_there_are_bad_files(attacked):
    table = attacked.manifest().set_index("path")["status"]
    names = ["endless/endless.png", "endless/loop.png", "endless/nowhere.png"]
    assert [table[name] for name in names] == ["bad"] * 3


@pytest.mark.slow
def test_good_pictures_beside_hostile_ones_have_the_embeddings_that_they_have_alone(attacked, tmp_path):
    embedded(sorted((attacked.hostile / "good").iterdir()), tmp_path / "store")
    theirs, found = embeddings(tmp_path / "store"), embeddings(attacked.store)
    assert len(theirs) == N_GOOD
    for content, row in theirs.items():
        # TensorFlow's numbers change by up to 4e-8 with the batch.
        np.testing.assert_allclose(found[content], row, rtol=0, atol=1e-6)


def embeddings(store: Path) -> dict[str, np.ndarray]:
    """Return every embedding in a store by the hash of its content."""
    tables = [pq.read_table(shard) for shard in shards_of(store)]
    rows = [(one["content_hash"].to_pylist(), one["embedding"].to_pylist()) for one in tables]
    return {
        content: np.array(row, np.float32)
        for contents, columns in rows
        for content, row in zip(contents, columns, strict=True)
        if row is not None
    }


@pytest.mark.slow
def test_a_job_on_hostile_pictures_ends_with_3_if_most_files_are_bad(tmp_path):
    (tmp_path / "in").mkdir()
    # The job on all of them tells that each becomes what it must.
    chosen = pictures.ODD if IS_CAMPAIGN else pictures.ODD[::2]
    for one in chosen:
        one.write(tmp_path / "in" / one.name)
    done = called("run", tmp_path / "in", *OPTIONS, *LIMITS, out=tmp_path / "run")
    assert done.code == 3, done.err
    assert len(done.table("bad_files.csv")) > len(chosen) / 2


@pytest.mark.slow
def test_a_folder_and_a_file_that_cannot_be_read_are_bad_files(tmp_path):
    places.write_unreadable(tmp_path / "in")
    write_pictures(tmp_path / "in", 4)
    command = ["run", tmp_path / "in", *OPTIONS, "--max-bad-fraction", "1", "--no-cache"]
    done = gpu_cluster(*command, out=tmp_path / "run", before=without_override)
    assert done.code == 0, done.err
    assert sorted(done.table("bad_files.csv")["path"]) == ["closed", "closed.png"]


# Signals


@dataclass(frozen=True)
class Answered:
    """How a job answered a signal: seconds until it said so and until it ended, its exit code and last line."""

    told_s: float
    ended_s: float
    code: int
    line: str


def signalled(hostile: Path, out: Path, numbers: list[int], after_s: float) -> Answered | None:
    """Start the job, signal it after a time, and again once it has answered; None if it ended before."""
    given = ("run", hostile, *OPTIONS, *LIMITS, "--batch-size", "4", "--no-cache", "--out", out)
    with Forked(*given, start_new_session=True) as process:
        try:
            time.sleep(after_s)
            if process.poll() is not None:
                return None
            assert process.stderr is not None
            first, *others = numbers
            told = None
            sent = time.monotonic()
            process.send_signal(first)
            lines = []
            for line in TextIOWrapper(process.stderr, "utf-8", "replace"):
                lines.append(line)
                if "interrupted" in line and told is None:
                    told = time.monotonic()
                    for number in others:
                        sent = time.monotonic()
                        process.send_signal(number)
            code = process.wait(timeout=60)
            ended = time.monotonic()
        finally:
            end_session(process.pid)
    assert told is not None, lines
    return Answered(told - sent if not others else 0.0, ended - sent, code, lines[-1])


def moments(n: int, seed: int, longest_s: float) -> list[float]:
    """Return random moments, the same ones every time."""
    return np.random.default_rng(seed).uniform(0.5, longest_s, n).round(2).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("after_s", moments(N_SIGNALS, 0, LONGEST_S))
def test_a_job_on_hostile_pictures_answers_sigterm_in_2_seconds_and_ends_in_10(hostile, tmp_path, after_s):
    answered = signalled(hostile[0], tmp_path / "out" / "run", [signal.SIGTERM], after_s)
    assert answered is not None, "it ended before"
    assert answered.code == 143
    assert answered.told_s < 2
    assert answered.ended_s < 10
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("after_s", moments(N_SIGNALS, 1, LONGEST_S))
def test_a_second_ctrl_c_ends_a_job_on_hostile_pictures_within_a_second(hostile, tmp_path, after_s):
    answered = signalled(hostile[0], tmp_path / "out" / "run", [signal.SIGINT, signal.SIGINT], after_s)
    assert answered is not None, "it ended before"
    assert answered.code == 130
    assert answered.ended_s < 1
    assert answered.line.startswith("error: interrupted")

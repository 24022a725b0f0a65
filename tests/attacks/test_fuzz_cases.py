"""Mutated files never end a job by a signal, for ever, in all of the memory, or in an error that nobody expected.

These are a fixed sample of the fuzzer's cases, and all cases that ever failed; `scripts/fuzz` takes as many as it is
told. Every case runs in a process of its own: a crash of a decoder in C is then a failed test and not the end of all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.attacks import cases, raw
from tests.attacks.fuzz import Fuzzer

# Each target has its turn; to start costs more than these do.
N_CASES = 150


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzer]:
    # One process: to load TensorFlow takes longer than to try all of these.
    with Fuzzer(tmp_path_factory.mktemp("fuzz"), 1) as found:
        found.prepare()
        yield found


@pytest.mark.slow
def test_mutated_files_end_as_they_should(fuzzer):
    assert fuzzer.campaign(range(N_CASES), seed=0) == []


@pytest.mark.slow
def test_the_cases_that_ever_failed_end_as_they_should(fuzzer):
    files = list(cases.kept())
    assert files
    assert fuzzer.kept(files) == []


def test_a_number_and_a_seed_give_the_same_case_every_time(tmp_path):
    # Those of stores and run folders begin with what a run left, which has times in it.
    numbers = [number for number in range(80) if cases.target_of(number) in ("pictures", "labels")]
    first = [cases.make(number, 3, tmp_path) for number in numbers]
    assert first == [cases.make(number, 3, tmp_path) for number in numbers]
    assert len({one.content for one in first}) > 0.9 * len(numbers)
    assert first != [cases.make(number, 4, tmp_path) for number in numbers]


def test_every_target_has_its_turn():
    turns = Counter(map(cases.target_of, range(N_CASES)))
    assert set(turns) == {"pictures", "config", "labels", "shards", "weights", "runs"}
    assert min(turns.values()) >= N_CASES // 50


def test_a_kept_case_is_read_as_it_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr(cases, "KEPT", tmp_path)
    case = cases.Case("runs", "model/model.json", b"{}")
    assert cases.load(cases.keep(case, "signal-11")) == case
    assert [cases.load(file) for file in cases.kept()] == [case]


@pytest.mark.parametrize("n", [1, 257, 258, 259, 516, 1_000_000])
def test_a_run_of_zeros_is_a_right_zlib_stream(n):
    import zlib

    assert zlib.decompress(raw.zeros_deflated(n)) == bytes(n)


@pytest.mark.slow
def test_the_fuzzer_notices_a_process_that_dies_and_one_that_hangs(tmp_path, monkeypatch):
    files = [tmp_path / name for name in ("pictures/dies-a.png", "pictures/hangs-a.png", "pictures/ends well-a.png")]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    worker = tmp_path / "worker.py"
    worker.write_text("""
import json, os, sys, time
for line in sys.stdin:
    asked = json.loads(line)
    if "dies" in str(asked):
        os.abort()
    if "hangs" in str(asked):
        time.sleep(60)
    print("ready" if "prepare" in asked else json.dumps([None] * len(asked["files"])), flush=True)
""")
    monkeypatch.setattr("tests.attacks.fuzz.WORKER", [str(worker)])
    monkeypatch.setattr("tests.attacks.fuzz.MAX_SECONDS", 1)
    with Fuzzer(tmp_path, 1, template=tmp_path) as fuzzer:
        found = fuzzer.kept(files)
    assert [(one.case, one.wrong) for one in found] == [(files[0], "signal 6"), (files[1], "hang: more than 1 s")]

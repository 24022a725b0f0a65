"""`make bench`: what it prints, and what it says of a bench that is not there. No test measures a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.bench import rows_of
from scripts.bench_table import Row, of_times, table

ROOT = Path(__file__).parents[2]


def test_a_ratio_is_that_of_the_minima_and_the_spread_that_of_the_rounds():
    row = of_times("ours / theirs", [1.0, 2.0], [4.0, 4.0], note="seconds")
    assert row == Row("ours / theirs", 1.0, 4.0, 4.0, 1.0, "seconds")
    assert of_times("ours", [1.0, 1.5]) == Row("ours", 1.0, spread=0.5)
    first, *_, last = table([row, Row("memory", None, note="9 bytes")]).splitlines()
    assert first.startswith("| times faster | spread |")
    assert last == "|  |  |  |  | memory | 9 bytes |"


def test_a_bench_that_is_not_there_is_named_and_the_others_go_on():
    assert rows_of("absent", quick=True) == ([], "it is not there")
    assert rows_of("table", quick=True) == ([], "it has no function measure(quick)")


@pytest.mark.slow
def test_the_table_for_machines_describes_the_machine():
    command = [sys.executable, "-m", "scripts.bench", "--quick", "--json", "manifest"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    found = json.loads(done.stdout)
    assert {"processor", "cores", "memory_gib", "versions", "blas"} <= set(found["machine"])
    assert [row["name"] for row in found["rows"]] == ["manifest of 10,000 files"]
    assert found["missing"] == {}

"""The command at its defaults, signalled: the exit code tells the signal, and nothing is left behind."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from gpu_cluster.config import shipped_data
from tests.helpers import (
    EMBEDDED,
    listing,
    logged,
    started,
    wait_until,
)


def stop(place: Path, number: int, *arguments: str) -> tuple[int, str]:
    """Start a run that takes the best part of a minute, signal it while it embeds, and return its code and errors."""
    options = ["--batch-size", "4", "--shard-size", "16"]
    with started("run", shipped_data() / "flowers", *options, *arguments, cwd=place) as process:
        wait_until(lambda: logged(place, EMBEDDED), process)
        process.send_signal(number)
        _, found = process.communicate(timeout=60)
    return process.returncode, found


@pytest.mark.slow
def test_sigterm_ends_with_143_and_leaves_nothing(tmp_path):
    code, found = stop(tmp_path, signal.SIGTERM)
    assert code == 143
    assert found.splitlines()[-1].startswith("error: interrupted")
    assert "Traceback" not in found
    assert listing(tmp_path) == {}


@pytest.mark.slow
def test_sigint_ends_with_130_and_leaves_an_earlier_run_as_it_was(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"gpu_cluster": "0.1.0", "config": {}}')
    (tmp_path / "run" / "bad_files.csv").touch()
    before = listing(tmp_path)
    code, found = stop(tmp_path, signal.SIGINT, "--out", "run")
    assert code == 130
    assert found.splitlines()[-1].startswith("error: interrupted")
    assert "Traceback" not in found
    assert listing(tmp_path) == before

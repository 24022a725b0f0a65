"""`scripts/check_gpu` where there is no card: what it says first, and its order, with programs that only record.

What it would find on a card needs one.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from gpu_cluster.backend import look_for_gpu
from tests.helpers import COMMAND

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_gpu"
without_gpu = pytest.mark.skipif(
    all(finding.ok for finding in look_for_gpu()), reason="a GPU can be used here; this is about its absence"
)

# Records its arguments, writes the record of a run where one is asked for, and fails if it is told to.
_RECORDS = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >>"$CALLS"
while [ $# -gt 0 ]; do
    if [ "$1" = run ] && [ "$2" = --device ]; then is_run=1; fi
    if [ "$1" = --out ] && [ -n "${is_run:-}" ]; then
        out=${2/#\\/runs/$FOLDER}
        mkdir -p "$out"
        echo '{"device": "'"$DEVICE"'", "device_reason": "asked for", "files": {"ok": 210}}' >"$out/run.json"
    fi
    [ "$1" != "${FAILS:-}" ] || exit 1
    shift
done
"""


def check_gpu(folder: Path, **variables: str | Path) -> subprocess.CompletedProcess[str]:
    given = {name: str(value) for name, value in variables.items()}
    return subprocess.run(
        [SCRIPT, folder], capture_output=True, text=True, env={**os.environ, **given}, timeout=120, check=False
    )


@without_gpu
def test_without_a_card_it_fails_at_once_with_the_doctors_words(tmp_path):
    done = check_gpu(tmp_path / "out", GPU_CLUSTER_BIN=COMMAND.parent)
    assert done.returncode == 1
    assert done.stdout.startswith("FAIL  doctor: a card can be used")
    assert "libcuda.so.1 not found" in done.stdout
    assert "selftest" not in done.stdout


def recording(tmp_path: Path, **variables: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("gpu-cluster", "python", "docker"):
        (programs / name).write_text(_RECORDS)
        (programs / name).chmod(0o755)
    folder, calls = tmp_path / "out", tmp_path / "calls"
    given = {
        "GPU_CLUSTER_BIN": str(programs),
        "GPU_CLUSTER_CONTAINER": str(programs / "docker"),
        "CALLS": str(calls),
        "FOLDER": str(folder),
        "DEVICE": "gpu",
        **variables,
    }
    done = check_gpu(folder, **given)
    return done, calls.read_text().splitlines()


def test_everything_is_checked_out_of_the_container_and_in_it(tmp_path):
    done, calls = recording(tmp_path)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1].startswith("10 passed, 0 failed; all of it is in ")
    assert [call.split()[:2] for call in calls] == [
        ["gpu-cluster", "doctor"],
        ["gpu-cluster", "selftest"],
        ["python", "-m"],
        ["gpu-cluster", "run"],
        ["docker", "build"],
        *[["docker", "run"]] * 3,
    ]


def test_a_check_that_fails_is_code_1_and_the_others_still_run(tmp_path):
    done, calls = recording(tmp_path, FAILS="selftest")
    assert done.returncode == 1
    assert "FAIL  selftest: CPU and card agree" in done.stdout
    assert "ok    a run of the sample set" in done.stdout
    assert len(calls) == 8


def test_a_run_that_was_not_on_the_card_is_a_failure(tmp_path):
    done, _calls = recording(tmp_path, DEVICE="cpu", GPU_CLUSTER_CONTAINER="none")
    assert done.returncode == 1
    assert "FAIL    it ran on the card" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("4 passed, 1 failed, the container not tried; ")

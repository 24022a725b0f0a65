"""The batch files without their clusters: exit codes and TERM come through the Slurm script, the manifest is valid.

Against a real Slurm the script is proved by scripts/check_slurm, which needs root.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from gpu_cluster.config import shipped_data
from tests.helpers import COMMAND, Finished, write_pictures

SCRIPTS = Path(__file__).parents[2] / "scripts"
SBATCH = SCRIPTS / "slurm" / "gpu-cluster.sbatch"
ENDED = re.compile(r"ended with exit code (\d+)$", re.MULTILINE)


def environment(**variables: str | Path) -> dict[str, str]:
    """Return this environment without a Slurm job's variables, and with those given."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return {**mine, "GPU_CLUSTER": str(COMMAND), **{name: str(value) for name, value in variables.items()}}


def batch(*arguments: str, cwd: Path, **variables: str | Path) -> Finished:
    """Run the Slurm script as Slurm would, without one."""
    done = subprocess.run(
        ["bash", SBATCH, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment(**variables),
        timeout=120,
        check=False,
    )
    return Finished(code=done.returncode, out=done.stdout, err=done.stderr, folder=Path(variables.get("OUT", "")))


@pytest.mark.slow
def test_a_job_reads_images_and_writes_out_where_names_hold_spaces(tmp_path):
    write_pictures(tmp_path / "my pictures", 6)
    done = batch(
        "--image-size",
        "32",
        "--k",
        "2",
        cwd=tmp_path,
        IMAGES=tmp_path / "my pictures",
        OUT=tmp_path / "a run",
        DEVICE="cpu",
    )
    assert done.code == 0, done.err
    assert len(done.table("assignments.csv")) == 6
    assert ENDED.findall(done.out) == ["0"]


def test_wrong_use_comes_through_as_2(tmp_path):
    done = batch(cwd=tmp_path, IMAGES=tmp_path / "absent")
    assert done.code == 2
    assert "absent' does not exist" in done.err
    assert ENDED.findall(done.out) == ["2"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_too_many_bad_files_come_through_as_3(tmp_path):
    for file in write_pictures(tmp_path / "pictures", 6)[2:]:
        file.write_text("no picture")
    done = batch("--image-size", "32", "--k", "1", cwd=tmp_path, IMAGES=tmp_path / "pictures", OUT=tmp_path / "run")
    assert done.code == 3, done.err
    assert len(done.table("bad_files.csv")) == 4


def test_a_missing_program_is_named(tmp_path):
    done = batch(cwd=tmp_path, GPU_CLUSTER=tmp_path / "absent")
    assert done.code == 2
    assert "absent'; install gpu-cluster" in done.err


@pytest.fixture
def recorder(tmp_path: Path) -> Path:
    """A program that writes down what it was called with."""
    program = tmp_path / "recorder"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "cache=${XDG_CACHE_HOME:-}" "$@"\n')
    program.chmod(0o755)
    return program


def test_variables_and_arguments_become_options(tmp_path, recorder):
    given = {"IMAGES": "/my pictures", "OUT": "/a run", "CACHE": "/the cache", "DEVICE": "gpu"}
    done = batch("--k", "3", "more pictures", cwd=tmp_path, GPU_CLUSTER=recorder, **given)
    expected = [
        "cache=/the cache",
        "run",
        "/my pictures",
        "--out",
        "/a run",
        "--overwrite",
        "--device",
        "gpu",
        "--k",
        "3",
        "more pictures",
    ]
    assert done.out.splitlines()[1:-1] == expected


def test_a_requeued_job_writes_to_the_same_folder(tmp_path, recorder):
    done = batch(cwd=tmp_path, GPU_CLUSTER=recorder, SLURM_JOB_ID="7", SLURM_RESTART_COUNT="1", XDG_CACHE_HOME="")
    assert "job 7, restart 1," in done.out.splitlines()[0]
    assert done.out.splitlines()[1:-1] == ["cache=", "run", "--out", "runs/slurm-7", "--overwrite"]


def terminate(place: Path, *, everyone: bool) -> tuple[int, str]:
    """Start a job that takes the best part of a minute, send TERM while it embeds, and return its code and log."""
    with subprocess.Popen(
        ["bash", SBATCH, "--batch-size", "4", "--shard-size", "16"],
        cwd=place,
        env=environment(IMAGES=shipped_data() / "flowers", OUT=place / "a run", DEVICE="cpu"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while not any('"stage": "embed", "done"' in log.read_text() for log in place.glob(".*/events.jsonl")):
                assert process.poll() is None, "the job ended before it could be stopped"
                assert time.monotonic() < deadline, "the job did not begin to embed"
                time.sleep(0.05)
            if everyone:
                os.killpg(process.pid, signal.SIGTERM)
            else:
                process.terminate()
            log, _ = process.communicate(timeout=60)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, log


@pytest.mark.slow
@pytest.mark.parametrize("everyone", [False, True], ids=["to the script alone", "to all processes"])
def test_term_ends_a_job_with_143_and_leaves_nothing(tmp_path, everyone):
    code, log = terminate(tmp_path, everyone=everyone)
    assert code == 143
    assert "error: interrupted" in log
    assert ENDED.findall(log) == ["143"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_manifest_is_valid_and_broken_ones_are_refused():
    done = subprocess.run(
        [SCRIPTS / "check_k8s"],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=300,
        check=False,
    )
    if done.returncode == 2:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].endswith(" passed, 0 failed")


@pytest.mark.parametrize(
    ("cache", "kept"),
    [
        ("", {"CUDA_CACHE_MAXSIZE=4294967296"}),
        (
            "/shared/cache",
            {"XDG_CACHE_HOME=/shared/cache", "CUDA_CACHE_PATH=/shared/cache/cuda", "CUPY_CACHE_DIR=/shared/cache/cupy"},
        ),
    ],
)
def test_what_is_compiled_for_a_card_is_kept_with_the_embeddings(tmp_path, monkeypatch, cache, kept):
    for name in ("XDG_CACHE_HOME", "CUDA_CACHE_PATH", "CUPY_CACHE_DIR", "CUDA_CACHE_MAXSIZE"):
        monkeypatch.delenv(name, raising=False)
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nenv\n")
    program.chmod(0o755)
    said = batch(cwd=tmp_path, CACHE=cache, GPU_CLUSTER=program).out.splitlines()
    assert kept <= set(said)
    assert cache or not [line for line in said if line.startswith(("CUDA_CACHE_PATH", "CUPY_CACHE_DIR"))]


def test_the_kubernetes_file_keeps_what_is_compiled_for_a_card_in_the_cache_claim():
    text = (SCRIPTS / "k8s" / "job.yaml").read_text()
    given = dict(re.findall(r"- name: (\w+)\n +value: \"?([^\"\n]+)", text))
    assert given["CUDA_CACHE_PATH"] == given["XDG_CACHE_HOME"] + "/cuda"
    assert given["CUPY_CACHE_DIR"] == given["XDG_CACHE_HOME"] + "/cupy"
    assert int(given["CUDA_CACHE_MAXSIZE"]) == 4 << 30


def test_the_kubernetes_file_requests_its_memory_and_limits_the_local_disk():
    text = (SCRIPTS / "k8s" / "job.yaml").read_text()
    (requests,) = re.findall(r"^ +requests:\n((?: +(?:#.*|[\w.\"/-]+: .*)\n)+?) +limits:", text, re.MULTILINE)
    limits = text.split(" limits:\n")[1].split("terminationMessagePolicy")[0]
    asked, most = (dict(re.findall(r"^ +([\w-]+): (\d+)Gi$", part, re.MULTILINE)) for part in (requests, limits))
    assert asked["memory"] == most["memory"]
    (memory,) = re.findall(r"#SBATCH --mem=(\d+)G$", SBATCH.read_text(), re.MULTILINE)
    assert memory == most["memory"]
    (size,) = re.findall(r"emptyDir:\n +sizeLimit: (\d+)Gi$", text, re.MULTILINE)
    assert int(size) < int(most["ephemeral-storage"]) >= int(asked["ephemeral-storage"])


def test_the_workflow_may_only_read_and_hands_no_token_to_the_code_it_checks():
    text = (SCRIPTS.parent / ".github" / "workflows" / "ci.yml").read_text()
    assert re.search(r"^permissions:\n  contents: read\n\S", text, re.MULTILINE)
    # A tag can be moved to other code; a commit cannot.
    actions = re.findall(r"uses: (\S+)", text)
    assert actions
    assert all(re.search(r"@[0-9a-f]{40}$", action) for action in actions)
    assert "write" not in re.findall(r"^ *[\w-]+: (\w+)$", text, re.MULTILINE)
    checkout = text.split("- uses: actions/checkout@")[1].split("- uses: ")[0]
    assert re.search(r"^ +persist-credentials: false$", checkout, re.MULTILINE)

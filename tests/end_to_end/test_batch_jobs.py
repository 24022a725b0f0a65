"""The batch files without their clusters: exit codes and TERM come through the Slurm scripts, the manifests are valid.

Against a real Slurm the scripts are proved by scripts/check_slurm, which needs root.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gpu_cluster.config import shipped_data
from tests.helpers import COMMAND, Finished, write_pictures

SCRIPTS = Path(__file__).parents[2] / "scripts"
SBATCH = SCRIPTS / "slurm" / "gpu-cluster.sbatch"
DASK_SBATCH = SCRIPTS / "slurm" / "gpu-cluster-dask.sbatch"
ENDED = re.compile(r"ended with exit code (\d+)$", re.MULTILINE)


def environment(**variables: str | Path) -> dict[str, str]:
    """Return this environment without a Slurm job's variables, and with those given."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return {**mine, "GPU_CLUSTER": str(COMMAND), **{name: str(value) for name, value in variables.items()}}


def batch(*arguments: str, cwd: Path, script: Path = SBATCH, **variables: str | Path) -> Finished:
    """Run a Slurm script as Slurm would, without one."""
    done = subprocess.run(
        ["bash", script, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment(**variables),
        timeout=120,
        check=False,
    )
    return Finished(code=done.returncode, out=done.stdout, err=done.stderr, folder=Path(variables.get("OUT", "")))


# A job of one network on pictures of few pixels.
SMALL = ("--features", "vgg16", "--image-size", "32", "--k-range", "2:2", "--n-init", "2")


@pytest.fixture(scope="module")
def one_task(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A job of one task, in a place where names hold spaces, with its pictures beside the run folder."""
    place = tmp_path_factory.mktemp("one task")
    write_pictures(place / "my pictures", 6)
    given: dict[str, Any] = {
        "IMAGES": place / "my pictures",
        "DEVICE": "cpu",
        "CACHE": place / "cache",
        "OUT": place / "a run",
    }
    return batch(*SMALL, cwd=place, **given)


@pytest.mark.slow
def test_a_job_reads_images_and_writes_out_where_names_hold_spaces(one_task):
    assert one_task.code == 0, one_task.err
    assert len(one_task.table("assignments.csv")) == 6
    assert ENDED.findall(one_task.out) == ["0"]


def test_wrong_use_comes_through_as_2(tmp_path):
    done = batch(cwd=tmp_path, IMAGES=tmp_path / "absent")
    assert done.code == 2
    assert "absent' does not exist" in done.err
    assert ENDED.findall(done.out) == ["2"]
    assert list(tmp_path.iterdir()) == []


def test_the_code_of_too_many_bad_files_comes_through_as_it_is(tmp_path):
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    done = batch(cwd=tmp_path, GPU_CLUSTER=program)
    assert (done.code, ENDED.findall(done.out)) == (3, ["3"])


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
    given: dict[str, Any] = {"IMAGES": "/my pictures", "OUT": "/a run", "CACHE": "/the cache", "DEVICE": "gpu"}
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
    """Start a job that embeds for many seconds, send TERM while it embeds, and return its code and log."""
    with subprocess.Popen(
        ["bash", SBATCH, "--features", "vgg16", "--image-size", "96", "--batch-size", "4", "--shard-size", "16"],
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
def test_the_manifests_are_valid_and_broken_ones_are_refused():
    done = subprocess.run(
        [SCRIPTS / "check_k8s"],
        capture_output=True,
        text=True,
        env=environment(DASK=COMMAND.with_name("dask")),
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


def test_the_two_slurm_files_share_the_text_that_they_say_they_share():
    first, second = (
        re.findall(
            r"^# From here to END OF THE COMMON PART.*^# END OF THE COMMON PART$", text, re.MULTILINE | re.DOTALL
        )
        for text in (SBATCH.read_text(), DASK_SBATCH.read_text())
    )
    assert len(first) == 1
    assert "trap stop TERM INT" in first[0]
    assert first == second


# Starts the tasks on this machine, and kills them on TERM, as srun does.
SRUN = """#!/usr/bin/env bash
while [ "$1" != bash ]; do
    case $1 in --ntasks=*) n=${1#*=} ;; esac
    shift
done
trap 'kill -KILL $(jobs -p); wait; exit 1' TERM
for ((i = 0; i < n; i++)); do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & done
wait
"""
# A scheduler that writes its file and ends on INT, with its workers; workers that say what they were called with. (A
# shell cannot wait for INT when its parent ignores it, as those of background processes do.)
DASK = f"""#!{sys.executable} -S
import os, pathlib, signal, sys, time
place = pathlib.Path(__file__).parent
if sys.argv[1] == "scheduler":
    signal.signal(signal.SIGINT, lambda *_: ((place / "over").touch(), sys.exit()))
    file = pathlib.Path(sys.argv[sys.argv.index("--scheduler-file") + 1])
    file.write_text('{{\\n  "address": "tls://10.0.0.1:1234",\\n  "workers": {{}}\\n}}\\n')
else:
    with (place / "workers").open("a") as said:
        said.write(f"card={{os.environ.get('CUDA_VISIBLE_DEVICES', '')}} {{' '.join(sys.argv[1:])}}\\n")
while not (place / "over").exists():
    time.sleep(0.05)
"""
DRIVER = """#!/usr/bin/env bash
place=$(dirname "$0")
printf '%s\n' "$*" "card=${CUDA_VISIBLE_DEVICES:-}" "ca=${DASK_DISTRIBUTED__COMM__TLS__CA_FILE:0:27}" >"$place/driver"
until [ "$(wc -l <"$place/workers" 2>/dev/null)" = 2 ]; do sleep 0.1; done
trap 'exit 143' TERM
touch "$place/driving"
[ -z "${WAIT:-}" ] || while :; do sleep 0.1; done
exit "${CODE:-0}"
"""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str | Path]:
    """The variables of a job of three tasks, with programs in place of srun, dask and gpu-cluster."""
    for name, text in {"srun": SRUN, "dask": DASK, "gpu-cluster": DRIVER}.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)
    (tmp_path / "tmp").mkdir()
    return {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "TMPDIR": tmp_path / "tmp",
        "GPU_CLUSTER": tmp_path / "bin" / "gpu-cluster",
        "SLURM_NTASKS": "3",
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_PER_TASK": "2",
    }


def test_a_job_of_three_tasks_has_a_driver_and_two_workers(tmp_path, slurm):
    done = batch("--k", "3", cwd=tmp_path, script=DASK_SBATCH, **slurm, DEVICE="cpu", IMAGES="/my pictures", CODE="3")
    assert done.code == 3, done.err
    driver = (tmp_path / "bin" / "driver").read_text().splitlines()
    assert re.fullmatch(
        r"run /my pictures --out runs/slurm-7 --overwrite --device cpu "
        rf"--scheduler-file {tmp_path}/tmp/gpu-cluster\.\w+/scheduler\.json --workers 2 --k 3",
        driver[0],
    )
    assert driver[2] == "ca=-----BEGIN CERTIFICATE-----"
    worker = "worker --nworkers 1 tls://10.0.0.1:1234 --nthreads 1 --memory-limit 0 --no-dashboard --death-timeout 60"
    assert (tmp_path / "bin" / "workers").read_text().splitlines() == [f"card= {worker}"] * 2
    # The scheduler's file of one start cannot be taken for that of another.
    assert list((tmp_path / "tmp").iterdir()) == []
    assert ENDED.findall(done.out) == ["3"]


def test_each_task_has_a_card_of_its_own(tmp_path, slurm):
    cards = {"SLURM_JOB_GPUS": "4,5,6", "CUDA_VISIBLE_DEVICES": "4,5,6"}
    done = batch(cwd=tmp_path, script=DASK_SBATCH, **slurm, **cards)
    assert done.code == 0, done.err
    assert (tmp_path / "bin" / "driver").read_text().splitlines()[1] == "card=4"
    workers = sorted((tmp_path / "bin" / "workers").read_text().splitlines())
    assert [line.split(" tls://")[0] for line in workers] == [
        f"card={card} cuda worker --device-memory-limit 0" for card in (5, 6)
    ]


@pytest.mark.slow
def test_term_to_a_job_of_three_tasks_reaches_the_driver_and_then_ends_the_others(tmp_path, slurm):
    with subprocess.Popen(
        ["bash", DASK_SBATCH],
        cwd=tmp_path,
        env=environment(**slurm, DEVICE="cpu", WAIT="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            deadline = time.monotonic() + 30
            while not (tmp_path / "bin" / "driving").exists():
                assert time.monotonic() < deadline, "the driver did not start"
                time.sleep(0.05)
            process.terminate()
            # The pipe ends when the last process that has it ends.
            log, _ = process.communicate(timeout=30)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 143, log
    assert ENDED.findall(log) == ["143"]
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"SLURM_NTASKS": "1"}, "the job has 1 task(s), but needs two or more"),
        ({"DASK": "/absent/dask"}, "no program '/absent/dask'; install gpu-cluster with its extra dask"),
    ],
)
def test_a_job_that_cannot_have_workers_says_why(tmp_path, slurm, variables, said):
    done = batch(cwd=tmp_path, script=DASK_SBATCH, **{**slurm, **variables})
    assert done.code == 2
    assert said in done.err


@pytest.mark.slow
def test_a_job_of_two_tasks_has_the_result_of_one_task(tmp_path, slurm, one_task):
    options = (*SMALL, "--shard-size", "2", "--batch-size", "2")
    given = {"IMAGES": one_task.folder.with_name("my pictures"), "DEVICE": "cpu", "GPU_CLUSTER": COMMAND}
    variables = {**slurm, **given, "SLURM_NTASKS": "2", "CACHE": tmp_path / "cache", "OUT": tmp_path / "run"}
    done = batch(*options, cwd=tmp_path, script=DASK_SBATCH, **variables)
    assert done.code == 0, done.out + done.err
    assert (done.folder / "assignments.csv").read_bytes() == (one_task.folder / "assignments.csv").read_bytes()
    assert "Tasks run in 1 worker" in done.out + done.err
    assert list((tmp_path / "tmp").glob("gpu-cluster.*")) == []


@pytest.fixture
def manifests() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The Job of one GPU, and the documents of the Dask cluster."""
    yaml = pytest.importorskip("yaml")
    job, cluster = ((SCRIPTS / "k8s" / name).read_text() for name in ("job.yaml", "dask.yaml"))
    return yaml.safe_load(job), list(yaml.safe_load_all(cluster))


def test_only_the_pods_of_the_cluster_reach_its_scheduler_and_workers(manifests):
    policy, *_ = manifests[1]
    ours = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "gpu-cluster-dask"}}}
    assert policy["kind"] == "NetworkPolicy"
    assert policy["spec"]["podSelector"] == ours["podSelector"]
    assert policy["spec"]["ingress"] == [{"from": [ours]}]
    pods = [document["spec"]["template"] for document in manifests[1][2:]]
    assert {pod["metadata"]["labels"]["app.kubernetes.io/name"] for pod in pods} == {"gpu-cluster-dask"}


def test_the_pods_of_the_cluster_have_the_security_settings_and_volumes_of_the_job(manifests):
    job, (_, _, *cluster) = manifests
    alone, *pods = (document["spec"]["template"]["spec"] for document in (job, *cluster))
    for pod in pods:
        assert pod["securityContext"] == alone["securityContext"]
        assert pod["containers"][0]["securityContext"] == alone["containers"][0]["securityContext"]
        assert pod["automountServiceAccountToken"] is False
    _, worker, driver = pods
    assert worker["volumes"] == driver["volumes"] == alone["volumes"]
    assert worker["containers"][0]["volumeMounts"] == alone["containers"][0]["volumeMounts"]


def test_the_driver_waits_for_as_many_workers_as_there_are(manifests):
    _, service, _, workers, driver = manifests[1]
    given = driver["spec"]["template"]["spec"]["containers"][0]["args"]
    address = f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert f"--workers={workers['spec']['replicas']}" in given
    assert f"--scheduler={address}" in given
    assert address in workers["spec"]["template"]["spec"]["containers"][0]["args"]


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

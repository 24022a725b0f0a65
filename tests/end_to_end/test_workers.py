"""Jobs with workers: the answer of a serial job, whatever happens to the workers, the scheduler or the job itself."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from gpu_cluster.config import shipped_data
from tests.clusters import (
    N_PICTURES,
    PATIENCE_S,
    QUICK,
    SHARDED,
    Cluster,
    cluster,
    driver,
    n_shards,
    wait_for,
)
from tests.helpers import (
    COMMAND,
    EMBEDDED,
    Finished,
    age,
    everything,
    gpu_cluster,
    kept,
    logged,
    n_computed,
    shards_of,
    write_pictures,
)

pytest.importorskip("distributed", reason="needs the extra dask")

# Whole jobs: together they take more than 10 s.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    age(write_pictures(folder, N_PICTURES))
    # A copy, and a file that is none.
    (folder / "copy.png").write_bytes((folder / "000.png").read_bytes())
    (folder / "none.png").write_bytes((folder / "001.png").read_bytes()[:-30])
    return folder


@pytest.fixture(scope="module")
def serial(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The job that has no workers; its store is beside its run folder."""
    folder = tmp_path_factory.mktemp("serial")
    done = gpu_cluster("run", pictures, *SHARDED, *QUICK, "--cache", folder / "store", out=folder / "run")
    assert done.code == 0, done.err
    return done


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster that jobs join, with two workers: one and the scheduler are started by Dask's own commands."""
    with cluster(tmp_path_factory.mktemp("cluster") / "dask", 1, by_command=True) as made:
        made.add_worker()
        yield made


def assert_same(done: Finished, serial: Finished) -> None:
    """Check that a job came to the end of the serial one, and that the terminal shows nothing of Dask."""
    assert done.code == 0, done.err
    assert (done.folder / "assignments.csv").read_bytes() == (serial.folder / "assignments.csv").read_bytes()
    assert_clean(done)


def assert_clean(done: Finished) -> None:
    assert "distributed" not in done.err
    assert "Traceback" not in done.err


def notices(done: Finished) -> list[str]:
    lines = map(json.loads, (done.folder / "events.jsonl").read_text().splitlines())
    return [line["message"] for line in lines if line["event"] == "notice"]


def tasks_of(done: Finished) -> Counter[str]:
    """Return how many shards each worker has embedded, by its address."""
    lines = map(json.loads, (done.folder / "events.jsonl").read_text().splitlines())
    found = [line for line in lines if line["event"] == "task_finished" and line["stage"] == "embed"]
    return Counter(line["worker"].partition(" ")[0] for line in found)


def facts(store: Path) -> dict[str, tuple[object, ...]]:
    """Return what the scan has found out about each file."""
    rows = [row for shard in shards_of(store, "scans") for row in pq.read_table(shard).to_pylist()]
    return {row["path"]: tuple(sorted(row.items(), key=str)) for row in rows}


def test_with_workers_on_this_machine_the_answer_is_the_same_byte_for_byte(tmp_path, pictures, serial):
    # The command itself in a new interpreter, as each worker imports what the job was started from.
    given = ("run", pictures, *SHARDED, *QUICK, "--workers", "2", "--cache", tmp_path / "store", "--out")
    ran = subprocess.run([COMMAND, *given, tmp_path / "run"], capture_output=True, text=True, check=False)
    done = Finished(ran.returncode, ran.stdout, ran.stderr, tmp_path / "run")
    assert_same(done, serial)
    assert facts(tmp_path / "store") == facts(serial.folder.parent / "store")
    assert sorted(path.name for path in shards_of(tmp_path / "store")) == sorted(
        path.name for path in shards_of(serial.folder.parent / "store")
    )


def test_with_a_cluster_that_is_there_the_answer_is_the_same_byte_for_byte(tmp_path, pictures, serial, two_workers):
    given = ("run", pictures, *SHARDED, *QUICK, *two_workers.options, "--cache", tmp_path / "store")
    done = gpu_cluster(*given, out=tmp_path / "run")
    assert_same(done, serial)
    assert facts(tmp_path / "store") == facts(serial.folder.parent / "store")
    assert everything(tmp_path / "store") == everything(serial.folder.parent / "store")


def test_a_worker_killed_in_the_middle_costs_its_shard_and_nothing_else(tmp_path, pictures, serial):
    store = tmp_path / "store"
    with driver("run", pictures, *SHARDED, *QUICK, "--workers", "2", "--cache", store, out=tmp_path / "run") as job:
        job.wait_until(lambda: n_shards(store) >= 2)
        # In a task most probably, but it may be between two of them. What the job says of a task that ends its worker
        # is tested with such tasks, in executor/test_cluster_executor.py.
        job.workers()[0].kill()
        done = job.end()
        assert job.left() == []
    assert_same(done, serial)
    assert len(kept(store)) == len(set(kept(store))) == N_PICTURES + 1


def test_without_its_scheduler_a_job_ends_with_a_message_and_keeps_what_is_finished(tmp_path, pictures):
    store = tmp_path / "out" / "store"
    with (
        cluster(tmp_path / "dask", 1) as made,
        driver("run", pictures, *SHARDED, *QUICK, *made.options, "--cache", store, out=tmp_path / "out" / "run") as job,
    ):
        job.wait_until(lambda: n_shards(store) >= 2)
        made.scheduler.kill()
        done = job.end()
    assert done.code == 1
    assert_clean(done)
    assert done.err.splitlines()[-1] == (
        "error: the scheduler of the Dask cluster cannot be reached any more; what is finished is kept in the store: "
        "run the same command again with a cluster that is there, or without one"
    )
    assert 0 < len(kept(store)) < N_PICTURES
    assert everything(tmp_path / "out") == ["store"]
    assert everything(store) == ["embeddings", "scans"]


def test_a_job_that_is_killed_leaves_no_worker_of_its_own_and_goes_on_without_any(tmp_path, pictures, serial):
    store = tmp_path / "store"
    with driver("run", pictures, *SHARDED, *QUICK, "--workers", "1", "--cache", store, out=tmp_path / "run") as job:
        job.wait_until(lambda: n_shards(store) >= 2)
        assert len(job.workers()) == 1
        job.process.kill()
        assert job.left() == []
    n_kept = len(kept(store))
    done = gpu_cluster("run", pictures, *SHARDED, *QUICK, "--cache", store, out=tmp_path / "run")
    assert_same(done, serial)
    assert 0 < n_kept < N_PICTURES
    # The file that is none has a reason in the store.
    assert n_computed(done) in (N_PICTURES - n_kept, N_PICTURES + 1 - n_kept)
    assert everything(tmp_path) == ["run", "store"]


def test_workers_drop_the_tasks_of_a_job_that_is_killed_and_do_those_of_the_next(
    tmp_path, pictures, serial, two_workers
):
    # One shard of everything, which takes a worker many seconds.
    store, options = tmp_path / "store", ("--features", "vgg16", "--image-size", "128", "--batch-size", "2")
    given = ("run", pictures, *options, *QUICK, *two_workers.options, "--cache", store)
    with driver(*given, out=tmp_path / "run") as job:
        job.wait_until(lambda: logged(tmp_path, EMBEDDED))
        job.process.kill()
    # Batches that were complete are kept: the task heard that nobody waits for it.
    wait_for(lambda: n_shards(store) == 1, "the end of the task")
    assert 0 < len(kept(store)) < N_PICTURES
    done = gpu_cluster(
        "run", pictures, *SHARDED, *QUICK, *two_workers.options, "--cache", tmp_path / "next", out=tmp_path / "next-run"
    )
    assert_same(done, serial)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130)],
    ids=["SIGTERM", "SIGINT"],
)
def test_a_signal_to_all_processes_of_a_job_ends_it_after_the_batches(tmp_path, pictures, number, code):
    store = tmp_path / "store"
    # One shard of everything: without the batches that are complete, nothing would be kept.
    options = ("--features", "vgg16", "--image-size", "128", "--batch-size", "2")
    with driver("run", pictures, *options, *QUICK, "--workers", "1", "--cache", store, out=tmp_path / "run") as job:
        job.wait_until(lambda: logged(tmp_path, EMBEDDED))
        assert len(job.workers()) == 1
        job.signal_all(number)
        done = job.end()
        assert job.left() == []
    assert done.code == code
    assert_clean(done)
    assert done.err.splitlines()[-1].startswith(f"error: interrupted with {len(kept(store))} of ")
    assert 0 < len(kept(store)) < N_PICTURES
    assert len(kept(store)) % 2 == 0
    assert everything(tmp_path) == ["store"]


def test_a_second_ctrl_c_ends_a_job_with_workers_at_once(tmp_path, pictures):
    store = tmp_path / "store"
    # A batch of everything, for which a first Ctrl-C would wait.
    given = ("--features", "vgg16", "--image-size", "224", "--batch-size", str(N_PICTURES), "--workers", "1")
    with driver("run", pictures, *given, *QUICK, "--cache", store, out=tmp_path / "run") as job:
        job.wait_until(lambda: bool(job.workers()) and '"stage_started", "stage": "embed"' in events_of(tmp_path))
        job.signal_all(signal.SIGINT)
        assert job.process.stderr is not None
        assert any(line.startswith(b"interrupted: ") for line in iter(job.process.stderr.readline, b""))
        job.signal_all(signal.SIGINT)
        done = job.end()
        assert job.left() == []
    assert done.code == 130
    assert_clean(done)


def events_of(folder: Path) -> str:
    """Return the log of a run that is being staged in a folder."""
    return "".join(log.read_text() for log in folder.glob(".run.*/events.jsonl"))


def test_two_jobs_at_once_on_one_cluster_with_one_store_are_both_right(tmp_path, pictures, serial, two_workers):
    given = ("run", pictures, *SHARDED, *QUICK, *two_workers.options, "--cache", tmp_path / "store")
    with driver(*given, out=tmp_path / "a") as one, driver(*given, out=tmp_path / "b") as other:
        ends = [one.end(), other.end()]
    for end in ends:
        assert_same(end, serial)


# What a worker with another NumPy does first.
OTHER_NUMPY = """
import importlib.metadata as metadata

real = metadata.version
other = lambda name: "1.0" if name == "numpy" else real(name)
import gpu_cluster.executor.worker as worker
metadata.version = worker.version = other
"""


def test_workers_of_another_version_get_no_tasks_whenever_they_join_and_the_others_do_them(tmp_path, pictures, serial):
    store = tmp_path / "store"
    with cluster(tmp_path / "dask", 1) as made:
        made.add_worker(OTHER_NUMPY)
        fit, unfit = made.address(0), made.address(1)
        given = ("run", pictures, *SHARDED, *QUICK, *made.options, "--cache", store)
        with driver(*given, out=tmp_path / "run") as job:
            job.wait_until(lambda: n_shards(store) >= 1)
            # Suspended, so that the job does not end before the next one is there.
            made.workers[0].send_signal(signal.SIGSTOP)
            made.add_worker(OTHER_NUMPY)
            late = made.address(2)
            job.wait_until(lambda: f"The worker {late} gets no tasks: " in job.said())
            made.workers[0].send_signal(signal.SIGCONT)
            done = job.end()
    assert_same(done, serial)
    assert set(tasks_of(done)) == {fit}
    for address in (unfit, late):
        (notice,) = (notice for notice in notices(done) if address in notice)
        assert notice == f"The worker {address} gets no tasks: it has numpy 1.0 and not {np.__version__} as this job"


def test_without_a_worker_that_fits_the_job_ends_before_work_and_shows_both_values(tmp_path, pictures):
    with cluster(tmp_path / "dask", 0) as made:
        made.add_worker(OTHER_NUMPY)
        given = ("run", pictures, *SHARDED, *QUICK, "--scheduler-file", made.file, "--cache", tmp_path / "store")
        done = gpu_cluster(*given, out=tmp_path / "run")
        address = made.address(0)
    assert done.code == 2
    assert done.err.splitlines()[-1] == (
        f"error: no worker can be used: the worker {address} has numpy 1.0 and not {np.__version__} as this job"
    )
    assert not (tmp_path / "run").exists()


def apart(*mount: str | Path) -> str:
    """Return what a worker does first that sees other files: it mounts something. Skip the test where none may."""
    done = subprocess.run(["unshare", "-m", "true"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs a namespace of mounts: {done.stderr.strip()}")
    commands = [["mount", "--make-rprivate", "/"], ["mount", *map(str, mount)]]
    return f"""
import ctypes, subprocess
new_mounts = 0x20000
assert ctypes.CDLL(None).unshare(new_mounts) == 0
for command in {commands}:
    subprocess.run(command, check=True)
"""


def test_workers_with_other_weights_get_no_tasks_and_both_values_are_shown(tmp_path, pictures):
    names = ["ours.h5", "theirs.h5"]
    for name in names:
        shutil.copy(shipped_data() / "weights" / "vgg16_imagenet_notop.weights.h5", tmp_path / name)
    with h5py.File(tmp_path / "theirs.h5", "r+") as file:
        file["layers/conv2d/vars/1"][0] += 1
    ours, theirs = (hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in names)
    with cluster(tmp_path / "dask", 0) as made:
        made.add_worker(apart("--bind", tmp_path / "theirs.h5", tmp_path / "ours.h5"))
        given = ("run", pictures, *SHARDED, *QUICK, *made.options, "--weights", tmp_path / "ours.h5")
        done = gpu_cluster(*given, "--cache", tmp_path / "store", out=tmp_path / "run")
        address = made.address(0)
    assert done.code == 2
    assert_clean(done)
    assert done.err.splitlines()[-1] == (
        f"error: no worker can be used: the worker {address} would make other embeddings: it has weights {theirs!r} "
        f"and not {ours!r} as this job"
    )
    assert kept(tmp_path / "store") == []


def hidden(tmp_path: Path, pictures: Path, place: Path, what: str) -> None:
    """Check that a job ends before work if one of its workers does not see a folder, and names both sides."""
    place.mkdir(exist_ok=True)
    with cluster(tmp_path / "dask", 1) as made:
        made.add_worker(apart("-t", "tmpfs", "none", place))
        given = ("run", pictures, *SHARDED, *QUICK, *made.options, "--cache", tmp_path / "store")
        done = gpu_cluster(*given, out=tmp_path / "run")
        address = made.address(1)
    assert done.code == 2
    assert_clean(done)
    host = socket.gethostname()
    line = done.err.splitlines()[-1]
    assert line.startswith(f"error: {what} must be seen by all workers at the same path: '{place}")
    assert f"is there on {host}, and for the worker {address} on {host} cannot be read (No such file" in line
    assert line.endswith("use a folder that is shared, or workers on this machine (--workers)")
    # Neither work nor a token.
    assert [path.name for path in (tmp_path / "store").rglob("*") if path.is_file()] == []
    assert not (tmp_path / "run").exists()


def test_a_store_that_one_worker_does_not_see_ends_the_job_before_work(tmp_path, pictures):
    hidden(tmp_path, pictures, tmp_path / "store", "the store")


def test_pictures_that_one_worker_does_not_see_end_the_job_before_work(tmp_path, pictures):
    hidden(tmp_path, pictures, pictures, "the pictures")


def test_a_full_disk_on_one_worker_ends_the_job_as_it_ends_a_serial_one(tmp_path, pictures):
    # The store is shared, but this worker's files may not grow: so it has no room, and the others have.
    with cluster(tmp_path / "dask", 1) as made:
        made.add_worker("import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (20480, 20480))\n")
        given = ("run", pictures, *SHARDED, "--shard-size", "16", *QUICK, *made.options)
        done = gpu_cluster(*given, "--cache", tmp_path / "store", out=tmp_path / "run")
    assert done.code == 1
    assert_clean(done)
    assert done.err.splitlines()[-1].startswith(f"error: cannot use the store of embeddings at '{tmp_path / 'store'}")
    assert "File too large" in done.err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_a_scheduler_that_is_not_there_is_waited_for_until_the_job_is_told_to_end(tmp_path, pictures):
    given = ("run", pictures, *SHARDED, *QUICK, "--scheduler-file", tmp_path / "none.json")
    with driver(*given, "--cache", tmp_path / "store", out=tmp_path / "run") as job:
        told = f"Waiting for the scheduler of '{tmp_path / 'none.json'}', 300 s at most"
        job.wait_until(lambda: told in job.said())
        job.process.send_signal(signal.SIGTERM)
        done = job.end()
    assert done.code == 143
    assert done.err.splitlines()[-1].startswith("error: interrupted")
    assert everything(tmp_path) == ["store"]


UNGUARDED = """
import sys
import gpu_cluster

gpu_cluster.embed(sys.argv[1:], features="vgg16", image_size=32, workers=1)
"""
GUARDED = """
import sys
import gpu_cluster

if __name__ == "__main__":
    print(gpu_cluster.embed(sys.argv[1:], features="vgg16", image_size=32, workers=1).shape)
"""


def script(folder: Path, text: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    """Run a script of a user."""
    (folder / "script.py").write_text(text)
    given: list[str | Path] = [sys.executable, folder / "script.py", *arguments]
    return subprocess.run(given, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_a_script_that_starts_a_job_when_it_is_imported_is_told_so(tmp_path, pictures):
    done = script(tmp_path, UNGUARDED, pictures / "000.png")
    assert done.returncode == 1
    assert "put the call below a line if __name__ == '__main__':" in done.stderr
    assert "DeviceError: --workers 1: a cluster cannot be started here" in done.stderr.splitlines()[-1]


def test_a_script_may_have_workers(tmp_path, pictures):
    done = script(tmp_path, GUARDED, pictures / "000.png", pictures / "001.png")
    assert (done.stdout, done.stderr) == ("(2, 1024)\n", "")

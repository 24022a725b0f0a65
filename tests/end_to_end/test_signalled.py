"""A job that is signalled: it finishes its batch, says how far it came, and goes on from there."""

from __future__ import annotations

import os
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from gpu_cluster import RunResult, run
from gpu_cluster.events import Observer
from tests.forks import run_program
from tests.helpers import (
    EMBEDDED,
    FLOWERS,
    N_FLOWERS,
    SHARDED,
    TINY,
    TINY_OPTIONS,
    called,
    everything,
    kept,
    logged,
    n_computed,
    stamps,
    started,
    wait_until,
    write_pictures,
)

# Every third picture of the sample set, in one shard, which would take seconds after the first batch.
N_PICTURES = N_FLOWERS // 3
BATCH = 4
ONE_SHARD = ("--features", "vgg16", "--image-size", "64", "--batch-size", str(BATCH), "--shard-size", "256")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for file in sorted(FLOWERS.glob("*.png"))[::3]:
        (folder / file.name).symlink_to(file)
    return folder


def stopped_while_embedding(
    pictures: Path, out: Path, *arguments: str | Path, number: int = signal.SIGTERM
) -> tuple[int, str]:
    """Run a job, signal it after its first batch, and return its code and the last line of its errors."""
    with started("run", pictures, *arguments, "--k", "8", "--out", out) as process:
        wait_until(lambda: logged(out.parent, EMBEDDED), process)
        process.send_signal(number)
        _, found = process.communicate(timeout=120)
    return process.returncode, found.splitlines()[-1]


@dataclass(frozen=True)
class Stopped:
    """What a job that was signalled while it embedded has said and left."""

    code: int
    line: str
    store: Path
    beside: list[str]


@pytest.fixture(
    scope="module", params=[(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"], name="stopped"
)
def _stopped(
    request: pytest.FixtureRequest, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Stopped, int]:
    """A job that was signalled, and the exit code that it should have."""
    folder = tmp_path_factory.mktemp("stopped")
    (folder / "out").mkdir()
    number, expected = request.param
    given = (*ONE_SHARD, "--cache", folder / "store")
    code, line = stopped_while_embedding(pictures, folder / "out" / "run", *given, number=number)
    return Stopped(code, line, folder / "store", everything(folder / "out")), expected


def test_the_exit_code_of_a_job_that_is_signalled_tells_the_signal(stopped):
    job, expected = stopped
    assert job.code == expected


def test_a_job_that_is_signalled_says_how_far_it_came_and_how_to_go_on(stopped):
    job, _ = stopped
    assert job.line.startswith(
        f"error: interrupted with {len(kept(job.store))} of {N_PICTURES} pictures embedded; they are kept in "
    )
    assert job.line.endswith(": run the same command again to go on")


def test_a_job_that_is_signalled_keeps_its_whole_batches_and_does_not_finish_its_shard(stopped):
    job, _ = stopped
    n_kept = len(kept(job.store))
    assert 0 < n_kept < N_PICTURES
    assert n_kept % BATCH == 0


def test_a_job_that_is_signalled_leaves_no_run_folder(stopped):
    job, _ = stopped
    assert job.beside == []


# Whole jobs: together they take more than 10 s.
pytestmark = pytest.mark.slow

GOING_ON = (*ONE_SHARD, "--k", "8", "--k-range", "8:8", "--n-init", "2", "--thumbnails", "1")


# What is kept does not depend on the signal.
@pytest.mark.parametrize("stopped", [(signal.SIGTERM, 143)], ids=["SIGTERM"], indirect=True)
def test_a_job_that_was_signalled_goes_on_from_there_and_ends_as_one_left_alone(tmp_path, pictures, stopped):
    job, _ = stopped
    store = Path(shutil.copytree(job.store, tmp_path / "store"))
    before, n_kept = stamps(store), len(kept(store))
    rerun = called("run", pictures, *GOING_ON, "--cache", store, out=tmp_path / "run")
    assert n_computed(rerun) == N_PICTURES - n_kept
    assert before.items() <= stamps(store).items()
    alone = called("run", pictures, *GOING_ON, "--no-cache", out=tmp_path / "alone")
    assert (rerun.folder / "assignments.csv").read_bytes() == (alone.folder / "assignments.csv").read_bytes()


def test_a_second_ctrl_c_keeps_the_whole_batches_too(tmp_path):
    # One shard of everything, which takes many seconds.
    out = tmp_path / "run"
    whole = ("--features", "vgg16", "--image-size", "128", "--batch-size", "2", "--shard-size", str(N_FLOWERS))
    options = (*whole, "--cache", tmp_path / "store", "--out", out)
    with started("run", FLOWERS, *options) as process:
        wait_until(lambda: logged(out.parent, EMBEDDED), process)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        lines = iter(process.stderr.readline, b"")
        told = b"interrupted: the job ends after the batch of pictures in work; press Ctrl-C again"
        assert any(line.startswith(told) for line in lines)
        process.send_signal(signal.SIGINT)
        _, found = process.communicate(timeout=60)
    assert process.returncode == 130
    assert found.splitlines()[-1].startswith("error: interrupted")
    assert len(kept(tmp_path / "store")) < N_FLOWERS
    assert len(kept(tmp_path / "store")) % 2 == 0


def test_without_a_store_a_signalled_job_ends_at_the_next_batch(tmp_path):
    options = ("--features", "vgg16", "--image-size", "64", "--batch-size", "4", "--no-cache")
    code, line = stopped_while_embedding(FLOWERS, tmp_path / "run", *options)
    n_done = int(line.split()[3])
    assert code == 143
    assert line.endswith("pictures embedded: with --no-cache nothing is kept, and the same command begins again")
    # One batch when the signal comes, a second that is on its way; the log is read a moment late.
    assert n_done < N_FLOWERS / 2
    assert everything(tmp_path) == []


def write_files_slow_to_read(folder: Path, n: int) -> None:
    """Write sparse files: they take no disk, but a tenth of a second each to hash."""
    folder.mkdir()
    for number in range(n):
        with (folder / f"{number:03d}.png").open("wb") as file:
            file.truncate(50 << 20)


@pytest.mark.parametrize(
    ("option", "go_on"),
    [
        ("seed = 1", "run the same command again to go on"),
        ("store.no_cache = true", "with --no-cache nothing is kept, and the same command begins again"),
        ("store.force = true", "leave out --force to go on; with --force the same command begins again"),
    ],
)
def test_sigterm_while_the_files_are_read_ends_with_143_and_no_run_folder(tmp_path, option, go_on):
    write_files_slow_to_read(tmp_path / "in", 400)
    (tmp_path / "options.toml").write_text(option)

    def reads_a_file() -> bool:
        for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
            # It may be closed again before it is looked at.
            with suppress(FileNotFoundError):
                if str(tmp_path / "in") in os.readlink(descriptor):
                    return True
        return False

    given = ("run", tmp_path / "in", *SHARDED, "--config", tmp_path / "options.toml", "--out", tmp_path / "run")
    with started(*given) as process:
        wait_until(reads_a_file, process)
        process.send_signal(signal.SIGTERM)
        _, found = process.communicate(timeout=60)
    assert process.returncode == 143
    assert found.splitlines()[-1] == f"error: interrupted; no results were written: {go_on}"
    assert everything(tmp_path) == ["in", "options.toml"]


def test_sigterm_in_the_sweep_ends_with_143_and_keeps_the_embeddings(tmp_path, cache):
    write_pictures(tmp_path / "in", 32)
    out = tmp_path / "run"
    # A sweep of minutes.
    with started("run", tmp_path / "in", *SHARDED, "--k-range", "2:30", "--n-init", "5000", "--out", out) as process:
        wait_until(lambda: logged(tmp_path, '"stage_started", "stage": "sweep"'), process)
        process.send_signal(signal.SIGTERM)
        _, found = process.communicate(timeout=60)
    assert process.returncode == 143
    assert found.splitlines()[-1] == "error: interrupted; no results were written: run the same command again to go on"
    assert everything(tmp_path) == ["in"]
    assert len(kept(cache)) == 32


def test_an_interrupt_while_the_files_are_read_does_not_wait_for_the_rest_of_them(tmp_path):
    class Interrupted(Observer):
        """Raises where Ctrl-C may: while progress is shown."""

        def progress(self, stage, done, total):
            raise KeyboardInterrupt

    write_files_slow_to_read(tmp_path / "in", 150)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "in", **TINY, out=tmp_path / "run", observer=Interrupted())
    # The few files that are being read when it comes take less than a second; all of them ten and more.
    assert time.monotonic() - start < 4


# What stands before and after the import that a signal meets: the work, and how it goes on from an ImportError.
MET = {
    "raised": ("gpu_cluster.jobs.prepare", "discover", 'raise ImportError("initialization failed")'),
    "swallowed": ("gpu_cluster.jobs.prepare", "discover", "pass"),
    "in the page": ("gpu_cluster.report.page", "_render", 'raise ImportError("initialization failed")'),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A run on six pictures, with the store that it made beside it."""
    place = tmp_path_factory.mktemp("whole")
    write_pictures(place / "in", 6)
    return run(place / "in", **TINY, cache=place / "store", out=place / "run")


@pytest.mark.parametrize("met", MET)
def test_a_signal_that_meets_an_import_ends_the_job_all_the_same(tmp_path, whole, met):
    # While a C extension is imported (here 1 of 150 signals at random moments of scikit-learn's import) what the signal
    # raises becomes an ImportError, which an optional import swallows. A real import would take hundreds of tries.
    module, name, goes_on = MET[met]
    code = f"""
import os, signal, sys
import gpu_cluster.cli.main
import {module}

real = {module}.{name}

def meet_an_import(*given, **options):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    except BaseException:
        {goes_on}
    return real(*given, **options)

{module}.{name} = meet_an_import
gpu_cluster.cli.main.main()
"""
    # What is kept of the whole run makes the processes short ones.
    images, store = (whole.folder.with_name(name) for name in ("in", "store"))
    given = ["run", images, *TINY_OPTIONS, "--cache", store, "--out", tmp_path / "run"]
    assert_ends_as_signalled(code, given)
    assert everything(tmp_path) == []
    if met == "in the page":
        assert_ends_as_signalled(code, ["report", whole.folder])


def assert_ends_as_signalled(code: str, given: list[str | Path]) -> None:
    done = run_program(code, *given)
    assert done.returncode == 143, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: interrupted; no results were written: run the same")

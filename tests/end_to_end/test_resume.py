"""A job that was stopped goes on, and nothing is computed twice: real processes, really killed, and a real store."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from gpu_cluster import run
from gpu_cluster.config import InputConfig, shipped_data
from gpu_cluster.events import Observer
from gpu_cluster.images.scan import scan
from gpu_cluster.images.source import open_source
from gpu_cluster.manifest import Manifest
from gpu_cluster.results import RunResult
from gpu_cluster.store.store import Store
from tests.conftest import Finished, gpu_cluster, picture, started, wait_until, write_pictures

FLOWERS = shipped_data() / "flowers"
N_FLOWERS = 210

# Many shards in a job of seconds.
SHARD = 16
SMALL = ("--image-size", "32", "--batch-size", "8", "--shard-size", str(SHARD))
TINY: dict[str, Any] = {"image_size": 32, "k": 2}


# What lies in the store


@dataclass(frozen=True)
class Stamp:
    """What tells a file from one that was written in its place with the same bytes."""

    inode: int
    mtime_ns: int
    content: bytes


def shards(store: Path) -> dict[str, Stamp]:
    """Return the finished shards of embeddings by name."""
    files = store.glob("embeddings/*/shard-*.parquet")
    return {file.name: Stamp(file.stat().st_ino, file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def kept(store: Path) -> list[str]:
    """Return the content hash of every row of every shard of embeddings."""
    files = store.glob("embeddings/*/shard-*.parquet")
    return [content for file in files for content in pq.read_table(file)["content_hash"].to_pylist()]


def shard_sizes(store: Path) -> list[int]:
    return [pq.read_metadata(file).num_rows for file in store.glob("embeddings/*/shard-*.parquet")]


def everything(folder: Path) -> list[str]:
    """Return the names of all that lies right in a folder, hidden or not."""
    return sorted(os.listdir(folder))


# Running, stopping, and running again


def n_computed(finished: Finished) -> int:
    found: int = finished.json("run.json")["n_computed"]
    return found


def computed(result: RunResult) -> int:
    assert result.findings is not None
    return result.findings.embeddings.n_computed


def assignments(result: RunResult) -> pd.DataFrame:
    return pd.read_csv(result.folder / "assignments.csv")


def age(files: Sequence[Path]) -> None:
    """Give files a time of change long ago: the scan does not trust what changed a moment before it."""
    for file in files:
        os.utime(file, ns=(1_700_000_000_500_000_000, 1_700_000_000_500_000_000))


def logged(out: Path, event: str) -> bool:
    """Tell whether a run that is being staged beside `out` has written an event like this one."""
    return any(event in log.read_text() for log in out.parent.glob(f".{out.name}.*/events.jsonl"))


def stopped_while_embedding(out: Path, *arguments: str | Path, number: int = signal.SIGTERM) -> tuple[int, str]:
    """Run the sample set, signal it after its first batch, and return its code and the last line of its errors."""
    with started("run", FLOWERS, *arguments, "--k", "8", "--out", out) as process:
        wait_until(lambda: logged(out, '"stage": "embed", "done"'), process)
        process.send_signal(number)
        _, found = process.communicate(timeout=120)
    return process.returncode, found.splitlines()[-1]


# A job that is killed


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
    """A job killed at ten moments, and every end that it came to between them and after."""

    undisturbed: End
    kills: list[Kill]
    ends: list[End]


class _Job:
    """A job with a run folder to be, and a store."""

    def __init__(self, out: Path, store: Path) -> None:
        self.out = out
        self.store = store
        # At 128 pixels a side most of the job is embedding; at 32 little of it.
        self._command = ("run", *SMALL, "--image-size", "128", "--cache", store, "--out", out)

    def run(self, *, kill_after_s: float | None) -> Kill | End:
        """Run it to its end, or kill it before."""
        before, n_missing = shards(self.store), N_FLOWERS - len(kept(self.store))
        with started(*self._command) as process:
            try:
                _, found = process.communicate(timeout=kill_after_s)
            except subprocess.TimeoutExpired:
                process.kill()
        if process.returncode == -signal.SIGKILL:
            # Before the store is made there is nothing to verify.
            self.store.mkdir(exist_ok=True)
            verified = gpu_cluster("cache", "verify", "--cache", self.store)
            return Kill(before, shards(self.store), len(kept(self.store)), verified.code)
        assert process.returncode == 0, found
        return End(
            assignments=(self.out / "assignments.csv").read_bytes(),
            n_computed=json.loads((self.out / "run.json").read_text())["n_computed"],
            n_missing=n_missing,
            kept=kept(self.store),
            before=before,
            after=shards(self.store),
            beside=everything(self.out.parent),
        )


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """The sample set, killed ten times, each time in another tenth of what it takes undisturbed.

    Each rerun has the same command and store, until the job has nothing left to embed: then it is let to its end, and
    the next kill is of a job with a new store.
    """
    folder = tmp_path_factory.mktemp("killed")
    start = time.monotonic()
    undisturbed = _Job(folder / "undisturbed", folder / "store").run(kill_after_s=None)
    span = time.monotonic() - start
    assert isinstance(undisturbed, End)
    random = np.random.default_rng(20)
    stores = (folder / f"store-{number}" for number in itertools.count())
    kills: list[Kill] = []
    ends: list[End] = []
    job = _Job(folder / "out" / "run", next(stores))
    for moment in span * (random.permutation(10) + random.random(10)) / 10:
        kill_after_s = float(moment)
        while isinstance(found := job.run(kill_after_s=kill_after_s), End):
            # Quicker than was measured: the same kill is tried on a new one, and a little earlier.
            ends.append(found)
            job = _Job(job.out, next(stores))
            kill_after_s *= 0.95
        kills.append(found)
        if found.n_kept == N_FLOWERS:
            last = job.run(kill_after_s=None)
            assert isinstance(last, End)
            ends.append(last)
            job = _Job(job.out, next(stores))
    last = job.run(kill_after_s=None)
    assert isinstance(last, End)
    return Story(undisturbed, kills, [*ends, last])


@pytest.mark.slow
def test_a_job_killed_at_ten_moments_ends_with_the_assignments_of_one_left_alone(killed):
    assert len(killed.kills) == 10
    assert [end.assignments == killed.undisturbed.assignments for end in killed.ends] == [True] * len(killed.ends)


@pytest.mark.slow
def test_no_shard_is_written_again_after_a_kill(killed):
    steps = [*killed.kills, *killed.ends]
    assert [step.before.items() <= step.after.items() for step in steps] == [True] * len(steps)


@pytest.mark.slow
def test_every_picture_is_kept_once_however_often_the_job_was_killed(killed):
    assert {len(end.kept) for end in killed.ends} == {N_FLOWERS}
    assert {len(set(end.kept)) for end in killed.ends} == {N_FLOWERS}


@pytest.mark.slow
def test_a_job_that_goes_on_computes_what_was_missing(killed):
    assert [end.n_computed for end in killed.ends] == [end.n_missing for end in killed.ends]


@pytest.mark.slow
def test_the_store_verifies_after_each_kill(killed):
    assert [kill.verify for kill in killed.kills] == [0] * 10


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
def test_a_job_killed_while_it_embeds_loses_one_shard_at_most(tmp_path):
    out, store = tmp_path / "run", tmp_path / "store"
    with started("run", FLOWERS, *SMALL, "--cache", store, "--out", out) as process:
        wait_until(lambda: len(shards(store)) >= 3, process)
        process.kill()
        process.communicate()
    before, n_kept, n_done = shards(store), len(kept(store)), pictures_done(out)
    rerun = gpu_cluster("run", FLOWERS, *SMALL, "--k", "8", "--cache", store, out=out)
    assert 3 * SHARD <= n_kept <= n_done <= n_kept + SHARD
    assert n_computed(rerun) == N_FLOWERS - n_kept
    assert before.items() <= shards(store).items()


def test_an_earlier_run_moved_aside_by_a_run_that_was_killed_is_cleared_away(tmp_path):
    # A kill between the two renames that put a new run in an old one's place: a moment too short to hit.
    write_pictures(tmp_path / "pictures", 3)
    run(tmp_path / "pictures", **TINY, out=tmp_path / "out" / "run")
    os.rename(tmp_path / "out" / "run", tmp_path / "out" / ".run.old.0a1b2c3d")
    run(tmp_path / "pictures", **TINY, out=tmp_path / "out" / "run")
    assert everything(tmp_path / "out") == ["run"]


# A job that is signalled


@dataclass(frozen=True)
class Stopped:
    """What a job that was signalled while it embedded the sample set has said and left."""

    code: int
    line: str
    store: Path
    beside: list[str]


@pytest.fixture(
    scope="module", params=[(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"], name="stopped"
)
def _stopped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Stopped, int]:
    """A job that was signalled, and the exit code that it should have."""
    folder = tmp_path_factory.mktemp("stopped")
    (folder / "out").mkdir()
    number, expected = request.param
    code, line = stopped_while_embedding(folder / "out" / "run", *SMALL, "--cache", folder / "store", number=number)
    return Stopped(code, line, folder / "store", everything(folder / "out")), expected


@pytest.mark.slow
def test_the_exit_code_of_a_job_that_is_signalled_tells_the_signal(stopped):
    job, expected = stopped
    assert job.code == expected


@pytest.mark.slow
def test_a_job_that_is_signalled_says_how_far_it_came_and_how_to_go_on(stopped):
    job, _ = stopped
    assert job.line.startswith(
        f"error: interrupted with {len(kept(job.store))} of {N_FLOWERS} pictures embedded; they are kept in "
    )
    assert job.line.endswith(": run the same command again to go on")


def test_a_job_that_is_signalled_finishes_its_shard_and_begins_no_other(stopped):
    job, _ = stopped
    assert set(shard_sizes(job.store)) == {SHARD}
    # The signal comes after the first batch of the first shard; two shards more are room for a slow sender.
    assert len(shard_sizes(job.store)) <= 3


def test_a_job_that_is_signalled_leaves_no_run_folder(stopped):
    job, _ = stopped
    assert job.beside == []


@pytest.mark.slow
def test_a_job_that_was_signalled_goes_on_from_there_and_ends_as_one_left_alone(tmp_path, stopped):
    job, _ = stopped
    store = Path(shutil.copytree(job.store, tmp_path / "store"))
    before, n_kept = shards(store), len(kept(store))
    options = (FLOWERS, *SMALL, "--k", "8")
    rerun = gpu_cluster("run", *options, "--cache", store, out=tmp_path / "run")
    alone = gpu_cluster("run", *options, "--no-cache", out=tmp_path / "alone")
    assert n_computed(rerun) == N_FLOWERS - n_kept
    assert before.items() <= shards(store).items()
    assert (rerun.folder / "assignments.csv").read_bytes() == (alone.folder / "assignments.csv").read_bytes()


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_and_loses_the_shard(tmp_path):
    # One shard of everything, which takes many seconds: it would be kept if it were finished.
    out = tmp_path / "run"
    whole = ("--image-size", "128", "--batch-size", "2", "--shard-size", str(N_FLOWERS))
    options = (*whole, "--cache", tmp_path / "store", "--out", out)
    with started("run", FLOWERS, *options) as process:
        wait_until(lambda: logged(out, '"stage": "embed", "done"'), process)
        assert process.stderr is not None
        process.send_signal(signal.SIGINT)
        lines = iter(process.stderr.readline, "")
        assert any(line.startswith("interrupted: finishing the current shard") for line in lines)
        process.send_signal(signal.SIGINT)
        _, found = process.communicate(timeout=60)
    assert process.returncode == 130
    assert found.splitlines()[-1].startswith("error: interrupted")
    assert kept(tmp_path / "store") == []


@pytest.mark.slow
def test_without_a_store_a_signalled_job_ends_at_the_next_batch(tmp_path):
    options = ("--image-size", "64", "--batch-size", "4", "--no-cache")
    code, line = stopped_while_embedding(tmp_path / "run", *options)
    n_done = int(line.split()[3])
    assert code == 143
    assert "nothing was kept" in line
    # One batch when the signal comes, a second that is on its way; the log is read a moment late.
    assert n_done < N_FLOWERS / 2
    assert everything(tmp_path) == []


def write_files_slow_to_read(folder: Path, n: int) -> None:
    """Write sparse files: they take no disk, but a tenth of a second each to hash."""
    folder.mkdir()
    for number in range(n):
        with (folder / f"{number:03d}.png").open("wb") as file:
            file.truncate(50 << 20)


def test_sigterm_while_the_files_are_read_ends_with_143_and_no_run_folder(tmp_path):
    write_files_slow_to_read(tmp_path / "in", 400)

    def reads_a_file() -> bool:
        for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
            # It may be closed again before it is looked at.
            with suppress(FileNotFoundError):
                if str(tmp_path / "in") in os.readlink(descriptor):
                    return True
        return False

    with started("run", tmp_path / "in", *SMALL, "--out", tmp_path / "run") as process:
        wait_until(reads_a_file, process)
        process.send_signal(signal.SIGTERM)
        _, found = process.communicate(timeout=60)
    assert process.returncode == 143
    assert found.splitlines()[-1] == "error: interrupted; no results were written: run the same command again to go on"
    assert everything(tmp_path) == ["in"]


@pytest.mark.slow
def test_sigterm_in_the_sweep_ends_with_143_and_keeps_the_embeddings(tmp_path, cache):
    write_pictures(tmp_path / "in", 40)
    out = tmp_path / "run"
    # A sweep of minutes.
    with started("run", tmp_path / "in", *SMALL, "--k-range", "2:30", "--n-init", "5000", "--out", out) as process:
        wait_until(lambda: logged(out, '"stage_started", "stage": "sweep"'), process)
        process.send_signal(signal.SIGTERM)
        _, found = process.communicate(timeout=60)
    assert process.returncode == 143
    assert found.splitlines()[-1] == "error: interrupted; no results were written: run the same command again to go on"
    assert everything(tmp_path) == ["in"]
    assert len(kept(cache)) == 40


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


# A rerun


def test_pictures_added_are_all_that_is_computed(tmp_path, sample_images):
    (tmp_path / "in").mkdir()
    for file in sample_images[:40:2]:
        shutil.copy(file, tmp_path / "in")
    run(tmp_path / "in", **TINY, out=tmp_path / "run")
    # Between the others by name: every later row moves.
    for file in sample_images[1:21:2]:
        shutil.copy(file, tmp_path / "in")
    result = run(tmp_path / "in", **TINY, out=tmp_path / "run")
    assert computed(result) == 10
    assert len(assignments(result)) == 30


@pytest.mark.slow
def test_pictures_added_and_removed_again_leave_the_result_as_it_was(tmp_path, sample_images):
    (tmp_path / "in").mkdir()
    for file in sample_images[:40:2]:
        shutil.copy(file, tmp_path / "in")
    first = assignments(run(tmp_path / "in", image_size=32, k=4, out=tmp_path / "first"))
    added = [Path(shutil.copy(file, tmp_path / "in")) for file in sample_images[1:21:2]]
    run(tmp_path / "in", image_size=32, k=4, out=tmp_path / "second")
    for file in added:
        file.unlink()
    result = run(tmp_path / "in", image_size=32, k=4, out=tmp_path / "third")
    third = assignments(result)
    assert computed(result) == 0
    assert third["cluster"].tolist() == first["cluster"].tolist()
    # 1e-4 is the bound that is promised; the embeddings are the same to the bit.
    np.testing.assert_allclose(third["distance"], first["distance"], rtol=0, atol=1e-4)


ENGINES_LOADED = """
import json, sys
from gpu_cluster.cli.main import main
sys.argv = ["gpu-cluster", "run", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    print(json.dumps([end.code, sorted({"tensorflow", "keras"} & set(sys.modules))]))
"""


def code_and_engines_loaded(*arguments: str | Path) -> list[Any]:
    """Run the command line in a process of its own; return its code, and which of TensorFlow and Keras it imported."""
    command = [sys.executable, "-c", ENGINES_LOADED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_a_first_run_imports_tensorflow(tmp_path):
    # Or else the test that a rerun does not import it would show nothing.
    write_pictures(tmp_path / "in", 3)
    arguments = (tmp_path / "in", *SMALL, "--k", "2", "--quiet", "--out", tmp_path / "run")
    assert code_and_engines_loaded(*arguments) == [0, ["keras", "tensorflow"]]


def test_a_rerun_imports_no_tensorflow_and_has_no_speed(tmp_path):
    write_pictures(tmp_path / "in", 3)
    run(tmp_path / "in", **TINY, out=tmp_path / "first")
    arguments = (tmp_path / "in", "--image-size", "32", "--k", "2", "--quiet", "--out", tmp_path / "run")
    assert code_and_engines_loaded(*arguments) == [0, []]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["n_computed"], record["images_per_s"]) == (0, None)


@pytest.mark.slow
def test_a_rerun_that_sweeps_and_scores_labels_imports_no_tensorflow(tmp_path):
    for folder in ("daisy", "rose"):
        write_pictures(tmp_path / "in" / folder, 6)
    run(tmp_path / "in", image_size=32, labels_from_folders=True, out=tmp_path / "first")
    arguments = (tmp_path / "in", "--image-size", "32", "--labels-from-folders", "--out", tmp_path / "run")
    assert code_and_engines_loaded(*arguments) == [0, []]


@pytest.mark.slow
def test_the_verdict_on_a_damaged_file_is_kept_and_reported_again_without_tensorflow(tmp_path):
    files = write_pictures(tmp_path / "in", 4)
    # The header is whole, so only decoding tells.
    files[2].write_bytes(files[2].read_bytes()[:-100])
    first = run(tmp_path / "in", **TINY, out=tmp_path / "first")
    arguments = (tmp_path / "in", "--image-size", "32", "--k", "2", "--quiet", "--out", tmp_path / "run")
    assert code_and_engines_loaded(*arguments) == [0, []]
    reported = "path,reason\n002.png,PNG that is damaged or cut short: Truncated File Read\n"
    assert (first.folder / "bad_files.csv").read_text() == reported
    assert (tmp_path / "run" / "bad_files.csv").read_text() == reported


@pytest.mark.slow
def test_nothing_but_damaged_files_is_reported_again_without_tensorflow(tmp_path):
    for file in write_pictures(tmp_path / "in", 2):
        file.write_bytes(file.read_bytes()[:-100])
    arguments = (tmp_path / "in", "--image-size", "32", "--quiet", "--out", tmp_path / "run")
    assert code_and_engines_loaded(*arguments)[0] == 3
    assert code_and_engines_loaded(*arguments) == [3, []]


# A picture that changes


@pytest.fixture
def bitmaps(tmp_path: Path) -> list[Path]:
    """Pictures whose size does not depend on what they show."""
    files = write_pictures(tmp_path / "in", 6, suffix=".bmp")
    age(files)
    return files


def test_a_picture_edited_in_place_is_all_that_is_computed(tmp_path, bitmaps):
    first = assignments(run(tmp_path / "in", **TINY, out=tmp_path / "run"))
    picture(100).save(bitmaps[3])
    result = run(tmp_path / "in", **TINY, out=tmp_path / "run")
    assert computed(result) == 1
    changed = assignments(result)["content_hash"] != first["content_hash"]
    assert changed.tolist() == [False, False, False, True, False, False]


def test_an_edit_that_sets_the_time_of_change_back_is_not_noticed(tmp_path, bitmaps):
    run(tmp_path / "in", **TINY, out=tmp_path / "run")
    picture(100).save(bitmaps[3])
    age(bitmaps)
    assert computed(run(tmp_path / "in", **TINY, out=tmp_path / "run")) == 0


def test_rehash_notices_an_edit_that_sets_the_time_of_change_back(tmp_path, bitmaps):
    run(tmp_path / "in", **TINY, out=tmp_path / "run")
    picture(100).save(bitmaps[3])
    age(bitmaps)
    assert computed(run(tmp_path / "in", **TINY, rehash=True, out=tmp_path / "run")) == 1


def test_what_rehash_found_counts_from_then_on(tmp_path, bitmaps):
    run(tmp_path / "in", **TINY, out=tmp_path / "run")
    picture(100).save(bitmaps[3])
    age(bitmaps)
    second = assignments(run(tmp_path / "in", **TINY, rehash=True, out=tmp_path / "run"))
    third = assignments(run(tmp_path / "in", **TINY, out=tmp_path / "run"))
    assert third["content_hash"].tolist() == second["content_hash"].tolist()


def test_a_picture_that_was_moved_is_not_computed_again(tmp_path, bitmaps):
    run(tmp_path / "in", **TINY, out=tmp_path / "run")
    bitmaps[3].rename(tmp_path / "in" / "moved.bmp")
    assert computed(run(tmp_path / "in", **TINY, out=tmp_path / "run")) == 0


class Edits(Observer):
    """Does something to the files when the scan is over, before any is embedded."""

    def __init__(self, edit: Callable[[], object]) -> None:
        self._edit = edit

    def stage_finished(self, stage: str, elapsed_s: float) -> None:
        if stage == "scan":
            self._edit()


CHANGES: dict[str, Callable[[Path], object]] = {
    "edited": lambda file: picture(100).save(file),
    "cut short": lambda file: os.truncate(file, 1000),
    "removed": os.unlink,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_file_that_changes_between_scan_and_embedding_is_bad_and_says_so(tmp_path, bitmaps, change):
    observer = Edits(lambda: change(bitmaps[3]))
    result = run(tmp_path / "in", **TINY, out=tmp_path / "run", observer=observer)
    assert result.manifest.bad == {3: "it changed while the job ran"}
    assert assignments(result)["path"].tolist() == ["000.bmp", "001.bmp", "002.bmp", "004.bmp", "005.bmp"]


def test_an_embedding_of_a_file_that_changed_is_not_kept_under_the_old_hash(tmp_path, cache, bitmaps):
    before = bitmaps[3].read_bytes()
    run(tmp_path / "in", **TINY, out=tmp_path / "run", observer=Edits(lambda: picture(100).save(bitmaps[3])))
    assert len(kept(cache)) == 5
    bitmaps[3].write_bytes(before)
    assert computed(run(tmp_path / "in", **TINY, out=tmp_path / "run")) == 1


def test_a_file_that_changes_while_its_shard_is_computed_is_bad_too(tmp_path, cache):
    files = write_pictures(tmp_path / "in", 6)

    class EditsLate(Observer):
        """Edits a file that is decoded already, of a shard that is not whole yet."""

        def progress(self, stage, done, total):
            if (stage, done) == ("embed", 4):
                picture(100).save(files[0])

    result = run(tmp_path / "in", **TINY, batch_size=2, out=tmp_path / "run", observer=EditsLate())
    assert result.manifest.bad == {0: "it changed while the job ran"}
    assert len(kept(cache)) == 5


def scanned(file: Path, store: Path, observer: Observer) -> str | None:
    """Scan one file, and return the content hash that it is taken to have."""
    manifest = Manifest(file.parent, (file.name,))
    return (
        scan(manifest, open_source(manifest.root), InputConfig(), observer, store=Store(store, observer))
        .files[0]
        .content_hash
    )


def write_where_clocks_tick_in_seconds(file: Path, content: bytes) -> None:
    """Write a file as it comes out on a file system that keeps whole seconds only."""
    file.write_bytes(content)
    second = int(time.time())
    os.utime(file, (second, second))


@pytest.mark.slow
def test_a_change_in_the_same_tick_of_the_clock_as_the_scan_is_noticed_by_the_next_run(tmp_path):
    file, other = write_pictures(tmp_path / "in", 2, suffix=".bmp")
    contents = file.read_bytes(), other.read_bytes()

    class EditsAtOnce(Observer):
        """Edits the file when it has just been read; then the scan goes on for as long as other files take."""

        def progress(self, stage, done, total):
            write_where_clocks_tick_in_seconds(file, contents[1])
            time.sleep(3)

    # A second has just begun, so that both changes are in it.
    time.sleep(1 - time.time() % 1)
    write_where_clocks_tick_in_seconds(file, contents[0])
    before = scanned(file, tmp_path / "store", EditsAtOnce())
    assert scanned(file, tmp_path / "store", Observer()) != before


# What else the store is asked


def test_force_computes_everything_again_and_gives_the_same(tmp_path):
    write_pictures(tmp_path / "in", 6)
    first = run(tmp_path / "in", **TINY, out=tmp_path / "first")
    second = run(tmp_path / "in", **TINY, force=True, out=tmp_path / "second")
    assert computed(second) == 6
    assert (second.folder / "assignments.csv").read_bytes() == (first.folder / "assignments.csv").read_bytes()


def test_force_keeps_every_picture_once(tmp_path, cache):
    # The same shard has the same bytes, and so the same name.
    write_pictures(tmp_path / "in", 6)
    run(tmp_path / "in", **TINY, out=tmp_path / "run")
    run(tmp_path / "in", **TINY, force=True, out=tmp_path / "run")
    assert len(kept(cache)) == len(set(kept(cache))) == 6


def test_another_recipe_is_computed_for_itself(tmp_path):
    write_pictures(tmp_path / "in", 4)
    run(tmp_path / "in", **TINY, out=tmp_path / "run")
    assert computed(run(tmp_path / "in", **TINY, fit="stretch", out=tmp_path / "run")) == 4


def test_both_recipes_of_a_picture_are_kept(tmp_path):
    write_pictures(tmp_path / "in", 4)
    for fit in ("crop", "stretch"):
        run(tmp_path / "in", **TINY, fit=fit, out=tmp_path / "run")
    assert computed(run(tmp_path / "in", **TINY, out=tmp_path / "run")) == 0


def test_the_record_of_a_run_counts_what_was_found_good_bad_and_twice(tmp_path):
    files = write_pictures(tmp_path / "in", 4)
    shutil.copy(files[1], tmp_path / "in" / "copy.png")
    (tmp_path / "in" / "empty.jpg").touch()
    result = run(tmp_path / "in", **TINY, out=tmp_path / "run")
    record = json.loads((result.folder / "run.json").read_text())
    assert record["files"] == {"found": 6, "ok": 4, "bad": 1, "duplicate": 1}


def test_a_store_without_the_file_of_its_key_loses_no_shard_when_it_is_verified(tmp_path, cache):
    write_pictures(tmp_path / "in", 4)
    run(tmp_path / "in", **TINY, out=tmp_path / "run")
    # What `cache info` shows; each shard holds its key too.
    for file in cache.glob("embeddings/*/_key.json"):
        file.unlink()
    gpu_cluster("cache", "verify")
    assert len(kept(cache)) == 4


def test_without_a_cache_nothing_is_kept_and_everything_is_computed_again(tmp_path, cache):
    write_pictures(tmp_path / "in", 6)
    run(tmp_path / "in", **TINY, no_cache=True, out=tmp_path / "run")
    assert computed(run(tmp_path / "in", **TINY, no_cache=True, out=tmp_path / "run")) == 6
    assert not cache.exists()


def test_a_store_named_is_used_and_no_other(tmp_path, cache):
    write_pictures(tmp_path / "in", 6)
    run(tmp_path / "in", **TINY, cache=tmp_path / "store", out=tmp_path / "run")
    assert len(kept(tmp_path / "store")) == 6
    assert not cache.exists()
    assert computed(run(tmp_path / "in", **TINY, cache=tmp_path / "store", out=tmp_path / "run")) == 0


def test_a_store_that_was_moved_is_used_where_it_is(tmp_path):
    write_pictures(tmp_path / "in", 6)
    run(tmp_path / "in", **TINY, cache=tmp_path / "store", out=tmp_path / "run")
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    assert computed(run(tmp_path / "in", **TINY, cache=tmp_path / "elsewhere", out=tmp_path / "run")) == 0


def test_duplicates_are_embedded_once(tmp_path, cache):
    files = write_pictures(tmp_path / "in", 4)
    shutil.copy(files[1], tmp_path / "in" / "copy.png")
    result = run(tmp_path / "in", **TINY, out=tmp_path / "run")
    assert computed(result) == 4
    assert len(kept(cache)) == 4


def test_duplicates_are_rows_like_those_that_they_are_copies_of(tmp_path):
    files = write_pictures(tmp_path / "in", 4)
    shutil.copy(files[1], tmp_path / "in" / "copy.png")
    found = assignments(run(tmp_path / "in", **TINY, out=tmp_path / "run")).set_index("path")
    same = ["cluster", "distance", "pc1", "pc2", "content_hash"]
    assert len(found) == 5
    assert list(found.loc["copy.png", same]) == list(found.loc["001.png", same])


def test_duplicates_are_marked_in_the_manifest_with_what_they_are_copies_of(tmp_path):
    files = write_pictures(tmp_path / "in", 4)
    shutil.copy(files[1], tmp_path / "in" / "copy.png")
    result = run(tmp_path / "in", **TINY, out=tmp_path / "run")
    found = pd.read_parquet(result.folder / "manifest.parquet").set_index("path")
    assert found["status"].tolist() == ["ok"] * 4 + ["duplicate"]
    assert found.loc["copy.png", "reason"] == "same content as 001.png"


def test_copies_of_a_picture_that_is_kept_are_not_computed_in_another_folder(tmp_path):
    write_pictures(tmp_path / "in", 4)
    run(tmp_path / "in", **TINY, out=tmp_path / "run")
    shutil.copytree(tmp_path / "in", tmp_path / "elsewhere")
    assert computed(run(tmp_path / "elsewhere", **TINY, out=tmp_path / "run")) == 0


# What stands before and after the import that a signal meets: the work, and how it goes on from an ImportError.
MET = {
    "raised": ("gpu_cluster.jobs.prepare", "discover", 'raise ImportError("initialization failed")'),
    "swallowed": ("gpu_cluster.jobs.prepare", "discover", "pass"),
    "in the page": ("gpu_cluster.report.page", "_render", 'raise ImportError("initialization failed")'),
}


@pytest.mark.parametrize("met", MET)
def test_a_signal_that_meets_an_import_ends_the_job_all_the_same(tmp_path, met):
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
    write_pictures(tmp_path / "in", 6)
    given = ["run", tmp_path / "in", *SMALL, "--k", "2", "--out", tmp_path / "run"]
    assert_ends_as_signalled(code, given)
    assert everything(tmp_path) == ["in"]
    if met == "in the page":
        run(tmp_path / "in", image_size=32, k=2, out=tmp_path / "run")
        assert_ends_as_signalled(code, ["report", tmp_path / "run"])


def assert_ends_as_signalled(code: str, given: list[str | Path]) -> None:
    done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 143, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: interrupted; no results were written: run the same")

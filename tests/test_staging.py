"""A folder is whole or not there; an earlier run gives way, and nothing of anybody else's is ever touched."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import gpu_cluster
from gpu_cluster.errors import ConfigError, JobError, NothingReadableError
from gpu_cluster.inventory import find_earlier_run, first_other
from gpu_cluster.staging import staged, temporary
from tests.helpers import TINY, TINY_OPTIONS, Noticing, called, everything, listing, without_override, write_pictures
from tests.run_folders import OLD, contents, earlier_run, fill, killed, run_before

# Claims of one name in a run of the tests. The whole campaign takes a minute: GPU_CLUSTER_TEST_CLAIMS=10000
# GPU_CLUSTER_TEST_CLAIMING=8 scripts/test tests/test_staging.py -k at_the_same_time
N_CLAIMS = os.environ.get("GPU_CLUSTER_TEST_CLAIMS", "200")
N_CLAIMING = os.environ.get("GPU_CLUSTER_TEST_CLAIMING", "4")


def test_two_runs_that_chose_one_name_both_keep_their_results(tmp_path):
    out = tmp_path / "run"
    with staged(out) as first:
        (first.path / "run.json").write_text("first")
        with staged(out) as second:
            (second.path / "run.json").write_text("second")
    assert second.folder == out
    assert first.folder == tmp_path / "run-2"
    assert contents(out) == {"run.json": "second"}
    assert contents(first.folder) == {"run.json": "first"}


def test_what_took_the_name_meanwhile_is_left_alone(tmp_path):
    out = tmp_path / "run"
    with staged(out) as stage:
        (stage.path / "run.json").write_text("new")
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
    assert contents(out) == {"thesis.txt": "mine"}
    assert stage.folder == tmp_path / "run-2"


@pytest.mark.parametrize("name", ["thesis.txt", "plots/thesis.txt", "model/thesis.txt"])
def test_an_earlier_run_that_got_other_files_meanwhile_is_not_overwritten(tmp_path, name):
    out = earlier_run(tmp_path / "run")
    with staged(out, overwrite=True) as stage:
        fill(stage.path, "new")
        (out / name).write_text("mine")
    assert contents(out) == {**OLD, name: "mine"}
    assert stage.folder == tmp_path / "run-2"
    assert contents(stage.folder)["run.json"] == "new"


def test_an_earlier_run_that_got_other_files_meanwhile_is_moved_with_them(tmp_path):
    out = earlier_run(tmp_path / "run")
    with staged(out) as stage:
        fill(stage.path, "new")
        (out / "plots" / "thesis.txt").write_text("mine")
    assert contents(tmp_path / "run.1") == {**OLD, "plots/thesis.txt": "mine"}
    assert contents(out)["run.json"] == "new"


def test_overwrite_deletes_only_the_run_that_was_there_when_the_new_one_began(tmp_path):
    out = earlier_run(tmp_path / "run")
    with staged(out, overwrite=True) as stage:
        fill(stage.path, "new")
        with staged(out, overwrite=True) as other:
            fill(other.path, "other")
    assert contents(out)["run.json"] == "other"
    assert contents(tmp_path / "run-2")["run.json"] == "new"


def test_overwrite_replaces_an_earlier_run_when_the_new_one_is_whole(tmp_path):
    out = earlier_run(tmp_path / "run")
    with staged(out, overwrite=True) as stage:
        (stage.path / "run.json").write_text("new")
        assert contents(out) == OLD
    assert contents(out) == {"run.json": "new"}
    assert stage.earlier_run is None
    assert everything(tmp_path) == ["run"]


def test_an_earlier_run_is_moved_whole_to_the_first_free_name_when_the_new_one_is_whole(tmp_path):
    out = earlier_run(tmp_path / "run")
    before = listing(out)
    # Neither may be taken: not an empty folder, which a rename would replace, and not a link that leads nowhere.
    (tmp_path / "run.1").mkdir()
    (tmp_path / "run.2").symlink_to("nowhere")
    with staged(out) as stage:
        (stage.path / "run.json").write_text("new")
        assert listing(out) == before
    assert contents(out) == {"run.json": "new"}
    assert stage.earlier_run == tmp_path / "run.3"
    assert listing(tmp_path / "run.3") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.1", "run.2", "run.3"]
    assert list((tmp_path / "run.1").iterdir()) == []


def test_two_runs_over_one_earlier_run_lose_nothing(tmp_path):
    out = earlier_run(tmp_path / "run")
    with staged(out) as first:
        fill(first.path, "first")
        with staged(out) as second:
            fill(second.path, "second")
    found = {path.name: contents(path)["run.json"] for path in tmp_path.iterdir()}
    assert found == {"run.1": "old", "run.2": "second", "run": "first"}


def test_an_earlier_run_keeps_its_name_if_the_new_one_cannot_take_it(tmp_path):
    out = earlier_run(tmp_path / "run")
    with pytest.raises(JobError, match="the job stopped at"), staged(out) as stage:
        shutil.rmtree(stage.path)
    assert contents(out) == OLD
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_earlier_run_stays_when_the_new_one_fails(tmp_path):
    out = earlier_run(tmp_path / "run")
    with pytest.raises(ZeroDivisionError), staged(out):
        _ = 1 / 0
    assert contents(out) == OLD
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_a_killed_run_left_is_cleared_away_and_what_a_living_one_fills_is_not(tmp_path):
    out = tmp_path / "run"
    dead = killed(out)
    with staged(out) as living:
        assert not dead.exists()
        (living.path / "run.json").write_text("first")
        with staged(out) as other:
            (other.path / "run.json").write_text("second")
        assert (living.path / "run.json").read_text() == "first"


def test_what_a_killed_run_without_out_left_is_cleared_away_by_the_next_job_of_this_machine_whatever_its_name(tmp_path):
    # The names that runs have without --out.
    dead = killed(tmp_path / "20260102-030405-photos", ".20260102-030405-photos.abcd1234")
    elsewhere = killed(tmp_path / "20260102-030406-photos", ".20260102-030406-photos.abcd1234")
    marker = json.loads((elsewhere / "inventory.json").read_text())
    (elsewhere / "inventory.json").write_text(json.dumps({**marker, "system": "another machine"}))
    with staged(tmp_path / "20260102-040506-photos") as living, staged(tmp_path / "another") as other:
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
            [elsewhere.name, living.path.name, other.path.name]
        )
        assert not dead.exists()


@pytest.mark.parametrize("name", ["thesis.txt", "plots/holiday.png", "plots/cluster_00.png/thesis.txt", "model/x/y"])
def test_what_a_killed_run_left_stays_if_anything_else_is_in_it(tmp_path, name):
    dead = killed(tmp_path / "run")
    (dead / "plots" / "cluster_00.png").unlink()
    (dead / name).parent.mkdir(parents=True, exist_ok=True)
    (dead / name).write_text("mine")
    before = listing(dead)
    with staged(tmp_path / "run") as stage:
        fill(stage.path, "new")
    assert listing(dead) == before


def test_a_link_in_what_a_killed_run_left_and_what_it_leads_to_stay(tmp_path):
    dead = killed(tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.json").write_text("mine")
    (dead / "model").symlink_to(tmp_path / "mine")
    before = listing(tmp_path)
    with staged(tmp_path / "run") as stage:
        fill(stage.path, "new")
    assert listing(tmp_path).items() >= before.items()


@pytest.mark.parametrize("name", [".run.abcd1234", ".run.old.abcd1234"])
def test_a_hidden_folder_of_somebody_else_is_left_alone_whatever_its_names_are(tmp_path, name):
    mine = tmp_path / name
    (mine / "plots").mkdir(parents=True)
    for file in ("run.json", "bad_files.csv", "plots/elbow.png"):
        (mine / file).write_text("mine")
    before = listing(mine)
    with staged(tmp_path / "run") as stage:
        fill(stage.path, "new")
    assert listing(mine) == before


def test_a_finished_run_that_the_user_gave_a_hidden_name_is_left_alone(tmp_path):
    mine = earlier_run(tmp_path / "run").rename(tmp_path / ".run.abcd1234")
    with staged(tmp_path / "run") as stage:
        fill(stage.path, "new")
    assert contents(mine) == OLD


def test_a_folder_of_somebody_else_that_cannot_be_read_is_left_alone_and_blocks_no_job(tmp_path):
    mine = tmp_path / ".run.abcd1234"
    (mine / "deep").mkdir(parents=True)
    mine.chmod(0)
    code = "import sys; from pathlib import Path; from gpu_cluster import staging\n"
    code += "with staging.staged(Path(sys.argv[1])): pass"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "run"], check=False, preexec_fn=without_override)
    mine.chmod(0o755)
    assert done.returncode == 0
    assert everything(mine) == ["deep"]
    assert everything(tmp_path) == [".run.abcd1234", "run"]


def test_what_was_put_into_the_temporary_folder_meanwhile_is_not_taken_for_the_runs_own(tmp_path):
    out = tmp_path / "run"
    with staged(out) as stage:
        fill(stage.path, "old")
        (stage.path / "thesis.txt").write_text("mine")
    found = find_earlier_run(out)
    assert found is not None
    assert first_other(out, found) == "thesis.txt"


# Kills itself after the first rename of a run folder, which moves the earlier run aside.
_KILLED_BETWEEN = """
import os, signal, sys
from pathlib import Path
from gpu_cluster.staging import staged, temporary

out, rename = Path(sys.argv[1]), os.rename

def rename_and_die(old, new):
    rename(old, new)
    os.kill(os.getpid(), signal.SIGKILL)

with staged(out, overwrite=sys.argv[2] == "overwrite") as stage:
    (stage.path / "run.json").write_text("killed")
    os.rename = rename_and_die
"""


@pytest.mark.parametrize("way", ["overwrite", "move"])
def test_a_kill_between_the_two_renames_loses_nothing_of_the_earlier_run(tmp_path, way):
    out = earlier_run(tmp_path / "run")
    done = subprocess.run([sys.executable, "-c", _KILLED_BETWEEN, out, way], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    with staged(out) as stage:
        # With --overwrite the earlier run has got its name back, and gives way to this one.
        fill(stage.path, "new")
    assert contents(out)["run.json"] == "new"
    assert contents(tmp_path / "run.1") == OLD
    assert everything(tmp_path) == ["run", "run.1"]


def test_an_earlier_run_moved_aside_is_no_business_of_a_job_with_a_longer_name(tmp_path):
    # `.run.old.12345678` may be of `run`, or of `run.old`.
    out = earlier_run(tmp_path / "run")
    subprocess.run([sys.executable, "-c", _KILLED_BETWEEN, out, "overwrite"], check=False)
    with staged(tmp_path / "run.old") as stage:
        fill(stage.path, "new")
    with staged(out) as stage:
        assert contents(out) == OLD
        fill(stage.path, "new")


def test_processes_that_claim_one_name_at_the_same_time_all_get_one_and_touch_nothing_of_others(tmp_path):
    given = ("names", "--processes", N_CLAIMING, "--claims", N_CLAIMS, tmp_path / "place")
    done = subprocess.run(
        [sys.executable, "-m", "scripts.check_claims", *given],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=without_override,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert (told["claims"], told["wrong"]) == (int(N_CLAIMS), 0)


# By a whole job


def test_an_earlier_run_is_moved_and_the_user_is_told_before_and_after(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "pictures", 3)
    run_before(tmp_path / "run")
    before = listing(tmp_path / "run")
    done = called("run", "pictures", *TINY_OPTIONS[1:], "--out", "run")
    assert done.code == 0, done.err
    assert listing(tmp_path / "run.1") == before
    assert (tmp_path / "run" / "assignments.csv").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "run", "run.1"]
    told = [line for line in done.out.splitlines() if "earlier run" in line]
    assert told == [
        f"'{tmp_path / 'run'}' is an earlier run; when this one is complete, the earlier one is moved to "
        f"'{tmp_path / 'run.1'}'",
        f"earlier run: moved to {tmp_path / 'run.1'}",
    ]


def test_a_comparison_moves_an_earlier_run_and_overwrite_replaces_it(tmp_path):
    write_pictures(tmp_path / "in", 6)
    out = earlier_run(tmp_path / "run")
    given: dict[str, Any] = {"features": ["colours"], "algorithms": ["kmeans"], "k": 2, "image_size": 32, "out": out}
    first = gpu_cluster.compare(tmp_path / "in", **given)
    assert first.earlier_run == tmp_path / "run.1"
    assert contents(tmp_path / "run.1") == OLD
    told = Noticing()
    again = gpu_cluster.compare(tmp_path / "in", **given, overwrite=True, observer=told)
    assert again.earlier_run is None
    assert any("takes the place of the earlier one, which is not kept (--overwrite)" in line for line in told.notices)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "run", "run.1"]


def test_a_run_in_which_nothing_can_be_read_says_where_the_earlier_one_is(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.png").write_text("no picture")
    out = earlier_run(tmp_path / "run")
    with pytest.raises(NothingReadableError, match=r"the earlier run is now '.*run\.1'"):
        gpu_cluster.run(tmp_path / "in", image_size=32, out=out)


def test_an_earlier_run_that_holds_the_input_is_not_replaced(tmp_path):
    out = earlier_run(tmp_path / "run")
    write_pictures(out / "plots", 3)
    before = listing(out)
    with pytest.raises(ConfigError, match=r"would give way to the new one, and '.*/plots' lies in it"):
        gpu_cluster.run(out / "plots", image_size=32, out=out)
    assert listing(out) == before


def test_the_current_folder_is_not_replaced(tmp_path):
    write_pictures(tmp_path / "pictures", 3)
    (tmp_path / "empty").mkdir()
    done = called("run", "../pictures", "--out", ".", cwd=tmp_path / "empty")
    assert done.code == 2
    assert "would give way to the new one" in done.err


def test_out_may_be_a_link_to_a_folder(tmp_path):
    write_pictures(tmp_path / "pictures", 3)
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far")
    gpu_cluster.run(tmp_path / "pictures", **TINY, out=tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far" / "assignments.csv").is_file()


def shard_in(folder: Path) -> None:
    (folder / "embeddings").mkdir()
    (folder / "embeddings" / f"shard-{'0' * 32}.parquet").write_bytes(b"x")
    (folder / "embeddings" / "_key.json").write_bytes(b"{}")


def fail_in(folder: Path) -> None:
    shard_in(folder)
    raise KeyError("stopped")


def test_a_temporary_folder_is_gone_when_its_block_ends(tmp_path):
    with temporary(tmp_path / "new.csv") as folder:
        shard_in(folder)
        assert folder.parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_folder_is_gone_when_its_block_fails(tmp_path):
    with pytest.raises(KeyError, match="stopped"), temporary(tmp_path / "new.csv") as folder:
        fail_in(folder)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from gpu_cluster.staging import temporary
from tests.test_staging import shard_in
with temporary(Path(sys.argv[1])) as folder:
    shard_in(folder)
    (folder / "embeddings" / ".shard-00000000000000000000000000000000.parquet.12-0123abcd.tmp").write_bytes(b"x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_temporary_folder_of_a_killed_job_is_removed_by_the_next_one(tmp_path):
    out = tmp_path / "new.csv"
    done = subprocess.run([sys.executable, "-c", KILLED, out], check=False, cwd=Path(__file__).parents[1])
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    with temporary(out) as folder:
        assert list(tmp_path.iterdir()) == [folder]
        assert folder != left

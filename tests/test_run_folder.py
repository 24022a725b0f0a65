"""The run folder: whole or not there; an earlier run is moved, and nothing of anybody else's is ever touched."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import gpu_cluster
from gpu_cluster.errors import ConfigError, JobError, NothingReadableError
from gpu_cluster.run_folder import CONTENTS, choose, staged
from tests.helpers import TINY, TINY_OPTIONS, Noticing, called, listing, write_pictures
from tests.helpers import gpu_cluster as command


def run_folder(folder: Path, mark: str = "old") -> Path:
    folder.mkdir(parents=True)
    for name in ("run.json", "bad_files.csv"):
        (folder / name).write_text(mark)
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


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


def test_an_earlier_run_that_got_other_files_meanwhile_is_left_alone(tmp_path):
    out = run_folder(tmp_path / "run")
    with staged(out) as stage:
        (stage.path / "run.json").write_text("new")
        (out / "thesis.txt").write_text("mine")
    assert contents(out) == {"run.json": "old", "bad_files.csv": "old", "thesis.txt": "mine"}
    assert contents(stage.folder) == {"run.json": "new"}


def test_overwrite_replaces_an_earlier_run_when_the_new_one_is_whole(tmp_path):
    out = run_folder(tmp_path / "run")
    with staged(out, overwrite=True) as stage:
        (stage.path / "run.json").write_text("new")
        assert contents(out)["run.json"] == "old"
    assert contents(out) == {"run.json": "new"}
    assert stage.earlier_run is None
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_earlier_run_is_moved_whole_to_the_first_free_name_when_the_new_one_is_whole(tmp_path):
    out = run_folder(tmp_path / "run")
    (out / "plots").mkdir()
    (out / "plots" / "elbow.png").write_text("old")
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
    out = run_folder(tmp_path / "run")
    with staged(out) as first:
        for name in ("run.json", "bad_files.csv"):
            (first.path / name).write_text("first")
        with staged(out) as second:
            for name in ("run.json", "bad_files.csv"):
                (second.path / name).write_text("second")
    found = {path.name: contents(path)["run.json"] for path in tmp_path.iterdir()}
    assert found == {"run.1": "old", "run.2": "second", "run": "first"}


def test_an_earlier_run_keeps_its_name_if_the_new_one_cannot_take_it(tmp_path):
    out = run_folder(tmp_path / "run")
    with pytest.raises(JobError, match="the job stopped at"), staged(out) as stage:
        shutil.rmtree(stage.path)
    assert contents(out) == {"run.json": "old", "bad_files.csv": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_earlier_run_stays_when_the_new_one_fails(tmp_path):
    out = run_folder(tmp_path / "run")
    with pytest.raises(ZeroDivisionError), staged(out):
        _ = 1 / 0
    assert contents(out) == {"run.json": "old", "bad_files.csv": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_earlier_run_that_holds_other_files_is_refused(tmp_path):
    out = run_folder(tmp_path / "run")
    (out / "mynotes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"it holds other files, such as 'mynotes\.txt'; expected a new"):
        choose(out, name="run", inputs=())


def test_a_file_half_written_by_a_kill_is_nobodys_work(tmp_path):
    out = run_folder(tmp_path / "run")
    (out / ".report.html.77-12ab34cd.tmp").write_text("<!doctype")
    dead = tmp_path / ".run.abcd1234"
    dead.mkdir()
    (dead / ".bad_files.csv.77-12ab34cd.tmp").write_text("path,rea")
    with staged(choose(out, name="run", inputs=()), overwrite=True) as stage:
        (stage.path / "run.json").write_text("new")
    assert contents(out) == {"run.json": "new"}
    assert not dead.exists()


def test_the_list_of_contents_is_what_a_run_and_a_comparison_leave(sample_run, tmp_path):
    write_pictures(tmp_path / "in", 6)
    given: dict[str, Any] = {"features": ["colours"], "algorithms": ["kmeans"], "k": 2, "image_size": 32}
    compared = gpu_cluster.compare(tmp_path / "in", **given, out=tmp_path / "out")
    assert {path.name for folder in (sample_run.folder, compared.folder) for path in folder.iterdir()} == CONTENTS


def test_what_a_killed_run_left_is_cleared_away_and_what_a_living_one_fills_is_not(tmp_path):
    out = tmp_path / "run"
    dead = tmp_path / ".run.abcd1234"
    dead.mkdir()
    (dead / "events.jsonl").write_text("killed")
    with staged(out) as living:
        assert not dead.exists()
        (living.path / "run.json").write_text("first")
        with staged(out) as other:
            (other.path / "run.json").write_text("second")
        assert (living.path / "run.json").read_text() == "first"


def test_a_hidden_folder_of_somebody_else_is_left_alone(tmp_path):
    mine = tmp_path / ".run.abcd1234"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    with staged(tmp_path / "run") as stage:
        (stage.path / "run.json").write_text("new")
    assert contents(mine) == {"thesis.txt": "mine"}


# By a whole job


def test_an_earlier_run_is_moved_and_the_user_is_told_before_and_after(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "pictures", 3)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "run" / "bad_files.csv").touch()
    (tmp_path / "run" / "sweep.csv").write_text("old")
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
    out = run_folder(tmp_path / "run")
    given: dict[str, Any] = {"features": ["colours"], "algorithms": ["kmeans"], "k": 2, "image_size": 32, "out": out}
    first = gpu_cluster.compare(tmp_path / "in", **given)
    assert first.earlier_run == tmp_path / "run.1"
    assert contents(tmp_path / "run.1") == {"run.json": "old", "bad_files.csv": "old"}
    told = Noticing()
    again = gpu_cluster.compare(tmp_path / "in", **given, overwrite=True, observer=told)
    assert again.earlier_run is None
    assert any("takes the place of the earlier one, which is not kept (--overwrite)" in line for line in told.notices)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "run", "run.1"]


def test_a_run_in_which_nothing_can_be_read_says_where_the_earlier_one_is(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.png").write_text("no picture")
    out = run_folder(tmp_path / "run")
    with pytest.raises(NothingReadableError, match=r"the earlier run is now '.*run\.1'"):
        gpu_cluster.run(tmp_path / "in", image_size=32, out=out)


def test_an_earlier_run_that_holds_the_input_is_not_replaced(tmp_path):
    out = tmp_path / "run"
    write_pictures(out / "plots", 3)
    for name in ("run.json", "bad_files.csv"):
        (out / name).touch()
    before = listing(out)
    with pytest.raises(ConfigError, match=r"would give way to the new one, and '.*/plots' lies in it"):
        gpu_cluster.run(out / "plots", image_size=32, out=out)
    assert listing(out) == before


def test_the_current_folder_is_not_replaced(tmp_path):
    write_pictures(tmp_path / "pictures", 3)
    (tmp_path / "empty").mkdir()
    done = command("run", "../pictures", "--out", ".", cwd=tmp_path / "empty")
    assert done.code == 2
    assert "would give way to the new one" in done.err


def test_out_may_be_a_link_to_a_folder(tmp_path):
    write_pictures(tmp_path / "pictures", 3)
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far")
    gpu_cluster.run(tmp_path / "pictures", **TINY, out=tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far" / "assignments.csv").is_file()

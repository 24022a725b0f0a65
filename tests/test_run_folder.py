"""The run folder: whole or not there, and nothing of anybody else's is ever replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import gpu_cluster
from gpu_cluster.errors import ConfigError
from gpu_cluster.run_folder import CONTENTS, choose, staged
from tests.helpers import TINY, listing, write_pictures
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


def test_an_earlier_run_is_replaced_when_the_new_one_is_whole(tmp_path):
    out = run_folder(tmp_path / "run")
    with staged(out) as stage:
        (stage.path / "run.json").write_text("new")
        assert contents(out)["run.json"] == "old"
    assert contents(out) == {"run.json": "new"}
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
    with pytest.raises(ConfigError, match=r"holds other files, such as 'mynotes\.txt', and would be replaced"):
        choose(out, name="run", inputs=())


def test_a_file_half_written_by_a_kill_is_nobodys_work(tmp_path):
    out = run_folder(tmp_path / "run")
    (out / ".report.html.77-12ab34cd.tmp").write_text("<!doctype")
    dead = tmp_path / ".run.abcd1234"
    dead.mkdir()
    (dead / ".bad_files.csv.77-12ab34cd.tmp").write_text("path,rea")
    with staged(choose(out, name="run", inputs=())) as stage:
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


def test_an_earlier_run_gives_way_to_a_new_one(tmp_path):
    write_pictures(tmp_path / "pictures", 3)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "run" / "bad_files.csv").touch()
    (tmp_path / "run" / "sweep.csv").write_text("old")
    gpu_cluster.run(tmp_path / "pictures", **TINY, out=tmp_path / "run")
    assert (tmp_path / "run" / "sweep.csv").read_text() != "old"
    assert (tmp_path / "run" / "assignments.csv").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "run"]


def test_an_earlier_run_that_holds_the_input_is_not_replaced(tmp_path):
    out = tmp_path / "run"
    write_pictures(out / "plots", 3)
    for name in ("run.json", "bad_files.csv"):
        (out / name).touch()
    before = listing(out)
    with pytest.raises(ConfigError, match=r"it would be replaced, and '.*/plots' lies in it"):
        gpu_cluster.run(out / "plots", image_size=32, out=out)
    assert listing(out) == before


def test_the_current_folder_is_not_replaced(tmp_path):
    write_pictures(tmp_path / "pictures", 3)
    (tmp_path / "empty").mkdir()
    done = command("run", "../pictures", "--out", ".", cwd=tmp_path / "empty")
    assert done.code == 2
    assert "it would be replaced" in done.err


def test_out_may_be_a_link_to_a_folder(tmp_path):
    write_pictures(tmp_path / "pictures", 3)
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far")
    gpu_cluster.run(tmp_path / "pictures", **TINY, out=tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far" / "assignments.csv").is_file()

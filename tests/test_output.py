"""Which folder a job may write: a new one, an empty one, or one whose earlier run can give way."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu_cluster.errors import ConfigError
from gpu_cluster.output import choose, earlier_run_moves_to
from tests.helpers import TINY_OPTIONS, called, listing, write_pictures
from tests.run_folders import earlier_run, killed, run_before


def put(folder: Path, name: str) -> None:
    """Put a file, or a link to one, into a folder."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    if name.endswith("link"):
        (folder / name).symlink_to("../run.json")
    else:
        (folder / name).write_text("mine")


# A file beside those of the run, in its folders, in a folder in them, and one that has taken the name of the run's.
OTHERS = [
    "mynotes.txt",
    "plots/photo.png",
    "model/deep/notes.txt",
    "plots/link",
    "run.json",
    ".report.html.7-12ab34cd.tmp",
]


@pytest.mark.parametrize("name", OTHERS)
def test_an_earlier_run_that_holds_anything_else_is_not_overwritten_and_the_first_such_file_is_named(tmp_path, name):
    out = earlier_run(tmp_path / "run")
    put(out, name)
    with pytest.raises(ConfigError) as refused:
        choose(out, name="run", inputs=(), overwrite=True)
    shown = "model/deep" if name.startswith("model") else name
    assert f"this earlier run holds {shown!r}, which the run did not write or which was changed" in str(refused.value)
    assert f"moved, whole, to '{tmp_path}/run.1'" in str(refused.value)


@pytest.mark.parametrize("name", OTHERS)
def test_an_earlier_run_that_holds_anything_else_may_be_moved(tmp_path, name):
    out = earlier_run(tmp_path / "run")
    put(out, name)
    assert choose(out, name="run", inputs=()) == out
    assert earlier_run_moves_to(out) == tmp_path / "run.1"


def test_a_run_of_the_version_before_can_be_moved_and_not_overwritten(tmp_path):
    out = run_before(tmp_path / "run")
    (out / ".report.html.77-12ab34cd.tmp").write_text("half")
    assert choose(out, name="run", inputs=()) == out
    with pytest.raises(ConfigError, match=r"an earlier run without a complete inventory\.json.*leave out --overwrite"):
        choose(out, name="run", inputs=(), overwrite=True)


@pytest.mark.parametrize("name", ["mynotes.txt", "plots/photo.png", "model/deep/notes.txt", "plots/link"])
def test_a_run_of_the_version_before_that_holds_anything_else_is_refused(tmp_path, name):
    out = run_before(tmp_path / "run")
    put(out, name)
    shown = "model/deep" if name.startswith("model") else name
    with pytest.raises(ConfigError, match=f"it holds other files, such as {shown!r}; expected a new"):
        choose(out, name="run", inputs=())


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("record", ["", "{}", '{"config": {}}', "[" * 100_000])
def test_a_folder_of_photos_with_names_of_a_run_is_refused(tmp_path, record, overwrite):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "run.json").write_text(record)
    (tmp_path / "photos" / "bad_files.csv").write_text("x")
    write_pictures(tmp_path / "photos" / "plots", 2)
    with pytest.raises(ConfigError, match=r"it holds other files, such as 'plots/000\.png'"):
        choose(tmp_path / "photos", name="run", inputs=(), overwrite=overwrite)


def test_a_folder_with_nothing_but_names_of_a_run_is_refused_if_no_run_wrote_them(tmp_path):
    for name in ("run.json", "bad_files.csv", "sweep.csv"):
        put(tmp_path / "mine", name)
    with pytest.raises(ConfigError, match="it holds other files; expected a new folder, an empty one or an earlier"):
        choose(tmp_path / "mine", name="run", inputs=())


def test_what_a_killed_run_left_under_a_name_that_the_user_gave_it_is_moved_and_not_overwritten(tmp_path):
    mine = killed(tmp_path / "run").rename(tmp_path / "rescued")
    assert choose(mine, name="run", inputs=()) == mine
    with pytest.raises(ConfigError, match="without a complete inventory"):
        choose(mine, name="run", inputs=(), overwrite=True)


def test_a_name_that_leaves_no_room_for_the_temporary_ones_is_refused(tmp_path):
    assert choose(tmp_path / ("a" * 241), name="run", inputs=()).name == "a" * 241
    with pytest.raises(ConfigError, match="its name is too long; expected at most 241 bytes"):
        choose(tmp_path / ("é" * 121), name="run", inputs=())


def test_a_refused_folder_is_code_2_before_work_starts_and_nothing_in_it_is_touched(tmp_path):
    write_pictures(tmp_path / "in", 3)
    out = earlier_run(tmp_path / "run")
    put(out, "plots/photo.png")
    before = listing(tmp_path)
    done = called("run", tmp_path / "in", *TINY_OPTIONS, "--out", out, "--overwrite")
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert line.startswith("error: cannot write the results to ")
    assert "'plots/photo.png'" in line
    assert listing(tmp_path) == before

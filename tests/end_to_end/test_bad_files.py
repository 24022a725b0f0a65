"""Files that cannot be decoded: listed with their reasons, and no end of the job until they are too many."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from gpu_cluster import run
from tests.helpers import (
    TINY,
    TINY_OPTIONS,
    Finished,
    called,
    write_pictures,
)


@pytest.fixture(scope="module")
def with_bad_files(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Four good files and three bad ones through the command, told to be quiet."""
    place = tmp_path_factory.mktemp("bad")
    files = write_pictures(place / "pictures", 7)
    files[0].write_bytes(b"")
    files[3].write_bytes(files[3].read_bytes()[:-100])
    files[6].write_text("not a picture")
    return called("run", place / "pictures", *TINY_OPTIONS, out=place / "run")


def test_bad_files_among_good_ones_do_not_stop_the_job(with_bad_files):
    assert with_bad_files.code == 0
    assert with_bad_files.table("assignments.csv")["path"].tolist() == ["001.png", "002.png", "004.png", "005.png"]


def test_bad_files_are_listed_with_their_reasons(with_bad_files):
    bad = with_bad_files.table("bad_files.csv")
    assert bad["path"].tolist() == ["000.png", "003.png", "006.png"]
    assert bad["reason"].tolist() == [
        "empty file",
        "PNG that is damaged or cut short: Truncated File Read",
        "not an image, or of an unknown format",
    ]


def test_the_record_of_a_run_counts_the_bad_files(with_bad_files):
    counts = {"found": 7, "ok": 4, "bad": 3, "duplicate": 0, "passed_over": 0}
    assert with_bad_files.json("run.json")["files"] == counts
    assert with_bad_files.json("metrics.json")["files"] == counts


def test_the_manifest_marks_the_bad_files(with_bad_files):
    manifest = pd.read_parquet(with_bad_files.folder / "manifest.parquet")
    assert manifest["status"].tolist() == ["bad", "ok", "ok", "bad", "ok", "ok", "bad"]


def test_quiet_prints_nothing(with_bad_files):
    assert (with_bad_files.out, with_bad_files.err) == ("", "")


def test_more_bad_files_than_allowed_end_with_code_3_and_everything_written(tmp_path):
    files = write_pictures(tmp_path / "pictures", 4)
    files[1].write_bytes(b"")
    done = called("run", tmp_path / "pictures", *TINY_OPTIONS, "--max-bad-fraction", "0.2", out=tmp_path / "run")
    assert done.code == 3
    (line,) = done.err.splitlines()
    assert re.match(r"error: 1 of 4 pictures could not be used, .*--max-bad-fraction 0\.2 .*bad_files\.csv'$", line)
    assert len(done.table("assignments.csv")) == 3
    assert done.table("bad_files.csv")["path"].tolist() == ["001.png"]
    assert (done.folder / "run.json").is_file()
    assert (done.folder / "plots" / "elbow.png").is_file()


def test_as_many_bad_files_as_allowed_are_not_too_many(tmp_path):
    files = write_pictures(tmp_path / "pictures", 4)
    files[1].write_bytes(b"")
    result = run(tmp_path / "pictures", **TINY, max_bad_fraction=0.25, out=tmp_path / "run")
    assert (len(result.manifest.bad) / len(result.manifest), result.exit_code) == (0.25, 0)


def test_nothing_but_bad_files_ends_with_code_3_and_their_reasons_written(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name in ("a.png", "b.jpg"):
        (tmp_path / "pictures" / name).write_text("not a picture")
    done = called("run", tmp_path / "pictures", *TINY_OPTIONS, out=tmp_path / "run")
    assert done.code == 3
    (line,) = done.err.splitlines()
    assert re.match(r"error: 2 pictures found, and none could be decoded; .*bad_files\.csv'$", line)
    assert done.table("bad_files.csv")["path"].tolist() == ["a.png", "b.jpg"]
    assert done.json("run.json")["files"] == {"found": 2, "ok": 0, "bad": 2, "duplicate": 0, "passed_over": 0}
    assert not (done.folder / "assignments.csv").exists()


def test_fewer_readable_files_than_k_cut_it_and_say_so(tmp_path):
    write_pictures(tmp_path / "in", 4)
    (tmp_path / "in" / "junk.png").write_text("no picture")
    result = run(tmp_path / "in", image_size=32, k=5, n_init=2, out=tmp_path / "run")
    assert result.findings is not None
    assert result.findings.clustering.k == 4
    assert any(notice.startswith("k was reduced from 5 to 4") for notice in result.notices)
    assert "junk.png" in (tmp_path / "run" / "bad_files.csv").read_text()

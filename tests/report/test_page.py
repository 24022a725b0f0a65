"""report.html: written by a run and again from its folder, and what it shows of names and pictures."""

from __future__ import annotations

import os
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest

import gpu_cluster
from gpu_cluster.config import RunConfig
from gpu_cluster.errors import DataError
from gpu_cluster.files import printable
from gpu_cluster.images.source import open_source
from gpu_cluster.images.thumbnails import Thumbnails
from gpu_cluster.jobs.report import report
from gpu_cluster.options import build_config, command_line
from gpu_cluster.report.page import visible
from tests.helpers import gpu_cluster as command
from tests.helpers import picture, write_pictures

SMALL: dict[str, Any] = {"image_size": 32, "k": 3, "k_range": "3:3", "n_init": 2}


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a b.png", "a b.png"), ("é漢.png", "é漢.png"), ("a\nb\t", "a\\nb\\t"), ("\u202e", "\\u202e"), ("\x00", "\\x00")],
)
def test_what_does_not_print_is_shown_as_an_escape(text, shown):
    assert visible(text) == shown


# Written again


# Written again
@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on six pictures that no test changes."""
    place = tmp_path_factory.mktemp("tiny")
    write_pictures(place / "in", 6)
    return gpu_cluster.run(place / "in", **SMALL, out=place / "run").folder


def test_the_page_is_written_again_from_the_folder(tmp_path, sample_run):
    shutil.copytree(sample_run.folder, tmp_path / "run")
    first = (tmp_path / "run" / "report.html").read_bytes()
    (tmp_path / "run" / "report.html").unlink()
    done = command("report", tmp_path / "run")
    assert done.code == 0
    assert done.out.strip() == f"report: {(tmp_path / 'run' / 'report.html').as_uri()}"
    assert (tmp_path / "run" / "report.html").read_bytes() == first


def test_pictures_that_are_gone_leave_a_page_with_grey_tiles(tmp_path):
    write_pictures(tmp_path / "in", 6)
    run = gpu_cluster.run(tmp_path / "in", **SMALL, out=tmp_path / "run").folder
    shutil.rmtree(tmp_path / "in")
    report(run)
    assert "6 pictures in 3 groups" in (run / "report.html").read_text()


def test_a_folder_that_is_no_run_is_an_error_that_says_what_is_expected(tmp_path):
    with pytest.raises(DataError, match="expected the folder that `gpu-cluster run` left, found FileNotFoundError"):
        report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["run.json", "metrics.json", "sweep.csv", "near_duplicates.csv", "manifest.parquet"])
def test_a_file_that_holds_something_else_is_an_error_that_names_the_folder(tmp_path, tiny, name):
    shutil.copytree(tiny, tmp_path / "run")
    (tmp_path / "run" / name).write_text("[]" if name.endswith(".json") else "a,b\n1,2\n")
    with pytest.raises(DataError, match=r"cannot make a report of '.*run': expected the folder that"):
        report(tmp_path / "run")
    assert (tmp_path / "run" / "report.html").read_bytes() == (tiny / "report.html").read_bytes()


def test_a_page_that_cannot_be_written_is_a_failure_that_says_where(tmp_path, tiny):
    shutil.copytree(tiny, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    (tmp_path / "run" / "report.html").mkdir()
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    done = command("report", tmp_path / "run")
    assert done.code == 1
    assert done.err.startswith("error: cannot write '")
    assert "report.html': Is a directory" in done.err
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before


def test_the_limit_of_the_run_on_pixels_holds_for_its_page(tmp_path):
    files = write_pictures(tmp_path / "in", 6)
    run = gpu_cluster.run(tmp_path / "in", **SMALL, max_pixels=48 * 40, out=tmp_path / "run").folder
    picture(0, (49, 40)).save(files[0])
    report(run)
    too_large = (run / "report.html").read_bytes()
    files[0].unlink()
    report(run)
    assert (run / "report.html").read_bytes() == too_large


def test_a_name_longer_than_names_may_be_where_each_byte_is_an_escape_has_its_thumbnail(tmp_path):
    raw = tmp_path / os.fsdecode(b"\xff" * 100 + b".png")
    picture(0).save(raw, "png")
    shown = printable(raw.name)
    picture(0).save(tmp_path / "plain.png")
    assert len(shown) > 255
    source = open_source(tmp_path)
    copies = Thumbnails(source, [shown, "plain.png"])
    copies.make([0, 1], 64)
    assert copies.uri(0) == copies.uri(1)
    assert len(copies.copies()) == 2


def test_the_command_is_the_one_that_repeats_the_run(tmp_path):
    config = build_config(RunConfig, images=(tmp_path / "my photos",), preset="notebook", k_range="2:9", no_cache=True)
    expected = f"gpu-cluster run '{tmp_path / 'my photos'}' --preset notebook --no-cache --k-range 2:9"
    assert command_line(config) == expected


@pytest.mark.slow
def test_a_page_that_cannot_be_written_costs_nothing_but_the_page(tmp_path):
    def no_file_above_180_kib() -> None:
        # Every table and plot of so few pictures fits; the page, which holds the plot of the sweep and more, does not.
        resource.setrlimit(resource.RLIMIT_FSIZE, (180 << 10, 180 << 10))

    write_pictures(tmp_path / "in", 60)
    given = ("run", tmp_path / "in", "--image-size", "32", "--k", "3", "--no-cache")
    done = command(*given, out=tmp_path / "run", before=no_file_above_180_kib)
    assert done.code == 0, done.err
    assert "report.html could not be written, which `gpu-cluster report` can do later: File too large" in done.out
    assert "report: " not in done.out
    assert len(done.table("assignments.csv")) == 60
    assert not any("report" in path.name for path in done.folder.iterdir())
    assert command("report", done.folder).code == 0
    assert (done.folder / "report.html").stat().st_size > 180 << 10

"""What the command does when something is wrong: one line, the right exit code, and nothing left behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import h5py
import numpy as np
import pytest

from gpu_cluster import run
from gpu_cluster.config import shipped_data
from tests.helpers import (
    TINY,
    called,
    gpu_cluster,
    listing,
    write_pictures,
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A working directory with six pictures and whatever can be named wrongly."""
    write_pictures(tmp_path / "pictures", 6)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "read.me").write_text("no picture here")
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "names.csv").write_text("name,species\n000.png,rose\n")
    (tmp_path / "unknown.toml").write_text("[sweep]\nclusters = 3\n")
    (tmp_path / "other.json").write_text("{}")
    with (shipped_data() / "weights" / "vgg16_imagenet_notop.weights.h5").open("rb") as weights:
        (tmp_path / "truncated.weights.h5").write_bytes(weights.read(1_000_000))
    (tmp_path / "text.weights.h5").write_text("no weights")
    with h5py.File(tmp_path / "other.weights.h5", "w") as file:
        variables = file.create_group("layers/dense/vars")
        variables.attrs["name"] = "dense"
        variables["0"] = np.zeros((3, 4), np.float32)
    return tmp_path


WRONG = {
    "folder absent": (["absent"], r"absent' does not exist; expected a folder"),
    "variable not set": (["", "--k", "2"], r"argument 2 is empty: .* is a variable of the shell not set\?"),
    "variable of an option not set": (["pictures", "--out="], r"argument 3 is empty: expected a value, found '--out='"),
    "folder empty": (["empty"], r"no images in '.*empty'; expected image files, by their content"),
    "folder without images": (["notes"], r"no images in '.*notes'; expected image files, by their content"),
    "name too long": (["a" * 300], r"File name too long"),
    "range of k downwards": (["pictures", "--k-range", "15:2"], r"--k-range: .* as in 2:15; found '15:2'"),
    "range of k from 0": (["pictures", "--k-range", "0:5"], r"--k-range: .*1 or above; found '0:5'"),
    "range of k without numbers": (["pictures", "--k-range", "a:b"], r"--k-range: .*A:B.*found 'a:b'"),
    "range of k beyond n": (["pictures", "--k-range", "2:7"], r"--k-range: 2:7 reaches 7 clusters.*found 6.*up to 6"),
    "k no number": (["pictures", "-k", "abc"], r"--k: expected a whole number; found 'abc'"),
    "share no number": (["pictures", "--holdout", "x"], r"--holdout: expected a number; found 'x'"),
    "k beyond n": (
        ["pictures", "--k", "7"],
        r"--k: 7 clusters .* need at least 7 images; found 6 that may be pictures; .* up to 6",
    ),
    "labels absent": (["pictures", "--labels", "absent.csv"], r"cannot read the labels '.*absent\.csv'"),
    "labels without the column": (
        ["pictures", "--labels", "names.csv"],
        r"names\.csv' has no column 'file'; it has 'name', 'species'; name it with --file-col",
    ),
    "labels from two sources": (
        ["pictures", "--labels", "names.csv", "--labels-from-folders"],
        r"from a CSV or from the folders, not both",
    ),
    "out is a file": (["pictures", "--out", "file"], r"cannot write .*file': a file is in the way"),
    "out is below a file": (["pictures", "--out", "file/a/b"], r"cannot write .*file/a/b': '.*file' is a file"),
    "out holds other files": (["pictures", "--out", "notes"], r"cannot write .*notes': it holds other files"),
    "out is the images": (["pictures", "--out", "pictures"], r"cannot write .*pictures': it holds other files"),
    "out is a mount point": (["pictures", "--out", "/"], r"cannot write .*'/': it is a mount point"),
    "config absent": (["pictures", "--config", "absent.toml"], r"cannot read the config 'absent\.toml'"),
    "config of an unknown key": (
        ["pictures", "--config", "unknown.toml"],
        r"unknown config key 'clusters' in \[sweep\] \(config 'unknown\.toml'\)",
    ),
    "config of another program": (["pictures", "--config", "other.json"], r"'other\.json' is no run\.json"),
    "option unknown": (["pictures", "--clusters", "3"], r"--clusters"),
    "option without its value": (["pictures", "--out"], r"'--out' requires an argument"),
    "choice wrong": (["pictures", "--resize", "cubic"], r"--resize: .*'bilinear' or 'nearest'; found 'cubic'"),
    "weights missing": (["pictures", "--weights", "absent.h5"], r"no VGG16 weights found; .*absent\.h5.*--weights"),
    "weights truncated": (
        ["pictures", "--weights", "truncated.weights.h5"],
        r"cannot read the weights '.*truncated\.weights\.h5'.* found 1,000,000 bytes",
    ),
    "weights no weights": (["pictures", "--weights", "text.weights.h5"], r"cannot read the weights .*text\.weights"),
    "weights of another network": (
        ["pictures", "--weights", "other.weights.h5"],
        r"other\.weights\.h5' are not VGG16's without its top: .*block1_conv1 is missing; found dense",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_use_is_one_line_with_code_2_and_leaves_nothing(place, monkeypatch, arguments, message):
    monkeypatch.chdir(place)
    before = listing(place)
    done = called("run", *arguments)
    (line,) = done.err.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line)
    assert done.code == 2
    assert done.out == ""
    assert listing(place) == before


def test_an_unknown_command_is_one_line_with_code_2(tmp_path):
    done = called("cluster", cwd=tmp_path)
    assert done.err == (
        "error: no command 'cluster', and no file or folder of this name; `gpu-cluster help` lists the commands\n"
    )
    assert (done.code, done.out) == (2, "")


def test_a_command_misspelt_gets_the_one_that_was_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = called("runn", "pictures")
    assert (done.code, done.err) == (2, "error: No such command 'runn'. Did you mean 'run'?\n")


def test_a_folder_in_place_of_a_command_is_run_and_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "pictures", 3)
    note, error = called("pictures/", "-k", "7").err.splitlines()
    assert note == "note: 'pictures/' is a folder, not a command: this does `gpu-cluster run` with it"
    # This is what `run` says of these pictures.
    assert error.startswith("error: --k: 7 clusters")


def test_an_option_of_run_before_any_command_is_told_where_it_belongs():
    done = called("-k", "6", "pictures")
    assert (done.code, done.err) == (2, "error: No such option: -k; it is an option of run: `gpu-cluster run ...`\n")


def test_without_anything_it_says_in_three_lines_what_to_do_first():
    done = called()
    assert (done.code, done.err) == (0, "")
    assert [line.split("  ")[0] for line in done.out.splitlines()] == [
        "gpu-cluster run photos/",
        "gpu-cluster run --open",
        "gpu-cluster help",
    ]


def test_the_package_can_be_called_as_a_module(tmp_path):
    done = subprocess.run([sys.executable, "-m", "gpu_cluster", "version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == version("gpu-cluster")


def test_the_version_is_that_of_the_package():
    assert called("--version").out == called("version").out == f"{version('gpu-cluster')}\n"


def test_a_name_with_a_newline_does_not_break_the_line(tmp_path):
    done = called("run", "two\nlines", cwd=tmp_path)
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert r"two\nlines' does not exist" in done.err


def test_a_name_that_is_not_utf8_is_shown_with_its_bytes(tmp_path):
    done = gpu_cluster("run", os.fsdecode(b"caf\xe9"), cwd=tmp_path)
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert r"\xe9' does not exist" in done.err


def test_debug_shows_the_traceback_above_the_error(tmp_path):
    done = called("run", "absent", "--debug", cwd=tmp_path)
    lines = done.err.splitlines()
    assert done.code == 2
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1].startswith("error: ")


def test_a_pipe_named_like_a_picture_is_passed_over_and_named_alone_is_wrong_use(tmp_path):
    write_pictures(tmp_path / "in", 2)
    os.mkfifo(tmp_path / "in" / "pipe.png")
    result = run(tmp_path / "in", **TINY, out=tmp_path / "run")
    assert result.manifest.paths == ("000.png", "001.png")
    done = called("run", "in/pipe.png", cwd=tmp_path)
    assert done.code == 2
    assert "is a pipe, a socket or a device" in done.err


def test_wrong_use_is_found_before_the_files_are_read(tmp_path):
    (tmp_path / "in").mkdir()
    with (tmp_path / "in" / "huge.png").open("wb") as file:
        # Sparse: it takes no disk, but a minute and more to hash.
        file.truncate(100 << 30)
    start = time.monotonic()
    done = called("run", "in", "--k", "2", cwd=tmp_path)
    assert done.code == 2
    assert time.monotonic() - start < 20

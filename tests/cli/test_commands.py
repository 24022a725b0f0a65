"""What the command does when something is wrong: one line, the right exit code, and nothing left behind."""

from __future__ import annotations

import fcntl
import json
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from gpu_cluster import run
from gpu_cluster.config import shipped_data
from gpu_cluster.errors import ConfigError
from tests.conftest import COMMAND, Finished, gpu_cluster, started, wait_until, write_pictures

# What every run that embeds is given, to take little more than TensorFlow's import.
SMALL = ("--image-size", "32")


def listing(folder: Path) -> dict[str, bytes | None]:
    """Return all that lies in a folder, hidden or not, with the content of the files."""
    return {os.path.relpath(path, folder): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


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
    "k beyond n": (["pictures", "--k", "7"], r"--k: 7 clusters .* need as many images; found 6; .* up to 6"),
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
        r"other\.weights\.h5' are not VGG16's: .*block1_conv1 is missing; found dense",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_use_is_one_line_with_code_2_and_leaves_nothing(place, arguments, message):
    before = listing(place)
    done = gpu_cluster("run", *arguments, cwd=place)
    (line,) = done.err.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line)
    assert done.code == 2
    assert done.out == ""
    assert listing(place) == before


def test_an_unknown_command_is_one_line_with_code_2(tmp_path):
    done = gpu_cluster("cluster", cwd=tmp_path)
    assert (done.code, done.err, done.out) == (2, "error: No such command 'cluster'.\n", "")


def test_a_name_with_a_newline_does_not_break_the_line(tmp_path):
    done = gpu_cluster("run", "two\nlines", cwd=tmp_path)
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert r"two\nlines' does not exist" in done.err


def test_a_name_that_is_not_utf8_is_shown_with_its_bytes(tmp_path):
    done = gpu_cluster("run", os.fsdecode(b"caf\xe9"), cwd=tmp_path)
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert r"\xe9' does not exist" in done.err


def test_debug_shows_the_traceback_above_the_error(tmp_path):
    done = gpu_cluster("run", "absent", "--debug", cwd=tmp_path)
    lines = done.err.splitlines()
    assert done.code == 2
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1].startswith("error: ")


# What help and errors cost


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["version"], ["run", "absent"]], ids=" ".join)
def test_what_needs_no_engine_loads_none(tmp_path, arguments):
    code = f"""
import json, sys
from gpu_cluster.cli.main import main
sys.argv = ["gpu-cluster", *{arguments!r}]
try:
    main()
except SystemExit:
    heavy = {{"tensorflow", "keras", "sklearn", "pandas", "matplotlib", "scipy", "pyarrow", "h5py", "PIL"}}
    print(json.dumps(sorted(heavy & set(sys.modules))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert json.loads(done.stdout.splitlines()[-1]) == []


# Files that cannot be decoded


@pytest.fixture(scope="module")
def with_bad_files(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Four good files and three bad ones through the command, told to be quiet."""
    place = tmp_path_factory.mktemp("bad")
    files = write_pictures(place / "pictures", 7)
    files[0].write_bytes(b"")
    files[3].write_bytes(files[3].read_bytes()[:-100])
    files[6].write_text("not a picture")
    return gpu_cluster("run", place / "pictures", *SMALL, "--k", "2", "--quiet", out=place / "run")


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
    counts = {"found": 7, "ok": 4, "bad": 3, "duplicate": 0}
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
    done = gpu_cluster(
        "run", tmp_path / "pictures", *SMALL, "--max-bad-fraction", "0.2", "--quiet", out=tmp_path / "run"
    )
    assert done.code == 3
    (line,) = done.err.splitlines()
    assert re.match(r"error: 1 of 4 files could not be decoded, .*--max-bad-fraction 0\.2 .*bad_files\.csv'$", line)
    assert len(done.table("assignments.csv")) == 3
    assert done.table("bad_files.csv")["path"].tolist() == ["001.png"]
    assert (done.folder / "run.json").is_file()
    assert (done.folder / "plots" / "elbow.png").is_file()


def test_as_many_bad_files_as_allowed_are_not_too_many(tmp_path):
    files = write_pictures(tmp_path / "pictures", 4)
    files[1].write_bytes(b"")
    result = run(tmp_path / "pictures", image_size=32, max_bad_fraction=0.25, out=tmp_path / "run")
    assert (len(result.manifest.bad) / len(result.manifest), result.exit_code) == (0.25, 0)


def test_nothing_but_bad_files_ends_with_code_3_and_their_reasons_written(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name in ("a.png", "b.jpg"):
        (tmp_path / "pictures" / name).write_text("not a picture")
    done = gpu_cluster("run", tmp_path / "pictures", *SMALL, "--quiet", out=tmp_path / "run")
    assert done.code == 3
    (line,) = done.err.splitlines()
    assert re.match(r"error: none of the 2 files found could be decoded; .*bad_files\.csv'$", line)
    assert done.table("bad_files.csv")["path"].tolist() == ["a.png", "b.jpg"]
    assert done.json("run.json")["files"] == {"found": 2, "ok": 0, "bad": 2, "duplicate": 0}
    assert not (done.folder / "assignments.csv").exists()


def test_an_earlier_run_gives_way_to_a_new_one(tmp_path):
    write_pictures(tmp_path / "pictures", 3)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "run" / "bad_files.csv").touch()
    (tmp_path / "run" / "sweep.csv").write_text("old")
    run(tmp_path / "pictures", image_size=32, out=tmp_path / "run")
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
        run(out / "plots", image_size=32, out=out)
    assert listing(out) == before


def test_the_current_folder_is_not_replaced(tmp_path):
    write_pictures(tmp_path / "pictures", 3)
    (tmp_path / "empty").mkdir()
    done = gpu_cluster("run", "../pictures", "--out", ".", cwd=tmp_path / "empty")
    assert done.code == 2
    assert "it would be replaced" in done.err


def test_out_may_be_a_link_to_a_folder(tmp_path):
    write_pictures(tmp_path / "pictures", 3)
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far")
    run(tmp_path / "pictures", image_size=32, out=tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far" / "assignments.csv").is_file()


# Signals


def stop(place: Path, number: int, *arguments: str) -> tuple[int, str]:
    """Start a run that takes the best part of a minute, signal it while it embeds, and return its code and errors."""
    options = ["--batch-size", "4", "--shard-size", "16"]
    with started("run", shipped_data() / "flowers", *options, *arguments, cwd=place) as process:
        wait_until(lambda: has_embedded(place), process)
        process.send_signal(number)
        _, found = process.communicate(timeout=60)
    return process.returncode, found


def has_embedded(place: Path) -> bool:
    """Say whether a run that is staged in a hidden folder has its first batch of embeddings."""
    return any('"stage": "embed", "done"' in log.read_text() for log in place.glob("**/.*/events.jsonl"))


@pytest.mark.slow
def test_sigterm_ends_with_143_and_leaves_nothing(tmp_path):
    code, found = stop(tmp_path, signal.SIGTERM)
    assert code == 143
    assert found.splitlines()[-1].startswith("error: interrupted")
    assert "Traceback" not in found
    assert listing(tmp_path) == {}


@pytest.mark.slow
def test_sigint_ends_with_130_and_leaves_an_earlier_run_as_it_was(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "run" / "bad_files.csv").touch()
    before = listing(tmp_path)
    code, found = stop(tmp_path, signal.SIGINT, "--out", "run")
    assert code == 130
    assert found.splitlines()[-1].startswith("error: interrupted")
    assert "Traceback" not in found
    assert listing(tmp_path) == before


# Terminals and files that are none


UNHEARD = {
    "reader gone": "| true",
    "log full": "> /dev/full",
    "both full": "> /dev/full 2> /dev/full",
    "closed": ">&- 2>&-",
}


@pytest.mark.slow
@pytest.mark.parametrize("output", UNHEARD.values(), ids=UNHEARD)
def test_a_job_that_can_tell_nobody_is_done_and_ends_with_its_code(tmp_path, output):
    write_pictures(tmp_path / "pictures", 12)
    (tmp_path / "pictures" / "bad.png").touch()
    options = "--k-range 2:3 --image-size 32 --max-bad-fraction 0 --out run"
    command = f"{COMMAND} run pictures {options} {output}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 3, done.stderr
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("output", ["2> /dev/full", "<&- >&- 2>&-"], ids=["full", "closed"])
def test_a_stopped_job_that_can_tell_nobody_keeps_its_shard(tmp_path, cache, output):
    # Python has a descriptor of its own in place of a closed one, if nobody sees to it.
    command = f"exec {COMMAND} run {shipped_data() / 'flowers'} --batch-size 4 --shard-size 16 --quiet {output}"
    with subprocess.Popen(["bash", "-c", command], cwd=tmp_path) as process:
        wait_until(lambda: has_embedded(tmp_path), process)  # type: ignore[arg-type]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143
    assert list(cache.glob("**/embeddings/*/*.parquet"))


# What is printed is all that comes of the first two; the others have done their work.
PRINTED = {
    "doctor": ("doctor > /dev/full", 1),
    "info": ("cache info --cache store > /dev/full", 1),
    "verify": ("cache verify --cache store > /dev/full", 0),
    "prune": ("cache prune --cache store > /dev/full", 0),
    "wrong use": ("run absent --debug 2> /dev/full", 2),
}


@pytest.mark.parametrize(("arguments", "code"), PRINTED.values(), ids=PRINTED)
def test_output_that_cannot_be_written_changes_the_code_where_it_is_all_there_is(tmp_path, arguments, code):
    (tmp_path / "store").mkdir()
    done = subprocess.run(["bash", "-c", f"{COMMAND} {arguments}"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == code, done.stderr


@contextmanager
def on_a_terminal(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start a run on a terminal of its own, whose end is no end of the run, and yield the other side of it."""
    write_pictures(tmp_path / "pictures", 12)
    ours, theirs = os.openpty()
    command = [str(COMMAND), "run", "pictures", "--k-range", "2:3", "--image-size", "32", "--out", "run"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),  # noqa: PLW1509 - one system call
    ) as process:
        os.close(theirs)
        yield process, ours


@pytest.mark.slow
def test_a_terminal_that_goes_away_does_not_end_a_job_that_outlives_it(tmp_path):
    with on_a_terminal(tmp_path) as (process, terminal):
        assert os.read(terminal, 1)
        os.close(terminal)
        assert process.wait(timeout=120) == 0
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.slow
def test_a_narrow_terminal_gets_the_whole_link_to_the_report(tmp_path):
    with on_a_terminal(tmp_path) as (process, terminal):
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
        found = b""
        # Reading from a terminal whose other side is closed is an error.
        with suppress(OSError):
            while more := os.read(terminal, 4096):
                found += more
        os.close(terminal)
        assert process.wait(timeout=120) == 0
    assert (tmp_path / "run" / "report.html").as_uri().encode() in found
    assert b"\x1b[1mclusters" in found


@pytest.mark.slow
def test_names_that_the_terminal_cannot_encode_are_shown_with_escapes(tmp_path):
    for folder in ("Blüte", "Rose"):
        write_pictures(tmp_path / "in" / folder, 3)
    command: list[str | Path] = [
        COMMAND,
        "run",
        "in",
        "--labels-from-folders",
        "--image-size",
        "32",
        "--k",
        "2",
        "--out",
        "run",
    ]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert rb"Bl\xfcte" in done.stdout


def test_a_pipe_named_like_a_picture_is_passed_over_and_named_alone_is_wrong_use(tmp_path):
    write_pictures(tmp_path / "in", 2)
    os.mkfifo(tmp_path / "in" / "pipe.png")
    result = run(tmp_path / "in", image_size=32, out=tmp_path / "run")
    assert result.manifest.paths == ("000.png", "001.png")
    done = gpu_cluster("run", "in/pipe.png", cwd=tmp_path)
    assert done.code == 2
    assert "is a pipe, a socket or a device" in done.err


def test_wrong_use_is_found_before_the_files_are_read(tmp_path):
    (tmp_path / "in").mkdir()
    with (tmp_path / "in" / "huge.png").open("wb") as file:
        # Sparse: it takes no disk, but a minute and more to hash.
        file.truncate(100 << 30)
    start = time.monotonic()
    done = gpu_cluster("run", "in", "--k", "2", cwd=tmp_path)
    assert done.code == 2
    assert time.monotonic() - start < 20


def test_fewer_readable_files_than_k_cut_it_and_say_so(tmp_path):
    write_pictures(tmp_path / "in", 4)
    (tmp_path / "in" / "junk.png").write_text("no picture")
    result = run(tmp_path / "in", image_size=32, k=5, out=tmp_path / "run")
    assert result.findings is not None
    assert result.findings.clustering.k == 4
    assert any(notice.startswith("k cut from 5 to 4") for notice in result.notices)
    assert "junk.png" in (tmp_path / "run" / "bad_files.csv").read_text()


@pytest.mark.slow
def test_a_page_that_cannot_be_written_costs_nothing_but_the_page(tmp_path):
    def no_file_above_180_kib() -> None:
        # Every table and plot of so few pictures fits; the page, which holds the plot of the sweep and more, does not.
        resource.setrlimit(resource.RLIMIT_FSIZE, (180 << 10, 180 << 10))

    write_pictures(tmp_path / "in", 60)
    done = gpu_cluster(
        "run", tmp_path / "in", *SMALL, "--k", "3", "--no-cache", out=tmp_path / "run", before=no_file_above_180_kib
    )
    assert done.code == 0, done.err
    assert "No report.html, which `gpu-cluster report` can write later: File too large" in done.out
    assert "report: " not in done.out
    assert len(done.table("assignments.csv")) == 60
    assert not any("report" in path.name for path in done.folder.iterdir())
    assert gpu_cluster("report", done.folder).code == 0
    assert (done.folder / "report.html").stat().st_size > 180 << 10


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user that the system does not know")
def test_a_user_without_a_home_needs_none():
    code = (
        "import os; from gpu_cluster.embedding import vgg16; os.setuid(54321); os.environ.pop('HOME', None); "
        "os.environ.pop('KERAS_HOME', None); print(vgg16.downloaded('file.h5'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("models/file.h5")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user who may write in a folder but not list it")
def test_a_file_is_written_where_the_folder_cannot_be_flushed(tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    code = (
        "import os, sys; from pathlib import Path; from gpu_cluster.files import write_whole; os.chdir(sys.argv[1]); "
        "os.setuid(54321); write_whole(Path('a.txt'), b'whole')"
    )
    place.chmod(0o333)
    done = subprocess.run([sys.executable, "-c", code, place], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [(file.name, file.read_text()) for file in place.iterdir()] == [("a.txt", "whole")]

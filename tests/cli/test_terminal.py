"""Terminals and files that are none: whoever listens, or nobody, the job is done and ends with its code."""

from __future__ import annotations

import fcntl
import io
import os
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu_cluster import api
from gpu_cluster.cli import summary, terminal
from gpu_cluster.config import CompareConfig
from gpu_cluster.manifest import Manifest
from gpu_cluster.results import Compared, Comparison, RunResult
from tests.forks import Forked
from tests.helpers import (
    COMMAND,
    EMBEDDED,
    FLOWERS,
    TINY,
    TINY_OPTIONS,
    called,
    logged,
    picture,
    shards_of,
    wait_until,
    write_pictures,
)


def closed(*arguments: str | Path, cwd: Path) -> subprocess.Popen[bytes]:
    """Start the real command without standard input, output and error.

    In place of a closed descriptor a new program has one of its own, if nobody sees to it.
    """
    return subprocess.Popen(["bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash", COMMAND, *arguments], cwd=cwd)


@contextmanager
def unheard(*names: str) -> Iterator[dict[str, Any]]:
    """Yield, for these streams of a process that is to be started, a descriptor that takes nothing."""
    full = os.open("/dev/full", os.O_WRONLY)
    reader, gone = os.pipe()
    os.close(reader)
    try:
        yield {name.split()[0]: gone if name.endswith("reader gone") else full for name in names}
    finally:
        os.close(full)
        os.close(gone)


def pictures_with_a_bad_one(folder: Path) -> tuple[str, ...]:
    """Write them, and return the arguments of a job that ends with code 3 after all of its work."""
    write_pictures(folder, 6)
    (folder / "bad.png").touch()
    return "run", "pictures", *TINY_OPTIONS[1:], "--max-bad-fraction", "0", "--out", "run"


@pytest.mark.slow
@pytest.mark.parametrize(
    "streams",
    [("stdout reader gone",), ("stdout full", "stderr full")],
    ids=["reader gone", "both full"],
)
def test_a_job_that_can_tell_nobody_is_done_and_ends_with_its_code(tmp_path, streams):
    arguments = pictures_with_a_bad_one(tmp_path / "pictures")
    with unheard(*streams) as outputs, Forked(*arguments, cwd=tmp_path, **outputs) as process:
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 3, errors
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.slow
def test_a_job_whose_descriptors_are_closed_is_done_and_ends_with_its_code(tmp_path):
    with closed(*pictures_with_a_bad_one(tmp_path / "pictures"), cwd=tmp_path) as process:
        assert process.wait(timeout=120) == 3
    assert (tmp_path / "run" / "report.html").is_file()


# It embeds for many seconds, and its first batch is done soon.
STOPPED = (
    *("run", FLOWERS, "--features", "vgg16", "--image-size", "96"),
    *("--batch-size", "4", "--shard-size", "16", "--quiet"),
)


def stop_while_it_embeds(place: Path, process: Forked | subprocess.Popen[bytes]) -> int:
    wait_until(lambda: logged(place, EMBEDDED), process)
    process.send_signal(signal.SIGTERM)
    return process.wait(timeout=60)


@pytest.mark.slow
def test_a_stopped_job_whose_log_is_full_keeps_its_shard(tmp_path, cache):
    with unheard("stderr full") as outputs, Forked(*STOPPED, cwd=tmp_path, **outputs) as process:
        assert stop_while_it_embeds(tmp_path, process) == 143
    assert shards_of(cache)


@pytest.mark.slow
def test_a_stopped_job_whose_descriptors_are_closed_keeps_its_shard(tmp_path, cache):
    with closed(*STOPPED, cwd=tmp_path) as process:
        assert stop_while_it_embeds(tmp_path, process) == 143
    assert shards_of(cache)


# What is printed is all that comes of the first two; the others have done their work.
PRINTED: dict[str, tuple[str, str, int]] = {
    "doctor": ("doctor", "stdout full", 1),
    "info": ("cache info --cache store", "stdout full", 1),
    "verify": ("cache verify --cache store", "stdout full", 0),
    "prune": ("cache prune --cache store", "stdout full", 0),
    "wrong use": ("run absent --debug", "stderr full", 2),
}


@pytest.mark.parametrize(("arguments", "stream", "code"), PRINTED.values(), ids=PRINTED)
def test_output_that_cannot_be_written_changes_the_code_where_it_is_all_there_is(tmp_path, arguments, stream, code):
    (tmp_path / "store").mkdir()
    with unheard(stream) as outputs, Forked(*arguments.split(), cwd=tmp_path, **outputs) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors


@contextmanager
def on_a_terminal(tmp_path: Path) -> Iterator[tuple[Forked, int]]:
    """Start a run on a terminal, whose end is no end of the run, and yield the other side of it."""
    write_pictures(tmp_path / "pictures", 6)
    ours, theirs = os.openpty()
    # Nobody is sent SIGHUP when it goes away, as no process has it as its controlling terminal.
    given = ("run", "pictures", *TINY_OPTIONS[1:], "--out", "run")
    with Forked(*given, cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs) as process:
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
    given = ("run", "in", "--labels-from-folders", *TINY_OPTIONS[1:], "--out", "run")
    with Forked(*given, cwd=tmp_path, env={**os.environ, "PYTHONIOENCODING": "ascii"}) as process:
        out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert r"Bl\xfcte" in out


# What a run prints of its result, in a log


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The lines of a run on a folder in which much is wrong."""
    place = tmp_path_factory.mktemp("place")
    for folder in ("rose", "tulip"):
        write_pictures(place / "in" / folder, 4)
    for number, file in enumerate(sorted((place / "in" / "tulip").iterdir())):
        picture(10 + number).save(file)
    whole = (place / "in" / "rose" / "000.png").read_bytes()
    (place / "in" / "copy.png").write_bytes(whole)
    (place / "in" / "cut.png").write_bytes(whole[: len(whole) // 2])
    for name in ("b.png", "c.png", "d.png"):
        (place / "in" / name).touch()
    for name in ("notes.txt", "film.mp4"):
        (place / "in" / name).write_text("no picture")
    labels = ["file,label", *(f"rose/00{n}.png,rose" for n in range(4)), "tulip/000.png,tulip", "cut.png,rose"]
    (place / "in" / "labels.csv").write_text("\n".join(labels))
    done = called("run", place / "in", *TINY_OPTIONS[1:], "--k-range", "2:4", "--no-cache", out=place / "run")
    assert done.code == 0, done.err
    return done.out.splitlines()


def test_the_files_add_up_in_one_line_that_names_those_that_are_bad_or_passed_over(printed):
    (line,) = [line for line in printed if line.startswith("files: ")]
    assert re.fullmatch(
        r"files: 15 found: 9 clustered \(1 of them a copy of another file\), 4 bad \(b\.png: empty file; c\.png: empty "
        r"file; cut\.png: .+; and 1 more; all are in bad_files\.csv\), 2 passed over because they are no pictures "
        r"\(film\.mp4, notes\.txt\)",
        line,
    )


def test_no_other_line_has_another_number_of_files(printed):
    (device,) = [line for line in printed if line.startswith("device: ")]
    # One of the nine is a copy, and a file that is cut short is not embedded.
    assert ", 8 embedded at " in device
    (labels,) = [line for line in printed if line.startswith("labels: ")]
    assert "for 5 of 9 clustered pictures" in labels
    sizes = [int(size) for size in re.findall(r"^cluster \d: (\d+) image", "\n".join(printed), re.MULTILINE)]
    assert sum(sizes) == 9


def test_a_k_that_is_given_beside_a_range_is_said_to_count(printed):
    assert "k is 2, as --k says; the range 2:4 is tried and shown too" in printed


def test_the_scores_that_are_shown_say_what_they_mean_and_where_the_others_are(printed):
    names = [line.split(":")[0] for line in printed]
    shown = [name for name in names if name in ("silhouette", "adjusted Rand index", "homogeneity", "more scores")]
    assert shown == ["silhouette", "adjusted Rand index", "homogeneity", "more scores"]
    (line,) = [line for line in printed if line.startswith("adjusted Rand index: ")]
    assert re.search(r": -?\d\.\d\d \(1: the clusters are the labels; 0: no more alike than by chance\)$", line)
    assert "more scores: in metrics.json" in printed


@pytest.fixture(scope="module")
def far_away(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A run in a folder whose path is longer than a line."""
    place = tmp_path_factory.mktemp("far") / ("a folder with a long name " * 3).strip()
    write_pictures(place / "in", 6)
    return api.run(place / "in", **TINY, no_cache=True, out=place / "run")


def test_a_long_list_of_clusters_is_cut_and_says_where_the_others_are(far_away, capsys):
    result = far_away
    assert result.findings is not None
    many = replace(result.findings.clustering, sizes=np.ones(122, np.int64))
    summary.print_summary(replace(result, findings=replace(result.findings, clustering=many)))
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("cluster ") for line in lines) == 20
    assert lines[-1] == "and 102 more clusters; the sizes of all are in metrics.json"


# What a terminal shows


class _Terminal(io.StringIO):
    """A terminal of 60 columns, as far as rich asks; `shown` is what a person sees on it."""

    def isatty(self) -> bool:
        return True

    @property
    def shown(self) -> list[str]:
        # Colours are removed; a carriage return goes to the start of a line, which is then cleared or written over.
        plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", self.getvalue())
        return [line.rstrip() for line in re.split(r"[\r\n]+", plain)]


def terminal_in_place_of_output(monkeypatch: pytest.MonkeyPatch) -> _Terminal:
    found = _Terminal()
    for name, value in {"COLUMNS": "60", "LINES": "24", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, found)
    return found


def test_a_notice_while_a_bar_is_live_stands_alone_on_its_line(monkeypatch):
    screen = terminal_in_place_of_output(monkeypatch)
    observer = terminal.TerminalObserver()
    with observer_stage(observer, "embed"):
        observer.progress("embed", 1, 3)
        observer.notice("The store holds the embeddings of all these pictures already")
    assert "The store holds the embeddings of all these pictures already" in screen.shown


@contextmanager
def observer_stage(observer: terminal.TerminalObserver, stage: str) -> Iterator[None]:
    observer.stage_started(stage)
    yield
    observer.stage_finished(stage, 0.1)


def test_a_narrow_terminal_breaks_lines_at_words_and_keeps_paths_whole(far_away, monkeypatch):
    result, place = far_away, far_away.folder.parent
    screen = terminal_in_place_of_output(monkeypatch)
    summary.print_summary(result)
    lines = screen.shown
    start, end = (next(n for n, line in enumerate(lines) if line.startswith(name)) for name in ("verdict ", "files "))
    indent = re.match(r"verdict +", lines[start])
    assert indent is not None
    assert end > start + 1
    assert all(line.startswith(" " * indent.end()) for line in lines[start + 1 : end])
    assert " ".join(line[indent.end() :] for line in lines[start:end]) == str(result.verdict)
    paths = (str(place / "run"), (place / "run" / "report.html").as_uri())
    assert [line[indent.end() :] for line in lines if line.startswith("re")] == list(paths)
    assert max(len(line) for line in lines if not line.endswith(paths)) <= 60


def test_a_comparison_is_a_table_on_a_terminal_and_markdown_in_a_log(tmp_path, monkeypatch):
    screen = terminal_in_place_of_output(monkeypatch)
    rows = (Compared("vgg16", "kmeans", "", k=3, stability=0.7), Compared("hog", "ward", "", reason="left out: a | b"))
    found = Comparison(tmp_path, CompareConfig(), Manifest(tmp_path, ()), rows)
    summary.print_comparison(found)
    assert "|---" not in screen.getvalue()
    assert any(re.fullmatch(r"│vgg16 +│ kmeans +│ +3 │ +0\.70│", line) for line in screen.shown)
    assert "hog with ward: left out: a | b" in screen.shown
    assert max(len(line) for line in screen.shown if str(tmp_path) not in line) <= 60
    log = io.StringIO()
    monkeypatch.setattr(sys, "stdout", log)
    summary.print_comparison(found)
    assert "|---|---|" in log.getvalue()

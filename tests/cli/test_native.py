"""What libraries write to standard error is in the log, not between the lines of the command, and never lost."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.forks import Forked
from tests.helpers import TINY_OPTIONS, gpu_cluster, write_pictures

# The whole command, with a job that does what a library may do: nothing real dies in the same way every time.
PROGRAM = """
import ctypes, os, sys, time, warnings
import gpu_cluster
from gpu_cluster.cli.main import main

def job(*_, observer, **__):
    how = os.environ["HOW"]
    os.write(2, b"words of a \\x1b[2Jlibrary\\n")
    if how == "abort":
        ctypes.CDLL(None).abort()
    if how == "segmentation fault":
        ctypes.string_at(0)
    if how == "kill":
        os.kill(os.getpid(), 9)
    warnings.warn("words of scikit-learn", RuntimeWarning)
    observer.notice("a notice")
    raise RuntimeError("words of the error")

gpu_cluster.run = job
main()
"""


def command(how: str, *options: str, stderr: int | None = None, mark: str = "") -> tuple[int, str]:
    env = os.environ | {"HOW": how, "MARK": mark}
    with Forked("run", *options, program=PROGRAM, env=env, stderr=stderr) as process:
        _, errors = process.communicate(timeout=60)
    return process.returncode, errors


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("abort", -6, "Fatal Python error: Aborted"),
        ("segmentation fault", -11, "Fatal Python error: Segmentation fault"),
        ("kill", -9, ""),
    ],
)
def test_the_last_words_of_a_process_that_dies_are_not_lost(how, code, said):
    found, text = command(how, "--quiet")
    assert found == code
    assert said in text
    assert "what libraries wrote before the process ended:\nwords of a \\x1b[2Jlibrary\n" in text


def test_libraries_are_heard_with_verbose_only_and_before_the_error():
    code, text = command("error")
    assert (code, len(text.splitlines())) == (1, 1)
    assert "words of the error" in text
    code, text = command("error", "--verbose")
    *log, error = text.splitlines()
    assert "gpu_cluster.libraries: words of a \\x1b[2Jlibrary" in log
    assert any("RuntimeWarning: words of scikit-learn" in line for line in log)
    assert "words of the error" in error


def test_a_standard_error_that_takes_nothing_changes_no_exit_code():
    reader, gone = os.pipe()
    os.close(reader)
    for taken in (os.open("/dev/full", os.O_WRONLY), gone):
        assert command("error", stderr=taken)[0] == 1
        os.close(taken)


def test_a_standard_error_that_is_closed_changes_no_exit_code():
    # Only a new program has it closed from the start.
    words = ["bash", "-c", 'exec "$@" 2>&-', "bash", sys.executable, "-c", PROGRAM, "run"]
    done = subprocess.run(words, env=os.environ | {"HOW": "error"}, stdout=subprocess.DEVNULL, timeout=60, check=False)
    assert done.returncode == 1


def test_no_process_is_left_behind(tmp_path):
    command("error", mark=str(tmp_path))
    command("kill", mark=str(tmp_path))
    deadline = time.monotonic() + 10
    while left := processes(str(tmp_path)):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def processes(mark: str) -> list[str]:
    """Return the numbers of the processes that were started with this mark, and of those that they started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(folder.name)
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_libtiff_is_heard_with_verbose_only(tmp_path):
    folder = tmp_path / "pictures"
    files = write_pictures(folder, 4)
    damaged = folder / "damaged.tif"
    Image.open(files[0]).save(damaged, compression="tiff_lzw")
    with Image.open(damaged) as image:
        first = image.tag_v2[273][0]  # type: ignore[attr-defined]
    content = bytearray(damaged.read_bytes())
    for at in range(first + 20, len(content) - 300, 7):
        content[at] ^= 0xA5
    damaged.write_bytes(content)
    words = [*TINY_OPTIONS[1:], "--no-cache"]
    said = gpu_cluster("run", folder, *words, out=tmp_path / "run")
    assert "tempfile.tif" not in said.err
    heard = gpu_cluster("run", folder, *words, "--verbose", out=tmp_path / "run")
    assert "gpu_cluster.libraries: tempfile.tif: " in heard.err
    assert said.json("run.json")["files"]["bad"] == 1

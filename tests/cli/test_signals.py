"""The command at its defaults, signalled: the exit code tells the signal, and nothing is left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from gpu_cluster.config import shipped_data
from tests.helpers import (
    EMBEDDED,
    listing,
    logged,
    started,
    wait_until,
    write_pictures,
)


def stop(place: Path, number: int, *arguments: str) -> tuple[int, str]:
    """Start a run that takes the best part of a minute, signal it while it embeds, and return its code and errors."""
    options = ["--batch-size", "4", "--shard-size", "16"]
    with started("run", shipped_data() / "flowers", *options, *arguments, cwd=place) as process:
        wait_until(lambda: logged(place, EMBEDDED), process)
        process.send_signal(number)
        _, found = process.communicate(timeout=60)
    return process.returncode, found


@pytest.mark.slow
@pytest.mark.usefixtures("terminated")
def test_sigterm_ends_with_143_and_leaves_nothing(tmp_path):
    code, found = stop(tmp_path, signal.SIGTERM)
    assert code == 143
    assert found.splitlines()[-1].startswith("error: interrupted")
    assert "Traceback" not in found
    assert listing(tmp_path) == {}


@pytest.mark.slow
@pytest.mark.usefixtures("terminated")
def test_sigint_ends_with_130_and_leaves_an_earlier_run_as_it_was(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"gpu_cluster": "0.1.0", "config": {}}')
    (tmp_path / "run" / "bad_files.csv").touch()
    before = listing(tmp_path)
    code, found = stop(tmp_path, signal.SIGINT, "--out", "run")
    assert code == 130
    assert found.splitlines()[-1].startswith("error: interrupted")
    assert "Traceback" not in found
    assert listing(tmp_path) == before


# The main thread is in one step of C, as in a large matrix product, and hears no signal: it waits for a lock that it
# has itself, which takes no core from the tests beside this one.
DEAF = """
import ctypes, signal
# A shell starts jobs in the background with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from gpu_cluster.cli.signals import Signals
signals = Signals()
signals.listen()
print("listening", flush=True)
lock, library = ctypes.create_string_buffer(256), ctypes.CDLL(None)
library.pthread_mutex_init(lock, None)
library.pthread_mutex_lock(lock)
library.pthread_mutex_lock(lock)
"""


def deaf(*numbers: int, between_s: float = 0.3) -> tuple[int, str, float]:
    """Signal a main thread that hears nothing; return its code, its errors and the seconds since the last signal."""
    with subprocess.Popen(
        [sys.executable, "-c", DEAF], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        time.sleep(0.5)
        for number in numbers:
            process.send_signal(number)
            last = time.monotonic()
            time.sleep(between_s)
        _, found = process.communicate(timeout=60)
    return process.returncode, found, time.monotonic() - last


@pytest.fixture(scope="module")
def terminated() -> Iterator[Future[tuple[int, str, float]]]:
    """What `deaf` returns of SIGTERM: it takes seconds of doing nothing, in which the slow tests before it go on."""
    with ThreadPoolExecutor(1) as pool:
        # Schedulers send SIGTERM several times; the second one is not a second Ctrl-C.
        yield pool.submit(deaf, signal.SIGTERM, signal.SIGTERM)


@pytest.mark.slow
def test_a_main_thread_that_hears_nothing_is_ended_and_the_signal_acknowledged(terminated):
    code, found, seconds = terminated.result()
    assert code == 143
    assert found.startswith("interrupted: the job ends as soon as")
    assert 5 < seconds < 20


def test_a_second_ctrl_c_ends_a_main_thread_that_hears_nothing_at_once():
    code, _, seconds = deaf(signal.SIGINT, signal.SIGINT)
    assert code == 130
    # Far less than the 8 seconds after which the first one would have ended it.
    assert seconds < 5


@pytest.mark.slow
def test_sighup_ends_a_job_as_sigterm_does(tmp_path):
    pictures = write_pictures(tmp_path / "in", 40)
    options = ["--features", "vgg16", "--image-size", "32", "--batch-size", "1", "--no-cache", "--out", "run"]
    with started("run", pictures[0].parent, *options, cwd=tmp_path) as process:
        wait_until(lambda: logged(tmp_path, EMBEDDED), process)
        process.send_signal(signal.SIGHUP)
        _, found = process.communicate(timeout=60)
    assert process.returncode == 129
    assert not (tmp_path / "run").exists()
    assert found.splitlines()[-1].startswith("error: interrupted")


def test_sighup_stays_ignored_under_nohup():
    script = "import os, signal; from gpu_cluster.cli.signals import Signals; Signals().listen(); "
    script += "os.kill(os.getpid(), signal.SIGHUP); print('goes on')"
    done = subprocess.run(["nohup", sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "goes on\n"

"""Locks of folders: whoever waits for one gets the folder that has the name then."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from threading import Thread

import pytest

from gpu_cluster.folders import lock, locked, try_lock


def begun(work: Callable[[], None]) -> Thread:
    """Start some work beside the test, and let it come to its wait."""
    thread = Thread(target=work, daemon=True)
    thread.start()
    time.sleep(0.05)
    return thread


def test_a_folder_that_was_renamed_during_the_wait_is_not_the_one_that_is_locked(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    held = try_lock(run)
    assert held is not None
    found = []

    def look() -> None:
        with locked(run):
            found.append((try_lock(run), try_lock(tmp_path / "run.1") is not None))

    waiting = begun(look)
    run.rename(tmp_path / "run.1")
    run.mkdir()
    os.close(held)
    waiting.join(5)
    assert found == [(None, True)]


def test_a_link_to_a_folder_is_locked_as_that_folder(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    with locked(tmp_path / "link"):
        assert try_lock(tmp_path / "run") is None


def test_a_new_folder_into_which_another_job_looks_just_now_is_locked_after_that(tmp_path):
    looking = try_lock(tmp_path)
    assert looking is not None
    found: list[int | None] = []
    waiting = begun(lambda: found.append(lock(tmp_path)))
    assert found == []
    os.close(looking)
    waiting.join(5)
    assert found[0] is not None
    assert try_lock(tmp_path) is None
    os.close(found[0])


def test_a_folder_that_is_gone_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), locked(tmp_path / "gone"):
        pass

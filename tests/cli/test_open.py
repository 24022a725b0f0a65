"""`--open` opens the finished report in the browser, and where there is none the command has done its work."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.forks import Forked
from tests.helpers import Finished


def reported(run: Path, browser: Path) -> Finished:
    # BROWSER is the user's own setting, which Python's webbrowser reads; without DISPLAY it knows no other.
    hidden = {name: value for name, value in os.environ.items() if name not in {"DISPLAY", "WAYLAND_DISPLAY"}}
    environment = {**hidden, "BROWSER": str(browser), "PATH": "/nowhere"}
    with Forked("report", run, "--open", env=environment) as process:
        out, err = process.communicate(timeout=60)
    return Finished(process.returncode, out, err, run)


def test_the_report_is_opened_in_the_browser_of_the_user(sample_run, tmp_path):
    run = shutil.copytree(sample_run.folder, tmp_path / "a run")
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    done = reported(run, browser)
    assert (done.code, done.err) == (0, "")
    assert (tmp_path / "opened").read_text() == f"{(run / 'report.html').as_uri()}\n"


def test_where_no_browser_opens_it_the_user_is_told_where_the_report_is(sample_run, tmp_path):
    run = shutil.copytree(sample_run.folder, tmp_path / "run")
    done = reported(run, tmp_path / "absent")
    uri = (run / "report.html").as_uri()
    assert done.code == 0
    assert done.err == f"note: no browser could be opened here; the report is {uri}\n"

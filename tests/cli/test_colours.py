"""Colours: on a terminal only, and not where NO_COLOR is set."""

from __future__ import annotations

import os
import re
from contextlib import suppress

import pytest

from tests.forks import Forked, run_program

# A colour for the text or its ground; bold is no colour.
COLOUR = re.compile(rb"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;\d+)*m")

PROGRESS = """
from gpu_cluster.cli.terminal import TerminalObserver
observer = TerminalObserver()
observer.stage_started("scan")
observer.progress("scan", 1, 2)
observer.stage_finished("scan", 1.0)
"""


def printed_on_a_terminal(**environment: str) -> bytes:
    ours, theirs = os.openpty()
    mine = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "FORCE_COLOR"}}
    mine |= {"TERM": "xterm-256color", **environment}
    with Forked(program=PROGRESS, stdin=theirs, stdout=theirs, stderr=theirs, env=mine):
        os.close(theirs)
        found = b""
        # Reading from a terminal whose other side is closed is an error.
        with suppress(OSError):
            while more := os.read(ours, 4096):
                found += more
    os.close(ours)
    return found


@pytest.mark.parametrize(("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)], ids=["", "NO_COLOR"])
def test_progress_is_coloured_on_a_terminal_unless_no_color_is_set(environment, coloured):
    found = printed_on_a_terminal(**environment)
    assert b"scan" in found
    assert bool(COLOUR.search(found)) is coloured


def test_a_pipe_gets_no_escapes():
    assert run_program(PROGRESS).stderr == "scan: 1.0 s\n"

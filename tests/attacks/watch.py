"""Measures the memory of a command and of everything that it starts, while it runs."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

# To look through all processes and their memory takes some ms, and no picture is decoded so soon.
INTERVAL_S = 0.1


@dataclass
class Watched:
    """A command that was watched; `peak_bytes` is the most that all its processes had in memory at one time."""

    code: int | None = None
    err: str = ""
    elapsed_s: float = 0.0
    peak_bytes: int = 0
    # The processes at the peak: command and bytes of each.
    at_peak: list[tuple[str, int]] = field(default_factory=list)


def session_of(process: int) -> list[int]:
    """Return all living processes of the session that a process leads."""
    found = []
    for name in os.listdir("/proc"):
        # Each may end at any moment; the name of its program may hold spaces and brackets.
        with suppress(OSError, ValueError):
            fields = Path("/proc", name, "stat").read_text().rpartition(")")[2].split() if name.isdigit() else []
            if fields and int(fields[3]) == process and fields[0] != "Z":
                found.append(int(name))
    return found


def resident_bytes(process: int) -> int:
    """Return what a process has in memory; what it shares with others is divided among them."""
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("Pss:")))
    # It has ended.
    return 0


def watch(command: list[str | Path], *, most_bytes: int, timeout_s: float, cwd: Path | None = None) -> Watched:
    """Run a command in a session of its own, and end all of it if it has more than `most_bytes` or takes too long."""
    found, start = Watched(), time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=cwd
    ) as process:
        reader = threading.Thread(target=_read, args=(process, found))
        reader.start()
        while process.poll() is None:
            sizes = {one: resident_bytes(one) for one in session_of(process.pid)}
            if sum(sizes.values()) > found.peak_bytes:
                found.peak_bytes = sum(sizes.values())
                found.at_peak = [(_name(one), size) for one, size in sizes.items()]
            if found.peak_bytes > most_bytes or time.monotonic() - start > timeout_s:
                end_session(process.pid)
            time.sleep(INTERVAL_S)
        found.elapsed_s = time.monotonic() - start
        end_session(process.pid)
        reader.join()
    found.code = process.returncode
    return found


def end_session(leader: int) -> None:
    """Kill every process of a session."""
    for one in session_of(leader):
        with suppress(ProcessLookupError):
            os.kill(one, 9)


def _read(process: subprocess.Popen[str], found: Watched) -> None:
    assert process.stderr is not None
    found.err = process.stderr.read()


def _name(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")[:80]
    except OSError:
        return "(ended)"

"""Measures how long the command line takes before it does anything, beside `python -c 'import typer, rich'`.

The time is that of the processor, which the work of neighbours on the machine changes less than the time on the wall.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scripts.bench_table import Row, of_times, table

COMMANDS = (["--help"], ["--version"], ["run", "--help"], ["config", "show"], ["cache", "info"], ["run", "absent"])
LEAST = [sys.executable, "-c", "import typer, rich"]


def processor_s(command: Sequence[str], folder: Path) -> float:
    """Return the seconds of processor time of a command and of what it starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder)}
    subprocess.run(command, env=environment, cwd=folder, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(quick: bool) -> list[Row]:
    """Return a row for each command; the ratio says how many times it is faster than `import typer, rich`."""
    program = str(Path(sys.executable).with_name("gpu-cluster"))
    commands = [LEAST, *([program, *given] for given in COMMANDS)]
    rounds = 3 if quick else 11
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "gpu-cluster").mkdir()
        # The first round reads the files from the disk and is not counted.
        times = [[processor_s(command, folder) for command in commands] for _ in range(rounds + 1)][1:]
    least = [round_s[0] for round_s in times]
    return [
        of_times(
            f"gpu-cluster {' '.join(given)} / import typer, rich",
            [round_s[1 + number] for round_s in times],
            least,
            note="processor time",
        )
        for number, given in enumerate(COMMANDS)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 11")
    print(table(measure(parser.parse_args().quick)))


if __name__ == "__main__":
    main()

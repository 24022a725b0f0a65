"""The process that tries cases: it loads gpu_cluster once, and is replaced when it dies.

It reads a group of cases of one target from standard input, a line of JSON each, and answers with a line for the group.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import IO

from gpu_cluster.config import InputConfig
from gpu_cluster.images import decoders
from tests.attacks import cases, targets

# What a group of small cases may add to the memory of its process: a decoder takes up to 34 bytes a pixel, on as many
# cores as there are; the weights of the whole network are 59 MB, twice while they are read.
MOST_BYTES = 400_000_000 + 34 * targets.MAX_PIXELS * (os.cpu_count() or 1)


def main() -> None:
    template, folder = Path(sys.argv[1]), Path(sys.argv[2])
    # Libraries write to standard output too.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # As a job does, whose decoders last until its end.
    with decoders.limited(InputConfig(max_pixels=targets.MAX_PIXELS)):
        _answer_all(template, folder, answers)


def _answer_all(template: Path, folder: Path, answers: IO[str]) -> None:
    for number, line in enumerate(sys.stdin):
        asked = json.loads(line)
        if "prepare" in asked:
            targets.prepare(asked["prepare"], template, folder / str(number))
            print("ready", file=answers, flush=True)
            continue
        if "files" in asked:
            group = [cases.load(Path(file)) for file in asked["files"]]
        else:
            group = [
                cases.make(one, asked["seed"], template, without=frozenset(asked["without"])) for one in asked["cases"]
            ]
        before = _start_of_peak()
        _limit(before)
        with targets.in_folder(folder / str(number)):
            wrong = targets.check(group[0].target, group, template, folder / str(number))
        growth = _peak() - before
        if growth > MOST_BYTES:
            # Of a group it is not known which case it was; alone it will be.
            wrong = [one or f"memory: {growth / 1e6:.0f} MB more" for one in wrong]
        print(json.dumps(wrong), file=answers, flush=True)


def _limit(used: int) -> None:
    """Have the process run out of memory before the machine does."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 20 * MOST_BYTES, resource.RLIM_INFINITY))


def _start_of_peak() -> int:
    """Have the process's peak of memory begin anew, and return it in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()

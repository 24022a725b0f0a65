"""Prints where the time of a first run and of a rerun goes: a table of the stages, and one of the imported libraries.

Each is a process of its own, with a new store that both use. The imports lie within the stages, and outside of them.
The seconds of an import are those of its own modules, without those of other libraries that it imports.

    .venv/bin/python -m scripts.profile_run [FOLDER] [-- OPTION=VALUE...]
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from gpu_cluster.config import shipped_data

# What is written while TensorFlow is imported is held back elsewhere, and with it the times of these imports.
PROGRAM = """
import sys
from contextlib import nullcontext
from gpu_cluster import run
from gpu_cluster.backend import tensorflow_devices
tensorflow_devices._native_stderr_kept = nullcontext
run(**eval(sys.argv[1]))
"""
# Libraries that take less than this are not named.
_LEAST_S = 0.02


def profiled(options: dict[str, Any], place: Path, name: str) -> tuple[float, dict[str, float], dict[str, float]]:
    """Return the seconds of one run: of its process, by stage, and by imported library."""
    out = place / name
    command = [sys.executable, "-X", "importtime", "-c", PROGRAM, repr({**options, "out": str(out)})]
    environment = {**os.environ, "XDG_CACHE_HOME": str(place / "cache")}
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=True)
    process_s = time.perf_counter() - start
    stages: dict[str, float] = json.loads((out / "run.json").read_text(encoding="utf-8"))["stages_s"]
    # The page is written after the record, so its time is in the log only.
    for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["event"] == "stage_finished":
            stages.setdefault(event["stage"], event["elapsed_s"])
    return process_s, stages, _imports(done.stderr)


def _imports(text: str) -> dict[str, float]:
    """Return the seconds by library that `-X importtime` tells of: `import time: self [us] | cumulative | name`."""
    found: defaultdict[str, float] = defaultdict(float)
    for line in text.splitlines():
        if line.startswith("import time:") and "[us]" not in line:
            own, _, module = line.removeprefix("import time:").split("|")
            found[_library(module.strip())] += int(own) / 1e6
    return dict(found)


def _library(module: str) -> str:
    name = module.partition(".")[0]
    return "Python's own" if name in sys.stdlib_module_names or name.startswith("_") else name


def print_table(title: str, process_s: float, stages: dict[str, float], imports: dict[str, float]) -> None:
    """Print the stages and the imports of one run, with their shares of the time of the process."""
    print(f"\n{title}: {process_s:.2f} s\n\n| stage | seconds | share |\n|---|---:|---:|")
    rest = {"outside of the stages": process_s - sum(stages.values())}
    for stage, seconds in {**stages, **rest}.items():
        print(f"| {stage} | {seconds:.2f} | {seconds / process_s:.0%} |")
    print("\n| imported | seconds | share |\n|---|---:|---:|")
    for library, seconds in sorted(imports.items(), key=lambda one: -one[1]):
        if seconds >= _LEAST_S:
            print(f"| {library} | {seconds:.2f} | {seconds / process_s:.0%} |")
    print(f"| all imports | {sum(imports.values()):.2f} | {sum(imports.values()) / process_s:.0%} |")


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=shipped_data() / "flowers", help="folder of images")
    parser.add_argument("options", nargs="*", metavar="OPTION=VALUE", help="options of gpu_cluster.run, after --")
    arguments = parser.parse_args()
    given = (option.partition("=") for option in arguments.options)
    options = {"images": str(arguments.folder), **{name: _value(value) for name, _, value in given}}
    with tempfile.TemporaryDirectory() as name:
        for title, out in (("First run", "first"), ("Rerun", "again")):
            print_table(title, *profiled(options, Path(name), out))


if __name__ == "__main__":
    main()

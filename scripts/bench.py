"""Runs every bench and prints one table, ratios first, and the machine on which it was measured.

Each bench runs in a process of its own, so that none changes the memory or the threads of another, and one that fails
does not stop the others.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scripts.bench_table import Row, table

BENCHES = ("embed", "networks", "decode", "sweep", "scale", "manifest", "startup", "rerun")
LIBRARIES = (
    *("numpy", "scipy", "scikit-learn", "scikit-learn-intelex", "pandas", "pyarrow", "pillow", "matplotlib"),
    *("tensorflow", "tensorflow-cpu", "ncnn", "torch", "faiss-cpu", "cupy-cuda12x", "cuml-cu12", "typer"),
)

# What the process of a bench does; its table goes into a file, because libraries print too.
ONE = """
import json, sys
from dataclasses import asdict
from importlib import import_module
measure = getattr(import_module(sys.argv[1]), "measure", None)
rows = None if measure is None else [asdict(row) for row in measure(sys.argv[2] == "quick")]
with open(sys.argv[3], "w", encoding="utf-8") as file:
    json.dump(rows, file)
"""


def rows_of(name: str, *, quick: bool) -> tuple[list[Row], str | None]:
    """Return what a bench has measured, and in words why it has not; None if it has."""
    module = f"scripts.bench_{name}"
    if find_spec(module) is None:
        return [], "it is not there"
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder) / "rows.json"
        command = [sys.executable, "-c", ONE, module, "quick" if quick else "whole", str(into)]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip() or "without a word").splitlines()[-1]
            return [], f"it ended with code {done.returncode}: {last}"
        found = json.loads(into.read_text(encoding="utf-8"))
    if found is None:
        return [], "it has no function measure(quick)"
    return [Row(**row) for row in found], None


def machine() -> dict[str, Any]:
    """Return what a figure depends on: the processor, its cores, the memory, versions, and who else is at work."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "load": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "gpu-cluster": version("gpu-cluster"),
        "commit": _commit(),
        "blas": _blas(),
        "versions": {name: found for name in LIBRARIES if (found := _version(name)) is not None},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _blas() -> list[str]:
    import numpy as np
    from threadpoolctl import threadpool_info

    np.ones((2, 2)) @ np.ones((2, 2))
    return [
        f"{one['internal_api']} {one.get('version')} {one.get('architecture', '')}, {one['num_threads']} threads"
        for one in threadpool_info()
    ]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"benches (default: {' '.join(BENCHES)})")
    parser.add_argument("--quick", action="store_true", help="small data and few rounds: to see that it works")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(BENCHES)
    if unknown:
        parser.error(f"expected names of {', '.join(BENCHES)}; found {', '.join(sorted(unknown))}")
    rows: list[Row] = []
    missing: dict[str, str] = {}
    for name in arguments.names or BENCHES:
        print(f"{name} ...", file=sys.stderr, flush=True)
        found, why = rows_of(name, quick=arguments.quick)
        rows += found
        if why is not None:
            missing[name] = why
    if arguments.json:
        print(json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows], "missing": missing}, indent=2))
        return
    print(table(rows))
    for name, why in missing.items():
        print(f"bench_{name}: {why}")
    for name, value in machine().items():
        words = ", ".join(f"{key} {one}" for key, one in value.items()) if isinstance(value, dict) else value
        print(f"{name}: {'; '.join(words) if isinstance(words, list) else words}")


if __name__ == "__main__":
    main()

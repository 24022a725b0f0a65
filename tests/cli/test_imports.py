"""What each command loads, by the modules of its process. How long this takes is measured by `make bench`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import json, sys
into, *arguments = sys.argv[1:]
started = []
sys.addaudithook(lambda event, of: started.append(str(of[0])) if event == "subprocess.Popen" else None)
from gpu_cluster.cli.main import main
sys.argv = ["gpu-cluster", *arguments]
try:
    main()
except SystemExit as end:
    found = {"code": end.code or 0, "started": started, "modules": sorted(sys.modules)}
    with open(into, "w") as file:
        json.dump(found, file)
"""

# Every dependency but Typer, which reads the command line, and what Typer itself needs.
HEAVY = {
    *("charset_normalizer", "h5py", "jinja2", "kneed", "matplotlib", "numpy", "pandas", "PIL", "pyarrow", "pydantic"),
    *("rich", "scipy", "skimage", "sklearn", "tensorflow", "keras", "ncnn", "cupy", "cuml", "cudf"),
}
OPTIONS = {"pydantic"}
TABLES = {"numpy", "pyarrow"}


def loaded(folder: Path, *arguments: str | Path) -> dict[str, Any]:
    """Run a command in a process of its own; return its code, the heavy modules, and the processes it started."""
    into = folder / "loaded.json"
    command = [sys.executable, "-c", PROGRAM, into, *arguments]
    subprocess.run(command, capture_output=True, check=True, cwd=folder)
    found: dict[str, Any] = json.loads(into.read_text())
    return found | {"heavy": HEAVY & {name.partition(".")[0] for name in found["modules"]}}


# Typer loads pydantic as soon as it converts a value.
@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["--help"], set()),
        (["--version"], set()),
        ([], {"pydantic"}),
        (["help"], {"pydantic"}),
        (["cache"], {"pydantic"}),
        (["config", "--help"], {"pydantic"}),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_help_and_version_load_no_library_no_option_and_no_job(tmp_path, arguments, needed):
    found = loaded(tmp_path, *arguments)
    assert found["heavy"] <= needed
    assert found["started"] == []
    assert not {"gpu_cluster.config", "gpu_cluster.api", "gpu_cluster.jobs"} & set(found["modules"])


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["run", "--help"], OPTIONS),
        (["predict", "-h"], OPTIONS),
        (["run", "--no-such-option"], OPTIONS),
        (["run", "in", "--device", "tpu"], OPTIONS | {"rich"}),
        (["config", "show"], OPTIONS | {"rich"}),
        (["cache", "info"], OPTIONS | {"rich"} | TABLES),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_a_command_loads_only_what_it_needs(tmp_path, arguments, needed):
    assert loaded(tmp_path, *arguments)["heavy"] <= needed


def test_a_run_that_is_refused_loads_no_engine_and_no_table(tmp_path):
    found = loaded(tmp_path, "run", "absent")
    assert found["code"] == 2
    assert found["heavy"] <= OPTIONS | {"rich", "numpy", "PIL"}


def test_only_a_job_starts_the_process_that_waits_for_last_words(tmp_path):
    assert loaded(tmp_path, "config", "show")["started"] == []
    assert loaded(tmp_path, "run", "absent")["started"] == [sys.executable]


def test_the_report_of_a_finished_run_loads_no_engine_and_draws_no_plot(tmp_path, sample_run):
    shutil.copytree(sample_run.folder, tmp_path / "run")
    found = loaded(tmp_path, "report", "run")
    assert found["code"] == 0
    assert not {"tensorflow", "keras", "ncnn", "sklearn", "scipy", "matplotlib", "skimage", "h5py"} & found["heavy"]

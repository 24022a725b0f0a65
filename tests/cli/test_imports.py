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
into, commands = sys.argv[1:]
found, started = [], []
sys.addaudithook(lambda event, of: started.append(str(of[0])) if event == "subprocess.Popen" else None)
from gpu_cluster.cli.main import main
for arguments in json.loads(commands):
    sys.argv = ["gpu-cluster", *arguments]
    try:
        main()
    except SystemExit as end:
        found.append({"code": end.code or 0, "started": started.copy(), "modules": sorted(sys.modules)})
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


def loaded(folder: Path, *commands: list[str]) -> list[dict[str, Any]]:
    """Run commands, one after the other, in a new process; return what it is after each of them.

    That is the code of the command, and of the process so far the heavy modules, all modules and the processes that it
    has started.
    """
    into = folder / "loaded.json"
    given: list[str | Path] = [sys.executable, "-c", PROGRAM, into, json.dumps(commands)]
    subprocess.run(given, capture_output=True, check=True, cwd=folder)
    found: list[dict[str, Any]] = json.loads(into.read_text())
    return [one | {"heavy": HEAVY & {name.partition(".")[0] for name in one["modules"]}} for one in found]


# Each needs all that those before it need, so one process shows what each of them loads. Typer loads pydantic as soon
# as it converts a value.
HELP: list[tuple[list[str], set[str]]] = [
    (["--help"], set()),
    (["--version"], set()),
    ([], {"pydantic"}),
    (["help"], {"pydantic"}),
    (["cache"], {"pydantic"}),
    (["config", "--help"], {"pydantic"}),
]
NEEDED: list[tuple[list[str], set[str]]] = [
    (["run", "--help"], OPTIONS),
    (["predict", "-h"], OPTIONS),
    (["run", "--no-such-option"], OPTIONS),
    (["config", "show"], OPTIONS | {"rich"}),
    (["run", "in", "--device", "tpu"], OPTIONS | {"rich"}),
    (["cache", "info"], OPTIONS | {"rich"} | TABLES),
]


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The process after each command that does little."""
    given = [arguments for arguments, _ in [*HELP, *NEEDED]]
    found = loaded(tmp_path_factory.mktemp("commands"), *given)
    return dict(zip(map(" ".join, given), found, strict=True))


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The process after a run that is refused."""
    (found,) = loaded(tmp_path_factory.mktemp("refused"), ["run", "absent"])
    return found


def test_a_command_loads_only_what_it_needs(commands):
    for arguments, needed in [*HELP, *NEEDED]:
        assert commands[" ".join(arguments)]["heavy"] <= needed, arguments


def test_help_and_version_load_no_option_and_no_job(commands):
    for arguments, _ in HELP:
        modules = set(commands[" ".join(arguments)]["modules"])
        assert not {"gpu_cluster.config", "gpu_cluster.api", "gpu_cluster.jobs"} & modules, arguments


def test_a_run_that_is_refused_loads_no_engine_and_no_table(refused):
    assert refused["code"] == 2
    assert refused["heavy"] <= OPTIONS | {"rich", "numpy", "PIL"}


def test_only_a_job_starts_the_process_that_waits_for_last_words(commands, refused):
    assert commands["config show"]["started"] == []
    assert refused["started"] == [sys.executable]


def test_the_report_of_a_finished_run_loads_no_engine_and_draws_no_plot(tmp_path, sample_run):
    shutil.copytree(sample_run.folder, tmp_path / "run")
    (found,) = loaded(tmp_path, ["report", "run"])
    assert found["code"] == 0
    assert not {"tensorflow", "keras", "ncnn", "sklearn", "scipy", "matplotlib", "skimage", "h5py"} & found["heavy"]

"""Progress in a notebook: one line that changes, in a kernel of Jupyter, and nothing elsewhere."""

from __future__ import annotations

import pytest

import gpu_cluster
from gpu_cluster.errors import DataError
from gpu_cluster.notebook import ProgressLine, default_observer
from tests.helpers import TINY, write_pictures

NOTEBOOK = ("nbclient", "nbformat", "ipykernel")
CELLS = (
    "import gpu_cluster",
    "result = gpu_cluster.run('in', features='vgg16', image_size=32, k=2, k_range='2:2', n_init=2, out='run')",
    "result",
    "exported = gpu_cluster.export('run', out='sorted')",
)


def test_the_line_tells_at_the_end_how_long_each_stage_took(tmp_path):
    write_pictures(tmp_path / "in", 4)
    lines: list[str] = []
    gpu_cluster.run(tmp_path / "in", **TINY, out=tmp_path / "run", observer=ProgressLine(lines.append))
    assert lines[0] == "scan ..."
    assert "embed ..." in lines
    assert all("\n" not in line for line in lines)
    stages = [one.rpartition(" ")[0] for one in lines[-1].partition(" s: ")[2].split(", ")]
    expected = ["scan", "embed", "reduce", "sweep", "cluster", "score", "near duplicates", "tsne", "report", "page"]
    assert stages == expected


def test_the_line_tells_how_far_a_stage_is_at_most_some_times_a_second():
    lines: list[str] = []
    line = ProgressLine(lines.append)
    line.stage_started("embed")
    for done in range(1_000):
        line.progress("embed", done, 1_000)
    assert lines == ["embed ..."]


def test_the_line_tells_which_stage_failed(tmp_path):
    lines: list[str] = []
    with pytest.raises(DataError):
        gpu_cluster.embed(tmp_path / "absent.png", image_size=32, observer=ProgressLine(lines.append))
    assert lines[-1].startswith("embed: failed after ")


def test_outside_of_a_notebook_nothing_is_shown():
    assert default_observer() is None


def test_a_notebook_shows_one_line_and_then_the_run(tmp_path):
    why = "needs nbclient and ipykernel, which are not among the packages for the tests"
    nbclient, nbformat, _kernel = (pytest.importorskip(name, reason=why) for name in NOTEBOOK)
    write_pictures(tmp_path / "in", 4)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    (line,) = notebook.cells[1].outputs
    assert line["data"]["text/plain"].partition(" s: ")[2].startswith("scan ")
    (shown,) = notebook.cells[2].outputs
    assert shown["data"]["text/html"].startswith("<div")
    assert 'href="run/report.html"' in shown["data"]["text/html"]
    assert shown["data"]["text/plain"].startswith("<RunResult: 2 clusters")
    (line,) = notebook.cells[3].outputs
    assert line["data"]["text/plain"].partition(" s: ")[2].startswith("export ")

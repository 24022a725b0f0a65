"""What is ours in a folder: what a run and a comparison wrote, and what `gpu-cluster report` wrote in its place."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import gpu_cluster
from gpu_cluster.inventory import find_earlier_run, first_other, is_folder_of_ours, read, remove, replace_file
from gpu_cluster.run_folder import CONTENTS, SCRATCH
from tests.helpers import TINY, called, everything, write_pictures
from tests.run_folders import earlier_run, run_before


def other(folder: Path) -> str | None:
    """Return the first path in a folder that its inventory does not name."""
    inventory = find_earlier_run(folder)
    assert inventory is not None
    assert inventory.files is not None
    return first_other(folder, inventory)


def test_the_inventories_of_a_run_and_a_comparison_name_all_that_they_leave(sample_run, tmp_path):
    write_pictures(tmp_path / "in", 6)
    given: dict[str, Any] = {"features": ["vgg16"], "algorithms": ["kmeans"], "k": 2, "image_size": 32}
    compared = gpu_cluster.compare(tmp_path / "in", **given, out=tmp_path / "out").folder
    assert [other(folder) for folder in (sample_run.folder, compared)] == [None, None]
    assert {path.name for folder in (sample_run.folder, compared) for path in folder.iterdir()} == (
        CONTENTS - {SCRATCH}
    )
    names = {path: path.stat().st_size for path in compared.rglob("*") if path.is_file()}
    assert json.loads((compared / "inventory.json").read_text())["files"] == {
        str(path.relative_to(compared)): size for path, size in names.items() if path.name != "inventory.json"
    }


def test_the_page_that_is_written_again_is_still_the_runs_own(tmp_path):
    write_pictures(tmp_path / "in", 3)
    folder = gpu_cluster.run(tmp_path / "in", **TINY, out=tmp_path / "run").folder
    (tmp_path / "in").rename(tmp_path / "moved")
    before = (folder / "report.html").stat().st_size
    assert called("report", folder, "--root", tmp_path / "moved").code == 0
    assert (folder / "report.html").stat().st_size != before
    assert other(folder) is None
    assert not [name for name in everything(folder) if name.startswith(".")]


def test_a_page_can_be_written_into_a_run_of_the_version_before(tmp_path):
    folder = run_before(tmp_path / "run")
    replace_file(folder, "report.html", b"new")
    assert (folder / "report.html").read_bytes() == b"new"
    assert "inventory.json" not in everything(folder)


# For each step, a child that writes the page and kills itself at its n-th call of a function that changes the disk.
_KILLED = """
import os, signal, sys
from pathlib import Path
from gpu_cluster.inventory import find_earlier_run, first_other, replace_file

def counting(do):
    def counted(*given, **named):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return do(*given, **named)
    return counted

folder = Path(sys.argv[1])
for left in range(1, 12):
    page = b"x" * (100 + left)
    child = os.fork()
    if child == 0:
        os.replace, os.fsync = counting(os.replace), counting(os.fsync)
        replace_file(folder, "report.html", page)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(code, (folder / "report.html").stat().st_size, first_other(folder, find_earlier_run(folder)))
"""


def test_a_kill_at_any_step_of_writing_the_page_again_leaves_a_page_that_is_the_runs_own(tmp_path):
    folder = earlier_run(tmp_path / "run")
    replace_file(folder, "report.html", b"first")
    done = subprocess.run([sys.executable, "-c", _KILLED, folder], capture_output=True, text=True, check=True)
    # Three steps write the inventory with both sizes, three the page, and three the inventory with its new size.
    killed = [(-signal.SIGKILL, 5)] * 5 + [(-signal.SIGKILL, 100 + step) for step in range(6, 10)]
    expected = [*killed, (0, 110), (0, 111)]
    assert done.stdout.splitlines() == [f"{code} {size} None" for code, size in expected]
    assert remove(folder)


def test_two_that_write_the_page_at_the_same_time_leave_an_inventory_that_fits(tmp_path):
    folder = earlier_run(tmp_path / "run")
    code = (
        "import sys; from pathlib import Path; from gpu_cluster.inventory import replace_file\n"
        "for n in range(50): replace_file(Path(sys.argv[1]), 'report.html', b'x' * (n + int(sys.argv[2])))"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, folder, str(number)]) for number in (100, 1000)]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    assert other(folder) is None


def test_a_folder_that_holds_anything_else_is_not_removed_at_all(tmp_path):
    folder = earlier_run(tmp_path / "run")
    (folder / "plots" / "mine.txt").write_text("mine")
    before = everything(folder)
    assert not remove(folder)
    assert everything(folder) == before
    assert (folder / "plots" / "elbow.png").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"[" * 100_000,
        b"\xff",
        b'{"inventory_of": "gpu-cluster", "schema": 1}',
        b'{"inventory_of": "gpu-cluster", "schema": 1, "id": "%032d", "name": "", "temporary": "", "files": [], '
        b'"pending": {}}' % 0,
    ],
    ids=["empty", "bare", "list", "deep", "not UTF-8", "half", "files that are none"],
)
def test_a_folder_whose_inventory_is_not_valid_is_not_known_as_ours(tmp_path, content):
    folder = earlier_run(tmp_path / "run")
    (folder / "inventory.json").write_bytes(content)
    assert read(folder) is None
    assert not is_folder_of_ours(str(folder), os.listdir(folder))
    assert not remove(folder)


def test_an_inventory_cannot_name_what_lies_outside_its_folder(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    folder = earlier_run(tmp_path / "run")
    (folder / "plots" / "link").symlink_to("../..")
    inventory = json.loads((folder / "inventory.json").read_text())
    for name in ("../thesis.txt", str(tmp_path / "thesis.txt"), "plots/link/thesis.txt", "plots/link"):
        inventory["files"][name] = 4
    (folder / "inventory.json").write_text(json.dumps(inventory))
    assert not remove(folder)
    (folder / "plots" / "link").unlink()
    assert remove(folder)
    assert (tmp_path / "thesis.txt").read_text() == "mine"

"""Run folders for the tests, made in a moment: finished ones, those of the version before, and what a kill leaves."""

from __future__ import annotations

from pathlib import Path

from gpu_cluster.inventory import mark
from gpu_cluster.staging import staged

# What `earlier_run` makes.
OLD = dict.fromkeys(("run.json", "bad_files.csv", "plots/elbow.png", "model/model.json"), "old")


def fill(folder: Path, mark: str) -> None:
    for name in ("run.json", "bad_files.csv"):
        (folder / name).write_text(mark)


def earlier_run(folder: Path) -> Path:
    with staged(folder) as stage:
        fill(stage.path, "old")
        for name in ("plots/elbow.png", "model/model.json"):
            (stage.path / name).parent.mkdir()
            (stage.path / name).write_text("old")
    return folder


def run_before(folder: Path) -> Path:
    """Make what a run of the version before left, which had no inventories."""
    (folder / "plots").mkdir(parents=True)
    for name in ("bad_files.csv", "sweep.csv", "plots/elbow.png"):
        (folder / name).write_text("old")
    (folder / "run.json").write_text('{"gpu_cluster": "0.1.0", "config": {}}')
    return folder


def contents(folder: Path) -> dict[str, str]:
    """Return the content of the files of a folder, without its inventory."""
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "inventory.json"
    }


def killed(out: Path, name: str = ".run.abcd1234") -> Path:
    """Make the folder of a run that was killed while it wrote."""
    folder = out.with_name(name)
    (folder / "plots").mkdir(parents=True)
    mark(folder, out.name)
    for file in ("events.jsonl", ".bad_files.csv.77-12ab34cd.tmp", "plots/cluster_00.png"):
        (folder / file).write_text("killed")
    return folder

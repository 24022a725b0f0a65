"""How much memory of the host is free: what the machine has left, or what the limit of a container or a job leaves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpu_cluster.backend import memory


def group(folder: Path, limit: object, *, version: int = 2) -> tuple[Path, str, str]:
    names = ("memory.max", "memory.current") if version == 2 else memory._VERSION_1
    folder.mkdir(exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text("1000\n")
    spare = "inactive_file 300\n" if version == 2 else "inactive_file 1\ntotal_inactive_file 300\n"
    (folder / "memory.stat").write_text(f"anon 600\n{spare}")
    return folder, names[0], names[1]


def test_what_is_free_is_some_of_what_there_is():
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < memory.free_host_bytes() <= total


@pytest.mark.parametrize("version", [1, 2])
def test_a_limit_leaves_what_is_not_used_and_what_only_copies_files(tmp_path, version):
    assert list(memory._left_by(*group(tmp_path, 5_000, version=version))) == [5_000 - 1_000 + 300]


def test_a_group_without_a_limit_leaves_everything(tmp_path):
    assert list(memory._left_by(*group(tmp_path, "max"))) == []
    assert list(memory._left_by(tmp_path / "absent", "memory.max", "memory.current")) == []


def test_the_smallest_limit_counts(monkeypatch):
    monkeypatch.setattr(memory, "_left_by_control_groups", lambda: iter([7_000, 5_000]))
    assert memory.free_host_bytes() == 5_000
    # A group may use more than its limit for a moment.
    monkeypatch.setattr(memory, "_left_by_control_groups", lambda: iter([-1]))
    assert memory.free_host_bytes() == 0

"""How much memory of the host is free, and how much a job needs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpu_cluster.backend import CpuBackend, GpuBackend, memory


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


GIB = 1 << 30


def needed(n: int, d: int = 1024, m: int = 32, k: int = 15, *, whole: bool = False) -> int:
    return memory.needed_host_bytes(n, d, m, k, whole=whole, backend=CpuBackend())


def test_a_million_embeddings_need_two_gib_and_not_their_matrix_which_has_four():
    assert needed(1_000_000) < 2.5 * GIB
    # A picture more needs its row of the space twice and what is known of its file, and none of its 1,024 numbers.
    assert (needed(2_000_000) - needed(1_000_000)) / 1e6 == 2 * 4 * 32 + memory._PICTURE_BYTES


def test_a_sweep_over_the_scaled_embeddings_needs_all_of_them():
    assert needed(1_000_000, whole=True) - needed(1_000_000) == 2 * 4 * 1_000_000 * 1024


def test_many_columns_need_their_covariance_and_no_more_than_their_rows_span():
    assert needed(100_000, 25_088) - needed(100_000) > 4 * 8 * 25_088**2 * 0.99
    assert needed(100, 25_088) - needed(100) < GIB


def test_a_card_takes_what_is_computed_from_the_memory_of_the_host():
    on_card = type("Card", (GpuBackend,), {"holds": lambda *_: True, "holds_space": lambda *_: True})()
    assert memory.needed_host_bytes(1000, 1024, 32, 15, whole=True, backend=on_card) < needed(1000)


def test_what_does_not_fit_is_told_with_what_to_do():
    assert memory.fits_in_words(2 * 10**9, 3 * 10**9) == (
        "this job will need about 2.0 GB of memory, besides the network's; 3.0 GB are free"
    )
    assert "the system may end it; end other programs" in memory.fits_in_words(3 * 10**9, 2 * 10**9)

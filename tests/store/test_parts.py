"""Parts of results are found again by all that they depend on, and never when they are damaged."""

from __future__ import annotations

import os

import numpy as np
import pytest

from gpu_cluster.store.maintenance import inspect, prune
from gpu_cluster.store.parts import FOLDER, Parts, fingerprint, trim

KEY = {"part": "plots", "of": [1, 2.5, "name"]}


def test_a_part_is_found_by_its_key_and_by_no_other(tmp_path):
    Parts(tmp_path).keep(KEY, b"content")
    parts = Parts(tmp_path)
    assert parts.find({**KEY, "of": [1, 2.5, "other"]}) is None
    assert parts.find(KEY) == b"content"
    assert parts.found == ("plots",)


def test_a_part_that_is_kept_is_not_made_again_unless_it_is_asked_for(tmp_path):
    Parts(tmp_path).made(KEY, lambda: b"first")
    assert Parts(tmp_path).made(KEY, lambda: b"second") == b"first"
    assert Parts(tmp_path, read=False).made(KEY, lambda: b"second") == b"second"
    assert Parts(tmp_path).find(KEY) == b"second"
    assert Parts(None).made(KEY, lambda: b"without a store") == b"without a store"


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: b"", lambda content: content + b"x"])
def test_a_damaged_part_is_made_again(tmp_path, damage):
    Parts(tmp_path).keep(KEY, b"content")
    (file,) = (tmp_path / FOLDER).iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert Parts(tmp_path).made(KEY, lambda: b"again") == b"again"
    assert Parts(tmp_path).find(KEY) == b"again"


def test_another_library_or_other_code_of_this_package_finds_nothing(tmp_path, monkeypatch):
    from gpu_cluster.store import parts

    Parts(tmp_path).keep(KEY, b"content")
    (tmp_path / "libraries" / "new-1.0.dist-info").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "libraries")
    parts._code.cache_clear()
    assert Parts(tmp_path).find(KEY) is None
    monkeypatch.undo()
    parts._code.cache_clear()
    assert Parts(tmp_path).find(KEY) == b"content"


def test_the_hash_of_an_array_tells_its_numbers_type_and_shape():
    x = np.arange(6, dtype=np.float32)
    others = [x + 1, x.astype(np.float64), x.reshape(2, 3), x.view(np.int32)]
    assert len({fingerprint(one) for one in (x, *others)}) == 5
    assert fingerprint(np.arange(12, dtype=np.float32)[::2]) == fingerprint(x * 2)


def test_the_oldest_parts_go_when_there_is_no_room_and_other_files_stay(tmp_path):
    for number in range(3):
        Parts(tmp_path).keep({"part": "plots", "of": number}, bytes(100))
    for number in range(3):
        Parts(tmp_path).find({"part": "plots", "of": number})
    files = sorted((tmp_path / FOLDER).iterdir(), key=lambda file: file.stat().st_mtime_ns)
    for age, file in enumerate(files):
        os.utime(file, (age, age))
    (tmp_path / FOLDER / "notes.txt").write_text("mine")
    (found,) = inspect(tmp_path)
    assert (found.kind, found.n_rows, found.n_bytes, found.last_used) == ("parts", 3, 348, 2)
    assert trim(tmp_path / FOLDER, most_bytes=250) == 116
    assert [file for file in files if file.exists()] == files[1:]
    assert prune(tmp_path, unused_days=30) == 232
    assert [file.name for file in (tmp_path / FOLDER).iterdir()] == ["notes.txt"]

"""A few runs of the campaign of faults; `scripts.fuzz_remote` itself tries many more."""

from __future__ import annotations

import pytest

from scripts.fuzz_remote import reference, server, try_one


@pytest.mark.slow
def test_runs_with_random_faults_add_up_and_without_them_give_the_groups_of_the_folder(tmp_path):
    found = []
    with server() as served:
        expected = reference(tmp_path)
        for number in range(3):
            folder = tmp_path / str(number)
            folder.mkdir()
            found.append(try_one(number, 20, served, folder, expected))
    assert [one.wrong for one in found] == [[]] * 3
    # Something went wrong, and the jobs went on.
    assert [bool(one.faults) for one in found] == [True] * 3
    assert sum(len(one.reasons) for one in found) > 3

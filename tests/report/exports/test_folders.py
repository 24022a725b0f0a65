"""Where the pictures of a run go in the folders of its groups."""

from __future__ import annotations

import pandas as pd
import pytest

from gpu_cluster.report.exports import folders


def planned(*locations: str) -> list[folders.Planned]:
    """Return the plan for pictures of one group."""
    pictures = pd.DataFrame({"path": locations, "cluster": 0, "content_hash": "0" * 32})
    manifest = pd.DataFrame({"path": locations, "size": 1, "mtime_ns": None})
    return folders.plan(pictures, manifest, ["0"])


@pytest.mark.parametrize(
    ("locations", "targets"),
    [
        (("s3://b/x/d/1.png", "s3://b/x/2.png"), ["0/d/1.png", "0/2.png"]),
        (("https://h/a/1.png",), ["0/1.png"]),
        (("s3://b/x.tar::1.png", "s3://b/y.tar::1.png"), ["0/x/1.png", "0/y/1.png"]),
        (("s3://b/x.tar::d/1.png", "s3://b/x.tar::d/2.png"), ["0/1.png", "0/2.png"]),
        (("t/0.tar::d/1.png", "a.png"), ["0/t/0/d/1.png", "0/a.png"]),
    ],
    ids=["addresses", "one address", "members of two", "members in one folder", "members of a local one"],
)
def test_of_an_address_or_a_member_the_part_is_kept_that_not_all_have_in_common(locations, targets):
    found = planned(*locations)
    assert [str(one.target) for one in found] == targets
    assert not any(one.is_renamed for one in found)


def test_a_picture_whose_name_some_system_refuses_is_renamed():
    assert [one.is_renamed for one in planned("https://h/a/1.png", "https://h/a/2.png?side=1")] == [False, True]

"""The sample set through both engines, each with its own decoding: TensorFlow with tf.data, and ncnn with Pillow."""

from __future__ import annotations

import pytest
from sklearn.metrics import adjusted_rand_score

from tests.helpers import gpu_cluster

pytest.importorskip("ncnn", reason="there is no wheel of ncnn here")


@pytest.mark.slow
def test_the_sample_set_has_the_same_groups_with_both_engines(sample_run, tmp_path):
    given = ("--k-range", "2:15", "--image-size", "64", "--no-cache", "--engine", "tensorflow")
    other = gpu_cluster("run", *given, out=tmp_path / "run")
    assert other.code == 0, other.err
    assert (other.json("run.json")["engine"], sample_run.json("run.json")["engine"]) == ("tensorflow", "ncnn")
    found, expected = sample_run.table("assignments.csv"), other.table("assignments.csv")
    assert found["path"].tolist() == expected["path"].tolist()
    # On the same pixels it is 1 (scripts/check_engines.py). The two resize by other roundings, which may move a picture
    # that lies between two groups.
    assert adjusted_rand_score(expected["cluster"], found["cluster"]) > 0.97

"""The sample set through both engines, each with its own decoding: TensorFlow with tf.data, and ncnn with Pillow."""

from __future__ import annotations

import pytest
from sklearn.metrics import adjusted_rand_score

from tests.helpers import gpu_cluster

pytest.importorskip("ncnn", reason="there is no wheel of ncnn here")


@pytest.mark.slow
def test_the_sample_set_has_the_same_groups_with_both_engines(tmp_path):
    # The drawn flowers have 128 pixels a side: both decoders give the same pixels, and nothing is resized.
    given = ("--k-range", "2:15", "--image-size", "128", "--no-cache", "--engine")
    runs = {name: gpu_cluster("run", *given, name, out=tmp_path / name) for name in ("ncnn", "tensorflow")}
    assert {name: run.code for name, run in runs.items()} == {"ncnn": 0, "tensorflow": 0}
    assert {name: run.json("run.json")["engine"] for name, run in runs.items()} == {name: name for name in runs}
    ncnn, tensorflow = (run.table("assignments.csv") for run in runs.values())
    assert ncnn["path"].tolist() == tensorflow["path"].tolist()
    assert adjusted_rand_score(tensorflow["cluster"], ncnn["cluster"]) == 1

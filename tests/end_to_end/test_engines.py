"""A fifth of the sample set through both engines, each with its own decoding: tf.data, and Pillow for ncnn."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pandas as pd
import pytest
from sklearn.metrics import adjusted_rand_score

from gpu_cluster import run

pytest.importorskip("ncnn", reason="there is no wheel of ncnn here")


@pytest.mark.slow
def test_the_sample_set_has_the_same_groups_with_both_engines(tmp_path, sample_images):
    (tmp_path / "in").mkdir()
    for file in sample_images[::5]:
        shutil.copy(file, tmp_path / "in")
    # The drawn flowers have 128 pixels a side: both decoders give the same pixels, and nothing is resized.
    given: dict[str, Any] = {"k_range": "2:15", "image_size": 128, "no_cache": True, "thumbnails": 1}
    tables = {}
    for name in ("ncnn", "tensorflow"):
        folder = run(tmp_path / "in", **given | {"engine": name}, out=tmp_path / name).folder
        assert json.loads((folder / "run.json").read_text())["engine"] == name
        tables[name] = pd.read_csv(folder / "assignments.csv")
    assert tables["ncnn"]["path"].tolist() == tables["tensorflow"]["path"].tolist()
    assert adjusted_rand_score(tables["tensorflow"]["cluster"], tables["ncnn"]["cluster"]) == 1

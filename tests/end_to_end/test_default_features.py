"""The default features, which two networks give: what a run, its page, a prediction and workers make of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import gpu_cluster
from tests.clusters import forked_workers
from tests.helpers import write_pictures

# Whole jobs: together they take more than 10 s.
pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {"image_size": 64, "k": 3, "k_range": "3:3", "n_init": 2, "layout_sample": 5}
N_PICTURES = 12


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on twelve pictures, beside these and its store."""
    place = tmp_path_factory.mktemp("trained")
    write_pictures(place / "in", N_PICTURES)
    return gpu_cluster.run(place / "in", **SMALL, cache=place / "store", out=place / "run").folder


def test_the_record_and_the_page_name_both_networks_and_their_weights(trained):
    record = json.loads((trained / "run.json").read_text())
    assert [(part["backbone"], part["n_features"], part["weight"]) for part in record["features"]] == [
        ("VGG16", 1024, 2.0),
        ("EfficientNet-Lite2", 1280, 1.0),
    ]
    assert Path(record["weights"]["path"]).name.startswith("vgg16_")
    assert [Path(file["path"]).name for file in record["weights_of_others"]] == ["efficientnet_lite2_imagenet.npz"]
    page = (trained / "report.html").read_text()
    assert "VGG16, pooling gem-4-5, 1,024 numbers, weight 2" in page
    assert "EfficientNet-Lite2, pooling gem, 1,280 numbers, weight 1" in page


def test_predict_gives_the_pictures_of_the_run_their_clusters(trained, tmp_path):
    place = trained.parent
    found = gpu_cluster.predict(trained, place / "in", out=tmp_path / "p.csv", cache=place / "store")
    assigned = pd.read_csv(trained / "assignments.csv")
    assert pd.read_csv(tmp_path / "p.csv")["cluster"].tolist() == assigned["cluster"].tolist()
    assert len(found.rows) == N_PICTURES


def test_a_prediction_without_a_store_by_workers_leaves_nothing_but_its_table(trained, tmp_path):
    out = tmp_path / "out" / "p.csv"
    out.parent.mkdir()
    with forked_workers():
        gpu_cluster.predict(trained, trained.parent / "in", out=out, no_cache=True, workers=1)
    assigned = pd.read_csv(trained / "assignments.csv")
    assert pd.read_csv(out)["cluster"].tolist() == assigned["cluster"].tolist()
    assert [path.name for path in out.parent.iterdir()] == ["p.csv"]


def test_workers_give_the_same_bytes(trained, tmp_path):
    given = {**SMALL, "workers": 2, "shard_size": 4, "cache": tmp_path / "store"}
    with forked_workers():
        folder = gpu_cluster.run(trained.parent / "in", **given, out=tmp_path / "run").folder
    assert (folder / "assignments.csv").read_bytes() == (trained / "assignments.csv").read_bytes()


def test_a_run_that_is_handed_on_names_no_folder_of_the_weights(trained, tmp_path):
    place = trained.parent
    given = {**SMALL, "portable": True, "cache": place / "store"}
    folder = gpu_cluster.run(place / "in", **given, out=tmp_path / "run").folder
    record = json.loads((folder / "run.json").read_text())
    assert record["weights_of_others"][0]["path"] == "efficientnet_lite2_imagenet.npz"
    weights = str(Path(json.loads((trained / "run.json").read_text())["weights"]["path"]).parent)
    assert not any(weights in file.read_text() for file in (folder / "run.json", folder / "report.html"))

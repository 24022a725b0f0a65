"""Runs and stores of earlier versions, which `tests/earlier` holds.

`first` is of the version before there was a choice of engines, `second` of the one before there was a choice of
features. They were made by: gpu-cluster run (the eight pictures) --image-size 32 --k 3 --k-range 2:4 --n-init 2
--layout-sample 5 --portable; the second with --engine ncnn. The report, most of the plots and the scans were left out.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from gpu_cluster.clustering.model import checksum
from gpu_cluster.embedding.engines import ENGINES
from tests.helpers import FLOWERS, called

EARLIER = Path(__file__).parents[1] / "earlier"
PICTURES = [FLOWERS / f"{number:04d}.png" for number in range(1, 184, 26)]


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """A copy of the first run and its store."""
    return Path(shutil.copytree(EARLIER / "first", tmp_path / "earlier"))


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """A copy of the second run and its store."""
    if ENGINES["ncnn"].installation().remedy:
        pytest.skip("the second run was made with ncnn, which is not installed")
    return Path(shutil.copytree(EARLIER / "second", tmp_path / "second"))


def assigned(table: Path) -> list[tuple[str, int]]:
    found = pd.read_csv(table)
    return list(zip(found["path"], found["cluster"], strict=True))


def test_its_run_json_repeats_it_with_its_engine_and_its_embeddings(before, tmp_path):
    done = called(
        *("run", *PICTURES, "--config", before / "run" / "run.json"),
        *("--cache", before / "store", "--out", tmp_path / "again"),
    )
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "again" / "run.json").read_text())
    assert (record["engine"], record["n_computed"]) == ("tensorflow", 0)
    assert assigned(tmp_path / "again" / "assignments.csv") == assigned(before / "run" / "assignments.csv")
    assert "written by an earlier version, has no --engine; tensorflow is used" in done.err
    assert "written by an earlier version, has no --decoding; 2 is used" in done.err


def test_predict_takes_it_with_its_engine_and_its_embeddings_and_says_so(before, tmp_path):
    done = called(
        *("predict", before / "run", *PICTURES, "--cache", before / "store", "--out", tmp_path / "new.csv"),
    )
    assert done.code == 0, done.err
    assert (
        "The run was made with the features vgg16, the engine tensorflow and version 2 of decoding"
        in done.out + done.err
    )
    assert "The store holds the embeddings of all these pictures already" in done.out + done.err
    assert assigned(tmp_path / "new.csv") == assigned(before / "run" / "assignments.csv")


def test_predict_with_another_engine_is_refused_with_both(before, tmp_path):
    done = called("predict", before / "run", *PICTURES, "--engine", "ncnn", "--out", tmp_path / "new.csv")
    assert done.code == 2
    assert "--engine ncnn: the run" in done.err
    assert "was made with the engine tensorflow" in done.err
    assert not (tmp_path / "new.csv").exists()


def test_predict_with_a_later_version_of_decoding_is_refused_with_both(before, tmp_path):
    model = before / "run" / "model" / "model.json"
    content = json.loads(model.read_text())
    content["embed"]["decoding"] = 4
    content["sha256"] = checksum(content, (model.parent / "arrays.npz").read_bytes())
    model.write_text(json.dumps(content))
    done = called("predict", before / "run", *PICTURES, "--out", tmp_path / "new.csv")
    assert done.code != 0
    assert "by version 4 of decoding, and this gpu-cluster knows version 2 to 3" in done.err
    assert not (tmp_path / "new.csv").exists()


def test_its_report_can_be_written_again_and_names_the_engine(before):
    done = called("report", before / "run")
    assert done.code == 0, done.err
    assert "tensorflow: the record names none" in (before / "run" / "report.html").read_text()


def test_a_record_without_features_repeats_vgg16_with_its_embeddings(second, tmp_path):
    done = called(
        *("run", *PICTURES, "--config", second / "run" / "run.json"),
        *("--cache", second / "store", "--out", tmp_path / "again"),
    )
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "again" / "run.json").read_text())
    assert (record["config"]["embed"]["features"], record["engine"]) == ("vgg16", "ncnn")
    assert [part["backbone"] for part in record["features"]] == ["VGG16"]
    assert "written by an earlier version, has no --features; vgg16 is used" in done.err
    assert assigned(tmp_path / "again" / "assignments.csv") == assigned(second / "run" / "assignments.csv")
    (key,) = (second / "store" / "embeddings").glob("*/_key.json")
    versions = (importlib.metadata.version(name) for name in ("ncnn", "pillow"))
    if json.loads(key.read_text())["engine"] != "ncnn {} pillow {} cpu".format(*versions):
        pytest.skip("this is another version of ncnn or Pillow, so the store's embeddings are not those of this run")
    assert record["n_computed"] == 0


def test_a_model_without_features_is_one_of_vgg16(second, tmp_path):
    done = called("predict", second / "run", *PICTURES, "--cache", second / "store", "--out", tmp_path / "new.csv")
    assert done.code == 0, done.err
    assert assigned(tmp_path / "new.csv") == assigned(second / "run" / "assignments.csv")

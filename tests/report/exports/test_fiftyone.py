"""The dataset for FiftyOne, read as JSON; `scripts/check_fiftyone.py` loads it into a real one."""

from __future__ import annotations

import base64
import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gpu_cluster.report.exports.fiftyone import write_fiftyone
from tests.helpers import Noticing, listing
from tests.report.exports.data import LABELS, NAMES, assigned


def samples_of(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "samples.json").read_bytes())["samples"]
    return found


def unpacked(text: str) -> np.ndarray:
    """Read an array as `fiftyone.core.utils.deserialize_numpy_array` does."""
    return np.asarray(np.load(io.BytesIO(zlib.decompress(base64.b64decode(text)))))


def test_each_picture_is_a_sample_with_what_the_run_found(tmp_path):
    pictures = assigned()
    write_fiftyone(tmp_path, pictures, "/data/pictures", Noticing())
    samples = samples_of(tmp_path)
    assert [one["path"] for one in samples] == NAMES
    assert [one["cluster"]["label"] for one in samples] == [str(cluster) for cluster in pictures["cluster"]]
    assert [one["ground_truth"] and one["ground_truth"]["label"] for one in samples] == LABELS
    for name in ("distance", "silhouette"):
        np.testing.assert_array_equal(np.array([one[name] for one in samples], np.float32), pictures[name])
    assert [one["is_medoid"] for one in samples] == list(pictures["is_medoid"])
    assert samples[1]["filepath"] == "/data/pictures/sub/b.png"


def test_groups_with_names_have_them_in_a_field(tmp_path):
    write_fiftyone(tmp_path, assigned(group="3 rose"), "/data", Noticing())
    assert {one["group"] for one in samples_of(tmp_path)} == {"3 rose"}


def test_every_field_of_a_sample_is_declared(tmp_path):
    write_fiftyone(tmp_path, assigned(), "/data", Noticing())
    declared = {field["db_field"] for field in json.loads((tmp_path / "metadata.json").read_bytes())["sample_fields"]}
    assert {name for one in samples_of(tmp_path) for name in one} <= declared


def test_documents_have_ids_that_are_their_own_and_the_same_in_each_export(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        write_fiftyone(tmp_path / name, assigned(), "/data", Noticing())
    assert listing(tmp_path / "one") == listing(tmp_path / "other")
    samples = samples_of(tmp_path / "one")
    documents = [*samples, *(one["cluster"] for one in samples), *(one["ground_truth"] for one in samples)]
    ids = [document["_id"]["$oid"] for document in documents if document]
    assert len(set(ids)) == len(ids)
    assert {len(bytes.fromhex(one)) for one in ids} == {12}


def test_the_maps_are_results_of_the_brain_for_the_same_samples(tmp_path):
    pictures = assigned()
    write_fiftyone(tmp_path, pictures, "/data", Noticing())
    assert set(json.loads((tmp_path / "metadata.json").read_bytes())["brain_methods"]) == {"tsne", "pca"}
    for name, columns in {"tsne": ["tsne1", "tsne2"], "pca": ["pc1", "pc2"]}.items():
        found = json.loads((tmp_path / "brain" / f"{name}.json").read_bytes())
        np.testing.assert_array_equal(unpacked(found["points"]), pictures[columns])
        assert unpacked(found["sample_ids"]).tolist() == [one["_id"]["$oid"] for one in samples_of(tmp_path)]


def test_what_a_run_lacks_is_null(tmp_path):
    without = assigned(label=pd.Series([None] * len(NAMES), dtype="str"), silhouette=np.float32("nan"))
    write_fiftyone(tmp_path, without.drop(columns=["tsne1", "tsne2"]), "/data", Noticing())
    assert {(one["ground_truth"], one["silhouette"]) for one in samples_of(tmp_path)} == {(None, None)}
    assert [file.name for file in (tmp_path / "brain").iterdir()] == ["pca.json"]


def test_where_the_pictures_are_is_not_said_if_it_is_not_known(tmp_path):
    write_fiftyone(tmp_path, assigned(), None, Noticing())
    assert samples_of(tmp_path)[1]["filepath"] == "sub/b.png"


def test_a_name_that_is_not_utf8_is_written_as_tables_have_it_and_a_notice_says_so(tmp_path):
    observer = Noticing()
    write_fiftyone(tmp_path, assigned(), "/data", observer)
    assert samples_of(tmp_path)[2]["filepath"] == r"/data/na\xefve.png"
    assert observer.notices == [
        "FiftyOne names files in UTF-8 only: 1 picture whose path is not UTF-8 is in the dataset, but FiftyOne will "
        r"not find the file (the first is na\xefve.png)"
    ]

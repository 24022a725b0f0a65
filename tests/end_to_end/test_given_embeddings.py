"""Embeddings of another origin through the whole job and `predict`: scikit-image's gradients, and colours."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from skimage.feature import hog

import gpu_cluster as api
from gpu_cluster.backend import CpuBackend
from gpu_cluster.config import RunConfig, shipped_data
from gpu_cluster.errors import ConfigError, DataError
from gpu_cluster.options import build_config
from tests.helpers import called, everything, listing, shards_of, write_pictures

FLOWERS = sorted((shipped_data() / "flowers").glob("*.png"))
# The pictures that are clustered, and others.
N, N_NEW = 36, 10
SMALL: dict[str, Any] = {"k": 3, "k_range": "3:4", "n_init": 2}


def embedding(file: Path) -> np.ndarray:
    """Describe a picture without any network."""
    pixels = np.asarray(Image.open(file).convert("RGB").resize((64, 64)))
    gradients = hog(pixels, channel_axis=-1, pixels_per_cell=(16, 16), cells_per_block=(1, 1))
    colours = np.concatenate([np.histogram(pixels[..., channel], 8, (0, 256))[0] for channel in range(3)]) / 4096
    # Below 0 too, as those of most networks are.
    return np.concatenate([gradients - gradients.mean(), 4 * colours]).astype(np.float32)


@dataclass(frozen=True)
class Place:
    """A folder `in` with pictures, and their embeddings beside it, in two kinds of files."""

    folder: Path
    x: np.ndarray
    names: list[str]

    @property
    def pictures(self) -> Path:
        return self.folder / "in"

    @property
    def npy(self) -> Path:
        return self.folder / "x.npy"

    @property
    def parquet(self) -> Path:
        return self.folder / "x.parquet"


def place_with(folder: Path, files: list[Path]) -> Place:
    (folder / "in").mkdir()
    for file in files:
        shutil.copy(file, folder / "in")
    x, names = np.stack([embedding(file) for file in files]), [file.name for file in files]
    place = Place(folder, x, names)
    np.save(place.npy, x)
    (folder / "x.txt").write_text("\n".join(names))
    order = np.random.default_rng(0).permutation(len(files))
    pq.write_table(pa.table({"path": [f"in/{names[at]}" for at in order], "embedding": list(x[order])}), place.parquet)
    return place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Flowers and their embeddings; and a copy, a broken file, and a picture without an embedding."""
    made = place_with(tmp_path_factory.mktemp("given"), FLOWERS[:N])
    shutil.copy(FLOWERS[3], made.pictures / "copy.png")
    (made.pictures / "broken.png").write_bytes(FLOWERS[0].read_bytes()[:500])
    shutil.copy(FLOWERS[N], made.pictures / "without.png")
    return made


@pytest.fixture(scope="module")
def run(place: Place) -> api.RunResult:
    """A run that no test changes."""
    return api.run(
        place.pictures,
        embeddings=place.npy,
        embedded_by="HOG <b>",
        **SMALL,
        out=place.folder / "run",
        cache=place.folder / "store",
    )


@pytest.fixture(scope="module")
def run_of_array(place: Place) -> api.RunResult:
    """The same with the embeddings in memory."""
    options: dict[str, Any] = {"embeddings": place.x.astype(np.float64), "embedding_names": place.names}
    return api.run(place.pictures, **options, **SMALL, out=place.folder / "run-of-array", no_cache=True)


def record_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return content


def test_every_file_is_accounted_for_and_copies_have_one_row(run):
    assert run.manifest.counts() == {"found": N + 3, "ok": N, "bad": 2, "duplicate": 1, "passed_over": 0}
    bad = pd.read_csv(run.folder / "bad_files.csv").set_index("path")["reason"]
    assert sorted(bad.index) == ["broken.png", "without.png"]
    assert bad["without.png"] == "x.npy has no embedding of it"
    table = pd.read_csv(run.folder / "assignments.csv").set_index("path").drop(columns="is_medoid")
    copy, original = table.loc["copy.png"].astype(str), table.loc[FLOWERS[3].name].astype(str)
    assert copy.to_dict() == original.to_dict()


def test_the_record_the_model_and_the_page_name_the_file_and_no_network(run, place):
    record = record_of(run.folder)
    assert record["weights"] is None
    assert record["engine"] == "none"
    assert record["embeddings"] == {
        "path": str(place.npy),
        "sha256": record["embeddings"]["sha256"],
        "n": N,
        "n_features": place.x.shape[1],
        "dtype": "float32",
        "by": "HOG <b>",
    }
    model = json.loads((run.folder / "model" / "model.json").read_text())
    assert (model["embed"], model["features"]["given"], model["features"]["by"]) == (None, True, "HOG <b>")
    page = (run.folder / "report.html").read_text()
    assert "The embeddings were given: HOG &lt;b&gt;." in page
    assert f"given by HOG &lt;b&gt;: {N} x {place.x.shape[1]} float32 in {place.npy}, sha256 " in page
    assert "vgg16.weights" not in page
    assert f"--embeddings {place.npy}" in page


@pytest.mark.slow
def test_the_same_vectors_give_the_same_tables_in_memory_in_another_file_and_read_in_blocks(
    run, run_of_array, place, tmp_path, monkeypatch
):
    monkeypatch.setattr(CpuBackend, "holds", lambda *_: False)
    again = api.run(place.pictures, embeddings=place.parquet, **SMALL, out=tmp_path / "run", no_cache=True)
    for name in ("assignments.csv", "near_duplicates.csv"):
        first, *others = ((folder / name).read_bytes() for folder in (run.folder, run_of_array.folder, again.folder))
        assert others == [first, first]
    assert everything(tmp_path) == ["run"]


def test_predict_gives_the_clustered_pictures_their_clusters_and_others_theirs(run, place, tmp_path):
    expected = pd.read_csv(run.folder / "assignments.csv")
    done = called("predict", run.folder, place.pictures, "--embeddings", place.parquet, "--out", tmp_path / "p.csv")
    assert done.code == 0, done.err
    found = pd.read_csv(tmp_path / "p.csv")
    assert found[["path", "cluster", "content_hash"]].equals(expected[["path", "cluster", "content_hash"]])
    np.testing.assert_allclose(found["distance"], expected["distance"], rtol=1e-4, atol=1e-6)
    assert pd.read_csv(tmp_path / "p.bad_files.csv")["path"].tolist() == ["broken.png", "without.png"]

    (tmp_path / "new").mkdir()
    new = place_with(tmp_path / "new", FLOWERS[N : N + N_NEW])
    out = tmp_path / "new.csv"
    of_file = api.predict(run.folder, new.pictures, out=out, embeddings=new.npy, report=True)
    assert len(of_file.rows) == N_NEW
    page = (tmp_path / "new.html").read_text()
    assert f"{N_NEW} new pictures: " in page
    of_array = api.predict(run.folder, new.pictures, out=out, embeddings=new.x[::-1], embedding_names=new.names[::-1])
    np.testing.assert_array_equal(of_array.labels, of_file.labels)


@pytest.mark.slow
def test_a_run_is_repeated_from_its_record_and_one_of_an_array_asks_for_it(run, run_of_array, place, tmp_path):
    again = api.run(config=run.folder / "run.json", out=tmp_path / "again")
    assert (again.folder / "assignments.csv").read_bytes() == (run.folder / "assignments.csv").read_bytes()
    assert again.embeddings == run.embeddings
    # The first run's store has what it made, and no embeddings.
    assert any("of an earlier run what is the same: sweep, t-SNE" in notice for notice in again.notices)
    assert shards_of(place.folder / "store") == []

    record = run_of_array.folder / "run.json"
    assert "--embeddings '(an array in memory)'" in record_of(run_of_array.folder)["command"]
    assert f"x {place.x.shape[1]} float64 in memory" in (run_of_array.folder / "report.html").read_text()
    with pytest.raises(ConfigError, match="was made with embeddings that were an array in memory"):
        api.run(config=record)
    of_file = api.run(config=record, embeddings=place.npy, out=tmp_path / "of-file")
    assert (of_file.folder / "assignments.csv").read_bytes() == (run.folder / "assignments.csv").read_bytes()


def test_a_run_made_portable_names_no_folder_and_is_repeated_with_the_files_given_again(run, place, tmp_path):
    folder = Path(shutil.copytree(run.folder, tmp_path / "run"))
    done = called("report", folder, "--portable")
    assert done.code == 0, done.err
    for name in ("run.json", "report.html", "events.jsonl", "model/model.json", "bad_files.csv"):
        assert str(place.folder) not in (folder / name).read_text()
    record = record_of(folder)
    assert record["left_out"] == {"images": ["in"], "embeddings": ["x.npy"]}
    assert record["embeddings"]["path"] == "x.npy"
    with pytest.raises(ConfigError, match=r"expected FOLDER .*, --embeddings PATH \(in that run: 'x\.npy'\)"):
        api.run(config=folder / "run.json")
    again = build_config(RunConfig, folder / "run.json", images=(place.pictures,), embeddings=place.parquet)
    assert (again.given.embeddings, again.sweep.k) == (place.parquet, SMALL["k"])


def test_many_near_duplicates_of_given_embeddings_are_doubted_and_their_files_are_not_passed_over(tmp_path):
    pictures = write_pictures(tmp_path / "in", 8)
    np.save(tmp_path / "in" / "x.npy", np.random.default_rng(0).uniform(0.9, 1, (8, 4)))
    names = tmp_path / "in" / "x.lst"
    names.write_text("\n".join(picture.name for picture in pictures))
    (tmp_path / "in" / "other.txt").touch()
    options: dict[str, Any] = {"k": 2, "k_range": "2:2", "out": tmp_path / "run"}
    result = api.run(tmp_path / "in", embeddings=tmp_path / "in" / "x.npy", embedding_names=names, **options)
    assert any("a limit that was measured with VGG16; the list says little" in notice for notice in result.notices)
    assert result.manifest.passed_over == ("other.txt",)


# Wrong use: code 2 before work starts, and nothing is left


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "an option of the network": (
        ("--embeddings", "x.npy", "--pooling", "max", "--batch-size", "8"),
        "--pooling (command line): with --embeddings no network runs, and its options mean nothing",
    ),
    "names of nothing": (
        ("--embedding-names", "x.txt"),
        "--embedding-names names the rows of --embeddings, which is not",
    ),
    "a maker of nothing": (
        ("--embedded-by", "me"),
        "--embedded-by says what computed --embeddings, which is not given",
    ),
    "no such file": (("--embeddings", "none.npy"), "cannot read --embeddings"),
    "roots of numbers below 0": (
        ("--embeddings", "x.npy", "--scaling", "sqrt-l2"),
        "--scaling sqrt-l2 takes square roots",
    ),
    "names of other pictures": (
        ("--embeddings", "x.npy", "--embedding-names", "others.txt"),
        "names none of the pictures found",
    ),
    "ragged": (("--embeddings", "ragged.parquet"), "expected 2 numbers in each row; row 1 (counted from 0) has 1"),
    "pickled": (("--embeddings", "pickled.npy", "--embedding-names", "x.txt"), "holds pickled objects"),
    "fewer pictures than clusters": (("--embeddings", "x.npy", "-k", "99"), "--k"),
}


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Place:
    made = place_with(tmp_path_factory.mktemp("wrong"), FLOWERS[:4])
    (made.folder / "others.txt").write_text("a\nb\nc\nd\n")
    np.save(made.folder / "pickled.npy", np.array([{}] * 4, object))
    table = pa.table({"path": made.names, "embedding": [[1.0, 2.0], [1.0], [2.0], [3.0]]})
    pq.write_table(table, made.folder / "ragged.parquet")
    return made


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_refused_before_work_starts_and_leaves_nothing(wrong, cache, case):
    arguments, message = WRONG[case]
    before = listing(wrong.folder)
    done = called("run", "in", *arguments, cwd=wrong.folder)
    assert done.code == 2, done.err
    assert message in done.err
    assert listing(wrong.folder) == before
    assert shards_of(cache, "scans") == []


def test_predict_refuses_what_does_not_fit_the_run(run, place, sample_run, tmp_path):
    out = tmp_path / "p.csv"
    with pytest.raises(ConfigError, match=r"was made with embeddings that were given \(HOG <b>\); give those of these"):
        api.predict(run.folder, place.pictures, out=out)
    np.save(tmp_path / "x.npy", place.x[:, 1:])
    n, theirs = place.x.shape[1], tmp_path / "x.npy"
    with pytest.raises(DataError, match=f"expected {n} numbers for each picture, as in the run .*; found {n - 1}"):
        api.predict(run.folder, place.pictures, out=out, embeddings=theirs, embedding_names=place.folder / "x.txt")
    with pytest.raises(ConfigError, match="was made with a network, whose embeddings do not mix with others"):
        api.predict(sample_run.folder, place.pictures, out=out, embeddings=place.npy)
    with pytest.raises(ConfigError, match=r"--engine .*: with --embeddings no network runs"):
        api.predict(run.folder, place.pictures, out=out, embeddings=place.npy, engine="ncnn")
    with pytest.raises(ConfigError, match="a list names the rows of an array"):
        api.predict(run.folder, place.pictures, out=out, embeddings=place.npy, embedding_names=place.names)
    assert everything(tmp_path) == ["x.npy"]

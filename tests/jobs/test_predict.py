"""Predict: new pictures to the clusters of a finished run, with what the run saved and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import gpu_cluster
from gpu_cluster.backend import CpuBackend, HeldRows
from gpu_cluster.clustering.model import checksum, load_model
from gpu_cluster.clustering.reduce import apply
from gpu_cluster.config import shipped_data
from gpu_cluster.embedding import vgg16
from gpu_cluster.errors import ConfigError, DataError, WeightsError
from tests.forks import run_program
from tests.helpers import called, write_pictures

FLOWERS = shipped_data() / "flowers"
SMALL: dict[str, Any] = {"features": "vgg16", "image_size": 32, "k": 3, "k_range": "3:3", "n_init": 2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on twelve pictures that no test changes."""
    place = tmp_path_factory.mktemp("trained")
    write_pictures(place / "in", 12)
    return gpu_cluster.run(place / "in", **SMALL, out=place / "run").folder


def predicted(run: Path, *images: Path, **options: Any) -> pd.DataFrame:
    out = run.parent / "predictions.parquet"
    gpu_cluster.predict(run, images, out=out, **options)
    return pd.read_parquet(out)


@pytest.fixture(scope="module")
def of_the_sample(sample_run, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """What is predicted of a third of the pictures that the sample run clustered, embedded anew."""
    out = tmp_path_factory.mktemp("predicted") / "p.csv"
    gpu_cluster.predict(sample_run.folder, sorted(FLOWERS.glob("*.png"))[::3], out=out, no_cache=True)
    return pd.read_csv(out)


@pytest.mark.parametrize("preset", ["default", pytest.param("notebook", marks=pytest.mark.slow)])
def test_the_training_pictures_get_their_clusters_and_distances_back(tmp_path, sample_run, of_the_sample, preset):
    folder, found = sample_run.folder, of_the_sample
    if preset == "notebook":
        small: dict[str, Any] = {"image_size": 32, "k": 2, "k_range": "2:2", "n_init": 2, "no_cache": True}
        pictures = sorted(FLOWERS.glob("*.png"))[::3]
        folder = gpu_cluster.run(pictures, preset=preset, **small, out=tmp_path / "run").folder
        done = called("predict", folder, *pictures, "--no-cache", "--out", tmp_path / "p.csv")
        assert done.code == 0, done.err
        found = pd.read_csv(tmp_path / "p.csv")
    expected = pd.read_csv(folder / "assignments.csv")
    expected = expected[expected["path"].isin(found["path"])].reset_index(drop=True)
    assert len(expected) == 70
    same = ["path", "cluster", "content_hash"]
    pd.testing.assert_frame_equal(found[same], expected[same])
    near = ["distance", "pc1", "pc2"]
    # BLAS sums in an order that depends on where in memory the arrays lie: a last digit of float32 may differ.
    np.testing.assert_allclose(found[near], expected[near], rtol=1e-4, atol=1e-6)
    # By the definition of far: 99% of each cluster's pictures are nearer.
    assert 0 < found["far"].mean() <= 0.1


def test_a_picture_alone_gets_what_it_gets_among_others(trained, sample_images):
    together = predicted(trained, *sample_images[:3])
    alone = [predicted(trained, image).iloc[0] for image in sample_images[:3]]
    assert [one["cluster"] for one in alone] == together["cluster"].tolist()
    # Products of other shapes are summed in another order.
    np.testing.assert_allclose([one["distance"] for one in alone], together["distance"], rtol=1e-4)


@pytest.mark.slow
def test_only_what_the_store_lacks_is_embedded(tmp_path, trained, sample_images):
    first = called("predict", trained, *sample_images[:5], "--out", tmp_path / "p.csv")
    again = called("predict", trained, *sample_images[:7], "--out", tmp_path / "p.csv")
    assert "The store holds" not in first.out
    assert "The store holds the embeddings of 5 pictures already; 2 are left to embed" in again.out


def test_pictures_unlike_those_that_were_clustered_are_far_more_often(sample_run, of_the_sample, tmp_path):
    write_pictures(tmp_path / "in", 40)
    model = load_model(sample_run.folder / "model", CpuBackend())
    gpu_cluster.predict(sample_run.folder, tmp_path / "in", out=tmp_path / "p.csv")
    unlike = pd.read_csv(tmp_path / "p.csv")
    for table in (unlike, of_the_sample):
        np.testing.assert_array_equal(
            table["far"], table["distance"].astype(np.float32) > model.far_distances[table["cluster"]]
        )
    # At 64 pixels a side, at which the sample set is clustered here, smooth colours are not so unlike flowers.
    assert unlike["far"].mean() > 3 * of_the_sample["far"].mean()
    assert set(of_the_sample["cluster_label"]) <= set(sample_run.table("assignments.csv")["label"])


def test_without_labels_there_is_no_column_of_them(trained, sample_images):
    columns = ["path", "cluster", "distance", "far", "pc1", "pc2", "content_hash"]
    assert predicted(trained, *sample_images[:2]).columns.tolist() == columns


def test_tables_beside_the_pictures_are_not_taken_for_labels(tmp_path, trained):
    write_pictures(tmp_path / "in", 2)
    for name in ("one.csv", "two.csv"):
        (tmp_path / "in" / name).write_text("file,label\n000.png,x\n")
    gpu_cluster.predict(trained, tmp_path / "in", out=tmp_path / "p.csv")
    assert len(pd.read_csv(tmp_path / "p.csv")) == 2


@pytest.mark.slow
def test_bad_files_are_in_a_table_of_their_own_and_too_many_are_3(tmp_path, trained):
    write_pictures(tmp_path / "in", 2)
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / "in" / name).write_text("no picture")
    done = called("predict", trained, tmp_path / "in", "--out", tmp_path / "p.csv")
    assert done.code == 3
    assert len(pd.read_csv(tmp_path / "p.csv")) == 2
    assert pd.read_csv(tmp_path / "p.bad_files.csv")["path"].tolist() == ["a.png", "b.png", "c.png"]


def test_nothing_but_bad_files_is_a_table_without_rows(tmp_path, trained):
    (tmp_path / "a.png").write_text("no picture")
    done = called("predict", trained, tmp_path / "a.png", "--out", tmp_path / "p.csv")
    assert done.code == 3
    assert pd.read_csv(tmp_path / "p.csv").empty


@pytest.mark.parametrize("out", ["p.txt", "nowhere/p.csv", "folder.csv"])
def test_a_table_that_cannot_be_written_is_wrong_use_before_work_starts(tmp_path, trained, out):
    (tmp_path / "folder.csv").mkdir()
    done = called("predict", trained, FLOWERS, "--out", tmp_path / out)
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith("error: --out: ")


def test_no_pictures_are_wrong_use(tmp_path, trained):
    done = called("predict", trained)
    assert done.code == 2
    assert "name pictures to assign" in done.err
    with pytest.raises(ConfigError, match="name pictures to assign"):
        gpu_cluster.predict(trained, [], out=tmp_path / "p.csv")


def test_pictures_without_a_run_are_said_to_be_no_run(tmp_path):
    done = called("predict", FLOWERS, "--out", tmp_path / "p.csv")
    assert done.code == 2
    assert f"{str(FLOWERS)!r} is no run folder" in done.err
    assert f"gpu-cluster predict RUN {FLOWERS}" in done.err


def test_a_table_is_anybodys_to_read_as_other_files_are(tmp_path, trained, sample_images):
    earlier = os.umask(0o022)
    try:
        gpu_cluster.predict(trained, sample_images[:1], out=tmp_path / "p.csv")
    finally:
        os.umask(earlier)
    assert stat.S_IMODE((tmp_path / "p.csv").stat().st_mode) == 0o644


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("content", ["file,label\n000.png,rose\n", "000.png\n", "\0\xff\n", "assignments"])
def test_a_file_that_holds_something_else_is_refused_and_stays(tmp_path, trained, sample_images, suffix, content):
    out = tmp_path / f"mine{suffix}"
    if content == "assignments":
        # A table of the run itself.
        shutil.copy(trained / f"assignments{suffix}", out)
    else:
        out.write_text(content)
    before = out.read_bytes()
    with pytest.raises(ConfigError, match=r"mine\..*' would be replaced: expected a new file, or what an earlier"):
        gpu_cluster.predict(trained, sample_images[:1], out=out)
    assert out.read_bytes() == before


def test_a_list_of_bad_files_replaces_only_one_of_its_own_and_does_not_outlive_them(tmp_path, trained, sample_images):
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    out, listed = tmp_path / "p.csv", tmp_path / "p.bad_files.csv"
    listed.write_text("mine")
    with pytest.raises(ConfigError, match=r"p\.bad_files\.csv' would be replaced"):
        gpu_cluster.predict(trained, [bad], out=out)
    assert listed.read_text() == "mine"
    listed.unlink()
    for _ in range(2):
        gpu_cluster.predict(trained, [bad], out=out)
        assert len(pd.read_csv(listed)) == 1
    gpu_cluster.predict(trained, sample_images[:1], out=out)
    assert not listed.exists()


def test_an_empty_file_and_earlier_predictions_are_replaced_and_a_link_stays_one(tmp_path, trained, sample_images):
    (tmp_path / "real.csv").touch()
    (tmp_path / "link.csv").symlink_to("real.csv")
    for n in (1, 2):
        gpu_cluster.predict(trained, sample_images[:n], out=tmp_path / "link.csv")
        assert len(pd.read_csv(tmp_path / "real.csv")) == n
        assert (tmp_path / "link.csv").is_symlink()


def test_predictions_with_a_column_of_somebodys_own_are_refused_and_stay(tmp_path, trained, sample_images):
    for name in ("p.csv", "p.parquet"):
        out = tmp_path / name
        gpu_cluster.predict(trained, sample_images[:1], out=out)
        table = predicted_table(out).assign(my_notes="mine")
        table.to_csv(out, index=False) if name == "p.csv" else table.to_parquet(out)
        with pytest.raises(ConfigError, match="would be replaced"):
            gpu_cluster.predict(trained, sample_images[:1], out=out)
        assert predicted_table(out)["my_notes"].tolist() == ["mine"]


def predicted_table(file: Path) -> pd.DataFrame:
    return pd.read_csv(file) if file.suffix == ".csv" else pd.read_parquet(file)


def test_what_is_no_file_is_refused(tmp_path, trained, sample_images):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    for name, words in (("pipe", "would be replaced"), ("loop", "cannot be written"), ("n" * 242, "name too long")):
        with pytest.raises(ConfigError, match=f"(?i){words}"):
            gpu_cluster.predict(trained, sample_images[:1], out=tmp_path / f"{name}.csv")
    assert stat.S_ISFIFO((tmp_path / "pipe.csv").lstat().st_mode)


def test_a_name_as_long_as_its_list_of_bad_files_allows_is_written(tmp_path, trained, sample_images):
    out = tmp_path / f"{'n' * 241}.csv"
    gpu_cluster.predict(trained, sample_images[:1], out=out)
    assert len(pd.read_csv(out)) == 1


@pytest.mark.slow
def test_a_table_for_which_there_is_no_room_leaves_the_earlier_one(tmp_path, trained):
    out = tmp_path / "p.csv"
    assert called("predict", trained, FLOWERS / "0001.png", "--out", out).code == 0
    before = out.read_bytes()

    program = """
import resource
from gpu_cluster.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 10, 4 << 10))
main()
"""
    done = run_program(program, "predict", trained, *sorted(FLOWERS.glob("*.png"))[:90], "--out", out, "--no-cache")
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert said == f"error: cannot write '{out}': File too large; an earlier one stays as it is"
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.csv"]


# The page


def test_the_page_shows_where_new_pictures_went_and_the_far_ones(tmp_path, trained):
    place = tmp_path / "new"
    write_pictures(place, 4)
    (place / "<b>&.png").write_bytes((place / "003.png").read_bytes())
    Image.effect_noise((48, 40), 200).save(place / "noise.png")
    (place / "bad.png").write_text("no picture")
    out = tmp_path / "p.csv"
    for _ in range(2):
        found = gpu_cluster.predict(trained, place, out=out, report=True)
    assert found.report == tmp_path / "p.html"
    page = (tmp_path / "p.html").read_text()
    table = pd.read_csv(out)
    n_far = int(table["far"].sum())
    assert n_far >= 1
    assert f"6 new pictures: {6 - n_far} lie within their group, {n_far} are far from the nearest group." in page
    assert f"Far from their group: {n_far}" in page
    assert "Bad files: 1" in page
    for group, size in table["cluster"].value_counts().items():
        assert f"Group {group}: {size} new picture" in page
    assert 'href="new/%3Cb%3E%26.png"' in page
    assert "<b>&" not in page
    assert "script-src" not in page


def test_a_page_that_is_not_one_of_predictions_is_refused_before_work_and_stays(tmp_path, trained, sample_images):
    (tmp_path / "p.html").write_text("mine")
    with pytest.raises(ConfigError, match=r"--report: '.*p\.html' would be replaced"):
        gpu_cluster.predict(trained, sample_images[:1], out=tmp_path / "p.csv", report=True)
    assert (tmp_path / "p.html").read_text() == "mine"
    assert not (tmp_path / "p.csv").exists()


def test_a_page_needs_the_tables_of_the_run_and_says_so_before_work(tmp_path, trained, sample_images):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    (run / "assignments.parquet").unlink()
    with pytest.raises(DataError, match=r"cannot make a report of '.*run': expected the folder that"):
        gpu_cluster.predict(run, sample_images[:1], out=tmp_path / "p.csv", report=True)
    assert not (tmp_path / "p.csv").exists()
    gpu_cluster.predict(run, sample_images[:1], out=tmp_path / "p.csv")


# A model that cannot be trusted


def changed(folder: Path, change: Callable[[dict[str, np.ndarray], dict[str, Any]], None]) -> None:
    """Write the arrays and the JSON of a model again, changed."""
    with np.load(folder / "arrays.npz") as file:
        arrays = {name: file[name] for name in file.files}
    content = json.loads((folder / "model.json").read_text())
    change(arrays, content)
    np.savez(folder / "arrays.npz", **arrays)
    # As somebody would who makes a model of his own.
    content["sha256"] = checksum(content, (folder / "arrays.npz").read_bytes())
    (folder / "model.json").write_text(json.dumps(content))


CHANGES: dict[str, Callable[[dict[str, np.ndarray], dict[str, Any]], Any]] = {
    "a shape": lambda arrays, _: arrays.update(centres=arrays["centres"][:, :-1]),
    "a type": lambda arrays, _: arrays.update(mean=arrays["mean"].astype(np.float64)),
    "an array missing": lambda arrays, _: arrays.pop("mean"),
    "an array too many": lambda arrays, _: arrays.update(other=arrays["mean"]),
    "an array of objects": lambda arrays, _: arrays.update(mean=np.array([object()] * 1024)),
    "not finite": lambda arrays, _: arrays.update(centres=arrays["centres"] * np.float32(np.nan)),
    "no scaling known": lambda _, content: content["reduction"].update(scaling="cube"),
    "components beyond": lambda _, content: content["reduction"].update(kept=99),
    "no embedding": lambda _, content: content.pop("embed"),
    "labels of another k": lambda _, content: content.update(cluster_labels=["a"]),
    "no list of labels": lambda _, content: content.update(cluster_labels=7),
    "an array without a dimension": lambda arrays, _: arrays.update(components=np.array(1, np.float32)),
    "no object of options": lambda _, content: content.update(embed=[]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_is_not_as_it_was_written_is_refused(tmp_path, trained, change):
    shutil.copytree(trained / "model", tmp_path / "model")
    changed(tmp_path / "model", CHANGES[change])
    with pytest.raises(DataError, match=r"model' is damaged \(.*run the clustering again"):
        load_model(tmp_path / "model", CpuBackend())


def inflating(folder: Path) -> None:
    """Have an array of a model inflate to 128 MiB of zeros, which take 130 kB."""
    with zipfile.ZipFile(folder / "arrays.npz") as file:
        members = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(folder / "arrays.npz", "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            with file.open(name, "w") as stream:
                stream.write(content)
                for _ in range(4 if name == "components.npy" else 0):
                    stream.write(bytes(1 << 25))
    signed(folder)


def declared(folder: Path) -> None:
    """Have the header of an array declare more numbers than any memory holds."""
    with np.load(folder / "arrays.npz") as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(folder / "arrays.npz", **arrays)
    content = bytearray((folder / "arrays.npz").read_bytes())
    at = content.index(b"'shape': (1024,)")
    content[at : at + 17] = b"'shape':(9999999,"
    (folder / "arrays.npz").write_bytes(content)
    signed(folder)


def signed(folder: Path) -> None:
    """Give a model the checksum of what it holds now."""
    content = json.loads((folder / "model.json").read_text())
    content["sha256"] = checksum(content, (folder / "arrays.npz").read_bytes())
    (folder / "model.json").write_text(json.dumps(content))


def removed(file: Path) -> Path:
    file.unlink()
    return file


BOMBS: dict[str, Callable[[Path], object]] = {
    "inflating": inflating,
    "declared": declared,
    "sparse": lambda folder: os.truncate(folder / "arrays.npz", 1 << 40),
    "a pipe": lambda folder: os.mkfifo(removed(folder / "arrays.npz")),
    "no end": lambda folder: removed(folder / "arrays.npz").symlink_to("/dev/zero"),
    "nested": lambda folder: (folder / "model.json").write_text("[" * 100_000),
    "labels": lambda folder: changed(
        folder, lambda _, content: content.update(cluster_labels={"a": 1, "b": 2, "c": 3})
    ),
    "no text": lambda folder: changed(folder, lambda _, content: content.update(cluster_labels=["\ud800"] * 3)),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_model_that_would_fill_the_memory_or_never_end_is_refused_without_either(tmp_path, trained, bomb):
    shutil.copytree(trained / "model", tmp_path / "model")
    BOMBS[bomb](tmp_path / "model")
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"model' is damaged \(.*run the clustering again"):
            load_model(tmp_path / "model", CpuBackend())
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most_bytes < 16 << 20


def test_a_model_of_more_features_than_its_network_gives_is_refused(tmp_path, trained):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    changed(run / "model", lambda _, content: content["embed"].update(pooling="average"))
    with pytest.raises(DataError, match=r"model' is damaged \(expected 512 features, found 1024\): run the clustering"):
        gpu_cluster.predict(run, FLOWERS, out=tmp_path / "p.csv")


@pytest.mark.parametrize(("one", "other"), [('"scaling": "l2"', '"scaling": "none"'), ('"kept": 8', '"kept": 7')])
def test_a_fact_that_was_changed_is_noticed(tmp_path, trained, one, other):
    shutil.copytree(trained / "model", tmp_path / "model")
    text = (tmp_path / "model" / "model.json").read_text()
    assert one in text
    (tmp_path / "model" / "model.json").write_text(text.replace(one, other))
    with pytest.raises(DataError, match=r"model' is damaged \(its sha256 is not [0-9a-f]{64}\)"):
        load_model(tmp_path / "model", CpuBackend())


@pytest.mark.parametrize("name", ["model.json", "arrays.npz"])
@pytest.mark.parametrize("damage", ["gone", "cut", "empty", "noise"])
def test_a_damaged_file_of_a_model_is_refused(tmp_path, trained, name, damage):
    shutil.copytree(trained / "model", tmp_path / "model")
    file = tmp_path / "model" / name
    content = file.read_bytes()
    file.write_bytes({"cut": content[: len(content) // 2], "noise": b"\0" * 99}.get(damage, b""))
    if damage == "gone":
        file.unlink()
    with pytest.raises(DataError, match=f"no model at .*model/{name}" if damage == "gone" else "is damaged"):
        load_model(tmp_path / "model", CpuBackend())


def test_a_model_of_another_schema_is_refused_with_both(tmp_path, trained):
    shutil.copytree(trained / "model", tmp_path / "model")
    changed(tmp_path / "model", lambda _, content: content.update(schema=99))
    with pytest.raises(DataError, match="of schema 99, and this version reads 2"):
        load_model(tmp_path / "model", CpuBackend())


def test_other_weights_are_refused_with_both_sums(tmp_path, trained):
    weights = tmp_path / "other.weights.h5"
    shutil.copy(vgg16.find_weights().path, weights)
    with weights.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(WeightsError, match=f"expected sha256 {vgg16.IMAGENET_SHA256}, found [0-9a-f]{{64}} in"):
        gpu_cluster.predict(trained, FLOWERS, out=tmp_path / "p.csv", weights=weights)


def test_a_folder_without_a_model_is_an_error_that_says_what_is_expected(tmp_path):
    done = called("predict", tmp_path, FLOWERS, "--out", tmp_path / "p.csv")
    assert done.code == 2
    assert "expected the folder that `gpu-cluster run` left, which holds model/model.json" in done.err


def test_a_model_read_back_is_the_model_that_was_saved(trained):
    model = load_model(trained / "model", CpuBackend())
    x = gpu_cluster.embed(sorted((trained.parent / "in").iterdir()), features="vgg16", image_size=32)
    _, plane = apply(model.reduction, HeldRows(x, CpuBackend()), CpuBackend())
    expected = pd.read_csv(trained / "assignments.csv")[["pc1", "pc2"]]
    np.testing.assert_allclose(plane, expected.to_numpy(np.float32), rtol=1e-4, atol=1e-6)


def test_other_features_than_those_of_the_run_are_refused_with_both(tmp_path, trained):
    out = tmp_path / "p.csv"
    with pytest.raises(ConfigError, match=r"--features efficientnet-lite2: the run .* with the features vgg16 \(pool"):
        gpu_cluster.predict(trained, FLOWERS, out=out, features="efficientnet-lite2")
    with pytest.raises(ConfigError, match=r"--features vgg16-max: the run .* \(pooling gem-4-5\)"):
        gpu_cluster.predict(trained, FLOWERS, out=out, features="vgg16-max")
    assert not out.exists()
    assert len(gpu_cluster.predict(trained, FLOWERS / "0001.png", out=out, features="vgg16").rows) == 1

"""Odd inputs go through: few, equal and oddly named pictures, and pictures of every kind."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from gpu_cluster import RunResult, embed, run
from gpu_cluster.cli.summary import print_summary
from gpu_cluster.files import escaped
from gpu_cluster.images.places import open_source
from gpu_cluster.images.thumbnails import real_location
from tests.helpers import TINY, called, gpu_cluster, memory_folder, picture, write_pictures
from tests.images.files import ODD_NAMES

# What is printed on the way would be printed with --quiet as well.
# Whole jobs: together they take more than 10 s.
pytestmark = [pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning"), pytest.mark.slow]


def strict_json(file: Path) -> dict[str, Any]:
    """Read JSON as other languages do: NaN and Infinity are errors."""

    def fail(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"), parse_constant=fail)
    return content


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def small_run(images: Path, **options: Any) -> RunResult:
    return run(images, features="vgg16", image_size=32, n_init=2, out=images.with_name("run"), **options)


def assert_complete(result: RunResult, n: int, bad: int = 0, duplicates: int = 0) -> None:
    """Check that every file of a run folder is there, can be read and fits the others."""
    folder = result.folder
    csv = pd.read_csv(folder / "assignments.csv", dtype={"label": "str"})
    parquet = pd.read_parquet(folder / "assignments.parquet")
    manifest = pd.read_parquet(folder / "manifest.parquet")
    metrics, record = strict_json(folder / "metrics.json"), strict_json(folder / "run.json")
    counts = {"found": n, "ok": n - bad - duplicates, "bad": bad, "duplicate": duplicates, "passed_over": 0}
    assert metrics["files"] == record["files"] == counts
    assert (len(manifest), len(csv), len(parquet)) == (n, n - bad, n - bad)
    assert len(pd.read_csv(folder / "bad_files.csv")) == bad
    assert parquet["path"].tolist() == manifest.loc[manifest["status"] != "bad", "path"].tolist()
    assert csv["path"].tolist() == parquet["path"].tolist()
    assert csv["cluster"].tolist() == parquet["cluster"].tolist()
    assert parquet["cluster"].value_counts().sort_index().tolist() == metrics["cluster_sizes"]
    assert len(metrics["cluster_sizes"]) == metrics["k"] == parquet["is_medoid"].sum()
    assert np.isfinite(parquet[["distance", "pc1", "pc2"]]).all(axis=None)
    plots = {"elbow.png", "scatter.png", "silhouette.png", *(f"cluster_{k:02d}.png" for k in range(metrics["k"]))}
    assert {file.name for file in (folder / "plots").iterdir()} - {"scatter_labels.png"} == plots
    for name in plots:
        with Image.open(folder / "plots" / name) as plot:
            plot.verify()


# How many


def test_one_image_is_one_cluster_and_its_scores_are_null(tmp_path):
    write_pictures(tmp_path / "in", 1)
    result = small_run(tmp_path / "in")
    assert_complete(result, 1)
    metrics = strict_json(result.folder / "metrics.json")
    assert (metrics["k"], metrics["cluster_sizes"], metrics["k_chosen_by"]) == (1, [1], "only k tried")
    assert metrics["internal"] == {"silhouette": None, "davies_bouldin": None, "calinski_harabasz": None, "inertia": 0}
    assert "Range of k cut from 2:15 to 1:1, because there is only 1 picture" in result.notices
    assert metrics["k_doubts"] == ["There is only one picture, so there is only one group, and no score is defined"]


@pytest.mark.parametrize("n", [2, 7])
def test_few_images_cut_the_range_of_k_and_say_so(tmp_path, n):
    write_pictures(tmp_path / "in", n)
    result = small_run(tmp_path / "in")
    assert_complete(result, n)
    assert pd.read_csv(result.folder / "sweep.csv")["k"].tolist() == list(range(2, n + 1))
    assert f"Range of k cut from 2:15 to 2:{n}, because there are only {n} pictures" in result.notices


def test_one_cluster_has_null_where_scores_are_not_defined(tmp_path):
    write_pictures(tmp_path / "in", 5)
    result = small_run(tmp_path / "in", k=1, k_range="1:3")
    assert_complete(result, 5)
    internal = strict_json(result.folder / "metrics.json")["internal"]
    assert [internal[name] for name in ("silhouette", "davies_bouldin", "calinski_harabasz")] == [None] * 3
    assert internal["inertia"] > 0
    assert pd.read_csv(result.folder / "sweep.csv")["silhouette"].isna().tolist() == [True, False, False]
    assert pd.read_parquet(result.folder / "assignments.parquet")["silhouette"].isna().all()


def test_as_many_clusters_as_images_have_null_where_scores_are_not_defined(tmp_path):
    write_pictures(tmp_path / "in", 5)
    result = small_run(tmp_path / "in", k=5, k_range="4:5")
    assert_complete(result, 5)
    metrics = strict_json(result.folder / "metrics.json")
    assert metrics["cluster_sizes"] == [1] * 5
    (doubt,) = metrics["k_doubts"]
    assert doubt.startswith("k is 5, and there are 5 pictures: each can be a group of its own")
    assert [metrics["internal"][name] for name in ("silhouette", "davies_bouldin", "calinski_harabasz")] == [None] * 3
    # Each centre is the one row it holds, of unit length: what is left is float32 rounding.
    assert metrics["internal"]["inertia"] < 1e-10
    assert pd.read_csv(result.folder / "sweep.csv")["silhouette"].isna().tolist() == [False, True]


def test_images_that_are_all_equal_are_one_cluster_and_the_user_is_told(tmp_path):
    (first, *others) = write_pictures(tmp_path / "in", 6)
    for other in others:
        shutil.copy(first, other)
    result = small_run(tmp_path / "in", k=3)
    assert_complete(result, 6, duplicates=5)
    metrics = strict_json(result.folder / "metrics.json")
    assert (metrics["k"], metrics["k_asked"], metrics["cluster_sizes"]) == (1, 3, [6])
    assert "k was reduced from 3 to 1, because the pictures that differ form only 1 group" in result.notices


def test_fewer_distinct_images_than_clusters_leave_no_cluster_empty(tmp_path):
    files = write_pictures(tmp_path / "in", 6)
    for file in files[3:]:
        shutil.copy(files[2], file)
    result = small_run(tmp_path / "in", k=5)
    assert_complete(result, 6, duplicates=3)
    assert strict_json(result.folder / "metrics.json")["cluster_sizes"] == [4, 1, 1]


# Names


def test_odd_names_of_good_and_of_bad_files_go_through_to_every_table(tmp_path):
    names = [*ODD_NAMES, "a\rb.png"]
    for folder in ("bad", "good"):
        (tmp_path / "in" / folder).mkdir(parents=True)
    for seed, name in enumerate(names):
        picture(seed).save(tmp_path / "plain.png")
        (tmp_path / "plain.png").rename(tmp_path / "in" / "good" / name)
        (tmp_path / "in" / "bad" / name).touch()
    result = small_run(tmp_path / "in", k=3, k_range="3:3")
    assert_complete(result, 2 * len(names), bad=len(names))
    expected = [escaped(name) for name in sorted(names, key=os.fsencode)]
    for table, folder in (("assignments.csv", "good"), ("bad_files.csv", "bad")):
        assert pd.read_csv(result.folder / table)["path"].tolist() == [f"{folder}/{name}" for name in expected]


def test_a_raw_byte_and_the_text_of_its_escape_have_cells_of_their_own_that_lead_to_their_files(tmp_path):
    folder = tmp_path / "in"
    write_pictures(folder, 4)
    names = ["bad\\xff.png", os.fsdecode(b"bad\xff.png")]
    for number, name in enumerate(names):
        (folder / f"00{number}.png").rename(folder / name)
    result = small_run(folder, k=1, k_range="1:1")
    assert_complete(result, 4)
    paths = pd.read_csv(result.folder / "assignments.csv")["path"]
    assert paths.tolist() == ["002.png", "003.png", "bad\\x5cxff.png", "bad\\xff.png"]
    (result.folder / "thumbnails.parquet").unlink()
    done = called("report", result.folder, "--root", folder)
    assert (done.code, "not in" in done.err) == (0, False)
    page = (result.folder / "report.html").read_text()
    assert "/bad%5Cxff.png" in page
    assert "/bad%FF.png" in page
    done = called("predict", result.folder, folder, "--out", tmp_path / "new.csv", "--quiet")
    assert done.code == 0, done.err
    assert pd.read_csv(tmp_path / "new.csv")["path"].tolist() == paths.tolist()


def test_a_table_of_the_version_before_which_left_backslashes_alone_leads_to_its_files(tmp_path):
    (tmp_path / "bad\\xff.png").touch()
    assert real_location(open_source(tmp_path), "bad\\xff.png") == "bad\\xff.png"


def test_a_time_of_change_that_no_column_holds_is_missing_in_the_manifest():
    seconds = [9_300_000_000, -9_300_000_000]
    with memory_folder() as place:
        files = write_pictures(place / "in", 3)
        for file, time in zip(files, seconds, strict=False):
            os.utime(file, (time, time))
        if [file.stat().st_mtime for file in files[:2]] != seconds:
            pytest.skip("no file system here keeps such times")
        result = small_run(place / "in", k=1, k_range="1:1")
        assert_complete(result, 3)
        times = pd.read_parquet(result.folder / "manifest.parquet")["mtime_ns"]
        assert times.isna().tolist() == [True, True, False]


# `$` and `_` mean something to matplotlib, and its fonts lack the letters of most scripts.
ODD_LABELS = {
    "punctuation": ["rose, red", 'the "queen"', "two\nlines", "100%", "{0}", "[bold]", "NA", "röd", r"C:\new", "a$"],
    "no formula, no glyph": [r"$\frac$", "US$ and A$", "写真", "🌼"],
    "underscore": ["_hidden", "shown"],
}


@pytest.mark.parametrize("labels", ODD_LABELS.values(), ids=ODD_LABELS)
def test_odd_labels_go_through_to_the_table_and_the_scores(tmp_path, labels):
    files = write_pictures(tmp_path / "in", len(labels))
    rows = [(file.name, label) for file, label in zip(files, labels, strict=True)]
    with (tmp_path / "labels.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("file", "label"), *rows])
    result = small_run(tmp_path / "in", k=2, k_range="2:2", labels=tmp_path / "labels.csv")
    assert_complete(result, len(labels))
    table = pd.read_csv(result.folder / "assignments.csv", keep_default_na=False)
    assert table["label"].tolist() == labels
    assert strict_json(result.folder / "metrics.json")["class_by_cluster"]["classes"] == sorted(labels)


def test_labels_that_few_images_have_are_scored_on_these(tmp_path):
    write_pictures(tmp_path / "in", 5)
    (tmp_path / "labels.csv").write_text("file,label\n000.png,a\n002.png,b\ngone.png,c\n")
    result = small_run(tmp_path / "in", k=2, k_range="2:2", labels=tmp_path / "labels.csv")
    assert_complete(result, 5)
    counts = strict_json(result.folder / "metrics.json")["labels"]
    assert counts["n_labelled_images"] == 2
    assert counts["n_files_without_label"] == 3
    assert counts["n_labels_without_file"] == 1
    assert counts["n_ambiguous_labels"] == 0
    labels = pd.read_csv(result.folder / "assignments.csv")["label"]
    assert labels.isna().tolist() == [False, True, False, True, True]


def test_folders_whose_names_are_not_utf8_go_through_and_the_record_repeats_the_run(tmp_path, capsys):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    write_pictures(folder, 4)
    result = small_run(folder, k=2, k_range="2:2")
    assert_complete(result, 4)
    # A run folder whose name is not UTF-8 is written and shown.
    again = run(config=result.folder / "run.json", out=tmp_path / os.fsdecode(b"r\xe9sultats"))
    assert_complete(again, 4)
    assert (again.folder / "assignments.csv").read_bytes() == (result.folder / "assignments.csv").read_bytes()
    print_summary(again)
    assert rf"results: {tmp_path}/r\xe9sultats" in capsys.readouterr().out.splitlines()


# The record of a run


def test_the_record_of_a_run_repeats_it_from_another_folder_in_another_process(tmp_path, monkeypatch):
    write_pictures(tmp_path / "here" / "in", 8)
    rows = [f"in/{n:03d}.png,{n % 2}\n" for n in range(8)]
    (tmp_path / "here" / "labels.csv").write_text("name,kind\n" + "".join(rows))
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    options: dict[str, Any] = {
        "labels": "labels.csv",
        "file_col": "name",
        "label_col": "kind",
        "seed": 3,
        "k_range": "2:4",
    }
    first = run("in", features="vgg16", image_size=32, out="run", **options)
    second = gpu_cluster(
        "run", "--config", "../here/run/run.json", "--quiet", cwd=tmp_path / "there", out=tmp_path / "there" / "run"
    )
    assert (second.code, second.err) == (0, "")
    for name in ("assignments.csv", "metrics.json"):
        assert (second.folder / name).read_bytes() == (first.folder / name).read_bytes()
    expected = strict_json(first.folder / "run.json")
    # The repeated run asks for the engine that ran.
    expected["config"]["embed"]["engine"] = expected["engine"]
    assert second.json("run.json")["config"] == expected["config"]


# Kinds of pictures

# How one picture is saved, and the mode that its pixels were brought to before: what it must equal as a plain PNG.
KINDS: Mapping[str, tuple[str, Callable[[Image.Image, Path], None]]] = {
    "grey.png": ("L", lambda image, file: image.save(file)),
    "grey and alpha.png": ("L", lambda image, file: image.convert("LA").save(file)),
    "grey.bmp": ("L", lambda image, file: image.save(file)),
    "grey.tif": ("L", lambda image, file: image.save(file)),
    "black and white.png": ("1", lambda image, file: image.save(file)),
    "black and white.tif": ("1", lambda image, file: image.save(file)),
    "palette.png": ("P", lambda image, file: image.save(file)),
    "palette.bmp": ("P", lambda image, file: image.save(file)),
    "palette.gif": ("P", lambda image, file: image.save(file)),
    "palette.tif": ("P", lambda image, file: image.save(file)),
    "rgb.bmp": ("RGB", lambda image, file: image.save(file)),
    "rgb.tif": ("RGB", lambda image, file: image.save(file, compression="tiff_lzw")),
    "rgb.webp": ("RGB", lambda image, file: image.save(file, lossless=True)),
    "rgba.png": ("RGB", lambda image, file: image.convert("RGBA").save(file)),
    "rgba.bmp": ("RGB", lambda image, file: image.convert("RGBA").save(file)),
    "rgba.tif": ("RGB", lambda image, file: image.convert("RGBA").save(file)),
    "rgba.webp": ("RGB", lambda image, file: image.convert("RGBA").save(file, lossless=True)),
    "cmyk.tif": ("RGB", lambda image, file: image.convert("CMYK").save(file)),
    "animation.gif": (
        "P",
        lambda image, file: image.save(file, save_all=True, append_images=[picture(1).convert("P")]),
    ),
    "animation.png": ("RGB", lambda image, file: image.save(file, save_all=True, append_images=[picture(1)])),
    "animation.webp": (
        "RGB",
        lambda image, file: image.save(file, lossless=True, save_all=True, append_images=[picture(1)]),
    ),
    "pages.tif": ("RGB", lambda image, file: image.save(file, save_all=True, append_images=[picture(1)])),
    "16 bits.png": ("L", lambda image, file: sixteen_bits(image).save(file)),
    "16 bits.tif": ("L", lambda image, file: sixteen_bits(image).save(file)),
    "a png called.jpg": ("RGB", lambda image, file: image.save(file, format="PNG")),
    "a bmp called.png": ("RGB", lambda image, file: image.save(file, format="BMP")),
}


def sixteen_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image).astype(np.uint16) * 257)


def brought_to(mode: str) -> Image.Image:
    image = picture(0)
    return image.quantize(64) if mode == "P" else image.convert(mode)


@pytest.fixture(scope="module")
def embeddings_of_kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The embeddings of a picture of each kind, and under its mode that of the same picture in a plain PNG."""
    folder = tmp_path_factory.mktemp("kinds")
    for name, (mode, save) in KINDS.items():
        save(brought_to(mode), folder / name)
    modes = sorted({mode for mode, _ in KINDS.values()})
    for mode in modes:
        brought_to(mode).convert("RGB").save(folder / f"{mode} plain.png")
    files = [*(folder / name for name in KINDS), *(folder / f"{mode} plain.png" for mode in modes)]
    return dict(zip([*KINDS, *modes], embed(files, features="vgg16", image_size=32, no_cache=True), strict=True))


@pytest.mark.parametrize("name", KINDS)
def test_a_picture_of_any_kind_is_embedded_as_the_same_picture_in_a_plain_png_is(embeddings_of_kinds, name):
    mode, _ = KINDS[name]
    # TensorFlow's result depends on the batch by 4e-8, and what goes through Pillow is in another one.
    assert relative_error(embeddings_of_kinds[name], embeddings_of_kinds[mode]) < 1e-5


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L"])
def test_a_lossy_jpeg_is_embedded_much_as_the_picture_it_was_made_of(tmp_path, mode):
    for seed, name in enumerate(["plain", "other"]):
        image = picture(seed).convert(mode)
        image.convert("RGB").save(tmp_path / f"{name}.png")
        image.save(tmp_path / f"{name}.jpg", quality=95)
    names = ("plain.png", "plain.jpg", "other.png")
    plain, found, other = embed([tmp_path / name for name in names], image_size=32)
    # Half the resolution of the colours is lost, and coefficients are rounded; measured 0.03 to 0.06.
    assert relative_error(found, plain) < 0.2
    assert relative_error(other, plain) > 0.5


def test_pictures_of_every_kind_with_suffixes_in_upper_case_and_of_few_pixels_go_through_a_run_together(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, (mode, save) in KINDS.items():
        save(brought_to(mode), folder / name)
    upper = ["A.PNG", "B.JPG", "C.JPEG", "D.TIFF", "E.Bmp", "F.WebP", "G.GIF"]
    for seed, name in enumerate(upper, start=10):
        picture(seed).save(folder / name)
    sizes = [(1, 1), (1, 300), (300, 1), (2, 3)]
    for seed, size in enumerate(sizes, start=20):
        picture(seed, size).save(folder / f"{size}.png")
    # "a png called.jpg" and "a bmp called.png" hold the bytes of others.
    assert_complete(small_run(folder, k=3, k_range="3:3"), len(KINDS) + len(upper) + len(sizes), duplicates=2)


# Bad files


def test_bad_files_shift_no_other_file(tmp_path):
    write_pictures(tmp_path / "good", 6)
    files = write_pictures(tmp_path / "mixed", 6)
    for name in ("00!.png", "002!.png", "003!.png", "9.png"):
        (tmp_path / "mixed" / name).write_bytes(files[0].read_bytes()[:60])
    options = {**TINY, "k": 3, "batch_size": 4}
    good, mixed = (run(tmp_path / name, **options, out=tmp_path / f"{name} run") for name in ("good", "mixed"))
    assert_complete(mixed, 10, bad=4)
    assert good.findings is not None
    assert mixed.findings is not None
    # TensorFlow's result depends on the batch by 4e-8 of its size.
    assert relative_error(mixed.findings.embeddings.x.whole(), good.findings.embeddings.x.whole()) < 1e-5
    columns = ["path", "cluster", "content_hash", "is_medoid"]
    tables = [pd.read_csv(result.folder / "assignments.csv")[columns] for result in (good, mixed)]
    pd.testing.assert_frame_equal(tables[0], tables[1])
    hashes = pd.read_parquet(mixed.folder / "manifest.parquet").set_index("path")["content_hash"]
    assert tables[1]["content_hash"].tolist() == hashes[tables[1]["path"]].tolist()


def test_labels_of_any_length_fit_the_plots(tmp_path):
    write_pictures(tmp_path / "in", 6)
    # As long as a field of a CSV may be for Python.
    rows = "".join(f"{number:03d}.png,{'x' * 131_000 if number < 3 else 'y'}\n" for number in range(6))
    (tmp_path / "in" / "labels.csv").write_text(f"file,label\n{rows}")
    result = small_run(tmp_path / "in", k=2, k_range="2:2")
    assert_complete(result, 6)
    for plot in (result.folder / "plots").iterdir():
        with Image.open(plot) as image:
            assert max(image.size) < 3_000

"""The map's places, and pictures that show nearly the same."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance
from sklearn.datasets import make_blobs
from sklearn.neighbors import NearestNeighbors

import gpu_cluster
from gpu_cluster.backend import CpuBackend, HeldRows
from gpu_cluster.clustering.near_duplicates import find_near_duplicates
from gpu_cluster.clustering.tsne import checksums, lay_out
from gpu_cluster.config import ReportConfig
from gpu_cluster.events import Observer
from tests.helpers import TINY, picture, write_pictures


def laid_out(x: np.ndarray, **options: Any) -> np.ndarray:
    pcs = np.column_stack([x[:, 0], x[:, -1] if x.shape[1] > 1 else np.zeros(len(x))])
    config = ReportConfig.model_validate(options)
    return lay_out(x, pcs, config, seed=0, backend=CpuBackend(), observer=Observer())


def blobs(n: int) -> tuple[np.ndarray, np.ndarray]:
    x, groups = make_blobs(n, 10, centers=4, cluster_std=0.5, random_state=2)
    return x.astype(np.float32), groups


@pytest.mark.parametrize("sample", [400, 100])
def test_neighbours_in_space_are_of_one_group_in_the_plane(sample):
    x, groups = blobs(400)
    plane = laid_out(x, layout_sample=sample)
    assert plane.shape == (400, 2)
    assert plane.dtype == np.float32
    _, nearest = NearestNeighbors(n_neighbors=2).fit(plane).kneighbors(plane)
    assert (groups[nearest[:, 1]] == groups).mean() > 0.98


def test_no_two_pictures_lie_on_one_place_but_copies():
    plane = laid_out(blobs(300)[0], layout_sample=50)
    assert len(np.unique(plane, axis=0)) == 300


def test_the_same_seed_gives_the_same_places():
    x, _ = blobs(120)
    np.testing.assert_array_equal(laid_out(x), laid_out(x))


@pytest.mark.parametrize("x", [np.ones((9, 3)), np.arange(9.0)[:, None], np.eye(3), np.zeros((1, 1))])
def test_what_has_no_plane_keeps_its_components(x):
    x = x.astype(np.float32)
    np.testing.assert_array_equal(laid_out(x)[:, 0], x[:, 0])


def test_a_sample_of_copies_keeps_its_components():
    # Of 97 copies and 3 others the sample of this seed holds copies only: t-SNE would end the process.
    x = np.vstack([np.full((97, 3), 0.25), np.eye(3)]).astype(np.float32)
    np.testing.assert_array_equal(laid_out(x, layout_sample=5), x[:, [0, -1]])


@pytest.mark.parametrize("n_distinct", [1, 2, 3])
def test_a_folder_of_copies_gets_through_with_its_page(tmp_path, n_distinct):
    first = write_pictures(tmp_path / "in", n_distinct)
    for number in range(12):
        shutil.copy(first[number % n_distinct], tmp_path / "in" / f"copy{number}.png")
    result = gpu_cluster.run(tmp_path / "in", features="vgg16", image_size=32, n_init=2, out=tmp_path / "run")
    assert (result.folder / "report.html").is_file()
    assert pd.read_csv(result.folder / "assignments.csv")[["tsne1", "tsne2"]].notna().all(axis=None)


# Nearly the same


def similar_in(folder: Path) -> set[tuple[str, str]]:
    table = pd.read_csv(folder / "near_duplicates.csv")
    return {tuple(sorted(pair)) for pair in table[["path", "other"]].itertuples(index=False)}


@pytest.mark.slow
def test_a_picture_saved_again_is_found_and_others_are_not(tmp_path, sample_images):
    (tmp_path / "in").mkdir()
    for file in sample_images[:12]:
        shutil.copy(file, tmp_path / "in")
    with Image.open(sample_images[0]) as image:
        image.convert("RGB").save(tmp_path / "in" / "saved again.jpg", quality=92)
    with Image.open(sample_images[1]) as image:
        ImageEnhance.Brightness(image.convert("RGB")).enhance(1.1).save(tmp_path / "in" / "brighter.png")
    shutil.copy(sample_images[2], tmp_path / "in" / "same bytes.png")
    run = gpu_cluster.run(tmp_path / "in", k=5, k_range="5:5", n_init=2, out=tmp_path / "run").folder
    assert similar_in(run) == {
        (sample_images[0].name, "saved again.jpg"),
        (sample_images[1].name, "brighter.png"),
    }


def test_pairs_are_those_of_the_highest_cosines():
    random = np.random.default_rng(0)
    x = random.normal(size=(50, 16)).astype(np.float32)
    x[40] = 3 * x[7] + 0.1 * random.normal(size=16)
    x[41] = 0.5 * x[40]
    found = find_near_duplicates(HeldRows(x, CpuBackend()), backend=CpuBackend(), observer=Observer())
    assert [(pair.row, pair.other) for pair in found] in ([(40, 41), (7, 41)], [(40, 41), (7, 40)])
    cosine = x[40] @ x[7] / np.linalg.norm(x[40]) / np.linalg.norm(x[7])
    assert found[1].cosine == pytest.approx(cosine, abs=1e-5)
    assert found[0].cosine == pytest.approx(1, abs=1e-6)


def test_above_a_number_none_are_looked_for_and_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("gpu_cluster.clustering.near_duplicates.MOST_IMAGES", 3)
    write_pictures(tmp_path / "in", 4)
    picture(0).save(tmp_path / "in" / "again.bmp")
    result = gpu_cluster.run(tmp_path / "in", **TINY, out=tmp_path / "run")
    assert similar_in(result.folder) == set()
    assert "Near duplicates were not searched: there are 5 pictures, more than 3" in result.notices


def test_the_checksums_of_rows_change_with_the_last_bit_of_any_number():
    x = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    before = checksums(x, CpuBackend())
    for row, column in ((0, 0), (17, 3), (49, 7)):
        changed = x.copy()
        changed[row, column] = np.nextafter(changed[row, column], np.float32(np.inf))
        assert np.flatnonzero(checksums(changed, CpuBackend()) != before).tolist() == [row]

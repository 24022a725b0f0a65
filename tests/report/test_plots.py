"""The plots: that each shows what it should, for few and for many clusters."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

from gpu_cluster.images.places import open_source
from gpu_cluster.report import plots
from gpu_cluster.results import Clustering, Contingency, KChoice, Projection, Scores, Sweep, SweepPoint
from tests.helpers import NO_REDUCTION, write_pictures


def projection(pcs: np.ndarray) -> Projection:
    return Projection(
        reduction=NO_REDUCTION,
        x=pcs,
        space="test",
        pcs=pcs,
        pcs_variance_ratio=(0.5, 0.25),
        pca_solver="none",
        sweep_x=pcs,
        sweep_space="test",
    )


def scores(silhouettes: np.ndarray, counts: np.ndarray | None = None) -> Scores:
    table = None if counts is None else Contingency(classes=("daisy", "rose"), counts=counts)
    mean = None if np.isnan(silhouettes).all() else float(np.nanmean(silhouettes))
    return Scores({"silhouette": mean}, None, 0, table, silhouettes, len(silhouettes))


def clustering(labels: np.ndarray) -> Clustering:
    sizes = np.bincount(labels)
    return Clustering(labels, np.zeros((len(sizes), 2)), np.zeros(len(labels)), sizes, sizes * 0, 1.0, 1, len(sizes))


@pytest.mark.parametrize("k", [2, 30])
def test_every_cluster_of_a_scatter_plot_has_its_own_look_and_its_number(k):
    random = np.random.default_rng(0)
    labels = np.arange(300) % k
    pcs = random.normal(size=(300, 2))
    figure = plots.scatter(pcs, labels, [str(cluster) for cluster in range(k)], "Clusters", projection(pcs))
    (axes,) = figure.axes
    looks = {
        (np.asarray(points.get_facecolor()).tobytes(), np.asarray(points.get_paths()[0].vertices).tobytes())
        for points in axes.collections
    }
    assert len(looks) == k
    assert sorted(text.get_text() for text in axes.texts) == sorted(str(cluster) for cluster in range(k))
    assert axes.get_xlabel() == "PC1 (50.0% of the variance)"


def test_images_without_a_label_are_drawn_grey():
    pcs = np.zeros((3, 2))
    figure = plots.scatter(pcs, np.array([0, -1, 1]), ["daisy", "rose"], "Labels", projection(pcs))
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["others", "daisy", "rose"]


def test_classes_beyond_the_legend_are_drawn_grey():
    pcs = np.zeros((100, 2))
    figure = plots.scatter(pcs, np.arange(100), [f"class {code}" for code in range(100)], "Labels", projection(pcs))
    assert len(figure.axes[0].collections) == 31


def test_colour_and_marker_together_are_unique_for_88_groups():
    looks = [tuple(plots._style(group).values()) for group in range(88)]
    assert len(set(looks)) == 88
    assert all(a[0] != b[0] and a[1] != b[1] for a, b in itertools.pairwise(looks))


def test_elbow_marks_the_chosen_k_and_says_why():
    points = tuple(SweepPoint(k, 100.0 / k, None if k == 1 else 0.1 * k, 0.9, 3, 0.1) for k in range(1, 6))
    figure = plots.elbow(Sweep(points, best_k=3, chosen_by=KChoice.KNEE))
    left, right, _ = figure.axes
    assert left.get_title(loc="left") == "Elbow; k = 3 (knee)"
    for axes in (left, right):
        assert [3, 3] in [np.asarray(line.get_xdata()).tolist() for line in axes.lines]
    assert np.isnan(np.asarray(right.lines[0].get_ydata())[0])


def test_silhouette_plot_has_a_bar_an_image_and_the_size_of_each_cluster():
    labels = np.array([0, 0, 0, 1, 1])
    figure = plots.silhouette(labels, clustering(labels), scores(np.array([0.5, 0.4, -0.1, 0.2, 0.3])))
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["0  (3)", "1  (2)"]


def test_no_two_of_32_clusters_look_the_same_in_the_silhouette_plot_and_neighbours_differ_in_colour():
    labels = np.repeat(np.arange(32), 3)
    figure = plots.silhouette(labels, clustering(labels), scores(np.linspace(0.1, 0.9, len(labels))))
    bars = figure.axes[0].collections
    looks = [(np.asarray(bar.get_facecolor())[0].tobytes(), bar.get_hatch()) for bar in bars]
    assert len(set(looks)) == len(bars) == 32
    assert all(a[0] != b[0] for a, b in itertools.pairwise(looks))


def test_silhouette_plot_of_one_cluster_says_that_there_is_none():
    labels = np.zeros(3, int)
    figure = plots.silhouette(labels, clustering(labels), scores(np.full(3, np.nan)))
    assert "not defined" in figure.axes[0].texts[0].get_text()


def test_contact_sheet_shows_the_files_in_their_order(tmp_path):
    files = []
    for number, colour in enumerate(("red", "lime", "blue")):
        files.append(tmp_path / f"{number}.png")
        Image.new("RGB", (60, 30), colour).save(files[-1])
    sheet, _ = plots.contact_sheet(open_source(tmp_path), list(map(str, files)), "title")
    centres = [
        sheet.getpixel((plots._TILE * column + plots._TILE // 2, plots._HEAD + plots._TILE // 2))
        for column in (0, 1, 2)
    ]
    assert centres == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def test_contact_sheet_of_a_file_that_is_gone_has_a_grey_tile(tmp_path):
    files = [*write_pictures(tmp_path, 1), tmp_path / "gone.png"]
    sheet, _ = plots.contact_sheet(open_source(tmp_path), list(map(str, files)), "title")
    middle = sheet.getpixel((plots._TILE + plots._TILE // 2, plots._HEAD + plots._TILE // 2))
    assert middle == (187, 187, 187)


def test_sheet_title_says_what_most_of_the_cluster_are():
    found = scores(np.zeros(4), np.array([[1, 0], [2, 1]]))
    assert plots._sheet_title(0, 3, 3, found) == "Cluster 0: 3 images, nearest to the centre first; 2 are rose"
    assert plots._sheet_title(0, 300, 60, scores(np.zeros(4))) == (
        "Cluster 0: 60 of 300 images, nearest to the centre first"
    )


def test_a_scatter_plot_of_more_points_than_it_draws_says_so():
    n = plots._MOST_POINTS + 5
    pcs = np.zeros((n, 2))
    figure = plots.scatter(pcs, np.zeros(n, int), ["0"], "Clusters", projection(pcs))
    assert figure.axes[0].get_title(loc="left") == "Clusters in PCA space, 20,000 of 20,005 images"


def test_a_small_contact_sheet_is_as_wide_as_its_title(tmp_path):
    shown = (open_source(tmp_path), [file.name for file in write_pictures(tmp_path, 2)])
    title = "Cluster 13: 2 images, nearest to the centre first; 2 are black-eyed susan"
    assert (
        plots.contact_sheet(*shown, title)[0].width > plots.contact_sheet(*shown, "short")[0].width == 4 * plots._TILE
    )

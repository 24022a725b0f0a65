"""The estimators: scikit-learn's own checks, the groups of `run`, and what a user of scikit-learn does with them."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

import gpu_cluster
from gpu_cluster import ConfigError, DataError, ImageClusterer, ImageEmbedder, VGG16Embedder
from gpu_cluster.config import RunConfig, shipped_data
from gpu_cluster.options import options_of
from tests.helpers import assignments, picture, shards_of, write_pictures

SMALL: dict[str, Any] = {"image_size": 32, "device": "cpu"}
FLOWERS_SMALL: dict[str, Any] = {"image_size": 64, "device": "cpu"}

# Of scikit-learn's checks, those that need no table of numbers, which an embedder does not take.
OF_EMBEDDERS = (
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_tags_renamed",
    "check_valid_tag_types",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_get_params_invariance",
    "check_set_params",
    "check_mixin_order",
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_pictures(tmp_path_factory.mktemp("pictures") / "in", 12)


@pytest.fixture(scope="module")
def finished(pictures: list[Path]) -> gpu_cluster.RunResult:
    options: dict[str, Any] = {"image_size": 32, "k_range": "2:4", "n_init": 3, "seed": 7}
    return gpu_cluster.run(pictures[0].parent, **options, out=pictures[0].parents[1] / "run")


@pytest.fixture
def flowers(root) -> tuple[np.ndarray[Any, Any], pd.Series]:
    """The embeddings of every fourth picture of the sample set, and its labels."""
    table = pd.read_csv(shipped_data() / "flowers" / "flower_labels.csv")[::4]
    files = [shipped_data() / "flowers" / name for name in table["file"]]
    return VGG16Embedder(**FLOWERS_SMALL, cache=root).transform(files), table["label"]


def blobs(n: int = 60, d: int = 6, k: int = 3) -> np.ndarray[Any, Any]:
    random = np.random.default_rng(0)
    return 1 + np.repeat(5 * np.eye(k, d), n // k, axis=0) + random.normal(0, 0.3, (n, d))


# scikit-learn's checks


@parametrize_with_checks([ImageClusterer(n_clusters=2, n_init=2, device="cpu")])
def test_the_clusterer_passes_each_of_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.slow
def test_the_clusterer_passes_them_with_the_sweep_of_its_defaults_too():
    # With ten restarts for each number of clusters it takes several times as long, through the same lines.
    found = check_estimator(ImageClusterer(n_init=2, device="cpu"), on_skip=None)
    # That one is skipped for every estimator, unless SCIPY_ARRAY_API is set.
    assert {one["check_name"] for one in found if one["status"] != "passed"} <= {"check_array_api_input"}


@pytest.mark.parametrize("name", OF_EMBEDDERS)
@pytest.mark.parametrize("embedder", [ImageEmbedder, VGG16Embedder])
def test_the_embedders_pass_the_checks_that_need_no_table(embedder, name):
    getattr(estimator_checks, name)(embedder.__name__, embedder())


def test_scikit_learn_itself_leaves_out_for_the_embedders_what_needs_a_table():
    with pytest.warns(SkipTestWarning, match="Can't test estimator VGG16Embedder which requires input"):
        check_estimator(VGG16Embedder(**SMALL))


@pytest.mark.parametrize("estimator", [ImageEmbedder, VGG16Embedder, ImageClusterer])
def test_the_defaults_are_those_of_run(estimator):
    known = {name: option.field.default for name, option in options_of(RunConfig).items()}
    others = {"n_clusters": known["k"], "random_state": known["seed"], "crop": known["fit"] == "crop"}
    for name, parameter in inspect.signature(estimator).parameters.items():
        assert parameter.default == (others | known)[name], name


# The groups


def test_the_labels_are_those_of_run(finished, pictures):
    table = assignments(finished)
    files = [pictures[0].parent / path for path in table["path"]]
    clusterer = ImageClusterer(k_range="2:4", n_init=3, random_state=7)
    labels = make_pipeline(ImageEmbedder(image_size=32), clusterer).fit_predict(files)
    np.testing.assert_array_equal(labels, table["cluster"])
    assert finished.findings is not None
    assert clusterer.inertia_ == finished.findings.clustering.inertia
    assert clusterer.agreement_ == finished.findings.sweep.agreement
    assert clusterer.verdict_ == finished.verdict
    assert clusterer.space_ == finished.findings.projection.space


def test_new_pictures_go_where_predict_puts_them(finished, pictures, tmp_path):
    new = write_pictures(tmp_path / "new", 16)[12:]
    theirs = gpu_cluster.predict(finished.folder, new, out=tmp_path / "new.csv")
    clusterer = ImageClusterer(k_range="2:4", n_init=3, random_state=7)
    model = make_pipeline(ImageEmbedder(image_size=32), clusterer).fit(pictures)
    np.testing.assert_array_equal(model.predict(new), theirs.labels)
    np.testing.assert_allclose(model.transform(new).min(axis=1), theirs.distances, rtol=1e-6)


def test_a_given_number_has_the_clusters_that_it_has_in_a_sweep():
    one, swept = ImageClusterer(4, n_init=3, device="cpu"), ImageClusterer(4, k_range="2:6", n_init=3, device="cpu")
    np.testing.assert_array_equal(one.fit(blobs()).labels_, swept.fit(blobs()).labels_)
    assert one.agreement_ == swept.agreement_


def test_k_is_chosen_where_restarts_agree_most():
    model = ImageClusterer(k_range=range(2, 6), n_init=3, device="cpu").fit(blobs())
    assert model.n_clusters_ == model.sweep_["k"][np.argmax(model.sweep_["agreement"] * (model.sweep_["k"] > 2))] == 3
    assert model.agreement_ == 1
    assert model.sweep_["k"].tolist() == [2, 3, 4, 5]
    assert str(model.verdict_).startswith("Clear groups")


def test_a_fit_repeats_and_the_labels_are_what_predict_gives():
    x = blobs()
    model = ImageClusterer(3, n_init=2, device="cpu").fit(x)
    np.testing.assert_array_equal(model.labels_, model.predict(x))
    np.testing.assert_array_equal(model.labels_, clone(model).fit_predict(x))
    np.testing.assert_array_equal(np.argmin(model.transform(x), axis=1), model.labels_)


def test_the_distances_are_those_to_the_centres():
    x = blobs()
    model = ImageClusterer(3, n_init=2, pca="none", scaling="none", normalize=False, device="cpu").fit(x)
    apart = np.linalg.norm(x.astype(np.float32)[:, None] - model.cluster_centers_[None], axis=2)
    # The recipe computes in float32.
    np.testing.assert_allclose(model.transform(x), apart, rtol=1e-5)
    assert model.inertia_ == pytest.approx((apart.min(axis=1) ** 2).sum(), rel=1e-5)


def test_equal_rows_are_in_one_cluster():
    x = np.vstack([blobs(9), blobs(9)])
    labels = ImageClusterer(4, n_init=2, device="cpu").fit_predict(x)
    np.testing.assert_array_equal(labels[:9], labels[9:])


def test_fewer_different_rows_than_clusters_are_told_of():
    model = ImageClusterer(4, n_init=2, device="cpu").fit(np.repeat(blobs(9)[::4], 4, axis=0))
    assert model.n_clusters_ == 3
    assert "k was reduced from 4 to 3" in " ".join(model.notices_)


def test_with_one_restart_there_is_no_agreement():
    assert np.isnan(ImageClusterer(3, n_init=1, device="cpu").fit(blobs()).agreement_)


def test_parameters_may_be_numbers_of_numpy():
    plain: dict[str, Any] = {"n_clusters": 3, "pca": 4, "whitening": 0.25, "normalize": False, "random_state": 5}
    numpy: dict[str, Any] = {name: np.asarray(value)[()] for name, value in plain.items()}
    assert all(isinstance(value, np.generic) for value in numpy.values())
    labels = [ImageClusterer(**options, device="cpu").fit_predict(blobs()) for options in (plain, numpy)]
    np.testing.assert_array_equal(*labels)


def test_a_grid_search_over_an_array_of_numbers_of_clusters_finds_the_right_one():
    grid: dict[str, Any] = {"n_clusters": np.arange(2, 5)}
    y, shuffled = np.repeat(np.arange(3), 20), KFold(2, shuffle=True, random_state=0)
    model = ImageClusterer(n_init=2, device="cpu")
    search = GridSearchCV(model, grid, scoring="adjusted_rand_score", cv=shuffled, error_score="raise")
    assert search.fit(blobs(), y).best_params_ == {"n_clusters": 3}


@pytest.mark.parametrize("later", [{"scaling": "sqrt-l2"}, {"n_init": 0}, {"n_clusters": 100}], ids=str)
def test_parameters_that_are_set_after_the_fit_change_no_prediction(later):
    x = blobs() - 5
    model = ImageClusterer(3, n_init=2, device="cpu").fit(x)
    np.testing.assert_array_equal(model.set_params(**later).predict(x), model.labels_)


def test_a_prediction_draws_no_random_number():
    random, drawn_alike = np.random.RandomState(0), np.random.RandomState(0)
    model = ImageClusterer(3, n_init=2, random_state=random, device="cpu").fit(blobs())
    drawn_alike.set_state(random.get_state())
    model.predict(blobs())
    assert random.randint(100) == drawn_alike.randint(100)


def test_a_model_can_be_pickled():
    model = ImageClusterer(3, n_init=2, device="cpu").fit(blobs())
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(blobs()), model.labels_)


# What is wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"whitening": 2}, "--whitening: expected a value less than or equal to 0.5; found 2"),
        ({"n_clusters": 0}, "--k: expected a value greater than or equal to 1; found 0"),
        ({"n_clusters": 61}, "61 clusters"),
        ({"k_range": (2, 5)}, "did you mean '2:5'?"),
        ({"select": "agrement"}, "did you mean 'agreement'?"),
    ],
)
def test_a_parameter_that_cannot_be_used_is_an_error_of_fit(options, message):
    with pytest.raises(ConfigError) as caught:
        ImageClusterer(**options, device="cpu").fit(blobs())
    assert message in str(caught.value)


def test_square_roots_of_numbers_below_0_are_refused():
    with pytest.raises(DataError, match="numbers below 0, such as -"):
        ImageClusterer(2, scaling="sqrt-l2", device="cpu").fit(blobs() - 5)


def test_a_clusterer_that_is_not_fitted_says_so():
    with pytest.raises(NotFittedError):
        ImageClusterer(device="cpu").predict(blobs())


def test_files_that_cannot_be_embedded_are_named(pictures, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(DataError) as caught:
        VGG16Embedder(**SMALL).transform([pictures[0], tmp_path / "absent.png", tmp_path / "text.png"])
    assert "2 of 3 files cannot be embedded" in str(caught.value)
    assert "absent.png': not there; " in str(caught.value)
    assert "text.png': " in str(caught.value)


WRONG = {
    "float": (np.zeros((2, 2, 3)), "found an array (2, 2, 3) float64: scale its numbers to 0 to 255"),
    "grey": (np.zeros((2, 2), np.uint8), "found an array (2, 2) uint8: numpy.dstack([picture] * 3)"),
    "grey with an axis": (np.zeros((2, 2, 1), np.uint8), "numpy.dstack([picture] * 3)"),
    "transparent": (np.zeros((2, 2, 4), np.uint8), "PIL.Image.fromarray(picture)"),
    "colours first": (np.zeros((3, 2, 2), np.uint8), "numpy.moveaxis(picture, 0, -1)"),
    "empty": (np.zeros((0, 2, 3), np.uint8), "found an array (0, 2, 3) uint8"),
    "bytes": (b"in", "expected an array (h, w, 3) uint8, RGB, or an image of Pillow; found bytes"),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG.values(), ids=WRONG)
def test_a_picture_in_memory_that_is_none_is_named(wrong, message):
    with pytest.raises(DataError) as caught:
        VGG16Embedder(**SMALL).transform([np.zeros((2, 2, 3), np.uint8), wrong])
    assert "1 of 2 pictures cannot be embedded" in str(caught.value)
    assert message in str(caught.value)


def test_what_the_errors_advise_makes_pictures_that_can_be_used():
    grey, clear = np.zeros((2, 2, 1), np.uint8), np.zeros((2, 2, 4), np.uint8)
    rgb = [(255 * np.zeros((2, 2, 3))).astype("uint8"), np.dstack([grey] * 3), np.dstack([grey[:, :, 0]] * 3)]
    pictures = [*rgb, Image.fromarray(clear), np.moveaxis(np.zeros((3, 2, 2), np.uint8), 0, -1)]
    assert VGG16Embedder(**SMALL).transform(pictures).shape == (5, 1024)


def test_a_reason_that_several_pictures_have_is_said_once():
    named = "5 of 5 pictures cannot be embedded: picture 0, picture 1, picture 2: "
    with pytest.raises(DataError, match=named) as caught:
        VGG16Embedder(**SMALL).transform(np.zeros((5, 4, 4), np.uint8))
    assert str(caught.value).count("expected an array") == 1
    assert str(caught.value).endswith("; and 2 more")


def test_one_picture_in_place_of_a_list_is_refused_as_that():
    with pytest.raises(DataError, match=r"found one picture \(4, 4, 3\): give \[picture\]"):
        VGG16Embedder(**SMALL).transform(np.zeros((4, 4, 3), np.uint8))


def test_an_image_that_is_cut_short_is_named(pictures, tmp_path):
    picture(0, (400, 400)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:1500])
    given = [Image.open(pictures[0]), Image.open(tmp_path / "cut.jpg")]
    with pytest.raises(DataError, match=r"1 of 2 pictures cannot be embedded: picture 1: .*cut short"):
        VGG16Embedder(**SMALL).transform(given)


def test_paths_among_pictures_are_refused(pictures):
    with pytest.raises(DataError, match="found 1 paths among 2"):
        VGG16Embedder(**SMALL).transform([pictures[0], np.zeros((2, 2, 3), np.uint8)])


@pytest.mark.parametrize("one", ["a.jpg", Path("a.jpg"), 3], ids=str)
def test_something_that_is_no_list_is_refused(one):
    with pytest.raises(DataError, match="expected a list of paths"):
        VGG16Embedder(**SMALL).transform(one)


# Embeddings


@pytest.mark.slow
def test_pictures_in_memory_have_the_embeddings_of_their_files(pictures, engine_name):
    embedder = ImageEmbedder("vgg16-max+efficientnet-lite2", engine=engine_name, **SMALL)
    of_files = embedder.fit_transform(pictures)
    assert (of_files.shape, of_files.dtype) == ((12, 1792), np.float32)
    images = [Image.open(file) for file in pictures]
    arrays = np.stack([np.asarray(one) for one in images])
    # TensorFlow's embedding changes in its last digits with the batch.
    for in_memory in ([*images[:6], *arrays[6:]], arrays):
        np.testing.assert_allclose(embedder.transform(in_memory), of_files, atol=1e-6)
    assert len(embedder.get_feature_names_out()) == 1792


def test_an_image_is_turned_upright_and_put_on_white_as_a_file_is(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(0).save(tmp_path / "turned.png", exif=turned)
    clear = picture(1).convert("RGBA")
    clear.putalpha(100)
    clear.save(tmp_path / "clear.png")
    embedder, files = VGG16Embedder(**SMALL), [tmp_path / "turned.png", tmp_path / "clear.png"]
    images = [Image.open(file) for file in files]
    np.testing.assert_allclose(embedder.transform(images), embedder.transform(files), atol=1e-6)
    # The images are still those that were given.
    assert [image.mode for image in images] == ["RGB", "RGBA"]


def test_the_paths_may_be_a_column_of_a_frame(pictures):
    embedder = VGG16Embedder(**SMALL)
    expected = embedder.transform(pictures)
    names = pd.DataFrame({"file": list(map(str, pictures))})
    for given in (names, names["file"], names.to_numpy(), tuple(map(str, pictures))):
        np.testing.assert_array_equal(embedder.transform(given), expected)


def test_no_pictures_have_no_embeddings():
    assert VGG16Embedder(**SMALL).transform([]).shape == (0, 1024)


def test_the_embeddings_of_files_are_kept_in_the_store_and_those_of_pictures_are_not(pictures, root):
    embedder = VGG16Embedder(**SMALL, cache=root)
    embedder.transform([np.asarray(picture(0))])
    assert shards_of(root) == []
    embedder.transform(pictures)
    assert len(shards_of(root)) == 1


def test_an_embedder_needs_no_fit_and_a_wrong_parameter_is_an_error_of_fit(pictures):
    assert VGG16Embedder(**SMALL).transform(pictures[:1]).shape == (1, 1024)
    with pytest.raises(ConfigError, match="--engine"):
        VGG16Embedder(engine="pytorch").fit(pictures)  # type: ignore[arg-type]


# scikit-learn's habit


def test_clusters_in_five_lines(pictures):
    model = make_pipeline(ImageEmbedder("vgg16", image_size=32), ImageClusterer(k_range="2:4"))
    labels = model.fit_predict(pictures)
    assert labels.shape == (12,)
    assert set(labels) == set(range(model[-1].n_clusters_))


def test_a_grid_search_over_whitening_finds_the_one_that_fits_labels_best(flowers):
    x, y = flowers
    shuffled = KFold(3, shuffle=True, random_state=0)
    grid = {"whitening": [0, 0.35, 0.5]}
    search = GridSearchCV(
        ImageClusterer(10, n_init=2, device="cpu"), grid, scoring="adjusted_rand_score", cv=shuffled
    ).fit(x, y)
    scores = search.cv_results_["mean_test_score"]
    assert search.best_params_["whitening"] == grid["whitening"][np.argmax(scores)]
    # The sample set is embedded at 64 pixels a side, to take seconds: the groups are worse than at 224.
    assert adjusted_rand_score(y, search.best_estimator_.labels_) > 0.3
    assert len(set(scores)) == 3


def test_a_grid_search_reaches_into_a_pipeline(pictures):
    model = make_pipeline(VGG16Embedder(**SMALL), ImageClusterer(2, n_init=2, device="cpu"))
    grid = {"imageclusterer__whitening": [0], "vgg16embedder__pooling": ["gem-4-5", "max"]}
    search = GridSearchCV(model, grid, scoring="adjusted_rand_score", cv=2, refit=False).fit(pictures, [0, 1] * 6)
    assert len(search.cv_results_["params"]) == 2
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_the_output_can_be_a_frame_of_pandas(pictures):
    model = make_pipeline(VGG16Embedder(**SMALL), ImageClusterer(2, n_init=2, device="cpu"))
    model.set_output(transform="pandas")
    distances = model.fit(pictures).transform(pictures)
    assert list(distances.columns) == ["imageclusterer0", "imageclusterer1"]
    assert model[0].transform(pictures).columns[-1] == "vgg16embedder1023"
    assert model[-1].feature_names_in_[0] == "vgg16embedder0"


def test_to_import_the_package_loads_no_scikit_learn():
    program = "import sys, gpu_cluster; gpu_cluster.RunConfig; print('sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]

"""Given embeddings and the pictures that they are of: names are matched as those of labels, and everything adds up."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu_cluster.backend import CpuBackend, HeldRows
from gpu_cluster.config import GivenConfig, InputConfig
from gpu_cluster.embedding.given import Given, matched, opened_vectors
from gpu_cluster.embedding.given_rows import ChosenRows
from gpu_cluster.errors import ConfigError, DataError, InterruptedJobError
from gpu_cluster.events import Observer
from gpu_cluster.images.places import open_source
from gpu_cluster.images.scan import scan
from gpu_cluster.manifest import Manifest
from gpu_cluster.results import Embeddings
from tests.helpers import Noticing, write_pictures

N, D = 12, 5
X = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Twelve pictures in two folders, of which two have the same file name."""
    found = [*write_pictures(tmp_path / "in" / "a", N)]
    (tmp_path / "in" / "b").mkdir()
    for number in range(6, N):
        shutil.move(found[number], tmp_path / "in" / "b" / found[number].name)
    shutil.move(tmp_path / "in" / "b" / "011.png", tmp_path / "in" / "b" / "000.png")
    return sorted((tmp_path / "in").rglob("*.png"))


def manifest_of(files: list[Path]) -> Manifest:
    root = files[0].parents[1]
    return Manifest(root, [str(file.relative_to(root)) for file in files])


@contextmanager
def given(
    files: list[Path], names: list[str], x: Any = X, observer: Observer | None = None, **options: Any
) -> Iterator[Given]:
    place = files[0].parents[2]
    np.save(place / "x.npy", x)
    (place / "x.txt").write_text("\n".join(names))
    with opened_vectors(GivenConfig(embeddings=place / "x.npy")) as vectors:
        assert vectors is not None
        options = {"scaling": "l2", **options}
        yield matched(vectors, manifest_of(files), observer or Observer(), **options)


def embeddings(found: Given, files: list[Path], observer: Observer | None = None, **options: Any) -> Embeddings:
    root = files[0].parents[1]
    manifest = scan(manifest_of(files), open_source(root), InputConfig(), Observer())
    return found.embeddings(manifest, CpuBackend(), observer or Observer(), **options)


def paths(files: list[Path]) -> list[str]:
    return [str(file.relative_to(files[0].parents[1])) for file in files]


def test_a_name_may_be_absolute_relative_or_a_file_name_and_rows_may_be_in_any_order(files):
    order = np.random.default_rng(2).permutation(N)
    names = [
        str(files[0]),
        f"in/{paths(files)[1]}",
        paths(files)[2].replace("/", "\\"),
        files[3].name,
        *paths(files)[4:],
    ]
    with given(files, [names[at] for at in order], X[order]) as found:
        result = embeddings(found, files)
    np.testing.assert_array_equal(result.x.whole(), X)
    assert result.rows.tolist() == list(range(N))
    assert (result.bad, result.n_computed) == ({}, 0)


def test_what_does_not_fit_is_reported_and_pictures_without_a_vector_are_bad(files):
    observer = Noticing()
    x = X.copy()
    x[2, 3], x[3, 0] = np.inf, np.nan
    names = [*paths(files)[:-3], "000.png", "none.png", "nor/this.png"]
    with given(files, names, x, observer) as found:
        result = embeddings(found, files)
    assert [notice.replace(str(files[0].parents[2]), "") for notice in observer.notices] == [
        "2 rows of --embeddings '/x.npy' name a picture that is not among these: none.png, nor/this.png",
        "1 row of --embeddings '/x.npy' is not used, because several files have the name: '000.png' can be a/000.png, "
        "b/000.png; write the folder too, as in a/000.png",
        "--embeddings '/x.npy' has no embedding of 3 pictures: b/008.png, b/009.png, b/010.png",
    ]
    odd = "its embedding in x.npy (row {}, counted from 0) has values that are not finite"
    lacking = "x.npy has no embedding of it"
    assert result.bad == {2: odd.format(2), 3: odd.format(3), 9: lacking, 10: lacking, 11: lacking}
    assert result.rows.tolist() == [0, 1, 4, 5, 6, 7, 8]
    np.testing.assert_array_equal(result.x.whole(), x[result.rows])


def test_copies_have_the_vector_of_the_first_that_has_one_and_other_vectors_of_theirs_are_reported(files):
    for copy, original in ((4, 1), (5, 1), (7, 2), (9, 8)):
        shutil.copy(files[original], files[copy])
    x, names = X.copy(), paths(files)
    x[4] = x[1]
    # The first of one content has no vector, and neither has any file of another one.
    names[2], names[8], names[9] = "gone", "gone too", "and this"
    observer = Noticing()
    with given(files, names, x) as found:
        result = embeddings(found, files, observer)
    (notice,) = observer.notices
    assert notice.startswith("1 picture has another embedding in ")
    assert "than the first file with the same content; that of the first is used for all" in notice
    assert sorted(result.bad) == [8, 9]
    expected = x.copy()
    expected[5], expected[2] = x[1], x[7]
    np.testing.assert_array_equal(result.x.whole(), expected[result.rows])


@pytest.mark.parametrize("order", ["C", "F"])
def test_vectors_that_are_not_held_are_read_from_the_file_and_nothing_is_left(files, tmp_path, monkeypatch, order):
    monkeypatch.setattr(CpuBackend, "holds", lambda *_: False)
    shutil.copy(files[1], files[4])
    rows = np.random.default_rng(2).permutation(N)
    with given(files, [paths(files)[at] for at in rows], np.asarray(X[rows].astype(np.float64), order=order)) as found:
        before = sorted(tmp_path.rglob("*"))
        result = embeddings(found, files, scratch=tmp_path / "scratch")
        assert isinstance(result.x, ChosenRows)
        expected = X.copy()
        expected[4] = X[1]
        np.testing.assert_array_equal(result.x.whole(), expected)
        np.testing.assert_array_equal(result.x.take(np.array([9, 4, 0])), expected[[9, 4, 0]])
        assert sorted(tmp_path.rglob("*")) == before
        # Without a place for them, there is no other way than to hold them.
        assert isinstance(embeddings(found, files).x, HeldRows if order == "F" else ChosenRows)


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no name fits": (
        {"names": [f"{number}.jpg" for number in range(N)]},
        DataError,
        r"names none of the pictures found \(12\); expected names relative to '.*/in', such as 'a/000\.png'; found "
        r"'0\.jpg'",
    ),
    "two rows of a picture": (
        {"names": ["a/001.png", "in/a/001.png", *map(str, range(N - 2))]},
        DataError,
        r"the rows 0 and 1 \(counted from 0\) are both of 'a/001\.png' and 'in/a/001\.png'",
    ),
    "nothing finite": ({"x": X * np.nan}, DataError, "expected finite numbers; each vector of a picture has one"),
    "too large for float32": ({"x": X.astype(np.float64) * 1e300}, DataError, "expected finite numbers"),
    "below 0": (
        {"scaling": "sqrt-l2"},
        ConfigError,
        r"--scaling sqrt-l2 takes square roots, and the embeddings .* below 0, such as -[\d.]+; use --scaling l2",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_vectors_that_cannot_be_used_are_refused(files, case):
    options, error, message = WRONG[case]
    with pytest.raises(error, match=message), given(files, **{"names": paths(files), **options}):
        pass


def test_numbers_below_0_of_no_picture_do_not_matter(files):
    x = np.abs(X)
    x[3] *= -1
    with given(files, [*paths(files)[:3], "gone", *paths(files)[4:]], x, scaling="sqrt-l2") as found:
        assert found.finite.all()


def test_a_job_that_is_asked_to_stop_ends_while_vectors_are_read(files):
    class Stopping(Observer):
        def stopping(self) -> bool:
            return True

    with pytest.raises(InterruptedJobError), given(files, paths(files), observer=Stopping()):
        pass

"""The files for TensorBoard's projector, read by the rules of its plugin.

`scripts/check_tensorboard.py` asks a real one.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from gpu_cluster.images.places import open_source
from gpu_cluster.images.thumbnails import Thumbnails
from gpu_cluster.report.exports.tensorboard import write_tensorboard
from tests.helpers import Noticing
from tests.report.exports.data import LABELS, NAMES, assigned, held, vectors


def config_of(folder: Path) -> dict[str, list[str]]:
    """Return the values of each field of the config, in whatever message it is."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"(\w+): (.+)", (folder / "projector_config.pbtxt").read_text()):
        found.setdefault(name, []).append(value.strip('"'))
    return found


def vectors_of(folder: Path) -> np.ndarray:
    """Read the vectors as the plugin does: as text, and as binary numbers if they are none."""
    config = config_of(folder)
    file = folder / config["tensor_path"][0]
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        return np.array([[float(cell) for cell in line.split("\t")] for line in lines], np.float32)
    except UnicodeDecodeError:
        return np.fromfile(file, np.float32).reshape([int(size) for size in config["tensor_shape"]])


def table_of(folder: Path) -> list[list[str]]:
    lines = (folder / "metadata.tsv").read_bytes().decode().split("\n")
    assert lines.pop() == ""
    return [line.split("\t") for line in lines]


def no_pictures(n: int) -> Thumbnails:
    return Thumbnails(None, [str(number) for number in range(n)])


def plain_pictures(folder: Path, sizes: list[tuple[int, int]]) -> tuple[list[str], Thumbnails]:
    """Write pictures of one colour each, which no other has."""
    names = [f"{number}.png" for number in range(len(sizes))]
    for number, (name, size) in enumerate(zip(names, sizes, strict=True)):
        Image.new("RGB", size, colour(number)).save(folder / name)
    return names, Thumbnails(open_source(folder), names)


def colour(number: int) -> tuple[int, int, int]:
    return (20 * number % 256, 255 - 20 * number % 256, 90)


def test_vectors_and_what_is_said_of_them_are_in_the_order_of_the_assignments(tmp_path):
    x, pictures = vectors(len(NAMES)), assigned()
    rows = write_tensorboard(tmp_path, pictures, held(x), no_pictures(len(NAMES)), Noticing())
    np.testing.assert_array_equal(rows, np.arange(len(NAMES)))
    np.testing.assert_array_equal(vectors_of(tmp_path), x)
    header, *lines = table_of(tmp_path)
    assert header == ["path", "cluster", "label", "distance", "silhouette", "is_medoid"]
    assert [line[1] for line in lines] == [str(cluster) for cluster in pictures["cluster"]]
    np.testing.assert_array_equal(np.array([line[3] for line in lines], np.float32), pictures["distance"])


def test_nothing_in_a_name_or_a_label_breaks_a_line(tmp_path):
    write_tensorboard(tmp_path, assigned(), held(vectors(len(NAMES))), no_pictures(len(NAMES)), Noticing())
    _header, *lines = table_of(tmp_path)
    assert {len(line) for line in lines} == {6}
    assert lines[3][0] == r"tab\there.png"
    assert lines[4][0] == r'"quoted", \u202eright.png'
    assert [line[2] for line in lines] == ["rose", "", r"tab\there", r"new\nline", "=1+1", "", LABELS[6]]


def test_columns_that_a_run_lacks_are_left_out(tmp_path):
    without = assigned(label=pd.Series([None] * len(NAMES), dtype="str"), silhouette=np.float32("nan"))
    write_tensorboard(tmp_path, without, held(vectors(len(NAMES))), no_pictures(len(NAMES)), Noticing())
    assert table_of(tmp_path)[0] == ["path", "cluster", "distance", "is_medoid"]


def test_groups_with_names_have_them_in_a_column(tmp_path):
    named = assigned(group="3 rose")
    write_tensorboard(tmp_path, named, held(vectors(len(NAMES))), no_pictures(len(NAMES)), Noticing())
    header, *lines = table_of(tmp_path)
    assert header[2] == "group"
    assert {line[2] for line in lines} == {"3 rose"}


@pytest.mark.parametrize("x", [np.zeros((7, 3)), np.arange(21).reshape(7, 3), np.full((7, 1), 0.1)], ids=str)
def test_vectors_that_could_be_taken_for_text_are_written_as_text(tmp_path, x):
    x = x.astype(np.float32)
    write_tensorboard(tmp_path, assigned(), held(x), no_pictures(len(NAMES)), Noticing())
    np.testing.assert_array_equal(vectors_of(tmp_path), x)


def test_the_sprite_has_the_pictures_line_by_line_each_in_the_middle_of_its_square(tmp_path):
    names, thumbnails = plain_pictures(tmp_path, [(200, 100), (30, 90), *[(64, 64)] * 9])
    (tmp_path / "out").mkdir()
    write_tensorboard(tmp_path / "out", assigned(names), held(vectors(11)), thumbnails, Noticing())
    config = config_of(tmp_path / "out")
    assert config["single_image_dim"] == ["64", "64"]
    with Image.open(tmp_path / "out" / config["image_path"][0]) as sprite:
        # 11 pictures need 4 squares a line, and the projector expects as many lines.
        assert sprite.size == (256, 256)
        pixels = np.asarray(sprite.convert("RGB")).astype(int)
    middles = [pixels[64 * (number // 4) + 32, 64 * (number % 4) + 32] for number in range(11)]
    np.testing.assert_allclose(middles, [colour(number) for number in range(11)], atol=6)
    # Above the wide picture, and beside the high one.
    np.testing.assert_allclose(pixels[[4, 32], [32, 64 + 4]], 255, atol=6)


def test_of_many_pictures_there_is_a_sample_always_the_same_which_is_said(tmp_path):
    names, thumbnails = plain_pictures(tmp_path, [(64, 64)] * 12)
    x, observer = vectors(12), Noticing()
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        rows = write_tensorboard(tmp_path / name, assigned(names), held(x), thumbnails, observer, most_points=5)
    np.testing.assert_array_equal(vectors_of(tmp_path / "one"), x[rows])
    assert [line[0] for line in table_of(tmp_path / "one")[1:]] == [names[row] for row in rows]
    with Image.open(tmp_path / "one" / "sprite.jpg") as sprite:
        np.testing.assert_allclose(np.asarray(sprite)[32, 32], colour(int(rows[0])), atol=6)
    for file in ("vectors.bytes", "metadata.tsv", "sprite.jpg", "projector_config.pbtxt"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()
    assert observer.notices[0].startswith("TensorBoard gets a random sample of 5 of 12 pictures")


def test_without_any_picture_there_is_no_sprite_and_a_notice(tmp_path):
    observer = Noticing()
    write_tensorboard(tmp_path, assigned(), held(vectors(len(NAMES))), no_pictures(len(NAMES)), observer)
    assert not (tmp_path / "sprite.jpg").exists()
    assert "sprite" not in (tmp_path / "projector_config.pbtxt").read_text()
    assert observer.notices == ["None of the pictures can be found any more: TensorBoard shows points without pictures"]


def test_a_sprite_of_the_most_points_is_within_the_limit_of_the_projector():
    from gpu_cluster.report.exports.tensorboard import MOST_POINTS, MOST_SPRITE_SIDE, SIDE

    assert np.ceil(np.sqrt(MOST_POINTS)) * SIDE <= MOST_SPRITE_SIDE == 8192

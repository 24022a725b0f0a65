"""The square that the network sees: cropped or stretched, resized, and the same by every engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from gpu_cluster.backend import CpuBackend
from gpu_cluster.config import EmbedConfig
from gpu_cluster.embedding.engines import TensorFlowEngine, tensorflow_input
from gpu_cluster.embedding.extractors import Extractor
from gpu_cluster.images import decode
from gpu_cluster.images.square import at_least, nearest_indices, to_square
from tests.helpers import picture, scanned_pictures

# Both engines have the same filter, and add up in another order: 0.003 levels were measured. Pillow's averages whole
# blocks first where that leaves four times the side or more: 1.8 levels were measured, in noise.
SAME, WITH_BLOCKS = 0.01, 3.0


def engine(**options: Any) -> TensorFlowEngine:
    return TensorFlowEngine(CpuBackend(), Extractor({}, 1, lambda _precision: tf.identity), EmbedConfig(**options))


def photo(size: tuple[int, int]) -> Image.Image:
    """Return a picture with detail at every scale, as photos have it."""
    found = np.asarray(picture(1, size), float)
    random = np.random.default_rng(0)
    for scale in (1, 2, 4, 8, 16):
        coarse = random.normal(0, 6, (size[1] // scale + 1, size[0] // scale + 1, 3))
        found = found + np.kron(coarse, np.ones((scale, scale, 1)))[: size[1], : size[0]]
    return Image.fromarray(found.clip(0, 255).astype(np.uint8))


def differences(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    found = np.abs(one - other)
    return float(found.mean()), float(found.max())


@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (64, 64), (50, 31), (100, 75), (333, 250)])
def test_both_engines_resize_to_the_same_pixels(size, fit):
    config = EmbedConfig(image_size=64, fit=fit)
    pixels = np.asarray(photo(size))
    mean, most = differences(engine(image_size=64, fit=fit).square(pixels), to_square(pixels, config))
    assert mean < SAME
    assert most <= SAME


def test_a_large_picture_is_averaged_over_blocks_and_stays_the_same_but_for_a_few_levels():
    pixels = np.asarray(photo((700, 600)))
    mean, most = differences(engine(image_size=64).square(pixels), to_square(pixels, EmbedConfig(image_size=64)))
    assert mean < 0.5
    assert SAME < most <= WITH_BLOCKS


@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_nearest_takes_the_same_pixels_in_both_engines(fit):
    pixels = np.asarray(photo((301, 200)))
    given: dict[str, Any] = {"image_size": 64, "fit": fit, "resize": "nearest"}
    found = to_square(pixels, EmbedConfig(**given))
    np.testing.assert_array_equal(found, engine(**given).square(pixels))
    short = pixels[:, 50:250] if fit == "crop" else pixels
    expected = Image.fromarray(short).resize((64, 64), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(found, np.asarray(expected))


def test_nearest_needs_every_pixel_of_a_picture():
    assert at_least(EmbedConfig(resize="nearest")) is None
    assert at_least(EmbedConfig(image_size=64)) == 64


def test_nearest_indices_are_those_of_pillow():
    for length in [*range(1, 700), 1024, 4032, 6000]:
        row = Image.fromarray(np.arange(length, dtype=np.int32)[None])
        pillow = np.asarray(row.resize((224, 1), Image.Resampling.NEAREST))[0]
        np.testing.assert_array_equal(nearest_indices(length, 224), pillow, err_msg=f"length {length}")


def test_crop_takes_the_middle_and_stretch_the_whole():
    stripes = np.zeros((64, 192, 3), np.uint8)
    stripes[:, 64:128] = 200
    assert (to_square(stripes, EmbedConfig(image_size=64, fit="crop")) == 200).all()
    stretched = to_square(stripes, EmbedConfig(image_size=64, fit="stretch"))
    assert [stretched[32, column, 0] for column in (5, 32, 58)] == [0, 200, 0]


def test_a_picture_that_was_turned_upright_is_resized_as_it_is_seen():
    pixels = np.asarray(photo((100, 75)))
    turned = pixels.swapaxes(0, 1)[::-1]
    config = EmbedConfig(image_size=64)
    np.testing.assert_array_equal(to_square(turned, config), to_square(np.ascontiguousarray(turned), config))


# Through the files: what tf.data gives, and what an engine without TensorFlow makes of the same file

KINDS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "progressive": {"progressive": True},
    "without subsampling": {"subsampling": 0},
    "optimised": {"optimize": True, "quality": 92},
}


def both(files: Sequence[Path], config: EmbedConfig) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the square of each file from tf.data, and from Pillow."""
    dataset = tensorflow_input.batches(scanned_pictures(files), [config], batch_size=len(files))
    assert dataset is not None
    ((positions, pixels),) = dataset
    assert positions.numpy().tolist() == list(range(len(files)))
    for file, tensorflow in zip(files, pixels.numpy(), strict=True):
        with file.open("rb") as stream:
            yield tensorflow, to_square(decode.decode(stream, file.suffix, at_least=at_least(config)), config)


def written(folder: Path, sizes: Sequence[tuple[int, int]], **options: Any) -> list[Path]:
    files = [folder / f"{number}.jpg" for number in range(len(sizes))]
    for size, file in zip(sizes, files, strict=True):
        photo(size).save(file, **options)
    return files


@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_of_any_kind_and_size_gives_both_engines_the_same_square(tmp_path, kind):
    # On the short side 24, 12, 8, 3, 1.9 times the square: reduced by 8, 4, 4, 1 and 1 while they are decoded.
    sizes = [(1030, 771), (515, 400), (257, 258), (128, 97), (80, 61)]
    for tensorflow, pillow in both(written(tmp_path, sizes, **KINDS[kind]), EmbedConfig(image_size=32)):
        mean, most = differences(tensorflow, pillow)
        assert mean < SAME
        assert most <= SAME


def test_a_reduced_jpeg_is_upright_in_both_engines(tmp_path):
    files = [tmp_path / f"{orientation}.jpg" for orientation in range(1, 9)]
    config = EmbedConfig(image_size=32)
    wholes = []
    for orientation, file in enumerate(files, 1):
        exif = Image.Exif()
        exif[0x0112] = orientation
        photo((301, 203)).save(file, exif=exif, quality=95)
        with file.open("rb") as stream:
            wholes.append(to_square(decode.decode(stream, ".jpg"), config))
    for (tensorflow, pillow), whole in zip(both(files, config), wholes, strict=True):
        assert differences(tensorflow, pillow)[1] <= SAME
        # The crop may begin up to half a pixel of the reduced picture elsewhere; the turned pictures are 20 apart.
        assert differences(pillow, whole)[0] < 3
    turned = [differences(one, other)[0] for one, other in pairwise(wholes)]
    assert min(turned) > 10


def test_the_square_of_a_file_that_is_no_jpeg_is_the_same_in_both_engines(tmp_path):
    photo((130, 90)).save(tmp_path / "a.png")
    ((tensorflow, pillow),) = both([tmp_path / "a.png"], EmbedConfig(image_size=64))
    assert differences(tensorflow, pillow)[1] <= SAME


def test_nearest_gives_the_same_pixels_of_a_large_jpeg_in_both_engines(tmp_path):
    (file,) = written(tmp_path, [(1030, 771)])
    ((tensorflow, pillow),) = both([file], EmbedConfig(image_size=32, resize="nearest", fit="stretch"))
    np.testing.assert_array_equal(tensorflow, pillow)
    with Image.open(file) as image:
        np.testing.assert_array_equal(pillow, np.asarray(image.resize((32, 32), Image.Resampling.NEAREST)))

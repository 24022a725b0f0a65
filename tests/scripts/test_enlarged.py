"""Enlarged photos: of the size asked for, noisy, still the same picture, and the same each time."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from scripts.enlarged import Enlarger, size_of
from tests.helpers import picture


@pytest.fixture(scope="module")
def enlarger() -> Enlarger:
    return Enlarger()


def test_a_photo_becomes_as_large_as_asked_with_its_ratio_of_sides():
    assert size_of(picture(0, (320, 240)), 12) == (4000, 3000)


def test_enlarged_photos_have_noise_of_their_own_and_are_the_same_each_time(enlarger):
    photo = picture(0)
    first, second = (np.asarray(enlarger.enlarge(photo, (480, 400), number), float) for number in (0, 1))
    np.testing.assert_array_equal(first, np.asarray(enlarger.enlarge(photo, (480, 400), 0)))
    plain = np.asarray(photo.resize((480, 400), Image.Resampling.LANCZOS), float)
    # A standard deviation of 6 grey levels, less where it is cut at black and white; that of two noises is larger.
    assert 4 < np.std(first - plain) < 7
    assert np.std(first - second) > np.std(first - plain)
    assert abs((first - plain).mean()) < 1

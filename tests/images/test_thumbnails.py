"""Small copies hold the pixels of their originals, and nothing else of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from gpu_cluster.images.places import open_source
from gpu_cluster.images.thumbnails import Thumbnails, small
from tests.helpers import picture

SECRET = b"SECRET"


def with_secrets(folder: Path) -> list[str]:
    """Write pictures that say more than their pixels, and return their names."""
    exif = Image.Exif()
    exif[0x010F] = SECRET.decode()
    exif[0x8825] = {1: "N", 2: (52.0, 31.0, 12.0), 29: SECRET.decode()}
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", SECRET.decode())
    more: dict[str, Any] = {"exif": exif, "icc_profile": SECRET * 30}
    picture(1).save(folder / "a.jpg", comment=SECRET, xmp=SECRET, **more)
    picture(2).save(folder / "b.png", pnginfo=text, **more)
    picture(3).save(folder / "c.webp", xmp=SECRET, lossless=True, **more)
    names = ["a.jpg", "b.png", "c.webp"]
    assert all(SECRET in (folder / name).read_bytes() for name in names)
    return names


def test_copies_hold_only_pixels(tmp_path):
    names = with_secrets(tmp_path)
    thumbnails = Thumbnails(open_source(tmp_path), names)
    thumbnails.make(range(3), 40)
    copies = thumbnails.copies()
    assert [SECRET in copies[name] for name in names] == [False] * 3
    for name in names:
        found = Image.open(io.BytesIO(copies[name]))
        assert {key for key in found.info if not str(key).startswith("jfif")} == set()
        # The profile is broken and not used: the numbers are those that the network sees, but for JPEG's rounding.
        there = small(open_source(tmp_path), name, 40)
        assert there is not None
        assert np.abs(np.asarray(found, int) - np.asarray(there, int)).mean() < 4
    assert all("SECRET" not in uri for uri in thumbnails.sheets([0, 1, 2], 40).uris)


def jpeg(**more) -> bytes:
    stream = io.BytesIO()
    picture(1).save(stream, "jpeg", quality=75, **more)
    return stream.getvalue()


@pytest.mark.parametrize(
    "kept",
    [jpeg(comment=SECRET), jpeg(xmp=SECRET), jpeg(icc_profile=SECRET), jpeg() + SECRET, jpeg() + SECRET + b"\xff\xd9"],
    ids=["comment", "XMP", "profile", "after the end", "between two ends"],
)
def test_copies_of_an_earlier_version_are_cleaned(tmp_path, kept):
    thumbnails = Thumbnails(open_source(tmp_path), ["a.jpg"], kept={"a.jpg": kept})
    thumbnails.make([0], 40)
    found = thumbnails.copies()["a.jpg"]
    assert SECRET not in found
    assert np.abs(np.asarray(Image.open(io.BytesIO(found)), int) - np.asarray(picture(1), int)).mean() < 6


def test_copies_that_hold_only_pixels_are_kept_to_the_byte(tmp_path):
    with_secrets(tmp_path)
    first = Thumbnails(open_source(tmp_path), ["a.jpg"])
    first.make([0], 40)
    again = Thumbnails(open_source(tmp_path / "gone"), ["a.jpg"], kept=first.copies())
    again.make([0], 40)
    assert again.copies() == first.copies()

"""A folder as a phone and a camera leave it: HEIC, RAW, and JPEG and WebP with a Display P3 profile."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pi_heif
from PIL import Image

import gpu_cluster
from tests import colour_profiles as made
from tests.helpers import FLOWERS, TINY_OPTIONS, called, decoded
from tests.images.test_extras import PHONE
from tests.raw_files import dng

P3 = made.p3_profile()


def flower(number: int) -> Image.Image:
    return Image.open(FLOWERS / f"{number:04d}.png").convert("RGB")


def write_folder(folder: Path) -> dict[str, Image.Image]:
    """Write a different flower in each format; return what decoders that know no profiles make of each."""
    folder.mkdir()
    shutil.copy(PHONE / "p3.heic", folder / "a.heic")
    flower(60).save(folder / "b.jpg", quality=95, icc_profile=P3)
    flower(100).save(folder / "c.webp", lossless=True, icc_profile=P3)
    stream = io.BytesIO()
    flower(140).save(stream, "jpeg", quality=95, icc_profile=P3)
    (folder / "d.dng").write_bytes(dng(stream.getvalue(), (128, 128)))
    flower(180).save(folder / "e.jpg", quality=95)
    stored = {name: Image.open(folder / name) for name in ("b.jpg", "c.webp", "e.jpg")}
    heic = pi_heif.open_heif(folder / "a.heic").to_pillow()
    return {**stored, "a.heic": heic, "d.dng": Image.open(stream)}


def test_every_picture_of_a_phone_has_its_row_and_its_colours(tmp_path):
    stored = write_folder(tmp_path / "in")
    (tmp_path / "expected").mkdir()
    for name, image in stored.items():
        pixels = np.asarray(image.convert("RGB"))
        expected = pixels if name == "e.jpg" else made.in_srgb(pixels, made.P3, made.srgb_curve)
        differences = np.abs(decoded(tmp_path / "in" / name) - expected)
        # To round to whole levels takes up to half a level, and all of that where one colour fills the picture.
        assert differences.max() <= 1, name
        assert differences.mean() <= 0.5, name
        Image.fromarray(np.round(expected).astype(np.uint8)).save(tmp_path / "expected" / f"{name}.png")
    found, right = (
        gpu_cluster.embed(sorted((tmp_path / folder).iterdir()), image_size=64, no_cache=True)
        for folder in ("in", "expected")
    )
    lengths = np.linalg.norm(found, axis=1)[:, None] * np.linalg.norm(right, axis=1)
    cosines = found @ right.T / lengths
    # A level more or less changes little, and another flower much.
    assert np.diag(cosines).min() > 0.999
    assert cosines[~np.eye(len(stored), dtype=bool)].max() < 0.7


def test_the_results_of_a_run_name_the_profiles(tmp_path):
    write_folder(tmp_path / "in")
    done = called("run", tmp_path / "in", *TINY_OPTIONS, out=tmp_path / "out")
    assert done.code == 0, done.err
    manifest = pd.read_parquet(tmp_path / "out" / "manifest.parquet")
    assert manifest["format"].tolist() == ["HEIF", "JPEG", "WEBP", "DNG", "JPEG"]
    assert manifest["status"].tolist() == ["ok"] * 5
    name = manifest["profile"][0]
    assert name.startswith("Display P3 ")
    assert manifest["profile"].tolist() == [name, name, name, name, ""]
    assert len(done.table("assignments.csv")) == 5

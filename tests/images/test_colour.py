"""Embedded colour profiles: what the scan says of them, and the colours, against a conversion in NumPy."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from gpu_cluster.config import EmbedConfig
from gpu_cluster.embedding.engines import pillow_input, tensorflow_input
from gpu_cluster.images import decoders, icc
from gpu_cluster.images.places import open_source
from gpu_cluster.images.thumbnails import small
from tests import colour_profiles as made
from tests.helpers import decoded, picture, scanned, scanned_pictures

P3 = made.p3_profile()
ADOBE = made.rgb_profile(made.ADOBE, made.gamma_curve(563 / 256), "Adobe RGB (1998)", version=2)
GREY = made.grey_profile(made.gamma_curve(1.8), "Grey 1.8")
# Little CMS computes in whole numbers, and both are rounded to whole levels once.
MOST_LEVELS, MEAN_LEVELS = 1.0, 0.3


def of_srgb(curve: bytes, version: int = 2) -> bytes:
    return made.rgb_profile(made.SRGB, curve, "sRGB IEC61966-2.1", version=version)


SRGB_AS_PROGRAMS_WRITE_IT: Mapping[str, bytes] = {
    "a table of 1024": of_srgb(made.table_of(made.srgb_curve, 1024)),
    "a table of 4096": of_srgb(made.table_of(made.srgb_curve, 4096)),
    "a small table": of_srgb(made.table_of(made.srgb_curve, 42)),
    "the formula": of_srgb(made.parametric_srgb(), version=4),
    "Little CMS's own": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
}


@pytest.mark.parametrize("profile", SRGB_AS_PROGRAMS_WRITE_IT.values(), ids=SRGB_AS_PROGRAMS_WRITE_IT)
def test_every_way_to_write_srgb_is_srgb(profile):
    assert icc.described(profile, icc.RGB) == "sRGB"


@pytest.mark.parametrize(
    ("profile", "name"),
    [
        (P3, "Display P3"),
        (ADOBE, "Adobe RGB (1998)"),
        (of_srgb(made.gamma_curve(2.2)), "sRGB IEC61966-2.1"),
        (made.rgb_profile(made.P3, made.parametric_srgb(), "\x1b[31m\n=cmd"), "31m cmd"),
        (made.rgb_profile(made.P3, made.parametric_srgb(), ""), "unnamed"),
    ],
    ids=["P3", "Adobe", "the colourants of sRGB and another curve", "control characters", "no name"],
)
def test_any_other_profile_is_told_by_its_name_and_digest(profile, name):
    found = icc.described(profile, icc.RGB)
    assert found.rpartition(" ")[0] == name
    assert found == icc.described(profile, icc.RGB)
    assert found != icc.described(profile + b"\0", icc.RGB)


def test_a_profile_for_other_kinds_of_colours_or_of_no_kind_is_invalid():
    assert icc.described(P3, icc.GREY) == "invalid"
    assert icc.described(P3[:100], icc.RGB) == "invalid"
    assert icc.described(bytes(9 << 20), icc.RGB) == "invalid"
    assert icc.described(P3, None) == "invalid"


# The colours


def colours() -> np.ndarray:
    """Return (72, 64, 3) uint8: greys, and colours of all kinds."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (72, 64, 3), dtype=np.uint8)
    pixels[:4] = np.arange(256, dtype=np.uint8).reshape(4, 64, 1)
    return pixels


def saved(file: Path, pixels: np.ndarray, mode: str, profile: bytes, **options: Any) -> Path:
    Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes()).save(file, icc_profile=profile, **options)
    return file


LOSSLESS: Mapping[str, dict[str, Any]] = {"a.png": {}, "a.tif": {}, "a.webp": {"lossless": True}}


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize(
    ("profile", "space", "curve"), [(P3, made.P3, made.srgb_curve), (ADOBE, made.ADOBE, made.gamma(563 / 256))]
)
def test_the_colours_are_those_of_a_conversion_in_numpy(tmp_path, name, profile, space, curve):
    file = saved(tmp_path / name, colours(), "RGB", profile, **LOSSLESS[name])
    differences = np.abs(decoded(file) - made.in_srgb(colours(), space, curve))
    assert differences.max() <= MOST_LEVELS
    assert differences.mean() <= MEAN_LEVELS


def test_greys_are_converted_by_the_curve_of_a_grey_profile(tmp_path):
    greys = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = made.as_encoded(made.gamma(1.8)(greys / 255))
    file = saved(tmp_path / "a.png", greys, "L", GREY)
    differences = np.abs(decoded(file) - expected[..., None])
    # Near black, sRGB's curve is so steep that a step of Little CMS's 16 bits is a part of a level.
    assert differences.max() <= 1.5
    assert differences.mean() <= MEAN_LEVELS


def test_inks_are_converted_by_the_table_of_a_press(tmp_path):
    corners = np.full((2, 2, 2, 2, 3), [10.0, 0, 0])
    corners[0, 0, 0, 0], corners[1, 0, 0, 0], corners[0, 1, 0, 0] = [100, 0, 0], [55, -37, -50], [48, 74, -3]
    # Little CMS's black point is that of this ink.
    corners[0, 0, 0, 1] = corners[1, 1, 1, 1] = [0, 0, 0]
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 0, 0], [0, 0, 0, 255]]], np.uint8)
    file = saved(tmp_path / "a.tif", inks, "CMYK", made.cmyk_profile(corners, "a press"))
    expected = np.array([made.lab_in_srgb(lab) for lab in ([100, 0, 0], [55, -37, -50], [48, 74, -3], [0, 0, 0])])
    # L*a*b* in steps of whole numbers is what the table holds.
    assert np.abs(decoded(file)[0] - expected).max() <= 2


def test_a_transparent_part_is_put_on_the_white_of_srgb(tmp_path):
    pixels = np.concatenate([colours(), np.full((72, 64, 1), 128, np.uint8)], axis=-1)
    file = saved(tmp_path / "a.png", pixels, "RGBA", P3)
    opaque = made.in_srgb(colours(), made.P3, made.srgb_curve)
    assert np.abs(decoded(file) - (opaque * 128 + 255 * 127) / 255).max() <= MOST_LEVELS


def test_palettes_and_a_transparent_colour_are_converted_too(tmp_path):
    two = np.array([[[200, 30, 40], [20, 180, 90]]], np.uint8)
    expected = made.in_srgb(two, made.P3, made.srgb_curve)
    Image.fromarray(two).quantize(2).save(tmp_path / "palette.png", icc_profile=P3)
    Image.fromarray(two).save(tmp_path / "key.png", icc_profile=P3, transparency=(20, 180, 90))
    assert np.abs(decoded(tmp_path / "palette.png") - expected).max() <= MOST_LEVELS
    assert np.abs(decoded(tmp_path / "key.png")[0, 0] - expected[0, 0]).max() <= MOST_LEVELS
    assert decoded(tmp_path / "key.png")[0, 1].tolist() == [255, 255, 255]


def test_a_picture_of_many_bands_is_converted_in_each(tmp_path):
    # A band has about a million pixels.
    large = np.tile(colours(), (20, 20, 1))
    file = saved(tmp_path / "a.png", large, "RGB", P3, compress_level=0)
    expected = np.tile(made.in_srgb(colours(), made.P3, made.srgb_curve), (20, 20, 1))
    assert np.abs(decoded(file) - expected).max() <= MOST_LEVELS


# The job


def write_all(folder: Path) -> list[Path]:
    """Write pictures with every kind of profile, in the order of their names."""
    content = {
        "broken.jpg": P3[:200] + bytes(len(P3) - 200),
        "for grey.jpg": GREY,
        "none.jpg": b"",
        "p3.jpg": P3,
        "p3.png": P3,
        "srgb.jpg": SRGB_AS_PROGRAMS_WRITE_IT["Little CMS's own"],
    }
    for name, profile in content.items():
        more: dict[str, Any] = {"icc_profile": profile} if profile else {}
        picture(0).save(folder / name, **more)
    return [folder / name for name in sorted(content)]


def test_the_scan_records_the_profile_and_one_that_cannot_be_used_is_passed_over(tmp_path):
    files = write_all(tmp_path)
    manifest = scanned(files, None)
    p3 = icc.described(P3, icc.RGB)
    assert manifest.facts.column("profile") == ["invalid", "invalid", "", p3, p3, "sRGB"]
    assert manifest.bad == {}
    by_name = {file.name: decoded(file) for file in files}
    for name in ("broken.jpg", "for grey.jpg", "srgb.jpg"):
        np.testing.assert_array_equal(by_name[name], by_name["none.jpg"])
    assert (by_name["p3.jpg"] != by_name["none.jpg"]).any()


def test_each_decoder_of_the_job_leaves_pictures_to_be_converted_to_the_one_that_converts(tmp_path):
    pictures = scanned_pictures(write_all(tmp_path))
    by_pillow = pillow_input.batches(pictures, [EmbedConfig(image_size=32)], batch_size=8)
    assert [at for positions, _pixels in by_pillow for at in positions.tolist()] == [0, 1, 2, 5]
    kinds = [tensorflow_input.decoder_of(one.facts) for one in pictures]
    assert [at for at, kind in enumerate(kinds) if kind is not None] == [0, 1, 2, 5]


def test_a_small_copy_has_the_colours_of_srgb(tmp_path):
    file = saved(tmp_path / "a.png", np.full((64, 64, 3), [200, 80, 60], np.uint8), "RGB", P3)
    copy = small(open_source(tmp_path), file.name, 32)
    assert copy is not None
    expected = made.in_srgb(np.array([[200, 80, 60]], np.uint8), made.P3, made.srgb_curve)
    assert np.abs(np.asarray(copy) - expected).max() <= MOST_LEVELS


IN_A_JOB = """
import json, sys
from pathlib import Path
from gpu_cluster.config import PicturesConfig
from gpu_cluster.events import Observer
from gpu_cluster.images.discover import discover
from gpu_cluster.images.scan import scan
from gpu_cluster.images.places import open_source
from gpu_cluster.images.thumbnails import small
config = PicturesConfig(images=[Path(sys.argv[1])])
manifest = discover(config, Observer())
source = open_source(manifest.root)
profiles = scan(manifest, source, config, Observer()).facts.column("profile")
assert all(small(source, path, 32) for path in manifest.paths)
print(json.dumps([profiles, sorted(name for name in sys.modules if "imagingcms" in name)]))
"""


@pytest.mark.slow
def test_the_job_itself_never_gives_a_profile_to_little_cms(tmp_path):
    files = write_all(tmp_path)
    command = [sys.executable, "-c", IN_A_JOB, os.fspath(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    profiles, loaded = json.loads(done.stdout)
    assert profiles == scanned(files, None).facts.column("profile")
    assert loaded == []


def mutated(profile: bytes, seed: int) -> bytes:
    """Return a profile in which a few bytes behind the marks of its header have changed, or which ends too early."""
    random = np.random.default_rng(seed)
    content = bytearray(profile)
    for at in random.integers(40, len(content), 1 + seed % 8):
        content[at] = random.integers(0, 256)
    return bytes(content[: random.integers(132, len(content)) if seed % 5 == 0 else None])


@pytest.mark.parametrize("of", [P3, of_srgb(made.table_of(made.srgb_curve, 64))], ids=["P3", "sRGB"])
def test_no_broken_profile_ends_the_job_or_hides_its_picture(of):
    assert len({icc.described(mutated(of, seed), icc.RGB) for seed in range(700)}) > 50
    for seed in range(0, 60, 4):
        stream = io.BytesIO()
        picture(0).save(stream, "png", icc_profile=mutated(of, seed))
        stream.seek(0)
        found = decoders.current().header(stream, ".png")
        stream.seek(0)
        assert decoders.current().pixels(stream, ".png", found).shape == (40, 48, 3)

"""HEIC and camera RAW: their pixels, how they are turned, and what is said where a package is missing.

`phone/p3.heic` and `phone/turned.heic` are two of the drawn flowers, encoded by pillow-heif 1.8.1: one with a Display
P3 profile, the other 128 x 80 pixels that its boxes, and its Exif block too, turn by a quarter to the right. The RAWs
are made by `tests.raw_files`; LibRaw reads them, but no camera has written them.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pi_heif
import pytest
from PIL import Image

from gpu_cluster.config import DecodingConfig
from gpu_cluster.events import Observer
from gpu_cluster.images import colour, decoders, formats
from gpu_cluster.images.decoders import UndecodableError
from gpu_cluster.store.store import Store
from tests import colour_profiles as made
from tests.helpers import FLOWERS, age, decoded, picture, scanned, shards_of
from tests.raw_files import dng

PHONE = Path(__file__).parent / "phone"
SIZE = (160, 120)


def jpeg(image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "jpeg", quality=95, **options)
    return stream.getvalue()


def preview(**options: Any) -> bytes:
    return jpeg(picture(0, SIZE), **options)


def raw(folder: Path, content: bytes, name: str = "a.dng") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def pixels_of(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def facts_of(file: Path) -> Any:
    return scanned([file], None).files[0]


# HEIC


def test_a_heic_is_read_and_its_colours_are_converted():
    found = facts_of(PHONE / "p3.heic")
    assert (found.format, found.mode, found.width, found.height, found.reason) == ("HEIF", "RGB", 128, 128, None)
    assert found.profile.startswith("Display P3 ")
    stored = np.asarray(pi_heif.open_heif(PHONE / "p3.heic").to_pillow())
    differences = np.abs(decoded(PHONE / "p3.heic") - made.in_srgb(stored, made.P3, made.srgb_curve))
    assert differences.max() <= 1
    assert differences.mean() <= 0.3


def test_a_heic_is_turned_once_by_its_boxes_and_not_by_its_exif_block_too():
    flower = np.asarray(Image.open(FLOWERS / "0001.png").convert("RGB"))[:80]
    found = decoded(PHONE / "turned.heic")
    assert found.shape == (128, 80, 3)
    # HEVC is lossy; turned in another way, the mean difference is above 30 levels.
    assert np.abs(found - np.rot90(flower, -1).astype(int)).mean() < 5
    assert facts_of(PHONE / "turned.heic").orientation == 1


@pytest.mark.parametrize("n_bytes", [300, 6_000])
def test_a_heic_that_ends_too_early_is_named_as_what_it_is(n_bytes):
    stream = io.BytesIO((PHONE / "p3.heic").read_bytes()[:n_bytes])

    def read() -> None:
        header = decoders.current().header(stream, ".heic")
        stream.seek(0)
        decoders.current().pixels(stream, ".heic", header)

    with pytest.raises(UndecodableError, match=r"HEIC.* is damaged or cut short") as error:
        read()
    assert error.value.lasting


# RAW


@pytest.mark.parametrize("order", ["<", ">"])
def test_of_a_raw_the_preview_is_used(tmp_path, order):
    file = raw(tmp_path, dng(preview(), SIZE, order=order))
    found = facts_of(file)
    assert (found.format, found.width, found.height, found.profile) == ("DNG", *SIZE, "")
    np.testing.assert_array_equal(decoded(file), pixels_of(preview()))
    assert colour.conversion_of(found) == "preview, v1"


def test_a_raw_that_is_no_dng_is_known_by_its_sensor_and_not_by_its_name(tmp_path):
    file = raw(tmp_path, dng(preview(), SIZE, is_dng=False, make=b"SONY"), "a.tif")
    assert facts_of(file).format == "RAW"
    np.testing.assert_array_equal(decoded(file), pixels_of(preview()))


def test_a_preview_of_pixels_is_used_too(tmp_path):
    pixels = np.asarray(picture(1, SIZE))
    file = raw(tmp_path, dng(pixels.tobytes(), SIZE))
    np.testing.assert_array_equal(decoded(file), pixels)


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, -1), (8, 1)])
def test_a_preview_is_turned_as_the_raw_is(tmp_path, orientation, turns):
    file = raw(tmp_path, dng(preview(), SIZE, orientation=orientation))
    np.testing.assert_array_equal(decoded(file), np.rot90(pixels_of(preview()), turns))
    assert facts_of(file).orientation == orientation


def test_a_preview_that_says_how_it_is_turned_is_turned_in_that_way(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    content = preview(exif=exif)
    # As cameras write it: the Exif block comes first. Before anything else, LibRaw puts one of its own.
    content = content[:2] + content[content.index(b"\xff\xe1") :]
    file = raw(tmp_path, dng(content, SIZE, orientation=6))
    np.testing.assert_array_equal(decoded(file), np.rot90(pixels_of(preview()), 1))


def test_the_colours_of_a_preview_are_converted(tmp_path):
    content = preview(icc_profile=made.p3_profile())
    file = raw(tmp_path, dng(content, SIZE))
    expected = made.in_srgb(pixels_of(content), made.P3, made.srgb_curve)
    assert np.abs(decoded(file) - expected).max() <= 1
    done = colour.conversion_of(facts_of(file))
    assert done is not None
    assert done.startswith("preview, Display P3 ")
    assert done.endswith(" -> sRGB, v1")


def test_a_raw_without_a_preview_or_without_an_end_has_a_reason(tmp_path):
    raw(tmp_path, dng(None, SIZE), "none.dng")
    raw(tmp_path, dng(preview(), SIZE)[:700], "cut.dng")
    raw(tmp_path, b"FUJIFILMCCD-RAW 0201" + bytes(500), "empty.raf")
    manifest = scanned([tmp_path / name for name in ("cut.dng", "empty.raf", "none.dng")], None)
    assert manifest.bad[2] == "camera RAW (DNG) without a preview that can be read; convert it to JPEG or PNG"
    assert manifest.bad[1].startswith("camera RAW (RAF) that is damaged, or of a kind that this LibRaw does not know")
    assert "camera RAW (DNG)" in manifest.bad[0]


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"FUJIFILMCCD-RAW 0201FF", "RAF"),
        (b"IIRO\x08\0\0\0", "ORF"),
        (b"IIU\0\x08\0\0\0", "RW2"),
        (b"II*\0\x10\0\0\0CR\2\0", "CR2"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1", "CR3"),
    ],
)
def test_kinds_of_raw_are_recognised_by_their_first_bytes(head, kind):
    assert formats.raw_format_of(io.BytesIO(head.ljust(64, b"\0"))) == kind


def test_a_tiff_of_another_kind_is_no_raw_however_its_directories_are_linked():
    stream = io.BytesIO()
    picture(0).save(stream, "tiff")
    assert formats.raw_format_of(stream) is None
    # A directory that is its own next one, and one that lies behind the end.
    for place in (8, 1 << 31):
        loop = b"II*\0" + place.to_bytes(4, "little") + b"\0\0" + place.to_bytes(4, "little")
        assert formats.raw_format_of(io.BytesIO(loop)) is None


def test_bytes_that_change_in_a_raw_never_end_the_search_with_an_error():
    content, random = dng(preview(), SIZE), np.random.default_rng(0)
    for _ in range(2_000):
        changed = bytearray(content[:1200])
        for at in random.integers(4, 700, 6):
            changed[at] = random.integers(0, 256)
        assert formats.raw_format_of(io.BytesIO(bytes(changed))) in (None, "DNG", "RAW", "CR2")


# Without the packages


@pytest.fixture
def without_extras(tmp_path_factory, monkeypatch) -> None:
    """In the processes that decode, neither package can be imported."""
    folder = tmp_path_factory.mktemp("packages")
    for name in ("pi_heif", "rawpy"):
        (folder / f"{name}.py").write_text("raise ImportError")
    monkeypatch.syspath_prepend(folder)


def of_both(folder: Path) -> list[Path]:
    (folder / "a.heic").write_bytes((PHONE / "p3.heic").read_bytes())
    return age([folder / "a.heic", raw(folder, dng(preview(), SIZE), "b.dng")])


def test_a_file_that_needs_an_extra_says_which(tmp_path, without_extras):
    with decoders.limited(DecodingConfig()):
        manifest = scanned(of_both(tmp_path), None)
    assert manifest.bad == {
        0: "HEIC, which needs the extra heic: from a checkout, pip install '.[heic]'",
        1: "camera RAW (DNG), which needs the extra raw: from a checkout, pip install '.[raw]'",
    }


def test_a_file_that_needed_an_extra_is_good_when_it_is_installed(tmp_path, root, request, monkeypatch):
    files, store = of_both(tmp_path), Store(root, Observer())
    request.getfixturevalue("without_extras")
    with decoders.limited(DecodingConfig()):
        assert set(scanned(files, store).bad) == {0, 1}
    monkeypatch.undo()
    assert shards_of(root, "scans") == []
    with decoders.limited(DecodingConfig()):
        assert scanned(files, store).bad == {}

"""Every kind of picture file: right side up, right colours, or bad with a true reason, by both decoders alike."""

from __future__ import annotations

import io
import os
import re
import socket
import struct
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from gpu_cluster.backend import CpuBackend
from gpu_cluster.config import EmbedConfig, InputConfig, StoreConfig
from gpu_cluster.embedding.embed import embed
from gpu_cluster.embedding.engines import TensorFlowEngine, choose_engine, tensorflow_input
from gpu_cluster.embedding.extractors import Extractor
from gpu_cluster.embedding.shards import embed_shard
from gpu_cluster.events import Observer
from gpu_cluster.images import decode as pictures
from gpu_cluster.images import decoders
from gpu_cluster.images.discover import discover
from gpu_cluster.images.places import open_source
from gpu_cluster.images.scan import scan
from gpu_cluster.manifest import Manifest
from tests.helpers import SMALL_SIDE, decoded, network, photos, picture, scanned_pictures, write_pictures

Pixels = np.ndarray[Any, Any]


@pytest.fixture(scope="module", autouse=True)
def _one_set_of_decoders() -> Iterator[None]:
    """Have the scans of all tests share the processes that decode, as those of one job do: each takes time to start."""
    with decoders.limited(InputConfig()):
        yield


LOSSLESS: dict[str, dict[str, Any]] = {"a.webp": {"lossless": True}}


def scanned(*named: Path, **options: Any) -> Manifest:
    config = InputConfig(images=named, **options)
    manifest = discover(config, Observer())
    return scan(manifest, open_source(manifest.root), config, Observer())


def reasons(manifest: Manifest) -> dict[str, str]:
    return {manifest.paths[row]: why for row, why in manifest.bad.items()}


# The side of the square pictures that the network is shown as they are.
SIDE = 48


@cache
def _engine_of_pixels() -> TensorFlowEngine:
    """Return TensorFlow's engine, whose numbers here are the pixels themselves."""
    config = EmbedConfig(image_size=SIDE, resize="nearest")
    n = 3 * SIDE * SIDE
    values = Extractor({}, n, lambda _precision: lambda pixels: tf.reshape(pixels, (len(pixels), -1)))
    engine = TensorFlowEngine(CpuBackend(), values, config)
    engine.build()
    return engine


def as_the_network_sees(*files: Path) -> list[Pixels]:
    """Return the pixels of pictures of 48 x 48, as the job decodes them."""
    found: dict[int, Pixels] = {}
    for batch in embed_shard(scanned_pictures(files), _engine_of_pixels()):
        assert batch.reasons == [None] * len(batch.positions)
        found |= zip(batch.positions.tolist(), batch.x.reshape(-1, SIDE, SIDE, 3), strict=True)
    return [found[position] for position in range(len(files))]


def through_the_job(folder: Path) -> Manifest:
    """Return the pictures of a folder as a job has them after scan and network: usable, or bad with a reason."""
    manifest = scanned(folder)
    engine = choose_engine(CpuBackend(), network(), SMALL_SIDE)
    given: dict[str, Any] = {"store": None, "store_config": StoreConfig(), "observer": Observer()}
    return manifest.with_bad(embed(manifest, open_source(manifest.root), engine, **given).bad)


def largest_difference(one: Pixels, other: Pixels) -> float:
    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).max())


# All of PngSuite, and the Exif examples


@pytest.mark.slow
def test_every_file_of_pngsuite_is_ok_or_bad_and_the_broken_ones_are_bad():
    manifest = through_the_job(photos("pngsuite"))
    counts, found = manifest.counts(), reasons(manifest)
    names = {file.name for file in photos("pngsuite").glob("*.png")}
    assert set(found) == {name for name in names if name.startswith("x")}
    assert len(names) == counts["ok"] + counts["bad"] + counts["duplicate"] == counts["found"] - counts["passed_over"]
    assert min(map(len, found.values())) > 10


@pytest.mark.parametrize("name", ["Landscape", "Portrait"])
def test_a_picture_in_every_orientation_comes_out_the_same(name):
    files = [photos("exif") / f"{name}_{orientation}.jpg" for orientation in range(9)]
    found = [decoded(file) for file in files]
    assert len({one.shape for one in found}) == 1
    small = [np.asarray(Image.fromarray(one).resize((64, 64)), float) for one in found]
    mirrored = small[1][:, ::-1]
    # Each was turned and compressed again by its maker: 2 grey levels apart on average; a turned one is 40 apart.
    assert max(np.abs(one - small[1]).mean() for one in small) < 5
    assert np.abs(mirrored - small[1]).mean() > 20


def test_both_decoders_turn_and_decode_a_jpeg_to_the_same_pixels():
    for orientation in range(9):
        file = photos("exif") / f"Landscape_{orientation}.jpg"
        with Image.open(file) as image:
            turned = orientation if orientation in range(1, 9) else 1
            assert pictures._orientation(image) == turned
        found = tensorflow_input._upright(tensorflow_input._jpeg(file.read_bytes()), np.int32(turned)).numpy()
        # Both use libjpeg's accurate integer transform: not a level apart.
        np.testing.assert_array_equal(found, decoded(file))


# Upright


def oriented(file: Path, image: Image.Image, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(file, exif=exif)
    return file


UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_the_orientation_tag_of_any_format_is_applied_by_both_decoders(tmp_path, suffix, orientation):
    file = oriented(tmp_path / f"a{suffix}", picture(0, (48, 48)), orientation)
    with Image.open(file) as image:
        stored = np.asarray(image.convert("RGB"))
    expected = UPRIGHT[orientation](stored)
    np.testing.assert_array_equal(decoded(file), expected)
    np.testing.assert_array_equal(as_the_network_sees(file)[0], expected)


@pytest.mark.parametrize("value", [0, 9, 77, (1, 2)])
def test_an_orientation_that_means_nothing_leaves_the_picture_as_stored(tmp_path, value):
    exif = Image.Exif()
    exif[0x0112] = value
    block = exif.tobytes()
    picture(0, (48, 48)).save(tmp_path / "a.jpg", exif=block)
    assert scanned(tmp_path).files[0].orientation == 1


def test_a_broken_exif_block_is_survived(tmp_path):
    for number, block in enumerate(
        [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
    ):
        picture(number, (48, 48)).save(tmp_path / f"{number}.jpg", exif=block)
    manifest = scanned(tmp_path)
    assert manifest.counts() == {"found": 3, "ok": 3, "bad": 0, "duplicate": 0, "passed_over": 0}
    assert [facts.orientation for facts in manifest.files] == [1, 1, 1]


# Colours


def test_what_is_transparent_is_put_on_white_by_both_decoders(tmp_path):
    pixels = np.zeros((48, 48, 4), np.uint8)
    pixels[:, :, 0] = 200
    pixels[:16, :, 3] = 255
    pixels[16:32, :, 3] = 51
    file = tmp_path / "a.png"
    Image.fromarray(pixels).save(file)
    # A fifth of red (200, 0, 0) and four fifths of white; a level for the rounding of each decoder.
    for found in (decoded(file), as_the_network_sees(file)[0]):
        assert largest_difference(found[0, 0], np.array([200, 0, 0])) == 0
        assert largest_difference(found[20, 0], np.array([244, 204, 204])) <= 1
        assert largest_difference(found[40, 0], np.array([255, 255, 255])) == 0


@pytest.mark.parametrize(
    "name", ["palette.png", "palette.gif", "a.webp", "grey.png", "key.png", "pa.tif", "grey16.png"]
)
def test_every_kind_of_transparency_is_put_on_white(tmp_path, name):
    file = tmp_path / name
    opaque = np.zeros((48, 48), np.uint8)
    opaque[:24] = 255
    if name.startswith("palette"):
        image = Image.fromarray((opaque // 255).astype(np.uint8), "P")
        image.putpalette([9, 9, 9, 80, 90, 100])
        image.save(file, transparency=0)
        expected = (80, 90, 100)
    elif name == "key.png":
        image = Image.fromarray(np.dstack([opaque // 255 * 80, opaque // 255 * 90, opaque // 255 * 100]))
        image.save(file, transparency=(0, 0, 0))
        expected = (80, 90, 100)
    elif name == "grey16.png":
        Image.fromarray((opaque.astype(np.uint16) // 255) * (80 * 257)).save(file, transparency=0)
        expected = (80, 80, 80)
    else:
        grey = Image.fromarray(np.full((48, 48), 80, np.uint8))
        image = Image.merge("LA", (grey, Image.fromarray(opaque)))
        image = image.convert("RGBA") if name == "a.webp" else image
        image.save(file, **LOSSLESS.get(name, {}))
        expected = (80, 80, 80)
    for found in (decoded(file), as_the_network_sees(file)[0]):
        np.testing.assert_array_equal(found[0, 0], expected)
        np.testing.assert_array_equal(found[47, 47], (255, 255, 255))


def without_adobe_marker(content: bytes) -> bytes:
    start = content.index(b"\xff\xee")
    length = struct.unpack(">H", content[start + 2 : start + 4])[0]
    return content[:start] + content[start + 2 + length :]


def test_cmyk_jpegs_with_and_without_adobes_marker_have_their_colours_by_both_decoders(tmp_path):
    cmyk = picture(0, (48, 48)).convert("CMYK")
    stream = io.BytesIO()
    cmyk.save(stream, "jpeg", quality=100, subsampling=0)
    (tmp_path / "adobe.jpg").write_bytes(stream.getvalue())
    # Without the marker the numbers are ink as it is, not inverted: so they are written here.
    stream = io.BytesIO()
    Image.fromarray(255 - np.asarray(cmyk), "CMYK").save(stream, "jpeg", quality=100, subsampling=0)
    (tmp_path / "plain.jpg").write_bytes(without_adobe_marker(stream.getvalue()))
    files = [tmp_path / "adobe.jpg", tmp_path / "plain.jpg"]
    expected = np.asarray(cmyk.convert("RGB"))
    for file, found in zip(files, as_the_network_sees(*files), strict=True):
        # The JPEG of best quality rounds; and the two decoders round ink to light each in its own way.
        assert largest_difference(decoded(file), expected) <= 8
        assert largest_difference(found, decoded(file)) <= 2


def test_sixteen_bits_keep_their_high_byte_and_thirty_two_are_stretched(tmp_path):
    values = np.arange(48 * 48, dtype=np.uint16).reshape(48, 48) * 28
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values).save(tmp_path / "b.tif")
    Image.fromarray(values.astype(np.int32) * 30_000).save(tmp_path / "c.tif")
    Image.fromarray(values.astype(np.float32) / 7).save(tmp_path / "d.tif")
    for name in ("a.png", "b.tif"):
        np.testing.assert_array_equal(decoded(tmp_path / name)[..., 0], values >> 8)
    for name in ("c.tif", "d.tif"):
        # One level for the rounding of the stretch.
        assert largest_difference(decoded(tmp_path / name)[..., 1], values / values.max() * 255) <= 1


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes_and_grey_of_few_bits_keep_their_colours(tmp_path, bits):
    levels = 1 << bits
    indices = (np.arange(48 * 48).reshape(48, 48) % levels).astype(np.uint8)
    image = Image.fromarray(indices, "P")
    palette = np.random.default_rng(0).integers(0, 256, (levels, 3), dtype=np.uint8)
    image.putpalette(palette.ravel().tolist())
    image.save(tmp_path / "a.png", bits=bits)
    for found in (decoded(tmp_path / "a.png"), as_the_network_sees(tmp_path / "a.png")[0]):
        np.testing.assert_array_equal(found, palette[indices])


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path, name):
    red, blue = (Image.new("RGB", (48, 48), colour) for colour in ("red", "blue"))
    red.save(tmp_path / name, save_all=True, append_images=[blue], **LOSSLESS.get(name, {}))
    for found in (decoded(tmp_path / name), as_the_network_sees(tmp_path / name)[0]):
        np.testing.assert_array_equal(found[20, 20], (255, 0, 0))


# Bad, and why


def test_files_cut_short_are_bad_and_said_to_be(tmp_path):
    folder = tmp_path / "in"
    write_pictures(folder, 2)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for suffix in (".jpg", ".png", ".webp", ".tif", ".gif"):
        noise.save(tmp_path / f"whole{suffix}")
        content = (tmp_path / f"whole{suffix}").read_bytes()
        for percent in (1, 50, 99):
            (folder / f"{percent} percent{suffix}").write_bytes(content[: max(8, len(content) * percent // 100)])
    manifest = through_the_job(folder)
    assert manifest.counts() == {"found": 17, "ok": 2, "bad": 15, "duplicate": 0, "passed_over": 0}
    for path, why in reasons(manifest).items():
        # Of a WebP of eight bytes the word WEBP is missing: nothing tells it from any other RIFF file.
        assert re.search("damaged or cut short|not an image", why), (path, why)


def test_the_content_tells_the_format_and_not_the_name(tmp_path):
    picture(0).save(tmp_path / "png.jpg", "png")
    picture(1).save(tmp_path / "jpeg.png", "jpeg")
    picture(2).save(tmp_path / "jpeg.txt", "jpeg")
    picture(3).save(tmp_path / "no suffix", "webp")
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.png").touch()
    (tmp_path / "notes.txt").write_text("passed over")
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    manifest = scanned(tmp_path)
    kinds = {path: facts.format for path, facts in zip(manifest.paths, manifest.files, strict=True)}
    assert kinds == {
        "empty.png": None,
        "jpeg.png": "JPEG",
        "jpeg.txt": "JPEG",
        "no suffix": "WEBP",
        "png.jpg": "PNG",
        "text.jpg": None,
    }
    assert reasons(manifest) == {
        "empty.png": "empty file",
        "text.jpg": "not an image, or of an unknown format",
    }


def test_a_heic_file_is_named_as_what_it_is(tmp_path):
    (tmp_path / "a.jpg").write_bytes(struct.pack(">I", 24) + b"ftypheic" + bytes(500))
    assert reasons(scanned(tmp_path)) == {"a.jpg": "begins as HEIC, but its header is damaged or cut short"}


def test_the_limit_of_pixels_can_be_set(tmp_path):
    picture(0, (100, 100)).save(tmp_path / "large.png")
    picture(1, (99, 100)).save(tmp_path / "small.png")
    manifest = scanned(tmp_path, max_pixels=9_999)
    assert reasons(manifest) == {"large.png": "100 x 100 pixels, more than --max-pixels 9999 allows"}


def test_a_file_larger_than_any_picture_is_refused_unread(tmp_path):
    with (tmp_path / "huge.png").open("wb") as file:
        # Sparse: it takes no disk, but minutes to read.
        file.truncate(100 << 30)
    assert "more than a picture of --max-pixels" in reasons(scanned(tmp_path))["huge.png"]


# What is no file


def test_pipes_sockets_and_loops_are_never_waited_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(0).save("good.png")
    os.mkfifo("pipe.jpg")
    socket.socket(socket.AF_UNIX).bind("socket.jpg")
    os.symlink("loop.jpg", "loop.jpg")
    os.symlink("nowhere.jpg", "dangling.jpg")
    os.mkdir("folder.jpg")
    picture(1).save("folder.jpg/inside.png")
    manifest = scanned(tmp_path)
    assert manifest.paths == ("dangling.jpg", "folder.jpg/inside.png", "good.png", "loop.jpg")
    assert reasons(manifest) == {
        "dangling.jpg": "a link to a file that is not there",
        "loop.jpg": "a link that leads back to itself",
    }


def test_a_list_names_the_files_and_each_of_them_is_a_row(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("in")
    picture(0).save("in/good.png")
    os.mkfifo("in/pipe.jpg")
    os.mkdir("in/folder")
    Path("list.txt").write_text("in/good.png\n\nin/pipe.jpg\r\nin/folder\nin/gone.png\n")
    manifest = scanned(input_list=tmp_path / "list.txt")
    assert manifest.paths == ("folder", "gone.png", "good.png", "pipe.jpg")
    assert reasons(manifest) == {
        "folder": "a folder, not a file",
        "gone.png": "not there",
        "pipe.jpg": "a pipe, a socket or a device, not a file",
    }


def test_a_list_with_nul_bytes_may_name_files_with_newlines(tmp_path):
    for name in ("a\nb.png", "c.png"):
        picture(len(name)).save(tmp_path / name)
    (tmp_path / "list").write_bytes(b"a\nb.png\0c.png\0")
    assert scanned(input_list=tmp_path / "list").paths == ("a\nb.png", "c.png")


# Whatever bytes


ANY_FILE = st.builds(
    bytes.__add__,
    st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"RIFF\0\0\0\0WEBP"]),
    st.binary(max_size=300),
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ANY_FILE, min_size=10, max_size=10))
def test_whatever_bytes_a_file_holds_it_is_one_row_with_a_header_or_a_reason(tmp_path, contents):
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.png").write_bytes(content)
    manifest = scanned(tmp_path)
    assert [(facts.format is None) == bool(facts.reason) for facts in manifest.files] == [True] * 10
    assert manifest.counts()["found"] == 10

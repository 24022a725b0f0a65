"""Pixels against files built byte by byte: kinds of TIFF, icon, bitmap and PNG that no encoder here writes."""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from gpu_cluster.embedding.engines import tensorflow_input
from gpu_cluster.images import decode as pictures
from gpu_cluster.manifest import FileFacts
from tests.helpers import decoded, photos, scanned_pictures
from tests.helpers import picture as draw

Pixels = np.ndarray[Any, Any]
SIZE = (48, 40)


def facts_of(file: Path) -> FileFacts:
    return scanned_pictures([file])[0].facts


def shrunk(file: Path, side: int) -> Image.Image:
    with file.open("rb") as stream:
        return pictures.shrunk(stream, file.suffix, side)


def by_tensorflow(file: Path) -> Pixels:
    """Decode with TensorFlow itself; the file is one that the pipeline does not leave to Pillow."""
    decoders = {tensorflow_input._JPEG: tensorflow_input._jpeg, tensorflow_input._PNG: tensorflow_input._png}
    facts = facts_of(file)
    kind = tensorflow_input.decoder_of(facts)
    assert kind is not None
    decoder = decoders[kind]
    found: Pixels = tensorflow_input._upright(decoder(file.read_bytes()), np.int32(facts.orientation)).numpy()
    return found


def mean_difference(one: Pixels, other: Pixels) -> float:
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(rows: Pixels, bits: int, colour: int, *extra: tuple[bytes, bytes]) -> bytes:
    """Return a PNG of rows (h, bytes a row) and of the width that these hold."""
    rows = np.ascontiguousarray(rows).view(np.uint8)
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    width = rows.shape[1] * 8 // bits // channels
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0))
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = b"".join(chunk(*one) for one in extra)
    return b"\x89PNG\r\n\x1a\n" + header + chunks + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def jpeg(image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, **{"format": "JPEG", **options})
    return stream.getvalue()


def without_adobe(content: bytes) -> bytes:
    start = content.index(b"\xff\xee\x00\x0eAdobe")
    return content[:start] + content[start + 16 :]


def ycck(cmyk: Image.Image) -> bytes:
    """Return an Adobe JPEG of CMYK whose first three channels are stored as luminance and colour."""
    c, m, y, k = cmyk.split()
    luminance = Image.merge("RGB", (c, m, y)).convert("YCbCr").split()
    # Pillow stores the negative of each channel; of black that is what Adobe means.
    stored = [channel.point(lambda value: 255 - value) for channel in luminance]
    content = bytearray(jpeg(Image.merge("CMYK", (*stored, k)), quality=100, subsampling=0))
    content[content.index(b"\xff\xee\x00\x0eAdobe") + 15] = 2
    return bytes(content)


def smooth() -> Image.Image:
    return draw(0, SIZE)


def rgba() -> Image.Image:
    image = draw(0, SIZE).convert("RGBA")
    image.putalpha(draw(1, SIZE).getchannel("R"))
    return image


def sixteen(channels: int) -> Pixels:
    random = np.random.default_rng(channels)
    return random.integers(0, 1 << 16, (9, 20 * channels)).astype(">u2")


def saved(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


BY_BOTH: Mapping[str, Callable[[], bytes]] = {
    "rgb.jpg": lambda: jpeg(smooth(), quality=30),
    "rgb progressive.jpg": lambda: jpeg(smooth(), progressive=True),
    "rgb without subsampling.jpg": lambda: jpeg(smooth(), subsampling=0),
    "rgb stored as rgb.jpg": lambda: jpeg(smooth(), keep_rgb=True),
    "rgb stored as rgb without adobe.jpg": lambda: without_adobe(jpeg(smooth(), keep_rgb=True)),
    "grey.jpg": lambda: jpeg(smooth().convert("L")),
    "cmyk.jpg": lambda: jpeg(smooth().convert("CMYK")),
    "cmyk without adobe.jpg": lambda: without_adobe(jpeg(smooth().convert("CMYK"))),
    "ycck.jpg": lambda: ycck(smooth().convert("CMYK")),
    "ycck without adobe.jpg": lambda: without_adobe(ycck(smooth().convert("CMYK"))),
    "rgb.png": lambda: saved(smooth()),
    "rgba.png": lambda: saved(rgba()),
    "grey and alpha.png": lambda: saved(rgba().convert("LA")),
    "rgb 16.png": lambda: png(sixteen(3), 16, 2),
    "rgba 16.png": lambda: png(sixteen(4), 16, 6),
    "grey and alpha 16.png": lambda: png(sixteen(2), 16, 4),
    "rgb with a transparent colour.png": lambda: png(
        np.asarray(smooth()).reshape(SIZE[1], -1), 8, 2, (b"tRNS", np.asarray(smooth())[3, 5].astype(">u2").tobytes())
    ),
    "rgb 16 with a transparent colour.png": lambda: png(sixteen(3), 16, 2, (b"tRNS", sixteen(3)[2, 6:9].tobytes())),
    "gamma and background.png": lambda: png(
        np.asarray(rgba()).reshape(SIZE[1], -1),
        8,
        6,
        (b"gAMA", struct.pack(">I", 10_000)),
        (b"bKGD", b"\0\xff\0\0\0\0"),
    ),
}


@pytest.mark.parametrize("name", BY_BOTH)
def test_both_decoders_give_the_same_pixels(tmp_path, name):
    file = tmp_path / name
    file.write_bytes(BY_BOTH[name]())
    # No tolerance: both use libjpeg-turbo's accurate integer transform, and round what is transparent to the nearest.
    np.testing.assert_array_equal(by_tensorflow(file), decoded(file))


LARGE = (331, 270)

REDUCED: Mapping[str, Callable[[Image.Image], bytes]] = {
    "rgb": lambda image: jpeg(image, quality=30),
    "rgb, colours at half the width": lambda image: jpeg(image, subsampling=1),
    "rgb without subsampling": lambda image: jpeg(image, subsampling=0),
    "rgb progressive": lambda image: jpeg(image, progressive=True),
    "rgb stored as rgb": lambda image: jpeg(image, keep_rgb=True),
    "grey": lambda image: jpeg(image.convert("L")),
    "cmyk": lambda image: jpeg(image.convert("CMYK")),
    "cmyk without adobe": lambda image: without_adobe(jpeg(image.convert("CMYK"))),
    "ycck": lambda image: ycck(image.convert("CMYK")),
    "several pictures": lambda image: jpeg(image, format="MPO", save_all=True, append_images=[smooth()]),
}


@pytest.mark.parametrize("kind", REDUCED)
def test_both_decoders_reduce_a_jpeg_to_the_same_pixels(kind):
    content = REDUCED[kind](draw(0, LARGE))
    whole = Image.fromarray(pictures.decode(io.BytesIO(content), ".jpg"))
    for at_least, ratio in [(136, 1), (135, 1), (67, 2), (33, 4), (16, 8), (1, 8)]:
        assert pictures.reduction(*LARGE, at_least) == ratio
        found = pictures.decode(io.BytesIO(content), ".jpg", at_least=at_least)
        assert found.shape == (-(-LARGE[1] // ratio), -(-LARGE[0] // ratio), 3)
        # No tolerance, as above.
        np.testing.assert_array_equal(tensorflow_input._jpeg(content, ratio), found)
        # It is the whole picture; smaller in another way it is up to 2.9 levels away, as the last block is not full.
        assert mean_difference(found, np.asarray(whole.resize(found.shape[1::-1], Image.Resampling.BOX))) < 4


def test_a_reduced_jpeg_that_is_cut_short_is_an_error_for_both_decoders():
    content = jpeg(draw(0, LARGE), quality=95)
    with pytest.raises(OSError, match="truncated"):
        pictures.decode(io.BytesIO(content[: len(content) * 2 // 3]), ".jpg", at_least=16)
    with pytest.raises(tf.errors.InvalidArgumentError):
        tensorflow_input._jpeg(content[: len(content) * 2 // 3], 8)


def test_a_picture_that_is_no_jpeg_is_never_reduced(tmp_path):
    draw(0, LARGE).save(tmp_path / "a.png")
    with (tmp_path / "a.png").open("rb") as stream:
        found = pictures.decode(stream, ".png", at_least=16)
    np.testing.assert_array_equal(found, np.asarray(draw(0, LARGE)))


def test_both_decoders_round_every_colour_of_every_opacity_alike(tmp_path):
    levels = np.zeros((256, 256, 4), np.uint8)
    levels[..., :3] = np.arange(256)[:, None, None]
    levels[..., 3] = np.arange(256)
    Image.fromarray(levels).save(tmp_path / "a.png")
    colour, alpha = (levels[..., channel].astype(float) for channel in (0, 3))
    expected = np.rint((colour * alpha + 255 * (255 - alpha)) / 255)
    for found in (decoded(tmp_path / "a.png"), by_tensorflow(tmp_path / "a.png")):
        np.testing.assert_array_equal(found[..., 0], expected)


def test_ycck_has_the_colours_of_the_cmyk_that_it_was_made_of(tmp_path):
    cmyk = smooth().convert("CMYK")
    (tmp_path / "a.jpg").write_bytes(ycck(cmyk))
    # Rounded to luminance and colour, and by JPEG at its best; measured 0.7, and 60 and more where it is inverted.
    assert mean_difference(decoded(tmp_path / "a.jpg"), np.asarray(cmyk.convert("RGB"))) < 3


# Upright

TURNED_AWAY: Mapping[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[::-1],
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a.transpose(1, 0, 2)[:, ::-1],
}


def exif(orientation: Any) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


@pytest.mark.parametrize("orientation", TURNED_AWAY)
@pytest.mark.parametrize(
    ("name", "options"),
    [("a.png", {}), ("a.webp", {"lossless": True}), ("a.tif", {}), ("lzw.tif", {"compression": "tiff_lzw"})],
)
def test_a_picture_stored_turned_away_comes_out_as_it_was(tmp_path, name, options, orientation):
    upright = np.asarray(smooth())
    stored = Image.fromarray(np.ascontiguousarray(TURNED_AWAY[orientation](upright)))
    stored.save(tmp_path / name, exif=exif(orientation), **options)
    np.testing.assert_array_equal(decoded(tmp_path / name), upright)


@pytest.mark.parametrize("orientation", TURNED_AWAY)
@pytest.mark.parametrize(
    ("name", "options"), [("a.avif", {"quality": 100}), ("a.mpo", {"save_all": True, "append_images": [draw(1, SIZE)]})]
)
def test_a_lossy_picture_stored_turned_away_comes_out_much_as_it_was(tmp_path, name, options, orientation):
    upright = np.asarray(smooth())
    stored = Image.fromarray(np.ascontiguousarray(TURNED_AWAY[orientation](upright)))
    stored.save(tmp_path / name, exif=exif(orientation), **options)
    found = decoded(tmp_path / name)
    assert found.shape == upright.shape
    # What compression loses; a picture that is turned or mirrored is 20 and more away.
    assert mean_difference(found, upright) < 5


@pytest.mark.parametrize("name", ["Landscape", "Portrait"])
def test_the_photos_of_every_orientation_are_the_same_by_both_decoders(name):
    files = [photos("exif") / f"{name}_{orientation}.jpg" for orientation in range(9)]
    found = [decoded(file) for file in files]
    for file, one in zip(files[1:], found[1:], strict=True):
        np.testing.assert_array_equal(by_tensorflow(file), one)
        # Their maker turned and compressed each again: 0.4 to 3.7 grey levels apart. Mirrored they are 43 to 88 apart.
        # Every fourth pixel of a row and of a column tells it in a sixteenth of the time.
        some, others = one[::4, ::4], found[1][::4, ::4]
        assert mean_difference(some, others) < 6
        assert min(mean_difference(np.flip(some, axes), others) for axes in (0, 1, (0, 1))) > 30


MEANINGLESS = {
    "zero": exif(0).tobytes(),
    "nine": exif(9).tobytes(),
    "text": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x05\0\0\0\x1a\0\0\0\0\0\0\0text\0",
    "a fraction": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x05\0\x01\0\0\0\x1a\0\0\0\0\0\0\0\x06\0\0\0\x01\0\0\0",
    "garbage": b"Exif\0\0garbage",
    "a table beyond the end": b"Exif\0\0II*\0\xff\xff\xff\xff",
    "a table cut short": b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
    "nothing": b"Exif\0\0",
}


@pytest.mark.parametrize("block", MEANINGLESS.values(), ids=MEANINGLESS)
def test_an_orientation_that_means_nothing_leaves_the_picture_as_stored(tmp_path, block):
    file = tmp_path / "a.jpg"
    smooth().save(file, exif=block)
    with Image.open(file) as image:
        stored = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decoded(file), stored)
    np.testing.assert_array_equal(by_tensorflow(file), stored)


# Colours


@pytest.mark.parametrize(("bits", "key", "expected"), [(1, 1, [0, 255]), (2, 1, [0, 255, 170, 255]), (4, 3, None)])
def test_a_transparent_grey_of_few_bits_is_white(tmp_path, bits, key, expected):
    levels = np.arange(1 << bits, dtype=np.uint8)
    packed = np.packbits(np.unpackbits(levels[:, None], axis=1)[:, 8 - bits :]).reshape(1, -1)
    file = tmp_path / "a.png"
    file.write_bytes(png(packed, bits, 0, (b"tRNS", struct.pack(">H", key))))
    white = np.where(levels == key, 255, levels * (255 // (len(levels) - 1)))
    # One bit a pixel fills no byte here, and the rest of the row is black.
    np.testing.assert_array_equal(decoded(file)[0, : len(levels), 0], white)
    assert expected in (None, white.tolist())


def test_a_transparent_colour_of_16_bits_takes_no_other_colour_for_transparent(tmp_path):
    # Pillow holds 8 bits a channel: the low bytes of what is transparent are not to be looked for among the high ones.
    key, other = 0x1234, 0x3499
    rows = np.array([[key, key, key, other, other, other]], ">u2")
    (tmp_path / "a.png").write_bytes(png(rows, 16, 2, (b"tRNS", struct.pack(">HHH", key, key, key))))
    for found in (by_tensorflow(tmp_path / "a.png"), decoded(tmp_path / "a.png")):
        np.testing.assert_array_equal(found[0], [[255] * 3, [0x34] * 3])


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_no_numbers_do_not_hide_the_others(tmp_path, odd):
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    values[0, 3] = odd
    Image.fromarray(values).save(tmp_path / "a.tif")
    found = decoded(tmp_path / "a.tif")[1:, :, 0]
    # One level for the rounding of the stretch.
    np.testing.assert_allclose(found, values[1:] * 255, atol=1)


def test_twelve_bits_are_stretched_to_eight(tmp_path):
    levels = np.linspace(0, 4095, 16).astype(int)
    bits = np.unpackbits(levels.astype(">u2").view(np.uint8).reshape(16, 2), axis=1)[:, 4:]
    raw = np.packbits(bits).tobytes()
    tags = [(256, 16), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, len(raw))]
    table = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags)
    content = b"II*\0" + struct.pack("<I", 8 + len(raw)) + raw + struct.pack("<H", len(tags)) + table + bytes(4)
    (tmp_path / "a.tif").write_bytes(content)
    np.testing.assert_array_equal(decoded(tmp_path / "a.tif")[0, :, 0], levels >> 4)


# Limits


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 3), (2, 5)])
def test_a_picture_of_just_as_many_pixels_as_are_allowed_is_decoded(tmp_path, width, height):
    Image.new("RGB", (width, height)).save(tmp_path / "a.bmp")
    with pictures.limited(width * height):
        assert decoded(tmp_path / "a.bmp").shape == (height, width, 3)


def bomb(side: int) -> bytes:
    """Return a whole, valid PNG of one bit a pixel, all black."""
    deflate = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    body = b"".join([*(deflate.compress(row) for _ in range(side)), deflate.flush()])
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def in_ico(content: bytes) -> bytes:
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(content), 22) + content


SCAN = """
import json, sys
from pathlib import Path
from gpu_cluster.images import formats
from gpu_cluster.config import InputConfig
from gpu_cluster.events import Observer
from gpu_cluster.images.discover import discover
from gpu_cluster.images.scan import scan
from gpu_cluster.images.places import open_source
config = InputConfig(**json.loads(sys.argv[1]))
formats.suffixes()
def peak():
    # Not getrusage's, which in a new process begins at the peak of the one that started it.
    (line,) = (one for one in open("/proc/self/status") if one.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
before = peak()
manifest = discover(config, Observer())
manifest = scan(manifest, open_source(manifest.root), config, Observer())
grown = peak() - before
found = {path: manifest.status(row)[1] for row, path in enumerate(manifest.paths)}
print(json.dumps([found, grown]))
"""


def scanned_apart(**options: Any) -> tuple[dict[str, str | None], int]:
    """Scan in a process of its own, which may not take a minute; return the reasons, and the growth in bytes."""
    given = json.dumps(options, default=os.fspath)
    done = subprocess.run([sys.executable, "-c", SCAN, given], capture_output=True, timeout=60, check=True)
    found, grown = json.loads(done.stdout)
    return found, grown


@pytest.mark.parametrize(("name", "wrapped"), [("a.png", lambda content: content), ("a.ico", in_ico)])
def test_a_picture_of_absurd_size_is_refused_before_memory_is_spent(tmp_path, name, wrapped):
    # As an ICO holds it: 400 million pixels, a byte each once they are decoded.
    (tmp_path / name).write_bytes(wrapped(bomb(20_000)))
    found, grown = scanned_apart(images=[tmp_path])
    assert "more" in (found[name] or "")
    assert "--max-pixels" in (found[name] or "")
    # Threads and buffers of the scan take 2 MB.
    assert grown < 50_000_000


def test_what_a_list_names_is_never_waited_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    smooth().save("good.png")
    os.mkfifo("pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.jpg")
        (tmp_path / "list").write_text("good.png\npipe.jpg\nsocket.jpg\n/dev/zero\n")
        found, _ = scanned_apart(input_list=tmp_path / "list")
    reasons = {os.path.basename(path): why for path, why in found.items()}
    assert reasons["good.png"] is None
    assert reasons["pipe.jpg"] == reasons["zero"] == "a pipe, a socket or a device, not a file"
    assert "cannot be opened" in (reasons["socket.jpg"] or "")


# Small copies


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_small_copy_of_a_jpeg_is_the_whole_picture_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    draw(3, (400, 260)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    whole = Image.fromarray(decoded(tmp_path / "a.jpg"))
    found = shrunk(tmp_path / "a.jpg", 50)
    assert max(found.size) == 50
    # By libjpeg's transform and Pillow's filter, instead of the filter alone: a level in a hundred.
    assert mean_difference(np.asarray(found), np.asarray(whole.resize(found.size, Image.Resampling.BICUBIC))) < 2.5


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp", "grey.jpg", "cmyk.jpg"])
def test_small_copies_of_other_files_have_their_colours(tmp_path, name):
    image = draw(4, (90, 60)).convert({"grey.jpg": "L", "cmyk.jpg": "CMYK"}.get(name, "RGB"))
    image.save(tmp_path / name)
    whole = Image.fromarray(decoded(tmp_path / name))
    whole.thumbnail((30, 30))
    found = shrunk(tmp_path / name, 30)
    assert found.mode == "RGB"
    assert mean_difference(np.asarray(found), np.asarray(whole)) < 2.5


def test_a_picture_that_is_small_already_is_not_blown_up(tmp_path):
    draw(5, (20, 10)).save(tmp_path / "a.jpg")
    assert shrunk(tmp_path / "a.jpg", 64).size == (20, 10)

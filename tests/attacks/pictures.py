"""Hostile pictures: each small on the disk, and large, slow or broken when it is opened or decoded.

All are made here, by bytes, in seconds: `python -m tests.attacks.pictures FOLDER` writes them. What a picture costs
before its size is known (in the scan) is told apart from what its pixels cost.
"""

from __future__ import annotations

import gzip
import io
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from tests.attacks import raw
from tests.attacks.raw import BYTES, LONG, SHORT, with_holes

# A square of just fewer pixels than --max-pixels allows by default.
SIDE = 13_000
MB = 1_000_000

# `good`: it is a picture, and must be clustered. `bad`: it is none, or above a limit, and must be in bad_files.csv.
# `either`: it is a picture that costs so much that limits of time and memory may make it bad.
Expected = Literal["good", "bad", "either"]


@dataclass(frozen=True)
class Hostile:
    """A hostile picture: its name, what it attacks, what must become of it, and how it is written."""

    name: str
    attacks: str
    expected: Expected
    write: Callable[[Path], object]


def _bytes(content: Callable[[], bytes]) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(content())


def _with_hole(head: bytes, size: int) -> Callable[[Path], object]:
    return lambda file: with_holes(file, size, {0: head})


def _many_tiles(file: Path, n: int = 3_000_000) -> None:
    """Write a TIFF of n tiles of one pixel each, whose places and sizes are all 0: a hole in the file."""
    side = int(n**0.5) + 1
    tags = raw.strip(side, side)
    del tags[278]
    at = raw.tiff_after(len(tags) + 4)
    tags |= {322: (SHORT, 1, 1), 323: (SHORT, 1, 1), 324: (LONG, n, at), 325: (LONG, n, at + 4 * n)}
    with_holes(file, at + 8 * n, {0: raw.tiff(tags)})


def _large_tag(size: int) -> Callable[[Path], object]:
    """Return what writes a TIFF with a tag of `size` bytes, which are a hole."""
    tags = raw.strip(8, 8)
    at = raw.tiff_after(len(tags) + 3)
    tags |= {273: (LONG, 1, at), 279: (LONG, 1, 64), 40_000: (BYTES, size, at)}
    return _with_hole(raw.tiff(tags), at + size)


def _with_loop() -> bytes:
    tags = raw.strip(64, 48)
    at = raw.tiff_after(len(tags) + 2)
    return raw.tiff({**tags, 273: (LONG, 1, at), 279: (LONG, 1, 64 * 48)}, following=8) + bytes(range(256)) * 12


def _icon_with_holes(file: Path, width: int, height: int) -> None:
    """Write an icon of one bit a pixel: its picture and its mask are holes."""
    head = raw.icon(raw.bitmap_head(width, 2 * height, bits=1, colours=2), bits=1, size=40 + 8 + width * height // 4)
    with_holes(file, len(head) + 8 + width * height // 4, {0: head})


def _runs(width: int, height: int) -> bytes:
    """Return the lines of a bitmap of runs of 255 pixels, in which the width is a multiple of 255."""
    return (b"\xff\0" * (width // 255) + b"\0\0") * height


def _bitmap_of_runs(width: int, height: int) -> bytes:
    head = raw.bitmap_head(width, height, bits=4, compression=2, colours=16)
    palette = b"".join(bytes([one, 0, 0, 0]) for one in range(16))
    body = _runs(width, height)
    return b"BM" + struct.pack("<III", 54 + 64 + len(body), 0, 54 + 64) + head + palette + body


def _icon_of_runs(file: Path, width: int, height: int) -> None:
    """Write an icon whose picture is of runs, and whose mask is a hole."""
    content = raw.bitmap_head(width, 2 * height, bits=4, compression=2, colours=16) + bytes(64) + _runs(width, height)
    size = len(content) + -(-width // 32) * 4 * height
    with_holes(file, 22 + size, {0: raw.icon(content, bits=4, size=size)})


def _frames_of_gif(n: int, width: int, height: int) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return head + n * frame + b"\x3b"


def _frames_of_webp(n: int, width: int, height: int) -> bytes:
    one = raw.lossless_webp(8, 8)[12:]
    frame = bytes(6) + (7).to_bytes(3, "little") * 2 + bytes(3) + b"\0" + one
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    parts = [(b"VP8X", b"\x12\0\0\0" + size), (b"ANIM", bytes(6)), *[(b"ANMF", frame)] * n]
    content = b"WEBP" + b"".join(name + struct.pack("<I", len(part)) + part for name, part in parts)
    return b"RIFF" + struct.pack("<I", len(content)) + content


def _pictures_in_one(n: int) -> bytes:
    stream = io.BytesIO()
    first = Image.new("RGB", (16, 16), "teal")
    first.save(stream, "MPO", save_all=True, append_images=[first] * (n - 1))
    return stream.getvalue()


def _jpeg_2000(width: int, height: int) -> bytes:
    """Return a small code stream that says it is a large picture."""
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(stream, "JPEG2000", no_jp2=True)
    content = bytearray(stream.getvalue())
    # The marker SIZ: sizes of the picture, where it begins, and the size of its tiles.
    at = content.index(b"\xff\x51") + 6
    content[at : at + 24] = struct.pack(">6I", width, height, 0, 0, width, height)
    return bytes(content)


def _icns(content: bytes, kind: bytes = b"ic10") -> bytes:
    return b"icns" + struct.pack(">I", 16 + len(content)) + kind + struct.pack(">I", 8 + len(content)) + content


def _psd(width: int, height: int) -> bytes:
    return b"8BPS" + struct.pack(">H6xHIIHH", 1, 1, height, width, 8, 1) + bytes(12) + bytes(2)


def _tga(width: int, height: int) -> bytes:
    head = struct.pack("<BBBHHBHHHHBB", 0, 0, 11, 0, 0, 0, 0, 0, width, height, 8, 0x20)
    return head + b"\xff\0" * (width * height // 128 + 1)


def _pcx(width: int, height: int) -> bytes:
    head = struct.pack("<BBBBHHHHHH", 10, 5, 1, 8, 0, 0, width - 1, height - 1, 72, 72) + bytes(48)
    head += struct.pack("<BBHH", 0, 1, width, 1)
    return head.ljust(128, b"\0") + b"\xff\0" * (width * height // 63 + 1)


def _sgi(file: Path, width: int, height: int) -> None:
    head = struct.pack(">HBBHHHH", 474, 0, 1, 2, width, height, 1)
    with_holes(file, 512 + width * height, {0: head})


def _blp(file: Path, width: int, height: int) -> None:
    """Write a texture of blocks of 4 x 4 pixels, which Pillow decodes in Python."""
    head = b"BLP2" + struct.pack("<ibbbbII", 1, 2, 0, 0, 0, width, height)
    head += struct.pack("<16I", 20 + 128 + 1024, *[0] * 15) + struct.pack("<16I", width * height // 2, *[0] * 15)
    with_holes(file, 20 + 128 + 1024 + width * height // 2, {0: head})


def _qoi(file: Path, width: int, height: int) -> None:
    """Write a QOI whose every pixel is the operation 'the colour of index 0', a zero byte, decoded in Python."""
    with_holes(file, 14 + width * height + 8, {0: b"qoif" + struct.pack(">IIBB", width, height, 3, 0)})


def _fits(width: int, height: int) -> bytes:
    """Return an astronomer's table that holds a compressed picture, unpacked and turned round in Python."""
    cards = {"SIMPLE": "T", "XTENSION": "'BINTABLE'", "BITPIX": "8", "NAXIS": "0", "ZIMAGE": "T"}
    cards |= {"ZCMPTYPE": "'GZIP_1  '", "ZBITPIX": "8", "ZNAXIS": "2", "ZNAXIS1": str(width), "ZNAXIS2": str(height)}
    head = b"".join(raw.card(*one) for one in cards.items()) + b"END".ljust(80)
    packed = raw.zeros_deflated(4 * width * height)
    # A gzip file is a Deflate stream with another head and end than zlib's.
    end = struct.pack("<II", 0, 4 * width * height & 0xFFFFFFFF)
    return head.ljust(2880) + gzip.compress(b"")[:10] + packed[2:-4] + end


def _fli(width: int, height: int) -> bytes:
    head = struct.pack("<IHHHHHHI", 200, 0xAF12, 60_000, width, height, 8, 3, 10).ljust(128, b"\0")
    return head + struct.pack("<IHH8x", 16, 0xF1FA, 0)


def _msp(width: int, height: int) -> bytes:
    words = [*struct.unpack("<2H", b"LinS"), width, height, 1, 1, 1, 1, width, height, 0, 0]
    check = 0
    for word in words:
        check ^= word
    # A line of no bytes is white: all lines are.
    return struct.pack("<16H", *words, check, 0, 0, 0) + bytes(2 * height)


def _markers(n: int) -> bytes:
    return raw.jpeg(8, 8, before=b"\xff\xe5\0\2" * n)


_HTML = b"<html><script>alert('gpu-cluster')</script><img src=x onerror=alert(1)></html>"
_COMMENT = b"\xff\xfe" + struct.pack(">H", len(_HTML) + 2) + _HTML

# In the scan, before the size of the picture counts
IN_THE_SCAN = (
    Hostile("icon.ico", "a mask of 16384 x 8192 is put on its icon", "bad", lambda f: _icon_with_holes(f, 16384, 8192)),
    Hostile(
        "icon of runs.ico",
        "an icon decoded in Python, pixel by pixel",
        "bad",
        lambda f: _icon_of_runs(f, 16320, 8192),
    ),
    Hostile("tiles.tif", "3 million tiles, an object each", "either", _many_tiles),
    Hostile("tag.tif", "a tag of 250 MB", "either", _large_tag(250 * MB)),
    Hostile("markers.jpg", "a million empty segments, an object each", "either", _bytes(lambda: _markers(MB))),
    Hostile(
        "chunks.png",
        "300,000 empty chunks",
        "either",
        _bytes(lambda: raw.png(8, 8, before=raw.chunk(b"abCd") * 300_000)),
    ),
    Hostile("line.xpm", "250 MB without an end of line", "bad", _with_hole(b"/* XPM */", 250 * MB)),
    Hostile("line.im", "250 MB without an end of line", "bad", _with_hole(b"Image type: L\r\nx", 250 * MB)),
    Hostile(
        "texture.ftu",
        "250 MB are read to see its size",
        "bad",
        _with_hole(b"FTEX" + struct.pack("<8i", 1, 8, 8, 1, 1, 1, 32, 250 * MB - 36), 250 * MB),
    ),
    Hostile(
        "head.bmp",
        "a header of 250 MB",
        "bad",
        _with_hole(b"BM" + struct.pack("<IIII", 0, 0, 0, 250 * MB - 14), 250 * MB),
    ),
    Hostile(
        "comment.gbr",
        "a comment of 250 MB",
        "either",
        _with_hole(struct.pack(">5I", 250 * MB - 100, 1, 8, 8, 1), 250 * MB),
    ),
    Hostile(
        "header without an end.fits",
        "3 million lines of a header",
        "bad",
        _with_hole(raw.card("SIMPLE", "T"), 250 * MB),
    ),
)

# In memory
LARGE = (
    Hostile(
        "alpha.png",
        "0.66 MB, and 5 GB with what blending takes",
        "either",
        _bytes(lambda: raw.png(SIDE, SIDE, colour=6)),
    ),
    Hostile(
        "16 bits and a key.png",
        "18 bytes a pixel",
        "either",
        _bytes(lambda: raw.png(SIDE, SIDE, bits=16, before=raw.chunk(b"tRNS", bytes(6)))),
    ),
    Hostile(
        "32 bits.tif",
        "34 bytes a pixel",
        "either",
        _bytes(
            lambda: raw.one_strip(
                raw.strip(SIDE, SIDE, bits=32, compression=8, kind=3), raw.zeros_deflated(4 * SIDE * SIDE)
            )
        ),
    ),
    Hostile(
        "fax.tif",
        "a bit a line",
        "either",
        _bytes(lambda: raw.one_strip(raw.strip(6000, 6000, bits=1, compression=4), b"\xff" * 800)),
    ),
    Hostile(
        "alpha.webp",
        "38 bytes on the disk, 24 bytes a pixel",
        "either",
        _bytes(lambda: raw.lossless_webp(16383, 10900)),
    ),
    Hostile(
        "frames.webp",
        "two canvases of 4000 x 4000, and 1,000 frames",
        "either",
        _bytes(lambda: _frames_of_webp(1000, 4000, 4000)),
    ),
    Hostile(
        "grey.jpg", "a picture of one colour that is as large as may be", "either", _bytes(lambda: raw.jpeg(SIDE, SIDE))
    ),
    Hostile(
        "four colours.jpg", "CMYK, inverted and converted", "either", _bytes(lambda: raw.jpeg(6000, 6000, components=4))
    ),
    Hostile(
        "canvas.gif", "a canvas of 6000 x 6000 for one pixel", "either", _bytes(lambda: _frames_of_gif(1, 6000, 6000))
    ),
    Hostile(
        "code stream.jp2",
        "32-bit samples, of which hardly one is there",
        "either",
        _bytes(lambda: _jpeg_2000(SIDE, SIDE)),
    ),
    Hostile("layers.psd", "a hole of 6000 x 6000", "either", _with_hole(_psd(6000, 6000), 40 + 6000 * 6000)),
    Hostile("runs.tga", "runs of 128 pixels", "either", _bytes(lambda: _tga(128 * 500, 600))),
    Hostile("runs.pcx", "runs of 63 pixels", "either", _bytes(lambda: _pcx(63 * 300, 2_000))),
    Hostile("hole.sgi", "a hole of 6000 x 6000", "either", lambda f: _sgi(f, 6000, 6000)),
    Hostile(
        "hole.pfm",
        "floats of 13000 x 13000, stretched",
        "either",
        _with_hole(b"Pf\n13000 13000\n-1.0\n", 20 + 4 * SIDE * SIDE),
    ),
    Hostile("white.msp", "an empty line for each of its lines", "either", _bytes(lambda: _msp(65_000, 600))),
    Hostile(
        "too large.png in an icon.ico",
        "256 x 256 outside, 20000 x 20000 inside",
        "bad",
        _bytes(lambda: raw.icon(raw.png(20_000, 20_000, colour=6), bits=32)),
    ),
    Hostile(
        "large.png inside.icns",
        "1024 x 1024 outside, 13000 x 13000 inside",
        "either",
        _bytes(lambda: _icns(raw.png(SIDE, SIDE, colour=6))),
    ),
    Hostile(
        "too large.png inside.icns",
        "1024 x 1024 outside, 20000 x 20000 inside",
        "bad",
        _bytes(lambda: _icns(raw.png(20_000, 20_000, colour=6))),
    ),
    Hostile(
        "film.fli",
        "60,000 frames of 65000 x 600 of which none is there",
        "either",
        _bytes(lambda: _fli(65_000, 600)),
    ),
)

# In time
SLOW = (
    Hostile(
        "scans.jpg",
        "6,600 scans of 8000 x 8000, each of which says nothing new",
        "either",
        _bytes(lambda: raw.progressive_jpeg(8000, 8000, 6600)),
    ),
    Hostile(
        "comments.ppm",
        "each of a million comments moves the rest of its megabyte",
        "bad",
        _bytes(lambda: b"P3\n999 999\n255\n" + b"#\n" * MB),
    ),
    Hostile(
        "samples.ppm",
        "three samples a pixel, scaled in Python",
        "either",
        _with_hole(b"P6\n5000 5000\n254\n", 17 + 75 * MB),
    ),
    Hostile(
        "runs.bmp",
        "runs of half bytes, written out in Python",
        "either",
        _bytes(lambda: _bitmap_of_runs(11_985, 12_000)),
    ),
    Hostile("texture.blp", "blocks decoded in Python", "either", lambda f: _blp(f, 8192, 8192)),
    Hostile("indices.qoi", "operations done in Python", "either", lambda f: _qoi(f, 7000, 7000)),
    Hostile("table.fits", "unpacked to 676 MB and turned round in Python", "either", _bytes(lambda: _fits(SIDE, SIDE))),
    Hostile("frames.gif", "100,000 frames", "good", _bytes(lambda: _frames_of_gif(100_000, 64, 48))),
    Hostile(
        "frames.png",
        "2 billion frames, of which one is there",
        "good",
        _bytes(lambda: raw.png(64, 48, before=raw.chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)))),
    ),
    Hostile("pictures.mpo", "200 pictures in one", "good", _bytes(lambda: _pictures_in_one(200))),
)

# Broken, and pictures that are something else too
ODD = (
    Hostile(
        "65500 squared.jpg", "4 billion pixels declared", "bad", _bytes(lambda: raw.jpeg(65_500, 65_500, share=1e-6))
    ),
    Hostile("cut.jpg", "as large as may be, and cut short", "bad", _bytes(lambda: raw.jpeg(SIDE, SIDE, share=0.1))),
    Hostile("cut.png", "as large as may be, and cut short", "bad", _bytes(lambda: raw.png(SIDE, SIDE)[:100_000])),
    Hostile(
        "cut.webp", "as large as may be, and cut short", "bad", _bytes(lambda: raw.lossless_webp(16383, 10900)[:30])
    ),
    Hostile("cut.gif", "cut short", "bad", _bytes(lambda: _frames_of_gif(1, 64, 48)[:22])),
    Hostile(
        "text.png",
        "63 texts of a megabyte each",
        "either",
        _bytes(
            lambda: raw.png(
                64, 48, before=b"".join(raw.chunk(b"zTXt", b"%d\0\0" % n + raw.zeros_deflated(MB)) for n in range(63))
            )
        ),
    ),
    Hostile(
        "texts.png",
        "a gigabyte of texts",
        "bad",
        _bytes(
            lambda: raw.png(
                64, 48, before=b"".join(raw.chunk(b"zTXt", b"%d\0\0" % n + raw.zeros_deflated(MB)) for n in range(1000))
            )
        ),
    ),
    Hostile(
        "text.international.png",
        "a text of a gigabyte",
        "bad",
        _bytes(lambda: raw.png(64, 48, before=raw.chunk(b"iTXt", b"a\0\1\0\0\0" + raw.zeros_deflated(1000 * MB)))),
    ),
    Hostile(
        "profile.png",
        "a colour profile of a gigabyte",
        "bad",
        _bytes(lambda: raw.png(64, 48, before=raw.chunk(b"iCCP", b"a\0\0" + raw.zeros_deflated(1000 * MB)))),
    ),
    Hostile("loop.tif", "the next directory is the first one", "good", _bytes(_with_loop)),
    Hostile(
        "count.tif",
        "a tag of 4 billion values",
        "either",
        _bytes(lambda: raw.one_strip(raw.strip(8, 8) | {40_000: (BYTES, 2**32 - 1, 8)}, bytes(range(64)))),
    ),
    Hostile(
        "strips.tif",
        "4 billion strips declared",
        "bad",
        _bytes(lambda: raw.tiff(raw.strip(64, 48) | {273: (LONG, 2**32 - 1, 8), 279: (LONG, 2**32 - 1, 8)})),
    ),
    Hostile(
        "page.html.jpg",
        "a page with a script in its comment",
        "good",
        _bytes(lambda: raw.jpeg(64, 48, before=_COMMENT) + _HTML),
    ),
    Hostile(
        "script.js.gif",
        "a script: its first bytes are a name",
        "bad",
        _bytes(lambda: b"GIF89a/*" + bytes(40) + b"*/=1;alert(1)"),
    ),
    Hostile(
        "archive.zip.png",
        "an archive behind its picture",
        "good",
        _bytes(lambda: raw.png(48, 64) + b"PK\5\6" + bytes(18)),
    ),
    Hostile("nothing.jpg", "no bytes", "bad", _bytes(lambda: b"")),
    Hostile("text only.png", "no picture at all", "bad", _bytes(lambda: b"not a picture\n")),
)


HOSTILE = (*IN_THE_SCAN, *LARGE, *SLOW, *ODD)

# One or two for each way to attack: what there is time for in every run of the tests.
_SAMPLED = {
    "icon.ico",
    "tiles.tif",
    "line.xpm",
    "alpha.png",
    "four colours.jpg",
    "code stream.jp2",
    "too large.png in an icon.ico",
    "scans.jpg",
    "comments.ppm",
    "frames.gif",
    "frames.png",
    "pictures.mpo",
}
SAMPLE = tuple(one for one in HOSTILE if one.name in _SAMPLED or one in ODD)


def write_all(folder: Path, chosen: Sequence[Hostile] = HOSTILE) -> None:
    """Write hostile pictures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for one in chosen:
        one.write(folder / one.name)


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))

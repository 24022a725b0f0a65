"""Writes the containers of picture formats by bytes: what is inside, and what they declare, is the caller's affair.

Nothing here is encoded by a library, because no library writes a file that lies, and because a picture of gigabytes
must be written in no time. Pixels are zeros: packed as a run of zero bits, or left out of a file that has holes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path


def with_holes(file: Path, size: int, parts: Mapping[int, bytes]) -> None:
    """Write a file of `size` bytes that takes the disk of its parts only, by offset; the rest reads as zeros."""
    with file.open("wb") as stream:
        stream.truncate(size)
        for offset, content in parts.items():
            stream.seek(offset)
            stream.write(content)


def zeros_deflated(n: int) -> bytes:
    """Return n > 0 zero bytes as a zlib stream, as small as Deflate allows: 2 bits for 258 of them (RFC 1951).

    The two bits of a match (258 bytes, from one byte ago) are zeros themselves.
    """
    n_literals = n % 258 or 258
    # The last block, with codes of its own: 286 lengths, 1 distance, 18 lengths of the codes for these lengths.
    bits = "1" + "01" + "10111" + "00000" + "0111"
    # In the order of RFC 1951 3.2.7: symbol 18 (a run of zeros) has 1 bit; 2 and 1 have 2 bits.
    bits += "".join({18: "100", 2: "010", 1: "010"}.get(one, "000") for one in _CODE_LENGTHS)
    run, one, two = "0", "10", "11"

    def zero_lengths(count: int) -> str:
        return run + format(count - 11, "07b")[::-1]

    bits += two + zero_lengths(138) + zero_lengths(117) + two + zero_lengths(28) + one + one
    bits += "10" * n_literals
    n_bits = len(bits) + 2 * ((n - n_literals) // 258)
    packed = bytearray((n_bits + 2 + 7) // 8)
    for at in [*(at for at, bit in enumerate(bits) if bit == "1"), n_bits, n_bits + 1]:
        packed[at // 8] |= 1 << at % 8
    return b"\x78\xda" + bytes(packed) + struct.pack(">I", n % 65521 << 16 | 1)


_CODE_LENGTHS = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1)


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *, bits: int = 8, colour: int = 2, before: bytes = b"") -> bytes:
    """Return a PNG whose samples are all 0; `colour` is the type of the specification, `before` are more chunks."""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = 1 + (width * samples * bits + 7) // 8
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    pixels = chunk(b"IDAT", zeros_deflated(row * height))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + pixels + chunk(b"IEND")


def _segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def _frame(marker: int, width: int, height: int, components: int) -> bytes:
    parts = b"".join(bytes([number, 0x11, 0]) for number in range(1, components + 1))
    quantities = _segment(0xDB, b"\0" + b"\1" * 64)
    return quantities + _segment(marker, struct.pack(">BHHB", 8, height, width, components) + parts)


def _table(place: int, symbol: int) -> bytes:
    """Return a Huffman table of one symbol, whose code is a zero bit."""
    return _segment(0xC4, bytes([place, 1, *[0] * 15, symbol]))


def _scan(components: Sequence[int], first: int, last: int) -> bytes:
    parts = b"".join(bytes([number, 0]) for number in components)
    return _segment(0xDA, bytes([len(components)]) + parts + bytes([first, last, 0]))


def jpeg(width: int, height: int, *, components: int = 3, before: bytes = b"", share: float = 1) -> bytes:
    """Return a JPEG, all grey, each block of it two zero bits; `share` of them are there; below 1 without an end."""
    n_blocks = components * -(-width // 8) * -(-height // 8)
    tables = _table(0x00, 0x00) + _table(0x10, 0x00)
    head = b"\xff\xd8" + before + _frame(0xC0, width, height, components) + tables
    scan = _scan(range(1, components + 1), 0, 63) + bytes(int(share * (2 * n_blocks + 7) // 8))
    return head + scan + (b"\xff\xd9" if share == 1 else b"")


def progressive_jpeg(width: int, height: int, n_scans: int) -> bytes:
    """Return a progressive JPEG, all grey: a first scan of three components, and n that say 'nothing new' of one."""
    n_blocks = -(-width // 8) * -(-height // 8)
    # The code of the symbol 0xE0 and 14 bits mean 'the next 16,384 and more blocks have ended' (T.81, G.1.2.2).
    runs = "".join("0" + "1" * 7 + "0" + "1" * 6 for _ in range(-(-n_blocks // 32_000)))
    bits = runs + "1" * (-len(runs) % 8)
    ended = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    first = _scan((1, 2, 3), 0, 0) + bytes((3 * n_blocks + 7) // 8)
    scans = (_scan((1 + number % 3,), 1 + number // 3 % 63, 1 + number // 3 % 63) + ended for number in range(n_scans))
    tables = _table(0x00, 0x00) + _table(0x10, 0xE0)
    return b"\xff\xd8" + _frame(0xC2, width, height, 3) + tables + first + b"".join(scans) + b"\xff\xd9"


# Of each tag: its type (3 is 16 bits, 4 is 32 bits, 7 is bytes), how many there are, and the value or its offset.
Tag = tuple[int, int, int]
SHORT, LONG, BYTES = 3, 4, 7


def tiff(tags: Mapping[int, Tag], *, following: int = 0) -> bytes:
    """Return the head of a TIFF: its first directory, of 6 + 12 bytes a tag, which begins at offset 8."""
    entries = b"".join(struct.pack("<HHII", tag, *tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", following)


def tiff_after(n_tags: int) -> int:
    """Return the offset of the first byte after the head of a TIFF."""
    return 8 + 6 + 12 * n_tags


def strip(width: int, height: int, *, bits: int = 8, compression: int = 1, kind: int = 1) -> dict[int, Tag]:
    """Return the tags of a grey TIFF in one strip, without the strip's place and size; `kind` 3 is floating point."""
    numbers = {256: width, 257: height, 278: height}
    shorts = {258: bits, 259: compression, 262: 1, 277: 1, 339: kind}
    return {tag: (LONG, 1, value) for tag, value in numbers.items()} | {
        tag: (SHORT, 1, value) for tag, value in shorts.items()
    }


def one_strip(tags: Mapping[int, Tag], content: bytes) -> bytes:
    """Return a TIFF of these tags and one strip."""
    at = tiff_after(len(tags) + 2)
    return tiff({**tags, 273: (LONG, 1, at), 279: (LONG, 1, len(content))}) + content


def lossless_webp(width: int, height: int) -> bytes:
    """Return a lossless WebP of one colour with alpha: its five codes have one symbol each, so a pixel takes no bit."""
    bits = format(width - 1, "014b")[::-1] + format(height - 1, "014b")[::-1] + "1" + "000"
    # No transform, no cache of colours, no groups of codes; then the codes of green, red, blue, alpha, distance.
    symbols = (0x80, 0x40, 0x20, 0x10, 0)
    bits += "000" + "".join("101" + format(symbol, "08b")[::-1] for symbol in symbols)
    bits += "0" * (-len(bits) % 8)
    content = b"\x2f" + int(bits[::-1], 2).to_bytes(len(bits) // 8, "little")
    content += b"\0" * (len(content) % 2)
    part = b"VP8L" + struct.pack("<I", len(content)) + content
    return b"RIFF" + struct.pack("<I", len(part) + 4) + b"WEBP" + part


def bitmap_head(width: int, height: int, *, bits: int, compression: int = 0, colours: int = 0) -> bytes:
    """Return the 40 bytes that begin a bitmap of Windows."""
    return struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 0, 0, colours, 0)


def icon(content: bytes, *, bits: int, size: int | None = None, kind: int = 1) -> bytes:
    """Return an icon of one picture, which says that it is 256 x 256; of `kind` 2 it is a cursor."""
    entry = struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, bits, len(content) if size is None else size, 22)
    return struct.pack("<HHH", 0, kind, 1) + entry + content


def card(keyword: str, value: str) -> bytes:
    """Return one of the lines of 80 bytes that begin a FITS file."""
    return f"{keyword:8}= {value}".ljust(80).encode()

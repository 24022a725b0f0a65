"""Makes camera RAW files of a few kilobytes (DNG 1.4): what a sensor saw, and a preview in the first directory."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

_SIDE = 64
_KINDS = {"B": (1, 1), "A": (2, 1), "H": (3, 2), "I": (4, 4), "r": (10, 8)}
_Entry = tuple[int, str, Sequence[Any]]


def dng(
    preview: bytes | None,
    size: tuple[int, int],
    *,
    orientation: int = 1,
    order: str = "<",
    is_dng: bool = True,
    make: bytes = b"Maker",
) -> bytes:
    """Return a RAW with a preview (JPEG, or the bytes of RGB pixels) of this width and height; with none if None.

    One that is no DNG is a TIFF of the kind that a camera of a known make writes, such as Sony's ARW.
    """
    shown: list[_Entry] = [
        *((271, "A", make + b"\0"), (272, "A", b"Camera\0"), (274, "H", [orientation])),
        *((330, "I", [0]), (50721, "r", [1, 0, 0, 0, 1, 0, 0, 0, 1]), (50728, "r", [1, 1, 1]), (50778, "H", [21])),
    ]
    if is_dng:
        shown += [(50706, "B", [1, 4, 0, 0]), (50707, "B", [1, 1, 0, 0]), (50708, "A", b"Maker Camera\0")]
    if preview is not None:
        is_jpeg = preview[:2] == b"\xff\xd8"
        shown += _strip(size, 7 if is_jpeg else 1, 6 if is_jpeg else 2, [8, 8, 8], len(preview), is_small=True)
    sensor = struct.pack(f"{order}{_SIDE * _SIDE}H", *[1000] * _SIDE * _SIDE)
    seen = _strip((_SIDE, _SIDE), 1, 32803, [16], len(sensor), is_small=False)
    seen += [(33421, "H", [2, 2]), (33422, "B", [0, 1, 1, 2]), (50717, "I", [4095])]
    first, second = 8, 8 + len(_directory(shown, 0, order))
    third = second + len(_directory(seen, 0, order))
    fourth = third + len(preview or b"") + len(preview or b"") % 2
    shown = [(tag, kind, [third] if tag == 273 else [second] if tag == 330 else found) for tag, kind, found in shown]
    seen = [(tag, kind, [fourth] if tag == 273 else found) for tag, kind, found in seen]
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", first)
    content = head + _directory(shown, first, order) + _directory(seen, second, order) + (preview or b"")
    return content.ljust(fourth, b"\0") + sensor


def _strip(
    size: tuple[int, int], compression: int, colours: int, bits: list[int], n_bytes: int, *, is_small: bool
) -> list[_Entry]:
    return [
        *((254, "I", [int(is_small)]), (256, "I", [size[0]]), (257, "I", [size[1]]), (258, "H", bits)),
        *((259, "H", [compression]), (262, "H", [colours]), (273, "I", [0]), (277, "H", [len(bits)])),
        *((278, "I", [size[1]]), (279, "I", [n_bytes])),
    ]


def _directory(entries: list[_Entry], place: int, order: str) -> bytes:
    table, content = struct.pack(f"{order}H", len(entries)), b""
    first = place + 2 + 12 * len(entries) + 4
    for tag, kind, values in sorted(entries):
        if kind == "r":
            packed = b"".join(struct.pack(f"{order}ii", round(value * 10_000), 10_000) for value in values)
        else:
            packed = bytes(values) if kind in "AB" else struct.pack(f"{order}{len(values)}{kind}", *values)
        table += struct.pack(f"{order}HHI", tag, _KINDS[kind][0], len(packed) // _KINDS[kind][1])
        if len(packed) <= 4:
            table += packed.ljust(4, b"\0")
        else:
            table += struct.pack(f"{order}I", first + len(content))
            content += packed + bytes(len(packed) % 2)
    return table + bytes(4) + content

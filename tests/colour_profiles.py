"""Makes small ICC profiles, and computes in NumPy what sRGB says of a picture with one: nothing here knows Little CMS.

The colours of a space follow from its primaries and its white (adapted to D50 by Bradford's matrix) and its curve.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np

D50 = np.array([0.96422, 1.0, 0.82521])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_D65 = (0.3127, 0.3290)
# x and y of red, green and blue, and of white: IEC 61966-2-1, SMPTE EG 432-1 with D65, Adobe RGB (1998).
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), _D65)
P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _D65)
ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), _D65)
Curve = Callable[[Any], Any]


def srgb_curve(encoded: Any) -> Any:
    """Return the linear values, 0 to 1, of encoded ones."""
    encoded = np.asarray(encoded, np.float64)
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def gamma(exponent: float) -> Curve:
    return lambda encoded: np.asarray(encoded, np.float64) ** exponent


def to_xyz(space: Any) -> np.ndarray:
    """Return the matrix (3, 3) from linear colours of a space to XYZ under D50; its columns are the colourants."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in space], np.float64).T
    primaries, white = columns[:, :3], columns[:, 3]
    matrix = primaries * np.linalg.solve(primaries, white)
    cones = (_BRADFORD @ D50) / (_BRADFORD @ white)
    return np.asarray(np.linalg.inv(_BRADFORD) @ np.diag(cones) @ _BRADFORD @ matrix)


def in_srgb(pixels: np.ndarray, space: Any, curve: Curve) -> np.ndarray:
    """Return pixels (h, w, 3) uint8 of a space as sRGB, float64, 0 to 255: what lies outside is cut off."""
    linear = curve(pixels / 255.0) @ to_xyz(space).T @ np.linalg.inv(to_xyz(SRGB)).T
    return as_encoded(linear)


def as_encoded(linear: np.ndarray) -> np.ndarray:
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055) * 255


def lab_in_srgb(lab: Any) -> np.ndarray:
    """Return a colour L*a*b* under D50 as sRGB, float64, 0 to 255."""
    level = (lab[0] + 16) / 116
    f = np.array([level + lab[1] / 500, level, level - lab[2] / 200])
    xyz = D50 * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    return as_encoded(np.linalg.inv(to_xyz(SRGB)) @ xyz)


def rgb_profile(space: Any, curve: bytes, description: str, *, version: int = 4) -> bytes:
    """Return the profile of three colourants and one curve."""
    tags = {name: _xyz(column) for name, column in zip(("rXYZ", "gXYZ", "bXYZ"), to_xyz(space).T, strict=True)}
    return _profile("RGB ", {**tags, "rTRC": curve, "gTRC": curve, "bTRC": curve}, description, version)


def grey_profile(curve: bytes, description: str) -> bytes:
    return _profile("GRAY", {"kTRC": curve}, description, 4)


def cmyk_profile(corners: np.ndarray, description: str) -> bytes:
    """Return the profile of a press: L*a*b* (2, 2, 2, 2, 3) of each mixture of no ink and full ink of C, M, Y and K."""
    encoded = np.round(corners * [255 / 100, 1, 1] + [0, 128, 128]).astype(np.uint8)
    identity = np.arange(256, dtype=np.uint8).tobytes()
    matrix = b"".join(_fixed(value) for value in np.eye(3).ravel())
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + 4 * identity + encoded.tobytes() + 3 * identity
    return _profile("CMYK", {"A2B0": table}, description, 2, kind="prtr", connection="Lab ")


def p3_profile() -> bytes:
    return rgb_profile(P3, parametric_srgb(), "Display P3")


def parametric_srgb() -> bytes:
    values = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    return b"para\0\0\0\0" + struct.pack(">HH", 3, 0) + b"".join(map(_fixed, values))


def table_of(curve: Curve, n: int) -> bytes:
    values = np.round(curve(np.linspace(0, 1, n)) * 65535).astype(">u2")
    return b"curv\0\0\0\0" + struct.pack(">I", n) + values.tobytes()


def gamma_curve(exponent: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(exponent * 256))


def _profile(
    space: str,
    tags: dict[str, bytes],
    description: str,
    version: int,
    *,
    kind: str = "mntr",
    connection: str = "XYZ ",
) -> bytes:
    tags = {"desc": _described(description, version), "wtpt": _xyz(D50), **tags}
    first = 128 + 4 + 12 * len(tags)
    table, content = struct.pack(">I", len(tags)), b""
    for name, tag in tags.items():
        table += name.encode() + struct.pack(">II", first + len(content), len(tag))
        content += tag + bytes(-len(tag) % 4)
    header = struct.pack(">I4sBBxx", first + len(content), b"", version, 0)
    header += f"{kind}{space}{connection}".encode() + struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp"
    header += bytes(28) + b"".join(map(_fixed, D50))
    return header.ljust(128, b"\0") + table + content


def _described(text: str, version: int) -> bytes:
    if version >= 4:
        encoded = text.encode("utf-16-be")
        return b"mluc\0\0\0\0" + struct.pack(">II4sII", 1, 12, b"enUS", len(encoded), 28) + encoded
    encoded = text.encode() + b"\0"
    return b"desc\0\0\0\0" + struct.pack(">I", len(encoded)) + encoded + bytes(78)


def _xyz(values: Any) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(_fixed, values))


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))

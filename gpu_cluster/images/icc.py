"""Reads what an embedded colour profile (ICC.1:2022) says of itself: whether it is sRGB, and its name if it is not.

Input: the bytes of a profile. Output: a text. Profiles are input from strangers like the pictures that they are in, so
nothing here follows a size or a place in the file without checking it, and nothing is converted. This module must not
know Pillow or Little CMS, which is only used in a process of its own (see `colour`).
"""

from __future__ import annotations

import functools
import hashlib
import re
import struct
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

_Floats: TypeAlias = npt.NDArray[np.float64]

# What `described` says of a picture without a profile, with sRGB, and with a profile that cannot be used.
NONE, SRGB, INVALID = "", "sRGB", "invalid"

# The kinds of colours that a profile can be for.
GREY, RGB, CMYK = b"GRAY", b"RGB ", b"CMYK"

# Profiles of presses, the largest ones in use, have 0.5 to 3 MB.
_LEAST_BYTES, _MOST_BYTES, _MOST_TAGS, _MOST_NAME = 132, 8 << 20, 200, 40
# A curve that is a table has up to 4,096 entries of two bytes in use.
_MOST_CURVE_BYTES = 1 << 15
# A profile counts as sRGB if it changes no colour by more than this many of 255 levels, and the mean colour by less
# than the second number: programs write sRGB with curves and colourants that are rounded in many ways.
_MOST_LEVELS, _MEAN_LEVELS = 2.0, 0.5

# From linear sRGB to XYZ under D50: IEC 61966-2-1, adapted by Bradford's matrix.
_SRGB_TO_XYZ = np.array(
    [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]]
)
# The number of parameters of each type of a parametric curve.
_N_PARAMETERS = (1, 3, 4, 5, 7)


def described(profile: object, space: bytes | None) -> str:
    """Return what the profile of a picture is, in a few words: `NONE`, `SRGB`, `INVALID`, or its name and digest.

    Parameters
    ----------
    profile
        The bytes of the profile; None, or nothing, if the picture has none.
    space
        The kind of colours of the picture. A profile for another kind cannot be used; None: nor can any.
    """
    if profile is None or profile == b"":
        return NONE
    if not isinstance(profile, bytes) or not _LEAST_BYTES <= len(profile) <= _MOST_BYTES:
        return INVALID
    if profile[36:40] != b"acsp" or profile[16:20] != space:
        return INVALID
    tags = _tags(profile)
    if _is_srgb(*_curves_and_colourants(profile, tags, space)):
        return SRGB
    return f"{_name(tags.get(b'desc', b''))} {hashlib.blake2b(profile, digest_size=8).hexdigest()}"


def is_foreign(profile: str | None) -> bool:
    """Return whether the colours of a picture, whose profile is described by this text, are to be converted."""
    return profile not in (None, NONE, SRGB, INVALID)


def _tags(profile: bytes) -> dict[bytes, bytes]:
    """Return the content of the tags by their names; those that lie outside of the profile are left out."""
    n_tags = min(int.from_bytes(profile[128:132], "big"), _MOST_TAGS, (len(profile) - 132) // 12)
    found: dict[bytes, bytes] = {}
    for number in range(n_tags):
        name, first, length = struct.unpack_from(">4sII", profile, 132 + 12 * number)
        if first + length <= len(profile):
            found.setdefault(name, profile[first : first + length])
    return found


def _curves_and_colourants(
    profile: bytes, tags: dict[bytes, bytes], space: bytes | None
) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """Return the curves and the colourants that say all of the colours of a profile; nothing if they do not."""
    tables = any(name[:3] in (b"A2B", b"D2B") for name in tags)
    wanted = {RGB: (b"rTRC", b"gTRC", b"bTRC"), GREY: (b"kTRC",)}.get(space or b"", ())
    curves = tuple(tags.get(name, b"") for name in wanted)
    if tables or profile[20:24] not in (b"XYZ ", b"Lab "[: 4 * (space == GREY)]):
        return (), ()
    if not curves or max(map(len, curves)) > _MOST_CURVE_BYTES:
        return (), ()
    colourants = tuple(tags.get(name, b"")[:20] for name in (b"rXYZ", b"gXYZ", b"bXYZ")) if space == RGB else ()
    return curves, colourants


# Most pictures of a folder have one of a few profiles.
@functools.lru_cache(maxsize=64)
def _is_srgb(curves: tuple[bytes, ...], colourants: tuple[bytes, ...]) -> bool:
    """Return whether these curves, and the colourants if it is not grey, are those of sRGB but for rounding."""
    linear = [_linear(curve) for curve in curves]
    columns = [_fixed(tag[8:]) for tag in colourants if tag[:4] == b"XYZ "]
    if not linear or any(one is None for one in linear) or any(len(column) != 3 for column in columns):
        return False
    if len(columns) != len(colourants):
        return False
    levels = np.arange(256)
    curve = np.stack([one for one in linear if one is not None], axis=-1)
    if not np.isfinite(curve).all():
        return False
    if not columns:
        return _is_small(_encoded(curve[:, 0]) - levels)
    # All greys, and a grid of colours.
    steps = np.linspace(0, 255, 16).astype(int)
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    colours = np.concatenate([np.stack([levels] * 3, axis=-1), grid])
    xyz = np.take_along_axis(curve, colours, axis=0) @ np.stack(columns)
    return _is_small(_encoded(xyz @ np.linalg.inv(_SRGB_TO_XYZ).T) - colours)


def _is_small(differences: _Floats) -> bool:
    sizes = np.abs(differences)
    return bool(sizes.max() <= _MOST_LEVELS and sizes.mean() < _MEAN_LEVELS)


def _encoded(linear: _Floats) -> _Floats:
    """Return linear values as sRGB levels, 0 to 255 (IEC 61966-2-1)."""
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055) * 255


def _linear(curve: bytes) -> _Floats | None:
    """Return the linear values (256,) of the levels 0 to 255 by a curve; None if it is none, or not of a known type."""
    x = np.linspace(0, 1, 256)
    if curve[:4] == b"curv" and len(curve) >= 12:
        n = int.from_bytes(curve[8:12], "big")
        values = np.frombuffer(curve[12 : 12 + 2 * n], ">u2") if len(curve) >= 12 + 2 * n else np.empty(0)
        if len(values) != n:
            return None
        if n == 0:
            return x
        if n == 1:
            return np.asarray(x ** (values[0] / 256))
        return np.asarray(np.interp(x, np.linspace(0, 1, n), values / 65535))
    if curve[:4] == b"para" and len(curve) >= 12:
        kind = int.from_bytes(curve[8:10], "big")
        parameters = _fixed(curve[12:])
        if kind < len(_N_PARAMETERS) and len(parameters) >= _N_PARAMETERS[kind]:
            return _parametric(x, kind, parameters[: _N_PARAMETERS[kind]])
    return None


def _parametric(x: _Floats, kind: int, parameters: _Floats) -> _Floats | None:
    """Return the values of a parametric curve at x; its types are those of table 68 of ICC.1:2022."""
    exponent, *rest = parameters.tolist()
    slope, offset, *rest = rest if kind else (1.0, 0.0)
    if not slope:
        return None
    with np.errstate(over="ignore"):
        power = np.asarray(np.maximum(slope * x + offset, 0) ** max(exponent, 0))
    if kind in (0, 1, 2):
        constant = rest[0] if rest else 0.0
        return np.asarray(np.where(x >= -offset / slope, power, 0) + constant)
    below, border, high, low = (*rest, 0.0, 0.0)[:4]
    return np.asarray(np.where(x >= border, power + high, below * x + low))


def _fixed(content: bytes) -> _Floats:
    """Return numbers that are stored in 16 bits and 16 more after the point."""
    return np.frombuffer(content[: len(content) // 4 * 4], ">i4") / 65536


def _name(tag: bytes) -> str:
    """Return the name of a profile in plain characters."""
    text = ""
    if tag[:4] == b"desc":
        text = tag[12 : 12 + min(int.from_bytes(tag[8:12], "big"), 4 * _MOST_NAME)].decode("ascii", "ignore")
    elif tag[:4] == b"mluc" and len(tag) >= 28:
        length, first = struct.unpack_from(">II", tag, 20)
        text = tag[first : first + min(length, 4 * _MOST_NAME)].decode("utf-16-be", "ignore")
    words = re.sub(r"[^A-Za-z0-9 ()._+-]+", " ", text.split("\0")[0]).split()
    return " ".join(words)[:_MOST_NAME].strip() or "unnamed"

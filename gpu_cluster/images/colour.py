"""Converts the colours of a picture with an embedded profile to sRGB, by Little CMS.

Input: a Pillow image. Output: what its profile is, and the function that converts its colours. Little CMS reads the
profiles of strangers, so this is done only in a process of its own (see `decoders`); to ask what a profile is needs no
Little CMS. This module must not know files.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gpu_cluster.facts import FileFacts, FileTable
from gpu_cluster.images import formats, icc

if TYPE_CHECKING:
    from PIL.Image import Image

    from gpu_cluster.backend import IntArray

    Convert = Callable[[Image], Image]

# The version of the conversion.
_VERSION = 1

# The kind of colours of Pillow's modes. Those of 32 bits, which have no standard white, and Lab are not here.
_SPACES = {
    **dict.fromkeys(("1", "L", "LA", "La"), icc.GREY),
    **dict.fromkeys(("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr"), icc.RGB),
    "CMYK": icc.CMYK,
}
_MODES = {icc.GREY: "L", icc.RGB: "RGB", icc.CMYK: "CMYK"}
# Modes with an opacity, and what they become before the colours are parted from it.
_WITH_OPACITY = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})


def conversion_of(facts: FileFacts, *, profiles: bool = True) -> str | None:
    """Return what is done to a picture beyond decoding what is stored, in words; None if nothing is.

    Of a RAW, its preview is taken. `profiles` says whether profiles are applied. The store keeps this beside its
    embedding, so it must change when the same picture would be given other pixels.
    """
    done = ["preview"] if facts.format in formats.RAW_FORMATS else []
    done += [f"{facts.profile} -> sRGB"] if profiles and icc.is_foreign(facts.profile) else []
    return f"{', '.join(done)}, v{_VERSION}" if done else None


def conversions_of(facts: FileTable, rows: IntArray, *, profiles: bool = True) -> list[str | None]:
    """Return the same of the files `rows`; this is much quicker than to ask for each file."""
    kinds = list(zip(facts.column("format", rows), facts.column("profile", rows), strict=True))
    found = {kind: conversion_of(FileFacts(format=kind[0], profile=kind[1]), profiles=profiles) for kind in set(kinds)}
    return [found[kind] for kind in kinds]


def profile_of(image: Image) -> str:
    """Return what the embedded profile of an image is (see `icc.described`), without converting anything."""
    return icc.described(image.info.get("icc_profile"), _space(image))


def usable_profile_of(image: Image) -> str:
    """Return the same, but for a profile that Little CMS cannot use: it is `icc.INVALID`."""
    profile = profile_of(image)
    return icc.INVALID if icc.is_foreign(profile) and _transform(image) is None else profile


def to_srgb(image: Image) -> Convert | None:
    """Return the function that converts a band of the image, in eight bits, to sRGB; None if nothing is to be done.

    The function returns RGB, or RGBA if the band has an opacity, which stays. A profile that cannot be used is passed
    over, as `usable_profile_of` says.
    """
    space = _space(image)
    if space is None or not icc.is_foreign(profile_of(image)):
        return None
    transform = _transform(image)
    return None if transform is None else functools.partial(_converted, transform, space)


def _converted(transform: Any, space: bytes, band: Image) -> Image:
    from PIL import ImageCms

    opacity = None
    if space != icc.CMYK and (band.mode in _WITH_OPACITY or "transparency" in band.info):
        if band.mode == "La":
            band = band.convert("LA")
        band = band.convert("LA" if space == icc.GREY else "RGBA")
        opacity = band.getchannel("A")
    colours = band if band.mode == _MODES[space] else band.convert(_MODES[space])
    found = ImageCms.applyTransform(colours, transform)
    assert found is not None, "it is not converted in place"
    if opacity is not None:
        found.putalpha(opacity)
    return found


def _transform(image: Image) -> Any:
    """Return Little CMS's transform to sRGB from the profile of an image; None if the profile cannot be used."""
    from PIL import ImageCms

    space = _space(image)
    assert space is not None, "a foreign profile is one that fits the colours"
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        # Relative colorimetric: what sRGB can show keeps its colour, and the rest is cut off. The intent perceptual
        # gives the same with the profiles of cameras, which have no tables for it, and with those of presses it moves
        # every colour. The black of paper becomes the black of the screen.
        transform = ImageCms.buildTransform(
            profile,
            ImageCms.createProfile("sRGB"),
            _MODES[space],
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return transform


def _space(image: Image) -> bytes | None:
    return icc.GREY if image.mode.startswith("I;16") else _SPACES.get(image.mode)

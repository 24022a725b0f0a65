"""Opens the pictures that Pillow does not read, by packages that are optional: HEIC by pi-heif, camera RAW by rawpy.

Input: an open file. Output: a Pillow image. The libraries below these packages read what strangers have written, so
this module is used only in a process of its own (see `decoders`). Of a RAW, what the camera shows is used: the preview
that it has embedded. This module must not know what is done with a picture.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from gpu_cluster.images.formats import UnusableError

if TYPE_CHECKING:
    from PIL.Image import Image

# Exif's orientation for the turns that LibRaw names: none, by a half, and by a quarter to the left and to the right.
_ORIENTATION_OF_FLIP = {0: 1, 3: 3, 5: 8, 6: 6}
_ORIENTATION = 0x0112


def register_heif(kind: str) -> None:
    """Let Pillow open HEIC and HEIF, as the format HEIF.

    Raises
    ------
    UnusableError
        When the package for it is not installed.
    """
    try:
        _register_heif()
    except ImportError:
        raise _needs(kind, "heic") from None


# What is registered twice would be tried twice.
@functools.cache
def _register_heif() -> None:
    import pi_heif

    # Each thread of the decoder would set memory aside.
    pi_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)


@contextmanager
def preview(stream: IO[bytes], kind: str) -> Iterator[tuple[Image, int]]:
    """Give the block the preview that a RAW has embedded, not loaded yet, and its Exif orientation.

    Raises
    ------
    UnusableError
        When there is none, or the package for it is not installed.
    """
    from PIL import Image

    found, orientation = _extracted(stream, kind)
    if isinstance(found, bytes):
        with Image.open(io.BytesIO(found), formats=["JPEG"]) as image:
            turned = image.getexif().get(_ORIENTATION)
            yield image, turned if isinstance(turned, int) and 1 <= turned <= 8 else orientation
    else:
        yield Image.fromarray(found), orientation


def _extracted(stream: Any, kind: str) -> tuple[Any, int]:
    """Return the preview of a RAW, as the bytes of a JPEG or as pixels (h, w, 3) uint8, and the RAW's orientation."""
    words = "camera RAW" if kind == "RAW" else f"camera RAW ({kind})"
    try:
        import rawpy
    except ImportError:
        raise _needs(words, "raw") from None
    try:
        with rawpy.imread(stream) as raw:
            thumbnail = raw.extract_thumb()
            orientation = _ORIENTATION_OF_FLIP.get(raw.sizes.flip, 1)
            is_jpeg = thumbnail.format == rawpy.ThumbFormat.JPEG
            # The pixels lie in the memory of the file that is closed here.
            return bytes(thumbnail.data) if is_jpeg else np.array(thumbnail.data), orientation
    except (rawpy.LibRawNoThumbnailError, rawpy.LibRawUnsupportedThumbnailError):
        raise UnusableError(f"{words} without a preview that can be read; convert it to JPEG or PNG") from None
    except rawpy.LibRawFileUnsupportedError:
        raise UnusableError(
            f"{words} that is damaged, or of a kind that this LibRaw does not know; convert it to JPEG or PNG",
            lasting=False,
        ) from None


def _needs(kind: str, extra: str) -> UnusableError:
    return UnusableError(
        f"{kind}, which needs the extra {extra}: from a checkout, pip install '.[{extra}]'", lasting=False
    )

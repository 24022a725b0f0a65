"""Makes large photos out of small ones, for measuring how large ones are decoded.

    python -m scripts.enlarged FOLDER TARGET [--megapixels 1 3 12] [--quality 75 92] [--every 1] [--most 24]

They are made, not taken: each photo of FOLDER is enlarged (Lanczos), gets the noise of a sensor at every pixel of the
large size, and is written to TARGET as a JPEG of each size and quality. Noise and edges at this size are what a decoder
meets in a photo from a camera; details that a camera would have resolved are missing. The same arguments give the same
files.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

MEGAPIXELS = (1, 3, 12)
QUALITIES = (75, 92)
# Standard deviation of the noise in grey levels, as that of a phone's camera at about ISO 400.
_NOISE_LEVELS = 6.0
# The noise is drawn once for a square of this side and laid out from another corner in each photo.
_NOISE_SIDE = 4096


class Enlarger:
    """Enlarges photos and adds noise; the noise of a photo depends on its number alone."""

    def __init__(self) -> None:
        noise = np.random.default_rng(0).standard_normal((_NOISE_SIDE, _NOISE_SIDE), np.float32) * _NOISE_LEVELS
        self._noise = np.rint(noise).astype(np.int16)

    def enlarge(self, photo: Image.Image, size: tuple[int, int], number: int) -> Image.Image:
        """Return the photo at `size`, width and height in pixels of at most 4096, with noise."""
        large = np.asarray(photo.convert("RGB").resize(size, Image.Resampling.LANCZOS))
        found = np.empty_like(large)
        for channel in range(3):
            corner = np.random.default_rng((number, channel)).integers(0, _NOISE_SIDE, 2)
            rows, columns = (
                (start + np.arange(n)) % _NOISE_SIDE for start, n in zip(corner, large.shape, strict=False)
            )
            noisy = large[..., channel] + self._noise[rows[:, None], columns]
            found[..., channel] = noisy.clip(0, 255)
        return Image.fromarray(found)


def size_of(photo: Image.Image, megapixels: float) -> tuple[int, int]:
    """Return width and height of about so many million pixels, with the photo's ratio of sides."""
    factor = (megapixels * 1e6 / (photo.width * photo.height)) ** 0.5
    return round(photo.width * factor), round(photo.height * factor)


def as_jpeg(photo: Image.Image, quality: int) -> bytes:
    """Return the photo as a camera's kind of JPEG: baseline, colours at half the resolution."""
    stream = io.BytesIO()
    photo.save(stream, "jpeg", quality=quality)
    return stream.getvalue()


def photos_in(folder: Path, *, every: int = 1, most: int | None = None) -> Iterator[Path]:
    """Yield the photos of a folder and of its subfolders by name: every so many of them, and at most `most`."""
    yield from sorted(file for file in folder.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))[::every][
        :most
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--megapixels", type=float, nargs="+", default=MEGAPIXELS)
    parser.add_argument("--quality", type=int, nargs="+", default=QUALITIES)
    parser.add_argument("--every", type=int, default=1, help="take every so many photos (default: all)")
    parser.add_argument("--most", type=int, help="take at most so many photos")
    arguments = parser.parse_args()
    enlarger = Enlarger()
    for number, file in enumerate(photos_in(arguments.folder, every=arguments.every, most=arguments.most)):
        with Image.open(file) as photo:
            for megapixels in arguments.megapixels:
                large = enlarger.enlarge(photo, size_of(photo, megapixels), number)
                for quality in arguments.quality:
                    kind = f"{megapixels:g}mp-q{quality}"
                    target = arguments.target / kind / file.relative_to(arguments.folder).with_suffix(".jpg")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(as_jpeg(large, quality))


if __name__ == "__main__":
    main()

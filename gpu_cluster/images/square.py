"""Makes the square of pixels that the network reads of a decoded picture.

Input: a picture (h, w, 3) uint8. Output: (side, side, 3) float32, 0 to 255. This module must not know TensorFlow, nor
where a picture comes from.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gpu_cluster.config import PixelsConfig


def to_square(decoded: npt.NDArray[np.uint8], config: PixelsConfig) -> npt.NDArray[np.float32]:
    """Resize a picture (h, w, 3) uint8 to (side, side, 3) float32, as the config says.

    Raises
    ------
    MemoryError
        When there is no memory for it.
    """
    from PIL import Image

    if config.fit == "crop":
        height, width, _ = decoded.shape
        short = min(height, width)
        top, left = (height - short) // 2, (width - short) // 2
        decoded = decoded[top : top + short, left : left + short]
    side = config.image_size
    if config.resize == "nearest":
        rows, columns = (nearest_indices(length, side) for length in decoded.shape[:2])
        return decoded[rows[:, None], columns].astype(np.float32)
    image = Image.fromarray(np.ascontiguousarray(decoded))
    # Pillow's bilinear filter grows with the reduction, which is what others call antialiasing.
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR), dtype=np.float32)


def nearest_indices(length: int, side: int) -> npt.NDArray[np.int64]:
    """Return the source pixel of each of `side` pixels, as in Pillow's nearest-neighbour resize.

    Keras's `load_img` resizes with Pillow, which adds up its step in float64. If (i + 1/2) * length / side is a whole
    number, the rounding of that sum decides. `tf.image.resize` chooses other pixels: 19% of them when it resizes 128 to
    224.
    """
    steps = np.full(side, length / side)
    steps[0] /= 2
    return np.minimum(np.cumsum(steps).astype(np.int64), length - 1)

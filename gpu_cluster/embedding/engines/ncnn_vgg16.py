"""VGG16 for the engine ncnn: its layers, its input, and the poolings of its feature maps with NumPy."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from gpu_cluster.config import Pooling
from gpu_cluster.embedding import vgg16
from gpu_cluster.embedding.engines.ncnn_plan import Floats, MapsOf, Plan, as_content, as_text, generalised_mean

# Means of ImageNet's pixels, blue, green, red, as in Keras's `preprocess_input` for VGG16.
_MEANS = np.array([103.939, 116.779, 123.68], np.float32)[:, None, None]


@dataclass(frozen=True)
class Vgg16Plan(Plan):
    """VGG16 without its top; Winograd's form of a kernel has four times the values."""

    name = "VGG16"
    weights_bytes = 300 << 20
    bytes_a_pixel = 2_000

    weights: vgg16.Weights
    # ncnn's network is the same for every pooling.
    pooling: Pooling = field(compare=False)

    def text(self) -> str:
        """Return the layers as ncnn's text.

        Of a convolution the numbers are 0: filters, 1: side of the kernel, 4: padding, 5: whether it has a bias,
        6: values of the kernel, 9: 1 for ReLU. Of a pooling they are 0: 0 for the maximum, 1: side, 2: step, 5: 1 so
        that an odd last row is left out, as Keras does.
        """
        lines, below = ["Input data 0 1 data"], "data"
        names = list(vgg16.LAYER_SHAPES)
        for number, (name, shape) in enumerate(vgg16.LAYER_SHAPES.items(), start=1):
            lines.append(
                f"Convolution {name} 1 1 {below} {name} 0={shape[3]} 1={shape[0]} 4=1 5=1 6={int(np.prod(shape))} 9=1"
            )
            below, block = name, name.partition("_")[0]
            if number == len(names) or not names[number].startswith(block):
                lines.append(f"Pooling {block}_pool 1 1 {below} {block}_pool 0=0 1=2 2=2 5=1")
                below = f"{block}_pool"
        return as_text(lines)

    def content(self) -> bytes:
        layers = ((kernel.transpose(3, 2, 0, 1), bias) for kernel, bias in self.weights.layers.values())
        shapes = ((out, into, height, width) for height, width, into, out in vgg16.LAYER_SHAPES.values())
        return as_content(self.name, layers, shapes)

    def planes(self, pixels: Floats) -> Floats:
        planes: Floats = np.ascontiguousarray(pixels[..., ::-1].transpose(2, 0, 1), np.float32) - _MEANS
        return planes

    def features(self, maps_of: MapsOf) -> Floats:
        block4 = maps_of("block4_pool") if self.pooling == "gem-4-5" else None
        return _pool(block4, maps_of("block5_pool"), self.pooling)


def _pool(block4: Floats | None, block5: Floats, pooling: Pooling) -> Floats:
    """Pool the feature maps (channels, height, width) of one picture, whose values are all 0 or above."""
    if pooling == "average":
        return np.asarray(block5.mean(axis=(1, 2)))
    if pooling == "max":
        return np.asarray(block5.max(axis=(1, 2)))
    if pooling == "flatten":
        # Channels last, as everywhere in TensorFlow.
        return block5.transpose(1, 2, 0).reshape(-1)
    if pooling == "gem":
        return generalised_mean(block5)
    assert block4 is not None, "gem-4-5 reads both blocks"
    return np.concatenate([_unit(generalised_mean(maps)) for maps in (block4, block5)])


def _unit(row: Floats) -> Floats:
    """Return a row scaled to unit length; like TensorFlow's `l2_normalize`, rows near 0 only as far as 1e-6 allows."""
    return row / np.float32(max(float(np.linalg.norm(row)), 1e-6))

"""EfficientNet-Lite2 for the engine ncnn: its layers, its input, and the pooling of its feature maps with NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gpu_cluster.embedding import efficientnet_lite
from gpu_cluster.embedding.efficientnet_lite import LAYERS, MEAN, SPREAD, Layer
from gpu_cluster.embedding.engines.ncnn_plan import Floats, MapsOf, Plan, as_content, as_text, generalised_mean

# ncnn's number for padding that is TensorFlow's "SAME", with more at the right and the bottom.
_SAME = -233


@dataclass(frozen=True)
class EfficientNetLitePlan(Plan):
    """EfficientNet-Lite2 without its classifier."""

    name = "EfficientNet-Lite2"
    weights_bytes = 80 << 20
    bytes_a_pixel = 500

    weights: efficientnet_lite.Weights

    def text(self) -> str:
        """Return the layers as ncnn's text.

        Of a convolution the numbers are 0: filters, 1: side of the kernel, 3: stride, 4: padding, 5: whether it has a
        bias, 6: values of the kernel, 7: groups, if it is depthwise, 9: 3 for limits, which -23310 gives. Of a
        `BinaryOp` 0 is 0 for a sum. What two layers read must be split before.
        """
        added = {layer.adds for layer in LAYERS}
        lines, below = ["Input data 0 1 data"], "data"
        for layer in LAYERS:
            lines.append(_convolution(layer, below))
            below = layer.name
            if layer.adds is not None:
                below = f"{layer.name}_sum"
                lines.append(f"BinaryOp {below} 2 1 {layer.name} {layer.adds}_kept {below} 0=0")
            if layer.name in added:
                lines.append(f"Split {layer.name}_split 1 2 {below} {layer.name}_next {layer.name}_kept")
                below = f"{layer.name}_next"
        return as_text(lines)

    def content(self) -> bytes:
        return as_content(self.name, self._ordered(), map(_ordered_shape, LAYERS))

    def _ordered(self) -> Iterator[tuple[Floats, Floats]]:
        for layer in LAYERS:
            kernel, bias = self.weights.layers[layer.name]
            yield kernel.transpose((2, 3, 0, 1) if layer.is_depthwise else (3, 2, 0, 1)), bias

    def planes(self, pixels: Floats) -> Floats:
        scaled = (pixels - np.float32(MEAN)) / np.float32(SPREAD)
        return np.ascontiguousarray(scaled.transpose(2, 0, 1), np.float32)

    def features(self, maps_of: MapsOf) -> Floats:
        return generalised_mean(maps_of(LAYERS[-1].name))


def _ordered_shape(layer: Layer) -> tuple[int, int, int, int]:
    """Return the shape of a kernel as ncnn reads it: (out, in, height, width), depthwise (channels, 1, ...)."""
    height, width, into, out = layer.shape
    return (into, out, height, width) if layer.is_depthwise else (out, into, height, width)


def _convolution(layer: Layer, below: str) -> str:
    kind = "ConvolutionDepthWise" if layer.is_depthwise else "Convolution"
    numbers = f"0={layer.channels} 1={layer.shape[0]} 3={layer.stride} 4={_SAME} 5=1 6={int(np.prod(layer.shape))}"
    groups = f" 7={layer.channels}" if layer.is_depthwise else ""
    limits = " 9=3 -23310=2,0.0,6.0" if layer.has_relu6 else ""
    return f"{kind} {layer.name} 1 1 {below} {layer.name} {numbers}{groups}{limits}"

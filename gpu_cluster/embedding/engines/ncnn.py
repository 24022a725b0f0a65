"""The engine ncnn: runs VGG16 on the CPU with Winograd's convolutions, which need half the multiplications.

The network is written for ncnn from the checked weights when it is first used, and its feature maps are pooled with
NumPy. Each picture runs on one core, and as many pictures as there are cores run at once, so the result for a picture
does not depend on its batch. docs/engines.md says what else was tried.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from gpu_cluster.backend import Array, IntArray, installed
from gpu_cluster.backend.cores import usable_cores
from gpu_cluster.config import PixelsConfig, Pooling
from gpu_cluster.embedding import vgg16
from gpu_cluster.embedding.engines import pillow_input
from gpu_cluster.embedding.engines.base import EXTRA, Engine, Installation, OutOfMemoryError
from gpu_cluster.embedding.extractors import Extractor
from gpu_cluster.errors import DeviceError, JobError, WeightsError
from gpu_cluster.images.source import Picture
from gpu_cluster.images.square import to_square

_Maps = npt.NDArray[np.float32]

# The number at the beginning of every network that is written as text, and ncnn's code for a lack of memory.
_MAGIC, _NO_MEMORY = 7767517, -100
# Four bytes before the weights of a layer: they are float32.
_FLOAT32_TAG = bytes(4)

# Means of ImageNet's pixels, blue, green, red, as in Keras's `preprocess_input` for VGG16.
_MEANS = np.array([103.939, 116.779, 123.68], np.float32)[:, None, None]

# Pictures a core in a batch, so that a core that is done early does not wait long; the least number of pictures in a
# batch; and the memory that the pixels of a batch may take.
_PICTURES_A_CORE, _LEAST_BATCH, _BATCH_BYTES = 4, 32, 256 << 20

# Measured: what ncnn takes for the weights, and for each picture in work; the pictures in work take this share of the
# free memory at most.
_WEIGHTS_BYTES, _BYTES_A_PIXEL, _SHARE = 300 << 20, 2_000, 1 / 2


@dataclass(frozen=True)
class _Network:
    """ncnn's network, and the weights that it was given: it may refer to them."""

    net: Any
    weights: bytes


class NcnnEngine(Engine):
    """Runs VGG16 in float32 on all cores."""

    name = "ncnn"
    extractor: Extractor
    _network: _Network | None = None

    @classmethod
    def installation(cls) -> Installation:
        spec = find_spec("ncnn")
        # Python takes a folder that is left from an earlier installation for a package, but one without an origin.
        if spec is None or spec.origin is None:
            return Installation("not installed", f"{EXTRA} (it contains ncnn where there is a wheel of it)")
        return Installation(f"ncnn {_version()}")

    @classmethod
    def why_not(cls, extractor: Extractor) -> str | None:
        if isinstance(extractor.network, vgg16.Network):
            return None
        return f"it runs VGG16 only, found {extractor.key.get('backbone') or extractor.key.get('features')}"

    @property
    def identity(self) -> str:
        # Pillow makes the pixels.
        return f"ncnn {_version()} pillow {version('pillow')} {self.backend.name}"

    def versions(self) -> Mapping[str, str]:
        return {"ncnn": _version()}

    def build(self) -> None:
        if self._network is not None:
            return
        network = self.extractor.network
        assert isinstance(network, vgg16.Network), "`why_not` says so before"
        self.backend.share_device_with(self.name)
        side = self.config.side
        fitting = int(_SHARE * self.backend.free_bytes()) // (_BYTES_A_PIXEL * side * side)
        n_at_once = max(1, min(usable_cores(), fitting))
        self.batch_size = self.config.batch_size or _batch_size(side, n_at_once)
        self._pooling = network.pooling
        self._network = _built(network.weights)
        self._threads = ThreadPoolExecutor(n_at_once)

    def squares(
        self, pictures: Sequence[Picture], configs: Sequence[PixelsConfig]
    ) -> Iterator[tuple[IntArray, tuple[Any, ...]]]:
        yield from pillow_input.batches(pictures, configs, batch_size=self.batch_size)

    def square(self, decoded: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        try:
            return to_square(decoded, self.config)
        except MemoryError as error:
            raise OutOfMemoryError(str(error)) from error

    def features(self, pixels: Any) -> Array:
        assert self._network is not None, "build comes first"
        try:
            return self.backend.from_host(np.stack(list(self._threads.map(self._row, pixels))))
        except MemoryError as error:
            raise OutOfMemoryError(f"no memory for the network: {error}") from error

    def _row(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the features (d,) of one picture (side, side, 3)."""
        import ncnn

        planes = np.ascontiguousarray(pixels[..., ::-1].transpose(2, 0, 1), np.float32) - _MEANS
        assert self._network is not None, "build comes first"
        extractor = self._network.net.create_extractor()
        # ncnn keeps no reference to the planes, so they must live until the last result is read.
        _check(extractor.input("data", ncnn.Mat(planes)))
        block4 = _maps(extractor, "block4_pool") if self._pooling == "gem-4-5" else None
        return _pool(block4, _maps(extractor, "block5_pool"), self._pooling)


def _batch_size(image_size: int, n_at_once: int) -> int:
    """Return the number of pictures in a batch: enough for all cores, in little memory."""
    fitting = _BATCH_BYTES // (image_size * image_size * 3 * 4)
    return max(n_at_once, min(fitting, max(_LEAST_BATCH, _PICTURES_A_CORE * n_at_once)))


def _version() -> str:
    return installed("ncnn").get("ncnn", "not installed")


# Without this cache, a process that embeds several times would prepare the weights every time.
@functools.lru_cache(maxsize=1)
def _built(weights: vgg16.Weights) -> _Network:
    """Return the network with its weights; it may run in several threads at once.

    Memory: 310 MB, because Winograd's form of a kernel has four times the values, and the weights themselves stay.

    Raises
    ------
    DeviceError
        When ncnn is installed and cannot be loaded.
    MemoryError
        When there is no memory for the weights.
    WeightsError
        When the weights are not complete.
    """
    try:
        import ncnn
    except ImportError as error:
        raise DeviceError(
            f"ncnn, which runs the network, cannot be loaded: {error}; use --engine tensorflow"
        ) from error
    net = ncnn.Net()
    for name in dir(net.opt):
        # Half precision in all its forms: the results are to be those of float32.
        if name.startswith(("use_fp16", "use_bf16", "use_int8", "use_vulkan")):
            setattr(net.opt, name, False)
    net.opt.use_winograd_convolution = True
    net.opt.use_packing_layout = True
    net.opt.num_threads = 1
    # Without memory for the weights, ncnn 1.0 ends the process, so the memory is tried first. Nothing is written to it.
    np.empty(_WEIGHTS_BYTES, np.uint8)
    _check(net.load_param_mem(_description()))
    content = _model(weights)
    net.load_model_mem(content)
    return _Network(net, content)


def _model(weights: vgg16.Weights) -> bytes:
    """Return the weights as ncnn reads them: for each layer a tag, the kernel in the order OIHW, and the bias.

    Raises
    ------
    WeightsError
        When they are not as many bytes as the network reads: ncnn is given no length, and would read what lies behind
        them in memory.
    """
    parts = []
    for kernel, bias in weights.layers.values():
        ordered = (np.ascontiguousarray(array, np.float32) for array in (kernel.transpose(3, 2, 0, 1), bias))
        parts += [_FLOAT32_TAG, *(array.tobytes() for array in ordered)]
    content = b"".join(parts)
    expected = sum(len(_FLOAT32_TAG) + 4 * (int(np.prod(shape)) + shape[3]) for shape in vgg16.LAYER_SHAPES.values())
    if len(content) != expected:
        raise WeightsError(
            f"the weights for ncnn are {len(content):,} bytes, and VGG16 has {expected:,}: the weights in memory "
            "are not those of the file; run the same command again"
        )
    return content


def _description() -> str:
    """Return VGG16 without its top as ncnn's text: a line a layer, with what it reads, what it makes, and its numbers.

    Of a convolution the numbers are 0: filters, 1: side of the kernel, 4: padding, 5: whether it has a bias, 6: values
    of the kernel, 9: 1 for ReLU. Of a pooling they are 0: 0 for the maximum, 1: side, 2: step, 5: 1 so that an odd last
    row is left out, as Keras does.
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
    # Every layer makes one map.
    return "\n".join([str(_MAGIC), f"{len(lines)} {len(lines)}", *lines, ""])


def _maps(extractor: Any, name: str) -> _Maps:
    """Run the network up to a layer, and return its feature maps (channels, height, width)."""
    code, maps = extractor.extract(name)
    _check(code)
    return np.array(maps)


def _check(code: int) -> None:
    """Turn ncnn's code into an error, if it is one."""
    if code == _NO_MEMORY:
        raise MemoryError("ncnn got no memory")
    if code != 0:
        raise JobError(f"ncnn failed with code {code}; use --engine tensorflow, and please report it")


def _pool(block4: _Maps | None, block5: _Maps, pooling: Pooling) -> npt.NDArray[np.float32]:
    """Pool the feature maps (channels, height, width) of one picture, whose values are all 0 or above."""
    if pooling == "average":
        return np.asarray(block5.mean(axis=(1, 2)))
    if pooling == "max":
        return np.asarray(block5.max(axis=(1, 2)))
    if pooling == "flatten":
        # Channels last, as everywhere in TensorFlow.
        return block5.transpose(1, 2, 0).reshape(-1)
    if pooling == "gem":
        return _generalised_mean(block5)
    assert block4 is not None, "gem-4-5 reads both blocks"
    return np.concatenate([_unit(_generalised_mean(maps)) for maps in (block4, block5)])


def _generalised_mean(maps: _Maps) -> npt.NDArray[np.float32]:
    """Return the cube root of the mean of the cubes (Radenovic, Tolias and Chum 2018, with their p = 3)."""
    found: npt.NDArray[np.float32] = np.cbrt((maps * maps * maps).mean(axis=(1, 2)))
    return found


def _unit(row: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return a row scaled to unit length; like TensorFlow's `l2_normalize`, rows near 0 only as far as 1e-6 allows."""
    return row / np.float32(max(float(np.linalg.norm(row)), 1e-6))

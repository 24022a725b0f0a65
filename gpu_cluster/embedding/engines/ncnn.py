"""The engine ncnn: runs VGG16 and EfficientNet-Lite2 on the CPU, VGG16 with half the multiplications (Winograd).

A network is written for ncnn from the checked weights when it is first used, and its feature maps are pooled with
NumPy; `ncnn_plan` has what differs between networks. Each picture runs on one core, and as many pictures as there are
cores run at once, so the result for a picture does not depend on its batch. docs/engines.md says what else was tried.
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
from gpu_cluster.config import PixelsConfig
from gpu_cluster.embedding import efficientnet_lite, vgg16
from gpu_cluster.embedding.engines import pillow_input
from gpu_cluster.embedding.engines.base import EXTRA, Engine, Installation, OutOfMemoryError
from gpu_cluster.embedding.engines.ncnn_efficientnet_lite import EfficientNetLitePlan
from gpu_cluster.embedding.engines.ncnn_plan import Floats, Plan
from gpu_cluster.embedding.engines.ncnn_vgg16 import Vgg16Plan
from gpu_cluster.embedding.extractors import Extractor
from gpu_cluster.errors import DeviceError, JobError
from gpu_cluster.images.source import Picture
from gpu_cluster.images.square import to_square

# ncnn's code for a lack of memory.
_NO_MEMORY = -100

# Pictures a core in a batch, so that a core that is done early does not wait long; the least number of pictures in a
# batch; and the memory that the pixels of a batch may take.
_PICTURES_A_CORE, _LEAST_BATCH, _BATCH_BYTES = 4, 32, 256 << 20

# The pictures in work take this share of the free memory at most.
_SHARE = 1 / 2


@dataclass(frozen=True)
class _Network:
    """ncnn's network, and the weights that it was given: it may refer to them."""

    net: Any
    weights: bytes


class NcnnEngine(Engine):
    """Runs VGG16 and EfficientNet-Lite2 in float32 on all cores."""

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
        if extractor.network is not None:
            return None
        found = extractor.key.get("backbone") or extractor.key.get("features")
        return f"it runs VGG16 and EfficientNet-Lite2 only, found {found}"

    @property
    def identity(self) -> str:
        return self.identity_of(self.versions(), self.backend.name)

    @classmethod
    def identity_of(cls, versions: Mapping[str, str], device: str) -> str:
        # Pillow makes the pixels.
        return f"{cls.name} {versions['ncnn']} pillow {versions['pillow']} {device}"

    def versions(self) -> Mapping[str, str]:
        return {"ncnn": _version(), "pillow": version("pillow")}

    def build(self) -> None:
        if self._network is not None:
            return
        assert self.extractor.network is not None, "`why_not` says so before"
        self._plan = plan_of(self.extractor.network)
        self.backend.share_device_with(self.name)
        side = self.config.side
        fitting = int(_SHARE * self.backend.free_bytes()) // (self._plan.bytes_a_pixel * side * side)
        n_at_once = max(1, min(usable_cores(), fitting))
        self.batch_size = self.config.batch_size or _batch_size(side, n_at_once)
        self._network = _built(self._plan)
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

        planes = self._plan.planes(pixels)
        assert self._network is not None, "build comes first"
        extractor = self._network.net.create_extractor()
        # ncnn keeps no reference to the planes, so they must live until the last result is read.
        _check(extractor.input("data", ncnn.Mat(planes)))
        return self._plan.features(functools.partial(_maps, extractor))


def plan_of(network: vgg16.Network | efficientnet_lite.Network) -> Plan:
    """Return how ncnn reads a network."""
    if isinstance(network, vgg16.Network):
        return Vgg16Plan(network.weights, network.pooling)
    return EfficientNetLitePlan(network.weights)


def _batch_size(image_size: int, n_at_once: int) -> int:
    """Return the number of pictures in a batch: enough for all cores, in little memory."""
    fitting = _BATCH_BYTES // (image_size * image_size * 3 * 4)
    return max(n_at_once, min(fitting, max(_LEAST_BATCH, _PICTURES_A_CORE * n_at_once)))


def _version() -> str:
    return installed("ncnn").get("ncnn", "not installed")


# Without this cache, a process that embeds several times would prepare the weights every time. There is room for both
# networks, as a job may use them in turn.
@functools.lru_cache(maxsize=2)
def _built(plan: Plan) -> _Network:
    """Return a network with its weights; it may run in several threads at once.

    Memory: what the plan says for the weights, and the weights themselves, which stay.

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
    np.empty(plan.weights_bytes, np.uint8)
    _check(net.load_param_mem(plan.text()))
    content = plan.content()
    net.load_model_mem(content)
    return _Network(net, content)


def _maps(extractor: Any, name: str) -> Floats:
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

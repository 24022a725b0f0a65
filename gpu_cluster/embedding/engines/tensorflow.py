"""The TensorFlow engine: reads pictures with tf.data, runs Keras's networks, and hands over arrays by DLPack."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpu_cluster.backend import Array, IntArray, installed
from gpu_cluster.backend.tensorflow_devices import CPU
from gpu_cluster.config import PixelsConfig
from gpu_cluster.embedding import vgg16
from gpu_cluster.embedding.engines import tensorflow_input
from gpu_cluster.embedding.engines.base import EXTRA, Engine, Installation, OutOfMemoryError
from gpu_cluster.embedding.extractors import Extractor
from gpu_cluster.images.source import Picture

if TYPE_CHECKING:
    import tensorflow as tf


# When the memory is full, the libraries that compute convolutions and products do not start. TensorFlow reports this as
# an internal or unknown error with one of these texts.
_NO_MEMORY = (
    "out of memory",
    "OUT_OF_MEMORY",
    "STATUS_ALLOC_FAILED",
    "STATUS_NOT_INITIALIZED",
    "DNN library initialization failed",
    "No DNN in stream executor",
)


class TensorFlowEngine(Engine):
    """Runs the networks and the other features that the extractors build with TensorFlow."""

    name = "tensorflow"
    extractor: Extractor
    _network: Callable[[tf.Tensor], tf.Tensor] | None = None

    @classmethod
    def installation(cls) -> Installation:
        return find_tensorflow()

    @property
    def identity(self) -> str:
        return self.identity_of(self.versions(), self.backend.name)

    def versions(self) -> Mapping[str, str]:
        return {"tensorflow": _tensorflow_version(), "keras": version("keras")}

    def build(self) -> None:
        if self._network is not None:
            return
        vgg16.check_keras()
        self.backend.share_device_with(self.name)
        self.batch_size = self.config.batch_size or self.backend.batch_size(self.config.side)
        import tensorflow as tf

        with tf.device(self.backend.tensorflow_device):
            self._network = self.extractor.build(self.precision)

    def squares(
        self, pictures: Sequence[Picture], configs: Sequence[PixelsConfig]
    ) -> Iterator[tuple[IntArray, tuple[Any, ...]]]:
        import tensorflow as tf

        # Decoding and resizing are always done on the CPU. The scope must not contain a `yield`: the code that takes
        # the batches would run in it.
        with tf.device(CPU):
            dataset = tensorflow_input.batches(
                pictures, configs, batch_size=self.batch_size, device=self.backend.tensorflow_device
            )
            if dataset is None:
                return
            decoded = iter(dataset)
        while True:
            try:
                positions, *pixels = next(decoded)
            except StopIteration:
                return
            except tf.errors.ResourceExhaustedError as error:
                # The batch was already decoded, so a smaller one cannot be tried here.
                raise MemoryError(str(error)) from error
            yield positions.numpy(), tuple(pixels)

    def square(self, decoded: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        import tensorflow as tf

        try:
            with tf.device(CPU):
                return np.asarray(tensorflow_input.to_square(tf.constant(decoded), self.config))
        except tf.errors.ResourceExhaustedError as error:
            raise OutOfMemoryError(str(error)) from error

    def features(self, pixels: Any) -> Array:
        import tensorflow as tf

        assert self._network is not None, "build comes first"
        n = len(pixels)
        try:
            with tf.device(self.backend.tensorflow_device):
                batch = tf.convert_to_tensor(pixels)
                if self.backend.pads_batches and n < self.batch_size:
                    batch = tf.pad(batch, [[0, self.batch_size - n], [0, 0], [0, 0], [0, 0]])
                found = self._network(batch)
                # The tensor must live until the next batch, because the returned array is a view of its memory.
                # `identity` copies nothing on the device, and copies to it what was computed elsewhere.
                self._found = tf.identity(found if len(found) == n else found[:n])
            return self.backend.from_dlpack(tf.experimental.dlpack.to_dlpack(self._found))
        except tf.errors.OpError as error:
            if isinstance(error, tf.errors.ResourceExhaustedError) or any(word in str(error) for word in _NO_MEMORY):
                raise OutOfMemoryError(str(error)) from error
            raise


def find_tensorflow() -> Installation:
    """Look for TensorFlow without loading it."""
    spec = find_spec("tensorflow")
    # Python takes a folder that is left from an earlier installation for a package, but one without an origin.
    if spec is None or spec.origin is None:
        wheel = f"gpu_cluster-{version('gpu-cluster')}-py3-none-any.whl"
        return Installation(
            "not installed",
            f"{EXTRA}, or on a machine with an NVIDIA GPU '.[gpu]'; from a wheel file, pip install 'dist/{wheel}[cpu]'",
        )
    found = installed(*_WHEELS)
    words = ", ".join(f"{name} {number}" for name, number in found.items())
    if len(found) > 1:
        return Installation(
            words,
            f"they install the same module: pip uninstall {' '.join(found)}, then install one extra of gpu-cluster, "
            "cpu or gpu",
        )
    return Installation(words or "installed under another name than tensorflow and tensorflow-cpu")


# Wheels that install the module `tensorflow`.
_WHEELS = ("tensorflow-cpu", "tensorflow")


def _tensorflow_version() -> str:
    return next(iter(installed(*_WHEELS).values()), "not installed")

"""The TensorFlow engine: reads pictures with tf.data, runs Keras's networks, and hands over arrays by DLPack."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpu_cluster.backend import Array, IntArray
from gpu_cluster.embedding import vgg16
from gpu_cluster.embedding.engines import tensorflow_input
from gpu_cluster.embedding.engines.base import Engine, OutOfMemoryError
from gpu_cluster.images.source import Picture

if TYPE_CHECKING:
    import tensorflow as tf


class TensorFlowEngine(Engine):
    """Runs the networks and the other features that the extractors build with TensorFlow."""

    name = "tensorflow"
    _network: Callable[[tf.Tensor], tf.Tensor] | None = None

    @property
    def identity(self) -> str:
        return f"tensorflow {_tensorflow_version()} {self.backend.name}"

    def versions(self) -> Mapping[str, str]:
        return {"tensorflow": _tensorflow_version(), "keras": version("keras")}

    def build(self) -> None:
        if self._network is not None:
            return
        vgg16.use_tensorflow()
        self.backend.share_device_with(self.name)
        self.batch_size = self.config.batch_size or self.backend.batch_size(self.config.image_size)
        self._network = self.extractor.build(self.precision)

    def batches(self, pictures: Sequence[Picture]) -> Iterator[tuple[IntArray, Any]]:
        for positions, pixels in tensorflow_input.batches(pictures, self.config, batch_size=self.batch_size):
            yield positions.numpy(), pixels

    def square(self, decoded: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        import tensorflow as tf

        try:
            return np.asarray(tensorflow_input.to_square(tf.constant(decoded), self.config))
        except tf.errors.ResourceExhaustedError as error:
            raise OutOfMemoryError(str(error)) from error

    def features(self, pixels: Any) -> Array:
        import tensorflow as tf

        assert self._network is not None, "build comes first"
        try:
            # The tensor must live until the next batch, because the returned array is a view of its memory.
            self._found = self._network(tf.convert_to_tensor(pixels))
        except tf.errors.ResourceExhaustedError as error:
            raise OutOfMemoryError(str(error)) from error
        return self.backend.from_dlpack(tf.experimental.dlpack.to_dlpack(self._found))


def _tensorflow_version() -> str:
    for distribution in ("tensorflow-cpu", "tensorflow"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "not installed"

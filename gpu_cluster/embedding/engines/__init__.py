"""The engines that run the networks: `base.Engine` is their interface, and `tensorflow` is the only one so far."""

from gpu_cluster.backend import Backend
from gpu_cluster.config import PixelsConfig
from gpu_cluster.embedding.engines.base import Engine, OutOfMemoryError, Pixels
from gpu_cluster.embedding.engines.tensorflow import TensorFlowEngine, find_tensorflow
from gpu_cluster.embedding.extractors import Extractor
from gpu_cluster.errors import DeviceError

__all__ = [
    "Engine",
    "OutOfMemoryError",
    "Pixels",
    "TensorFlowEngine",
    "check_installed",
    "choose_engine",
    "find_tensorflow",
]


def check_installed() -> None:
    """Check, before work starts, that what the engine runs on is installed; nothing is loaded.

    It is needed even if the store holds every embedding, because the version of TensorFlow belongs to their key.

    Raises
    ------
    DeviceError
        When it is not; the message says what to install.
    """
    tensorflow = find_tensorflow()
    if tensorflow.remedy:
        raise DeviceError(
            f"TensorFlow, which runs the network, cannot be used: {tensorflow.found}; {tensorflow.remedy}"
        )


def choose_engine(backend: Backend, extractor: Extractor, config: PixelsConfig) -> Engine:
    """Return the engine that runs the extractor on this device; nothing is loaded yet."""
    return TensorFlowEngine(backend, extractor, config)

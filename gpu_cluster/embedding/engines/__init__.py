"""The engines that run the networks: `base.Engine` is their interface, and `tensorflow` is the only one so far."""

from gpu_cluster.backend import Backend
from gpu_cluster.config import PixelsConfig
from gpu_cluster.embedding.engines.base import Engine, OutOfMemoryError, Pixels
from gpu_cluster.embedding.engines.tensorflow import TensorFlowEngine
from gpu_cluster.embedding.extractors import Extractor

__all__ = ["Engine", "OutOfMemoryError", "Pixels", "TensorFlowEngine", "choose_engine"]


def choose_engine(backend: Backend, extractor: Extractor, config: PixelsConfig) -> Engine:
    """Return the engine that runs the extractor on this device; nothing is loaded yet."""
    return TensorFlowEngine(backend, extractor, config)

"""The engines that run the networks: `base.Engine` is their interface; `tensorflow` runs all of them, `ncnn` some.

`JoinedEngine` runs several networks on the same pictures by engines of one kind.
"""

from __future__ import annotations

from collections.abc import Mapping

from gpu_cluster.backend import Backend
from gpu_cluster.config import EngineName, PixelsConfig
from gpu_cluster.embedding.engines.base import Engine, Installation, OutOfMemoryError, Pixels
from gpu_cluster.embedding.engines.joined import JoinedEngine
from gpu_cluster.embedding.engines.ncnn import NcnnEngine
from gpu_cluster.embedding.engines.tensorflow import TensorFlowEngine
from gpu_cluster.embedding.extractors import Extractor, Joined
from gpu_cluster.errors import ConfigError, DeviceError

__all__ = [
    "ENGINES",
    "Engine",
    "Installation",
    "JoinedEngine",
    "NcnnEngine",
    "OutOfMemoryError",
    "Pixels",
    "TensorFlowEngine",
    "check_installed",
    "choose_engine",
]

# Every engine, by the name that the config has for it.
ENGINES: Mapping[str, type[Engine]] = {"ncnn": NcnnEngine, "tensorflow": TensorFlowEngine}
_NAMES = {"ncnn": "ncnn", "tensorflow": "TensorFlow"}


def check_installed(asked: EngineName, backend: Backend) -> None:
    """Check, before work starts, that an engine that is asked for, or that may be chosen, is installed; loads nothing.

    It is needed even if the store holds every embedding, because the version of the engine belongs to their key.

    Raises
    ------
    DeviceError
        When it is not; the message says what to install.
    """
    names = backend.engines if asked == "auto" else (asked,)
    found = {name: ENGINES[name].installation() for name in names}
    if all(one.remedy for one in found.values()):
        # The last one runs everything, and what installs it installs the others too.
        last = names[-1]
        others = "".join(f"; {_NAMES[name]}: {found[name].found}" for name in names[:-1])
        raise DeviceError(
            f"{_NAMES[last]}, which runs the network, cannot be used: {found[last].found}{others}; {found[last].remedy}"
        )


def choose_engine(backend: Backend, extractor: Extractor | Joined, config: PixelsConfig) -> Engine:
    """Return the engine that runs the extractor on this device; nothing is loaded yet.

    `auto` is the first engine of the device that is installed and can run the extractor, with all its parts.

    Raises
    ------
    ConfigError
        When the engine asked for does not run on this device, or not this extractor; or the device does not compute in
        the precision asked for.
    DeviceError
        When it is not installed.
    """
    asked = config.engine
    if asked != "auto":
        why = _why_not(asked, backend, extractor)
        if why is not None:
            raise ConfigError(f"--engine {asked}: {why}; use --engine auto")
        check_installed(asked, backend)
        return _made(asked, backend, extractor, config)
    reasons: list[str] = []
    for name in backend.engines:
        found = ENGINES[name].installation()
        why = found.found if found.remedy else _why_not(name, backend, extractor)
        if why is None:
            engine = _made(name, backend, extractor, config)
            engine.reason = "; ".join(reasons) or f"the first choice on the {backend.name}"
            return engine
        reasons.append(f"{name} cannot be used: {why}")
    check_installed("tensorflow", backend)
    raise DeviceError(f"no engine can run these features: {'; '.join(reasons)}")


def _made(name: str, backend: Backend, extractor: Extractor | Joined, config: PixelsConfig) -> Engine:
    if isinstance(extractor, Joined):
        return JoinedEngine([ENGINES[name](backend, part, config) for part in extractor.parts], extractor)
    return ENGINES[name](backend, extractor, config)


def _why_not(name: str, backend: Backend, extractor: Extractor | Joined) -> str | None:
    if name not in backend.engines:
        return f"it does not compute on the {backend.name}"
    return next((why for part in extractor.parts if (why := ENGINES[name].why_not(part)) is not None), None)

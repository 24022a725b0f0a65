"""Which engine runs what, why, and what is said where it cannot."""

from __future__ import annotations

import pytest

from gpu_cluster.backend import CpuBackend
from gpu_cluster.config import EmbedConfig
from gpu_cluster.embedding import efficientnet_lite, extractors, vgg16
from gpu_cluster.embedding.engines import ENGINES, Installation, choose_engine
from gpu_cluster.errors import ConfigError, DeviceError


class LikeACard(CpuBackend):
    """A device of one engine, as a GPU is."""

    name = "gpu"
    engines = ("tensorflow",)


def of_vgg16() -> extractors.Extractor:
    return extractors.of_vgg16(vgg16.find_weights(), EmbedConfig())


def of_lite2() -> extractors.Extractor:
    return extractors.of_efficientnet_lite2(efficientnet_lite.find_weights(), efficientnet_lite.SIDE)


def missing(patch: pytest.MonkeyPatch, name: str) -> None:
    patch.setattr(ENGINES[name], "installation", lambda: Installation("not installed", "install it"))


def test_auto_is_ncnn_for_both_networks_on_the_cpu_and_tensorflow_for_all_else():
    pytest.importorskip("ncnn")
    for extractor in (of_vgg16(), of_lite2()):
        engine = choose_engine(CpuBackend(), extractor, EmbedConfig())
        assert (engine.name, engine.reason) == ("ncnn", "the first choice on the cpu")
        assert choose_engine(LikeACard(), extractor, EmbedConfig()).name == "tensorflow"
    engine = choose_engine(CpuBackend(), extractors.colour_histogram(), EmbedConfig())
    assert (engine.name, engine.reason) == (
        "tensorflow",
        "ncnn cannot be used: it runs VGG16 and EfficientNet-Lite2 only, found colour histogram",
    )


def test_auto_is_tensorflow_where_ncnn_is_not_installed(monkeypatch):
    missing(monkeypatch, "ncnn")
    engine = choose_engine(CpuBackend(), of_vgg16(), EmbedConfig())
    assert (engine.name, engine.reason) == ("tensorflow", "ncnn cannot be used: not installed")
    with pytest.raises(DeviceError, match="ncnn, which runs the network, cannot be used: not installed; install it"):
        choose_engine(CpuBackend(), of_vgg16(), EmbedConfig(engine="ncnn"))


def test_features_of_tensorflow_alone_need_it(monkeypatch):
    missing(monkeypatch, "tensorflow")
    with pytest.raises(DeviceError, match="TensorFlow, which runs the network, cannot be used: not installed"):
        choose_engine(CpuBackend(), extractors.oriented_gradients(64), EmbedConfig())


def test_an_engine_asked_for_that_cannot_run_this_is_an_error():
    with pytest.raises(ConfigError, match=r"--engine ncnn: it runs .* only, found histograms of oriented gradients"):
        choose_engine(CpuBackend(), extractors.oriented_gradients(64), EmbedConfig(engine="ncnn"))
    with pytest.raises(ConfigError, match="--engine ncnn: it does not compute on the gpu; use --engine auto"):
        choose_engine(LikeACard(), of_vgg16(), EmbedConfig(engine="ncnn"))


def test_every_engine_has_an_identity_of_its_own_by_which_the_store_keeps_them_apart():
    config = EmbedConfig()
    engines = [engine(CpuBackend(), of_vgg16(), config) for engine in ENGINES.values()]
    assert len({engine.identity for engine in engines}) == len(engines)
    assert [engine.identity.split()[0] for engine in engines] == list(ENGINES)

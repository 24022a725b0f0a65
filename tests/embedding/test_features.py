"""The names of features: which are known, what a join may be, and which options belong to which network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import gpu_cluster
from gpu_cluster.config import EmbedConfig, PredictConfig, RunConfig
from gpu_cluster.embedding import features
from gpu_cluster.embedding.extractors import Extractor, Joined
from gpu_cluster.errors import ConfigError, WeightsError
from gpu_cluster.options import build_config, settings
from tests.helpers import FLOWERS

DEFAULT = "vgg16:2+efficientnet-lite2"


def made(**options: Any) -> Extractor | Joined:
    return features.extractor_of(build_config(RunConfig, **options).embed, features.Weights())


def test_the_default_joins_both_networks_each_at_its_own_side():
    found = made()
    assert isinstance(found, Joined)
    assert [part.key["backbone"] for part in found.parts] == ["VGG16", "EfficientNet-Lite2"]
    assert (found.shares, found.n_features) == ((2.0, 1.0), 1024 + 1280)
    assert [part.side for part in found.parts] == [None, 260]
    assert [EmbedConfig().side, EmbedConfig(image_size=64).side] == [224, 64]
    assert [path.name for path, _sha256 in features.weights_of(found)] == [
        "vgg16_imagenet_notop.weights.h5",
        "efficientnet_lite2_imagenet.npz",
    ]


@pytest.mark.parametrize(
    ("named", "plain"),
    [
        ("vgg16-max", "vgg16"),
        (" vgg16-max :2 + colours", "vgg16:2+colours"),
        ("efficientnet-lite2+vgg16-max:0.5", "efficientnet-lite2+vgg16:0.5"),
    ],
)
def test_a_pooling_in_a_name_is_the_option_of_that_name(named, plain):
    config = build_config(RunConfig, features=named)
    assert (config.embed.features, config.embed.pooling) == (plain, "max")
    found = {one.option.name: (one.value, one.source) for one in settings(RunConfig, features=named)}
    assert found["pooling"] == ("max", "command line")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"features": "vgg19"}, r"--features: unknown 'vgg19' \(did you mean 'vgg16'\?\); known are vgg16, "),
        ({"features": "notebook"}, "--features: 'notebook' is a preset, .* use --preset notebook"),
        ({"features": "vgg16-max", "pooling": "max"}, "--features vgg16-max names a pooling .* leave out one"),
        ({"features": "vgg16+vgg16-max"}, "expected each network once, found vgg16 twice in 'vgg16[+]vgg16'"),
        ({"features": "vgg16-max+vgg16-average"}, "expected each network once, found vgg16 twice"),
        ({"features": "colours+"}, "--features: unknown ''"),
        ({"features": "vgg16:0+hog"}, "expected a weight from 0.001 to 1,000 after each colon, found '0'"),
        ({"features": "vgg16:much+hog"}, "expected a weight from 0.001 to 1,000 after each colon, found 'much'"),
        ({"features": "vgg16:1e39+hog"}, "expected a weight from 0.001 to 1,000 after each colon, found '1e39'"),
        ({"features": "hog", "pooling": "max"}, "--pooling: it is for VGG16, which is not among the features 'hog'"),
        ({"features": "hog", "weights": "w.h5"}, "--weights: it names weights of VGG16, which is not among"),
    ],
)
def test_features_that_cannot_be_are_refused_with_what_was_found(options, said):
    with pytest.raises(ConfigError, match=said):
        made(**options)


def test_square_roots_are_not_taken_of_features_with_numbers_below_0(tmp_path):
    (tmp_path / "a.png").write_bytes((FLOWERS / "0001.png").read_bytes())
    with pytest.raises(
        ConfigError, match=r"--scaling sqrt-l2 needs .* below 0; found vgg16\+convnexttiny: use another"
    ):
        gpu_cluster.run(tmp_path / "a.png", features="vgg16+convnexttiny", scaling="sqrt-l2", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_network_of_keras_without_its_weights_is_refused_with_the_place_for_them(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match=rf"expected '{tmp_path}/models/resnet50_.*; Keras downloads them"):
        made(features="vgg16+resnet50")


def test_what_is_named_holds_against_the_pooling_of_a_preset_and_of_a_record(tmp_path: Path):
    assert build_config(RunConfig, preset="notebook").embed.features == "vgg16"
    config = build_config(RunConfig, preset="notebook", features="vgg16-max").embed
    assert (config.features, config.pooling, config.decoding) == ("vgg16", "max", 2)
    config = build_config(RunConfig, preset="notebook", features="efficientnet-lite2").embed
    assert (config.features, config.pooling) == ("efficientnet-lite2", EmbedConfig().pooling)
    record = tmp_path / "run.json"
    recorded = build_config(RunConfig, features="vgg16-max:3+efficientnet-lite2")
    record.write_text(json.dumps({"config": recorded.model_dump(mode="json")}))
    assert build_config(RunConfig, record) == recorded
    assert build_config(RunConfig, record, features="vgg16-average").embed.pooling == "average"
    assert build_config(RunConfig, record, features="hog").embed.pooling == EmbedConfig().pooling


def test_a_record_without_features_is_one_of_vgg16_and_a_file_of_options_is_not(tmp_path: Path):
    content = build_config(RunConfig).model_dump(mode="json")
    del content["embed"]["features"]
    (tmp_path / "run.json").write_text(json.dumps({"config": content}))
    assert build_config(RunConfig, tmp_path / "run.json").embed.features == "vgg16"
    (tmp_path / "options.toml").write_text("[embed]\nbatch_size = 8\n")
    assert build_config(RunConfig, tmp_path / "options.toml").embed.features == DEFAULT == EmbedConfig().features


def test_predict_has_the_option_and_no_default():
    assert build_config(PredictConfig).embed.features is None

"""EfficientNet-Lite2: what both engines give, against the network written out in NumPy; and which files are refused."""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gpu_cluster.backend import CpuBackend
from gpu_cluster.config import EmbedConfig, EngineName, shipped_data
from gpu_cluster.embedding import efficientnet_lite, extractors
from gpu_cluster.embedding.engines import ENGINES
from gpu_cluster.errors import WeightsError
from tests.helpers import photos

SHIPPED = shipped_data() / "weights" / "efficientnet_lite2_imagenet.npz"
FLOWERS = shipped_data() / "flowers"

# The number of the class that ImageNet has for daisies.
DAISY = 985

# Blocks whose depthwise convolution has a stride of 2: the first ones of the groups that halve the maps.
HALVING = {1, 4, 7, 15}


@cache
def arrays() -> dict[str, np.ndarray]:
    with np.load(SHIPPED, allow_pickle=False) as file:
        return dict(file)


def pixels(file: Path, side: int) -> np.ndarray:
    with Image.open(file) as picture:
        resized = picture.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.float32)


# The network as it is published, with the arrays as they are in the file, in float64.


def convolved(maps: np.ndarray, name: str, stride: int = 1) -> np.ndarray:
    kernel = arrays()[f"{name}.weight"].astype(np.float64)
    side = maps.shape[1]
    missing = max((-(-side // stride) - 1) * stride + kernel.shape[2] - side, 0)
    before, after = missing // 2, missing - missing // 2
    padded = np.pad(maps, ((0, 0), (before, after), (before, after)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[2:], (1, 2))[:, ::stride, ::stride]
    if "depthwise" in name:
        return np.einsum("chwij,cij->chw", windows, kernel[:, 0])
    return np.tensordot(kernel, windows, axes=([1, 2, 3], [0, 3, 4]))


def normalised(maps: np.ndarray, name: str) -> np.ndarray:
    weight, bias, mean, variance = (
        arrays()[f"{name}.{part}"].astype(np.float64)[:, None, None]
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (maps - mean) / np.sqrt(variance + 1e-3) * weight + bias


def limited(maps: np.ndarray) -> np.ndarray:
    return np.clip(maps, 0, 6)


def block(maps: np.ndarray, number: int) -> np.ndarray:
    name, made = f"_blocks.{number}", maps
    if f"{name}._expand_conv.weight" in arrays():
        made = limited(normalised(convolved(made, f"{name}._expand_conv"), f"{name}._bn0"))
    made = convolved(made, f"{name}._depthwise_conv", 2 if number in HALVING else 1)
    made = limited(normalised(made, f"{name}._bn1"))
    made = normalised(convolved(made, f"{name}._project_conv"), f"{name}._bn2")
    return maps + made if made.shape == maps.shape else made


def last_maps(picture: np.ndarray) -> np.ndarray:
    """Return the maps (1280, height, width) of a picture (side, side, 3) after the last convolution."""
    maps = (picture.astype(np.float64).transpose(2, 0, 1) - 127) / 128
    maps = limited(normalised(convolved(maps, "_conv_stem", 2), "_bn0"))
    for number in range(21):
        maps = block(maps, number)
    return limited(normalised(convolved(maps, "_conv_head"), "_bn1"))


def generalised_means(maps: np.ndarray) -> np.ndarray:
    return np.cbrt((maps**3).mean(axis=(1, 2)))


@cache
def sample(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return two pictures of the sample set and what the network written out gives for them."""
    given = np.stack([pixels(FLOWERS / name, side) for name in ("0001.png", "0130.png")])
    return given, np.stack([generalised_means(last_maps(picture)) for picture in given])


def features(name: EngineName, given: np.ndarray) -> np.ndarray:
    side = given.shape[1]
    extractor = extractors.of_efficientnet_lite2(efficientnet_lite.find_weights(), side)
    engine = ENGINES[name](CpuBackend(), extractor, EmbedConfig(image_size=side))
    engine.build()
    found = np.array(engine.features(given))
    assert found.shape == (len(given), extractor.n_features)
    return found


def check_near(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == np.float32
    errors = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    # 1e-4 is the bound that is promised; float32 and the order of its sums differ by 3e-6.
    assert errors.max() < 1e-4


# From 97 every layer with a stride sees an odd side, from 128 an even one, where the padding is not the same all round.
@pytest.mark.parametrize("side", [97, 128])
def test_features_are_those_of_the_network_written_out(side, engine_name):
    given, expected = sample(side)
    check_near(features(engine_name, given), expected)


@cache
def daisy(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return a photo as the network was trained to see it, and its last maps."""
    picture = pixels(file, efficientnet_lite.SIDE)
    return picture, last_maps(picture)


def test_a_photo_of_a_daisy_is_one_and_has_its_features(engine_name):
    picture, maps = daisy(photos("flowers12") / "daisy" / "image_0801.jpg")
    scores = arrays()["_fc.weight"] @ maps.mean(axis=(1, 2)) + arrays()["_fc.bias"]
    assert scores.argmax() == DAISY
    check_near(features(engine_name, picture[None]), generalised_means(maps)[None])


def test_the_engines_agree_on_photos_of_clothes():
    pytest.importorskip("ncnn", reason="there is no wheel of ncnn here")
    files = sorted(photos("clothing10").glob("*/*.jpg"))[::100]
    given = np.stack([pixels(file, 128) for file in files])
    assert len(given) >= 3
    check_near(features("ncnn", given), features("tensorflow", given))


def test_half_precision_differs_by_its_rounding_alone():
    weights = efficientnet_lite.find_weights()
    given, _ = sample(128)
    half, single = (
        efficientnet_lite.build(weights, 128, precision)(given).numpy() for precision in ("float16", "float32")
    )
    assert half.dtype == np.float32
    assert not np.array_equal(half, single)
    assert np.linalg.norm(half - single) < 0.02 * np.linalg.norm(single)


def test_the_network_is_built_once_for_the_same_pictures_and_weights():
    build, find = efficientnet_lite.build, efficientnet_lite.find_weights
    assert build(find(), 64, "float32") is build(find(), 64, "float32")


def test_the_key_names_what_the_features_depend_on():
    extractor = extractors.of_efficientnet_lite2(efficientnet_lite.find_weights(), 64)
    assert extractor.key == {
        "backbone": "EfficientNet-Lite2",
        "weights": efficientnet_lite.SHA256,
        "pooling": "gem",
    }


# Files of weights.


def saved(file: Path, content: dict[str, np.ndarray]) -> Path:
    np.savez(file, **content)  # type: ignore[arg-type]
    return file


def test_a_named_file_with_the_same_arrays_gives_the_same_layers(tmp_path):
    shipped = efficientnet_lite.find_weights()
    reversed_order = dict(reversed(arrays().items()))
    named = efficientnet_lite.find_weights(saved(tmp_path / "mine.npz", reversed_order))
    assert named.path == tmp_path / "mine.npz"
    assert named.sha256 != shipped.sha256 == efficientnet_lite.SHA256
    assert list(named.layers) == list(shipped.layers)
    for name, pair in shipped.layers.items():
        for expected, found in zip(pair, named.layers[name], strict=True):
            np.testing.assert_array_equal(found, expected)


def test_the_shipped_weights_are_read_once_and_refused_as_soon_as_they_are_altered(tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    shutil.copy(SHIPPED, tmp_path / "weights")
    monkeypatch.setattr(efficientnet_lite, "shipped_data", lambda: tmp_path)
    assert efficientnet_lite.find_weights() is efficientnet_lite.find_weights()
    saved(tmp_path / "weights" / SHIPPED.name, arrays() | {"_fc.bias": np.zeros(1000, np.float32)})
    with pytest.raises(WeightsError, match="are damaged: expected sha256 8efb59af"):
        efficientnet_lite.find_weights()


def test_a_file_that_is_missing_is_an_error_and_not_the_shipped_one(tmp_path):
    with pytest.raises(WeightsError, match=r"no EfficientNet-Lite2 weights found; looked for .*nowhere.npz'; name a"):
        efficientnet_lite.find_weights(tmp_path / "nowhere.npz")


WRONG: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "another shape": (
        {"_conv_stem.weight": np.zeros((32, 3, 5, 3), np.float32)},
        r"expected _conv_stem.weight float32 \(32, 3, 3, 3\); found float32 \(32, 3, 5, 3\)",
    ),
    "the same size": ({"_conv_stem.weight": np.zeros((3, 32, 3, 3), np.float32)}, r"float32 \(32, 3, 3, 3\); found"),
    "another type": ({"_bn0.bias": np.zeros(32, np.int32)}, r"expected _bn0.bias float32 \(32,\); found int32"),
    "no number": ({"_bn0.bias": np.full(32, np.nan, np.float32)}, "_conv_stem or _bn0 hold values that are not finite"),
    "a variance below 0": ({"_bn1.running_var": np.full(1280, -1, np.float32)}, "or variances below 0"),
    "too large when folded": (
        {"_bn1.weight": np.full(1280, 3e38, np.float32), "_bn1.running_var": np.zeros(1280, np.float32)},
        "_conv_head or _bn1 hold values that are not finite",
    ),
    "an array more": ({"_se.weight": np.zeros(4, np.float32)}, "expected 322 arrays, found _se.weight.npy too"),
}


@pytest.mark.parametrize("what", WRONG)
def test_arrays_of_another_network_are_refused(tmp_path, what):
    change, words = WRONG[what]
    with pytest.raises(WeightsError, match=rf"cannot read the weights .*damaged or another network \(.*{words}"):
        efficientnet_lite.find_weights(saved(tmp_path / "other.npz", arrays() | change))


def test_an_array_that_is_missing_is_named(tmp_path):
    content = {name: array for name, array in arrays().items() if name != "_blocks.3._bn0.bias"}
    with pytest.raises(WeightsError, match=r"322 arrays, _blocks.3._bn0.bias.npy is missing; found _conv_stem.weight"):
        efficientnet_lite.find_weights(saved(tmp_path / "part.npz", content))


class _Trap:
    """Makes a file when it is read as a pickle."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (os.mkdir, (self.file,))


def test_a_pickle_in_the_file_is_not_run(tmp_path):
    trap = np.full(32, _Trap(tmp_path / "sprung"), object)
    file = saved(tmp_path / "pickled.npz", arrays() | {"_bn0.bias": trap})
    with pytest.raises(WeightsError, match=r"_bn0\.bias"):
        efficientnet_lite.find_weights(file)
    assert not (tmp_path / "sprung").exists()


def with_member(file: Path, name: str, content: bytes, method: int = zipfile.ZIP_STORED) -> Path:
    """Write the shipped file with other bytes for one of its members."""
    with zipfile.ZipFile(SHIPPED) as shipped, zipfile.ZipFile(file, "w") as changed:
        for member in shipped.namelist():
            if member == name:
                changed.writestr(member, content, method)
            else:
                changed.writestr(member, shipped.read(member))
    return file


def test_a_header_of_numpy_that_is_huge_or_lies_is_refused(tmp_path):
    def member(shape: str, filler: int = 0) -> bytes:
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode() + b" " * filler + b"\n"
        stream = io.BytesIO()
        stream.write(np.lib.format.magic(1, 0) + len(header).to_bytes(2, "little") + header)
        return stream.getvalue() + bytes(128)

    for content, words in (
        (member("(32,)", 60_000), "expected _bn0.bias in 128 bytes and a header, not compressed; found 60,"),
        (member("(3200000000000,)"), r"expected _bn0.bias float32 \(32,\); found float32 \(3200000000000,\)"),
    ):
        with pytest.raises(WeightsError, match=words):
            efficientnet_lite.find_weights(with_member(tmp_path / "header.npz", "_bn0.bias.npy", content))


def test_compressed_arrays_are_refused_before_they_take_memory(tmp_path):
    file = with_member(tmp_path / "small.npz", "_bn0.bias.npy", bytes(1 << 24), zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match=r"and a header, not compressed; found 16,777,216 bytes in 16,3\d\d"):
        efficientnet_lite.find_weights(file)


@pytest.mark.parametrize("length", [0, 100, 20_000_000])
def test_a_truncated_file_is_an_error_that_gives_its_size(tmp_path, length):
    file = Path(shutil.copy(SHIPPED, tmp_path / "copy.npz"))
    os.truncate(file, length)
    with pytest.raises(WeightsError, match=rf"expected a NumPy .npz file.*found {length:,} bytes that are damaged"):
        efficientnet_lite.find_weights(file)


def test_a_bit_that_changed_is_found(tmp_path):
    content = bytearray(SHIPPED.read_bytes())
    content[5_000_000] ^= 1
    (tmp_path / "copy.npz").write_bytes(content)
    with pytest.raises(WeightsError, match="Bad CRC-32"):
        efficientnet_lite.find_weights(tmp_path / "copy.npz")


@pytest.mark.parametrize(("place", "found"), [("/dev/zero", "a device; expected a file"), (".", "Is a directory")])
def test_what_is_no_file_is_an_error_at_once(place, found):
    with pytest.raises(WeightsError, match=f"expected a NumPy .npz file .*found .*{found}"):
        efficientnet_lite.find_weights(Path(place))

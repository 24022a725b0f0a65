"""Files of weights that somebody else made: what is refused, and that no file ends the job or keeps it for ever."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from gpu_cluster.embedding import vgg16, weights_file
from gpu_cluster.embedding.weights_file import DamagedError, NotThisNetworkError, read_apart, read_layers
from gpu_cluster.errors import WeightsError

SHAPES = {"block1_conv1": (3, 3, 3, 4), "block1_conv2": (3, 3, 4, 4)}

# Found by changing bytes of small files at random; HDF5 1.14.6 crashes at one and stays in the other for ever.
HOSTILE = Path(__file__).parent / "hostile"

Change = Callable[[h5py.File], object]


def as_keras3(change: Change | None = None, **options: object) -> bytes:
    """Return a small file of weights of two layers, changed."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        for number, (name, shape) in enumerate(SHAPES.items()):
            variables = file.create_group(f"layers/conv2d_{number}/vars")
            variables.attrs["name"] = name
            for key, size in (("0", shape), ("1", shape[-1:])):
                variables.create_dataset(key, data=np.full(size, number + 1, np.float32), **options)
        if change is not None:
            change(file)
    return stream.getvalue()


def replaced(make: Change) -> Change:
    """Return what puts something else in the place of a bias."""

    def change(file: h5py.File) -> None:
        del file["layers/conv2d_1/vars/1"]
        file["layers/conv2d_1/vars/1"] = make(file)

    return change


def with_values_elsewhere(file: h5py.File) -> None:
    variables = file["layers/conv2d_1/vars"]
    del variables["1"]
    variables.create_dataset("1", (4,), "f4", external=[("/etc/passwd", 0, 16)])


def with_virtual_values(file: h5py.File) -> None:
    variables = file["layers/conv2d_1/vars"]
    del variables["1"]
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
    variables.create_virtual_dataset("1", layout)


def with_a_soft_link_above(file: h5py.File) -> None:
    file.move("layers", "others")
    file["layers"] = h5py.SoftLink("/others")


REFUSED: dict[str, tuple[bytes, type[Exception], str]] = {
    "an external link": (as_keras3(replaced(lambda _: h5py.ExternalLink("a.h5", "/x"))), DamagedError, "'1' is a link"),
    "a soft link": (as_keras3(replaced(lambda _: h5py.SoftLink("/layers"))), DamagedError, "'1' is a link"),
    "a link above": (as_keras3(with_a_soft_link_above), DamagedError, "'layers' is a link to another place"),
    "external storage": (as_keras3(with_values_elsewhere), DamagedError, "in another file"),
    "virtual values": (as_keras3(with_virtual_values), DamagedError, "in another file"),
    "compressed": (as_keras3(compression="gzip"), DamagedError, "compressed or in chunks"),
    "whole numbers": (as_keras3(replaced(lambda _: np.arange(4))), DamagedError, "of the type int64"),
    "texts": (as_keras3(replaced(lambda _: [b"a"] * 4)), DamagedError, "expected numbers"),
    "a group": (as_keras3(replaced(lambda file: file.create_group("g"))), DamagedError, "is no array"),
    "not finite": (as_keras3(replaced(lambda _: np.full(4, np.inf, "f4"))), DamagedError, "not finite"),
    "another shape": (as_keras3(replaced(lambda _: np.ones(5, "f4"))), NotThisNetworkError, r"found .*\(5,\)"),
}


@pytest.mark.parametrize("refused", REFUSED)
def test_a_file_whose_values_are_not_plainly_in_it_is_refused(refused):
    content, kind, message = REFUSED[refused]
    with pytest.raises(kind, match=message):
        read_layers(content, SHAPES)


def test_declared_sizes_are_compared_before_values_are_read():
    def enormous(file: h5py.File) -> None:
        del file["layers/conv2d_1/vars/1"]
        # Nothing is written, so the file is small.
        file["layers/conv2d_1/vars"].create_dataset("1", (1 << 40,), "f4")

    with pytest.raises(NotThisNetworkError, match=r"expected block1_conv2 of shapes .*1099511627776"):
        read_layers(as_keras3(enormous), SHAPES)


@pytest.mark.parametrize("kind", ["<f2", ">f4", ">f8"])
def test_a_process_of_its_own_returns_the_values_as_float32(kind):
    values = np.array([0.5, -2, 3, 4], kind)
    layers = read_apart(as_keras3(replaced(lambda _: values)), SHAPES)
    assert list(layers) == list(SHAPES)
    assert layers["block1_conv1"][0].shape == SHAPES["block1_conv1"]
    np.testing.assert_array_equal(layers["block1_conv2"][0], np.full(SHAPES["block1_conv2"], 2, np.float32))
    np.testing.assert_array_equal(layers["block1_conv2"][1], values.astype(np.float32))


def test_a_process_of_its_own_says_why_it_refuses_a_file():
    content, kind, message = REFUSED["another shape"]
    with pytest.raises(kind, match=message):
        read_apart(content, SHAPES)


def test_a_file_at_which_hdf5_crashes_is_damaged_weights():
    with pytest.raises(WeightsError, match=r"cannot read the weights .*found 9,344 bytes that are damaged"):
        vgg16.read_weights(HOSTILE / "segmentation_fault.h5")


@pytest.mark.slow
def test_a_file_that_hdf5_never_finishes_is_damaged_weights(monkeypatch):
    monkeypatch.setattr(weights_file, "_MOST_SECONDS", 3)
    with pytest.raises(WeightsError, match=r"that are damaged"):
        vgg16.read_weights(HOSTILE / "endless.h5")


def test_weights_without_an_end_are_refused():
    with pytest.raises(WeightsError, match="zero is a pipe, a socket or a device; expected a file"):
        vgg16.read_weights(Path("/dev/zero"))

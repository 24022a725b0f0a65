"""Reads the layers of a network from the bytes of an HDF5 file, without trusting them.

HDF5 ends the process, or never returns, for some damaged files. Therefore bytes that nobody vouches for are read in a
process of their own: this file is also a script that takes them on its standard input and writes the values of the
layers to its standard output. As a script it must import nothing of the package, so that it starts quickly.
"""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import h5py

FloatArray = npt.NDArray[np.float32]
Layers = dict[str, tuple[FloatArray, FloatArray]]
Shapes = Mapping[str, tuple[int, ...]]

# The process reads VGG16's weights in 1 to 2 s; this allows for a machine that is much slower, or busy.
_MOST_SECONDS = 60
# What it may take beside the file itself: VGG16's values as float64 and as float32, and as much again.
_MOST_BYTES = 512 << 20
# Layers and variables that a file may name: no network of Keras has more.
_MOST_NAMES = 10_000


class NotThisNetworkError(ValueError):
    """The file is a sound file of weights, but not of this network; the message says what was expected and found."""


class DamagedError(ValueError):
    """The file is damaged, or no file of weights as Keras writes them; the message says why."""


def read_apart(content: bytes, shapes: Shapes) -> Layers:
    """Read the layers in a process of its own, with limits on its time and memory.

    Parameters
    ----------
    content
        The bytes of the file.
    shapes
        The shape of the kernel of each layer, by its name; the last number is the shape of its bias.

    Returns
    -------
    layers
        Kernel and bias of each layer, float32, in the order of `shapes`.

    Raises
    ------
    DamagedError, NotThisNetworkError
        When the file is refused, or the process dies or is too slow.
    """
    # `-P` keeps the folder of this file, whose modules have common names, out of the path of imports.
    command = [sys.executable, "-P", os.path.abspath(__file__), json.dumps(shapes)]
    # One thread is enough, and each one of the library's threads reserves memory.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, input=content, capture_output=True, env=environment, timeout=_MOST_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise DamagedError(f"HDF5 did not come to an end with it in {_MOST_SECONDS} s") from None
    if done.returncode < 0:
        raise DamagedError(f"the process that read it was ended by signal {-done.returncode}")
    if done.returncode != 0:
        refused = {2: NotThisNetworkError, 3: DamagedError}.get(done.returncode)
        reason = done.stderr.decode("utf-8", "replace").strip()
        # Another code is Python's own, for what this script does not foresee; its last line says what.
        raise (refused or DamagedError)(reason if refused else reason.rpartition("\n")[2])
    return _split(done.stdout, shapes)


def _split(values: bytes, shapes: Shapes) -> Layers:
    """Return the layers whose values were written one after the other."""
    sizes = [size for shape in shapes.values() for size in (math.prod(shape), shape[-1])]
    if len(values) != 4 * sum(sizes):
        raise DamagedError(f"the process that read it wrote {len(values):,} bytes")
    flat = iter(np.split(np.frombuffer(values, np.float32), np.cumsum(sizes)[:-1]))
    return {name: (next(flat).reshape(shape), next(flat)) for name, shape in shapes.items()}


def read_layers(content: bytes, shapes: Shapes) -> Layers:
    """Read the layers in this process; see `read_apart` for what enters and leaves.

    No value is read before the names, types and shapes of all layers are those that are expected. Links to other
    places, values in other files, and values that are compressed are refused.
    """
    import h5py

    # What HDF5 and h5py raise for a damaged file is of many types.
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            layers = file.get("layers", getlink=True) is not None if "layers" in file else False
            found = dict(_keras3(_member(file, "layers")) if layers else _legacy(file))
            _check_shapes(found, shapes)
            read = {name: tuple(np.asarray(found[name][at], np.float32) for at in range(2)) for name in shapes}
    except (NotThisNetworkError, DamagedError):
        raise
    except MemoryError as error:
        raise DamagedError("it declares more values than it can hold") from error
    except Exception as error:
        raise DamagedError(" ".join(str(error).split())) from error
    for name, arrays in read.items():
        if not all(np.isfinite(array).all() for array in arrays):
            raise DamagedError(f"{name} holds values that are not finite")
    return read  # type: ignore[return-value]


def _keras3(layers: Any) -> Iterator[tuple[str, list[h5py.Dataset]]]:
    # The groups are named by class and number; the layer's own name is an attribute of its variables.
    for number, name in enumerate(layers):
        _check_count(number)
        variables = _member(_member(layers, name), "vars")
        if len(variables):
            yield _text(_attribute(variables, "name")), [_dataset(variables, key) for key in variables]


def _legacy(file: h5py.File) -> Iterator[tuple[str, list[h5py.Dataset]]]:
    group = _member(file, "model_weights") if "model_weights" in file else file
    for name in map(_text, _attribute(group, "layer_names")):
        layer = _member(group, name)
        variables = [_text(variable) for variable in _attribute(layer, "weight_names")]
        if variables:
            yield name, [_dataset(layer, variable) for variable in variables]


def _member(group: Any, path: str) -> Any:
    """Return what a group has at a path; every step must be in this file."""
    import h5py

    for step in path.split("/"):
        if not isinstance(group, h5py.Group) or group.get(step, getlink=True) is None:
            raise DamagedError(f"{step!r} is not there")
        if not isinstance(group.get(step, getlink=True), h5py.HardLink):
            raise DamagedError(f"{step!r} is a link to another place; expected the values themselves")
        group = group[step]
    return group


def _dataset(group: Any, path: str) -> h5py.Dataset:
    """Return a dataset whose values are plain and in this file."""
    import h5py

    dataset = _member(group, path)
    if not isinstance(dataset, h5py.Dataset):
        raise DamagedError(f"{path!r} is no array")
    plist = dataset.id.get_create_plist()
    if dataset.is_virtual or dataset.external:
        raise DamagedError(f"the values of {path!r} are in another file")
    if plist.get_layout() not in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT) or plist.get_nfilters():
        raise DamagedError(f"the values of {path!r} are compressed or in chunks; expected them as Keras writes them")
    if dataset.dtype.kind != "f" or dataset.dtype.itemsize not in (2, 4, 8):
        raise DamagedError(f"{path!r} is of the type {dataset.dtype}; expected numbers in float16, float32 or float64")
    return dataset


def _attribute(holder: Any, name: str) -> Any:
    if name not in holder.attrs:
        raise DamagedError(f"it has no {name!r}, in which Keras writes names")
    _check_count(math.prod(holder.attrs.get_id(name).shape or (1,)) - 1)
    return holder.attrs[name]


def _check_count(number: int) -> None:
    if number >= _MOST_NAMES:
        raise DamagedError(f"it names more than {_MOST_NAMES:,} layers")


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _check_shapes(found: Mapping[str, list[h5py.Dataset]], shapes: Shapes) -> None:
    names = list(shapes)
    missing = [name for name in names if name not in found]
    if missing:
        has = ", ".join(list(found)[:4]) or "no layers with weights"
        raise NotThisNetworkError(
            f"expected the layers {names[0]} to {names[-1]}, {missing[0]} is missing; found {has}"
        )
    extra = [name for name in found if name not in shapes]
    if extra:
        raise NotThisNetworkError(f"expected its {len(shapes)} convolutions alone, found {extra[0]} too")
    for name, shape in shapes.items():
        theirs = tuple(dataset.shape for dataset in found[name])
        if theirs != (tuple(shape), tuple(shape[-1:])):
            expected = (tuple(shape), tuple(shape[-1:]))
            raise NotThisNetworkError(f"expected {name} of shapes {expected}, found {theirs}")


def _limit_memory() -> None:
    """Limit what this process may take from now on, and have it leave no memory dump."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Not every system counts the memory that a process has reserved. There the limit of time alone holds.
    with suppress(OSError, ValueError), open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + _MOST_BYTES,) * 2)


def _main() -> None:
    import h5py  # noqa: F401 - before the limit, as it needs memory of its own

    content = sys.stdin.buffer.read()
    _limit_memory()
    try:
        layers = read_layers(content, json.loads(sys.argv[1]))
    except (NotThisNetworkError, DamagedError) as error:
        sys.stderr.write(str(error))
        sys.exit(2 if isinstance(error, NotThisNetworkError) else 3)
    for arrays in layers.values():
        for array in arrays:
            sys.stdout.buffer.write(np.ascontiguousarray(array).data)


if __name__ == "__main__":
    _main()

"""Reads files that somebody else may have made, without trusting what they declare.

Of a file no more is read than a limit, pipes and devices are not read, and what a file declares about itself (nesting,
numbers of rows, sizes) is checked before memory is taken for it. This module must not know what the files are for.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import stat
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

MIB = 1 << 20

# The header that NumPy writes before an array; it takes 128 bytes for the arrays of this project.
MOST_HEADER_BYTES = 4_096

# The characters that an error shows of names that are in a file.
_MOST_SHOWN = 200

# No file of this project nests deeper than 8 levels.
_MOST_LEVELS = 32
# TOML's hexadecimal numbers may have any length, but Python writes none of more than 4,300 decimal digits.
_MOST_BITS = 14_000

# What a Parquet file may hold when it is read, as a multiple of its size; small files may always hold _SMALL_BYTES.
# Tables of paths and numbers that this project writes reach a multiple of 5.
_MOST_INFLATED, _SMALL_BYTES = 50, 64 * MIB


class UnfitError(ValueError):
    """A file is not what it should be; the message says what was expected and what was found."""


def read(path: Path, most_bytes: int, *, follow: bool = True, wait: bool = False) -> bytes:
    """Read a regular file of at most `most_bytes`.

    Parameters
    ----------
    follow
        Whether the file may be a link.
    wait
        Whether it may also be a pipe or a device, which is waited for.

    Raises
    ------
    OSError
        When it cannot be opened or read.
    UnfitError
        When it is something else, or larger.
    """
    # Without O_NONBLOCK, opening a pipe waits for its other end.
    flags = os.O_RDONLY | os.O_CLOEXEC | (0 if wait else os.O_NONBLOCK) | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if not follow and error.errno == errno.ELOOP:
            raise UnfitError(f"{path.name} is a link; expected a file: put what it leads to in its place") from error
        raise
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        is_regular = stat.S_ISREG(status.st_mode)
        if not (wait or is_regular):
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, a socket or a device"
            raise UnfitError(f"{path.name} is {what}; expected a file")
        size = status.st_size
        if is_regular and size <= most_bytes:
            content = stream.read(size + 1)
            # Some files of the system state a size of 0 and have no end.
            if len(content) > size:
                raise UnfitError(f"{path.name} became longer while it was read; expected {size:,} bytes")
            return content
        if not is_regular:
            content = stream.read(most_bytes + 1)
            if len(content) <= most_bytes:
                return content
            size = len(content)
    raise UnfitError(f"{path.name} is too large: expected at most {most_bytes:,} bytes, found {size:,} or more")


def identity(path: Path) -> tuple[int, ...] | None:
    """Return what changes when a file is replaced or written to; None if its facts cannot be read."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def parse_json(content: bytes | str) -> Any:
    """Return the value of a JSON text.

    Raises
    ------
    ValueError
        When it is not JSON, holds a number of thousands of digits, or is nested too deeply.
    """
    return _parsed(json.loads, content)


def parse_toml(text: str) -> dict[str, Any]:
    """Return the content of a TOML text.

    Raises
    ------
    ValueError
        When it is not TOML, holds a number of thousands of digits, or is nested too deeply.
    """
    # To read a key of thousands of parts takes time and memory that grow with the square of their number. A text that
    # looks like such a key is refused too.
    if _LONG_KEY.search(text):
        raise _too_deep()
    content: dict[str, Any] = _parsed(tomllib.loads, text)
    return content


_PART = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')"""
_LONG_KEY = re.compile(rf"(?<![\w-]){_PART}(?:[ \t]*+\.[ \t]*+{_PART}){{{_MOST_LEVELS},}}+")


def _parsed(parse: Callable[[Any], Any], text: bytes | str) -> Any:
    try:
        value = parse(text)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        # The parsers raise subclasses of it for everything but a number that Python refuses to read for its length.
        if type(error) is ValueError:
            raise _too_long() from error
        raise
    _check(value)
    return value


def _check(value: Any) -> None:
    """Check how deeply a value is nested, and its whole numbers.

    Raises
    ------
    UnfitError
        When it is nested too deeply, or Python could not write one of its numbers.
    """
    # Level by level and not by recursion: in TOML, a key with dots nests as deeply as it is long.
    level = [value]
    for _ in range(_MOST_LEVELS):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict | list):
                inner += one.values() if isinstance(one, dict) else one
            elif isinstance(one, int) and is_too_long(one):
                raise _too_long()
        level = inner
        if not level:
            return
    raise _too_deep()


def is_too_long(number: int) -> bool:
    """Return whether Python refuses to write a whole number, because it has thousands of digits."""
    return number.bit_length() > _MOST_BITS


def _too_long() -> UnfitError:
    return UnfitError("it holds a number of thousands of digits")


def _too_deep() -> UnfitError:
    return UnfitError(f"it is nested too deeply: expected at most {_MOST_LEVELS} levels")


def check_parquet(content: bytes) -> None:
    """Check a Parquet file that is held in memory: it must not take far more memory than it has bytes when it is read.

    A small file can otherwise declare any number of rows, or repeat a long text in each of them.

    Raises
    ------
    pyarrow.ArrowException, OSError
        When it is not a Parquet file, or damaged.
    UnfitError
        When it takes too much memory, or has a column of lists.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    most = max(_SMALL_BYTES, _MOST_INFLATED * len(content))
    file = pq.ParquetFile(pa.BufferReader(content), pre_buffer=False)
    schema, facts = file.schema_arrow, file.metadata
    if any(pa.types.is_nested(field.type) for field in schema):
        raise UnfitError("expected columns of numbers and texts, found one of lists")
    groups = [facts.row_group(number) for number in range(facts.num_row_groups)]
    declared = max(facts.num_rows * len(schema) * 8, sum(group.total_byte_size for group in groups))
    texts = [field.name for field in schema if _is_text(field.type)]
    if declared <= most and texts:
        # As a dictionary, a text that is in many rows is held once.
        file = pq.ParquetFile(pa.BufferReader(content), pre_buffer=False, read_dictionary=texts)
        table = file.read(texts, use_threads=False)
        declared += sum(_n_bytes(chunk) for column in table.columns for chunk in column.chunks)
    if declared > most:
        raise UnfitError(
            f"expected a table that takes at most {most // MIB:,} MiB, found {declared // MIB:,} MiB in a file of "
            f"{len(content):,} bytes"
        )


def _is_text(type_: Any) -> bool:
    import pyarrow as pa

    inner = type_.value_type if pa.types.is_dictionary(type_) else type_
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(is_kind(inner) for is_kind in kinds)


def _n_bytes(texts: Any) -> int:
    """Return how many bytes the values of a dictionary array take, each as often as it is there."""
    import pyarrow.compute as pc

    return pc.sum(pc.take(pc.binary_length(texts.dictionary), texts.indices)).as_py() or 0


def read_npz(content: bytes, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Read float32 arrays as `numpy.savez` writes them, without pickle.

    The names of the arrays, and the size, type and shape of each, are checked before memory is taken for its values.
    Whether the values are finite is not.

    Parameters
    ----------
    content
        The bytes of the file.
    shapes
        The shape of each array, by its name; the file must hold exactly these.

    Returns
    -------
    arrays
        The arrays, float32, host; they cannot be written to.

    Raises
    ------
    ValueError
        When the file holds something else, or arrays that are compressed.
    Exception
        Whatever `zipfile` and NumPy raise for damaged files, which is of many types.
    """
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        members = {member.filename: member for member in file.infolist()}
        _check_names(members, [f"{name}.npy" for name in shapes])
        if len(members) != len(file.infolist()):
            raise ValueError("expected each array once, found one twice")
        for name, shape in shapes.items():
            arrays[name] = _npy(file, members[f"{name}.npy"], name, shape)
    return arrays


def _check_names(found: Iterable[str], expected: Sequence[str]) -> None:
    names, known = list(found), set(expected)
    missing = sorted(known.difference(names))
    if missing:
        has = ", ".join(names[:4]) or "none"
        raise ValueError(f"expected {len(expected)} arrays, {missing[0]} is missing; found {has[:_MOST_SHOWN]}")
    extra = next((name for name in names if name not in known), None)
    if extra is not None:
        raise ValueError(f"expected {len(expected)} arrays, found {extra[:_MOST_SHOWN]} too")


def _npy(file: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, shape: tuple[int, ...]) -> Any:
    import numpy as np

    n_bytes = 4 * math.prod(shape)
    # What is not compressed is not larger than the file.
    if member.compress_type != zipfile.ZIP_STORED or not 0 < member.file_size - n_bytes <= MOST_HEADER_BYTES:
        raise ValueError(
            f"expected {name} in {n_bytes:,} bytes and a header, not compressed; found {member.file_size:,} "
            f"bytes in {member.compress_size:,}"
        )
    with file.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"expected {name} in version 1.0 of NumPy's format, found {version}")
        found, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        if dtype != np.float32 or found != shape:
            raise ValueError(f"expected {name} float32 {shape}; found {dtype} {found}")
        values = np.frombuffer(stream.read(), np.float32)
    return values.reshape(shape, order="F" if is_fortran else "C")

"""Mutates files: by bytes, and by the structure of their format, so that what comes after a checksum is hit too.

A mutation is drawn first and applied later, so that a case that fails can be made smaller by leaving mutations out.
"""

from __future__ import annotations

import csv
import io
import json
import struct
import zipfile
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from tests.attacks import raw

Mutation: TypeAlias = Callable[[bytes], bytes]
Random: TypeAlias = np.random.Generator

# Numbers that lengths, counts and sizes go wrong at.
_ODD_NUMBERS = (b"\0\0", b"\xff\xff", b"\x7f\xff", b"\xff\x7f", bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\1\0")


def draw(name: str, random: Random) -> list[Mutation]:
    """Draw the mutations of one case of a file of this name: one to four, by its bytes and by its structure."""
    by_structure = next((made for suffix, made in _BY_STRUCTURE.items() if name.endswith(suffix)), _by_bytes)
    return [
        (by_structure if random.random() < 0.5 else _by_bytes)(np.random.default_rng(random.integers(1 << 60)))
        for _ in range(random.integers(1, 5))
    ]


def apply(mutations: list[Mutation], content: bytes) -> bytes:
    """Return the bytes after these mutations; one that an earlier one has made impossible is left out."""
    for mutation in mutations:
        try:
            content = mutation(content) or b"\0"
        # What does not parse any more, after a mutation of its bytes, has no structure to mutate.
        except Exception:  # noqa: BLE001
            continue
    return content


def _any_of(random: Random, choices: Any) -> Any:
    return choices[int(random.integers(len(choices)))]


def _by_bytes(random: Random) -> Mutation:
    kind, place, near_head = int(random.integers(8)), random.random(), random.random() < 0.5
    bit, value, odd = int(random.integers(8)), int(random.integers(256)), _any_of(random, _ODD_NUMBERS)
    length = int(random.integers(1, 20))

    def mutated(content: bytes) -> bytes:
        found = bytearray(content)
        at = int(place * (min(len(found), 200) if near_head else len(found)))
        match kind:
            case 0 | 1:
                found[at] ^= 1 << bit
            case 2 | 3:
                found[at] = value
            case 4 | 5:
                found[at : at + len(odd)] = odd
            case 6 if value < 200:
                del found[at : at + length]
            case 6:
                del found[at:]
            case _:
                found[at:at] = found[at : at + length] * (1 if value < 200 else 50)
        return bytes(found)

    return mutated


def _parts(random: Random, split: Callable[[bytes], list[bytes]]) -> Mutation:
    """Return a mutation that drops, doubles or moves one of a file's parts."""
    kind, first, second = int(random.integers(3)), random.random(), random.random()

    def mutated(content: bytes) -> bytes:
        parts = split(content)
        at, to = int(first * len(parts)), int(second * len(parts))
        part = parts[at]
        if kind != 1:
            del parts[at]
        if kind != 0:
            parts.insert(to, part)
        return b"".join(parts)

    return mutated


def _png(random: Random) -> Mutation:
    """A chunk dropped, doubled or moved; or a number of the header changed, with a right checksum after it."""
    if random.random() < 0.5:
        return _parts(random, _png_chunks)
    place, odd = int(random.integers(13)), _any_of(random, _ODD_NUMBERS)

    def mutated(content: bytes) -> bytes:
        first, *others = _png_chunks(content)
        header = bytearray(first[16:29])
        header[place : place + len(odd)] = odd
        return first[:8] + raw.chunk(b"IHDR", bytes(header[:13])) + b"".join(others)

    return mutated


def _png_chunks(content: bytes) -> list[bytes]:
    """Return the chunks of a PNG, the first with the signature."""
    parts, at, begin = [], 8, 0
    while at + 8 <= len(content):
        at += 12 + int.from_bytes(content[at : at + 4])
        parts.append(content[begin:at])
        begin = at
    return parts


def _jpeg(random: Random) -> Mutation:
    """A segment dropped, doubled or moved, or the size changed."""
    if random.random() < 0.5:
        return _parts(random, _jpeg_segments)
    size = struct.pack(">HH", *random.choice([0, 1, 7, 40, 48, 999, 65535], 2))

    def mutated(content: bytes) -> bytes:
        parts = _jpeg_segments(content)
        at = next(number for number, part in enumerate(parts) if part[1] in (0xC0, 0xC2))
        parts[at] = parts[at][:5] + size + parts[at][9:]
        return b"".join(parts)

    return mutated


def _jpeg_segments(content: bytes) -> list[bytes]:
    """Return the segments of a JPEG up to its first scan, and the rest."""
    parts, at = [content[:2]], 2
    while content[at : at + 1] == b"\xff" and content[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4])
        parts.append(content[at:end])
        at = end
    return [*parts, content[at:]]


def _tiff(random: Random) -> Mutation:
    """Another type, number or value in an entry of the first directory."""
    place, field = random.random(), int(random.integers(3))
    number = int(random.choice([0, 1, 2, 3, 4, 7, 12, 13, 255, 8, 65535, 1 << 24, (1 << 31) - 1, (1 << 32) - 1]))

    def mutated(content: bytes) -> bytes:
        found = bytearray(content)
        at = int.from_bytes(found[4:8], "little")
        n = int.from_bytes(found[at : at + 2], "little")
        entry = at + 2 + 12 * int(place * n)
        if field == 0:
            found[entry + 2 : entry + 4] = struct.pack("<H", number & 0xFFFF)
        else:
            found[entry + 4 * field : entry + 4 * field + 4] = struct.pack("<I", number)
        return bytes(found)

    return mutated


def _boxes(random: Random) -> Mutation:
    """A box of an AVIF or JPEG 2000 dropped, doubled, moved, or one whose length says something else."""
    if random.random() < 0.5:
        return _parts(random, _split_in_boxes)
    place, odd = random.random(), _any_of(random, _ODD_NUMBERS[4:])

    def mutated(content: bytes) -> bytes:
        parts = _split_in_boxes(content)
        at = int(place * len(parts))
        parts[at] = odd + parts[at][4:]
        return b"".join(parts)

    return mutated


def _split_in_boxes(content: bytes) -> list[bytes]:
    parts, at = [], 0
    while at < len(content):
        length = int.from_bytes(content[at : at + 4])
        end = at + length if length >= 8 else len(content)
        parts.append(content[at:end])
        at = end
    return parts


_ODD_VALUES: tuple[Any, ...] = (
    *(None, True, 0, 1, -1, 2, 1 << 31, 1 << 63, 10**400, 1e308, float("nan"), float("inf"), 0.5),
    *("", "\0", "a" * 5000, "../../../../etc/hostname", "/dev/zero", "/proc/self/mem", "\x1b]0;x\x07", "\ud800", "2:9"),
    *([], {}, [[]], ["a"], {"a": None}),
)


def _nested(depth: int) -> Any:
    found: Any = []
    for _ in range(depth):
        found = [found]
    return found


def _json(random: Random) -> Mutation:
    """One value of a JSON file replaced, left out or renamed; or the whole of it nested deeply."""
    kind, place, value = int(random.integers(8)), random.random(), _any_of(random, _ODD_VALUES)

    def mutated(content: bytes) -> bytes:
        whole = json.loads(content)
        places = list(_places(whole))
        holder, key = places[int(place * len(places))]
        match kind:
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[f"{key} "] = holder.pop(key)
            case 2:
                marked = json.dumps({**whole, "nested": "@"})
                return marked.replace('"@"', "[" * 5_000 + "]" * 5_000).encode()
            case _:
                holder[key] = value
        return json.dumps(whole).encode()

    return mutated


def _places(value: Any) -> Any:
    """Yield every value in a JSON document, as what holds it and its key or index."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def _toml(random: Random) -> Mutation:
    """A line of a TOML file left out, doubled, or with another value."""
    kind, place = int(random.integers(6)), random.random()
    values = ("[]", "{}", "1e999", "-1", "0", "99999999999999999999", "nan", "true", '""', '"\\u0000"', "1979-05-27")
    value = _any_of(random, (*values, "[" * 5_000 + "]" * 5_000, "1" * 5000, '"/dev/zero"', "'a'"))

    def mutated(content: bytes) -> bytes:
        lines = content.decode().split("\n")
        at = int(place * len(lines))
        match kind:
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, lines[at])
            case 2:
                lines[at] = ".".join(["a"] * 9_000) + " = 1"
            case _:
                lines[at] = f"{lines[at].partition('=')[0]} = {value}"
        return "\n".join(lines).encode()

    return mutated


def _csv(random: Random) -> Mutation:
    """A row of a table left out, doubled, longer or shorter; a cell of another content; or another encoding."""
    kind, place, column = int(random.integers(10)), random.random(), random.random()
    value = str(
        _any_of(random, ("", "\0", '"', "a\nb", "=1+1", "\x1b[31m", "a" * 200_000, "\udcff", "000.png", "../a"))
    )

    def mutated(content: bytes) -> bytes:
        rows = list(csv.reader(io.StringIO(content.decode("utf-8", "surrogateescape"), newline="")))
        at = int(place * len(rows))
        match kind:
            case 0:
                del rows[at]
            case 1:
                rows.insert(at, rows[at])
            case 2:
                rows[at] = [*rows[at], *["x"] * 1000]
            case 3:
                rows[at] = rows[at][:1]
            case 4:
                return content.decode().encode("utf-16")
            case 5:
                rows[0] = [rows[0][0]] * len(rows[0])
            case _:
                rows[at][int(column * len(rows[at]))] = value
        stream = io.StringIO(newline="")
        csv.writer(stream).writerows(rows)
        return stream.getvalue().encode("utf-8", "surrogateescape")

    return mutated


def _npz(random: Random) -> Mutation:
    """An array of other shape, type or values, one left out, or one that is gigabytes when it is unpacked."""
    kind, place = int(random.integers(7)), random.random()
    shape = _any_of(random, ((), (0,), (1, 1), (2, 2, 2), (512, 512)))
    kind_of_number = str(_any_of(random, ("<f8", "<i4", "S3", "<c8", "?", "<f4", "V4", "<M8[s]")))
    value = _any_of(random, (np.nan, np.inf, -np.inf, 3e38, 0))

    def mutated(content: bytes) -> bytes:
        with zipfile.ZipFile(io.BytesIO(content)) as found:
            members = {name: found.read(name) for name in found.namelist()}
        name = sorted(members)[int(place * len(members))]
        array = np.load(io.BytesIO(members[name]))
        match kind:
            case 0:
                del members[name]
            case 1:
                members[name] = _npy(np.zeros(shape, np.float32))
            case 2:
                members[name] = _npy(array.astype(kind_of_number))
            case 3:
                array.flat[0] = value
                members[name] = _npy(array)
            case 4:
                # The header says what is not there.
                members[name] = members[name].replace(b"(", b"(9999999999,", 1)
            case 5:
                members[name] = members[name][: int(column(len(members[name])))]
            case _:
                members[name] = _npy(np.zeros((1, 1 << 20), np.float32)) + bytes(1 << 28)
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as written:
            for one, data in members.items():
                written.writestr(one, data)
        return stream.getvalue()

    def column(length: int) -> float:
        return place * length

    return mutated


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _parquet(random: Random) -> Mutation:
    """A column left out, doubled or of another type; a cell of other content; rows left out, doubled or reversed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind, place, row = int(random.integers(9)), random.random(), random.random()
    value = _any_of(random, _ODD_VALUES)

    def mutated(content: bytes) -> bytes:
        table = pq.read_table(pa.BufferReader(content))
        at, name = int(place * table.num_columns), table.column_names[int(place * table.num_columns)]
        match kind:
            case 0:
                table = table.drop_columns([name])
            case 1:
                table = table.append_column(name, table[name])
            case 2:
                table = table.set_column(at, name, pa.array([str(one) for one in table[name].to_pylist()]))
            case 3:
                table = table.set_column(at, name, pa.nulls(len(table), table.schema.field(name).type))
            case 4:
                table = table.slice(0, int(row * len(table)))
            case 5:
                table = pa.concat_tables([table, table])
            case 6:
                table = table.take(list(reversed(range(len(table)))))
            case 7:
                table = table.replace_schema_metadata({b"root": str(value).encode("utf-8", "replace")})
            case _:
                cells = table[name].to_pylist()
                cells[int(row * len(cells))] = value
                table = table.set_column(at, name, pa.array(cells, table.schema.field(name).type, from_pandas=False))
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression=["none", "zstd"][kind % 2])
        return sink.getvalue().to_pybytes()

    return mutated


def _hdf5(random: Random) -> Mutation:
    """A dataset or a group of weights replaced by links, and by other storage and other types."""
    import h5py

    kind, place = int(random.integers(11)), random.random()
    value = _any_of(random, (b"\xff", "name", 7, [1, 2], np.float32(1), h5py.Empty("f4")))

    def mutated(content: bytes) -> bytes:
        stream = io.BytesIO(content)
        with h5py.File(stream, "r+") as file:
            names: list[str] = []
            file.visit(names.append)
            name = names[int(place * len(names))]
            group = file[name].parent
            attributes = file[name].attrs
            if kind not in (9, 10):
                del file[name]
            match kind:
                case 0:
                    file[name] = h5py.ExternalLink("/etc/hostname", "/")
                case 1:
                    file[name] = h5py.SoftLink("/layers")
                case 2:
                    file[name] = h5py.SoftLink(f"/{name}")
                case 3:
                    group.create_dataset(name.split("/")[-1], (1 << 40,), "f4", chunks=(1 << 10,))
                case 4:
                    group.create_dataset(name.split("/")[-1], (64,), "f4", external=[("/etc/hostname", 0, 256)])
                case 5:
                    file[name] = np.array([("a", 1)], [("name", "S3"), ("n", "i4")])
                case 6:
                    group.create_dataset(name.split("/")[-1], data=["a", "b"], dtype=h5py.string_dtype())
                case 7:
                    file.create_group(name)
                case 8:
                    file[name] = h5py.Empty("f4")
                case _:
                    key = next(iter(attributes), "name")
                    attributes[key] = value
        return stream.getvalue()

    return mutated


_BY_STRUCTURE: dict[str, Callable[[Random], Mutation]] = {
    ".png": _png,
    ".jpg": _jpeg,
    ".mpo": _jpeg,
    ".tif": _tiff,
    ".avif": _boxes,
    ".jp2": _boxes,
    ".json": _json,
    ".toml": _toml,
    ".csv": _csv,
    ".npz": _npz,
    ".parquet": _parquet,
    ".h5": _hdf5,
}

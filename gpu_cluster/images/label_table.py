"""Reads a CSV of labels: its bytes enter, its rows of a file name and a label leave.

The separator is found out from the header. The encoding is UTF-8, or UTF-16 with a byte-order mark, or the one that the
user names: others cannot be told apart from a few labels for sure, so they are suggested and never guessed. This module
must not know which files there are.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from gpu_cluster.config import InputConfig
from gpu_cluster.errors import DataError
from gpu_cluster.files import MOST_TABLE_BYTES, open_regular, printable
from gpu_cluster.images.formats import suffixes
from gpu_cluster.words import did_you_mean

_SEPARATORS = ",;\t|"
_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
# The line that Excel may write, and reads, above the header.
_SEPARATOR_LINE = re.compile(r"sep=(.)\r?\n?", re.IGNORECASE)
_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
# A header is looked for in this much of a file.
_HEAD_CHARACTERS = 1 << 16
_MOST_LINE_CHARACTERS = 1 << 20

# What spreadsheets write when they do not write Unicode: the code pages of Windows and of older Macs.
_CODE_PAGES = [
    *(f"cp{number}" for number in (874, 932, 949, 950, *range(1250, 1259))),
    *("gb18030", "mac_roman", "mac_cyrillic", "koi8_r"),
]
_MOST_READINGS, _LABELS_A_READING = 4, 3
# Cells in another encoding that are enough to tell which.
_CELLS_READ = 200


class LabelTable:
    """A CSV with a column of file names and a column of labels."""

    def __init__(self, path: Path, config: InputConfig) -> None:
        self.path = path
        self._config = config

    def fits(self) -> bool:
        """Return whether its header has both columns.

        Raises
        ------
        DataError
            When the file cannot be read.
        """
        if _is_workbook(self.path):
            return False
        try:
            with self._opened(errors="replace") as stream:
                return {self._config.file_col, self._config.label_col} <= set(self._header(stream)[0])
        except (csv.Error, UnicodeError):
            return False

    def rows(self) -> Iterator[tuple[str, str | None]]:
        """Yield the file name and the label (None if it is empty) of each row that names a file.

        Bytes that are not UTF-8 are surrogate escapes, as in the paths that the file system gives (see `is_not_utf8`).

        Raises
        ------
        DataError
            When the file cannot be read, is a spreadsheet, lacks a column, or is not in the encoding that was named.
        """
        config, source = self._config, printable(str(self.path))
        try:
            if _is_workbook(self.path):
                raise DataError(
                    f"{source!r} is a spreadsheet (as .xlsx, .xls or .ods), not a CSV; save it in Excel with File > "
                    "Save As > 'CSV UTF-8', in LibreOffice with File > Save As > 'Text CSV', and name that file"
                )
            with self._opened(most_bytes=MOST_TABLE_BYTES) as stream:
                header, separator = self._header(stream)
                if any("\0" in name for name in header):
                    raise DataError(f"{source!r} is not a table of text: there are NUL bytes in it; expected a CSV")
                for column, option in ((config.file_col, "--file-col"), (config.label_col, "--label-col")):
                    if column not in header:
                        raise self._without(column, option, header, separator)
                for record in csv.DictReader(_lines(stream), delimiter=separator):
                    name, label = record[config.file_col], record[config.label_col]
                    if name:
                        yield name, (label or "").strip() or None
        except UnicodeError as error:
            raise DataError(
                f"the labels {source!r} are not {config.labels_encoding or 'utf-16'}: {error}; give another "
                "--labels-encoding, or save the table as UTF-8"
            ) from error
        except (OSError, csv.Error) as error:
            why = getattr(error, "strerror", None) or error
            raise DataError(f"cannot read the labels {source!r}: {why}") from error

    def unreadable(self) -> DataError:
        """Return the error for a table that is not UTF-8; it shows how its labels read in likely encodings."""
        source = printable(str(self.path))
        readings = "; ".join(f"{encoding} gives {words}" for encoding, words in self._readings())
        shown = f", the first of these that reads right ({readings})" if readings else ""
        return DataError(
            f"the labels {source!r} are not UTF-8, and their encoding cannot be found out for sure; name it with "
            f"--labels-encoding{shown}, or save the table as 'CSV UTF-8'"
        )

    def _without(self, column: str, option: str, header: Sequence[str], separator: str) -> DataError:
        """Return the error for a table without a column that is needed, with the likeliest reason."""
        if any(map(is_not_utf8, header)):
            return self.unreadable()
        source = printable(str(self.path))
        has = ", ".join(repr(printable(name)) for name in header) or "no header"
        split = "" if separator == "," else f" (separated by {separator!r})"
        if any(os.path.splitext(name.strip())[1].lower() in suffixes() for name in header):
            return DataError(
                f"{source!r} has no header: its first line is {has}{split}; write a line with the names of the columns "
                f"above it: {self._config.file_col}{separator}{self._config.label_col}"
            )
        meant = did_you_mean(column, header)
        return DataError(f"{source!r} has no column {column!r}; it has {has}{split}; name it with {option}{meant}")

    def _readings(self) -> Iterator[tuple[str, str]]:
        """Yield the most likely encodings, and some of the labels as they read in each."""
        import charset_normalizer

        with self._opened() as stream:
            header, separator = self._header(stream)
            columns = [name for name in (self._config.label_col, self._config.file_col) if name in header]
            records = csv.DictReader(_lines(stream), delimiter=separator)
            cells = itertools.chain((record[column] or "" for record in records for column in columns), header)
            odd: dict[str, None] = {}
            # The labels before a line that is no line of a table are enough to choose by.
            with suppress(csv.Error):
                for cell in cells:
                    if is_not_utf8(cell):
                        odd[cell.strip()] = None
                    if len(odd) == _CELLS_READ:
                        break
        content = "\n".join(odd).encode("utf-8", "surrogateescape")
        # All code pages are asked for, however unlikely, because a few short labels say little about the language.
        found = charset_normalizer.from_bytes(content, cp_isolation=_CODE_PAGES, threshold=1)
        texts: dict[str, str] = {}
        for match in found:
            texts.setdefault(str(match), match.encoding)
        likely = list(texts.items())[:_MOST_READINGS]
        # Only words that the encodings read differently help to choose between them.
        by_word = list(zip(*(text.split("\n") for text, _ in likely), strict=False))
        telling = sorted(range(len(by_word)), key=lambda one: -len(set(by_word[one])))[:_LABELS_A_READING]
        readings: dict[str, str] = {}
        for number, (_, encoding) in enumerate(likely):
            readings.setdefault(", ".join(repr(by_word[one][number]) for one in sorted(telling)), encoding)
        for shown, encoding in readings.items():
            yield encoding, shown

    def _header(self, stream: TextIO) -> tuple[Sequence[str], str]:
        """Return the columns and their separator: the one that gives the wanted columns, or else the most columns.

        The stream is left at the header.
        """
        head = stream.read(_HEAD_CHARACTERS)
        stream.seek(0)
        separators = _SEPARATORS
        stated = _SEPARATOR_LINE.match(head)
        if stated:
            separators, head = stated[1], head[stated.end() :]
            stream.readline()
        wanted = {self._config.file_col, self._config.label_col}
        headers = {
            separator: next(csv.reader(io.StringIO(head, newline=""), delimiter=separator), [])
            for separator in separators
        }
        best = max(headers, key=lambda separator: (len(wanted & set(headers[separator])), len(headers[separator])))
        return headers[best], best

    def _opened(self, errors: str = "strict", most_bytes: int | None = None) -> TextIO:
        stream, _status = open_regular(self.path, most_bytes=most_bytes)
        try:
            mark = stream.read(3)
            stream.seek(0)
        except OSError:
            stream.close()
            raise
        marked = next((encoding for start, encoding in _MARKS.items() if mark.startswith(start)), None)
        encoding = self._config.labels_encoding or marked or "utf-8"
        if self._config.labels_encoding is None and marked != "utf-16":
            # Surrogate escapes keep file names that are not UTF-8.
            errors = "surrogateescape"
        return io.TextIOWrapper(stream, encoding=encoding, errors=errors, newline="")


def is_not_utf8(text: str) -> bool:
    """Return whether a text has bytes that are not UTF-8, as surrogate escapes."""
    return any("\udc80" <= one <= "\udcff" for one in text)


def _is_workbook(path: Path) -> bool:
    with open_regular(path)[0] as stream:
        return stream.read(4).startswith(_WORKBOOKS)


def _lines(stream: TextIO) -> Iterator[str]:
    """Yield the lines of a table, none of which has to fit in memory."""
    while line := stream.readline(_MOST_LINE_CHARACTERS):
        if len(line) == _MOST_LINE_CHARACTERS:
            raise csv.Error(f"it has a line of more than {_MOST_LINE_CHARACTERS:,} characters")
        yield line

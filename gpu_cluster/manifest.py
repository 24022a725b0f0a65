"""The manifest: the files that a job found, one row for each file, with the facts that the scan found and its label.

A 'row' is the index of a file in the manifest, from 0. This module must not know how files are found or read.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np

from gpu_cluster.addresses import common_folder, is_address, last_name
from gpu_cluster.backend import IntArray
from gpu_cluster.columns import Names, Texts, as_column
from gpu_cluster.facts import FileFacts, FileTable
from gpu_cluster.files import escaped, printable
from gpu_cluster.records import Record

__all__ = ["FileFacts", "FileTable", "Manifest", "sum_in_words"]

# Bad files, and files passed over, that a sentence names.
_MOST_NAMED = 3


@dataclass(frozen=True, repr=False)
class Manifest(Record):
    """The files found, sorted by path (in the job `embed`: in the order of its arguments).

    `paths`, `files` and `labels` may be given as any sequence; they are held as columns, about 110 bytes a file.

    Attributes
    ----------
    root : folder that `paths` are relative to; the root of the file system if all of them are addresses
    paths : one for each file, as the file system gives it (surrogate escapes for bytes that are not UTF-8); or an
        address, or a member of a tar file as in `000.tar::rose/1.jpg`
    files : what the scan found out about each file; empty before the scan
    labels : one for each file, None for a file without one; None instead of the column if there is no source of labels
    label_source : where the labels came from, in words
    n_labels_without_file : number of rows of the labels CSV whose file was not found
    n_ambiguous_labels : number of rows of the labels CSV that have only a file name that is in several folders
    bad : maps a row to the reason why its file cannot be used
    duplicates : maps the row of a copy to the first row with the same content
    passed_over : paths of files found in folders that are no pictures by their content and none by their name, sorted
    listed : what is known of each file before the scan: of pictures at addresses, what their server says; of pictures
        in tar files, everything; empty if all pictures are files of this machine
    signed : for pictures whose address has a signature or a token, the whole address by the path; in no table
    """

    root: Path
    paths: Sequence[str]
    files: Sequence[FileFacts] = ()
    labels: Sequence[str | None] | None = None
    label_source: str | None = None
    n_labels_without_file: int = 0
    n_ambiguous_labels: int = 0
    bad: Mapping[int, str] = field(default_factory=dict)
    duplicates: Mapping[int, int] = field(default_factory=dict)
    passed_over: tuple[str, ...] = ()
    listed: Sequence[FileFacts] = ()
    signed: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "paths", as_column(Texts, self.paths))
        object.__setattr__(self, "files", as_column(FileTable, self.files))
        object.__setattr__(self, "listed", as_column(FileTable, self.listed))
        object.__setattr__(self, "labels", None if self.labels is None else as_column(Names, self.labels))

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def facts(self) -> FileTable:
        """`files`, for those who ask for a fact of all files at once."""
        return cast(FileTable, self.files)

    @property
    def name(self) -> str:
        """What the place of the pictures is called."""
        if len(self.listed) and is_address(self.paths[0]):
            return last_name(common_folder(self.paths[0], self.paths[-1]) or self.paths[0])
        return self.root.name

    def file(self, row: int) -> Path:
        """Return the full path of a row's file."""
        return self.root / self.paths[row]

    def originals(self, rows: IntArray) -> IntArray | None:
        """Return for each of the ascending `rows` the position in `rows` of the first file with the same bytes.

        Returns None if the manifest has no duplicates.
        """
        if not self.duplicates:
            return None
        return np.searchsorted(rows, [self.duplicates.get(int(row), int(row)) for row in rows])

    def with_bad(self, bad: Mapping[int, str]) -> Manifest:
        """Return the manifest with the files `bad` marked as bad; a bad file no longer counts as a duplicate."""
        duplicates = {row: first for row, first in self.duplicates.items() if row not in bad}
        return replace(self, bad={**self.bad, **bad}, duplicates=duplicates)

    def without_used(self, *files: Path) -> Manifest:
        """Return the manifest without files among those passed over that the job uses, though they are no pictures."""
        used = set(map(os.path.normpath, files))
        return replace(
            self,
            passed_over=tuple(path for path in self.passed_over if os.path.normpath(self.root / path) not in used),
        )

    def status(self, row: int) -> tuple[str, str | None]:
        """Return `ok`, `bad` or `duplicate`, and the reason in plain words."""
        if row in self.bad:
            return "bad", self.bad[row]
        if row in self.duplicates:
            return "duplicate", f"same content as {escaped(self.paths[self.duplicates[row]])}"
        return "ok", None

    def counts(self) -> dict[str, int]:
        """Return how many files were found, and how many of them are ok, bad, duplicates and passed over."""
        kinds = Counter(self.status(row)[0] for row in range(len(self)))
        n_passed_over = len(self.passed_over)
        return {
            "found": len(self) + n_passed_over,
            **{kind: kinds[kind] for kind in ("ok", "bad", "duplicate")},
            "passed_over": n_passed_over,
        }

    def too_many_bad(self, max_bad_fraction: float) -> bool:
        """Return whether the share of bad files is larger than `max_bad_fraction`."""
        return len(self.bad) > max_bad_fraction * len(self)

    @property
    def n_files_without_label(self) -> int:
        """Number of files without a label; 0 if there is no source of labels."""
        return 0 if self.labels is None else sum(label is None for label in self.labels)

    def sum_in_words(self, done: str, bad_table: str) -> str:
        """Return the sum of the files as `sum_in_words` does; it names the first bad files, and the table of all."""
        bad = [f"{printable(self.paths[row])}: {why}" for row, why in sorted(self.bad.items())[:_MOST_NAMED]]
        more = f"; and {len(self.bad) - len(bad):,} more" if len(self.bad) > len(bad) else ""
        others = [printable(path) for path in self.passed_over[:_MOST_NAMED]]
        if len(others) < len(self.passed_over):
            others.append("...")
        return sum_in_words(
            self.counts(),
            done,
            bad=f"{'; '.join(bad)}{more}; {'it is' if len(self.bad) == 1 else 'all are'} in {bad_table}",
            passed_over=", ".join(others),
        )


def sum_in_words(counts: Mapping[str, int], done: str, *, bad: str = "", passed_over: str = "") -> str:
    """Return what became of the files found; the numbers add up to theirs: `3 clustered, 1 bad, 1 passed over ...`.

    Parameters
    ----------
    counts
        As `Manifest.counts` returns them and `run.json` records them.
    done
        What was done with the good files: clustered, assigned.
    bad, passed_over
        More words about the bad files, and about those passed over.
    """
    # The record of an earlier version does not count the files that are passed over, neither here nor among the found.
    n_good, n_copies, n_others = counts["ok"] + counts["duplicate"], counts["duplicate"], counts.get("passed_over", 0)
    parts = [f"{n_good:,} {done}"]
    if n_copies:
        what = "a copy of another file" if n_copies == 1 else "copies of other files"
        parts[0] += f" ({n_copies:,} of them {what})"
    if counts["bad"]:
        parts.append(f"{counts['bad']:,} bad" + (f" ({bad})" if bad else ""))
    if n_others:
        why = "it is no picture" if n_others == 1 else "they are no pictures"
        parts.append(f"{n_others:,} passed over because {why}" + (f" ({passed_over})" if passed_over else ""))
    return ", ".join(parts)

"""The job `export`: takes the results of a finished run into the form that another tool reads."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gpu_cluster.config import DecodingConfig, ExportConfig, ExportedConfig, ExportFormat
from gpu_cluster.embedding.of_run import embeddings_of_run
from gpu_cluster.errors import ConfigError, DataError
from gpu_cluster.events import Observer, Recorder
from gpu_cluster.export_folder import Filling, check_new_folder, filled_folder, write_file
from gpu_cluster.export_list import Undone, undo
from gpu_cluster.files import printable, write_whole
from gpu_cluster.images import decoders
from gpu_cluster.images.places import open_source
from gpu_cluster.images.source import LocalFiles, Source
from gpu_cluster.images.thumbnails import Thumbnails
from gpu_cluster.jobs.group_names import group_names
from gpu_cluster.jobs.loaded import LoadedRun, check_has_clusters
from gpu_cluster.jobs.loaded import loaded as loaded_of
from gpu_cluster.records import Record
from gpu_cluster.report.exports import folders, tables
from gpu_cluster.report.exports.embeddings import write_embeddings
from gpu_cluster.report.exports.fiftyone import write_fiftyone
from gpu_cluster.report.exports.tensorboard import write_tensorboard
from gpu_cluster.report.pictures import check_inside
from gpu_cluster.run_folder import FinishedRun, explained
from gpu_cluster.words import count

__all__ = ["Exported", "Undone", "export", "undo"]

_DOING = "export"


@dataclass(frozen=True, repr=False)
class Exported(Record):
    """What was exported, or would be in a dry run.

    Attributes
    ----------
    out : the file or the folder
    to : the form
    n : number of pictures in it
    groups : number of pictures in the folder of each group, by its name; empty for other forms than folders
    missing : why a picture of the run is not in it, by its path as the tables have it
    n_bad : number of files that the run could not use, and that are therefore in no export
    lines : in a dry run, what would be done, one thing on each line
    """

    out: Path
    to: ExportFormat
    n: int
    groups: Mapping[str, int] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    n_bad: int = 0
    lines: Sequence[str] = ()

    @property
    def exit_code(self) -> int:
        """0, or 3 if pictures of the run are not in the export."""
        return 3 if self.missing else 0


def export(run: Path, config: ExportConfig, out: Path, observer: Observer | None = None) -> Exported:
    """Export the run in the folder `run` to the file or folder `out`; see `gpu-cluster export --help` for the forms.

    It is written whole or not at all. Nothing is replaced without `overwrite`, and nothing is written elsewhere.

    Raises
    ------
    ConfigError
        When `out` cannot be written or holds something, or the options do not fit the run.
    DataError
        When the folder is not that of a finished run, none of its pictures is where it was, or the names of the groups
        cannot be read.
    JobError
        When something cannot be written; then nothing is left.
    """
    events = Recorder(observer or Observer())
    options = config.export
    check_has_clusters(run)
    finished = FinishedRun(run)
    loaded = loaded_of(finished)
    check_inside(finished)
    groups = group_names(loaded, options.names)
    with events.stage("export"):
        if options.to in tables.FILES:
            return _export_table(loaded, groups, options, out)
        folder = check_new_folder(out, overwrite=options.overwrite)
        _check_apart(folder, run)
        if options.to == "folders":
            return _export_folders(finished, loaded, groups, options, folder, events)
        return _export_files(finished, loaded, groups, config, folder, events)


def _check_apart(out: Path, run: Path) -> None:
    if _real(out).is_relative_to(_real(run)):
        raise ConfigError(
            f"--out: {_shown(out)!r} lies in the run folder, which holds nothing but the run; choose another --out"
        )


def _real(path: Path) -> Path:
    """Return a path without links; for a link that leads back to itself, `Path.resolve` would raise an error."""
    return Path(os.path.realpath(path))


# One file


def _export_table(run: LoadedRun, groups: Sequence[str], options: ExportedConfig, out: Path) -> Exported:
    file = _file(out, options)
    _check_apart(file, run.folder)
    n, n_bad = len(run.assignments), len(run.bad_files)
    if options.dry_run:
        return Exported(file, options.to, n, n_bad=n_bad, lines=[f"{_shown(file)}: {count(n, 'row')}"])
    facts = _facts(run, options)
    names = [{"cluster": number, "name": name} for number, name in enumerate(groups)]
    table = tables.with_groups(run.assignments, groups)
    about = {name: facts[name] for name in ("gpu_cluster", "run")} | {"groups": names}
    write_file(
        file,
        tables.content_of(options.to, table, about, safe=options.safe_csv),
        facts,
        overwrite=options.overwrite,
    )
    return Exported(file, options.to, n, n_bad=n_bad)


def _file(out: Path, options: ExportedConfig) -> Path:
    """Return the file to write: `out` if it has the suffix of the form, or else a file in the folder `out`.

    Raises
    ------
    ConfigError
        When `out` has another suffix and is no folder, or the file is there and may not be replaced.
    """
    usual = tables.FILES[options.to]
    suffix = Path(usual).suffix
    if out.is_dir():
        file = out / usual
    elif out.suffix == suffix:
        file = out
    elif out.suffix:
        raise ConfigError(
            f"--out: expected a file that ends in {suffix}, or a folder, for --to {options.to}; found "
            f"{_shown(out)!r}, which is no folder"
        )
    else:
        file = out / usual
    file = _real(file) if file.is_symlink() else file
    above = next(parent for parent in file.absolute().parents if os.path.lexists(parent))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"--out: {_shown(file)!r} cannot be written: expected a file in a folder that can be written")
    if os.path.lexists(file):
        _check_replaceable(file, options)
    return file


def _check_replaceable(file: Path, options: ExportedConfig) -> None:
    if not options.overwrite:
        raise ConfigError(
            f"--out: {_shown(file)!r} is there already: choose another name, or give --overwrite to replace it"
        )
    try:
        ours = file.is_file() and tables.is_table_of(options.to, file)
    except OSError as error:
        raise ConfigError(f"--out: {_shown(file)!r} cannot be read: {error.strerror}") from error
    if not ours:
        raise ConfigError(
            f"--out: {_shown(file)!r} would be replaced: expected what an earlier `gpu-cluster export --to "
            f"{options.to}` wrote; found something else"
        )


# Folders


def _export_folders(
    run: FinishedRun,
    loaded: LoadedRun,
    groups: Sequence[str],
    options: ExportedConfig,
    folder: Path,
    events: Recorder,
) -> Exported:
    link = options.link or "symlink"
    source, root = _source(run, options)
    with explained(run.folder, _DOING):
        planned = folders.plan(run.pictures, run.manifest, groups)
    folders.check_link(link, source, planned)
    are_here = any(source.local_path(one.location) is not None for one in planned)
    if are_here and _real(folder).is_relative_to(_real(root)):
        events.notice(
            f"{_shown(folder)!r} lies in the folder of the pictures: a later run of that folder finds each of these "
            "pictures twice"
        )
    renamed = sum(one.is_renamed for one in planned)
    if renamed:
        events.notice(
            f"{count(renamed, 'picture')} {'has' if renamed == 1 else 'have'} another name in the export, because not "
            "every system accepts the name or tells it from another one; export.csv has both"
        )
    if options.dry_run:
        return _as_planned(planned, source, folder, link, loaded, events)
    facts = _facts(loaded, options) | {"link": link}
    with filled_folder(folder, facts, overwrite=options.overwrite) as filling:
        missing = folders.fill(filling, planned, source, link, events)
        _check_any(missing, planned, root, run)
        n_bad = _write_not_exported(filling, missing, loaded)
    exported = [one for one in planned if one.path not in missing]
    return Exported(folder, "folders", len(exported), folders.in_numbers(exported), missing, n_bad)


def _root(run: FinishedRun, options: ExportedConfig) -> Path | None:
    """Return the folder of the pictures; None if it is not known, because the run is portable.

    Raises
    ------
    ConfigError
        When the folder that the user names is none.
    """
    if options.root is not None and not options.root.is_dir():
        raise ConfigError(f"--root: expected the folder that holds the pictures now; found {_shown(options.root)!r}")
    with explained(run.folder, _DOING):
        return options.root or run.root


def _source(run: FinishedRun, options: ExportedConfig) -> tuple[Source, Path]:
    """Return where the pictures are, and the folder of it.

    Raises
    ------
    ConfigError
        When that is not known, or the folder that the user names is none.
    """
    root = _root(run, options)
    if root is None:
        raise ConfigError(
            f"{_shown(run.folder)!r} is portable and does not say where its pictures are: give --root DIR with the "
            "folder that holds them"
        )
    return open_source(root), root


def _as_planned(
    planned: Sequence[folders.Planned],
    source: Source,
    folder: Path,
    link: str,
    run: LoadedRun,
    events: Recorder,
) -> Exported:
    """Return what would be done, with nothing written."""
    missing: dict[str, str] = {}
    lines, found = [], []
    for one, why in folders.looked_at(planned, source, events):
        if why is None:
            found.append(one)
            lines.append(f"{link} {one.target} <- {one.path}")
        else:
            missing[one.path] = why
            lines.append(f"not exported: {one.path}: {why}")
    return Exported(folder, "folders", len(found), folders.in_numbers(found), missing, len(run.bad_files), lines)


def _check_any(missing: Mapping[str, str], planned: Sequence[folders.Planned], root: Path, run: FinishedRun) -> None:
    if len(missing) == len(planned):
        path, why = next(iter(missing.items()))
        raise DataError(
            f"cannot export {_shown(run.folder)!r}: expected its {count(len(planned), 'picture')} in "
            f"{_shown(root)!r}, found none of them (the first is {path!r}: {why}); give --root DIR with the "
            "folder that holds them now; nothing was written"
        )


def _write_not_exported(filling: Filling, missing: Mapping[str, str], run: LoadedRun) -> int:
    """Write the table of what is not in the folder, if there is any; return the number of the run's bad files."""
    bad = run.bad_files
    rows = [*missing.items(), *zip(bad["path"], bad["reason"], strict=True)]
    if rows:
        stream = io.StringIO()
        table = csv.writer(stream, lineterminator="\n")
        table.writerows([("path", "reason"), *rows])
        write_whole(filling.path / folders.NOT_EXPORTED, stream.getvalue().encode())
        filling.add_file(folders.NOT_EXPORTED)
    return len(bad)


# Files of other tools


def _export_files(
    run: FinishedRun,
    loaded: LoadedRun,
    groups: Sequence[str],
    config: ExportConfig,
    folder: Path,
    events: Recorder,
) -> Exported:
    """Fill the folder with the files of TensorBoard or FiftyOne, or with the embeddings."""
    options, n = config.export, len(loaded.assignments)
    n_bad, root = len(loaded.bad_files), _root(run, options)
    if options.dry_run:
        lines = [f"{_shown(folder)}: the files of {options.to}, {count(n, 'picture')}"]
        return Exported(folder, options.to, n, n_bad=n_bad, lines=lines)
    pictures = tables.with_groups(loaded.assignments, groups)
    with filled_folder(folder, _facts(loaded, options), overwrite=options.overwrite) as filling:
        if options.to == "fiftyone":
            write_fiftyone(filling.path, pictures, None if root is None else str(root), events)
        else:
            n = _write_embeddings(filling.path, run, pictures, config, root, events)
        filling.add_all_files()
    return Exported(folder, options.to, n, n_bad=n_bad)


def _write_embeddings(
    folder: Path,
    run: FinishedRun,
    pictures: Any,
    config: ExportConfig,
    root: Path | None,
    events: Recorder,
) -> int:
    """Write what needs the embeddings of the run; return the number of pictures that are in it."""
    given = config.given if config.given.is_given else None
    # A copy of given embeddings that are too large to be held lies in the folder without a name.
    with embeddings_of_run(run, events, cache=config.store.cache, given=given, scratch=folder) as x:
        if config.export.to == "embeddings":
            write_embeddings(folder, pictures, x, events)
            return len(pictures)
        with explained(run.folder, _DOING):
            kept = run.thumbnails[1]
            limits = DecodingConfig(max_pixels=run.max_pixels)
        thumbnails = Thumbnails(
            None if root is None else LocalFiles(root),
            run.pictures["path"],
            kept=kept,
            hashes=run.pictures["content_hash"],
            again=config.export.root is not None,
        )
        with decoders.limited(limits):
            return len(write_tensorboard(folder, pictures, x, thumbnails, events))


def _facts(run: LoadedRun, options: ExportedConfig) -> dict[str, Any]:
    """Return what the marker of an export says of it; a portable run stays one that names no folder."""
    name = run.folder.absolute()
    shown = name.name if run.record["root"] is None else str(name)
    return {"gpu_cluster": version("gpu-cluster"), "run": printable(shown), "to": options.to}


def _shown(path: Path) -> str:
    return printable(str(path))

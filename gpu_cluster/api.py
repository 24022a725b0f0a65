"""The Python API: the jobs as functions.

Every option of a command is a keyword argument of its function, by its name with underscores. `help(gpu_cluster.run)`
lists them with their defaults, and the classes `...Options` below name their types for completion and type checkers. A
test checks that these classes agree with the config, where options are declared. A job is loaded after its options have
been checked.
"""

from __future__ import annotations

import inspect
import os
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, TypeVar, get_type_hints, runtime_checkable

from typing_extensions import Unpack

from gpu_cluster.config import (
    CommandConfig,
    CompareConfig,
    Device,
    EmbedJobConfig,
    EngineName,
    ExportConfig,
    ExportFormat,
    Link,
    Pooling,
    Precision,
    PredictConfig,
    RunConfig,
)
from gpu_cluster.errors import ConfigError, DataError
from gpu_cluster.events import Observer
from gpu_cluster.files import printable
from gpu_cluster.notebook import default_observer
from gpu_cluster.options import INTERNAL, build_config, command_of, left_out, options_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from gpu_cluster.export_list import Undone
    from gpu_cluster.jobs.export import Exported
    from gpu_cluster.jobs.loaded import LoadedRun
    from gpu_cluster.jobs.predict import Prediction
    from gpu_cluster.results import Comparison, RunResult

PathLike = str | os.PathLike[str]
F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", RunConfig, CompareConfig)

# Before each line of the description of an option.
_IN = "    "


class _JobOptions(TypedDict, total=False):
    device: Device
    max_pixels: int
    max_decode_seconds: float
    engine: EngineName
    weights: PathLike | None
    batch_size: int | None
    precision: Precision | None
    cache: PathLike | None
    no_cache: bool
    force: bool
    rehash: bool
    shard_size: int | None


class _ExecutorOptions(TypedDict, total=False):
    workers: int | None
    scheduler: str | None
    scheduler_file: PathLike | None


class _PicturesOptions(_JobOptions, total=False):
    input_list: PathLike | None
    max_bad_fraction: float


@runtime_checkable
class SupportsArray(Protocol):
    """What NumPy makes an array of: its own arrays, and tensors of other libraries."""

    def __array__(self) -> Any: ...


class _GivenOptions(TypedDict, total=False):
    embeddings: PathLike | SupportsArray | None
    embedding_names: PathLike | Iterable[PathLike] | None


class PredictOptions(_PicturesOptions, _GivenOptions, _ExecutorOptions, total=False):
    """The options of `predict`."""

    features: str | None
    report: bool
    portable: bool
    safe_csv: bool


class ExportOptions(TypedDict, total=False):
    """The options of `export`."""

    to: ExportFormat
    link: Link | None
    names: PathLike | None
    root: PathLike | None
    overwrite: bool
    dry_run: bool
    safe_csv: bool
    cache: PathLike | None
    embeddings: PathLike | None
    embedding_names: PathLike | None


class EmbedOptions(_JobOptions, _ExecutorOptions, total=False):
    """The options of `embed`."""

    image_size: int | None
    resize: str
    fit: str
    decoding: int
    features: str
    pooling: Pooling


class _ClusteringOptions(_PicturesOptions, total=False):
    labels: PathLike | None
    file_col: str
    label_col: str
    labels_encoding: str | None
    labels_from_folders: bool
    image_size: int | None
    resize: str
    fit: str
    decoding: int
    seed: int
    scaling: str
    pca: int | str
    whitening: float
    normalize: bool
    k: int | None
    select: str
    k_range: range | str | None
    default_range: range | str
    sweep_sample: int
    n_init: int
    max_iter: int
    tol: float
    silhouette_sample: int
    out: PathLike | None
    overwrite: bool
    portable: bool
    safe_csv: bool


class CompareOptions(_ClusteringOptions, total=False):
    """The options of `compare`."""

    features: Iterable[str]
    algorithms: Iterable[str]


class RunOptions(_ClusteringOptions, _GivenOptions, _ExecutorOptions, total=False):
    """The options of `run`."""

    embedded_by: str | None

    preset: str
    features: str
    pooling: Pooling
    sweep_space: str
    holdout: float | None
    layout_sample: int
    thumbnails: int


def _lists_options_of(model: type[CommandConfig], typed: type) -> Callable[[F], F]:
    """Give a function a signature and a list of all options of its job, for `help`, notebooks and editors.

    `typed` is the class that names their types for completion and type checkers.
    """
    types = get_type_hints(typed)
    known = {name: option for name, option in options_of(model).items() if name not in INTERNAL | {"images"}}

    def listed(function: F) -> F:
        plain = inspect.signature(function)
        own = [one for one in plain.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        options = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=option.field.default, annotation=types[name]
            )
            for name, option in known.items()
        ]
        described = [
            f"{name}\n{textwrap.fill(option.field.description or '', 110, initial_indent=_IN, subsequent_indent=_IN)}"
            for name, option in known.items()
        ]
        text = "\n".join((inspect.cleandoc(function.__doc__ or ""), "", "Options", "-------", *described))
        function.__doc__ = f"{text}\n"
        function.__signature__ = plain.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
        return function

    return listed


@_lists_options_of(RunConfig, RunOptions)
def run(
    images: PathLike | Iterable[PathLike] = (),
    *,
    config: PathLike | None = None,
    observer: Observer | None = None,
    **options: Unpack[RunOptions],
) -> RunResult:
    """Cluster a folder of images and write a run folder, as `gpu-cluster run` does.

    Parameters
    ----------
    images
        A folder, a file, or several of them; if empty, the sample set that comes with the package is used.
    config
        A TOML file, or the `run.json` of an earlier run.
    observer
        Its methods are called for stages, progress and decisions. Without one, a notebook shows a line of progress.
    **options
        The options of the command line by their names with underscores: `k_range=range(2, 21)` or `"2:20"`,
        `preset="notebook"`, ... `embeddings` may also be an array (n, d), and `embedding_names` a list of n names.

    Returns
    -------
    RunResult
        `folder` is the run folder, `findings` holds the clustering and its scores.

    Raises
    ------
    GpuClusterError
        See `gpu_cluster.errors`.
    """
    left, array = _without_array(options)
    checked = _config_of(RunConfig, config, images, left)
    from gpu_cluster.jobs.run import run as run_job

    return run_job(checked, observer or default_observer(), **array)


@_lists_options_of(CompareConfig, CompareOptions)
def compare(
    images: PathLike | Iterable[PathLike] = (),
    *,
    config: PathLike | None = None,
    observer: Observer | None = None,
    **options: Unpack[CompareOptions],
) -> Comparison:
    """Compare kinds of features and algorithms on a folder of images, as `gpu-cluster compare` does.

    Parameters
    ----------
    images, config, observer
        The same as for `run`.
    **options
        The options of the command line by their names with underscores. `features` are names from
        `gpu_cluster.jobs.compare.FEATURES`; by default `gpu_cluster.jobs.compare.default_features()`. `algorithms` are
        names from `gpu_cluster.jobs.compare.ALGORITHMS`; by default all of them.

    Returns
    -------
    Comparison
        `folder` is the folder with the table and the plot, `rows` are the rows of the table.

    Raises
    ------
    GpuClusterError
        See `gpu_cluster.errors`.
    """
    checked = _config_of(CompareConfig, config, images, options)
    from gpu_cluster.jobs.compare import compare as compare_job

    return compare_job(checked, observer or default_observer())


@_lists_options_of(PredictConfig, PredictOptions)
def predict(
    run: PathLike,
    images: PathLike | Iterable[PathLike] = (),
    *,
    out: PathLike,
    observer: Observer | None = None,
    **options: Unpack[PredictOptions],
) -> Prediction:
    """Assign images to the clusters of a finished run, as `gpu-cluster predict` does.

    Parameters
    ----------
    run
        The run folder.
    images
        A folder, a file, or several of them.
    out
        The table to write, `.csv` or `.parquet`.
    observer
        Its methods are called for stages, progress and decisions.
    **options
        The options of the command line by their names with underscores. The images are embedded with the options of the
        run. With `report=True`, a page beside the table shows where they went. `embeddings` may be an array, as for
        `run`.

    Raises
    ------
    GpuClusterError
        See `gpu_cluster.errors`.
    """
    left, array = _without_array(options)
    config = build_config(PredictConfig, images=_paths(images), **left)
    from gpu_cluster.jobs.predict import predict as predict_job

    return predict_job(_path("run", run), config, _path("out", out), observer or default_observer(), **array)


@_lists_options_of(EmbedJobConfig, EmbedOptions)
def embed(
    paths: PathLike | Iterable[PathLike], *, observer: Observer | None = None, **options: Unpack[EmbedOptions]
) -> npt.NDArray[np.float32]:
    """Embed image files with VGG16 (ImageNet), or with other `features`.

    Parameters
    ----------
    paths
        An image file, or several.
    observer
        Its methods are called for stages, progress and decisions.
    **options
        Those options of `run` that set how images are embedded and which store is used. Embeddings that the store holds
        are not computed again.

    Returns
    -------
    (n, d) float32, host; in the order of `paths`; d is 2,304, or another number for other `features` or another
    `pooling`

    Raises
    ------
    DataError
        When a file cannot be decoded; the message names the first such file.
    GpuClusterError
        See `gpu_cluster.errors`.
    """
    config = build_config(EmbedJobConfig, **options)
    from gpu_cluster.jobs.embed import embed as embed_job

    return embed_job([Path(path) for path in _paths(paths)], config, observer or default_observer())


@_lists_options_of(ExportConfig, ExportOptions)
def export(
    run: PathLike, *, out: PathLike, observer: Observer | None = None, **options: Unpack[ExportOptions]
) -> Exported:
    """Take the results of a finished run into another form, as `gpu-cluster export` does.

    Parameters
    ----------
    run
        The run folder.
    out
        The folder to write, or the file; `gpu-cluster export --help` says which.
    observer
        Its methods are called for stages, progress and decisions. Without one, a notebook shows a line of progress.
    **options
        The options of the command line by their names with underscores.

    Returns
    -------
    Exported
        `missing` says which pictures of the run are not in the export, and why.

    Raises
    ------
    GpuClusterError
        See `gpu_cluster.errors`; nothing is left then.
    """
    folder, target = _path("run", run), _path("out", out).absolute()
    config = build_config(ExportConfig, **options)
    from gpu_cluster.jobs.export import export as export_job

    return export_job(folder, config, target, observer or default_observer())


def undo_export(folder: PathLike, *, dry_run: bool = False) -> Undone:
    """Take an export back: remove what it put into its folder and nobody changed, and then the folders that are empty.

    Parameters
    ----------
    folder
        The folder of the export, which holds `export.csv`.
    dry_run
        Count only, and remove nothing.

    Raises
    ------
    DataError
        When it is no folder of an export, or its list is damaged.
    JobError
        When something cannot be removed; doing it again goes on.
    """
    given = _path("folder", folder).absolute()
    from gpu_cluster.export_list import undo

    return undo(given, dry_run=dry_run)


def load_run(folder: PathLike) -> LoadedRun:
    """Read the folder of a finished run into arrays and data frames.

    Parameters
    ----------
    folder
        The run folder, of this version or of an earlier one. It is only read.

    Returns
    -------
    LoadedRun
        `assignments` and `sweep` are data frames, `clusters` (n,) and `centres` (k, m) are arrays, `metrics`, `config`
        and `record` are what the JSON files say.

    Raises
    ------
    DataError
        When it is not the folder of a finished run, or a file in it is damaged; the message says which, and what to do.
    """
    given = _path("folder", folder)
    from gpu_cluster.jobs.loaded import load_run as load

    return load(given)


def _config_of(
    model: type[C], file: PathLike | None, images: PathLike | Iterable[PathLike], options: Mapping[str, Any]
) -> C:
    """Build the config of a job; pictures that only the file names must be there.

    Raises
    ------
    ConfigError
        As for `build_config`.
    DataError
        When the pictures that the file names are gone; the message says how to name them anew.
    """
    named = _paths(images)
    config = build_config(model, file, images=named or None, **options)
    if file is not None:
        _check_given_again(model, file, {"images": named, **options})
    gone = [] if file is None or named else [path for path in config.input.paths() if not os.path.lexists(path)]
    if gone:
        shown = printable(os.fspath(file or ""))
        raise DataError(
            f"{printable(str(gone[0]))!r}, which {shown!r} names, does not exist; if the pictures were moved, name the "
            f"folder that holds them now: gpu-cluster {command_of(model)} FOLDER --config {shown}"
        )
    return config


def _without_array(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of a config, and what goes to the job beside it: embeddings in memory, and their names.

    Raises
    ------
    ConfigError
        When a list of names is given for a file.
    """
    given, names = options.get("embeddings"), options.get("embedding_names")
    in_memory = given is not None and isinstance(given, SupportsArray)
    listed = None if names is None or isinstance(names, str | os.PathLike) else names
    if not in_memory:
        if listed is not None:
            raise ConfigError(
                "embedding_names: a list names the rows of an array; for a file of embeddings, give the path of a file "
                "that names them"
            )
        return dict(options), {}
    try:
        array_names = None if listed is None else [os.fspath(name) for name in listed]
    except TypeError as error:
        raise ConfigError(f"embedding_names: expected a list of names, or the path of one; {error}") from error
    left = {**options, "embeddings": None, "embeddings_in_memory": True}
    if listed is not None:
        left["embedding_names"] = None
    return left, {"array": given, "array_names": array_names}


def _check_given_again(model: type[CommandConfig], file: PathLike, given: Mapping[str, Any]) -> None:
    """Refuse to repeat a portable run without the paths that its record does not hold.

    Raises
    ------
    ConfigError
        When one of them is not given.
    """
    names = left_out(file)
    found = {name for name in names if given.get(name)}
    if given.get("labels_from_folders"):
        found.add("labels")
    if given.get("images") or given.get("input_list"):
        found |= {"images", "input_list"}
    if given.get("embeddings") or given.get("embeddings_in_memory"):
        # Another file may have its names beside it, or in it.
        found |= {"embeddings", "embedding_names"}
    missing = {name: of for name, of in names.items() if name not in found}
    if not missing:
        return
    flags = {name: "FOLDER" if name == "images" else f"--{name.replace('_', '-')} PATH" for name in names}
    words = ", ".join(f"{flags[name]} (in that run: {', '.join(map(repr, of))})" for name, of in missing.items())
    shown = printable(os.fspath(file))
    raise ConfigError(
        f"{shown!r} was written with --portable and holds no paths; expected {words}: "
        f"gpu-cluster {command_of(model)} {' '.join(flags.values())} --config {shown}"
    )


def _paths(named: PathLike | Iterable[PathLike]) -> tuple[PathLike, ...]:
    try:
        paths = (named,) if isinstance(named, str | os.PathLike) else tuple(named)
    except TypeError:
        paths = None
    if paths is None or not all(isinstance(path, str | os.PathLike) for path in paths):
        raise ConfigError(f"expected a folder of images, an image file, or several of them; found {named!r}")
    return paths


def _path(name: str, given: PathLike) -> Path:
    if not isinstance(given, str | os.PathLike):
        raise ConfigError(f"{name}: expected a path; found {given!r}")
    return Path(given)

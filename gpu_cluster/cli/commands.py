"""The commands of the command line: each turns its options into a job, prints the result and sets the exit code."""

from __future__ import annotations

import inspect
import json
import logging
import os
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import typer

import gpu_cluster
from gpu_cluster import run_folder as run_folder_files
from gpu_cluster.cli.signals import Signals
from gpu_cluster.cli.terminal import (
    TerminalObserver,
    print_cache,
    print_comparison,
    print_diagnosis,
    print_done,
    print_error,
    print_prediction,
    print_summary,
    print_verdict,
)
from gpu_cluster.config import CompareConfig, JobConfig, PredictConfig, RunConfig
from gpu_cluster.errors import ConfigError
from gpu_cluster.events import Observers
from gpu_cluster.files import printable
from gpu_cluster.jobs.compare import ALGORITHMS, FEATURES, MOST_IMAGES, default_features
from gpu_cluster.jobs.doctor import diagnose
from gpu_cluster.jobs.predict import predict as predict_job
from gpu_cluster.jobs.report import report as report_job
from gpu_cluster.jobs.selftest import selftest as selftest_job
from gpu_cluster.manifest import Manifest
from gpu_cluster.options import INTERNAL, Option, build_config, options_of
from gpu_cluster.store.maintenance import find_store, prune, verify
from gpu_cluster.store.maintenance import inspect as inspect_store

# Every command is stopped by these signals; the exit code of a stopped command depends on the signal.
signals = Signals()

app = typer.Typer(add_completion=False, rich_markup_mode="rich")

_CLUSTERING = "Clustering"
_OUTPUT = "Output"

# The help panel for the options of each section, and for each option that is in no section.
_PANELS = {
    "input": "Input",
    "embed": "Embedding",
    "store": "Kept between runs",
    "reduce": _CLUSTERING,
    "sweep": _CLUSTERING,
    "cluster": _CLUSTERING,
    "score": _CLUSTERING,
    "compare": _CLUSTERING,
    "report": _OUTPUT,
    "device": "Embedding",
    "max_bad_fraction": "Input",
    "seed": _CLUSTERING,
    "preset": _CLUSTERING,
}

# Help that is not in the declaration of an option, because it needs facts from the jobs.
_MORE_HELP = {
    "features": f"Possible are {', '.join(FEATURES)}. The default here is {', '.join(default_features())}; a network "
    "other than VGG16 is part of it if Keras has downloaded its weights.",
    "algorithms": f"Possible are {', '.join(ALGORITHMS)}; the default is all of them. For more than {MOST_IMAGES:,} "
    "images only kmeans runs.",
}


def _option(option: Option) -> Any:
    """Return the type as which Typer reads an option, with its help; both come from the declaration of the option."""
    # An option that is not a single number, path or switch is read as text here and parsed by the config.
    kinds = {part for part in _parts(option.field.annotation) if part is not type(None)}
    kind = kinds.pop() if len(kinds) == 1 and kinds <= {bool, int, float, Path} else str
    words = " ".join(filter(None, (option.field.description, _MORE_HELP.get(option.name))))
    default = option.field.default
    if default is not None and default is not False and default != ():
        words += f" (default: {default})"
    flag = f"{option.flag}/--no-{option.flag[2:]}" if default is True else option.flag
    panel = _PANELS[option.section or option.name]
    return Annotated[kind | None, typer.Option(flag, help=words, rich_help_panel=panel, show_default=False)]


def _parts(annotation: Any) -> Iterator[Any]:
    """Yield the plain types that an annotation consists of."""
    inner = get_args(annotation)
    if get_origin(annotation) is Annotated:
        yield from _parts(inner[0])
    elif get_origin(annotation) in (Union, UnionType):
        for part in inner:
            yield from _parts(part)
    else:
        yield annotation


_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _takes_options_of(model: type[JobConfig], *names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace `**options` of a command's function by parameters: all options of the command, or those in `names`."""

    def taking(function: Callable[..., None]) -> Callable[..., None]:
        plain = inspect.signature(function, eval_str=True)
        by_kind = {kind: [one for one in plain.parameters.values() if one.kind is kind] for kind in _KINDS}
        taken = [
            option
            for option in options_of(model).values()
            if option.name not in INTERNAL | {"images"} and (option.name in names or not names)
        ]
        panels = list(dict.fromkeys(_PANELS.values()))
        taken.sort(key=lambda option: panels.index(_PANELS[option.section or option.name]))
        parameters = [
            *by_kind[inspect.Parameter.POSITIONAL_OR_KEYWORD],
            *(
                inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(one))
                for one in taken
            ),
            *by_kind[inspect.Parameter.KEYWORD_ONLY],
        ]
        function.__signature__ = plain.replace(parameters=parameters)  # type: ignore[attr-defined]
        function.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": None}
        return function

    return taking


_Images = Annotated[
    list[Path] | None,
    typer.Argument(help="Folders and image files; by default the drawn flowers that come with gpu-cluster."),
]
_RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `gpu-cluster run` has written.")]
_Config = Annotated[
    Path | None,
    typer.Option(help="TOML file of options, or the run.json of a job to repeat.", rich_help_panel=_OUTPUT),
]
_Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors only.", rich_help_panel=_OUTPUT)]
_Verbose = Annotated[bool, typer.Option("--verbose", help="Print what each stage decides.", rich_help_panel=_OUTPUT)]
_Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=_OUTPUT)]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.callback()
def _root() -> None:
    """Cluster a folder of pictures, and write tables, scores and plots."""


@app.command("version")
def _version() -> None:
    """Print the version."""
    typer.echo(version("gpu-cluster"))


@app.command()
@_takes_options_of(RunConfig)
def run(
    images: _Images = None,
    *,
    config: _Config = None,
    quiet: _Quiet = False,
    verbose: _Verbose = False,
    debug: _Debug = False,
    **options: Any,
) -> None:
    """Cluster a folder of images and write a run folder with tables, scores and plots.

    Exit codes: 0 done; 1 failed while running; 2 wrong use, no results were written; 3 done, but more files were bad
    than --max-bad-fraction allows; 130 or 143 interrupted: the store keeps the embeddings computed so far, and the same
    command goes on from there.
    """
    _log(logging.INFO if verbose else logging.ERROR if quiet else logging.WARNING)
    result = gpu_cluster.run(images or (), config=config, observer=_observer(quiet), **options)
    if not quiet:
        print_summary(result)
    raise typer.Exit(
        _bad_exit(result.manifest, result.config.max_bad_fraction, result.folder / run_folder_files.BAD_FILES)
    )


def _observer(quiet: bool) -> Observers:
    return Observers(signals, *([] if quiet else [TerminalObserver()]))


def _log(level: int) -> None:
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("gpu_cluster").setLevel(level)


def _bad_exit(manifest: Manifest, max_bad_fraction: float, reasons: Path | None) -> int:
    """Return 3 and print why if the share of bad files is above `max_bad_fraction`; else return 0."""
    if not manifest.too_many_bad(max_bad_fraction):
        return 0
    print_error(
        f"{len(manifest.bad)} of {len(manifest)} files could not be decoded, more than --max-bad-fraction "
        f"{max_bad_fraction} allows; the reasons are in {printable(str(reasons))!r}"
    )
    return 3


@app.command()
def report(run_folder: _RunFolder, debug: _Debug = False) -> None:
    """Write report.html of a finished run again; the earlier page is replaced."""
    print_done(f"report: {printable(report_job(run_folder.absolute()).as_uri())}")


@app.command()
@_takes_options_of(PredictConfig)
def predict(
    run_folder: _RunFolder,
    images: Annotated[list[Path] | None, typer.Argument(help="Folders and image files.")] = None,
    *,
    out: Annotated[
        Path,
        typer.Option(
            help="Table to write, .csv or .parquet; an earlier table of predictions is replaced.",
            rich_help_panel=_OUTPUT,
        ),
    ] = Path("predictions.csv"),
    quiet: _Quiet = False,
    debug: _Debug = False,
    **options: Any,
) -> None:
    """Assign pictures to the clusters of a finished run.

    Writes one row for each picture: its cluster, the most frequent label of this cluster, the distance to the cluster's
    centre, and whether the picture is far, that is farther away than 99% of the pictures that formed the cluster.
    Pictures whose embeddings are not in the store are embedded with the options of the run.

    Exit codes: the same as for run.
    """
    config = build_config(PredictConfig, images=tuple(images or ()) or None, **options)
    found = predict_job(run_folder, config, out, _observer(quiet))
    if not quiet:
        print_prediction(found)
    raise typer.Exit(_bad_exit(found.manifest, config.max_bad_fraction, found.bad_files))


@app.command()
@_takes_options_of(CompareConfig)
def compare(
    images: _Images = None,
    *,
    config: _Config = None,
    quiet: _Quiet = False,
    debug: _Debug = False,
    **options: Any,
) -> None:
    """Compare features and algorithms on the same pictures, in one table and one plot.

    All of them use the same k: --k, or the k that is chosen in the space of the first features. The notebook's recipe
    has its own --resize, --fit, --scaling, --pca, --whitening and --normalize. The store keeps all features, as it
    keeps embeddings. Scores within a space (silhouette) compare algorithms, not features. Stability is the mean
    adjusted Rand index of the groups with those of five random subsamples of 80%.

    Exit codes: the same as for run.
    """
    _log(logging.ERROR if quiet else logging.WARNING)
    found = gpu_cluster.compare(images or (), config=config, observer=_observer(quiet), **options)
    if not quiet:
        print_comparison(found)
    raise typer.Exit(
        _bad_exit(found.manifest, found.config.max_bad_fraction, found.folder / run_folder_files.BAD_FILES)
    )


@app.command()
@_takes_options_of(RunConfig, "weights", "cache", "out")
def doctor(
    device: Annotated[str, typer.Option(help="Fail if this device cannot be used: auto, cpu or gpu.")] = "auto",
    as_json: _Json = False,
    debug: _Debug = False,
    **options: Any,
) -> None:
    """Check what this machine can run, and print what to do if something is missing.

    Exit codes: 0 a job can run on the device asked for; 1 it cannot.
    """
    config = build_config(RunConfig, device=device, **options)
    diagnosis = diagnose(config.device, config.embed.weights, config.report.out, config.store.cache)
    if as_json:
        typer.echo(json.dumps(diagnosis.as_json(), indent=2))
    else:
        print_diagnosis(diagnosis)
    raise typer.Exit(0 if diagnosis.works else 1)


@app.command()
@_takes_options_of(RunConfig, "image_size")
def selftest(
    device: Annotated[str, typer.Option(help="gpu fails without a GPU; auto uses one only if there is one.")] = "auto",
    out: Annotated[Path, typer.Option(help="JSON file for the verdict; send it with a report of a fault.")] = Path(
        "gpu-cluster-selftest.json"
    ),
    as_json: _Json = False,
    debug: _Debug = False,
    **options: Any,
) -> None:
    """Do the same work with the sample set on the CPU and on the GPU, twice on each, and compare the results.

    The table shows the embeddings in every precision of the GPU, the clusters in two spaces, what two runs have in
    common, the memory, and the speed of decoding, of the network and of the copy between them.

    Exit codes: 0 all results are within their tolerance; 1 one is not, or the GPU that was asked for cannot be used.
    """
    config = build_config(RunConfig, device=device, **options)
    if out.is_dir() or not os.access(out.absolute().parent, os.W_OK):
        raise ConfigError(f"--out: expected a file in a folder that can be written, found {str(out)!r}")
    # Notices go to standard output, which belongs to the JSON.
    observer = None if as_json else TerminalObserver()
    verdict = selftest_job(config.device, image_size=config.embed.image_size, observer=observer)
    text = json.dumps(verdict.as_json(), indent=2)
    out.write_text(text + "\n", encoding="utf-8")
    if as_json:
        typer.echo(text)
    else:
        print_verdict(verdict)
    raise typer.Exit(0 if verdict.passed else 1)


cache_commands = typer.Typer(help="Inspect, verify or prune the store of embeddings.", no_args_is_help=True)
app.add_typer(cache_commands, name="cache")


@cache_commands.command("info")
@_takes_options_of(RunConfig, "cache")
def cache_info(as_json: _Json = False, **options: Any) -> None:
    """Print what the store keeps: embeddings by recipe, and scans by folder."""
    root = find_store(build_config(RunConfig, **options).store)
    recipes = inspect_store(root)
    if as_json:
        typer.echo(json.dumps([recipe.as_json() for recipe in recipes], indent=2))
    else:
        print_cache(root, recipes)


@cache_commands.command("verify")
@_takes_options_of(RunConfig, "cache")
def cache_verify(**options: Any) -> None:
    """Check every shard with its checksum; damaged ones are set aside, and the next run computes them again.

    Exit codes: 0 all shards are as they were written; 1 some were damaged.
    """
    n_shards, damaged = verify(find_store(build_config(RunConfig, **options).store), TerminalObserver())
    print_done(f"{n_shards:,} shards are unchanged, {len(damaged):,} damaged shards were set aside")
    raise typer.Exit(1 if damaged else 0)


@cache_commands.command("prune")
@_takes_options_of(RunConfig, "cache")
def cache_prune(
    unused_days: Annotated[
        float | None, typer.Option(min=0, help="Also remove everything that no run has used for this many days.")
    ] = None,
    **options: Any,
) -> None:
    """Remove what is of no use: damaged shards set aside, leftovers of killed jobs, scans of folders that are gone."""
    freed = prune(find_store(build_config(RunConfig, **options).store), unused_days=unused_days)
    print_done(f"{freed / 1e6:,.1f} MB freed")

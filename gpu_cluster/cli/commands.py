"""The commands of the command line: each turns its options into a job, prints the result and sets the exit code.

Each function loads what its command needs, and nothing is loaded for the help of the program.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpu_cluster.cli import native
from gpu_cluster.cli.cache import cache_commands
from gpu_cluster.cli.help import SETTINGS, Command, Group, Program, examples
from gpu_cluster.cli.output import print_error, print_json, set_log
from gpu_cluster.cli.parameters import OUTPUT, Json, takes_options_of
from gpu_cluster.cli.signals import Signals

if TYPE_CHECKING:
    from gpu_cluster.events import Observers
    from gpu_cluster.manifest import Manifest

# Every command is stopped by these signals; the exit code of a stopped command depends on the signal.
signals = Signals()

app = typer.Typer(cls=Program, context_settings=SETTINGS, rich_markup_mode=None, invoke_without_command=True)

_START = """\
gpu-cluster run photos/   groups the pictures in the folder photos
gpu-cluster run --open    tries it on drawn flowers, and opens the report
gpu-cluster help          lists the commands; help run: the options of run"""


_Images = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="IMAGES",
        help="Folders, image files, tar files and addresses such as s3://bucket/prefix; by default the drawn flowers "
        "that come with gpu-cluster.",
    ),
]
_RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `gpu-cluster run` has written.")]
_Config = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH", help="TOML file of options, or the run.json of a job to repeat.", rich_help_panel=OUTPUT
    ),
]
_Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors only.", rich_help_panel=OUTPUT)]
_Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", help="Print what each stage decides, and what libraries print and warn of.", rich_help_panel=OUTPUT
    ),
]
_Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=OUTPUT)]
_Open = Annotated[bool, typer.Option("--open", help="Open the finished report in the browser.", rich_help_panel=OUTPUT)]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("gpu-cluster"))
        raise typer.Exit


@app.callback(epilog=examples("run photos/ --open", "photos/", "help run"))
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Cluster a folder of pictures, and write tables, scores and plots.

    A folder or a file in place of a command means run.
    """
    if context.invoked_subcommand is None:
        typer.echo(_START)


@app.command(
    cls=Command,
    epilog=examples(
        "run photos/ -k 6 --open",
        "run photos/ --labels names.csv",
        "run photos/ --pooling average",
        "run photos/ --cache /data/store",
        "run photos/ --k-range 2:30",
        "run photos/ --embeddings vectors.parquet",
        "run photos/ --out results",
    ),
)
@takes_options_of("run")
def run(
    images: _Images = None,
    *,
    config: _Config = None,
    quiet: _Quiet = False,
    verbose: _Verbose = False,
    debug: _Debug = False,
    open_report: _Open = False,
    **options: Any,
) -> None:
    """Cluster a folder of images and write a run folder with tables, scores and plots.

    Exit codes: 0 done; 1 failed while running; 2 wrong use, no results were written; 3 done, but more files were bad
    than --max-bad-fraction allows; 129, 130 or 143 interrupted: the store keeps the embeddings computed so far, and the
    same command goes on from there (not with --no-cache or --force).
    """
    observer = _observer(quiet=quiet, verbose=verbose, debug=debug)
    import gpu_cluster

    result = gpu_cluster.run(images or (), config=config, observer=observer, **options)
    from gpu_cluster.run_folder import BAD_FILES, PAGE

    if not quiet:
        from gpu_cluster.cli.summary import print_summary

        print_summary(result)
    if open_report:
        from gpu_cluster.cli.terminal import open_page

        open_page(result.folder.absolute() / PAGE)
    raise typer.Exit(_bad_exit(result.manifest, result.config.max_bad_fraction, result.folder / BAD_FILES))


def _observer(*, quiet: bool = False, verbose: bool = False, debug: bool = False) -> Observers:
    """Return what a job reports to. This comes before a job is loaded, so that no last words of libraries are lost."""
    native.watch()
    level = logging.INFO if verbose else logging.ERROR if quiet else logging.WARNING
    set_log(level, libraries=verbose or debug)
    from gpu_cluster.events import Observers

    observers = Observers(signals, native.LibraryOutput())
    if not quiet:
        from gpu_cluster.cli.terminal import TerminalObserver

        observers = Observers(observers, TerminalObserver())
    return observers


def _bad_exit(manifest: Manifest, max_bad_fraction: float, reasons: Path | None) -> int:
    """Return 3 and print why if the share of bad files is above `max_bad_fraction`; else return 0."""
    if not manifest.too_many_bad(max_bad_fraction):
        return 0
    from gpu_cluster.files import printable
    from gpu_cluster.words import count

    print_error(
        f"{len(manifest.bad)} of {count(len(manifest), 'picture')} could not be used, more than --max-bad-fraction "
        f"{max_bad_fraction} allows; the reasons are in {printable(str(reasons))!r}"
    )
    return 3


@app.command(cls=Command, epilog=examples("report runs/20260131-120000-photos --open"))
def report(
    run_folder: _RunFolder,
    root: Annotated[
        Path | None,
        typer.Option(
            help="Folder that holds the pictures now, if they were moved; they are read again from there.",
            metavar="DIR",
        ),
    ] = None,
    portable: Annotated[
        bool,
        typer.Option(
            "--portable",
            help="Make the folder one that can be handed on: no file in it has an absolute path, and the page has no "
            "links to the pictures.",
        ),
    ] = False,
    debug: _Debug = False,
    open_report: _Open = False,
) -> None:
    """Write report.html of a finished run again; the earlier page is replaced.

    The page keeps its small copies of the pictures, so they need not be where they were. With --root, all pictures are
    read again from DIR, and the page links to the files there. With --portable, run.json loses the paths of the
    pictures, the labels and the weights, so that they have to be given to repeat the run; --root DIR gives the page its
    links back.
    """
    observer = _observer(debug=debug)
    from gpu_cluster.cli.terminal import open_page, print_done
    from gpu_cluster.files import printable
    from gpu_cluster.jobs.report import report as report_job

    place = None if root is None else root.absolute()
    page = report_job(run_folder.absolute(), observer, root=place, portable=portable)
    print_done(f"report: {printable(page.as_uri())}")
    if open_report:
        open_page(page)


@app.command(cls=Command, epilog=examples("predict runs/20260131-120000-photos new/ --out new.csv"))
@takes_options_of("predict")
def predict(
    run_folder: _RunFolder,
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGES", help="Folders, image files, tar files and addresses."),
    ] = None,
    *,
    out: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            help="Table to write, .csv or .parquet; an earlier table of predictions is replaced.",
            rich_help_panel=OUTPUT,
        ),
    ] = Path("predictions.csv"),
    quiet: _Quiet = False,
    verbose: _Verbose = False,
    debug: _Debug = False,
    **options: Any,
) -> None:
    """Assign pictures to the clusters of a finished run.

    Writes one row for each picture: its cluster, the most frequent label of this cluster, the distance to the cluster's
    centre, and whether the picture is far, that is farther away than 99% of the pictures that formed the cluster.
    Pictures whose embeddings are not in the store are embedded with the options of the run. If that was made with
    --embeddings, those of these pictures are given too.

    Exit codes: the same as for run.
    """
    from gpu_cluster.config import PredictConfig
    from gpu_cluster.options import build_config

    config = build_config(PredictConfig, images=tuple(images or ()) or None, **options)
    observer = _observer(quiet=quiet, verbose=verbose, debug=debug)
    from gpu_cluster.jobs.predict import predict as predict_job

    found = predict_job(run_folder, config, out, observer)
    if not quiet:
        from gpu_cluster.cli.summary import print_prediction

        print_prediction(found)
    raise typer.Exit(_bad_exit(found.manifest, config.max_bad_fraction, found.bad_files))


@app.command(
    cls=Command,
    epilog=examples(
        "export runs/20260131-120000-photos --out sorted",
        "export runs/20260131-120000-photos --link copy --names names.csv --out sorted",
        "export runs/20260131-120000-photos --to csv --out pictures.csv",
        "export --undo sorted",
    ),
)
@takes_options_of(
    "export",
    words={
        "cache": "For tensorboard and embeddings: the store that holds the embeddings of the run; by default the one "
        "that the run used.",
        "embeddings": "For tensorboard and embeddings, of a run with --embeddings: where that file is now, if it was "
        "moved.",
        "embedding_names": "The list of names that belongs to --embeddings.",
    },
)
def export(
    run_folder: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="Folder that `gpu-cluster run` has written.")
    ] = None,
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="New folder to write. For csv, parquet, json and labels: a file with this suffix (labels: .csv), or a "
            "folder to write pictures.csv (or .parquet, .json; labels.csv) into.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    undo: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Take the export in this folder back: remove what it put there and nobody changed, and then the "
            "folders that are empty.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    quiet: _Quiet = False,
    verbose: _Verbose = False,
    debug: _Debug = False,
    **options: Any,
) -> None:
    """Take the results of a finished run into another form: a folder for each group, a table, or files of other tools.

    The export is written whole or not at all; nothing is replaced (see --overwrite), and the pictures and the run stay
    as they are. A folder holds export.csv, a list of what was put there. Pictures keep their paths below the folder of
    their group; files that the run could not read are not exported, and copies of the same picture go where their
    group is.

    Exit codes: 0 done; 1 failed while writing, nothing was left; 2 wrong use, nothing was written; 3 done, but pictures
    of the run are not in the export, because they have moved or changed since (not_exported.csv lists them); 129, 130
    or 143 interrupted, nothing was left.
    """
    observer = _observer(quiet=quiet, verbose=verbose, debug=debug)
    if undo is not None:
        _undo_export(undo, run_folder, {"out": out, **options}, quiet=quiet)
        return
    from gpu_cluster.errors import ConfigError

    if run_folder is None or out is None:
        raise ConfigError(
            "export: expected the folder of a run and what to write: gpu-cluster export RUN --out PATH (or gpu-cluster "
            "export --undo DIR)"
        )
    import gpu_cluster

    found = gpu_cluster.export(run_folder.absolute(), out=out.absolute(), observer=observer, **options)
    if not quiet:
        from gpu_cluster.cli.summary import print_exported

        print_exported(found)
    raise typer.Exit(found.exit_code)


def _undo_export(folder: Path, run_folder: Path | None, options: dict[str, Any], *, quiet: bool) -> None:
    """Undo an export, and print what was removed and what stays."""
    from gpu_cluster.errors import ConfigError

    dry_run = options.pop("dry_run", None) or False
    if run_folder is not None or any(value is not None for value in options.values()):
        raise ConfigError("--undo takes an export back and goes with --dry-run only; leave out the rest")
    import gpu_cluster

    undone = gpu_cluster.undo_export(folder.absolute(), dry_run=dry_run)
    if not quiet:
        from gpu_cluster.cli.summary import print_undone

        print_undone(undone, dry_run=dry_run)


@app.command(cls=Command, epilog=examples("compare photos/ --features vgg16-gem-4-5,colours -k 6"))
@takes_options_of("compare")
def compare(
    images: _Images = None,
    *,
    config: _Config = None,
    quiet: _Quiet = False,
    verbose: _Verbose = False,
    debug: _Debug = False,
    **options: Any,
) -> None:
    """Compare features and algorithms on the same pictures, in one table and one plot.

    All of them use the same k: --k, or the k that is chosen in the space of the first features. The notebook's recipe
    has its own --resize, --fit, --scaling, --pca, --whitening and --normalize. The store keeps all features, as it
    keeps embeddings. Scores within a space (silhouette) compare algorithms, not features. For stability, five random
    parts of the pictures, of 80% each, are grouped by themselves; it is the mean adjusted Rand index of these groups
    with the groups of all pictures.

    Exit codes: the same as for run.
    """
    observer = _observer(quiet=quiet, verbose=verbose, debug=debug)
    import gpu_cluster

    found = gpu_cluster.compare(images or (), config=config, observer=observer, **options)
    from gpu_cluster.run_folder import BAD_FILES

    if not quiet:
        from gpu_cluster.cli.summary import print_comparison

        print_comparison(found)
    raise typer.Exit(_bad_exit(found.manifest, found.config.max_bad_fraction, found.folder / BAD_FILES))


@app.command(cls=Command, epilog=examples("doctor --device gpu"))
@takes_options_of(
    "run", "device", "engine", "weights", "cache", "out", words={"device": "Fail if this device cannot be used."}
)
def doctor(
    as_json: Json = False,
    debug: _Debug = False,
    **options: Any,
) -> None:
    """Check what this machine can run, and print what to do if something is missing.

    Exit codes: 0 a job can run on the device asked for; 1 it cannot.
    """
    from gpu_cluster.config import RunConfig
    from gpu_cluster.options import build_config

    config = build_config(RunConfig, **options)
    native.watch()
    from gpu_cluster.jobs.doctor import diagnose

    embed, out = config.embed, config.report.out
    diagnosis = diagnose(config.device, embed.weights, out, config.store.cache, embed.engine)
    if as_json:
        print_json(diagnosis.as_json())
    else:
        from gpu_cluster.cli.terminal import print_diagnosis

        print_diagnosis(diagnosis)
    raise typer.Exit(0 if diagnosis.works else 1)


@app.command(cls=Command, epilog=examples("selftest --device gpu"))
@takes_options_of(
    "run",
    "device",
    "image_size",
    "engine",
    words={"device": "gpu fails without a GPU; auto uses one only if there is one."},
)
def selftest(
    out: Annotated[
        Path, typer.Option(help="JSON file for the verdict; send it with a report of a fault.", metavar="PATH")
    ] = Path("gpu-cluster-selftest.json"),
    as_json: Json = False,
    debug: _Debug = False,
    **options: Any,
) -> None:
    """Do the same work with the sample set on the CPU and on the GPU, twice on each, and compare the results.

    The table shows the embeddings in every precision of the GPU, the clusters in two spaces, what two runs have in
    common, the memory, and the speed of decoding, of the network and of the copy between them.

    Exit codes: 0 all results are within their tolerance; 1 one is not, or the GPU that was asked for cannot be used.
    """
    from gpu_cluster.config import RunConfig
    from gpu_cluster.errors import ConfigError
    from gpu_cluster.options import build_config

    config = build_config(RunConfig, **options)
    if out.is_dir() or not os.access(out.absolute().parent, os.W_OK):
        raise ConfigError(f"--out: expected a file in a folder that can be written, found {str(out)!r}")
    native.watch()
    from gpu_cluster.cli.terminal import TerminalObserver, print_verdict
    from gpu_cluster.jobs.selftest import selftest as selftest_job

    # Notices go to standard output, which belongs to the JSON.
    observer = None if as_json else TerminalObserver()
    embed = config.embed
    verdict = selftest_job(config.device, image_size=embed.image_size, engine=embed.engine, observer=observer)
    text = json.dumps(verdict.as_json(), indent=2)
    out.write_text(text + "\n", encoding="utf-8")
    if as_json:
        print_json(verdict.as_json())
    else:
        print_verdict(verdict)
    raise typer.Exit(0 if verdict.passed else 1)


config_commands = typer.Typer(
    cls=Group, help="Show the options of a run.", epilog=examples("config show --preset notebook")
)
app.add_typer(config_commands, name="config")


@config_commands.command("show", cls=Command, epilog=examples("config show photos/ -k 6", "config show > options.toml"))
@takes_options_of("run")
def config_show(
    images: _Images = None,
    *,
    config: _Config = None,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", hidden=True)] = False,
    verbose: Annotated[bool, typer.Option("--verbose", hidden=True)] = False,
    debug: _Debug = False,
    open_report: Annotated[bool, typer.Option("--open", hidden=True)] = False,
    **options: Any,
) -> None:
    """Print every option of a run, its value and where the value comes from; nothing is run.

    The options are those of run. A value comes from the command line, from the file --config, from the preset, or it is
    the default. What is printed can be saved and given to run as --config.
    """
    from gpu_cluster.config import RunConfig
    from gpu_cluster.options import settings

    found = settings(RunConfig, config, images=tuple(images or ()) or None, **options)
    if as_json:
        print_json([setting.as_json() for setting in found])
    else:
        from gpu_cluster.cli.settings import print_settings

        print_settings(found)


app.add_typer(cache_commands, name="cache")


@app.command("version", cls=Command, epilog=examples("version"))
def _version() -> None:
    """Print the version."""
    _print_version(True)


@app.command("help", cls=Command, epilog=examples("help run", "help cache prune"))
def _help(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="COMMAND", help="The command; without it, all commands.")
    ] = None,
) -> None:
    """Show how a command is used."""
    app(args=[*(command or ()), "--help"], standalone_mode=False)

"""The command line: options -> a job; logging, errors and exit codes."""

from __future__ import annotations

import json
import logging
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

import gpu_cluster
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
from gpu_cluster.errors import StoreError
from gpu_cluster.events import Observers
from gpu_cluster.files import printable
from gpu_cluster.jobs.compare import ALGORITHMS, FEATURES, MOST_IMAGES, default_features
from gpu_cluster.jobs.doctor import diagnose
from gpu_cluster.jobs.predict import predict as predict_job
from gpu_cluster.jobs.report import report as report_job
from gpu_cluster.jobs.selftest import selftest as selftest_job
from gpu_cluster.manifest import Manifest
from gpu_cluster.options import build_config, describe
from gpu_cluster.store.maintenance import inspect, prune, verify
from gpu_cluster.store.store import default_root

# Every command watches for them, and the exit code of a stopped one is theirs.
signals = Signals()

app = typer.Typer(add_completion=False, rich_markup_mode="rich")

_INPUT, _EMBED, _STORE, _CLUSTER, _OUTPUT = "Input", "Embedding", "Kept between runs", "Clustering", "Output"


def _option(name: str, panel: str, flag: str | None = None) -> Any:
    """Make the option of a config field: its help and its default are declared with the field."""
    text, default = describe(name)
    if default is not None and default is not False:
        text += f" (default: {default})"
    return typer.Option(flag or f"--{name.replace('_', '-')}", help=text, rich_help_panel=panel, show_default=False)


@app.callback()
def _root() -> None:
    """A folder of pictures in; clusters, scores and plots out."""


@app.command("version")
def _version() -> None:
    """Print the version."""
    typer.echo(version("gpu-cluster"))


@app.command()
def run(
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders and image files; without any, the drawn flowers that come with gpu-cluster."),
    ] = None,
    labels: Annotated[Path | None, _option("labels", _INPUT)] = None,
    file_col: Annotated[str | None, _option("file_col", _INPUT)] = None,
    label_col: Annotated[str | None, _option("label_col", _INPUT)] = None,
    labels_from_folders: Annotated[bool | None, _option("labels_from_folders", _INPUT, "--labels-from-folders")] = None,
    input_list: Annotated[Path | None, _option("input_list", _INPUT)] = None,
    max_pixels: Annotated[int | None, _option("max_pixels", _INPUT)] = None,
    max_bad_fraction: Annotated[float | None, _option("max_bad_fraction", _INPUT)] = None,
    weights: Annotated[Path | None, _option("weights", _EMBED)] = None,
    pooling: Annotated[str | None, _option("pooling", _EMBED)] = None,
    image_size: Annotated[int | None, _option("image_size", _EMBED)] = None,
    batch_size: Annotated[int | None, _option("batch_size", _EMBED)] = None,
    resize: Annotated[str | None, _option("resize", _EMBED)] = None,
    fit: Annotated[str | None, _option("fit", _EMBED)] = None,
    device: Annotated[str | None, _option("device", _EMBED)] = None,
    precision: Annotated[str | None, _option("precision", _EMBED)] = None,
    cache: Annotated[Path | None, _option("cache", _STORE)] = None,
    no_cache: Annotated[bool | None, _option("no_cache", _STORE, "--no-cache")] = None,
    force: Annotated[bool | None, _option("force", _STORE, "--force")] = None,
    rehash: Annotated[bool | None, _option("rehash", _STORE, "--rehash")] = None,
    shard_size: Annotated[int | None, _option("shard_size", _STORE)] = None,
    preset: Annotated[str | None, _option("preset", _CLUSTER)] = None,
    k: Annotated[int | None, _option("k", _CLUSTER)] = None,
    k_range: Annotated[str | None, _option("k_range", _CLUSTER)] = None,
    select: Annotated[str | None, _option("select", _CLUSTER)] = None,
    scaling: Annotated[str | None, _option("scaling", _CLUSTER)] = None,
    pca: Annotated[str | None, _option("pca", _CLUSTER)] = None,
    whitening: Annotated[float | None, _option("whitening", _CLUSTER)] = None,
    normalize: Annotated[bool | None, _option("normalize", _CLUSTER, "--normalize/--no-normalize")] = None,
    sweep_space: Annotated[str | None, _option("sweep_space", _CLUSTER)] = None,
    n_init: Annotated[int | None, _option("n_init", _CLUSTER)] = None,
    max_iter: Annotated[int | None, _option("max_iter", _CLUSTER)] = None,
    tol: Annotated[float | None, _option("tol", _CLUSTER)] = None,
    silhouette_sample: Annotated[int | None, _option("silhouette_sample", _CLUSTER)] = None,
    holdout: Annotated[float | None, _option("holdout", _CLUSTER)] = None,
    seed: Annotated[int | None, _option("seed", _CLUSTER)] = None,
    out: Annotated[Path | None, _option("out", _OUTPUT)] = None,
    layout_sample: Annotated[int | None, _option("layout_sample", _OUTPUT)] = None,
    thumbnails: Annotated[int | None, _option("thumbnails", _OUTPUT)] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file of options, or the run.json of a run to repeat.", rich_help_panel=_OUTPUT),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.", rich_help_panel=_OUTPUT)] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Print what each stage decides.", rich_help_panel=_OUTPUT)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=_OUTPUT)
    ] = False,
) -> None:
    """Cluster a folder of images and leave a run folder of tables, scores and plots.

    Exit codes: 0 done; 1 failed while running; 2 wrong use, nothing was written; 3 done, but more files were bad than
    --max-bad-fraction; 130 or 143 interrupted: what was embedded is kept, and the same command goes on from there.
    """
    options = {name: value for name, value in locals().items() if name not in _NOT_OF_THE_JOB}
    _log(logging.INFO if verbose else logging.ERROR if quiet else logging.WARNING)
    observer = Observers(signals, *([] if quiet else [TerminalObserver()]))
    result = gpu_cluster.run(images or (), config=config, observer=observer, **options)
    if not quiet:
        print_summary(result)
    raise typer.Exit(_bad_exit(result.manifest, result.config.max_bad_fraction, result.folder / "bad_files.csv"))


def _log(level: int) -> None:
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("gpu_cluster").setLevel(level)


def _bad_exit(manifest: Manifest, max_bad_fraction: float, reasons: Path | None) -> int:
    """Return 3, and say why, where more files were bad than that share, else 0."""
    if not manifest.too_many_bad(max_bad_fraction):
        return 0
    print_error(
        f"{len(manifest.bad)} of {len(manifest)} files could not be decoded, more than --max-bad-fraction "
        f"{max_bad_fraction} allows; the reasons are in {printable(str(reasons))!r}"
    )
    return 3


@app.command()
def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `gpu-cluster run` left.")],
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Write report.html of a finished run again, in place of the one that is there."""
    print_done(f"report: {printable(report_job(run_folder.absolute()).as_uri())}")


@app.command()
def predict(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `gpu-cluster run` left.")],
    images: Annotated[list[Path] | None, typer.Argument(help="Folders and image files.")] = None,
    out: Annotated[
        Path,
        typer.Option(
            help="Table to write, .csv or .parquet; an earlier one of predictions is replaced.", rich_help_panel=_OUTPUT
        ),
    ] = Path("predictions.csv"),
    input_list: Annotated[Path | None, _option("input_list", _INPUT)] = None,
    max_pixels: Annotated[int | None, _option("max_pixels", _INPUT)] = None,
    max_bad_fraction: Annotated[float | None, _option("max_bad_fraction", _INPUT)] = None,
    weights: Annotated[Path | None, _option("weights", _EMBED)] = None,
    batch_size: Annotated[int | None, _option("batch_size", _EMBED)] = None,
    device: Annotated[str | None, _option("device", _EMBED)] = None,
    precision: Annotated[str | None, _option("precision", _EMBED)] = None,
    cache: Annotated[Path | None, _option("cache", _STORE)] = None,
    no_cache: Annotated[bool | None, _option("no_cache", _STORE, "--no-cache")] = None,
    force: Annotated[bool | None, _option("force", _STORE, "--force")] = None,
    rehash: Annotated[bool | None, _option("rehash", _STORE, "--rehash")] = None,
    shard_size: Annotated[int | None, _option("shard_size", _STORE)] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.", rich_help_panel=_OUTPUT)] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=_OUTPUT)
    ] = False,
) -> None:
    """Assign pictures to the clusters of a finished run.

    Writes a row a picture: its cluster, the most frequent label there, the distance to its centre, and whether it is
    far: farther than 99% of the pictures that the cluster was made of. What the store lacks is embedded as the run did.

    Exit codes: as of run.
    """
    options = {name: value for name, value in locals().items() if name not in {*_NOT_OF_THE_JOB, "run_folder", "out"}}
    config = build_config(images=tuple(images or ()) or None, **options)
    observer = Observers(signals, *([] if quiet else [TerminalObserver()]))
    found = predict_job(run_folder, config, out, observer)
    if not quiet:
        print_prediction(found)
    raise typer.Exit(_bad_exit(found.manifest, config.max_bad_fraction, found.bad_files))


@app.command()
def compare(
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders and image files; without any, the drawn flowers that come with gpu-cluster."),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            help=f"Which, separated by commas: {', '.join(FEATURES)}. Without it {', '.join(default_features())}, and "
            "the other networks whose weights Keras has downloaded.",
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    algorithms: Annotated[
        str | None,
        typer.Option(
            help=f"Which, separated by commas: {', '.join(ALGORITHMS)}. All but kmeans are left out above "
            f"{MOST_IMAGES:,} images.",
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    labels: Annotated[Path | None, _option("labels", _INPUT)] = None,
    file_col: Annotated[str | None, _option("file_col", _INPUT)] = None,
    label_col: Annotated[str | None, _option("label_col", _INPUT)] = None,
    labels_from_folders: Annotated[bool | None, _option("labels_from_folders", _INPUT, "--labels-from-folders")] = None,
    input_list: Annotated[Path | None, _option("input_list", _INPUT)] = None,
    max_pixels: Annotated[int | None, _option("max_pixels", _INPUT)] = None,
    max_bad_fraction: Annotated[float | None, _option("max_bad_fraction", _INPUT)] = None,
    weights: Annotated[Path | None, _option("weights", _EMBED)] = None,
    image_size: Annotated[int | None, _option("image_size", _EMBED)] = None,
    batch_size: Annotated[int | None, _option("batch_size", _EMBED)] = None,
    resize: Annotated[str | None, _option("resize", _EMBED)] = None,
    fit: Annotated[str | None, _option("fit", _EMBED)] = None,
    device: Annotated[str | None, _option("device", _EMBED)] = None,
    precision: Annotated[str | None, _option("precision", _EMBED)] = None,
    cache: Annotated[Path | None, _option("cache", _STORE)] = None,
    no_cache: Annotated[bool | None, _option("no_cache", _STORE, "--no-cache")] = None,
    force: Annotated[bool | None, _option("force", _STORE, "--force")] = None,
    rehash: Annotated[bool | None, _option("rehash", _STORE, "--rehash")] = None,
    shard_size: Annotated[int | None, _option("shard_size", _STORE)] = None,
    k: Annotated[int | None, _option("k", _CLUSTER)] = None,
    k_range: Annotated[str | None, _option("k_range", _CLUSTER)] = None,
    select: Annotated[str | None, _option("select", _CLUSTER)] = None,
    scaling: Annotated[str | None, _option("scaling", _CLUSTER)] = None,
    pca: Annotated[str | None, _option("pca", _CLUSTER)] = None,
    whitening: Annotated[float | None, _option("whitening", _CLUSTER)] = None,
    normalize: Annotated[bool | None, _option("normalize", _CLUSTER, "--normalize/--no-normalize")] = None,
    n_init: Annotated[int | None, _option("n_init", _CLUSTER)] = None,
    max_iter: Annotated[int | None, _option("max_iter", _CLUSTER)] = None,
    tol: Annotated[float | None, _option("tol", _CLUSTER)] = None,
    silhouette_sample: Annotated[int | None, _option("silhouette_sample", _CLUSTER)] = None,
    seed: Annotated[int | None, _option("seed", _CLUSTER)] = None,
    out: Annotated[Path | None, _option("out", _OUTPUT)] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file of options, or the run.json of a comparison to repeat.", rich_help_panel=_OUTPUT),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.", rich_help_panel=_OUTPUT)] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=_OUTPUT)
    ] = False,
) -> None:
    """Compare features and algorithms on the same pictures: one table and one plot.

    The same k for all: --k, or the one chosen in the space of the first features. The notebook's recipe has its own
    --resize, --fit, --scaling, --pca, --whitening and --normalize. Features are kept between runs as the embeddings
    are. Scores within a space (silhouette) compare algorithms, not features; stability is the adjusted Rand index of
    the groups with those of five random subsamples of 80%.

    Exit codes: as of run.
    """
    options = {
        name: value for name, value in locals().items() if name not in {*_NOT_OF_THE_JOB, "features", "algorithms"}
    }
    _log(logging.ERROR if quiet else logging.WARNING)
    observer = Observers(signals, *([] if quiet else [TerminalObserver()]))
    found = gpu_cluster.compare(
        images or (),
        features=_names(features),
        algorithms=_names(algorithms),
        config=config,
        observer=observer,
        **options,
    )
    if not quiet:
        print_comparison(found)
    raise typer.Exit(_bad_exit(found.manifest, found.config.max_bad_fraction, found.folder / "bad_files.csv"))


def _names(given: str | None) -> list[str]:
    return [] if given is None else [name.strip() for name in given.split(",") if name.strip()]


@app.command()
def doctor(
    device: Annotated[str, typer.Option(help="Fail where this device cannot work: auto, cpu or gpu.")] = "auto",
    weights: Annotated[Path | None, _option("weights", _INPUT)] = None,
    out: Annotated[Path | None, _option("out", _OUTPUT)] = None,
    cache: Annotated[Path | None, _option("cache", _STORE)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Say what this machine can run, and what to do about what it cannot.

    Exit codes: 0 the device asked for can work; 1 it cannot.
    """
    config = build_config(device=device, weights=weights, out=out, cache=cache)
    diagnosis = diagnose(config.device, config.embed.weights, config.report.out, config.store.cache)
    if as_json:
        typer.echo(json.dumps(diagnosis.as_json(), indent=2))
    else:
        print_diagnosis(diagnosis)
    raise typer.Exit(0 if diagnosis.works else 1)


@app.command()
def selftest(
    device: Annotated[str, typer.Option(help="gpu fails without one; auto compares where it is there.")] = "auto",
    image_size: Annotated[int | None, _option("image_size", _EMBED)] = None,
    out: Annotated[Path, typer.Option(help="Where the verdict goes as JSON.")] = Path("gpu-cluster-selftest.json"),
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Do the same work on the CPU and on the GPU, with the sample set, and compare.

    Exit codes: 0 all within tolerance; 1 a miss, or no GPU where one was asked for.
    """
    verdict = selftest_job(build_config(device=device).device, image_size=image_size, observer=TerminalObserver())
    print_verdict(verdict)
    out.write_text(json.dumps(verdict.as_json(), indent=2) + "\n", encoding="utf-8")
    raise typer.Exit(0 if verdict.passed else 1)


cache_commands = typer.Typer(help="Look at, verify or prune what is kept between runs.", no_args_is_help=True)
app.add_typer(cache_commands, name="cache")

_CacheFolder = Annotated[Path | None, _option("cache", _STORE)]


@cache_commands.command("info")
def cache_info(
    cache: _CacheFolder = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Say what is kept: embeddings by recipe, and scans by folder."""
    root = _cache_root(cache)
    recipes = inspect(root)
    if as_json:
        typer.echo(json.dumps([recipe.as_json() for recipe in recipes], indent=2))
    else:
        print_cache(root, recipes)


@cache_commands.command("verify")
def cache_verify(cache: _CacheFolder = None) -> None:
    """Read every shard against its checksum; damaged ones are set aside, and done again by the next run.

    Exit codes: 0 all as they were written; 1 some were damaged.
    """
    root = _cache_root(cache)
    n_shards, damaged = verify(root, TerminalObserver())
    print_done(f"{n_shards:,} shards are as they were written, {len(damaged):,} damaged ones were set aside")
    raise typer.Exit(1 if damaged else 0)


@cache_commands.command("prune")
def cache_prune(
    cache: _CacheFolder = None,
    unused_days: Annotated[
        float | None, typer.Option(min=0, help="Also remove what no run has used for so many days.")
    ] = None,
) -> None:
    """Remove what is of no use: damaged shards set aside, leftovers of killed jobs, scans of folders that are gone."""
    freed = prune(_cache_root(cache), unused_days=unused_days)
    print_done(f"{freed / 1e6:,.1f} MB freed")


def _cache_root(cache: Path | None) -> Path:
    root = build_config(cache=cache).store.cache or default_root()
    if not root.is_dir():
        raise StoreError(f"nothing is kept at {printable(str(root))!r}; name the folder with --cache DIR")
    return root


_NOT_OF_THE_JOB = frozenset({"images", "config", "quiet", "verbose", "debug"})

"""The command line: options -> a job; logging, errors and exit codes."""

from __future__ import annotations

import io
import json
import logging
import signal
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

import gpu_cluster
from gpu_cluster.config import build_config, describe
from gpu_cluster.doctor import diagnose
from gpu_cluster.errors import GpuClusterError
from gpu_cluster.events import Observer
from gpu_cluster.results import printable
from gpu_cluster.selftest import run_selftest
from gpu_cluster.terminal import TerminalObserver, print_diagnosis, print_summary, print_verdict

app = typer.Typer(add_completion=False, rich_markup_mode="rich")

_INPUT, _EMBED, _CLUSTER, _OUTPUT = "Input", "Embedding", "Clustering", "Output"


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
    max_bad_fraction: Annotated[float | None, _option("max_bad_fraction", _INPUT)] = None,
    weights: Annotated[Path | None, _option("weights", _EMBED)] = None,
    image_size: Annotated[int | None, _option("image_size", _EMBED)] = None,
    batch_size: Annotated[int | None, _option("batch_size", _EMBED)] = None,
    resize: Annotated[str | None, _option("resize", _EMBED)] = None,
    fit: Annotated[str | None, _option("fit", _EMBED)] = None,
    device: Annotated[str | None, _option("device", _EMBED)] = None,
    precision: Annotated[str | None, _option("precision", _EMBED)] = None,
    preset: Annotated[str | None, _option("preset", _CLUSTER)] = None,
    k: Annotated[int | None, _option("k", _CLUSTER)] = None,
    k_range: Annotated[str | None, _option("k_range", _CLUSTER)] = None,
    scaling: Annotated[str | None, _option("scaling", _CLUSTER)] = None,
    pca: Annotated[str | None, _option("pca", _CLUSTER)] = None,
    whiten: Annotated[bool | None, _option("whiten", _CLUSTER, "--whiten/--no-whiten")] = None,
    normalize: Annotated[bool | None, _option("normalize", _CLUSTER, "--normalize/--no-normalize")] = None,
    sweep_space: Annotated[str | None, _option("sweep_space", _CLUSTER)] = None,
    n_init: Annotated[int | None, _option("n_init", _CLUSTER)] = None,
    max_iter: Annotated[int | None, _option("max_iter", _CLUSTER)] = None,
    tol: Annotated[float | None, _option("tol", _CLUSTER)] = None,
    silhouette_sample: Annotated[int | None, _option("silhouette_sample", _CLUSTER)] = None,
    holdout: Annotated[float | None, _option("holdout", _CLUSTER)] = None,
    seed: Annotated[int | None, _option("seed", _CLUSTER)] = None,
    out: Annotated[Path | None, _option("out", _OUTPUT)] = None,
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
    --max-bad-fraction; 130 or 143 interrupted.
    """
    options = {name: value for name, value in locals().items() if name not in _NOT_OF_THE_JOB}
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("gpu_cluster").setLevel(logging.INFO if verbose else logging.WARNING)
    observer = Observer() if quiet else TerminalObserver()
    result = gpu_cluster.run(images or (), config=config, observer=observer, **options)
    if not quiet:
        print_summary(result)
    if result.exit_code:
        n_bad = len(result.manifest.bad)
        _print_error(
            f"{n_bad} of {len(result.manifest)} files could not be decoded, more than --max-bad-fraction "
            f"{result.config.max_bad_fraction} allows; the reasons are in "
            f"{printable(str(result.folder / 'bad_files.csv'))!r}"
        )
    raise typer.Exit(result.exit_code)


@app.command()
def doctor(
    device: Annotated[str, typer.Option(help="Fail where this device cannot work: auto, cpu or gpu.")] = "auto",
    weights: Annotated[Path | None, _option("weights", _INPUT)] = None,
    out: Annotated[Path | None, _option("out", _OUTPUT)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Say what this machine can run, and what to do about what it cannot.

    Exit codes: 0 the device asked for can work; 1 it cannot.
    """
    config = build_config(device=device, weights=weights, out=out)
    diagnosis = diagnose(config.device, config.embed.weights, config.report.out)
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
    verdict = run_selftest(build_config(device=device).device, image_size=image_size, observer=TerminalObserver())
    print_verdict(verdict)
    out.write_text(json.dumps(verdict.as_json(), indent=2) + "\n", encoding="utf-8")
    raise typer.Exit(0 if verdict.passed else 1)


_NOT_OF_THE_JOB = frozenset({"images", "config", "quiet", "verbose", "debug"})


def main() -> None:
    """Run the command line and end the process with its exit code."""
    signal.signal(signal.SIGTERM, _stop)
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal's encoding lacks is shown with escapes, and ends no job.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    arguments = sys.argv[1:] or ["--help"]
    debug = "--debug" in arguments
    try:
        # Out of standalone mode Typer leaves usage errors to us, and we keep every error on one line.
        code = app(args=arguments, standalone_mode=False)
        if code == 128 + signal.SIGINT:
            # Typer turns a KeyboardInterrupt in a command into this code, without a word.
            raise KeyboardInterrupt
    except (GpuClusterError, typer.TyperException) as error:
        if debug:
            traceback.print_exc()
        _print_error(error.format_message() if isinstance(error, typer.TyperException) else str(error))
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort, _Terminated) as error:
        _print_error("interrupted; nothing was written, it is safe to run again")
        code = 128 + (signal.SIGTERM if isinstance(error, _Terminated) else signal.SIGINT)
    except Exception as error:  # noqa: BLE001 - the last resort: one line and an exit code, not a traceback
        if debug:
            traceback.print_exc()
        found = " ".join(str(error).split())
        _print_error(f"unexpected {type(error).__name__}: {found}; please report it with what --debug prints")
        code = 1
    sys.exit(code)


class _Terminated(BaseException):
    """SIGTERM came; raised where the job is, so that what it staged is cleared away."""


def _stop(_number: int, _frame: FrameType | None) -> None:
    # Schedulers signal more than once; a second one must not break into the clearing away.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Terminated


def _print_error(message: str) -> None:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")

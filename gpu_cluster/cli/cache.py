"""The commands that inspect, verify and prune the store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gpu_cluster.cli.help import Command, Group, examples
from gpu_cluster.cli.output import print_json
from gpu_cluster.cli.parameters import Json, takes_options_of
from gpu_cluster.words import count

cache_commands = typer.Typer(
    cls=Group, help="Inspect, verify or prune the store of embeddings.", epilog=examples("cache info")
)


def _store(options: dict[str, Any]) -> Path:
    """Return the folder of the store that the options name."""
    from gpu_cluster.config import RunConfig
    from gpu_cluster.options import build_config
    from gpu_cluster.store.maintenance import find_store

    return find_store(build_config(RunConfig, **options).store)


@cache_commands.command("info", cls=Command, epilog=examples("cache info --json"))
@takes_options_of("run", "cache")
def cache_info(as_json: Json = False, **options: Any) -> None:
    """Print what the store keeps: embeddings by recipe, and scans by folder."""
    from gpu_cluster.cli.terminal import print_cache
    from gpu_cluster.store.maintenance import inspect

    root = _store(options)
    recipes = inspect(root)
    if as_json:
        print_json([recipe.as_json() for recipe in recipes])
    else:
        print_cache(root, recipes)


@cache_commands.command("verify", cls=Command, epilog=examples("cache verify"))
@takes_options_of("run", "cache")
def cache_verify(**options: Any) -> None:
    """Check every shard with its checksum; damaged ones are set aside, and the next run computes them again.

    Exit codes: 0 all shards are as they were written; 1 some were damaged.
    """
    from gpu_cluster.cli.native import watch
    from gpu_cluster.cli.terminal import TerminalObserver, print_done
    from gpu_cluster.store.maintenance import verify

    watch()
    n_shards, damaged = verify(_store(options), TerminalObserver())
    print_done(f"{count(n_shards, 'shard')} unchanged, {count(len(damaged), 'damaged shard')} set aside")
    raise typer.Exit(1 if damaged else 0)


@cache_commands.command("prune", cls=Command, epilog=examples("cache prune --unused-days 90"))
@takes_options_of("run", "cache")
def cache_prune(
    unused_days: Annotated[
        float | None,
        typer.Option(min=0, metavar="NUMBER", help="Also remove everything that no run has used for this many days."),
    ] = None,
    **options: Any,
) -> None:
    """Remove what is of no use: damaged shards set aside, leftovers of killed jobs, scans of folders that are gone."""
    from gpu_cluster.cli.terminal import print_done
    from gpu_cluster.store.maintenance import prune

    freed = prune(_store(options), unused_days=unused_days)
    print_done(f"{freed / 1e6:,.1f} MB freed")

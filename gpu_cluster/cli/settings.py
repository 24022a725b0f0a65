"""Prints every option of a command, its value and where the value comes from."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from gpu_cluster.cli.console import open_console
from gpu_cluster.cli.output import as_json
from gpu_cluster.options import Setting


def print_settings(settings: Sequence[Setting]) -> None:
    """Print every option as a line of a TOML file, with where its value comes from as a comment."""
    # The printed text is the only result, so the command fails if it cannot be printed.
    console = open_console(patient=False, soft_wrap=True)
    # In TOML, what is in no section stands first.
    in_order = sorted(settings, key=lambda one: one.option.section is not None)
    for section, group in groupby(in_order, key=lambda one: one.option.section):
        if section is not None:
            console.print(f"\n[{section}]", markup=False)
        for one in group:
            value = one.as_json()["value"]
            # Numbers, switches, texts and lists of texts look the same in JSON and in TOML.
            shown = f"{one.option.name} = {as_json(value, ensure_ascii=False)}"
            line = f"# {one.option.name} is not set" if value is None else shown
            console.print(f"{line:40}  # {one.source}", markup=False)

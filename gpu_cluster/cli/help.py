"""How commands show their help, and what a first word that is no command means."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from gpu_cluster.cli.output import print_note
from gpu_cluster.files import printable

# Up to this width of a terminal, an explanation stands below its option and not beside it.
_NARROW = 76
_BESIDE, _BELOW = 30, 4

# The attribute of a command's function that returns the function with all of its options.
COMPLETED = "completed"

# `-h` works everywhere. Typer does not know NO_COLOR (https://no-color.org), which Rich does.
SETTINGS: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 120,
    "color": False if os.environ.get("NO_COLOR") else None,
}


def examples(*lines: str) -> str:
    """Return the end of a command's help: what can be typed after `gpu-cluster`."""
    # The mark keeps the lines as they are.
    return "\b\n" + "\n".join([f"Example{'s' * (len(lines) > 1)}:", *(f"  gpu-cluster {line}" for line in lines)])


class Command(TyperCommand):
    """A command whose help lists its options by panel, with names that are never cut."""

    def complete(self) -> None:
        """Add the options of the config, if the command has any (see `parameters.takes_options_of`)."""
        completed = vars(self.callback).pop(COMPLETED, None)
        if completed is not None:
            alone = typer.Typer(add_completion=False)
            alone.command()(completed())
            whole = typer.main.get_command(alone)
            self.params, self.callback = whole.params, whole.callback

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and the panels of options."""
        _write_panels(self, ctx, formatter)


class Group(TyperGroup):
    """A group of commands, with the help of `Command`; without a command it prints its help."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command with all of its options, of which a list of commands needs none."""
        command = super().get_command(ctx, cmd_name)
        if isinstance(command, Command):
            command.complete()
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write what each command does: the first paragraph of its help."""
        shown = ((name, self.commands[name].help or "") for name in self.list_commands(ctx))
        with formatter.section("Commands"):
            formatter.write_dl([(name, " ".join(words.split("\n\n")[0].split())) for name, words in shown])

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands and the panels of options."""
        self.format_commands(ctx, formatter)
        _write_panels(self, ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Print the help of a group below the program if nothing is asked of it."""
        if not args and ctx.parent is not None and not ctx.resilient_parsing:
            typer.echo(ctx.get_help())
            ctx.exit()
        return super().parse_args(ctx, args)


class Program(Group):
    """The program itself: a first word that is no command, but names a file or a folder, means `run`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Say where the options of `run` belong if one of them stands before a command."""
        try:
            return super().parse_args(ctx, args)
        except typer.TyperException as error:
            option = getattr(error, "option_name", None)
            if option and option in {flag for one in self.get_command(None, "run").params for flag in one.opts}:
                error.message += "; it is an option of run: `gpu-cluster run ...`"
            raise

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that the arguments begin with, and the arguments that are left."""
        word = args[0]
        if word not in self.commands and os.path.exists(word):
            if not ctx.resilient_parsing:
                kind = "folder" if os.path.isdir(word) else "file"
                print_note(f"{printable(word)!r} is a {kind}, not a command: this does `gpu-cluster run` with it")
            args = ["run", *args]
        try:
            return super().resolve_command(ctx, args)
        except typer.TyperException as error:
            if error.message == f"No such command {word!r}.":
                error.message = (
                    f"no command {word!r}, and no file or folder of this name; `gpu-cluster help` lists the commands"
                )
            raise


def _write_panels(command: TyperCommand | TyperGroup, ctx: Any, formatter: Any) -> None:
    panels: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is not None:
            is_argument = parameter.param_type_name == "argument"
            panel = getattr(parameter, "rich_help_panel", None) or ("Arguments" if is_argument else "Other")
            panels[panel].append((" ".join(_names(parameter)), record[1]))
    for name, rows in panels.items():
        with formatter.section(name):
            formatter.write_dl(rows, col_max=_BELOW if formatter.width < _NARROW else _BESIDE)


def _names(parameter: Any) -> Iterator[str]:
    """Yield the names of a parameter, and what stands for its value."""
    if parameter.param_type_name == "argument":
        yield parameter.display_name_raw + ("..." if parameter.nargs != 1 else "")
        return
    # The short name stands first, as in `-h, --help`.
    yield ", ".join([*sorted(parameter.opts, key=len), *parameter.secondary_opts])
    if not parameter.is_flag:
        yield parameter.metavar or "TEXT"

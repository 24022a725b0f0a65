"""Turns the options of a command, which the config declares, into the parameters that Typer reads.

The config is loaded when the options of a command are needed: the list of commands comes without it. This module must
not know what the options mean.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer

from gpu_cluster.cli.help import COMPLETED

if TYPE_CHECKING:
    from gpu_cluster.options import Option

_CLUSTERING = "Clustering"
OUTPUT = "Output"

# The help panel for the options of each section, and for each option that is in no section.
_PANELS = {
    "input": "Input",
    "embed": "Embedding",
    "given": "Embedding",
    "store": "Kept between runs",
    "executor": "Several processes, cards or machines",
    "reduce": _CLUSTERING,
    "sweep": _CLUSTERING,
    "cluster": _CLUSTERING,
    "score": _CLUSTERING,
    "compare": _CLUSTERING,
    "report": OUTPUT,
    "export": OUTPUT,
    "device": "Embedding",
    "max_bad_fraction": "Input",
    "seed": _CLUSTERING,
    "preset": _CLUSTERING,
}

_SHORT_FLAGS = {"k": "-k"}

# What the help shows in place of a value that is not one of a few words.
_METAVARS = {int: "NUMBER", float: "NUMBER", Path: "PATH", str: "TEXT"}
# The forms of an export are too many for one line; the help of the option lists them.
_METAVAR_OF = {"k_range": "FIRST:LAST", "to": "FORM"}

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def takes_options_of(
    command: str, *names: str, words: Mapping[str, str] = MappingProxyType({})
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace `**options` of a command's function by parameters: all options of `command`, or those in `names`.

    This is done when somebody asks for the command (`help.Command.complete`). `words` replaces the help of options.
    """

    def taking(function: Callable[..., None]) -> Callable[..., None]:
        plain = inspect.signature(function, eval_str=True).parameters.values()
        before, after = ([one for one in plain if one.kind is kind] for kind in _KINDS)

        def completed() -> Callable[..., None]:
            return _with_parameters(function, [*before, *_parameters_of(command, names, words), *after])

        taken = _with_parameters(function, [*before, *after])
        setattr(taken, COMPLETED, completed)
        return taken

    return taking


def _with_parameters(function: Callable[..., None], parameters: Sequence[inspect.Parameter]) -> Callable[..., None]:
    @wraps(function)
    def taking(**given: Any) -> None:
        function(**given)

    taking.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    taking.__annotations__ = {one.name: one.annotation for one in parameters}
    return taking


def _parameters_of(command: str, names: Sequence[str], words: Mapping[str, str]) -> list[inspect.Parameter]:
    from gpu_cluster.config import COMMANDS
    from gpu_cluster.options import INTERNAL, options_of

    taken = [
        option
        for option in options_of(COMMANDS[command]).values()
        if option.name not in INTERNAL | {"images"} and (option.name in names or not names)
    ]
    panels = list(dict.fromkeys(_PANELS.values()))
    taken.sort(key=lambda option: panels.index(_PANELS[option.section or option.name]))
    described = {option.name: words.get(option.name, option.field.description) for option in taken}
    return [
        inspect.Parameter(
            one.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_parameter(one, described[one.name])
        )
        for one in taken
    ]


def _choices(annotation: Any) -> dict[str, Any]:
    """Return how Typer shows and completes the words that an annotation allows; nothing if it names no words."""
    words = [word for part in _parts(annotation) if get_origin(part) is Literal for word in get_args(part)]
    if not words:
        return {}
    shown = (["NUMBER"] if int in _parts(annotation) else []) + words
    return {"metavar": "|".join(shown), "autocompletion": lambda: words}


def _parameter(option: Option, described: str | None) -> Any:
    """Return the type as which Typer reads an option, with its help."""
    # An option that is not a path or a switch is read as text here and parsed by the config, whose errors say what was
    # expected and name the words that are allowed.
    kinds = {part for part in _parts(option.field.annotation) if part is not type(None)}
    kind = kinds.pop() if len(kinds) == 1 else str
    metavar = _METAVAR_OF.get(option.name, _METAVARS.get(kind))
    kind = kind if kind in (bool, Path) else str
    words = " ".join(filter(None, (described, _more_help(option))))
    default = option.field.default
    if default is not None and default is not False and default != ():
        words += f" (default: {'on' if default is True else default})"
    flag = f"{option.flag}/--no-{option.flag[2:]}" if default is True else option.flag
    flags = [_SHORT_FLAGS[option.name], flag] if option.name in _SHORT_FLAGS else [flag]
    shown = _choices(option.field.annotation) or {"metavar": metavar}
    if option.name in _METAVAR_OF:
        shown["metavar"] = metavar
    panel = _PANELS[option.section or option.name]
    return Annotated[kind | None, typer.Option(*flags, help=words, rich_help_panel=panel, show_default=False, **shown)]


def _more_help(option: Option) -> str:
    """Return help that is not in the declaration of an option, because it needs facts from the job `compare`."""
    if option.section != "compare":
        return ""
    from gpu_cluster.jobs.compare import ALGORITHMS, FEATURES, MOST_IMAGES, default_features

    if option.name == "features":
        return (
            f"Possible are {', '.join(FEATURES)}, and several joined by +. The default here is "
            f"{', '.join(default_features())}; another network of Keras is part of it if Keras has downloaded its "
            "weights."
        )
    return (
        f"Possible are {', '.join(ALGORITHMS)}; the default is all of them. For more than {MOST_IMAGES:,} images only "
        "kmeans runs."
    )


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

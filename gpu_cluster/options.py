"""Builds the config of a command from options by name, and the command line from a config.

Explicit options take precedence over a config file, the file over the preset, and the preset over the defaults. This
module must not know what the options mean to the stages.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, to_jsonable_python

from gpu_cluster.addresses import public
from gpu_cluster.bounded import MIB, UnfitError, is_too_long, parse_json, parse_toml, read
from gpu_cluster.config import (
    COMMANDS,
    EARLIER_DECODING,
    EARLIER_ENGINE,
    EARLIER_FEATURES,
    MOST_SAMPLED,
    CommandConfig,
    EngineName,
    RunConfig,
    pooling_apart,
)
from gpu_cluster.errors import ConfigError
from gpu_cluster.words import did_you_mean

log = logging.getLogger(__name__)

C = TypeVar("C", bound=CommandConfig)

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    # The settings of the published notebook, MJParviz/Flower_Image_Clustering_with_Transfer_Learning_and_K-Means.
    "notebook": {
        "seed": 42,
        "embed": {
            "engine": "tensorflow",
            "decoding": 2,
            "features": "vgg16",
            "pooling": "average",
            "resize": "nearest",
            "fit": "stretch",
        },
        "reduce": {"scaling": "minmax", "pca": 2, "whitening": 0, "normalize": False},
        "sweep": {"k": 8, "default_range": "1:10", "sweep_space": "scaled", "sweep_sample": MOST_SAMPLED},
        "score": {"holdout": 0.2},
    },
}


@dataclass(frozen=True)
class Option:
    """One option of a command: its name, its section (None if it is in no section), and its declaration."""

    name: str
    section: str | None
    field: FieldInfo

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return "IMAGES" if self.name == "images" else f"--{self.name.replace('_', '-')}"

    def of(self, config: CommandConfig) -> Any:
        """Return the value of this option in a config."""
        return getattr(config if self.section is None else getattr(config, self.section), self.name)


def options_of(model: type[CommandConfig]) -> dict[str, Option]:
    """Return the options of a command by name; names are unique across its sections."""
    found: dict[str, Option] = {}
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            found |= {inner: Option(inner, name, field) for inner, field in info.annotation.model_fields.items()}
        else:
            found[name] = Option(name, None, info)
    return found


def command_of(model: type[CommandConfig]) -> str:
    """Return the name of the command that this config model belongs to."""
    return next(name for name, known in COMMANDS.items() if known is model)


def build_config(model: type[C], file: str | os.PathLike[str] | None = None, **options: Any) -> C:
    """Build the config of a command from options by name.

    Options take precedence over the file, the file over the preset, and the preset over the defaults.

    Parameters
    ----------
    model
        The config class of the command, for instance `RunConfig`.
    file
        A TOML file with one table for each section, or the `run.json` of an earlier run.
    **options
        Options by their names (`k_range="2:20"`, `batch_size=8`, ...); None means that the option is not given.

    Raises
    ------
    ConfigError
        For an option that the command does not have, an unknown key, a value that is not allowed, or a file that cannot
        be read.
    """
    return _build(model, file, options)[0]


def _build(model: type[C], file: str | os.PathLike[str] | None, options: Mapping[str, Any]) -> tuple[C, _Layers]:
    """Return the config, and the layers that it was merged from."""
    merged: dict[str, Any] = {}
    layers, content = _layers(model, file, options)
    for _, layer in layers:
        merged = _merge(merged, layer)
    try:
        config = model.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(_first_problem(error, model, file)) from error
    told = {name for name, value in options.items() if _is_given(value)}
    if file is not None and _is_record(file):
        _warn_of_missing(content, file, config, told)
    return config, layers


@dataclass(frozen=True)
class Setting:
    """The value of one option, and in words where it came from."""

    option: Option
    value: Any
    source: str

    def as_json(self) -> dict[str, Any]:
        """Return the setting as values that JSON can hold."""
        option = self.option
        return {
            "option": option.name,
            "section": option.section,
            "value": to_jsonable_python(self.value),
            "source": self.source,
        }


def settings(
    model: type[CommandConfig], file: str | os.PathLike[str] | None = None, **options: Any
) -> tuple[Setting, ...]:
    """Return the value of every option as `build_config` takes it, and which layer it came from.

    The parameters and the errors are those of `build_config`.
    """
    config, layers = _build(model, file, options)
    return tuple(Setting(option, option.of(config), _source(option, layers)) for option in options_of(model).values())


def _is_given(value: Any) -> bool:
    """Tell whether an option was given; nothing named is nothing given."""
    return value is not None and not (isinstance(value, list | tuple) and not value)


def _plain(value: Any) -> Any:
    """Return a number of NumPy, of which grids of parameters are often made, as Python's own."""
    return value.item() if getattr(value, "shape", None) == () else value


_Layers: TypeAlias = list[tuple[str, Mapping[str, Any]]]

# What holds where the record of a run lacks it: so was the version before there was a choice.
_EARLIER: Mapping[str, Mapping[str, Any]] = {
    "embed": {"engine": EARLIER_ENGINE, "decoding": EARLIER_DECODING, "features": EARLIER_FEATURES},
    # All restarts were run with all pictures.
    "sweep": {"sweep_sample": MOST_SAMPLED},
}


def _source(option: Option, layers: _Layers) -> str:
    """Return the name of the layer that an option's value comes from."""
    for words, layer in reversed(layers):
        if option.name in (layer if option.section is None else layer.get(option.section, {})):
            return words
    return "default"


def _layers(
    model: type[CommandConfig], file: str | os.PathLike[str] | None, options: Mapping[str, Any]
) -> tuple[_Layers, Mapping[str, Any]]:
    """Return what the preset, the file and the caller say, lowest first, each with its name; and the file's content."""
    if file is not None and not isinstance(file, str | os.PathLike):
        raise ConfigError(f"config: expected the path of a TOML file or a run.json; found {file!r}")
    known, command = options_of(model), command_of(model)
    unknown = sorted(set(options) - set(known))
    if unknown:
        # An option of another command is no mistake in writing.
        meant = (
            ""
            if any(unknown[0] in options_of(other) for other in COMMANDS.values())
            else did_you_mean(unknown[0], known)
        )
        raise ConfigError(f"unknown option {unknown[0]!r} of {command}{meant}; known are {', '.join(sorted(known))}")
    given: dict[str, Any] = {}
    for name, value in ((name, _plain(value)) for name, value in options.items() if _is_given(value)):
        if isinstance(value, int) and is_too_long(value):
            raise ConfigError(f"{known[name].flag}: expected a smaller number; found one of thousands of digits")
        section = known[name].section
        (given if section is None else given.setdefault(section, {}))[name] = value
    # The device that is given may not be the one that the engine of the record computes on.
    content = _read_file(Path(file), same_engine=given.get("device") != "gpu") if file is not None else {}
    from_file = _without_alternatives(dict(_of_record(content, model)) if _is_record(file) else content, given)
    layers: _Layers = [(f"file {os.fspath(file or '')}", from_file), ("command line", given)]
    if "preset" in known:
        preset = given.get("preset", from_file.get("preset", RunConfig().preset))
        if "preset" in given and _is_record(file) and from_file.get("preset", RunConfig().preset) != given["preset"]:
            raise ConfigError(
                f"--preset {given['preset']}: {os.fspath(file or '')!r} is the record of a run and holds every option "
                f"of its preset {from_file.get('preset')!r}; leave out --preset or --config"
            )
        layers.insert(0, (f"preset {preset}", PRESETS.get(preset, {}) if isinstance(preset, str) else {}))
    if _is_record(file):
        # A comparison records no features here, in whatever version it was made.
        theirs = options_of(COMMANDS["compare" if "compare" in content else "run"])
        held = {
            section: {
                name: table[name]
                for name in table.keys() & known.keys() & theirs.keys()
                if known[name].section == theirs[name].section == section
            }
            for section, table in _EARLIER.items()
        }
        layers.insert(0, ("earlier version", {section: table for section, table in held.items() if table}))
    if "pooling" in known:
        layers = [(words, _pooling_apart(layer)) for words, layer in layers]
    return _without_network(layers, known, is_record=_is_record(file)), content


def _pooling_apart(layer: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a layer in which the features name no pooling, so that it holds against that of a lower layer."""
    table = layer.get("embed")
    if not isinstance(table, Mapping) or "features" not in table:
        return layer
    try:
        return {**layer, "embed": pooling_apart(table)}
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _without_network(layers: _Layers, known: Mapping[str, Option], *, is_record: bool) -> _Layers:
    """Return the layers without the options of the network, if the embeddings are given, which need none.

    Those of a preset and of a record are all there, and are not used; nor are defaults that a file repeats, as one of
    `config show` does.

    Raises
    ------
    ConfigError
        When the command line, or a TOML file, has another one beside the embeddings.
    """
    sections = [{name: part for name, part in layer.items() if isinstance(part, Mapping)} for _, layer in layers]
    named = ("embeddings", "embeddings_in_memory")
    given = [any(tables.get("given", {}).get(name) for name in named) for tables in sections]
    if not any(given):
        return layers
    for (words, _), tables in zip(layers, sections, strict=True):
        named_here = words == "command line"
        chosen = named_here or (words.startswith("file ") and not is_record)
        asked = [
            name
            for name, value in tables.get("embed", {}).items()
            if chosen and name in known and (named_here or value != known[name].field.default)
        ]
        if asked:
            raise ConfigError(
                f"{', '.join(known[name].flag for name in asked)} ({words}): with --embeddings no network runs, and "
                "its options mean nothing; leave out the one or the other"
            )
    # The names of the pictures, and what computed them, belong to the file that is named with them.
    unused = {"embed", "given"} if given[-1] else {"embed"}
    below = [(words, {name: part for name, part in layer.items() if name not in unused}) for words, layer in layers]
    return [*below[:-1], layers[-1]]


# Options of which only one can hold, by their section: the one that is given replaces the other one of a file.
_ALTERNATIVES = {"input": ("labels", "labels_from_folders"), "store": ("cache", "no_cache")}


def _without_alternatives(from_file: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a file without those that cannot hold together with the options given."""
    left = dict(from_file)
    for section, pair in _ALTERNATIVES.items():
        table, theirs = left.get(section), given.get(section, {})
        for one, other in (pair, pair[::-1]):
            if isinstance(table, Mapping) and theirs.get(one) and other not in theirs:
                left[section] = {name: value for name, value in table.items() if name != other}
    return left


# Options that only presets and functions set: they have no flag and no parameter.
INTERNAL = frozenset({"default_range", "embeddings_in_memory"})


def command_line(config: CommandConfig) -> str:
    """Return the `gpu-cluster` command of a config, with only the options that differ from its preset or defaults."""
    known = options_of(type(config))
    preset = getattr(config, "preset", None)
    usual = build_config(type(config), preset=preset) if preset is not None else build_config(type(config))
    words = ["gpu-cluster", command_of(type(config)), *(public(str(place)) for place in known["images"].of(config))]
    given = getattr(config, "given", None)
    if given is not None and given.embeddings_in_memory:
        words += ["--embeddings", "(an array in memory)"]
    if preset is not None and preset != RunConfig().preset:
        words += ["--preset", preset]
    for name, option in known.items():
        value = option.of(config)
        if name in INTERNAL | {"images", "preset"} or value == option.of(usual):
            continue
        if option.section == "embed" and given is not None and given.is_given:
            # No network ran, whatever the preset says of one.
            continue
        if isinstance(value, bool):
            words.append(option.flag if value else f"--no-{option.flag[2:]}")
        else:
            words += [option.flag, ",".join(value) if isinstance(value, tuple) else str(value)]
    return shlex.join(words)


def _merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        below = merged.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = _merge(below, value) if both else value  # type: ignore[arg-type]
    return merged


# The largest config file that is read. A run.json names every picture that was named on the command line.
_MOST_BYTES = {"toml": MIB, "json": 16 * MIB}


def _read_file(path: Path, *, same_engine: bool) -> dict[str, Any]:
    """Return the options of a file; with `same_engine`, those of a record name the engine that ran and not `auto`."""
    is_record = _is_record(path)
    try:
        # A config may come from a pipe, as in `--config <(command)`.
        text = read(path, _MOST_BYTES["json" if is_record else "toml"], wait=True).decode("utf-8")
    except (OSError, UnfitError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config {str(path)!r}: {getattr(error, 'strerror', error)}") from error
    try:
        if not is_record:
            return parse_toml(text)
        content = parse_json(text)
    except ValueError as error:
        raise ConfigError(f"the config {str(path)!r} is not valid: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
        raise ConfigError(f"{str(path)!r} is no run.json: it has no 'config'; give a run.json or a TOML file")
    return _with_engine_that_ran(content) if same_engine else dict(content["config"])


def _with_engine_that_ran(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a record, with the engine that ran: on another machine, `auto` could be another one."""
    options, ran = dict(record["config"]), record.get("engine")
    embedding = options.get("embed")
    if isinstance(embedding, Mapping) and embedding.get("engine") == "auto" and ran in get_args(EngineName):
        options["embed"] = {**embedding, "engine": ran}
    return options


def left_out(file: str | os.PathLike[str]) -> dict[str, list[str]]:
    """Return the options whose paths a portable run.json does not hold, with the last names of these paths.

    The file is one that `build_config` has read; of a TOML file and of another run.json, nothing was left out.
    """
    content = parse_json(read(Path(file), _MOST_BYTES["json"])) if _is_record(file) else {}
    found = content.get("left_out")
    if not isinstance(found, dict):
        return {}
    return {str(name): [str(one) for one in names] for name, names in found.items() if isinstance(names, list)}


def _of_record(record: Mapping[str, Any], model: type[CommandConfig]) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a record that are options of this command.

    Earlier versions recorded the options of all commands in every run.json.
    """
    own_options = {(option.section, name) for name, option in options_of(model).items()}
    every = {(option.section, name) for other in COMMANDS.values() for name, option in options_of(other).items()}
    foreign = every - own_options
    sections = {section for section, _name in own_options}
    for key, value in record.items():
        if isinstance(value, Mapping):
            own = {name: inner for name, inner in value.items() if (key, name) not in foreign}
            if own or key in sections:
                yield key, own
        elif (None, key) not in foreign:
            yield key, value


def _warn_of_missing(
    record: Mapping[str, Any], file: str | os.PathLike[str], config: CommandConfig, told: Set[str]
) -> None:
    """Log each option that the record of an earlier version lacks and that the caller did not give."""
    # A record of another command has no options that only this one has.
    marks = {"run": "preset", "compare": "compare"}
    recorded = {
        (option.section, name)
        for command, mark in marks.items()
        if mark in record
        for name, option in options_of(COMMANDS[command]).items()
    }
    for name, option in options_of(type(config)).items():
        held = record if option.section is None else record.get(option.section, {})
        if name in held or name in told | INTERNAL or (option.section, name) not in recorded or option.field.exclude:
            continue
        value = option.of(config)
        # An option that is not set changes nothing.
        if value is None:
            continue
        log.warning("%r, written by an earlier version, has no %s; %s is used", os.fspath(file), option.flag, value)


def _is_record(file: str | os.PathLike[str] | None) -> bool:
    """Return whether a file is a run.json, which holds every option, and not a TOML file, which holds some."""
    return file is not None and os.fspath(file).lower().endswith(".json")


# The most characters of a value that an error shows.
_MOST_SHOWN = 500

# What a value should have been, by the type of pydantic's error; its own words name its classes.
_EXPECTED = {
    "path_type": "a path",
    "string_type": "a text",
    "string_unicode": "a text in Unicode",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "several values, in a list",
    "model_type": "a table of options",
}


def _first_problem(error: ValidationError, model: type[CommandConfig], file: str | os.PathLike[str] | None) -> str:
    problems = error.errors()
    problem = problems[0]
    where = [str(part) for part in problem["loc"]]
    source = f" (config {os.fspath(file)!r})" if file is not None else ""
    if problem["type"] == "extra_forbidden":
        return _unknown_key(where, model, source)
    # For a union, pydantic appends the branch to the field's name; the user typed only the field.
    known = options_of(model)
    name = next((part for part in reversed(where) if part in known), ".".join(where))
    if problem["type"] == "value_error":
        # Messages of this project already say what was found; those about several options name them too.
        message = _short(problem["msg"].removeprefix("Value error, "))
        return f"{known[name].flag}: {message}{source}" if name in known else f"{message}{source}"
    subject = known[name].flag if name in known else name or "a key of the config"
    # There is a problem for each branch of a union.
    of_field = [other for other in problems if name in map(str, other["loc"])] or [problem]
    return f"{subject}: {_expected(of_field)}; found {_short(repr(problem['input']))}{_meant(of_field)}{source}"


def _short(text: str) -> str:
    """Return the beginning of a text, which may be a value of any length."""
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}... ({len(text):,} characters)"


def _expected(problems: Sequence[ErrorDetails]) -> str:
    """Return what one field should have been, from the problem of each branch of its type."""
    possible: list[str] = []
    for problem in problems:
        if problem["type"] == "literal_error":
            possible += map(repr, _choices(problem))
        elif problem["type"] in _EXPECTED:
            possible.append(_EXPECTED[problem["type"]])
        else:
            # About a number that is too small or too large.
            return problem["msg"].replace("Input should be", "expected a value", 1)
    *others, last = dict.fromkeys(possible)
    return f"expected {', '.join(others)}{' or ' if others else ''}{last}"


def _choices(problem: ErrorDetails) -> list[str]:
    return re.findall("'(.*?)'", problem["ctx"]["expected"])


def _meant(problems: Sequence[ErrorDetails]) -> str:
    choices = [choice for problem in problems if problem["type"] == "literal_error" for choice in _choices(problem)]
    return did_you_mean(problems[0]["input"], choices)


def _unknown_key(where: list[str], model: type[CommandConfig], source: str) -> str:
    *tables, key = where
    table = f" in [{'.'.join(tables)}]" if tables else ""
    mine, known = command_of(model), options_of(model)
    theirs = [command for command, other in COMMANDS.items() if _has(other, where)]
    if theirs:
        return f"config key {key!r}{table}{source} belongs to {' and '.join(theirs)}; {mine} has no such option"
    if key in known:
        section = known[key].section
        belongs = f"in the table [{section}]" if section else "above all tables"
        return f"config key {key!r}{table}{source} is in the wrong place; it belongs {belongs}"
    sections = {option.section for option in known.values() if option.section}
    meant = did_you_mean(key, known if tables else (*known, *sections))
    return f"unknown config key {key!r}{table}{source}{meant}; `gpu-cluster {mine} --help` lists the options"


def _has(model: type[CommandConfig], where: list[str]) -> bool:
    if len(where) == 1:
        return where[0] in model.model_fields
    option = options_of(model).get(where[-1])
    return option is not None and [option.section, option.name] == where

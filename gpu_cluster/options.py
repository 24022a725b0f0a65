"""Options by their names -> a JobConfig, and back: flags over file over preset over default.

Must not know what the options mean to the stages.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import tomllib
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from gpu_cluster.config import CompareConfig, JobConfig
from gpu_cluster.errors import ConfigError

log = logging.getLogger(__name__)

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    # The notebook of MJParviz/Flower_Image_Clustering_with_Transfer_Learning_and_K-Means, as published.
    "notebook": {
        "seed": 42,
        "embed": {"pooling": "average", "resize": "nearest", "fit": "stretch"},
        "reduce": {"scaling": "minmax", "pca": 2, "whitening": 0, "normalize": False},
        "sweep": {"k": 8, "default_range": "1:10", "sweep_space": "scaled"},
        "score": {"holdout": 0.2},
    },
}


def _section_of_fields() -> dict[str, str | None]:
    """Map each option to the section that holds it, or to None at the top: their names are unique."""
    fields: dict[str, str | None] = {}
    for name, info in JobConfig.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            fields.update(dict.fromkeys(info.annotation.model_fields, name))
        else:
            fields[name] = None
    return fields


SECTION_OF = _section_of_fields()

# The output of a run is not part of its recipe: repeating a run must not overwrite it, nor do over what is kept.
NOT_RECORDED: Mapping[str, frozenset[str]] = {"report": frozenset({"out"}), "store": frozenset({"force", "rehash"})}

_MEANINGLESS: Mapping[str, frozenset[str]] = {
    "run": frozenset(CompareConfig.model_fields),
    # Its features are poolings, and their recipes; it sweeps in the space that it groups, and draws no pictures.
    "compare": frozenset({"preset", "pooling", "sweep_space", "holdout", "layout_sample", "thumbnails"}),
}


def options_of(command: str) -> list[str]:
    """Return the names of the options that mean something to `run` or `compare`."""
    return [name for name in SECTION_OF if name not in _MEANINGLESS[command]]


def check_options(command: str, options: Mapping[str, Any]) -> None:
    """Refuse options by names that mean nothing to a command.

    Raises
    ------
    ConfigError
        For the first of them.
    """
    known = options_of(command)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]!r} of {command}; known are {', '.join(sorted(known))}")


def describe(option: str) -> tuple[str, Any]:
    """Return the description and the default of an option, for `--help`."""
    section = SECTION_OF[option]
    model = JobConfig if section is None else type(getattr(JobConfig(), section))
    info = model.model_fields[option]
    return info.description or "", info.default


def build_config(file: str | os.PathLike[str] | None = None, **options: Any) -> JobConfig:
    """Build the config of a job from options by name: flags over file over preset over default.

    Parameters
    ----------
    file
        A TOML file with a table a section, or the `run.json` of an earlier run.
    **options
        Options by their field names (`k_range="2:20"`, `batch_size=8`, ...); None means not given.

    Raises
    ------
    ConfigError
        For an unknown option or key, or a value out of its range.
    """
    unknown = sorted(set(options) - set(SECTION_OF))
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]!r}; known are {', '.join(sorted(SECTION_OF))}")
    given = _nested({name: value for name, value in options.items() if value is not None})
    from_file = _read_file(Path(file)) if file is not None else {}
    preset = given.get("preset", from_file.get("preset", JobConfig().preset))
    if "preset" in given and _is_record(file) and from_file.get("preset") != given["preset"]:
        raise ConfigError(
            f"--preset {given['preset']}: {os.fspath(file or '')!r} is the record of a run and holds every option of "
            f"its preset {from_file.get('preset')!r}; leave out --preset or --config"
        )
    layers = [PRESETS.get(preset, {}) if isinstance(preset, str) else {}, from_file, given]
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _merge(merged, layer)
    try:
        config = JobConfig.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(_first_problem(error, file)) from error
    if file is not None and _is_record(file):
        told = {name for name, value in options.items() if value is not None}
        _warn_of_missing(from_file, file, config, told)
    return config


def command_line(config: JobConfig, command: str = "run") -> str:
    """Return a command of `gpu-cluster` with the options that differ from those of the preset, where it has presets."""
    options = options_of(command)
    theirs = build_config(preset=config.preset if "preset" in options else None)
    words = ["gpu-cluster", command, *map(str, config.input.images)]
    if config.preset != JobConfig().preset and "preset" in options:
        words += ["--preset", config.preset]
    for name in options:
        if name in ("images", "preset", "default_range"):
            continue
        section = SECTION_OF[name]
        value, usual = (
            getattr(one if section is None else getattr(one, section), name) if name != section else None
            for one in (config, theirs)
        )
        if value == usual:
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", ",".join(value) if isinstance(value, tuple) else str(value)]
    return shlex.join(words)


def _nested(options: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in options.items():
        section = SECTION_OF[name]
        if section is None:
            nested[name] = value
        else:
            nested.setdefault(section, {})[name] = value
    return nested


def _merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        below = merged.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = _merge(below, value) if both else value  # type: ignore[arg-type]
    return merged


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config {str(path)!r}: {getattr(error, 'strerror', error)}") from error
    try:
        if _is_record(path):
            content = json.loads(text)
            if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
                raise ConfigError(f"{str(path)!r} is no run.json: it has no 'config'; give a run.json or a TOML file")
            return dict(content["config"])
        return tomllib.loads(text)
    except ValueError as error:
        raise ConfigError(f"the config {str(path)!r} is not valid: {error}") from error


def _warn_of_missing(
    record: Mapping[str, Any], file: str | os.PathLike[str], config: JobConfig, told: Set[str]
) -> None:
    """Say what the config holds that a record of an earlier version does not say, nor was told."""
    # Those of another command, and one that no command line has.
    known = told | _MEANINGLESS["run"] | {"default_range"}
    for name, section in SECTION_OF.items():
        held = record if section is None else record.get(section, {})
        if name in held or name in known or name in NOT_RECORDED.get(section or "", ()):
            continue
        value = getattr(config if section is None else getattr(config, section), name)
        flag = name.replace("_", "-")
        log.warning("%r, of an earlier version, does not say --%s: taken is %s", os.fspath(file), flag, value)


def _is_record(file: str | os.PathLike[str] | None) -> bool:
    """Tell a run.json, which holds every option, from a file of options."""
    return file is not None and os.fspath(file).lower().endswith(".json")


def _first_problem(error: ValidationError, file: str | os.PathLike[str] | None) -> str:
    problem = error.errors()[0]
    where = [str(part) for part in problem["loc"]]
    source = f" (config {os.fspath(file)!r})" if file is not None else ""
    if problem["type"] == "extra_forbidden":
        table = f" in [{'.'.join(where[:-1])}]" if where[:-1] else ""
        return f"unknown config key {where[-1]!r}{table}{source}; see the README for the keys there are"
    message = problem["msg"].removeprefix("Value error, ")
    # A union reports the branch after the field's name; the field is what the user typed.
    name = next((part for part in reversed(where) if part in SECTION_OF), ".".join(where))
    if "not both" in message:
        return f"{message}{source}"
    subject = f"--{name.replace('_', '-')}" if name in SECTION_OF else name
    found = "" if "found" in message else f"; found {problem['input']!r}"
    return f"{subject}: {message}{found}{source}"

"""What a job is told to do: one frozen model a stage, each default declared once, and the presets.

Options reach a `JobConfig` through `build_config`: flags over file over preset over default. Knows nothing of how the
stages work.
"""

from __future__ import annotations

import json
import os
import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from gpu_cluster.errors import ConfigError

_MOST_KS = 100_000


def shipped_data() -> Path:
    """Return the folder with the weights and the sample set: in the package of a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "data"
    return inside if inside.is_dir() else package.parent / "data"


def parse_k_range(text: str) -> tuple[int, ...]:
    """Read `A:B` or `A:B:STEP`, both ends included, into the numbers of clusters to try.

    Raises
    ------
    ValueError
        When the text has another form, A is below 1, B is below A, STEP is below 1, or there are too many numbers.
    """
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"a range of k is A:B or A:B:STEP in whole numbers, for example 2:15; found {text!r}")
    first, last, step = (*map(int, parts), 1)[:3]
    if first < 1:
        raise ValueError(f"a range of k starts at 1 or above; found {text!r}")
    if last < first:
        raise ValueError(f"a range of k goes upwards, as in {last}:{first}; found {text!r}")
    if step < 1:
        raise ValueError(f"the step of a range of k is 1 or above; found {text!r}")
    ks = range(first, last + 1, step)
    # A slip of the keyboard must not fill the memory before anything can be compared with the images there are.
    if ks[_MOST_KS:]:
        raise ValueError(f"a range of k holds at most {_MOST_KS:,} numbers; found {text!r}")
    return tuple(ks)


def _checked_range(text: str) -> str:
    parse_k_range(text)
    return text


def _absolute(path: Path) -> Path:
    # run.json repeats a run from any folder, so the paths in it cannot depend on one.
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        # No user of that name: a file whose own name begins with a tilde.
        return path.absolute()


KRange = Annotated[str, AfterValidator(_checked_range)]
Device = Literal["auto", "cpu", "gpu"]
Precision = Literal["float32", "tf32", "float16"]
Algorithm = Literal["ward", "spectral", "hdbscan"]
Pooling = Literal["gem-4-5", "gem", "max", "average", "flatten"]
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]


_DEFAULT_RANGE = "2:15"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputConfig(_Section):
    """Which pictures, and what is known about them."""

    images: tuple[AbsolutePath, ...] = Field((), description="Folders (read recursively) and image files.")
    input_list: AbsolutePath | None = Field(
        None,
        description="Text file that names image files, one a line (or separated by NUL bytes), relative to itself.",
    )
    labels: AbsolutePath | None = Field(None, description="CSV of labels, one row a file.")
    file_col: str = Field("file", description="Column of the labels CSV that names the file.")
    label_col: str = Field("label", description="Column of the labels CSV that holds the label.")
    labels_from_folders: bool = Field(False, description="Take the name of a file's folder as its label.")
    max_pixels: int = Field(
        178_956_970,
        ge=1,
        description="Refuse, by their header, pictures of more pixels. Decoding one takes up to 13 bytes a pixel, and "
        "as many are decoded at once as there are cores.",
    )

    def named(self) -> tuple[Path, ...]:
        """Return every path that is read."""
        return (*self.images, *(path for path in (self.input_list, self.labels) if path is not None))

    @model_validator(mode="after")
    def _one_source_of_labels(self) -> InputConfig:
        if self.labels and self.labels_from_folders:
            raise ValueError("labels come from a CSV or from the folders, not both; give only one of them")
        return self


class EmbedConfig(_Section):
    """How a picture becomes numbers."""

    weights: AbsolutePath | None = Field(
        None,
        description="VGG16 weights without top: Keras 3 .weights.h5, or the legacy .h5 that Keras downloads.",
    )
    pooling: Pooling = Field(
        "gem-4-5",
        description="How VGG16's feature maps become numbers: the generalised means of blocks 4 and 5, each of unit "
        "length, side by side (gem-4-5, 1,024 numbers), or of block 5 alone its generalised mean (gem), maximum (max) "
        "or mean (average), 512 numbers each, or all of it (flatten, 25,088).",
    )
    image_size: int = Field(224, ge=32, description="Side of the square that the network sees, in pixels.")
    batch_size: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Images that go through the network together; by default 32, on a GPU what fits it."
    )
    precision: Precision | None = Field(
        None, description="What the network computes in: float32, on a GPU also tf32 (its default) or float16."
    )
    resize: Literal["bilinear", "nearest"] = Field(
        "bilinear", description="bilinear (with antialiasing), or nearest as Keras's load_img does."
    )
    fit: Literal["stretch", "crop"] = Field(
        "crop", description="crop the square in a picture's middle, or stretch the whole of it to a square."
    )


class StoreConfig(_Section):
    """Where embeddings are kept between runs."""

    cache: AbsolutePath | None = Field(
        None,
        description="Folder that keeps embeddings between runs; by default gpu-cluster in the user's cache folder.",
    )
    no_cache: bool = Field(False, description="Keep nothing between runs, and use nothing that was kept.")
    force: bool = Field(False, description="Embed every picture again, whatever is kept.")
    rehash: bool = Field(
        False,
        description="Read every file again, also where path, size and time of change are those of an earlier run.",
    )
    shard_size: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Pictures whose embeddings are written together: what a kill costs at most; by default 256, on a "
        "GPU 4096.",
    )

    @model_validator(mode="after")
    def _one_wish(self) -> StoreConfig:
        if self.cache and self.no_cache:
            raise ValueError("a cache folder or no cache, not both; give only one of --cache and --no-cache")
        return self


class ReduceConfig(_Section):
    """How embeddings become the space that is clustered."""

    scaling: Literal["sqrt-l2", "l2", "minmax", "none"] = Field(
        "l2", description="Before PCA: sqrt-l2 and l2 scale rows, minmax scales columns."
    )
    pca: Annotated[int, Field(ge=1)] | Literal["auto", "none"] = Field(
        "auto", description="Components: a number, none, or auto = square root of n clipped to 8..32."
    )
    whitening: float = Field(
        0.35,
        ge=0,
        le=0.5,
        description="Divide every component by its variance to this power: 0.5 whitens in full, 0 not at all.",
    )
    normalize: bool = Field(True, description="Scale the rows to unit length after PCA.")


class SweepConfig(_Section):
    """Which numbers of clusters are tried, and how one is chosen."""

    k: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Number of clusters; without it the one that --select chooses."
    )
    select: Literal["agreement", "elbow", "silhouette"] = Field(
        "agreement",
        description="Choose k where restarts of k-means agree most, at the knee of the inertia curve, or where the "
        "silhouette is highest.",
    )
    k_range: KRange | None = Field(
        None,
        description=f"Numbers of clusters to try, FIRST:LAST or FIRST:LAST:STEP, both ends included; without it "
        f"{_DEFAULT_RANGE}, cut to the images there are.",
    )
    default_range: KRange = Field(_DEFAULT_RANGE, description="The range when none is given.")
    sweep_space: Literal["projection", "scaled"] = Field(
        "projection", description="Sweep in the clustered space, or on the scaled columns before PCA."
    )


class ClusterConfig(_Section):
    """k-means, in the sweep and at the end."""

    n_init: int = Field(10, ge=1, description="Restarts of k-means; the lowest inertia wins.")
    max_iter: int = Field(300, ge=1, description="Most iterations of one restart.")
    tol: float = Field(1e-4, ge=0, description="Movement of the centres, relative to the variance, that ends it.")


class ScoreConfig(_Section):
    """How a clustering is judged."""

    silhouette_sample: int = Field(
        20_000, ge=2, description="Above this many images the silhouette is taken on a fixed seeded sample."
    )
    holdout: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="Also score on a random share of the images, as the notebook did with 0.2."
    )


class ReportConfig(_Section):
    """Where the results go."""

    out: AbsolutePath | None = Field(None, description="Run folder; by default runs/<time>-<name>.")
    layout_sample: int = Field(
        5_000, ge=5, description="Above this many images the t-SNE of the report is of a fixed seeded sample."
    )
    thumbnails: int = Field(60, ge=1, description="Most thumbnails on the contact sheet of a cluster.")


class CompareConfig(_Section):
    """What `compare` compares; nothing is everything that it can."""

    features: tuple[str, ...] = Field((), description="Kinds of features, separated by commas.")
    algorithms: tuple[str, ...] = Field((), description="Algorithms, separated by commas.")


class JobConfig(_Section):
    """A whole job. `JobConfig()` is the default preset on the sample set."""

    preset: Literal["default", "notebook"] = Field(
        "default", description="default, or notebook: the published recipe that the project began from."
    )
    device: Device = Field("auto", description="auto takes a GPU where one can be used; gpu never falls back.")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="Seed of everything random; repeats a run.")
    max_bad_fraction: float = Field(
        0.5, ge=0, le=1, description="Largest share of unreadable files before the exit code is 3."
    )
    input: InputConfig = InputConfig()
    embed: EmbedConfig = EmbedConfig()
    store: StoreConfig = StoreConfig()
    reduce: ReduceConfig = ReduceConfig()
    sweep: SweepConfig = SweepConfig()
    cluster: ClusterConfig = ClusterConfig()
    score: ScoreConfig = ScoreConfig()
    report: ReportConfig = ReportConfig()
    compare: CompareConfig = CompareConfig()


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
        if isinstance(info.annotation, type) and issubclass(info.annotation, _Section):
            fields.update(dict.fromkeys(info.annotation.model_fields, name))
        else:
            fields[name] = None
    return fields


SECTION_OF = _section_of_fields()

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
        return JobConfig.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(_first_problem(error, file)) from error


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

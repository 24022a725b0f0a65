"""The options of every command.

Every section of options is a frozen model, and so is the config of every command, which consists of the sections that
the command needs. Each option is declared only here, with its default and its description; the command line, the Python
functions, TOML files and `run.json` use this declaration. A section may have fewer options in one command than in
another, and a command refuses the options that it does not have. This module must not know where options come from.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_serializer, model_validator

from gpu_cluster.addresses import check_address, expanded, is_address, is_tar, local_path, public

_MOST_KS = 100_000
# The largest size of a random sample.
MOST_SAMPLED = 10_000_000


def shipped_data() -> Path:
    """Return the folder with the weights and the sample set.

    An installed wheel has it inside the package; a checkout has it beside the package.
    """
    package = Path(__file__).resolve().parent
    inside = package / "data"
    return inside if inside.is_dir() else package.parent / "data"


def parse_k_range(text: str) -> tuple[int, ...]:
    """Return the numbers of clusters that `A:B` or `A:B:STEP` names; both ends are included.

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
    # A mistyped range must not fill the memory; the number of images, which limits k, is not known here yet.
    if ks[_MOST_KS:]:
        raise ValueError(f"a range of k holds at most {_MOST_KS:,} numbers; found {text!r}")
    return tuple(ks)


def _as_text(ks: Any) -> Any:
    """Return Python's `range(2, 16)` as the `2:15` of the command line."""
    if isinstance(ks, str):
        return ks
    if not isinstance(ks, range):
        raise ValueError(
            "a range of k is A:B or A:B:STEP in whole numbers, for example 2:15, or Python's range(2, 16); "
            f"found {ks!r}{_meant_range(ks)}"
        )
    if not ks or ks.step < 1:
        raise ValueError(f"a range of k must increase and must not be empty; found {ks}")
    return f"{ks[0]}:{ks[-1]}" + ("" if ks.step == 1 else f":{ks.step}")


def _meant_range(ks: Any) -> str:
    """Return in words the range that holds all numbers of a list, for the end of an error; '' if there is none."""
    if not isinstance(ks, tuple | list) or not all(isinstance(k, int) for k in ks):
        return ""
    steps = {after - before for before, after in itertools.pairwise(ks)}
    if not steps or min(steps) < 1:
        return ""
    if len(ks) == 2 or steps == {1}:
        # Whoever gives a pair most likely means both ends.
        return f" (did you mean '{ks[0]}:{ks[-1]}'?)"
    if len(steps) == 1:
        return f" (did you mean '{ks[0]}:{ks[-1]}:{steps.pop()}'?)"
    return f" (numbers cannot be listed one by one; '{ks[0]}:{ks[-1]}' tries these and all between them)"


def _checked_range(text: str) -> str:
    parse_k_range(text)
    return text


def _names(given: Any) -> Any:
    """Split names at commas when they are given as one text, as on the command line."""
    return tuple(name.strip() for name in given.split(",") if name.strip()) if isinstance(given, str) else given


def _not_empty(path: Any) -> Any:
    if path == "":
        raise ValueError(f"a path is empty; found {path!r}")
    return path


def _absolute(path: Path) -> Path:
    # A run can be repeated from its run.json in any working folder, so paths must not depend on that folder.
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        # There is no user of that name, so the tilde belongs to the name of the file.
        return path.absolute()


def _place(given: Path | str) -> Path | str:
    """Return where pictures are: an address as it is, and anything else as an absolute path."""
    text = str(given)
    if not is_address(text):
        return _absolute(Path(given))
    path = local_path(text)
    return check_address(text) if path is None else _absolute(Path(path))


def _places(given: Any) -> Any:
    """Return places with those that braces stand for; a name with braces that is there is taken as it is."""
    if not isinstance(given, list | tuple):
        return given
    found: list[Any] = []
    for place in given:
        text = str(place)
        several = is_tar(text) or is_address(text)
        found += expanded(text) if several and not Path(text).exists() else [place]
    return tuple(found)


def _known_encoding(name: str) -> str:
    try:
        "".encode(name)
    except (LookupError, ValueError):
        raise ValueError(
            f"expected the name of an encoding, such as utf-8, cp1252, cp1251 or gb18030; found {name!r}"
        ) from None
    return name


KRange = Annotated[str, BeforeValidator(_as_text), AfterValidator(_checked_range)]
Encoding = Annotated[str, AfterValidator(_known_encoding)]
Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
Device = Literal["auto", "cpu", "gpu"]
Precision = Literal["float32", "tf32", "float16"]
Algorithm = Literal["ward", "spectral", "hdbscan"]
EngineName = Literal["auto", "tensorflow", "ncnn"]
Pooling = Literal["gem-4-5", "gem", "max", "average", "flatten"]
ExportFormat = Literal["folders", "tensorboard", "fiftyone", "csv", "parquet", "json", "embeddings", "labels"]
Link = Literal["symlink", "copy", "hard"]
AbsolutePath = Annotated[Path, BeforeValidator(_not_empty), AfterValidator(_absolute)]
# A path, or an address.
Place = Annotated[Path | str, BeforeValidator(_not_empty), AfterValidator(_place)]


# What ran the network, the version of decoding, and the features, where a record or a model names none: there was no
# other one then.
EARLIER_ENGINE: EngineName = "tensorflow"
EARLIER_DECODING = 2
EARLIER_FEATURES = "vgg16"

_DEFAULT_RANGE = "2:15"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class DecodingConfig(_Section):
    """The limits within which a picture is decoded."""

    max_pixels: int = Field(
        178_956_970,
        ge=1,
        le=10_000_000_000,
        description="Refuse pictures whose header states more pixels than this. Decoding takes up to 24 bytes a pixel, "
        "for a few formats 48; how many pictures are decoded at once follows from the free memory.",
    )
    max_decode_seconds: float = Field(
        60,
        gt=0,
        le=86_400,
        description="Give up a picture that is not decoded after this many seconds. Only pictures of unusual formats, "
        "sizes and structures are timed; the others take some seconds at most.",
    )


class PicturesConfig(DecodingConfig):
    """The pictures that a job reads."""

    images: Annotated[tuple[Place, ...], BeforeValidator(_places)] = Field(
        (),
        description="Folders (read recursively), image files, tar files (also several, as in shards/{000..099}.tar), "
        "and addresses of any of these, such as s3://bucket/prefix.",
    )
    input_list: AbsolutePath | None = Field(
        None,
        description="Text file that names image files, one on each line (or separated by NUL bytes), by paths or "
        "addresses; relative names start from the folder of this file.",
    )

    @field_serializer("images", when_used="json")
    def _without_secrets(self, images: tuple[Path | str, ...]) -> list[str]:
        return [public(str(place)) for place in images]

    def paths(self) -> tuple[Path, ...]:
        """Return those of the named pictures and folders that are paths."""
        return tuple(place for place in self.images if isinstance(place, Path))

    def named(self) -> tuple[Path, ...]:
        """Return every path that is read."""
        return (*self.paths(), *([] if self.input_list is None else [self.input_list]))


class InputConfig(PicturesConfig):
    """The pictures that a job reads, and their labels."""

    labels: AbsolutePath | None = Field(None, description="CSV of labels with one row for each file.")
    file_col: str = Field("file", description="Column of the labels CSV that names the file.")
    label_col: str = Field("label", description="Column of the labels CSV that holds the label.")
    labels_encoding: Encoding | None = Field(
        None,
        description="Encoding of the labels CSV, such as cp1251; by default UTF-8, or UTF-16 if the file begins with "
        "a byte-order mark of UTF-16. Its separator (comma, semicolon, tab or |) is found out.",
    )
    labels_from_folders: bool = Field(False, description="Use the name of a file's folder as its label.")

    def named(self) -> tuple[Path, ...]:
        """Return every path that is read."""
        return (*super().named(), *([] if self.labels is None else [self.labels]))

    @model_validator(mode="after")
    def _one_source_of_labels(self) -> InputConfig:
        if self.labels and self.labels_from_folders:
            raise ValueError("labels come from a CSV or from the folders, not both; give only one of them")
        return self


class NetworkConfig(_Section):
    """The weights of the network, and how it computes."""

    engine: EngineName = Field(
        "auto",
        description="What runs the networks. auto is ncnn on the CPU, if it is installed and runs all of them, because "
        "it is faster, and tensorflow in all other cases. Their embeddings differ slightly, so the store keeps "
        "them apart.",
    )
    weights: AbsolutePath | None = Field(
        None,
        description="VGG16 weights without top: Keras 3 .weights.h5, or the legacy .h5 that Keras downloads.",
    )
    batch_size: Annotated[int, Field(ge=1, le=65_536)] | None = Field(
        None,
        description="Images that go through the network together; by default 32, and on a GPU as many as fit its "
        "memory.",
    )
    precision: Precision | None = Field(
        None,
        description="Number format in which the network computes: float32; on a GPU also tf32 (its default) or "
        "float16.",
    )


_VGG16, _VGG16_SIDE = "vgg16", 224


class PixelsConfig(NetworkConfig):
    """How a picture becomes the square of pixels that the network reads."""

    image_size: Annotated[int, Field(ge=32, le=2048)] | None = Field(
        None,
        description="Side of the square that the network sees, in pixels; by default that for which its weights were "
        f"made: {_VGG16_SIDE} for VGG16, 260 for EfficientNet-Lite2.",
    )
    resize: Literal["bilinear", "nearest"] = Field(
        "bilinear", description="bilinear (with antialiasing), or nearest as Keras's load_img does."
    )
    fit: Literal["stretch", "crop"] = Field(
        "crop", description="crop cuts out the square in the picture's middle; stretch makes the whole picture square."
    )
    # Part of the key of every embedding that the store keeps: there is a new version when decoded pixels change.
    decoding: int = Field(
        3,
        ge=EARLIER_DECODING,
        le=3,
        description="Version of decoding: 3 decodes a large JPEG at a reduced size, with bilinear resizing, and "
        "applies colour profiles; 2 decodes every pixel and applies none, as earlier versions did.",
    )

    @property
    def side(self) -> int:
        """Side of the square in pixels; a network with a side of its own is given a config that names it."""
        return self.image_size or _VGG16_SIDE


class EmbedConfig(PixelsConfig):
    """How a picture becomes an embedding."""

    # By a rule, with a set held out: docs/recipe.md.
    features: str = Field(
        "vgg16:2+efficientnet-lite2",
        min_length=1,
        description="What describes a picture: the name of a network or of other features, or several joined by +, as "
        "in vgg16+efficientnet-lite2 (`gpu-cluster compare --help` lists them). vgg16 has the pooling of --pooling. "
        "Joined parts are scaled to unit length; a number after a colon is a part's weight, as in "
        "vgg16:2+efficientnet-lite2.",
    )
    pooling: Pooling = Field(
        "gem-4-5",
        description="How VGG16's feature maps become an embedding. gem-4-5 joins the generalised means of blocks 4 and "
        "5, each scaled to unit length (1,024 numbers). The others use block 5 only: its generalised mean (gem), its "
        "maximum (max) or its mean (average), 512 numbers each, or all its values (flatten, 25,088 numbers).",
    )

    @model_validator(mode="before")
    @classmethod
    def _pooling_in_name(cls, given: Any) -> Any:
        return pooling_apart(given) if isinstance(given, Mapping) else given


def feature_parts(features: str) -> tuple[tuple[str, str], ...]:
    """Return the name and the weight of each part of features, as they are written; a weight that is not is ''."""
    parts = (part.partition(":") for part in features.split("+"))
    return tuple((name.strip(), share.strip()) for name, _colon, share in parts)


def pooling_apart(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of embedding with the pooling of a name such as `vgg16-max` in its own option.

    Where the features have no VGG16, its options are what they are by default, whatever is said of them elsewhere.

    Raises
    ------
    ValueError
        When the features name a pooling, and the options have another way of naming it beside them.
    """
    features = options.get("features")
    if not isinstance(features, str):
        return dict(options)
    parts = feature_parts(features)
    if not any(name == _VGG16 or name.startswith(f"{_VGG16}-") for name, _share in parts):
        return {"pooling": EmbedConfig.model_fields["pooling"].default, "weights": None, **options}
    named = [name.removeprefix(f"{_VGG16}-") for name, _share in parts if name.startswith(f"{_VGG16}-")]
    if len(named) != 1 or named[0] not in get_args(Pooling):
        return dict(options)
    if "pooling" in options:
        raise ValueError(
            f"--features {features} names a pooling of VGG16, and --pooling names one too; found "
            f"{options['pooling']!r}: leave out one of them"
        )
    plain = "+".join(
        ":".join(filter(None, (_VGG16 if name == f"{_VGG16}-{named[0]}" else name, share))) for name, share in parts
    )
    return {**options, "features": plain, "pooling": named[0]}


class GivenConfig(_Section):
    """Embeddings that were computed elsewhere, in place of a network."""

    embeddings: AbsolutePath | None = Field(
        None,
        description="Embeddings that were computed elsewhere, which take the place of the network: a .npy file (n, d) "
        "with a list of names, or a Parquet file with the columns path and embedding (or vector).",
    )
    embedding_names: AbsolutePath | None = Field(
        None,
        description="Text file that names the picture of each row of a .npy file, one on each line (or separated by "
        "NUL bytes), by its path or by its file name; by default the file with the same name and the suffix .txt.",
    )
    # The record of such a run does not hold them, and must not be repeated with a network.
    embeddings_in_memory: bool = Field(
        False, description="Whether the embeddings are an array that a Python function was called with."
    )

    @property
    def is_given(self) -> bool:
        """Whether embeddings take the place of the network."""
        return self.embeddings is not None or self.embeddings_in_memory

    def named(self) -> tuple[Path, ...]:
        """Return every path that is read."""
        return tuple(path for path in (self.embeddings, self.embedding_names) if path is not None)

    @model_validator(mode="after")
    def _names_of_something(self) -> GivenConfig:
        if not self.is_given and self.embedding_names is not None:
            raise ValueError("--embedding-names names the rows of --embeddings, which is not given; give both")
        return self


class RunGivenConfig(GivenConfig):
    """The options of `GivenConfig`, and what computed the embeddings."""

    embedded_by: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="What computed the embeddings, such as 'DINOv3 ViT-B'; the report shows it.",
    )

    @model_validator(mode="after")
    def _made_something(self) -> RunGivenConfig:
        if not self.is_given and self.embedded_by is not None:
            raise ValueError("--embedded-by says what computed --embeddings, which is not given; give both")
        return self


class PredictNetworkConfig(NetworkConfig):
    """The weights of the network of a finished run, and how it computes."""

    features: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="What describes a picture: always the features of the run; others are refused, and both are shown.",
    )


class PlaceOfStoreConfig(_Section):
    """Where the store is."""

    cache: AbsolutePath | None = Field(
        None,
        description="Folder of the store, which keeps embeddings between runs; by default gpu-cluster in the user's "
        "cache folder.",
    )


class StoreConfig(PlaceOfStoreConfig):
    """The store, which keeps embeddings and scans between runs."""

    no_cache: bool = Field(
        False, description="Do not use the store: keep nothing between runs, and read nothing that was kept before."
    )
    # run.json does not record the next two options: a repeated run should use the store instead of computing again.
    force: bool = Field(
        False, exclude=True, description="Make everything again, even if the store holds it: embeddings, t-SNE, plots."
    )
    rehash: bool = Field(
        False,
        exclude=True,
        description="Read every file again, even if its path, size and times of change are those of an earlier run.",
    )
    shard_size: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        None,
        description="Pictures whose embeddings are written to the store together; a run that is killed loses at most "
        "this many. By default 256, on a GPU 4096.",
    )

    @model_validator(mode="after")
    def _one_wish(self) -> StoreConfig:
        if self.cache and self.no_cache:
            raise ValueError("a cache folder or no cache, not both; give only one of --cache and --no-cache")
        return self


class ExecutorConfig(_Section):
    """Where the pictures are scanned, embedded and projected."""

    # run.json does not record these options: they change no result, and a repeated run may be on other machines.
    workers: Annotated[int, Field(ge=1, le=4_096)] | None = Field(
        None,
        exclude=True,
        description="Work with so many processes on this machine (on GPUs, one a card), by Dask. With --scheduler: "
        "wait until so many workers have joined.",
    )
    scheduler: str | None = Field(
        None,
        min_length=1,
        exclude=True,
        description="Work with the workers of the Dask cluster whose scheduler has this address, such as "
        "tcp://node1:8786.",
    )
    scheduler_file: AbsolutePath | None = Field(
        None, exclude=True, description="The same, with the file that `dask scheduler --scheduler-file` writes."
    )

    @model_validator(mode="after")
    def _one_cluster(self) -> ExecutorConfig:
        if self.scheduler is not None and self.scheduler_file is not None:
            raise ValueError("a cluster is named by its address or by a file, not both; give only one of them")
        return self


class ReduceConfig(_Section):
    """How embeddings are reduced to the space that is clustered."""

    scaling: Literal["sqrt-l2", "l2", "minmax", "none"] = Field(
        "l2", description="Scaling before PCA: sqrt-l2 and l2 scale rows, minmax scales columns."
    )
    pca: Annotated[int, Field(ge=1, le=1_000_000)] | Literal["auto", "none"] = Field(
        "auto",
        description="Number of PCA components: a number, none, or auto (the square root of the number of images, at "
        "least 8 and at most 32).",
    )
    whitening: float = Field(
        0.35,
        ge=0,
        le=0.5,
        description="Divide every component by its variance to this power: 0.5 whitens fully, 0 does not whiten.",
    )
    normalize: bool = Field(True, description="Scale the rows to unit length after PCA.")


class SweepConfig(_Section):
    """Which numbers of clusters are tried, and how one is chosen."""

    k: Annotated[int, Field(ge=1, le=_MOST_KS)] | None = Field(
        None, description="Number of clusters; without this option, --select chooses it."
    )
    select: Literal["agreement", "elbow", "silhouette"] = Field(
        "agreement",
        description="Choose k where restarts of k-means agree most, at the knee of the inertia curve, or where the "
        "silhouette is highest.",
    )
    k_range: KRange | None = Field(
        None,
        description=f"Numbers of clusters to try, FIRST:LAST or FIRST:LAST:STEP, both ends included; by default "
        f"{_DEFAULT_RANGE}, cut to the number of images.",
    )
    default_range: KRange = Field(_DEFAULT_RANGE, description="The range that is used when none is given.")
    sweep_sample: int = Field(
        20_000,
        ge=2,
        le=MOST_SAMPLED,
        description="For more images than this, run the restarts of k-means on a random sample of this size (same "
        "seed, same sample), and go on with all images from the best restart. Restarts on fewer than 20,000 images are "
        "compared after a few iterations with 20,000.",
    )


class RunSweepConfig(SweepConfig):
    """The options of `SweepConfig`, and the space in which the numbers are tried."""

    sweep_space: Literal["projection", "scaled"] = Field(
        "projection", description="Sweep in the clustered space, or on the scaled columns before PCA."
    )


class ClusterConfig(_Section):
    """How k-means runs, in the sweep and for the final clusters."""

    n_init: int = Field(
        10, ge=1, le=10_000, description="Restarts of k-means; the one with the lowest inertia is used."
    )
    max_iter: int = Field(300, ge=1, le=1_000_000, description="Largest number of iterations of one restart.")
    tol: float = Field(
        1e-4, ge=0, le=1, description="A restart ends when the centres move less than this, relative to the variance."
    )


class ScoreConfig(_Section):
    """How a clustering is judged."""

    silhouette_sample: int = Field(
        20_000,
        ge=2,
        le=MOST_SAMPLED,
        description="For more images than this, compute the silhouette on a random sample of this size (same seed, "
        "same sample).",
    )


class RunScoreConfig(ScoreConfig):
    """The options of `ScoreConfig`, and a share of the images to score separately."""

    holdout: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="Also score on a random share of the images, as the notebook did with 0.2."
    )


class HandedOnConfig(_Section):
    """How results are written that are handed on."""

    portable: bool = Field(
        False,
        description="Write no absolute path into the results, so that they can be handed on: the report shows its "
        "small copies of the pictures without links, and run.json has no paths. The terminal may still show paths.",
    )
    safe_csv: bool = Field(
        False,
        description="Write CSV files that a spreadsheet can open safely: an apostrophe before each text that begins "
        "with = + - @, and every cell in quotes.",
    )


class OutputConfig(HandedOnConfig):
    """Where the results go."""

    # run.json does not record these options: a repeated run must not take the place of the first one.
    out: AbsolutePath | None = Field(
        None,
        exclude=True,
        description="Run folder; by default runs/<time>-<name>. If an earlier run has this name, it is moved to NAME.1 "
        "(or NAME.2, ...) when the new run is complete.",
    )
    overwrite: bool = Field(
        False,
        exclude=True,
        description="Replace an earlier run of the name --out, and do not keep it. One that holds any file that the "
        "run did not write is refused.",
    )


class ReportConfig(OutputConfig):
    """Where the results go, and how they are shown."""

    layout_sample: int = Field(
        5_000,
        ge=5,
        le=1_000_000,
        description="For more images than this, compute the t-SNE of the report on a random sample of this size (same "
        "seed, same sample).",
    )
    thumbnails: int = Field(
        60, ge=1, le=10_000, description="Largest number of thumbnails on the contact sheet of a cluster."
    )


class PredictionReportConfig(HandedOnConfig):
    """How predictions are shown."""

    report: bool = Field(
        False,
        description="Also write a page beside the table, with the suffix .html: where the new pictures went, and which "
        "are far from their group.",
    )


class ComparedConfig(_Section):
    """What `compare` compares; an empty tuple means its defaults."""

    features: Names = Field((), description="Kinds of features, separated by commas.")
    algorithms: Names = Field((), description="Algorithms, separated by commas.")


class ExportedConfig(_Section):
    """What is exported of a finished run, and how."""

    to: ExportFormat = Field(
        "folders",
        description="The form of the export. folders: a folder for each group with links to its pictures (or copies); "
        "csv, parquet, json: one table of all pictures; labels: a CSV of path and group that --labels of run reads; "
        "embeddings: .npy and Parquet; tensorboard: files of its Embedding Projector; fiftyone: a dataset of "
        "FiftyOne.",
    )
    link: Link | None = Field(
        None,
        description="How pictures get into the folders: symlink (the default; takes no room, and breaks if the "
        "pictures are moved), copy, or hard (a second name of the same file on the same disk).",
    )
    names: AbsolutePath | None = Field(
        None,
        description="CSV with the columns cluster and name, which gives groups names; groups with the same name become "
        "one. By default the number, and the label that at least half of its labelled pictures have, if there is one.",
    )
    root: AbsolutePath | None = Field(
        None, description="Folder that holds the pictures now, if they were moved since the run."
    )
    overwrite: bool = Field(
        False,
        description="Replace an earlier export of the same name; one that holds anything else, or that was changed, "
        "is refused.",
    )
    dry_run: bool = Field(False, description="Print what would be done, and write nothing.")
    safe_csv: bool = Field(
        False,
        description="Write a CSV that a spreadsheet can open safely: an apostrophe before each text that begins with "
        "= + - @, and every cell in quotes.",
    )

    @model_validator(mode="after")
    def _fits_the_form(self) -> ExportedConfig:
        if self.link is not None and self.to != "folders":
            raise ValueError(f"--link belongs to --to folders; found --to {self.to}: leave out one of them")
        if self.safe_csv and self.to != "csv":
            raise ValueError(f"--safe-csv belongs to --to csv; found --to {self.to}: leave out one of them")
        if self.names is not None and self.to == "embeddings":
            raise ValueError("--names names groups, and --to embeddings writes only their numbers; leave out --names")
        if self.root is not None and self.to not in ("folders", "tensorboard", "fiftyone"):
            raise ValueError(f"--root says where pictures are, and --to {self.to} looks at none; leave out --root")
        return self


class CommandConfig(_Section):
    """The config of a command; it consists of the sections that the command needs."""


class JobConfig(CommandConfig):
    """What every job that embeds pictures needs to begin."""

    device: Device = Field(
        "auto", description="auto uses a GPU if one can be used, else the CPU; gpu never falls back to the CPU."
    )
    input: DecodingConfig = DecodingConfig()
    embed: NetworkConfig = NetworkConfig()
    store: StoreConfig = StoreConfig()

    @model_validator(mode="after")
    def _engine_of_the_device(self) -> Self:
        if self.device == "gpu" and self.embed.engine == "ncnn":
            raise ValueError(
                "--engine ncnn computes on the CPU only; found --device gpu: leave out one of them, or use --device cpu"
            )
        return self


class TolerantConfig(JobConfig):
    """The config of a job that leaves out the files that it cannot read and goes on with the others."""

    max_bad_fraction: float = Field(
        0.5, ge=0, le=1, description="The exit code is 3 when a larger share of the pictures than this is unreadable."
    )
    input: PicturesConfig = PicturesConfig()


class ClusteringConfig(_Section):
    """The options for turning embeddings into clusters and scores."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        0, description="Seed of every random number; the same seed repeats a run."
    )
    reduce: ReduceConfig = ReduceConfig()
    sweep: SweepConfig = SweepConfig()
    cluster: ClusterConfig = ClusterConfig()
    score: ScoreConfig = ScoreConfig()


class RunConfig(ClusteringConfig, TolerantConfig):
    """The config of the job `run`. `RunConfig()` is the default preset on the sample set."""

    preset: Literal["default", "notebook"] = Field(
        "default",
        description="A set of defaults: default, or notebook, the published notebook that this project started from.",
    )
    input: InputConfig = InputConfig()
    embed: EmbedConfig = EmbedConfig()
    given: RunGivenConfig = RunGivenConfig()
    sweep: RunSweepConfig = RunSweepConfig()
    score: RunScoreConfig = RunScoreConfig()
    report: ReportConfig = ReportConfig()
    executor: ExecutorConfig = ExecutorConfig()


class CompareConfig(ClusteringConfig, TolerantConfig):
    """The config of the job `compare`.

    It has no `pooling`, because poolings are among the features that it compares, and no `sweep_space`, because it
    sweeps in the space that it clusters.
    """

    input: InputConfig = InputConfig()
    embed: PixelsConfig = PixelsConfig()
    report: OutputConfig = OutputConfig()
    compare: ComparedConfig = ComparedConfig()


class PredictConfig(TolerantConfig):
    """The config of the job `predict`; the options that change the embeddings are read from the finished run."""

    given: GivenConfig = GivenConfig()
    embed: PredictNetworkConfig = PredictNetworkConfig()
    report: PredictionReportConfig = PredictionReportConfig()
    executor: ExecutorConfig = ExecutorConfig()


class EmbedJobConfig(JobConfig):
    """The config of the job `embed`, which is available from Python only."""

    embed: EmbedConfig = EmbedConfig()
    executor: ExecutorConfig = ExecutorConfig()


class ExportConfig(CommandConfig):
    """The config of the job `export`."""

    export: ExportedConfig = ExportedConfig()
    given: GivenConfig = GivenConfig()
    store: PlaceOfStoreConfig = PlaceOfStoreConfig()

    @model_validator(mode="after")
    def _needs_embeddings(self) -> ExportConfig:
        to = self.export.to
        given = {"--cache": self.store.cache, "--embeddings": self.given.embeddings}
        unused = [flag for flag, value in given.items() if value is not None]
        if unused and to not in ("tensorboard", "embeddings"):
            raise ValueError(f"{unused[0]} says where embeddings are, and --to {to} needs none; leave out {unused[0]}")
        return self


# The config class of each job that has one, by the name of the job's command.
COMMANDS: Mapping[str, type[CommandConfig]] = {
    "run": RunConfig,
    "compare": CompareConfig,
    "predict": PredictConfig,
    "embed": EmbedJobConfig,
    "export": ExportConfig,
}

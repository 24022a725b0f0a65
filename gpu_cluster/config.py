"""The options of every command: one frozen model a section, one a command made of the sections that it needs.

Each option, its default and its description is declared here, once; the command line, the Python functions, TOML files
and `run.json` read it from here. A section of one command may be a smaller one of another: what a command lacks, it
refuses. Must not know where options come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

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


def _as_text(ks: Any) -> Any:
    """Return Python's `range(2, 16)` as the `2:15` of the command line."""
    if not isinstance(ks, range):
        return ks
    if not ks or ks.step < 1:
        raise ValueError(f"a range of k goes upwards and is not empty; found {ks}")
    return f"{ks[0]}:{ks[-1]}" + ("" if ks.step == 1 else f":{ks.step}")


def _checked_range(text: str) -> str:
    parse_k_range(text)
    return text


def _names(given: Any) -> Any:
    """Part names that are given as one text, as on the command line, at their commas."""
    return tuple(name.strip() for name in given.split(",") if name.strip()) if isinstance(given, str) else given


def _not_empty(path: Any) -> Any:
    if path == "":
        raise ValueError(f"a path is empty; found {path!r}")
    return path


def _absolute(path: Path) -> Path:
    # run.json repeats a run from any folder, so the paths in it cannot depend on one.
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        # No user of that name: a file whose own name begins with a tilde.
        return path.absolute()


KRange = Annotated[str, BeforeValidator(_as_text), AfterValidator(_checked_range)]
Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
Device = Literal["auto", "cpu", "gpu"]
Precision = Literal["float32", "tf32", "float16"]
Algorithm = Literal["ward", "spectral", "hdbscan"]
Pooling = Literal["gem-4-5", "gem", "max", "average", "flatten"]
AbsolutePath = Annotated[Path, BeforeValidator(_not_empty), AfterValidator(_absolute)]


_DEFAULT_RANGE = "2:15"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PixelLimit(_Section):
    """Which pictures are too large."""

    max_pixels: int = Field(
        178_956_970,
        ge=1,
        description="Refuse, by their header, pictures of more pixels. Decoding one takes up to 13 bytes a pixel, and "
        "as many are decoded at once as there are cores.",
    )


class PicturesConfig(PixelLimit):
    """Which pictures."""

    images: tuple[AbsolutePath, ...] = Field((), description="Folders (read recursively) and image files.")
    input_list: AbsolutePath | None = Field(
        None,
        description="Text file that names image files, one a line (or separated by NUL bytes), relative to itself.",
    )

    def named(self) -> tuple[Path, ...]:
        """Return every path that is read."""
        return (*self.images, *([] if self.input_list is None else [self.input_list]))


class InputConfig(PicturesConfig):
    """Which pictures, and what is known about them."""

    labels: AbsolutePath | None = Field(None, description="CSV of labels, one row a file.")
    file_col: str = Field("file", description="Column of the labels CSV that names the file.")
    label_col: str = Field("label", description="Column of the labels CSV that holds the label.")
    labels_from_folders: bool = Field(False, description="Take the name of a file's folder as its label.")

    def named(self) -> tuple[Path, ...]:
        """Return every path that is read."""
        return (*super().named(), *([] if self.labels is None else [self.labels]))

    @model_validator(mode="after")
    def _one_source_of_labels(self) -> InputConfig:
        if self.labels and self.labels_from_folders:
            raise ValueError("labels come from a CSV or from the folders, not both; give only one of them")
        return self


class NetworkConfig(_Section):
    """What the network runs with."""

    weights: AbsolutePath | None = Field(
        None,
        description="VGG16 weights without top: Keras 3 .weights.h5, or the legacy .h5 that Keras downloads.",
    )
    batch_size: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Images that go through the network together; by default 32, on a GPU what fits it."
    )
    precision: Precision | None = Field(
        None, description="What the network computes in: float32, on a GPU also tf32 (its default) or float16."
    )


class PixelsConfig(NetworkConfig):
    """How a picture is brought to the network."""

    image_size: int = Field(224, ge=32, description="Side of the square that the network sees, in pixels.")
    resize: Literal["bilinear", "nearest"] = Field(
        "bilinear", description="bilinear (with antialiasing), or nearest as Keras's load_img does."
    )
    fit: Literal["stretch", "crop"] = Field(
        "crop", description="crop the square in a picture's middle, or stretch the whole of it to a square."
    )


class EmbedConfig(PixelsConfig):
    """How a picture becomes numbers."""

    pooling: Pooling = Field(
        "gem-4-5",
        description="How VGG16's feature maps become numbers: the generalised means of blocks 4 and 5, each of unit "
        "length, side by side (gem-4-5, 1,024 numbers), or of block 5 alone its generalised mean (gem), maximum (max) "
        "or mean (average), 512 numbers each, or all of it (flatten, 25,088).",
    )


class StoreConfig(_Section):
    """Where embeddings are kept between runs."""

    cache: AbsolutePath | None = Field(
        None,
        description="Folder that keeps embeddings between runs; by default gpu-cluster in the user's cache folder.",
    )
    no_cache: bool = Field(False, description="Keep nothing between runs, and use nothing that was kept.")
    # What repeats a run is no part of these two: what is kept must not be done over.
    force: bool = Field(False, exclude=True, description="Embed every picture again, whatever is kept.")
    rehash: bool = Field(
        False,
        exclude=True,
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


class RunSweepConfig(SweepConfig):
    """The same, and in which space."""

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


class RunScoreConfig(ScoreConfig):
    """The same, and on a share of the images."""

    holdout: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="Also score on a random share of the images, as the notebook did with 0.2."
    )


class OutputConfig(_Section):
    """Where the results go."""

    # No part of what repeats a run: that must not overwrite it.
    out: AbsolutePath | None = Field(None, exclude=True, description="Run folder; by default runs/<time>-<name>.")


class ReportConfig(OutputConfig):
    """Where the results go, and how they are shown."""

    layout_sample: int = Field(
        5_000, ge=5, description="Above this many images the t-SNE of the report is of a fixed seeded sample."
    )
    thumbnails: int = Field(60, ge=1, description="Most thumbnails on the contact sheet of a cluster.")


class ComparedConfig(_Section):
    """What `compare` compares; nothing is everything that it can."""

    features: Names = Field((), description="Kinds of features, separated by commas.")
    algorithms: Names = Field((), description="Algorithms, separated by commas.")


class JobConfig(_Section):
    """What every job needs to begin."""

    device: Device = Field("auto", description="auto takes a GPU where one can be used; gpu never falls back.")
    input: PixelLimit = PixelLimit()
    embed: NetworkConfig = NetworkConfig()
    store: StoreConfig = StoreConfig()


class TolerantConfig(JobConfig):
    """A job that goes on without the files that it cannot read."""

    max_bad_fraction: float = Field(
        0.5, ge=0, le=1, description="Largest share of unreadable files before the exit code is 3."
    )
    input: PicturesConfig = PicturesConfig()


class ClusteringConfig(_Section):
    """What turns embeddings into clusters and scores."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="Seed of everything random; repeats a run.")
    reduce: ReduceConfig = ReduceConfig()
    sweep: SweepConfig = SweepConfig()
    cluster: ClusterConfig = ClusterConfig()
    score: ScoreConfig = ScoreConfig()


class RunConfig(ClusteringConfig, TolerantConfig):
    """The job `run`. `RunConfig()` is the default preset on the sample set."""

    preset: Literal["default", "notebook"] = Field(
        "default", description="default, or notebook: the published recipe that the project began from."
    )
    input: InputConfig = InputConfig()
    embed: EmbedConfig = EmbedConfig()
    sweep: RunSweepConfig = RunSweepConfig()
    score: RunScoreConfig = RunScoreConfig()
    report: ReportConfig = ReportConfig()


class CompareConfig(ClusteringConfig, TolerantConfig):
    """The job `compare`. Its features are poolings too, and it sweeps in the space that it clusters."""

    input: InputConfig = InputConfig()
    embed: PixelsConfig = PixelsConfig()
    report: OutputConfig = OutputConfig()
    compare: ComparedConfig = ComparedConfig()


class PredictConfig(TolerantConfig):
    """The job `predict`; how pictures are embedded is what the run says."""


class EmbedJobConfig(JobConfig):
    """The job `embed`, of Python alone."""

    embed: EmbedConfig = EmbedConfig()


# Every command that has options of its own kind, by its name.
COMMANDS: Mapping[str, type[JobConfig]] = {
    "run": RunConfig,
    "compare": CompareConfig,
    "predict": PredictConfig,
    "embed": EmbedJobConfig,
}

"""The frozen records that flow from stage to stage.

n is the number of images that were embedded; a 'row' is the index of a file in the manifest, from 0. Arrays are on the
device of the run unless marked host. Must not know how any of it was computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from gpu_cluster.backend import Array, FloatArray, IntArray
from gpu_cluster.config import CompareConfig, RunConfig, TolerantConfig
from gpu_cluster.manifest import Manifest


@dataclass(frozen=True)
class Embeddings:
    """What the network made of the pictures.

    Attributes
    ----------
    x : (n, d) float32
    rows : (n,) host; manifest row of each embedding, ascending
    bad : reason by manifest row, for files that could not be decoded
    n_computed : pictures that went through the network; the others were in the store, or are duplicates
    images_per_s : decoding and network together, after TensorFlow was loaded; None where nothing was computed
    precision, batch_size : what the network computed in, and how many images at once in the end
    """

    x: Array
    rows: IntArray
    bad: Mapping[int, str]
    n_computed: int
    images_per_s: float | None
    precision: str
    batch_size: int | None


@dataclass(frozen=True)
class Reduction:
    """What turns embeddings into the space that is clustered, fitted on some of them.

    Attributes
    ----------
    scaling : as `ReduceConfig.scaling`
    low, span : (d,) float32; least value and range of each column for `minmax`, else None
    mean : (d,) float32; of the scaled embeddings
    components : (c, d) float32; principal axes, two of them at least where two vary
    kept : components of the space; None where it is the scaled embeddings themselves
    divisors : (kept,) float32; what each component is divided by, None where by nothing
    normalize : whether rows end with unit length
    """

    scaling: str
    low: Array | None
    span: Array | None
    mean: Array
    components: Array
    kept: int | None
    divisors: Array | None
    normalize: bool


@dataclass(frozen=True)
class Projection:
    """The space that is clustered.

    Attributes
    ----------
    reduction : what made it
    x : (n, d) float32
    space : what was done to the embeddings, in words
    pcs : (n, 2) float32; first two principal components of the scaled embeddings, for plots
    pcs_variance_ratio : share of the scaled embeddings' variance along each of the two
    sweep_x, sweep_space : the same for the sweep over k; x and space themselves unless the sweep uses another space
    """

    reduction: Reduction
    x: Array
    space: str
    pcs: Array
    pcs_variance_ratio: tuple[float, float]
    sweep_x: Array
    sweep_space: str


@dataclass(frozen=True)
class SweepPoint:
    """One k of a sweep.

    Attributes
    ----------
    silhouette : mean; None where it is not defined
    agreement : mean adjusted Rand index of the best restart with the others; None with one restart alone
    """

    k: int
    inertia: float
    silhouette: float | None
    agreement: float | None
    n_iter: int
    elapsed_s: float


class KChoice(StrEnum):
    """How the number of clusters was chosen; the values stand in `metrics.json`."""

    GIVEN = "given"
    ONLY_ONE = "only k tried"
    AGREEMENT = "agreement"
    SILHOUETTE = "silhouette"
    KNEE = "knee"
    #: There was no clear knee.
    CHORD = "farthest from the chord"


@dataclass(frozen=True)
class Sweep:
    """Every k that was tried, and the one chosen; `doubts` are sentences on what speaks against it."""

    points: tuple[SweepPoint, ...]
    best_k: int
    chosen_by: KChoice
    doubts: tuple[str, ...] = ()

    @property
    def agreement(self) -> float | None:
        """How far restarts agree at the k chosen; None where it was not swept, or with one restart alone."""
        return next((point.agreement for point in self.points if point.k == self.best_k), None)


@dataclass(frozen=True)
class Clustering:
    """The final k-means. Clusters are numbered from 0, largest first; every one holds at least one image.

    Attributes
    ----------
    labels : (n,) int64
    centres : (k, d) float32
    distances : (n,) float32; Euclidean, of each row to its centre
    sizes : (k,) host
    medoids : (k,) host; the row of x (not of the manifest) nearest to each centre
    inertia : sum of squared distances
    k_asked : clusters asked for; more than k where there were not as many distinct images
    """

    labels: Array
    centres: Array
    distances: Array
    sizes: IntArray
    medoids: IntArray
    inertia: float
    n_iter: int
    k_asked: int

    @property
    def k(self) -> int:
        """Number of clusters."""
        return len(self.sizes)


@dataclass(frozen=True)
class Contingency:
    """Counts of images by class (rows) and cluster (columns)."""

    classes: tuple[str, ...]
    counts: IntArray

    def most_frequent(self, cluster: int, most: int = 1) -> list[tuple[str, int]]:
        """Return the labels of a cluster and their counts, the most frequent first; none that is not there."""
        counts = self.counts[:, cluster]
        order = np.argsort(-counts, kind="stable")[:most]
        return [(self.classes[row], int(counts[row])) for row in order if counts[row]]


@dataclass(frozen=True)
class Scores:
    """A clustering in numbers; None marks what is not defined.

    Attributes
    ----------
    internal : silhouette, davies_bouldin, calinski_harabasz, inertia
    external : homogeneity, completeness, v_measure, adjusted_rand, normalized_mutual_info, accuracy; or None
    n_labelled : images that the external scores were taken on
    contingency : class by cluster; None without labels
    silhouettes : (n,) float32, host; NaN where not taken
    n_silhouette : images that the silhouette was taken on
    holdout : n, silhouette and homogeneity on a random share of the images; None unless asked for
    """

    internal: Mapping[str, float | None]
    external: Mapping[str, float | None] | None
    n_labelled: int
    contingency: Contingency | None
    silhouettes: FloatArray
    n_silhouette: int
    holdout: Mapping[str, float | None] | None = None


@dataclass(frozen=True)
class Truth:
    """The labels of the images, encoded; they are only compared with what came out.

    Attributes
    ----------
    classes : the labels there are, in order
    codes : (n,) host; index into `classes` of each image's label, -1 for an image without one
    """

    classes: tuple[str, ...]
    codes: IntArray


def encode_labels(manifest: Manifest, rows: IntArray) -> Truth | None:
    """Return the labels of some rows of a manifest as codes; None where nothing is labelled."""
    if manifest.labels is None:
        return None
    labels = [manifest.labels[row] for row in rows]
    classes = tuple(sorted({label for label in labels if label is not None}))
    code_of: dict[str | None, int] = {label: code for code, label in enumerate(classes)}
    return Truth(classes, np.array([code_of.get(label, -1) for label in labels], dtype=np.int64))


@dataclass(frozen=True)
class NearDuplicate:
    """Two pictures that show nearly the same: their rows of x, and the cosine of their embeddings."""

    row: int
    other: int
    cosine: float


@dataclass(frozen=True)
class Findings:
    """What the stages of a job found, in their order.

    Attributes
    ----------
    near_duplicates : pictures that show nearly the same, most alike first
    tsne : (n, 2) float32, host; where each picture lies in the plane of t-SNE
    """

    embeddings: Embeddings
    projection: Projection
    sweep: Sweep
    clustering: Clustering
    scores: Scores
    near_duplicates: tuple[NearDuplicate, ...]
    tsne: FloatArray


@dataclass(frozen=True)
class Compared:
    """One kind of features grouped by one algorithm; None marks what is not defined.

    Attributes
    ----------
    features, algorithm : their names
    space : what was done to the features, in words
    features_s : seconds to compute and reduce the features; None where the store held some of them
    n_images : images grouped; fewer than before where files turned out bad meanwhile
    k : number of groups found, noise not among them
    noise : share of the images that the algorithm put into no group; for the scores they are a group of their own
    silhouette, davies_bouldin : in the features' own space, so that they compare algorithms and not features
    stability : mean adjusted Rand index with the groups of random subsamples; None where all is one group, or noise
    homogeneity, adjusted_rand, normalized_mutual_info : against the labels
    cluster_s : seconds to group all images once
    reason : why it was left out, or how it failed
    """

    features: str
    algorithm: str
    space: str
    features_s: float | None = None
    n_images: int | None = None
    k: int | None = None
    noise: float | None = None
    silhouette: float | None = None
    davies_bouldin: float | None = None
    stability: float | None = None
    homogeneity: float | None = None
    adjusted_rand: float | None = None
    normalized_mutual_info: float | None = None
    cluster_s: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Comparison:
    """What `compare` found, one row a pair of features and algorithm, and the folder it left behind."""

    folder: Path
    config: CompareConfig
    manifest: Manifest
    rows: tuple[Compared, ...]


@dataclass(frozen=True)
class JobRecord:
    """What a finished job records of itself.

    Attributes
    ----------
    weights : path and sha256 of the weights
    device : what the device and the engine say of themselves
    device_reason : why this device
    stages_s : seconds by stage
    notices : what the user was told on the way
    """

    config: TolerantConfig
    manifest: Manifest
    weights: tuple[Path, str]
    device: Mapping[str, Any]
    device_reason: str
    stages_s: Mapping[str, float]
    notices: Sequence[str]


@dataclass(frozen=True)
class RunResult(JobRecord):
    """Everything a finished run knows, and the folder it left behind.

    Attributes
    ----------
    findings : None where no file could be decoded
    """

    config: RunConfig
    folder: Path
    findings: Findings | None

    @property
    def exit_code(self) -> int:
        """0, or 3 where more files were bad than `max_bad_fraction` allows."""
        return 3 if self.manifest.too_many_bad(self.config.max_bad_fraction) else 0

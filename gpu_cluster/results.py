"""The frozen records that the stages pass to each other.

n is the number of images that were embedded; a 'row' is the index of a file in the manifest, from 0. Arrays are on the
device of the run unless marked host. This module must not know how any of the values were computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from gpu_cluster.backend import Array, FloatArray, IntArray, KMeansFit, Rows
from gpu_cluster.config import CompareConfig, RunConfig, TolerantConfig
from gpu_cluster.manifest import Manifest
from gpu_cluster.records import Record
from gpu_cluster.verdict import Verdict, judge


@dataclass(frozen=True, repr=False)
class Embeddings(Record):
    """The embeddings of the pictures.

    Attributes
    ----------
    x : (n, d) float32; held on the device, or read from the store in blocks
    rows : (n,) host; manifest row of each embedding, ascending
    bad : maps a manifest row to the reason why its file has no embedding
    n_computed : pictures that were embedded now; the others were in the store, or are duplicates
    n_whole : those of them of which the store held no part of the features either
    images_per_s : speed of decoding and network together, without loading TensorFlow; None if nothing was computed
    precision : number format in which the network computes; None if none ran
    batch_size : number of images in a batch at the end of the job; None if nothing was computed
    """

    x: Rows
    rows: IntArray
    bad: Mapping[int, str]
    n_computed: int
    images_per_s: float | None
    precision: str | None
    batch_size: int | None
    n_whole: int = 0


@dataclass(frozen=True, repr=False)
class Reduction(Record):
    """How embeddings become the space that is clustered; fitted on those of a run, and applied to others by `predict`.

    Attributes
    ----------
    scaling : as `ReduceConfig.scaling`
    low, span : (d,) float32; smallest value and range of each column for `minmax`, else None
    mean : (d,) float32; mean of the scaled embeddings
    components : (c, d) float32; principal axes; at least two, if the embeddings vary along two
    kept : number of components in the space; None if the space is the scaled embeddings themselves
    divisors : (kept,) float32; the divisor of each component; None if they are not divided
    normalize : whether rows are scaled to unit length at the end
    """

    scaling: str
    low: Array | None
    span: Array | None
    mean: Array
    components: Array
    kept: int | None
    divisors: Array | None
    normalize: bool


@dataclass(frozen=True, repr=False)
class Projection(Record):
    """The space that is clustered.

    Attributes
    ----------
    reduction : how the embeddings became this space
    x : (n, m) float32
    space : what was done to the embeddings, in words
    pcs : (n, 2) float32; first two principal components of the scaled embeddings, for plots
    pcs_variance_ratio : share of the scaled embeddings' variance along each of the two
    pca_solver : what computed the principal components, in words
    sweep_x, sweep_space : like `x` and `space`, for the sweep over k; the same unless the sweep uses another space
    """

    reduction: Reduction
    x: Array
    space: str
    pcs: Array
    pcs_variance_ratio: tuple[float, float]
    pca_solver: str
    sweep_x: Array
    sweep_space: str


@dataclass(frozen=True)
class SweepPoint:
    """One k of a sweep.

    Attributes
    ----------
    silhouette : mean; None if it is not defined
    agreement : mean adjusted Rand index of the best restart with the others; None with only one restart
    n_iter : iterations of the best restart and, if it was carried on, those over all rows
    elapsed_s : seconds for this k; of what is computed for several k at once, a share by the number of clusters
    """

    k: int
    inertia: float
    silhouette: float | None
    agreement: float | None
    n_iter: int
    elapsed_s: float


class KChoice(StrEnum):
    """How the number of clusters was chosen; `metrics.json` contains these values."""

    GIVEN = "given"
    ONLY_ONE = "only k tried"
    AGREEMENT = "agreement"
    SILHOUETTE = "silhouette"
    KNEE = "knee"
    #: There was no clear knee, so the k farthest from the chord was chosen.
    CHORD = "farthest from the chord"


@dataclass(frozen=True, repr=False)
class Sweep(Record):
    """Every k that was tried, and the chosen one.

    Attributes
    ----------
    doubts : the reasons to doubt the chosen k, in words
    fit : the centres (k, m) found for the chosen k, device; None if this k was not tried
    n_restarted : number of images on which the restarts ran
    n_agreement : number of images on which the agreement of the restarts was computed
    n_silhouette : number of images that the silhouettes were computed on
    """

    points: tuple[SweepPoint, ...]
    best_k: int
    chosen_by: KChoice
    doubts: tuple[str, ...] = ()
    fit: KMeansFit | None = None
    n_restarted: int = 0
    n_agreement: int = 0
    n_silhouette: int = 0

    @property
    def agreement(self) -> float | None:
        """Agreement of the restarts at the chosen k; None if this k was not in the sweep, or with only one restart."""
        return next((point.agreement for point in self.points if point.k == self.best_k), None)


@dataclass(frozen=True, repr=False)
class Clustering(Record):
    """The final clusters of k-means, or in `compare` the groups of any algorithm.

    Clusters are numbered from 0, largest first; every cluster holds at least one image.

    Attributes
    ----------
    labels : (n,) int64
    centres : (k, m) float32
    distances : (n,) float32; Euclidean distance of each row to its centre
    sizes : (k,) host
    medoids : (k,) host; the row of x (not of the manifest) nearest to each centre
    inertia : sum of squared distances
    k_asked : number of clusters asked for; it is more than k if there are fewer distinct images
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


@dataclass(frozen=True, repr=False)
class Contingency(Record):
    """Counts of images by class (rows) and cluster (columns)."""

    classes: tuple[str, ...]
    counts: IntArray

    def most_frequent(self, cluster: int, most: int = 1) -> list[tuple[str, int]]:
        """Return up to `most` labels of a cluster and their counts, the most frequent first; no label with count 0."""
        counts = self.counts[:, cluster]
        order = np.argsort(-counts, kind="stable")[:most]
        return [(self.classes[row], int(counts[row])) for row in order if counts[row]]

    def n_labelled(self, cluster: int) -> int:
        """Return how many pictures of a cluster have a label."""
        return int(self.counts[:, cluster].sum())

    def share(self, cluster: int, n: int) -> float:
        """Return what share of the labelled pictures of a cluster are n of them: every percentage shown is this one."""
        return n / max(1, self.n_labelled(cluster))

    def in_words(self, cluster: int, size: int) -> str:
        """Return the most frequent label of a cluster of `size` pictures, and its share; '' if none has a label.

        It is `mostly` this label from 50% on, and `most often` below.
        """
        for label, n in self.most_frequent(cluster):
            percent, n_labelled = f"{self.share(cluster, n):.0%}", self.n_labelled(cluster)
            of_these = "" if n_labelled == size else f" of the {n_labelled:,} labelled"
            # The number that is shown decides, so that the word fits it.
            return f"{'mostly' if int(percent[:-1]) >= 50 else 'most often'} {label} ({percent}{of_these})"
        return ""


@dataclass(frozen=True, repr=False)
class Scores(Record):
    """The scores of a clustering; a score that is not defined is None.

    Attributes
    ----------
    internal : silhouette, davies_bouldin, calinski_harabasz, inertia
    external : homogeneity, completeness, v_measure, adjusted_rand, normalized_mutual_info, accuracy; or None
    n_labelled : number of images that the external scores were computed on
    contingency : class by cluster; None without labels
    silhouettes : (n,) float32, host; NaN where it was not computed
    n_silhouette : number of images that the silhouette was computed on
    holdout : n, silhouette and homogeneity on a random share of the images; None unless asked for
    """

    internal: Mapping[str, float | None]
    external: Mapping[str, float | None] | None
    n_labelled: int
    contingency: Contingency | None
    silhouettes: FloatArray
    n_silhouette: int
    holdout: Mapping[str, float | None] | None = None


@dataclass(frozen=True, repr=False)
class Truth(Record):
    """The labels of the images, encoded; they are only compared with the clusters.

    Attributes
    ----------
    classes : the distinct labels, in order
    codes : (n,) host; index into `classes` of each image's label, -1 for an image without one
    """

    classes: tuple[str, ...]
    codes: IntArray


def encode_labels(manifest: Manifest, rows: IntArray) -> Truth | None:
    """Return the labels of some rows of a manifest as codes; None if the manifest has no labels."""
    if manifest.labels is None:
        return None
    labels = [manifest.labels[row] for row in rows]
    classes = tuple(sorted({label for label in labels if label is not None}))
    code_of: dict[str | None, int] = {label: code for code, label in enumerate(classes)}
    return Truth(classes, np.array([code_of.get(label, -1) for label in labels], dtype=np.int64))


@dataclass(frozen=True)
class NearDuplicate:
    """A pair of near duplicates: their rows of x (not of the manifest), and the cosine of their embeddings."""

    row: int
    other: int
    cosine: float


@dataclass(frozen=True, repr=False)
class Findings(Record):
    """The results of the stages of `run`, in their order.

    Attributes
    ----------
    near_duplicates : pairs of near duplicates, most alike first
    tsne : (n, 2) float32, host; position of each picture in the t-SNE plane
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
    """One kind of features grouped by one algorithm; a value that is not defined is None.

    Attributes
    ----------
    features, algorithm : their names
    space : what was done to the features, in words
    features_s : seconds to compute and reduce the features; None if the store held some of them
    n_images : number of images grouped; fewer than in earlier rows if files turned out bad in the meantime
    k : number of groups found, not counting the noise
    noise : share of the images that the algorithm put into no group; the scores treat these images as one more group
    silhouette, davies_bouldin : in the features' own space, so that they compare algorithms and not features
    stability : mean adjusted Rand index with the groups of random subsamples; None if all is one group, or all is noise
    homogeneity, adjusted_rand, normalized_mutual_info : scores against the labels
    cluster_s : seconds to group all images once
    reason : why it was left out, or how it failed; None if it did neither
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


def _files(manifest: Manifest) -> str:
    counts = manifest.counts()
    others = f", {counts['passed_over']:,} passed over" if counts["passed_over"] else ""
    return f"{counts['found']:,} files found ({counts['bad']:,} bad{others})"


@dataclass(frozen=True, repr=False)
class Comparison(Record):
    """The result of `compare`: one row for each pair of features and algorithm, and the folder that it wrote.

    Attributes
    ----------
    earlier_run : where an earlier run of the folder's name was moved to; None if none was moved
    """

    folder: Path
    config: CompareConfig
    manifest: Manifest
    rows: tuple[Compared, ...]
    earlier_run: Path | None = None

    def __repr__(self) -> str:
        compared = ", ".join(dict.fromkeys(row.features for row in self.rows))
        counts = f"{len(self.rows)} rows, {_files(self.manifest)}"
        return f"<Comparison of {compared}: {counts}; folder {str(self.folder)!r}>"


@dataclass(frozen=True, repr=False)
class JobRecord(Record):
    """What a finished job records in `run.json`.

    Attributes
    ----------
    weights : path and sha256 of the weights of each network; empty for features without a network
    features : what described the pictures, part by part
    embeddings : the file of the embeddings that were given: its path, sha256 and size; None if a network ran
    device : facts about the device and the engine
    device_reason : why this device was chosen
    stages_s : seconds by stage
    notices : the notices that were reported while the job ran
    """

    config: TolerantConfig
    manifest: Manifest
    weights: Sequence[tuple[Path, str]]
    features: Sequence[Mapping[str, Any]]
    device: Mapping[str, Any]
    device_reason: str
    stages_s: Mapping[str, float]
    notices: Sequence[str]
    embeddings: Mapping[str, Any] | None = field(default=None, kw_only=True)


@dataclass(frozen=True, repr=False)
class RunResult(JobRecord):
    """The result of a finished run, and the folder that it wrote.

    Attributes
    ----------
    findings : None if no file could be decoded
    earlier_run : where an earlier run of the folder's name was moved to; None if none was moved
    view : makes of the folder the HTML that a notebook shows in place of the `repr`; None if it can make none
    """

    config: RunConfig
    folder: Path
    findings: Findings | None
    earlier_run: Path | None = None
    view: Callable[[Path], str | None] | None = field(default=None, kw_only=True)

    def __repr__(self) -> str:
        clusters = "no clusters" if self.findings is None else f"{self.findings.clustering.k} clusters"
        return f"<RunResult: {clusters}, {_files(self.manifest)}; folder {str(self.folder)!r}>"

    def _repr_html_(self) -> str | None:
        return None if self.view is None else self.view(self.folder)

    @property
    def verdict(self) -> Verdict:
        """Whether the groups are clear, weak or none; `print(result.verdict)` says it in a sentence."""
        if self.findings is None:
            return judge(0, 0, None)
        sweep = self.findings.sweep
        return judge(sweep.best_k, len(self.findings.embeddings.rows), sweep.agreement)

    @property
    def exit_code(self) -> int:
        """0, or 3 if more files were bad than `max_bad_fraction` allows."""
        return 3 if self.manifest.too_many_bad(self.config.max_bad_fraction) else 0

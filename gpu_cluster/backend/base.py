"""The seam between the stages and the engines: what a device must be able to do.

Stages call a `Backend` and never ask which one it is. Arrays that enter and leave are arrays of `Backend.xp` on its
device, unless a docstring says host. Must not know files, configs or reports.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

from gpu_cluster.config import Algorithm, Precision

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# An array of whichever library the backend computes with: NumPy's here, CuPy's on a card.
Array: TypeAlias = Any
HostArray: TypeAlias = "npt.NDArray[Any]"
# NumPy's, on the host.
FloatArray: TypeAlias = "npt.NDArray[np.floating[Any]]"
IntArray: TypeAlias = "npt.NDArray[np.integer[Any]]"


# Of Backend.group, the same on every device.
N_NEIGHBOURS = 10


def perplexity(n: int) -> float:
    """Return the perplexity of a t-SNE of n rows: 30, as van der Maaten and Hinton 2008 mostly have it, or less."""
    return min(30.0, (n - 1) / 3)


def smallest_group(n: int) -> int:
    """Return the rows that HDBSCAN takes for a group at least."""
    return max(5, n // 100)


@dataclass(frozen=True)
class PCAFit:
    """Principal axes of a matrix, strongest first.

    Attributes
    ----------
    mean : (d,) float32, device
    components : (m, d) float32, device; orthonormal rows, signs arbitrary
    explained_variance : (m,) float, host; variance along each axis, divisor n - 1
    total_variance : float; sum of the variances of all d columns
    """

    mean: Array
    components: Array
    explained_variance: HostArray
    total_variance: float


@dataclass(frozen=True)
class KMeansFit:
    """Centres that Lloyd's algorithm ended with, (k, d) on the device, and the iterations it took."""

    centres: Array
    n_iter: int


class Backend(ABC):
    """A device and the engines that compute on it."""

    name: str
    #: What the network may compute in, the default first.
    precisions: tuple[Precision, ...]
    #: Pictures whose embeddings are written together: some twenty seconds of work.
    shard_size: int

    @property
    @abstractmethod
    def xp(self) -> ModuleType:
        """The array API namespace of this device."""

    @property
    @abstractmethod
    def frames(self) -> ModuleType:
        """The data frame library of this device (pandas or cuDF)."""

    @abstractmethod
    def claim_device(self, matrix_bytes: int) -> None:
        """Set the device up for work on a matrix of this size; loads nothing that runs a network."""

    @abstractmethod
    def share_device_with(self, library: str) -> None:
        """Set up a library that runs networks (by its engine's name) to share the device; before it computes."""

    @abstractmethod
    def batch_size(self, image_size: int) -> int:
        """Return how many pictures of this side fit the network at once."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what the run ran on, for `run.json`: the device, its threads, the versions of its libraries."""

    @abstractmethod
    def from_dlpack(self, capsule: Any) -> Array:
        """Return what a DLPack capsule holds, on this device, as an array; read-only, valid while its owner lives.

        A capsule can be taken once.
        """

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until everything asked of the device is done."""

    @abstractmethod
    def free_bytes(self) -> int:
        """Return the free memory of the device."""

    @abstractmethod
    def peak_bytes(self) -> int:
        """Return the most memory that was in use at once: of the device, or of the process where that is the host."""

    @abstractmethod
    def to_host(self, array: Array) -> HostArray:
        """Return a NumPy array: the only way off the device."""

    @abstractmethod
    def from_host(self, array: HostArray) -> Array:
        """Return an array of this device: the only way onto it."""

    @abstractmethod
    def fit_pca(self, x: Array, n_components: int) -> PCAFit:
        """Fit the first `n_components` principal axes of x (n, d) float32 with an exact solver."""

    @abstractmethod
    def fit_kmeans(self, x: Array, starts: Array, *, max_iter: int, tol: float) -> KMeansFit:
        """Run Lloyd's algorithm once on x (n, d) float32 from the centres `starts` (k, d)."""

    @abstractmethod
    def group(self, x: Array, algorithm: Algorithm, *, k: int, seed: int) -> Array:
        """Return the labels (n,) that an algorithm other than k-means gives the rows of x (n, d) float32; -1 is noise.

        `ward` is agglomerative with Ward's linkage, `spectral` works on the graph of the 10 nearest neighbours, and
        `hdbscan` finds the number of groups itself: of at least 5 rows, and of a hundredth of them. Ward takes O(n^2)
        memory, the others O(n^2) time.
        """

    @abstractmethod
    def tsne(self, x: Array, *, seed: int) -> Array:
        """Return a t-SNE (n, 2) of x (n, d) float32, from 5 rows up, that starts from its principal components."""

    @abstractmethod
    def silhouette_samples(self, x: Array, labels: Array) -> Array:
        """Return the silhouette (n,) of each row of x (n, d) under labels (n,): 2 to n - 1 clusters.

        Takes O(n^2 d) time; memory stays below a fixed chunk.
        """

    @abstractmethod
    def label_scores(self, truth: HostArray, labels: Array) -> dict[str, float]:
        """Compare labels (n,) with the classes `truth` (n,) of small integers, host.

        Returns
        -------
        dict
            homogeneity, completeness, v_measure, adjusted_rand, normalized_mutual_info.
        """

"""The interface between the stages and the devices: what every device must be able to do.

Stages call a `Backend` and never ask which one it is. Arrays that enter and leave are arrays of `Backend.xp` on its
device, unless a docstring says host. This module must not know files, configs or reports.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from gpu_cluster.config import Algorithm, Precision

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    from gpu_cluster.backend.rows import Rows

# An array of the library that the backend computes with: NumPy on the CPU, CuPy on a GPU.
Array: TypeAlias = Any
HostArray: TypeAlias = "npt.NDArray[Any]"
# NumPy's, on the host.
FloatArray: TypeAlias = "npt.NDArray[np.floating[Any]]"
IntArray: TypeAlias = "npt.NDArray[np.integer[Any]]"
# What enters and what leaves one call of many (`Backend.each`).
Item = TypeVar("Item")
Found = TypeVar("Found")
# Scales rows (b, d) float32 of a matrix, each by itself, so that a block of rows can be scaled alone.
Scaling: TypeAlias = Callable[[Array], Array]


# Neighbours in the graph of `Backend.group`'s spectral clustering, the same on every device.
N_NEIGHBOURS = 10


def perplexity(n: int) -> float:
    """Return the perplexity for a t-SNE of n rows: 30, which van der Maaten and Hinton 2008 mostly use, or less."""
    return min(30.0, (n - 1) / 3)


def smallest_group(n: int) -> int:
    """Return the smallest number of rows that HDBSCAN accepts as a group."""
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
    solver : what computed them, in words
    """

    mean: Array
    components: Array
    explained_variance: HostArray
    total_variance: float
    solver: str


@dataclass(frozen=True)
class KMeansFit:
    """Centres that Lloyd's algorithm ended with, (k, d) on the device, and the iterations it took."""

    centres: Array
    n_iter: int


class Backend(ABC):
    """A device and the libraries that compute on it."""

    name: str
    #: Number formats in which the network can compute; the first is the default.
    precisions: tuple[Precision, ...]
    #: The engines that compute on it (see `embedding.engines`); the first that can run a network is the default.
    engines: tuple[str, ...]
    #: Pictures whose embeddings are written together: about twenty seconds of work.
    shard_size: int
    #: TensorFlow's name of the device on which its work is placed.
    tensorflow_device: str
    #: Whether its arrays take the host's memory.
    computes_on_host: bool
    #: Whether a batch of another size costs more than filling it up: on a GPU cuDNN chooses, and times, its algorithms
    #: again for each size of batch.
    pads_batches: bool

    def __reduce__(self) -> tuple[type[Backend], tuple[()]]:
        # In another process it is that process's own device.
        return type(self), ()

    @property
    @abstractmethod
    def xp(self) -> ModuleType:
        """The array API namespace of this device."""

    @property
    @abstractmethod
    def frames(self) -> ModuleType:
        """The data frame library of this device (pandas or cuDF); its tables take this device's arrays as columns."""

    @abstractmethod
    def to_pandas(self, table: Any) -> pd.DataFrame:
        """Return a table of `frames` as one of pandas', on the host: pandas alone writes text."""

    @abstractmethod
    def claim_device(self, matrix_bytes: int) -> None:
        """Prepare the device for work on a matrix of this size; loads no library that runs a network."""

    @abstractmethod
    def share_device_with(self, library: str) -> None:
        """Make a library that runs networks (named by its engine) share the device; call this before it computes.

        Raises
        ------
        DeviceError
            When the library cannot compute on the device.
        """

    @abstractmethod
    def batch_size(self, image_size: int) -> int:
        """Return how many pictures of this side can go through the network together."""

    @property
    @abstractmethod
    def repeats(self) -> dict[str, str]:
        """What is the same when a run is repeated with the same seed on this device, for `run.json`, in words."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the facts about the device for `run.json`: its name, its threads, the versions of its libraries."""

    @abstractmethod
    def from_dlpack(self, capsule: Any) -> Array:
        """Return the content of a DLPack capsule as an array on this device; read-only, valid while its owner lives.

        A capsule can be read only once.
        """

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until the device has finished all work that it was given."""

    @abstractmethod
    def free_bytes(self) -> int:
        """Return the free memory of the device."""

    @abstractmethod
    def peak_bytes(self) -> int:
        """Return the peak memory in bytes: of the device, or of the process if the device is the CPU."""

    @abstractmethod
    def claimed_bytes(self) -> int:
        """Return the memory that `claim_device` set aside; 0 if it sets none aside."""

    @abstractmethod
    def to_host(self, array: Array) -> HostArray:
        """Return a NumPy array; data leaves the device in no other way."""

    @abstractmethod
    def from_host(self, array: HostArray) -> Array:
        """Return an array on this device; data reaches the device in no other way."""

    @abstractmethod
    def empty(self, shape: tuple[int, int]) -> Array:
        """Return an array float32 on this device whose values are not set."""

    def empty_space(self, shape: tuple[int, int]) -> Array:
        """Return an array float32 (n, m) whose values are not set, for a space that is clustered.

        A card that has no room for it returns `HostRows`, which are read and written in blocks of rows like an array.
        """
        return self.empty(shape)

    def holds_space(self, shape: tuple[int, int]) -> bool:
        """Return whether `empty_space` makes an array of this device."""
        return True

    def join(self, client: Any) -> None:  # noqa: B027 - only a card has work that it cannot do alone
        """Let work that does not fit this device go to the workers of a Dask client too."""

    @abstractmethod
    def holds(self, matrix_bytes: int) -> bool:
        """Return whether a matrix of embeddings of this size is held on this device; a larger one is read in blocks."""

    def each(self, work: Callable[[Item], Found], items: Iterable[Item], *, bytes_each: int) -> Iterator[Found]:
        """Yield what `work` returns for each item, in their order, as `map` does.

        A device that gains by it does some of them at the same time. `bytes_each` is the memory that one takes while it
        is done. `work` changes nothing that another one reads.
        """
        return map(work, items)

    @abstractmethod
    def strongest(self, symmetric: Array, m: int) -> tuple[Array, Array, float]:
        """Return the m largest eigenvalues (m,) of a symmetric matrix, their eigenvectors, and the sum of all values.

        The values are ascending, and the vectors are columns.
        """

    @abstractmethod
    def fit_pca(self, x: Rows, n_components: int, *, scale: Scaling) -> PCAFit:
        """Fit the first `n_components` principal axes of x (n, d) float32, scaled by `scale`, with an exact solver.

        A library that takes the whole matrix gets a scaled copy of it, if the device holds both.
        """

    @abstractmethod
    def fit_kmeans(self, x: Array, starts: Array, *, max_iter: int, tol: float) -> KMeansFit:
        """Run Lloyd's algorithm once on x (n, d) float32 from the centres `starts` (k, d).

        x is an array, or what `empty_space` returned.

        `tol` is scikit-learn's on every device: it ends when the centres moved by at most `tol` times the mean variance
        of the columns (squares of the distances, summed over the centres), or when no label changed.
        """

    @abstractmethod
    def group(self, x: Array, algorithm: Algorithm, *, k: int, seed: int) -> Array:
        """Return the labels (n,) that an algorithm other than k-means gives the rows of x (n, d) float32; -1 is noise.

        `ward` is agglomerative clustering with Ward's linkage. `spectral` works on the graph of the 10 nearest
        neighbours. `hdbscan` finds the number of groups itself; a group has at least 5 rows and at least a hundredth
        of all rows. Ward takes O(n^2) memory, the others O(n^2) time. `k` is at most `most_groups(algorithm, n)`.
        """

    @abstractmethod
    def most_groups(self, algorithm: Algorithm, n: int) -> int:
        """Return the largest number of groups that `group` can be asked for with n rows."""

    @abstractmethod
    def tsne(self, x: Array, *, seed: int) -> Array:
        """Return a t-SNE (n, 2) of x (n, d) float32, n at least 5, that starts from the principal components of x."""

    @abstractmethod
    def label_scores(self, truth: HostArray, labels: Array) -> dict[str, float]:
        """Compare labels (n,) with the true classes `truth` (n,), small integers on the host.

        Returns
        -------
        dict
            homogeneity, completeness, v_measure, adjusted_rand, normalized_mutual_info.
        """

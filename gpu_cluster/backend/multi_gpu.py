"""Several cards: a Dask cluster of one process a card, and the k-means of a space that fits no single card (cuml.dask).

Do not assume that this code has run on a GPU unless README's 'verified' section says so. `tests/contract` checks every
call in this file against the signatures of the locked wheels.

Input of k-means: a space on the driver's host, starts, and a client, which is handed in. Output: centres on the host.
Labels, distances and the inertia are computed from these on the driver, as everywhere. Beside the package `executor`,
this is the only file that knows Dask.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_cluster.backend import tensorflow_devices
from gpu_cluster.backend.base import HostArray, KMeansFit
from gpu_cluster.errors import ConfigError, DeviceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Iterations in one call of cuML. Each call makes and ends NCCL's communicator, and fetches the labels of one worker
# with its model, so that a call for each iteration would cost more than the iterations.
ITERATIONS_A_CALL = 10
# Bytes of the space that are sent to a worker at a time.
PIECE_BYTES = 1 << 28
# cuML requires a tolerance above 0. This one ends a call only when the inertia does not fall any more in float32.
_NO_TOLERANCE = float(np.finfo(np.float32).tiny)
# The least shift that ends it, as a share of the variance: below it is only rounding.
_LEAST_TOLERANCE = 1e-10


def local_cluster(n_workers: int, **options: Any) -> Any:
    """Start a Dask cluster on this machine, of a process for each of `n_workers` cards; `options` are LocalCluster's.

    `protocol` must be among these, because dask-cuda may take UCX otherwise.

    Each process sees its own card only. dask-cuda shows it all cards, its own first, and starts CUDA before our code
    runs, so that TensorFlow would make a context on every card. It sets no limit of memory and no pool: a worker keeps
    no results but small ones, and the backend claims its pool itself (`claim_device`).

    Raises
    ------
    ConfigError
        When there are fewer cards than workers.
    DeviceError
        When dask-cuda is not installed, or the driver's list of cards cannot be read.
    """
    try:
        from dask_cuda import LocalCUDACluster
    except ImportError as error:
        raise DeviceError(
            "--workers on cards needs dask-cuda, which is not installed: install the gpu extra, or use --device cpu"
        ) from error

    class OneCardEach(LocalCUDACluster):
        def new_worker_spec(self) -> dict[Any, Any]:
            spec: dict[Any, Any] = super().new_worker_spec()
            for worker in spec.values():
                env = worker["options"]["env"]
                env["CUDA_VISIBLE_DEVICES"] = env["CUDA_VISIBLE_DEVICES"].split(",")[0]
            return spec

    names = _card_names()
    if n_workers > len(names):
        raise ConfigError(
            f"--workers {n_workers}: each worker takes a card of its own, and this process may use {len(names)} "
            f"({', '.join(names)}): give --workers {len(names)} or fewer, or name more cards in CUDA_VISIBLE_DEVICES"
        )
    return OneCardEach(
        CUDA_VISIBLE_DEVICES=names[:n_workers],
        n_workers=n_workers,
        threads_per_worker=1,
        memory_limit=None,
        device_memory_limit=None,
        **options,
    )


def _card_names() -> list[str]:
    """Return the cards that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    allowed = tensorflow_devices.allowed_cards()
    if allowed is not None:
        return [name.strip() for name in allowed.split(",")]
    import pynvml
    from dask_cuda.utils import get_gpu_count

    try:
        return [str(number) for number in range(get_gpu_count())]
    except pynvml.NVMLError as error:
        raise DeviceError(
            f"the driver's list of cards cannot be read ({error}): name the cards in CUDA_VISIBLE_DEVICES, as in "
            "CUDA_VISIBLE_DEVICES=0,1"
        ) from error


def cards(client: Any) -> dict[str, int]:
    """Return the free memory, in bytes, of each card that the workers of a client have, by the worker's address.

    Of several workers with the same card only the first counts, because NCCL takes one process a card. A worker that
    cannot answer, such as one without this package, has none.

    Raises
    ------
    DeviceError
        When the cluster cannot be asked.
    """
    try:
        answers = client.run(_own_card, on_error="return")
    # Whatever Dask raises when the scheduler or a worker is lost meanwhile.
    except Exception as error:
        raise DeviceError(f"the workers cannot be asked for their cards ({type(error).__name__}: {error})") from error
    found, seen = {}, set()
    for address, card in sorted(answers.items()):
        if card is not None and not isinstance(card, Exception) and card[0] not in seen:
            seen.add(card[0])
            found[address] = card[1]
    return found


def _own_card() -> tuple[str, int] | None:
    """Return which card this process computes on, by host and the card's UUID, and its free bytes; None without one."""
    try:
        import cupy
    except ImportError:
        return None
    if not cupy.cuda.is_available():
        return None
    from gpu_cluster.backend.gpu import GpuBackend

    uuid = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())["uuid"]
    return f"{socket.gethostname()} {bytes(uuid).hex()}", GpuBackend().available_bytes()


def fit_kmeans(
    x: HostArray, starts: HostArray, *, client: Any, workers: Sequence[str], max_iter: int, least_shift: float
) -> KMeansFit:
    """Run Lloyd's algorithm on x (n, m) float32, host, from `starts` (k, m), on the cards of these workers.

    Each worker holds the rows of its share on its card, and only centres and sums travel between the iterations. It
    ends when the squared distance that the centres moved in a call of cuML (10 iterations), summed over all of them, is
    at most `least_shift`, when the inertia does not fall any more, or after `max_iter`. The rule of the other devices
    looks at one iteration, so this one ends a little later.

    Returns
    -------
    KMeansFit
        With the centres (k, m) float32 on the host.

    Raises
    ------
    DeviceError
        When a worker, its card or their connection fails; nothing is kept then.
    """
    from distributed import KilledWorker

    try:
        # cuml.dask asks Dask for the current client where it waits, although it is given one.
        with client.as_current():
            return _fit(_on_cards(x, client, workers), starts, client, max_iter=max_iter, least_shift=least_shift)
    # cuml.dask raises what its workers raised: NCCL's and CUDA's errors are RuntimeErrors, lost connections OSErrors.
    except (RuntimeError, MemoryError, OSError, KilledWorker) as error:
        raise DeviceError(f"k-means on {len(workers)} cards failed: {type(error).__name__}: {error}") from error


def _fit(rows: Any, starts: HostArray, client: Any, *, max_iter: int, least_shift: float) -> KMeansFit:
    from cuml.dask.cluster import KMeans

    centres, n_iter = starts, 0
    while True:
        asked = min(ITERATIONS_A_CALL, max_iter - n_iter)
        # cuml.dask gives these options to each worker's `KMeansMG`, together with an `output_type` of its own.
        fit = KMeans(
            client=client, n_clusters=len(centres), init=centres, n_init=1, max_iter=asked, tol=_NO_TOLERANCE
        ).fit(rows)
        done = int(fit.n_iter_)
        moved = _on_host(fit.cluster_centers_)
        shift = float(np.sum(np.square(moved.astype(np.float64) - centres.astype(np.float64))))
        centres, n_iter = moved, n_iter + done
        if done < asked or shift <= least_shift or n_iter >= max_iter:
            return KMeansFit(centres, n_iter)


def least_shift(tol: float, mean_variance: float) -> float:
    """Return the shift of the centres that ends k-means, from scikit-learn's `tol` and the variance of the columns."""
    return max(tol, _LEAST_TOLERANCE) * mean_variance


def _on_cards(x: HostArray, client: Any, workers: Sequence[str]) -> Any:
    """Send each worker an equal share of the rows, in pieces; return them as a Dask array of CuPy's arrays."""
    import cupy
    import dask.array

    meta = cupy.empty((0, x.shape[1]), dtype=cupy.float32)
    pieces = []
    for worker, part in _shares(x.shape[0], x.shape[1], workers):
        sent = client.scatter(x[part], workers=[worker], hash=False)
        held = client.submit(_to_card, sent, workers=[worker], pure=False)
        pieces.append(dask.array.from_delayed(held, shape=(part.stop - part.start, x.shape[1]), meta=meta))
    return dask.array.concatenate(pieces, axis=0)


def _shares(n: int, m: int, workers: Sequence[str]) -> Iterator[tuple[str, slice]]:
    """Yield the pieces of the rows of each worker: shares that differ by a row at most, cut by size."""
    ends = np.linspace(0, n, len(workers) + 1).astype(int).tolist()
    step = max(1, PIECE_BYTES // (4 * m))
    for worker, first, end in zip(workers, ends[:-1], ends[1:], strict=True):
        for start in range(first, end, step):
            yield worker, slice(start, min(start + step, end))


def _to_card(piece: HostArray) -> Any:
    import cupy

    return cupy.asarray(piece)


def _on_host(centres: Any) -> HostArray:
    import cupy

    return np.asarray(cupy.asnumpy(centres), np.float32)

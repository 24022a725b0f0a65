"""Says how much memory a job needs and how much is free, and explains what did not fit when a device's runs out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from gpu_cluster.backend.base import Backend
from gpu_cluster.backend.cores import usable_cores
from gpu_cluster.backend.rows import BLOCK_ROWS, WINDOW_BYTES
from gpu_cluster.errors import DeviceError

_HELPS = {
    "embedding": (
        "end other programs that use this memory, or try a smaller --batch-size, a smaller --pooling than flatten, or "
        "fewer pictures"
    ),
    "clustering": "try a smaller --silhouette-sample, or --sweep-space projection, or a smaller --pca",
}


@contextmanager
def memory_error_explained(
    doing: Literal["embedding", "clustering"], n: int, d: int, backend: Backend
) -> Iterator[None]:
    """Turn a MemoryError (NumPy, CuPy and RMM all raise it) into an error that says what did not fit and what helps.

    Raises
    ------
    DeviceError
        When the block, which works on a matrix of n x d float32, raises a MemoryError.
    """
    try:
        yield
    except MemoryError as error:
        size, free = n * d * 4 / 1e9, backend.free_bytes() / 1e9
        raise DeviceError(
            f"out of memory on the {backend.name} while {doing} a matrix of {n} x {d} float32, {size:.2f} GB, "
            f"{free:.2f} GB free: {_HELPS[doing]}; or use a device with more memory"
        ) from error


# What `Backend.each` does at the same time takes at most this memory of the host.
AT_A_TIME_BYTES = 1 << 29

# What a job takes whatever the number of pictures is: the program with its libraries, the samples of the sweep and of
# the scores, the plots. `scripts/bench_scale.py` measures the sum.
_PROGRAM_BYTES = 700 << 20
# For each picture: the list of files, the scores and the rows of the tables.
_PICTURE_BYTES = 1_200


def needed_host_bytes(n: int, d: int, m: int, k: int, *, whole: bool, backend: Backend) -> int:
    """Estimate how much memory of the host a job takes besides the network's, in bytes; see docs/run-folder.md.

    Parameters
    ----------
    n, d
        Number of pictures, and of the numbers in an embedding.
    m, k
        Number of columns of the clustered space, and the largest number of clusters.
    whole
        Whether the sweep or the clustering uses the scaled embeddings themselves, all (n, d) of them.
    """
    matrix, on_card = 4 * n * d, not backend.computes_on_host
    held = matrix if backend.holds(matrix) else 2 * WINDOW_BYTES
    # k-means copies its matrix; the sweep and the clustering need one more of the labels and the distances.
    clustered = 2 * (4 * n * m + (matrix if whole else 0)) + 16 * k * m
    block = 4 * (4 * d * min(n, BLOCK_ROWS) + (d * d if d <= n else 0))
    blocks = max(block, min(usable_cores() * block, AT_A_TIME_BYTES))
    covariance = 4 * 8 * min(n, d) ** 2
    # A space that does not fit the card is kept on the host.
    spaces = sum(0 if backend.holds_space((n, columns)) else 4 * n * columns for columns in ([m, d] if whole else [m]))
    return _PROGRAM_BYTES + _PICTURE_BYTES * n + (spaces if on_card else held + blocks + covariance + clustered)


def fits_in_words(needed: int, free: int) -> str:
    """Return how the memory that a job needs compares with what is free, and what to do if it does not fit."""
    said = (
        f"this job will need about {needed / 1e9:.1f} GB of memory, besides the network's; {free / 1e9:.1f} GB are free"
    )
    if needed <= free:
        return said
    return (
        f"{said}: the system may end it; end other programs, or take a machine, a container or a batch job with more "
        "memory, fewer pictures, or a smaller --pooling"
    )


def free_host_bytes() -> int:
    """Return how much memory of the host this process may still take, in bytes.

    This is what the machine has left, or what the process's control groups allow it if that is less: the limit of a
    container, or of a batch job.
    """
    # macOS reports only the total memory.
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    free = os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
    # The pages that only hold a copy of a file count as free here, and not there.
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:")))
    return max(0, min([free, *_left_by_control_groups()]))


def _left_by_control_groups() -> Iterator[int]:
    """Yield what each control group of this process, version 1 or 2, leaves of its limit of memory."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _number, controllers, name = line.split(":", 2)
            if controllers in ("", "memory"):
                place = Path("/sys/fs/cgroup", controllers)
                names = ("memory.max", "memory.current") if not controllers else _VERSION_1
                # A container sees its own group at the top, and the name that the host gives it does not exist.
                for folder in (place / name.lstrip("/"), *(place / name.lstrip("/")).parents):
                    yield from _left_by(folder, *names)
                    if folder == place:
                        break


_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")


def _left_by(folder: Path, limit: str, used: str) -> Iterator[int]:
    with suppress(OSError, ValueError):
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        # The system gives these copies of files back when memory is needed.
        spare = int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
        yield int((folder / limit).read_text()) - int((folder / used).read_text()) + spare

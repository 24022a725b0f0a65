"""Where the tasks of a job run: one after the other in this process, or in the workers of a Dask cluster.

A task is a description of work: locations and options, and no arrays that grow with the number of pictures. What calls
an executor gets the results in the order of the tasks, so they do not depend on how many workers there were, or which
of them was slow. Only this package and `backend.multi_gpu` import Dask. It must not know what a task does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from gpu_cluster.config import ExecutorConfig
from gpu_cluster.events import Observer
from gpu_cluster.executor.base import Executor, Lost, RefusedWorkerError, Reporter, Serial, Share, Stage

__all__ = ["Executor", "Lost", "RefusedWorkerError", "Reporter", "Serial", "Share", "Stage", "opened"]


@contextmanager
def opened(config: ExecutorConfig, device: str, observer: Observer) -> Iterator[Executor]:
    """Give the block the executor that the options name; a cluster that was started for it ends with the block.

    Raises
    ------
    ConfigError
        When no worker can be used: another version, for instance; or when the address of the scheduler is none.
    DeviceError
        When Dask is not installed, or the local cluster cannot be started.
    JobError
        When the cluster to join cannot be reached.
    """
    joined = config.scheduler is not None or config.scheduler_file is not None
    if config.workers is None and not joined:
        yield Serial()
        return
    # Dask is loaded only if there are workers.
    from gpu_cluster.executor import clusters
    from gpu_cluster.executor.cluster_executor import ClusterExecutor

    clusters.check_installed(device, local=not joined)
    with ExitStack() as until_the_end:
        client = until_the_end.enter_context(
            clusters.joined(config, observer) if joined else clusters.local(config.workers or 1, device)
        )
        executor = ClusterExecutor(client, observer, joined=joined)
        until_the_end.callback(executor.close)
        executor.begin(config.workers)
        yield executor

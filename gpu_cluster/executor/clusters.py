"""Starts a Dask cluster on this machine, or joins one that is there.

This module must not know what is done with the workers.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from typing import Any

from gpu_cluster.backend import multi_gpu
from gpu_cluster.config import ExecutorConfig
from gpu_cluster.errors import ConfigError, DeviceError, GpuClusterError, InterruptedJobError, JobError
from gpu_cluster.events import Observer
from gpu_cluster.files import printable

# A job waits this long for the scheduler of a cluster that it joins, for its workers, and for new ones when all are
# lost. A cluster that a batch system starts can take minutes.
PATIENCE_S = 300.0
# A worker of a local cluster that is not heard of for this long counts as dead, and others take its task. A cluster
# that a job joins has a time of its own (Dask's default is 5 minutes).
_HUNG_S = 60
_UNGUARDED = (
    "workers=N starts processes that import your script, and the script starts the job when it is imported: put the "
    "call below a line if __name__ == '__main__':"
)
# One attempt to reach a scheduler.
_ATTEMPT_S = 5


def check_installed(device: str, *, local: bool) -> None:
    """Check that the packages for a cluster are there; loads nothing.

    Raises
    ------
    DeviceError
        When they are not; the message says what to install.
    """
    wanted = ["distributed"] + ["cryptography"] * local + ["dask_cuda"] * (local and device == "gpu")
    missing = [name for name in wanted if find_spec(name) is None]
    if missing:
        raise DeviceError(
            f"--workers, --scheduler: {' and '.join(missing)} not installed; from a checkout, pip install "
            f"'.[{device},dask]', or leave out these options"
        )


@contextmanager
def local(n: int, device: str) -> Iterator[Any]:
    """Start a cluster of n processes on this machine, which share its cores or have a card each; give its client.

    Raises
    ------
    DeviceError
        When it cannot be started.
    """
    _check_not_imported_by_a_worker()
    import dask
    from distributed import Client, LocalCluster

    ours = {
        # This job has its own rule for tasks whose worker died.
        "distributed.scheduler.allowed-failures": 0,
        "distributed.scheduler.worker-ttl": f"{_HUNG_S}s",
        # So long after the death of a worker the cluster looks whether it is back. If at that moment it had died once
        # more, it would never be started again: a picture that ends its workers ends several of them.
        "distributed.deploy.lost-worker-timeout": "365 days",
    }
    given = {name for name in ours if f"DASK_{name.replace('.', '__').replace('-', '_').upper()}" in os.environ}
    options: dict[str, Any] = {
        # Who can reach a scheduler can run programs through it, and other users of this machine can reach it. So the
        # processes of the cluster know each other by certificates that only they have.
        "security": True,
        "protocol": "tls://",
        # Without an address of its own, two jobs would want the same port, and each but the first would warn.
        "dashboard_address": "127.0.0.1:0",
        "silence_logs": logging.CRITICAL,
    }
    with dask.config.set({name: value for name, value in ours.items() if name not in given}):
        try:
            if device == "gpu":
                cluster = multi_gpu.local_cluster(n, **options)
            else:
                cluster = LocalCluster(n_workers=n, threads_per_worker=1, memory_limit=None, processes=True, **options)
        except GpuClusterError:
            raise
        except Exception as error:
            raise DeviceError(
                f"--workers {n}: a cluster cannot be started here: {_brief(error)} (what its processes printed before "
                "says more)"
            ) from error
        try:
            with Client(cluster, set_as_default=False) as client:
                client.register_worker_callbacks(partial(_prepare, n, device))
                yield client
        finally:
            _end(cluster)


def _check_not_imported_by_a_worker() -> None:
    """Check that this process is not one of a cluster that is being started.

    Such a process imports the program that the user has started. If that starts a cluster when it is imported, this
    would never end.
    """
    # So does Python's own check of this, `multiprocessing.spawn._check_not_importing_main`.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise DeviceError(_UNGUARDED)


def _brief(error: BaseException) -> str:
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:300]}"


def _prepare(n: int, device: str, dask_worker: Any) -> None:
    """Prepare a worker of a local cluster of n; this runs in each of them, and in those that take their places."""
    # Ctrl-C in a terminal, and batch systems, signal all processes of a job. The job asks its tasks to stop itself.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if device == "gpu" or not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    index = int(dask_worker.name) % n
    os.sched_setaffinity(0, cores[index::n] if n <= len(cores) else [cores[index % len(cores)]])


def _end(cluster: Any) -> None:
    """End a local cluster, and with it the workers that do not hear that they should end."""
    import psutil

    processes = []
    for nanny in list(cluster.workers.values()):
        with suppress(psutil.Error, TypeError, AttributeError):
            processes.append(psutil.Process(nanny.pid))
    with suppress(Exception):
        cluster.close(timeout=5)
    for process in processes:
        with suppress(psutil.Error):
            process.kill()


@contextmanager
def joined(config: ExecutorConfig, observer: Observer) -> Iterator[Any]:
    """Join the cluster that the options name, when its scheduler answers; give its client.

    Raises
    ------
    ConfigError
        When the address of the scheduler is none.
    JobError
        When it does not answer for long.
    """
    place = config.scheduler or f"the scheduler of {printable(str(config.scheduler_file))!r}"
    deadline, told = time.monotonic() + PATIENCE_S, False
    while True:
        try:
            client = _client(config)
            break
        # A file that is half written is a ValueError, and another one a KeyError or a TypeError.
        except (OSError, TimeoutError, ValueError, KeyError, TypeError) as error:
            if config.scheduler is not None and isinstance(error, ValueError):
                raise ConfigError(
                    f"--scheduler {printable(config.scheduler)!r} is not an address such as tcp://node1:8786: "
                    f"{_brief(error)}"
                ) from error
            if observer.stopping():
                raise InterruptedJobError("interrupted while the job waited for the scheduler") from error
            if time.monotonic() > deadline:
                raise JobError(
                    f"no Dask scheduler answers at {place}: {_brief(error)}; start one (dask scheduler), or use "
                    "--workers N for a cluster on this machine"
                ) from error
            if not told:
                told = True
                observer.notice(f"Waiting for {place}, {PATIENCE_S:.0f} s at most")
            time.sleep(1)
    with client:
        yield client


def _client(config: ExecutorConfig) -> Any:
    """Try once to reach the scheduler that the options name."""
    from distributed import Client

    if config.scheduler_file is not None:
        # Dask would wait for the file without end.
        os.stat(config.scheduler_file)
        return Client(scheduler_file=str(config.scheduler_file), set_as_default=False, timeout=_ATTEMPT_S)
    return Client(config.scheduler, set_as_default=False, timeout=_ATTEMPT_S)

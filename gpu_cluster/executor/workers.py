"""Knows the workers of a cluster: who is there, who fits a job, and who was refused and why.

This module must not know which tasks they do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gpu_cluster.errors import ConfigError, JobError
from gpu_cluster.events import Observer
from gpu_cluster.executor import worker

# A scheduler that does not answer for so long is asked again later; meanwhile the job hears signals.
_ANSWER_S = 5

LOST = (
    "the scheduler of the Dask cluster cannot be reached any more; what is finished is kept in the store: run the same "
    "command again with a cluster that is there, or without one"
)


@contextmanager
def reached() -> Iterator[None]:
    """Turn what Dask raises when the scheduler is away into a JobError.

    Raises
    ------
    JobError
        When the scheduler cannot be reached.
    """
    from distributed.client import ClosedClientError

    try:
        yield
    # A connection that is closed is an OSError.
    except (OSError, ClosedClientError) as error:
        raise JobError(LOST) from error


class Workers:
    """The workers of a cluster, as one job sees them.

    Attributes
    ----------
    fit : the addresses of those that can do its tasks, whether they are there or gone
    refused : by address, what is wrong with the others, in a sentence
    """

    def __init__(self, client: Any, observer: Observer) -> None:
        self.fit: set[str] = set()
        self.refused: dict[str, str] = {}
        self._client = client
        self._observer = observer
        self._here: set[str] = set()
        # Those that came later, and the answers that they owe.
        self._asked: dict[str, Any] = {}

    def n_usable(self) -> int:
        """Return how many that fit were there at the last look."""
        return len(self.usable())

    def usable(self) -> frozenset[str]:
        """Return those that fit and were there at the last look."""
        return frozenset(self._here & self.fit)

    def died(self, address: str) -> None:
        """Note that a worker is gone, so that it gets no task before the next look."""
        self._here = self._here - {address}

    def are_gone(self, addresses: frozenset[str]) -> bool:
        """Return whether none of these was there at the last look."""
        return self._here.isdisjoint(addresses)

    def look(self, job: worker.JobOfWorker) -> bool:
        """Find out who is there, and ask those that are new whether they fit.

        Returns whether the scheduler has answered.

        Raises
        ------
        JobError
            When the scheduler cannot be reached.
        """
        try:
            with reached():
                self._here = set(self._client.sync(self._client.scheduler.ncores, callback_timeout=_ANSWER_S))
        except JobError as error:
            if isinstance(error.__cause__, TimeoutError) and self._client.status == "running":
                return False
            raise
        for address in list(self._asked):
            if address not in self._here:
                del self._asked[address]
            elif self._asked[address].done():
                self._answered(address, self._asked.pop(address))
        for address in self._here - self.fit - self.refused.keys() - self._asked.keys():
            with reached():
                self._asked[address] = self._client.submit(
                    worker.what_does_not_fit, job, workers=[address], pure=False, key=f"fits-{job.token}-{address}"
                )
        return True

    def _answered(self, address: str, answer: Any) -> None:
        from distributed import KilledWorker

        if answer.status == "finished":
            with reached():
                wrong = answer.result()
            if wrong is None:
                self.fit.add(address)
            else:
                self.refuse(address, wrong)
        elif answer.status == "error" and not isinstance(answer.exception(), KilledWorker):
            self.refuse(address, _no_gpu_cluster(answer.exception()))

    def ask(self, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        """Run a function in every worker that fits; one in which it fails is refused.

        Raises
        ------
        JobError
            When the scheduler cannot be reached.
        """
        with reached():
            workers = sorted(self._here & self.fit)
            found = self._client.run(function, *arguments, workers=workers, on_error="return")
        for address, error in found.items():
            if isinstance(error, Exception):
                self.refuse(address, _no_gpu_cluster(error))
        return {address: answer for address, answer in found.items() if not isinstance(answer, Exception)}

    def begin(self, job: worker.JobOfWorker) -> None:
        """Ask all that are there now whether they fit.

        Raises
        ------
        ConfigError
            When none does.
        JobError
            When the scheduler cannot be reached.
        """
        with reached():
            self._here = self.fit = set(self._client.nthreads())
        for address, wrong in self.ask(worker.what_does_not_fit, job).items():
            if wrong is not None:
                self.refuse(address, wrong)
        self.check()

    def refuse(self, address: str, wrong: str) -> None:
        """Give no more tasks to a worker."""
        self.fit = self.fit - {address}
        if address not in self.refused:
            self.refused[address] = f"the worker {address} {wrong}"
            self._observer.notice(f"The worker {address} gets no tasks: it {wrong}")

    def check(self) -> None:
        """Check that some worker fits or may come to fit: one that is asked, or takes the place of a lost one.

        Raises
        ------
        ConfigError
            When all that there are and were have been refused.
        """
        if self.refused and not self.fit and not self._asked:
            raise ConfigError(f"no worker can be used: {self.why_refused()}")

    def why_refused(self) -> str:
        """Return what is wrong with those that were refused; an empty text if none was."""
        return "; ".join(self.refused.values())


def _no_gpu_cluster(error: BaseException) -> str:
    return f"cannot run gpu-cluster ({type(error).__name__}: {error})"

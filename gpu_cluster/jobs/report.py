"""The job `report`: writes the page of a finished run again."""

from __future__ import annotations

from pathlib import Path

from gpu_cluster.images import decode
from gpu_cluster.report.page import explained, write_page
from gpu_cluster.run_folder import FinishedRun


def report(folder: Path) -> Path:
    """Write `report.html` of a finished run again; it replaces the one that is there. Return its path.

    Raises
    ------
    DataError
        When the folder is not a finished run of this version.
    JobError
        When the page cannot be written; the earlier page stays as it is.
    """
    run = FinishedRun(folder)
    with explained(folder):
        max_pixels = run.max_pixels
    with decode.limited(max_pixels):
        return write_page(run)

"""The job `report`: writes the page of a finished run again."""

from __future__ import annotations

from pathlib import Path

from gpu_cluster.config import DecodingConfig
from gpu_cluster.errors import ConfigError
from gpu_cluster.events import Observer
from gpu_cluster.files import printable, write_explained
from gpu_cluster.images import decoders
from gpu_cluster.inventory import replace_file
from gpu_cluster.report.page import write_page
from gpu_cluster.run_folder import RECORD, FinishedRun, check_is_run_folder, explained


def report(folder: Path, observer: Observer | None = None, *, root: Path | None = None, portable: bool = False) -> Path:
    """Write `report.html` of a finished run again; it replaces the one that is there. Return its path.

    Parameters
    ----------
    root
        The folder that holds the pictures now, if they were moved; by default the page keeps the small copies that it
        has.
    portable
        Write no absolute path into the page, and take those that are there out of the other files of the folder.

    Raises
    ------
    ConfigError
        When `root` is not a folder.
    DataError
        When the folder is not a finished run of this version, or there are neither its pictures nor copies of them; the
        earlier page stays as it is.
    JobError
        When the page cannot be written; the earlier page stays as it is.
    """
    if root is not None and not root.is_dir():
        raise ConfigError(f"--root: expected the folder that holds the pictures now; found {printable(str(root))!r}")
    check_is_run_folder(folder)
    run = FinishedRun(folder, portable=portable)
    with explained(folder):
        limits = DecodingConfig(max_pixels=run.max_pixels)
    with decoders.limited(limits):
        page = write_page(run, observer or Observer(), root=root, portable=portable)
    if portable:
        with explained(folder), write_explained(folder / RECORD):
            for name, content in run.portable_files():
                replace_file(folder, name, content)
    return page

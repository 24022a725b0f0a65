"""The marker of a folder of ours: `inventory.json`, which names the files in it with their sizes.

Only what an inventory names is ever deleted. Anything else in the folder, at every depth, is somebody's work. This
module recognises folders of ours, tells what in them is ours, deletes it, and replaces single files in them. It must
not know where the folders are, or what the files are for.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

from gpu_cluster.files import write_whole
from gpu_cluster.folders import is_same, locked, open_folder, opened
from gpu_cluster.run_folder import BAD_FILES, CONTENTS, CONTENTS_OF, INVENTORY, RECORD

_SCHEMA = 1
# An inventory, or a run.json, above this size is not read: those of 100,000 clusters are below 8 MB.
_MOST_BYTES = 64 * 1024 * 1024

# Every run folder of the version before has these two.
_MARKS_BEFORE = frozenset({RECORD, BAD_FILES})

# The name of a half-written file in a folder that is being filled (see `files.write_whole`).
_PARTIAL = re.compile(rf"\.({'|'.join(map(re.escape, sorted(CONTENTS)))})\.\d+-[0-9a-f]{{8}}\.tmp")


@dataclass(frozen=True)
class Inventory:
    """What is ours in a folder.

    Attributes
    ----------
    id : 32 random hexadecimal digits, by which the folder is known wherever it is moved to; empty if it has no marker
    name : the name of the run folder that it is to become, or that it had when it was moved aside
    temporary : the last temporary name of the folder; only under this name it may be cleared away
    files : size in bytes of each file, by its path in the folder; None while the folder is being filled. Then the files
        with the names that runs write are ours, because only the job that made the folder knows it.
    pending : size of each file that is just being replaced; it has the old size or this one
    system : while the folder is being filled: the running system, from its start to its end, in which the job runs that
        fills it; only there a lock tells for certain whether this job is alive. None where it is not known
    """

    id: str
    name: str
    temporary: str
    files: Mapping[str, int] | None = None
    pending: Mapping[str, int] = field(default_factory=dict)
    system: str | None = None

    def is_ours(self, path: PurePosixPath, status: os.stat_result) -> bool:
        """Return whether this path in the folder is a file or a subfolder that the inventory names."""
        name = str(path)
        if stat.S_ISDIR(status.st_mode):
            return name in self._folders
        if not stat.S_ISREG(status.st_mode):
            return False
        if self.id and name in (INVENTORY, self.partial(INVENTORY).name):
            return True
        if self.files is None:
            return is_name_of_ours(path) or _PARTIAL.fullmatch(name) is not None
        if name in (self.partial(file).name for file in self.pending):
            return True
        return status.st_size in (self.files.get(name), self.pending.get(name))

    @property
    def _folders(self) -> Collection[str]:
        if self.files is None:
            return CONTENTS_OF.keys()
        return {str(parent) for file in self.files for parent in PurePosixPath(file).parents}

    def partial(self, name: str) -> PurePosixPath:
        """Return the name of a file in the folder while it is being written; the id makes it certain whose it is."""
        return PurePosixPath(f".{name}.{self.id}.tmp")

    def write(self, folder: Path) -> None:
        """Write the inventory into its folder; it replaces the one that is there.

        Raises
        ------
        OSError
            When it cannot be written; the one that is there stays as it is.
        """
        self._write_file(folder, INVENTORY, _as_json(self))

    def _write_file(self, folder: Path, name: str, content: bytes) -> None:
        partial = folder / self.partial(name)
        # A killed process may have left it.
        partial.unlink(missing_ok=True)
        write_whole(folder / name, content, partial=partial)


# A run folder of the version before: it has no marker, and its files are known only by their names.
BEFORE = Inventory("", "", "")


def is_name_of_ours(path: PurePosixPath) -> bool:
    """Return whether this path in a folder is one that runs write."""
    *above, name = path.parts
    if not above:
        return name in CONTENTS and name not in CONTENTS_OF
    return len(above) == 1 and above[0] in CONTENTS_OF and CONTENTS_OF[above[0]].fullmatch(name) is not None


def mark(folder: Path, name: str) -> None:
    """Mark a new folder as ours, which is still to be filled and then to get this name.

    Raises
    ------
    OSError
        When the marker cannot be written, or there is one.
    """
    with (folder / INVENTORY).open("xb") as stream:
        stream.write(_as_json(Inventory(secrets.token_hex(16), name, folder.name, system=running_system())))


def complete(folder: Path) -> None:
    """Write into the inventory of a folder that was filled which files are in it.

    Raises
    ------
    OSError
        When the folder cannot be read, or the inventory cannot be written.
    """
    with opened(folder) as descriptor:
        inventory = _read(descriptor)
        assert inventory is not None, "only a folder of ours is filled"
        # What somebody else put there meanwhile is not named, and so it is never deleted.
        files = {
            str(path): status.st_size
            for path, status, ours in _walk(descriptor, inventory)
            if ours and not _is_folder(status)
        }
    files.pop(INVENTORY, None)
    replace(inventory, files={name: files[name] for name in sorted(files)}, system=None).write(folder)


def running_system() -> str | None:
    """Return the id that Linux gives itself at every start; None if there is none, as on macOS."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


def read(folder: Path) -> Inventory | None:
    """Return the inventory of a folder; None if it has none that this version can read.

    Raises
    ------
    OSError
        When the folder cannot be opened.
    """
    with opened(folder) as descriptor:
        return _read(descriptor)


def find_earlier_run(folder: Path) -> Inventory | None:
    """Return what is ours in the folder of an earlier job; None if it is no such folder.

    A folder of the version before, which had no inventories, is an earlier run if its `run.json` says so and if all
    that is in it has names that runs write. Its inventory names no files.

    Raises
    ------
    OSError
        When there is no folder, or it cannot be read.
    """
    with opened(folder) as descriptor:
        found = _read(descriptor)
        if found is not None:
            return found
        is_run = _is_run_before(descriptor, os.listdir(descriptor)) and _first_other(descriptor, BEFORE) is None
    return BEFORE if is_run else None


def is_folder_of_ours(folder: str, names: Collection[str]) -> bool:
    """Return whether a folder with these names in it is the folder of a job, whatever else is in it.

    It is one if it has an inventory, or if its `run.json` is that of a run of the version before.
    """
    if INVENTORY not in names and not _MARKS_BEFORE.issubset(names):
        return False
    try:
        with opened(Path(folder)) as descriptor:
            return _read(descriptor) is not None or _is_run_before(descriptor, names)
    except OSError:
        return False


def first_other(folder: Path, inventory: Inventory) -> str | None:
    """Return the first path in a folder, in order, that is not ours; None if everything is.

    Raises
    ------
    OSError
        When the folder, or a folder in it, cannot be read.
    """
    with opened(folder) as descriptor:
        return _first_other(descriptor, inventory)


def is_whole(folder: Path, inventory: Inventory) -> bool:
    """Return whether every file that the inventory names is in the folder."""
    with opened(folder) as descriptor:
        found = {str(path) for path, _, ours in _walk(descriptor, inventory) if ours}
    return inventory.files is not None and found.issuperset(inventory.files)


def remove(folder: Path) -> bool:
    """Delete a folder of ours if it holds nothing else; return whether it is gone.

    The folder that is looked at is the one that is deleted, even if another folder gets its name meanwhile.

    Raises
    ------
    OSError
        When something in it cannot be deleted; what is left still has its inventory.
    """
    with opened(folder) as descriptor:
        inventory = _read(descriptor)
        if inventory is None or not is_same(folder, descriptor) or _first_other(descriptor, inventory) is not None:
            return False
        _delete(descriptor, inventory, PurePosixPath())
        # The marker goes last, so that a kill leaves a folder that is known as ours.
        if os.listdir(descriptor) != [INVENTORY] or not is_same(folder, descriptor):
            return False
        os.unlink(INVENTORY, dir_fd=descriptor)
        os.rmdir(folder)
    return True


def replace_file(folder: Path, name: str, content: bytes) -> None:
    """Replace a file in a folder, and its size in the folder's inventory if there is one.

    A kill at any moment leaves the old file or the new one, and an inventory that names it.

    Raises
    ------
    OSError
        When it cannot be written; an earlier file stays as it is.
    """
    inventory = read(folder)
    if inventory is None or inventory.files is None:
        write_whole(folder / name, content)
        return
    with locked(folder):
        inventory = read(folder) or inventory
        files = dict(inventory.files or {})
        with suppress(OSError):
            status = (folder / name).lstat()
            if inventory.is_ours(PurePosixPath(name), status):
                # A process that was killed may have replaced it without this last step.
                files[name] = status.st_size
        noted = replace(inventory, files=files, pending={**inventory.pending, name: len(content)})
        noted.write(folder)
        noted._write_file(folder, name, content)
        others = {other: size for other, size in noted.pending.items() if other != name}
        replace(noted, files={**files, name: len(content)}, pending=others).write(folder)


def _is_folder(status: os.stat_result) -> bool:
    return stat.S_ISDIR(status.st_mode)


def _walk(
    descriptor: int, inventory: Inventory, above: PurePosixPath = PurePosixPath()
) -> Iterator[tuple[PurePosixPath, os.stat_result, bool]]:
    """Yield every path in an open folder, in order, and whether it is ours; only folders of ours are looked into."""
    for name in sorted(os.listdir(descriptor)):
        path = above / name
        try:
            status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        except FileNotFoundError:
            continue
        ours = inventory.is_ours(path, status)
        yield path, status, ours
        if ours and _is_folder(status):
            inner = open_folder(name, descriptor)
            try:
                yield from _walk(inner, inventory, path)
            finally:
                os.close(inner)


def _first_other(descriptor: int, inventory: Inventory) -> str | None:
    return next((str(path) for path, _, ours in _walk(descriptor, inventory) if not ours), None)


def _delete(descriptor: int, inventory: Inventory, above: PurePosixPath) -> None:
    """Delete what is ours in an open folder, but not the inventory itself."""
    for name in os.listdir(descriptor):
        path = above / name
        status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        if str(path) == INVENTORY or not inventory.is_ours(path, status):
            continue
        if _is_folder(status):
            inner = open_folder(name, descriptor)
            try:
                _delete(inner, inventory, path)
            finally:
                os.close(inner)
            os.rmdir(name, dir_fd=descriptor)
        else:
            os.unlink(name, dir_fd=descriptor)


def _is_run_before(descriptor: int, names: Collection[str]) -> bool:
    """Return whether an open folder has the files of a run, and a `run.json` with what a run writes in it."""
    if not _MARKS_BEFORE.issubset(names):
        return False
    record = _read_object(descriptor, RECORD)
    return isinstance(record.get("gpu_cluster"), str) and isinstance(record.get("config"), dict)


def _as_json(inventory: Inventory) -> bytes:
    content = {"inventory_of": "gpu-cluster", "schema": _SCHEMA, **asdict(inventory)}
    return (json.dumps(content, indent=1) + "\n").encode()


def _read(descriptor: int) -> Inventory | None:
    """Return the inventory in an open folder, or None if there is none that is valid."""
    content = _read_object(descriptor, INVENTORY)
    if content.get("inventory_of") != "gpu-cluster" or content.get("schema") != _SCHEMA:
        return None
    id_, name, temporary = (content.get(key) for key in ("id", "name", "temporary"))
    if not (isinstance(id_, str) and re.fullmatch("[0-9a-f]{32}", id_)):
        return None
    if not (isinstance(name, str) and isinstance(temporary, str)):
        return None
    files, pending = content.get("files"), content.get("pending")
    if not (files is None or _are_sizes(files)) or not _are_sizes(pending):
        return None
    system = content.get("system")
    return Inventory(id_, name, temporary, files, pending, system if isinstance(system, str) else None)


def _are_sizes(value: Any) -> TypeGuard[dict[str, int]]:
    return isinstance(value, dict) and all(type(size) is int for size in value.values())


def _read_object(descriptor: int, name: str) -> dict[str, Any]:
    """Return the JSON object in a file of an open folder; an empty one if there is none, or it is too long."""
    try:
        # Without O_NONBLOCK, opening a pipe would wait for its other end.
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=descriptor)
        with os.fdopen(file, "rb") as stream:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_BYTES:
                return {}
            content = json.loads(stream.read(_MOST_BYTES))
    # Brackets in brackets without an end are a RecursionError.
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}

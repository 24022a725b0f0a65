"""The scan: what it finds of a file, and when it takes what an earlier one found."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gpu_cluster.config import InputConfig
from gpu_cluster.errors import InterruptedJobError
from gpu_cluster.events import Observer
from gpu_cluster.executor import Lost, Serial, Stage
from gpu_cluster.files import content_hash
from gpu_cluster.images import scan as scan_module
from gpu_cluster.images.places import open_source
from gpu_cluster.images.scan import scan
from gpu_cluster.manifest import Manifest
from gpu_cluster.store.maintenance import verify
from gpu_cluster.store.shards import Shards, folder_name
from gpu_cluster.store.store import Store, scan_schema
from tests.helpers import Noticing, age, memory_folder, scanned, settle, shards_of, write_pictures
from tests.images.files import find, touch


@pytest.fixture
def hashed(monkeypatch) -> list[int]:
    """The sizes of the files that were read whole."""
    sizes: list[int] = []

    def noted(stream):
        digest = content_hash(stream)
        sizes.append(stream.tell())
        return digest

    monkeypatch.setattr(scan_module, "content_hash", noted)
    return sizes


def set_back_change(file: Path) -> None:
    """Change a file so that neither its size nor its time of change tell, but only its time of status change."""
    status = file.stat()
    content = bytearray(file.read_bytes())
    # In PNG's last chunk, whose checksum no one reads: still a picture.
    content[-1] ^= 0xFF
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def hashes_of(manifest: Manifest) -> list[str | None]:
    return [facts.content_hash for facts in manifest.files]


def test_a_file_is_known_by_its_size_and_the_hash_of_its_content(tmp_path):
    (file,) = touch(tmp_path, "a.png")
    (facts,) = scan(find(tmp_path)[0], open_source(tmp_path), InputConfig(), Observer()).files
    content = file.read_bytes()
    assert facts.size == len(content)
    assert facts.content_hash == hashlib.blake2b(content, digest_size=16).hexdigest()


def test_a_file_that_cannot_be_opened_keeps_its_row_without_facts(tmp_path):
    touch(tmp_path, "a.png", "c.png")
    (tmp_path / "b.png").symlink_to("nowhere.png")
    manifest, _ = find(tmp_path)
    assert manifest.paths == ("a.png", "b.png", "c.png")
    assert [
        facts.size is None for facts in scan(manifest, open_source(manifest.root), InputConfig(), Observer()).files
    ] == [False, True, False]


# What an earlier scan found


def test_an_unchanged_file_is_not_read_again(tmp_path, root, hashed):
    files = age(write_pictures(tmp_path / "in", 3))
    before = scanned(files, Store(root, Observer()))
    hashed.clear()
    assert scanned(files, Store(root, Observer())).files == before.files
    assert hashed == []


def test_rehash_reads_every_file_again(tmp_path, root, hashed):
    files = age(write_pictures(tmp_path / "in", 3))
    before = scanned(files, Store(root, Observer()))
    hashed.clear()
    assert scanned(files, Store(root, Observer()), rehash=True).files == before.files
    assert len(hashed) == 3


def test_an_edit_that_sets_the_time_of_change_back_is_noticed_and_counts_from_then_on(tmp_path, root, hashed):
    files = age(write_pictures(tmp_path / "in", 3))
    before = scanned(files, Store(root, Observer()))
    set_back_change(files[1])
    settle()
    after = scanned(files, Store(root, Observer()))
    assert [one == other for one, other in zip(hashes_of(after), hashes_of(before), strict=True)] == [True, False, True]
    hashed.clear()
    assert scanned(files, Store(root, Observer())).files == after.files
    assert hashed == []


@pytest.mark.parametrize(
    "touched", [lambda file: file.chmod(0o600), lambda file: os.link(file, f"{file}.link")], ids=["chmod", "link"]
)
def test_a_change_of_status_alone_costs_one_reading(tmp_path, root, hashed, touched):
    files = age(write_pictures(tmp_path / "in", 3))
    before = scanned(files, Store(root, Observer()))
    touched(files[1])
    settle()
    hashed.clear()
    assert hashes_of(scanned(files, Store(root, Observer()))) == hashes_of(before)
    scanned(files, Store(root, Observer()))
    assert len(hashed) == 1


def test_what_the_version_before_found_is_used_and_changes_of_status_count_from_then_on(tmp_path, root, hashed):
    files = age(write_pictures(tmp_path / "in", 2))
    observer = Noticing()
    store = Store(root, observer)
    key = {"root": str(tmp_path / "in"), "pillow": version("pillow")}
    facts = scanned(files, None).files
    columns = {name: [getattr(one, name) for one in facts] for name in scan_schema(key).names[1:]}
    assert "ctime_ns" not in columns
    folder = root / "scans" / folder_name(key)
    Shards(folder, key, scan_schema(key), observer).append({"path": [os.fsencode(file) for file in files], **columns})
    hashed.clear()
    assert scanned(files, store).files == facts
    assert scanned(files, store).files == facts
    assert hashed == []
    assert observer.notices == []
    assert verify(root, observer) == (2, [])
    set_back_change(files[0])
    assert hashes_of(scanned(files, store))[0] != facts[0].content_hash


# Files without an end, and times without a column


@pytest.mark.parametrize("target", ["/proc/self/pagemap", "/proc/self/status"])
def test_a_file_that_gives_more_than_its_size_is_bad(tmp_path, root, target):
    (tmp_path / "a.png").symlink_to(target)
    assert [facts.reason for facts in scanned([tmp_path / "a.png"], Store(root, Observer())).files] == [
        "changed while it was read"
    ]
    assert shards_of(root, "scans") == []


class _Grows:
    """Appends to a file for as long as the block runs."""

    def __init__(self, file: Path) -> None:
        self._file, self._ends = file, threading.Event()
        self._thread = threading.Thread(target=self._grow)

    def _grow(self) -> None:
        with self._file.open("ab", buffering=0) as stream:
            while not self._ends.is_set():
                stream.write(b"x" * (1 << 16))

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()


def test_a_file_that_grows_while_it_is_read_is_bad_and_not_kept(tmp_path, root):
    (file,) = write_pictures(tmp_path / "in", 1, suffix=".bmp")
    with file.open("ab") as stream:
        stream.truncate(32 << 20)
    with _Grows(file):
        (facts,) = scanned([file], Store(root, Observer())).files
    assert (facts.reason, facts.content_hash) == ("changed while it was read", None)
    assert shards_of(root, "scans") == []


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not kept"])
@pytest.mark.parametrize("seconds", [9_300_000_000, -9_300_000_000], ids=["after 2262", "before 1677"])
def test_a_time_that_64_bits_do_not_hold_is_not_known(root, seconds, kept):
    with memory_folder() as folder:
        (file,) = write_pictures(folder, 1)
        os.utime(file, (seconds, seconds))
        if file.stat().st_mtime != seconds:
            pytest.skip("no file system here keeps such a time")
        settle()
        store = Store(root, Observer()) if kept else None
        (facts,) = scanned([file], store).files
        assert (facts.mtime_ns, facts.reason) == (None, None)
        assert scanned([file], store).files == (facts,)
        assert len(shards_of(root, "scans")) == kept


def test_a_file_of_another_size_is_read_again(tmp_path, root):
    files = age(write_pictures(tmp_path / "in", 3))
    before = scanned(files, Store(root, Observer()))
    status = files[0].stat()
    files[0].write_bytes(files[0].read_bytes() + b"more")
    os.utime(files[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert hashes_of(scanned(files, Store(root, Observer())))[0] != hashes_of(before)[0]


def test_a_file_of_another_time_of_change_is_read_again(tmp_path, root):
    files = age(write_pictures(tmp_path / "in", 3))
    before = scanned(files, Store(root, Observer()))
    set_back_change(files[0])
    os.utime(files[0], (1, 1))
    assert hashes_of(scanned(files, Store(root, Observer())))[0] != hashes_of(before)[0]


@pytest.mark.parametrize(("first", "second"), [("a", "a/b"), ("a/b", "a")], ids=["a folder in it", "one it lies in"])
def test_what_a_scan_found_is_used_for_a_related_folder(tmp_path, root, hashed, first, second):
    (file,) = age(write_pictures(tmp_path / "a" / "b", 1))
    named = {
        folder: Manifest(tmp_path / folder, (os.path.relpath(file, tmp_path / folder),)) for folder in (first, second)
    }
    given: dict[str, Any] = {"config": InputConfig(), "observer": Observer()}
    sources = {folder: open_source(manifest.root) for folder, manifest in named.items()}
    before = scan(named[first], sources[first], store=Store(root, Observer()), **given)
    hashed.clear()
    after = scan(named[second], sources[second], store=Store(root, Observer()), **given)
    assert after.files == before.files
    assert hashed == []


def test_what_a_scan_found_of_a_name_that_is_not_utf8_is_used_again(tmp_path, root, hashed):
    (file,) = write_pictures(tmp_path / os.fsdecode(b"caf\xe9"), 1)
    (file,) = age([file.rename(file.with_name(os.fsdecode(b"\xff.png")))])
    before = scanned([file], Store(root, Observer()))
    hashed.clear()
    assert scanned([file], Store(root, Observer())).files == before.files
    assert hashed == []


def test_what_another_pillow_found_is_not_used(root):
    store = Store(root, Observer())
    path = root / "in" / "a.png"
    facts = scanned([*write_pictures(root / "in", 1)], None).files
    store.scans(root / "in", {"pillow": "1"}).keep([path], facts)
    assert store.scans(root / "in", {"pillow": "2"}).known([path]).slice(0, 1) == [None]
    assert store.scans(root / "in", {"pillow": "1"}).known([path]).slice(0, 1) == [facts[0]]


def test_a_file_changed_a_moment_ago_is_not_kept(tmp_path, root):
    old, new = write_pictures(tmp_path / "in", 2)
    age([old])
    # A minute ahead: whatever the clock says when it is looked at, the file may change again within the same tick.
    ahead = time.time_ns() + 60 * 10**9
    os.utime(new, ns=(ahead, ahead))
    settle()
    scanned([old, new], Store(root, Observer()))
    (shard,) = shards_of(root, "scans")
    assert pd.read_parquet(shard)["path"].tolist() == [os.fsencode(old)]


def test_a_file_changed_in_this_second_is_not_kept_where_times_are_whole_seconds(tmp_path, root):
    old, new = write_pictures(tmp_path / "in", 2)
    age([old])
    now = int(time.time())
    os.utime(new, (now, now))
    settle()
    scanned([old, new], Store(root, Observer()))
    (shard,) = shards_of(root, "scans")
    assert pd.read_parquet(shard)["path"].tolist() == [os.fsencode(old)]


class Slow(Observer):
    """Holds the scan up for longer than the files named are young."""

    def progress(self, stage: str, done: int, total: int) -> None:
        time.sleep(1.2)


def test_a_file_that_was_new_when_it_was_looked_at_is_not_kept_however_long_the_scan_takes(tmp_path, root):
    (file,) = write_pictures(tmp_path / "in", 1)
    # What counts is the moment of the look: from then on a change within the file's tick of the clock goes unseen. A
    # second ahead, so that a busy machine is in time for the look.
    ahead = time.time_ns() + 10**9
    os.utime(file, ns=(ahead, ahead))
    before = scanned([file], Store(root, Observer()), Slow())
    set_back_change(file)
    assert hashes_of(scanned([file], Store(root, Observer()))) != hashes_of(before)


def write_where_clocks_tick_in_seconds(file: Path, content: bytes) -> None:
    """Write a file as it comes out on a file system that keeps whole seconds only."""
    file.write_bytes(content)
    second = int(time.time())
    os.utime(file, (second, second))


@pytest.mark.slow
def test_a_change_in_the_same_tick_of_the_clock_as_the_scan_is_noticed_by_the_next_run(tmp_path):
    file, other = write_pictures(tmp_path / "in", 2, suffix=".bmp")
    contents = file.read_bytes(), other.read_bytes()

    class EditsAtOnce(Observer):
        """Edits the file when it has just been read; then the scan goes on for as long as other files take."""

        def progress(self, stage, done, total):
            write_where_clocks_tick_in_seconds(file, contents[1])
            time.sleep(3)

    # A second has just begun, so that both changes are in it.
    time.sleep(1 - time.time() % 1)
    write_where_clocks_tick_in_seconds(file, contents[0])
    before = hashes_of(scanned([file], Store(tmp_path / "store", Observer()), EditsAtOnce()))
    assert hashes_of(scanned([file], Store(tmp_path / "store", Observer()))) != before


class StopsAfterALoss(Serial):
    """The workers of the first task died; then the job is asked to stop."""

    lost = False

    def map_in_order(self, function: Any, tasks: Any, stage: Stage) -> Any:
        if not self.lost:
            self.lost = True
            yield Lost("2 workers died")


def test_a_job_that_is_stopped_while_it_looks_for_the_file_that_ends_workers_is_interrupted(tmp_path):
    files = write_pictures(tmp_path, 3)
    manifest = Manifest(tmp_path, tuple(file.name for file in files))
    with pytest.raises(InterruptedJobError, match="interrupted; no results were written"):
        scan(manifest, open_source(tmp_path), InputConfig(), Observer(), executor=StopsAfterALoss())


class StopsAfter(Observer):
    """Asks to stop when so many files have been looked at."""

    def __init__(self, most: int) -> None:
        self._most, self._done = most, 0

    def progress(self, stage: str, done: int, total: int) -> None:
        self._done = done

    def stopping(self) -> bool:
        return self._done >= self._most


def test_a_scan_that_is_stopped_ends_within_its_slice_and_keeps_what_it_has_found(tmp_path, hashed):
    files = age(write_pictures(tmp_path / "in", 12))
    store = Store(tmp_path / "store", Observer())
    with pytest.raises(InterruptedJobError):
        scanned(files, store, StopsAfter(5))
    del hashed[:]
    assert len(scanned(files, store).files) == 12
    assert len(hashed) == 12 - 5

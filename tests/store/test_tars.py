"""What the store knows of tar files."""

from __future__ import annotations

import pytest

from gpu_cluster.events import Observer
from gpu_cluster.facts import FileFacts
from gpu_cluster.store.shards import Shards
from gpu_cluster.store.store import Store
from gpu_cluster.store.tars import KnownTar, TarMember, TarShards


@pytest.fixture
def shards(tmp_path):
    """Return what opens the tar files of one folder in a store."""
    return lambda: Store(tmp_path, Observer()).tars("/x", {"pillow": "1"})


def tar(number: int, mtime_ns: int = 1) -> KnownTar:
    facts = FileFacts(content_hash=f"{number:032x}", format="PNG")
    return KnownTar(f"/x/{number}.tar", 10, mtime_ns, None, None, [TarMember("caf\udce9.png", 512, 9, facts)])


def test_what_was_kept_of_a_tar_file_is_known(shards):
    for number in range(3):
        shards().keep(tar(number))
    known: TarShards = shards()
    assert [known.known(f"/x/{number}.tar") for number in range(3)] == [tar(number) for number in range(3)]
    assert known.known("/x/3.tar") is None


def test_of_a_tar_file_that_was_scanned_twice_the_newer_scan_is_known(shards):
    shards().keep(tar(0, mtime_ns=1))
    shards().keep(tar(0, mtime_ns=2))
    assert shards().known("/x/0.tar") == tar(0, mtime_ns=2)


def test_each_shard_is_read_twice_at_most_however_many_there_are(shards, monkeypatch):
    for number in range(20):
        shards().keep(tar(number))
    reads, read = [], Shards.read

    def noted(self, name):
        reads.append(name)
        return read(self, name)

    monkeypatch.setattr(Shards, "read", noted)
    known = shards()
    assert all(known.known(f"/x/{number}.tar") for number in range(20))
    assert len(reads) == 40

"""Pictures in tar files: found, looked at and labelled in one pass, and not read again while a file is as before."""

from __future__ import annotations

import json
import os
import time
from importlib.metadata import version

import pytest

from gpu_cluster.config import InputConfig, StoreConfig
from gpu_cluster.errors import DataError, InterruptedJobError
from gpu_cluster.events import Observer, Recorder
from gpu_cluster.images import scan as scan_module
from gpu_cluster.images import tar_files, tar_scan
from gpu_cluster.images.places import open_source
from gpu_cluster.images.scan import scan
from gpu_cluster.images.source import Picture
from gpu_cluster.jobs.prepare import find_labelled
from gpu_cluster.manifest import Manifest
from gpu_cluster.store.store import open_store
from tests.helpers import settle
from tests.tars import png, write_tar


def find(*images, store=None, **options) -> Manifest:
    kept = StoreConfig(cache=store) if store is not None else StoreConfig(no_cache=True)
    return find_labelled(InputConfig(images=images, **options), Recorder(), kept)


@pytest.fixture
def reads(monkeypatch):
    """The places in tar files that are read, in their order."""
    read, found = tar_files.TarFile.read, []

    def noted(self, offset, size):
        found.append(offset)
        return read(self, offset, size)

    monkeypatch.setattr(tar_files.TarFile, "read", noted)
    return found


def test_a_tar_file_gives_the_facts_that_the_same_files_in_a_folder_have(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.png").write_bytes(png(number))
    (folder / "broken.png").write_bytes(png(0)[:20])
    write_tar(tmp_path / "a.tar", [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())])
    ours, theirs = (
        scan(manifest, open_source(manifest.root), InputConfig(), Observer())
        for manifest in (find(tmp_path / "a.tar"), find(folder))
    )
    assert [path.removeprefix("a.tar::") for path in ours.paths] == list(theirs.paths)
    for one, other in zip(ours.files, theirs.files, strict=True):
        assert (one.content_hash, one.format, one.width, one.reason) == (
            other.content_hash,
            other.format,
            other.width,
            other.reason,
        )
    assert ours.bad == theirs.bad != {}


def test_pictures_come_in_the_order_of_the_tar_files_and_of_their_members(tmp_path):
    write_tar(tmp_path / "b.tar", [("2.png", png(2)), ("1.png", png(1))])
    write_tar(tmp_path / "a.tar", [("9.png", png(9)), ("0.png", png(0))])
    found = find(tmp_path / "b.tar", tmp_path / "a.tar")
    assert list(found.paths) == ["a.tar::9.png", "a.tar::0.png", "b.tar::2.png", "b.tar::1.png"]


def test_a_member_is_read_from_where_it_lies(tmp_path):
    contents = {f"{number}.png": png(number) for number in range(4)}
    write_tar(tmp_path / "a.tar", contents.items())
    found = find(tmp_path / "a.tar")
    source = open_source(found.root)
    for path, facts in zip(found.paths, found.listed, strict=True):
        with Picture(source, path, facts).open() as stream:
            assert stream.read() == contents[path.removeprefix("a.tar::")]


def test_numbers_in_braces_name_several_tar_files(tmp_path):
    for number in range(3):
        write_tar(tmp_path / f"{number:03d}.tar", [("a.png", png(number))])
    assert len(find(tmp_path / "{000..002}.tar")) == 3


def test_the_suffix_of_a_tar_file_can_have_capital_letters(tmp_path):
    write_tar(tmp_path / "A.TAR", [("x/0.png", png(0))])
    found = find(tmp_path / "A.TAR")
    assert list(found.paths) == ["A.TAR::x/0.png"]
    with Picture(open_source(found.root), found.paths[0], found.listed[0]).open() as stream:
        assert stream.read() == png(0)


def test_many_members_of_which_nothing_is_known_are_found_in_one_pass(tmp_path, reads):
    write_tar(tmp_path / "a.tar", [(f"{number}.png", png(number)) for number in range(20)])
    source = open_source(tmp_path)
    for number in range(20):
        with source.open(f"a.tar::{number}.png")[0] as stream:
            assert stream.read() == png(number)
    assert reads.count(0) == 1


@pytest.mark.parametrize("name", ["../../up.png", "/absolute.png", "a\nb.png", "x" * 255 + ".png", "caf\udce9.png"])
def test_whatever_a_member_is_called_it_is_a_row_and_no_path(tmp_path, name):
    write_tar(tmp_path / "a.tar", [(name, png(1))])
    found = find(tmp_path / "a.tar")
    assert list(found.paths) == [f"a.tar::{name}"]
    assert os.listdir(tmp_path) == ["a.tar"]


def test_of_members_with_the_same_name_the_last_one_counts(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.png", png(1)), ("b.png", png(2)), ("a.png", png(3))])
    found = find(tmp_path / "a.tar")
    assert list(found.paths) == ["a.tar::b.png", "a.tar::a.png"]
    with Picture(open_source(found.root), found.paths[1], found.listed[1]).open() as stream:
        assert stream.read() == png(3)


def test_hidden_members_are_skipped_and_other_files_are_passed_over(tmp_path):
    others = [(".a.png", png(1)), ("__MACOSX/._b.png", png(2)), ("notes.txt", b"text"), ("d/e.csv", b"1,2")]
    write_tar(tmp_path / "a.tar", [("b.png", png(3)), *others])
    found = find(tmp_path / "a.tar")
    assert list(found.paths) == ["a.tar::b.png"]
    assert found.passed_over == ("a.tar::d/e.csv", "a.tar::notes.txt")


def test_labels_come_from_cls_and_json_members(tmp_path):
    members = [
        ("x/0.png", png(0)),
        ("x/0.cls", b"3\n"),
        ("x/1.png", png(1)),
        ("x/1.json", json.dumps({"label": "rose", "id": 5}).encode()),
        ("x/2.png", png(2)),
        ("x/2.json", b"{broken"),
    ]
    write_tar(tmp_path / "a.tar", members)
    found = find(tmp_path / "a.tar")
    assert found.labels == ("3", "rose", None)
    assert find(tmp_path / "a.tar", label_col="id").labels == ("3", "5", None)


def test_a_label_that_is_no_text_is_none(tmp_path):
    members = [("0.png", png(0)), ("0.json", b'{"label": "\\ud800"}'), ("1.png", png(1)), ("1.cls", b"rose")]
    write_tar(tmp_path / "a.tar", members)
    assert find(tmp_path / "a.tar").labels == (None, "rose")


def test_of_members_with_labels_no_more_is_kept_than_labels_need(tmp_path):
    long = json.dumps({"label": "rose", "caption": "x" * 5000, "box": [1] * 5000}).encode()
    members = [("0.png", png(0)), ("0.json", long), ("1.png", png(1)), ("1.cls", b"y" * 5000)]
    write_tar(tmp_path / "a.tar", members)
    settle()
    found = find(tmp_path / "a.tar", store=tmp_path / "store")
    assert found.labels == ("rose", None)
    store = open_store(StoreConfig(cache=tmp_path / "store"), Observer())
    assert store is not None
    kept = store.tars(str(tmp_path), {"pillow": version("pillow")}).known(str(tmp_path / "a.tar"))
    assert kept is not None
    contents = [member.content for member in kept.members if member.facts is None]
    assert contents == [b'{"label": "rose"}', None]


def test_a_tar_file_with_more_labels_than_can_be_held_is_bad(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_scan, "_MOST_KEPT_BYTES", 5)
    write_tar(tmp_path / "a.tar", [("0.png", png(0)), ("0.cls", b"rose"), ("1.png", png(1)), ("1.cls", b"tulip")])
    found = find(tmp_path / "a.tar")
    assert found.bad == {0: "more than 5 bytes of labels; split it"}
    assert found.labels == (None, "rose", None)


def test_labels_from_folders_are_those_in_the_tar_file(tmp_path):
    write_tar(tmp_path / "a.tar", [("rose/0.png", png(0)), ("tulip/1.png", png(1)), ("2.png", png(2))])
    assert find(tmp_path / "a.tar", labels_from_folders=True).labels == ("rose", "tulip", None)


def test_a_table_of_labels_names_members_by_their_names(tmp_path):
    write_tar(tmp_path / "a.tar", [("x/0.png", png(0)), ("y/1.png", png(1)), ("y/0.png", png(2))])
    (tmp_path / "labels.csv").write_text("file,label\nx/0.png,a\n1.png,b\na.tar::y/0.png,c\n")
    assert find(tmp_path / "a.tar", labels=tmp_path / "labels.csv").labels == ("a", "b", "c")


def test_a_damaged_tar_file_is_bad_and_what_comes_before_is_used(tmp_path):
    write_tar(tmp_path / "a.tar", [(f"{number}.png", png(number)) for number in range(4)])
    content = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(content[: len(content) // 2])
    found = find(tmp_path / "a.tar", store=tmp_path / "store")
    assert found.paths[0] == "a.tar"
    assert found.bad[0].startswith("damaged or cut short after ")
    assert 1 < len(found) < 5
    (tmp_path / "a.tar").write_bytes(content)
    assert len(find(tmp_path / "a.tar", store=tmp_path / "store")) == 4


def test_a_tar_file_that_is_not_there_is_an_error_before_work_starts(tmp_path):
    write_tar(tmp_path / "a.tar", [("0.png", png(0))])
    with pytest.raises(DataError, match="does not exist"):
        find(tmp_path / "a.tar", tmp_path / "b.tar")


def test_a_tar_file_without_pictures_is_no_input(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.txt", b"text")])
    with pytest.raises(DataError, match="no images in"):
        find(tmp_path / "a.tar")


def test_a_tar_file_that_is_as_before_is_not_read_again(tmp_path, reads):
    write_tar(tmp_path / "a.tar", [(f"{number}.png", png(number)) for number in range(3)])
    settle()
    first = find(tmp_path / "a.tar", store=tmp_path / "store")
    assert reads
    reads.clear()
    again = find(tmp_path / "a.tar", store=tmp_path / "store")
    assert reads == []
    assert (again.paths, again.listed) == (first.paths, first.listed)


def test_a_tar_file_that_changed_is_read_again(tmp_path):
    write_tar(tmp_path / "a.tar", [("0.png", png(0))])
    find(tmp_path / "a.tar", store=tmp_path / "store")
    write_tar(tmp_path / "a.tar", [("1.png", png(1))])
    assert list(find(tmp_path / "a.tar", store=tmp_path / "store").paths) == ["a.tar::1.png"]


def test_a_tar_file_that_may_change_in_the_same_tick_of_the_clock_is_read_again(tmp_path, reads):
    write_tar(tmp_path / "a.tar", [("0.png", png(0))])
    # Whatever the clock says when it is looked at, another change may give the same time.
    os.utime(tmp_path / "a.tar", (time.time() + 60,) * 2)
    settle()
    find(tmp_path / "a.tar", store=tmp_path / "store")
    reads.clear()
    find(tmp_path / "a.tar", store=tmp_path / "store")
    assert reads


def test_a_picture_with_a_reason_that_may_pass_is_looked_at_again(tmp_path, reads, monkeypatch):
    monkeypatch.setattr(scan_module, "_ROOM_BYTES", 0)
    write_tar(tmp_path / "a.tar", [("0.png", png(0)), ("1.png", png(1)[:20]), ("2.png", png(2)), ("2.cls", b"rose")])
    settle()
    first, later, last = (
        find(tmp_path / "a.tar", store=tmp_path / "store", max_pixels=max_pixels).listed
        for max_pixels in (2, 1_000_000, 1_000_000)
    )
    assert [facts.reason is None for facts in first] == [False, False, False]
    assert [facts.reason is None for facts in later] == [True, False, True]
    assert last == later
    assert reads.count(later[0].offset) == 1


def test_each_content_is_read_once_and_in_order(tmp_path, reads):
    write_tar(tmp_path / "a.tar", [(f"{number}.png", png(number)) for number in range(40)])
    found = find(tmp_path / "a.tar")
    offsets = [facts.offset for facts in found.listed]
    read = [offset for offset in reads if offset in offsets]
    assert sorted(read) == offsets
    # A few threads look at members, each at the next one.
    assert all(abs(read.index(offset) - at) <= 2 * (os.cpu_count() or 1) for at, offset in enumerate(offsets))


def test_small_copies_are_kept_for_reports(tmp_path):
    write_tar(tmp_path / "a.tar", [("0.png", png(0)), ("1.png", png(1))])
    found = find(tmp_path / "a.tar", store=tmp_path / "store")
    store = open_store(StoreConfig(cache=tmp_path / "store"), Observer())
    assert store is not None
    copies = store.copies().find(str(facts.content_hash) for facts in found.listed)
    assert len(copies) == 2
    assert all(copy.startswith(b"\xff\xd8") for copy in copies.values())


def test_a_request_to_stop_ends_the_reading(tmp_path):
    write_tar(tmp_path / "a.tar", [("0.png", png(0))])

    class Stopping(Observer):
        def stopping(self) -> bool:
            return True

    with pytest.raises(InterruptedJobError):
        find_labelled(InputConfig(images=(tmp_path / "a.tar",)), Stopping(), StoreConfig(no_cache=True))

"""Pictures at addresses: which there are, what is known of them, and how they are opened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from gpu_cluster.config import InputConfig
from gpu_cluster.errors import DataError
from gpu_cluster.events import Observer
from gpu_cluster.facts import FileFacts
from gpu_cluster.images import places, remote
from gpu_cluster.images.discover import discover
from gpu_cluster.images.places import Objects, open_source
from gpu_cluster.images.scan import scan
from gpu_cluster.images.source import UnreadableError
from tests.servers import Fault, FaultyServer, faulty_server
from tests.tars import png, write_tar

HERE = Path("/")


@pytest.fixture
def memory() -> Iterator[str]:
    """The address of a folder in fsspec's memory."""
    files = fsspec.filesystem("memory")
    inside = {"a.png": png(1), "inner/b": png(2), "notes.txt": b"notes", ".hidden.png": png(3), "c": b"no picture"}
    files.pipe({f"/test-places/{name}": content for name, content in inside.items()})
    yield "memory://test-places"
    files.rm("/test-places", recursive=True)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    monkeypatch.setattr(remote, "patience", remote.Patience(tries=2, first_pause_s=0.01, attempt_s=5))
    with faulty_server({"box/a.png": png(1), "box/inner/b.png": png(2)}) as found:
        yield found


def test_pictures_are_those_with_a_suffix_of_one_and_those_that_begin_as_one(memory):
    found = Objects({}, memory).list()
    assert {name.rpartition("test-places/")[2] for name in found.locations} == {"a.png", "inner/b"}
    assert {name.rpartition("test-places/")[2] for name in found.passed_over} == {"notes.txt", "c"}


def test_a_file_of_the_web_without_a_suffix_is_a_picture_if_it_begins_as_one(server):
    server.files |= {"box/c": png(3), "box/d": b"no picture", "box/e": b""}
    found = Objects({}, f"{server.address}box/").list()
    assert found.locations == {f"{server.address}box/{name}" for name in ("a.png", "inner/b.png", "c")}
    assert found.passed_over == {f"{server.address}box/{name}" for name in ("d", "e")}


def test_an_address_can_be_that_of_one_picture(memory):
    assert len(Objects({}, f"{memory}/a.png").list().locations) == 1


def test_a_place_that_is_not_there_is_an_error_of_the_data(memory):
    with pytest.raises(DataError, match=r"cannot read 'memory://gone/a\.png': not there"):
        Objects({}, "memory://gone/a.png").list()


def test_a_list_names_pictures_relative_to_its_own_address(memory):
    fsspec.filesystem("memory").pipe("/test-places/inner/list.txt", b"b\n../a.png\n")
    listing = Objects({}, f"{memory}/inner/list.txt").list()
    assert listing.locations == {f"{memory}/inner/b", f"{memory}/a.png"}


def test_a_list_on_a_server_that_names_files_of_this_machine_is_an_error_of_the_data(memory):
    fsspec.filesystem("memory").pipe("/test-places/list.txt", b"a.png\nfile:///etc/b.png\n")
    with pytest.raises(DataError, match=r"list\.txt': a list on a server names .* found an address of file://$"):
        Objects({}, f"{memory}/list.txt").list()


def test_a_name_with_two_colons_is_one_name(memory):
    fsspec.filesystem("memory").pipe("/test-places/more/x::y.png", png(4))
    (location,) = Objects({}, f"{memory}/more").list().locations
    with open_source(HERE).open(location)[0] as stream:
        assert stream.read() == png(4)


def test_a_list_of_this_machine_can_name_a_file_as_an_address(tmp_path):
    (tmp_path / "a b.png").write_bytes(png(1))
    (tmp_path / "list.txt").write_text(f"file://{tmp_path}/a%20b.png\n")
    assert list(discover(InputConfig(input_list=tmp_path / "list.txt"), Observer()).paths) == ["a b.png"]


def test_a_picture_is_opened_with_as_many_bytes_as_its_size_says(memory):
    stream, stat = open_source(HERE).open(f"{memory}/a.png")
    with stream:
        assert stream.read() == png(1)
    assert stat.size == len(png(1))


def test_what_is_known_of_a_picture_is_not_asked_for_again(server):
    source, location = open_source(HERE), f"{server.address}box/a.png"
    stat = source.stat(location)
    server.requests.clear()
    facts = FileFacts(size=stat.size, version=stat.version)
    assert source.stat(location, facts) == source.open(location, facts)[1]
    assert server.requests == []


def test_a_scanned_picture_of_a_server_that_says_nothing_of_it_is_not_asked_for_again(server):
    facts = FileFacts(size=len(png(1)), content_hash="0" * 32)
    with open_source(HERE).open(f"{server.address}box/a.png", facts)[0] as stream:
        assert stream.read() == png(1)
    assert [one.method for one in server.requests] == ["GET"]


def test_a_picture_without_a_size_is_read_once_to_be_opened(server):
    server.faults["box/a.png"] = Fault("no size")
    stream, stat = open_source(HERE).open(f"{server.address}box/a.png")
    assert stream.read() == png(1)
    assert stat.size == len(png(1))
    assert server.reads() == {"box/a.png": 1}


def test_addresses_that_are_signed_for_reading_only_are_read_once_by_a_scan(server):
    server.faults |= {path: Fault("no head", 403) for path in server.files}
    signed = [f"{server.address}{path}?X-Amz-Signature=abc" for path in server.files]
    manifest = discover(InputConfig(images=tuple(signed)), Observer())
    server.requests.clear()
    scanned = scan(manifest, open_source(HERE, manifest.signed), InputConfig(), Observer())
    assert scanned.bad == {}
    assert list(scanned.paths) == [f"{server.address}{path}" for path in server.files]
    # What discovering them said of them is enough for the scan.
    assert sorted((one.method, one.path, one.range) for one in server.requests) == [
        ("GET", path, None) for path in server.files
    ]


def test_a_picture_without_a_size_and_without_an_end_has_a_reason(server, monkeypatch):
    monkeypatch.setattr(places, "_MOST_UNSIZED_BYTES", 1 << 20)
    server.faults["box/a.png"] = Fault("endless")
    with pytest.raises(UnreadableError, match=f"^its server does not say its size: it has more than {1 << 20} bytes$"):
        open_source(HERE).open(f"{server.address}box/a.png")


def test_a_folder_of_the_web_that_cannot_be_listed_is_a_bad_row(server):
    server.faults["box/inner/"] = Fault("status", 403)
    manifest = discover(InputConfig(images=(f"{server.address}box/",)), Observer())
    assert list(manifest.paths) == [f"{server.address}box/a.png", f"{server.address}box/inner/"]
    assert manifest.bad == {1: "a folder that cannot be read: no permission to read it"}


def test_what_lets_a_reader_in_is_in_links_for_reading_only(server):
    names = ("a.png", "notes.csv", "folder/")
    links = "".join(f'<a href="{name}?token=secret">' for name in names)
    server.files["box/index.html"] = f'{links}<a href="inner/?token=secret">'.encode()
    manifest = discover(InputConfig(images=(f"{server.address}box/index.html",)), Observer())
    assert list(manifest.paths) == [f"{server.address}box/a.png"]
    assert manifest.signed == {f"{server.address}box/a.png": f"{server.address}box/a.png?token=secret"}
    assert "secret" not in str(manifest.passed_over)


def test_a_place_whose_own_page_cannot_be_read_is_an_error_of_the_data(server):
    server.faults["box/"] = Fault("status", 503)
    with pytest.raises(DataError, match=r"status 503 \(tried 2 times\)$"):
        Objects({}, f"{server.address}box/").list()


def test_the_members_of_a_tar_file_are_those_of_the_file_that_was_scanned_last(server, tmp_path):
    locations = ["all.tar::a.png", f"{server.address}all.tar::a.png"]
    read = []
    for seeds in ((1, 2), (20, 21, 22)):
        tar = write_tar(tmp_path / "all.tar", [(f"{'ab'[seed % 2]}.png", png(seed)) for seed in seeds])
        server.files["all.tar"] = tar.read_bytes()
        found = discover(InputConfig(images=(tmp_path / "all.tar", f"{server.address}all.tar")), Observer())
        facts = dict(zip(found.paths, found.listed, strict=True))
        for location in locations:
            with open_source(tmp_path).open(location, facts[location])[0] as stream:
                read.append(stream.read())
    assert read == [png(2), png(2), png(22), png(22)]

"""Reading at addresses: by fsspec's memory, and from a server that misbehaves, as a web server and as one of S3."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace

import fsspec
import pytest

from gpu_cluster.errors import ConfigError
from gpu_cluster.images import remote, retries
from gpu_cluster.images.remote import Object
from gpu_cluster.images.retries import RemoteError
from tests.servers import Fault, FaultyServer, faulty_server, in_environment

CONTENT = bytes(range(256)) * 40
N = len(CONTENT)
HASTY = retries.Patience(tries=3, first_pause_s=0.01, longest_pause_s=0.02, attempt_s=20)
# For answers that come too late, where an attempt that is in time has no content to wait for.
IMPATIENT = replace(HASTY, attempt_s=0.4)
# For answers that no attempt may wait for.
MOST_IMPATIENT = replace(HASTY, attempt_s=0.1)


@pytest.fixture(scope="module")
def _running() -> Iterator[FaultyServer]:
    with faulty_server({"box/a.png": CONTENT}) as found, in_environment(found.environment):
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        # The first request of s3fs takes longer than HASTY allows.
        remote.look("s3://box/a.png")
        yield found


@pytest.fixture
def server(_running: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> FaultyServer:
    _running.reset({"box/a.png": CONTENT, "box/inner/b.png": CONTENT})
    monkeypatch.setattr(retries, "patience", HASTY)
    return _running


@pytest.fixture(params=["http", "s3"])
def address(request: pytest.FixtureRequest, server: FaultyServer) -> str:
    """The address of the folder of the pictures, as each protocol has it."""
    return f"{server.address}box" if request.param == "http" else "s3://box"


def reason(act: Callable[[], object]) -> str:
    with pytest.raises(RemoteError) as error:
        act()
    return str(error.value.strerror)


@pytest.fixture
def memory() -> Iterator[str]:
    """The address of a folder in fsspec's memory."""
    files = fsspec.filesystem("memory")
    files.pipe({"/test-remote/a.png": CONTENT, "/test-remote/inner/b.png": b"other"})
    yield "memory://test-remote"
    files.rm("/test-remote", recursive=True)


def unexpected(folder: str, error: RemoteError) -> None:
    raise AssertionError(f"{folder}: {error}")


def test_what_lies_in_memory_is_listed_with_its_sizes(memory):
    found = {one.address.rpartition("test-remote/")[2]: one.size for one in remote.objects(memory, unexpected)}
    assert found == {"a.png": N, "inner/b.png": 5}


def test_what_lies_in_memory_is_read_whole_or_in_part(memory):
    assert remote.read(f"{memory}/a.png", N) == CONTENT
    assert remote.read(f"{memory}/a.png", None) == CONTENT
    assert remote.read_part(f"{memory}/a.png", 10, 20) == CONTENT[10:20]


def test_an_object_of_another_size_than_the_listing_said_is_not_read(memory, monkeypatch):
    monkeypatch.setattr(retries, "patience", HASTY)
    assert reason(lambda: remote.read(f"{memory}/a.png", N - 1)) == (
        f"its server says that it has {N - 1} bytes and sends more (tried 3 times)"
    )
    assert reason(lambda: remote.read(f"{memory}/a.png", N + 9)) == (
        f"its server says that it has {N + 9} bytes and sends {N} (tried 3 times)"
    )


def test_what_is_not_there_is_looked_for_once(server, address):
    assert reason(lambda: remote.read(f"{address}/gone.png", 10)) == "not there"
    assert [one.path for one in server.requests] == ["box/gone.png"]


def test_a_scheme_that_nothing_reads_is_a_wrong_use():
    with pytest.raises(ConfigError, match="nothing reads addresses that begin with nowhere://; expected one of s3://"):
        remote.look("nowhere://a/b.png")


def test_size_and_version_are_those_that_the_server_says(server, address):
    first, again = remote.look(f"{address}/a.png"), remote.look(f"{address}/a.png")
    server.files["box/a.png"] = CONTENT[::-1]
    changed = remote.look(f"{address}/a.png")
    assert isinstance(first, Object)
    assert isinstance(changed, Object)
    assert (first.size, first.mtime_ns) == (N, 1_700_000_000 * 10**9)
    assert first == again
    assert first.version != changed.version


def test_a_server_that_says_nothing_of_its_contents_gives_no_version(server):
    server.versions = False
    found = remote.look(f"{server.address}box/a.png")
    assert found is not None
    assert (found.size, found.mtime_ns, found.version) == (N, None, None)


@pytest.mark.parametrize("status", [403, 405, 501])
def test_a_server_that_refuses_head_is_asked_for_the_first_byte(server, status):
    whole = remote.look(f"{server.address}box/a.png")
    server.requests.clear()
    server.faults["box/a.png"] = Fault("no head", status)
    assert remote.look(f"{server.address}box/a.png") == whole
    assert [(one.method, one.range) for one in server.requests] == [("HEAD", None), ("GET", "bytes=0-0")]
    # The server counts after it has sent.
    assert server.n_sent <= 1


def test_a_server_that_refuses_head_and_knows_no_ranges_says_the_size_too(server):
    server.faults["box/a.png"] = Fault("no head")
    server.ranges = False
    found = remote.look(f"{server.address}box/a.png")
    assert found is not None
    assert found.size == N


def test_an_empty_object_of_a_server_that_refuses_head_has_no_bytes(server):
    server.files["box/a.png"] = b""
    server.faults["box/a.png"] = Fault("no head")
    found = remote.look(f"{server.address}box/a.png")
    assert found is not None
    assert found.size == 0


def test_every_object_below_a_folder_is_listed(address):
    found = [one.address for one in remote.objects(f"{address}/", unexpected)]
    assert sorted(found) == [f"{address}/a.png", f"{address}/inner/b.png"]


def test_a_folder_of_the_web_that_cannot_be_listed_is_told_and_the_others_are_listed(server):
    server.faults["box/inner/"] = Fault("status", 503)
    told: list[tuple[str, str | None]] = []
    found = [
        one.address
        for one in remote.objects(f"{server.address}box/", lambda folder, error: told.append((folder, error.strerror)))
    ]
    assert found == [f"{server.address}box/a.png"]
    assert told == [(f"{server.address}box/inner/", "its server answered with status 503 (tried 3 times)")]


def test_folders_in_one_another_without_end_are_told_and_left(server, monkeypatch):
    monkeypatch.setattr(remote, "_MOST_LEVELS", 3)
    server.files["box/b/b/b/b/b/b/a.png"] = CONTENT
    told: list[tuple[str, str | None]] = []
    found = remote.objects(f"{server.address}box", lambda folder, error: told.append((folder, error.strerror)))
    assert len(list(found)) == 2
    assert told == [(f"{server.address}box/b/b/b/b/", "more than 3 folders in one another")]


def test_more_folders_of_the_web_than_can_be_meant_are_a_reason(server, monkeypatch):
    monkeypatch.setattr(remote, "_MOST_PAGES", 3)
    server.files |= {f"box/{number}/a.png": CONTENT for number in range(5)}
    with pytest.raises(RemoteError, match="it has more than 3 folders"):
        list(remote.objects(f"{server.address}box/", unexpected))


def test_a_folder_of_the_web_whose_page_fails_at_first_is_listed(server):
    server.faults["box/inner/"] = Fault("status", 503, times=2)
    assert len(list(remote.objects(f"{server.address}box/", unexpected))) == 2


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_a_status_that_passes_is_tried_again_until_the_content_comes(server, address, status):
    server.faults["box/a.png"] = Fault("status", status, times=2)
    assert remote.read(f"{address}/a.png", N) == CONTENT
    assert server.reads() == {"box/a.png": 3}


def test_a_server_that_always_fails_is_given_up_after_some_tries(server, address):
    server.faults["box/a.png"] = Fault("status", 503)
    expected = "its server answered with status 503 (tried 3 times)"
    assert reason(lambda: remote.read(f"{address}/a.png", N)) == expected
    assert server.reads() == {"box/a.png": 3}


@pytest.mark.parametrize(("status", "expected"), [(403, "no permission to read it"), (404, "not there")])
def test_a_status_that_does_not_pass_is_not_tried_again(server, address, status, expected):
    server.faults["box/a.png"] = Fault("status", status)
    assert reason(lambda: remote.read(f"{address}/a.png", N)) == expected
    assert server.reads() == {"box/a.png": 1}


def test_a_connection_that_drops_in_the_middle_is_tried_again(server, address):
    server.faults["box/a.png"] = Fault("drop", times=2)
    assert remote.read(f"{address}/a.png", N) == CONTENT
    assert server.reads() == {"box/a.png": 3}


def test_a_connection_that_always_drops_is_a_reason(server, address):
    server.faults["box/a.png"] = Fault("drop")
    assert reason(lambda: remote.read(f"{address}/a.png", N)) == "the connection to its server failed (tried 3 times)"


def test_a_server_that_is_gone_is_a_reason(monkeypatch):
    monkeypatch.setattr(retries, "patience", HASTY)
    with faulty_server() as gone:
        pass
    assert reason(lambda: remote.read(f"{gone.address}a.png", N)) == (
        "the connection to its server failed (tried 3 times)"
    )


def test_an_answer_that_comes_late_once_is_tried_again(server, address, monkeypatch):
    monkeypatch.setattr(retries, "patience", IMPATIENT)
    server.faults["box/a.png"] = Fault("late", 0.8, times=1)
    assert remote.read(f"{address}/a.png", N) == CONTENT


def test_a_server_that_sends_a_byte_now_and_then_does_not_hold_the_reader(server, address, monkeypatch):
    monkeypatch.setattr(retries, "patience", MOST_IMPATIENT)
    server.faults["box/a.png"] = Fault("trickle", 0.02)
    start = time.monotonic()
    assert reason(lambda: remote.read(f"{address}/a.png", N)) == "its server is too slow (tried 3 times)"
    assert time.monotonic() - start < 10


def test_a_slow_content_may_take_as_long_as_the_slowest_speed_needs(server, address, monkeypatch):
    monkeypatch.setattr(retries, "patience", retries.Patience(tries=1, attempt_s=0.3, slowest_bytes_per_s=1))
    server.files["box/a.png"] = b"12345"
    server.faults["box/a.png"] = Fault("trickle", 0.1)
    assert remote.read(f"{address}/a.png", 5) == b"12345"


def test_a_server_that_says_more_bytes_than_it_sends_is_a_reason(server, address):
    server.faults["box/a.png"] = Fault("too long", 100)
    assert reason(lambda: remote.read(f"{address}/a.png", N)) == "the connection to its server failed (tried 3 times)"


def test_a_server_that_says_fewer_bytes_than_it_sends_is_a_reason(server, address):
    server.faults["box/a.png"] = Fault("too short", 100)
    # It depends on the moment at which the other bytes come.
    assert reason(lambda: remote.read(f"{address}/a.png", N)) in {
        "the connection to its server failed (tried 3 times)",
        f"its server says that it has {N} bytes and sends {N - 100} (tried 3 times)",
    }


def test_a_size_that_the_listing_has_wrong_is_a_reason(server):
    server.faults["box/a.png"] = Fault("size listed", 100)
    listed = {one.address: one.size for one in remote.objects("s3://box/", unexpected)}
    assert reason(lambda: remote.read("s3://box/a.png", listed["s3://box/a.png"])) == (
        f"its server says that it has {N + 100} bytes and sends {N} (tried 3 times)"
    )


def test_a_content_without_end_is_left_when_it_has_more_bytes_than_its_size(server, address):
    server.faults["box/a.png"] = Fault("endless")
    tracemalloc.start()
    found = reason(lambda: remote.read(f"{address}/a.png", N))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == f"its server says that it has {N} bytes and sends more (tried 3 times)"
    assert peak < 16 << 20


def test_a_content_without_end_and_without_a_size_is_left_at_the_limit(server):
    server.faults["box/a.png"] = Fault("endless")
    tracemalloc.start()
    found = reason(lambda: remote.read(f"{server.address}box/a.png", None, most=1 << 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == f"it has more than {1 << 20} bytes"
    assert peak < 16 << 20


def test_a_server_without_ranges_gives_whole_files_and_the_beginnings_of_files(server, address):
    server.faults["box/a.png"] = Fault("no range")
    assert remote.read(f"{address}/a.png", N) == CONTENT
    assert remote.read_part(f"{address}/a.png", 0, 16) == CONTENT[:16]


def test_a_server_without_ranges_gives_no_parts_and_is_asked_once(server, address):
    server.faults["box/a.png"] = Fault("no range")
    assert reason(lambda: remote.read_part(f"{address}/a.png", 16, 32)) == (
        "its server sends no parts of files, and so no members of a tar file"
    )
    assert server.reads() == {"box/a.png": 1}


@pytest.mark.parametrize("fault", [Fault("status", 500), Fault("status", 403), Fault("late", 0.5), Fault("drop")])
def test_no_reason_has_the_signature_of_an_address(server, fault, monkeypatch):
    monkeypatch.setattr(retries, "patience", MOST_IMPATIENT if fault.name == "late" else HASTY)
    server.faults["box/a.png"] = fault
    with pytest.raises(RemoteError) as error:
        remote.read(f"{server.address}box/a.png?X-Amz-Signature=abcdef0123&x=1", N)
    assert "abcdef0123" not in f"{error.value!r} {error.value.__cause__!r} {error.value.strerror}"

"""Pictures on servers: the same groups as from a folder, each picture read twice, and every fault a row or a retry."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import fsspec
import pyarrow.parquet as pq
import pytest

from gpu_cluster.config import InputConfig
from gpu_cluster.events import Observer
from gpu_cluster.images import remote, retries, tar_files
from gpu_cluster.images.discover import discover
from tests.clusters import forked_workers
from tests.helpers import (
    EMBEDDED,
    SHARD,
    TINY_OPTIONS,
    Finished,
    called,
    gpu_cluster,
    kept,
    logged,
    started,
    wait_until,
)
from tests.servers import SECRET, Fault, FaultyServer, S3Server, faulty_server, in_environment, s3_server
from tests.tars import png, write_tar

# Whole jobs: together they take more than 10 s.
pytestmark = pytest.mark.slow

N_PICTURES = 12
# The names have what addresses write in another way.
FOLDERS = ("roses", "tulips", "w+x y%20")


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    pytest.importorskip("moto", reason="needs the packages for the tests")
    with s3_server(tmp_path_factory.mktemp("s3")) as server, in_environment(server.environment):
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield server


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(N_PICTURES):
        file = folder / FOLDERS[number % len(FOLDERS)] / f"{number:02d}.png"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(png(number))
    # A copy, one that is no picture but has the name of one, and one that is none.
    (folder / "copy.png").write_bytes(png(0))
    (folder / "broken.png").write_bytes(png(1)[:40])
    (folder / "notes.txt").write_text("notes")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of each file by its path, in the order in which a job takes them."""
    files = sorted((file for file in folder.rglob("*") if file.is_file()), key=os.fsencode)
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@dataclass(frozen=True)
class Ran:
    """A first run, one more with the same store, and how often each object was asked for in them."""

    first: Finished
    again: Finished
    reads: Counter[str]
    reads_again: Counter[str]


def assignments(done: Finished, start: str = "") -> str:
    """Return the table of a run, without what the paths begin with."""
    return (done.folder / "assignments.csv").read_text().replace(start, "")


def counts(done: Finished) -> dict[str, int]:
    found: dict[str, int] = done.json("run.json")["files"]
    return found


def twice(place: str | Path, folder: Path, reads: Callable[[], Counter[str]]) -> Ran:
    before = reads()
    options = (*TINY_OPTIONS, "--cache", folder / "store")
    first = called("run", place, *options, out=folder / "run")
    assert first.code == 0, first.err
    between = reads()
    again = called("run", place, *options, out=folder / "again")
    assert again.code == 0, again.err
    return Ran(first, again, between - before, reads() - between)


@pytest.fixture(scope="module")
def of_folder(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    done = called("run", pictures, *TINY_OPTIONS, "--no-cache", out=tmp_path_factory.mktemp("folder") / "run")
    assert done.code == 0, done.err
    return done


@pytest.fixture(scope="module")
def of_bucket(pictures: Path, s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    s3.put({f"all/{name}": content for name, content in contents(pictures).items()})
    return twice("s3://bucket/all", tmp_path_factory.mktemp("bucket"), lambda: s3.reads("all/"))


@pytest.fixture(scope="module")
def web(pictures: Path) -> Iterator[FaultyServer]:
    with faulty_server({f"all/{name}": content for name, content in contents(pictures).items()}) as server:
        yield server


@pytest.fixture(scope="module")
def of_web(web: FaultyServer, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return twice(f"{web.address}all/", tmp_path_factory.mktemp("web"), web.reads)


@pytest.fixture(scope="module")
def of_tar(pictures: Path, s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("tar")
    s3.put({"tars/all.tar": write_tar(folder / "all.tar", contents(pictures).items()).read_bytes()})
    return twice("s3://bucket/tars/all.tar", folder, lambda: s3.reads("tars/"))


def test_a_bucket_gives_the_assignments_of_the_folder(of_folder, of_bucket):
    assert assignments(of_bucket.first, "s3://bucket/all/") == assignments(of_folder)


def test_a_folder_of_the_web_gives_the_assignments_of_the_folder(of_folder, of_web, web):
    table = assignments(of_web.first, f"{web.address}all/")
    assert table.replace(quote(FOLDERS[2]), FOLDERS[2]) == assignments(of_folder)


def test_a_tar_file_in_a_bucket_gives_the_assignments_of_the_folder(of_folder, of_tar):
    assert assignments(of_tar.first, "s3://bucket/tars/all.tar::") == assignments(of_folder)


def test_bad_files_and_counts_are_those_of_the_folder(of_folder, of_bucket, of_web, of_tar):
    assert [counts(ran.first) for ran in (of_bucket, of_web, of_tar)] == [counts(of_folder)] * 3
    runs = (of_folder, of_bucket.first, of_web.first, of_tar.first)
    reasons = [list(done.table("bad_files.csv")["reason"]) for done in runs]
    assert reasons == [reasons[0]] * 4
    assert len(reasons[0]) == 1


def test_each_picture_of_a_server_is_read_twice(of_bucket, of_web, pictures):
    expected = {f"all/{name}": 2 for name in contents(pictures) if name != "notes.txt"}
    # The pixels of a copy are not needed, and the header of one that is broken says so.
    expected |= {"all/roses/00.png": 1, "all/broken.png": 1}
    assert [ran.reads for ran in (of_bucket, of_web)] == [expected] * 2


def test_a_tar_file_that_fits_one_part_is_read_once(of_tar):
    assert of_tar.reads == {"tars/all.tar": 1}


def test_a_second_run_reads_nothing(of_bucket, of_web, of_tar):
    assert [ran.reads_again for ran in (of_bucket, of_web, of_tar)] == [Counter()] * 3
    assert [ran.again.json("run.json")["n_computed"] for ran in (of_bucket, of_web, of_tar)] == [0] * 3


def test_a_picture_that_changed_on_the_server_is_read_again_and_no_other(s3, tmp_path):
    s3.put({f"changing/{number}.png": png(number) for number in range(6)})
    options = (*TINY_OPTIONS, "--cache", tmp_path / "store")
    called("run", "s3://bucket/changing", *options, out=tmp_path / "run")
    before = s3.reads("changing/")
    s3.put({"changing/3.png": png(30)})
    done = called("run", "s3://bucket/changing", *options, out=tmp_path / "again")
    assert s3.reads("changing/") - before == {"changing/3.png": 2}
    assert done.json("run.json")["n_computed"] == 1


# A job that is killed

OPTIONS = ("--features", "vgg16", "--image-size", "64", "--batch-size", "4", "--shard-size", str(SHARD), "--quiet")
QUICK = ("--k", "2", "--k-range", "2:2", "--n-init", "2", "--thumbnails", "1")
N_MANY = 4 * SHARD


def many(s3: S3Server, prefix: str, n: int) -> None:
    s3.put({f"{prefix}/{number:03d}.png": png(number) for number in range(n)})


def test_after_a_kill_the_scan_reads_nothing_and_only_what_was_not_finished_is_read_a_third_time(s3, tmp_path):
    prefix = "killed"
    many(s3, prefix, N_MANY)
    options = (*OPTIONS, *QUICK, "--cache", tmp_path / "store")
    place = tmp_path / "out"
    place.mkdir()
    with started("run", f"s3://bucket/{prefix}", *options, "--out", place / "run") as process:
        wait_until(lambda: logged(place, EMBEDDED) and len(kept(tmp_path / "store")) >= SHARD, process)
        process.kill()
    assert process.returncode in (None, -signal.SIGKILL)
    settled(lambda: s3.reads(prefix))
    n_kept, before = len(kept(tmp_path / "store")), s3.reads(prefix)
    done = called("run", f"s3://bucket/{prefix}", *options, out=place / "run")
    assert done.code == 0, done.err
    assert 0 < n_kept < N_MANY
    assert set(before.values()) <= {1, 2}
    # One read of the scan, which is not repeated; then one for each picture that was not kept.
    assert len(s3.reads(prefix) - before) == N_MANY - n_kept
    assert sum((s3.reads(prefix) - before).values()) == N_MANY - n_kept
    assert done.json("run.json")["n_computed"] == N_MANY - n_kept


def settled(reads: Callable[[], Counter[str]]) -> None:
    """Wait until what a killed job had asked for is in the log, and its workers have ended."""
    last = reads()
    while True:
        time.sleep(0.5)
        if (now := reads()) == last:
            return
        last = now


def test_workers_give_the_assignments_of_a_job_without_them_and_read_each_picture_twice(s3, tmp_path):
    many(s3, "workers", SHARD)
    given = ("run", "s3://bucket/workers", *OPTIONS, *QUICK, "--image-size", "32", "--shard-size", "4")
    alone = called(*given, "--cache", tmp_path / "store", out=tmp_path / "alone")
    before = s3.reads("workers")
    with forked_workers():
        done = called(*given, "--workers", "2", "--cache", tmp_path / "store-2", out=tmp_path / "run")
    assert (alone.code, done.code) == (0, 0), done.err
    assert (done.folder / "assignments.csv").read_bytes() == (alone.folder / "assignments.csv").read_bytes()
    assert set((s3.reads("workers") - before).values()) == {2}


# What lets the reader in


def everything_in(*folders: Path) -> str:
    """Return all names and contents below folders, and the tables in them as texts."""
    found = []
    for folder in folders:
        for file in folder.rglob("*"):
            found.append(str(file))
            if file.is_file():
                found.append(file.read_bytes().decode("latin-1"))
            if file.suffix == ".parquet":
                found.append(json.dumps(pq.read_table(file).to_pylist(), default=repr))
                found.append(repr(pq.read_schema(file).metadata))
    return "\n".join(found)


def test_no_credentials_are_written_or_shown(s3, tmp_path):
    s3.put({f"secret/{number}.png": png(number) for number in range(6)})
    signed = [
        s3.client().generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": f"secret/{name}"})
        for name in ("0.png", "1.png", "2.png", "gone.png")
    ]
    (tmp_path / "list.txt").write_text("\n".join(signed[1:]))
    done = gpu_cluster(
        *("run", "s3://bucket/secret", signed[0], "--input-list", tmp_path / "list.txt", "--verbose", "--debug"),
        *(option for option in TINY_OPTIONS if option != "--quiet"),
        *("--cache", tmp_path / "store"),
        out=tmp_path / "run",
    )
    assert done.code == 0, done.err
    assert counts(done) == {"found": 10, "ok": 6, "bad": 1, "duplicate": 3, "passed_over": 0}
    texts = everything_in(tmp_path / "run", tmp_path / "store") + done.out + done.err
    assert "secret/gone.png" in texts
    signatures = [found[1] for address in signed if (found := re.search(r"Signature=([^&]+)", address))]
    assert len(signatures) == len(signed)
    assert [word for word in (SECRET, *signatures, "Signature=") if word in texts] == []


# Faults


@pytest.mark.parametrize("fault", [Fault("status", 503, times=2), Fault("drop", times=2), Fault("late", 2, times=1)])
def test_a_tar_file_on_a_server_that_fails_at_first_is_read(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(retries, "patience", retries.Patience(tries=3, first_pause_s=0.01, attempt_s=1.5))
    members = [(f"{number}.png", png(number)) for number in range(4)]
    with faulty_server({"all.tar": write_tar(tmp_path / "all.tar", members).read_bytes()}) as server:
        server.faults["all.tar"] = fault
        found = discover(InputConfig(images=(f"{server.address}all.tar",)), Observer())
    assert [path.rpartition("::")[2] for path in found.paths] == [name for name, _content in members]
    assert found.bad == {}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault("status", 503), "cannot be opened: its server answered with status 503 (tried 2 times)"),
        (Fault("drop"), "cannot be read: the connection to its server failed (tried 2 times)"),
        (Fault("drop", after=3), "cannot be read: the connection to its server failed (tried 2 times)"),
        (
            Fault("no range"),
            "cannot be read: its server sends no parts of files, and so no members of a tar file",
        ),
        (Fault("no size"), "cannot be opened: its server does not say its size, which is needed for a tar file"),
        (Fault("other content"), "not a tar file"),
    ],
)
def test_a_tar_file_on_a_server_that_fails_is_a_row_with_a_reason(tmp_path, monkeypatch, fault, reason):
    monkeypatch.setattr(retries, "patience", retries.Patience(tries=2, first_pause_s=0.01, attempt_s=1))
    monkeypatch.setattr(tar_files, "_PART_BYTES", 4096)
    members = [(f"{number}.png", png(number)) for number in range(10)]
    with faulty_server({"all.tar": write_tar(tmp_path / "all.tar", members).read_bytes()}) as server:
        server.faults["all.tar"] = fault
        found = discover(InputConfig(images=(f"{server.address}all.tar",)), Observer())
    tar = list(found.paths).index(f"{server.address}all.tar")
    assert found.bad == {tar: reason}


_LOST = "the connection to its server failed"
_MANY_TIMES = r" \(tried 3 times\)"
# By the name of a picture: what goes wrong with it, and the reason that it gets; None if it ends well.
FAULTS: dict[str, tuple[Fault, str | None]] = {
    "00": (Fault("status", 503, times=2), None),
    "01": (Fault("status", 500, times=1), None),
    "02": (Fault("status", 429, times=2), None),
    "03": (Fault("drop", times=2), None),
    "04": (Fault("late", 2, times=1), None),
    "05": (Fault("no range"), None),
    "06": (Fault("status", 503), "its server answered with status 503" + _MANY_TIMES),
    "07": (Fault("drop"), _LOST + _MANY_TIMES),
    "08": (Fault("trickle", 0.1), "its server is too slow" + _MANY_TIMES),
    "09": (Fault("too long", 50), _LOST + _MANY_TIMES + r"|its server says that it has \d+ bytes and sends \d+ .*"),
    "10": (Fault("too short", 50), f"{_LOST}{_MANY_TIMES}|its server says that it has .*|.*damaged.*"),
    "11": (Fault("status", 403), "no permission to read it"),
    "12": (Fault("status", 404), "not there"),
    "13": (Fault("endless"), "its server (says|does not say) .*"),
    "14": (Fault("size listed", 50), f"its server says that it has .*{_MANY_TIMES}"),
}
N_GOOD = 4


@pytest.fixture(params=["web", pytest.param("s3")])
def faulty(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FaultyServer, str]]:
    """A server with the faults, and the address of its folder."""
    faults = {name: fault for name, (fault, _reason) in FAULTS.items() if request.param == "s3" or name != "14"}
    files = {f"box/{name}.png": png(number) for number, name in enumerate([*faults, "a", "b", "c", "d"])}
    with faulty_server(files) as server, in_environment(server.environment):
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        remote.look("s3://box/a.png")
        monkeypatch.setattr(retries, "patience", retries.Patience(tries=3, first_pause_s=0.01, attempt_s=1.5))
        server.faults |= {f"box/{name}.png": Fault(one.name, one.value, one.times) for name, one in faults.items()}
        yield server, f"{server.address}box/" if request.param == "web" else "s3://box/"
        fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_each_fault_ends_in_a_row_with_a_reason_or_in_a_retry_that_works(faulty, tmp_path):
    server, place = faulty
    names = [name.removeprefix("box/").removesuffix(".png") for name in server.faults]
    done = called("run", place, *TINY_OPTIONS, "--cache", tmp_path / "store", out=tmp_path / "run")
    assert done.code in (0, 3), done.err
    bad: dict[str, str] = dict(done.table("bad_files.csv").itertuples(index=False))
    reasons = {path.removeprefix(place).removesuffix(".png"): reason for path, reason in bad.items()}
    expected = {name: FAULTS[name][1] for name in names}
    assert sorted(reasons) == sorted(name for name, reason in expected.items() if reason is not None)
    assert {
        name: reason for name, reason in reasons.items() if not re.search(f"(^|: )({expected[name]})$", str(reason))
    } == {}
    found = counts(done)
    assert found["found"] == found["ok"] + found["bad"] + found["duplicate"] + found["passed_over"] == len(server.files)
    # When the faults are gone, the next run has all pictures.
    server.faults.clear()
    again = called("run", place, *TINY_OPTIONS, "--cache", tmp_path / "store", out=tmp_path / "again")
    assert (again.code, counts(again)["bad"]) == (0, 0)


def test_a_content_that_is_another_one_after_the_scan_is_a_row_with_a_reason(faulty, tmp_path):
    server, place = faulty
    server.faults.clear()
    server.faults["box/a.png"] = Fault("other content", after=1)
    done = called("run", place, *TINY_OPTIONS, "--cache", tmp_path / "store", out=tmp_path / "run")
    bad: dict[str, str] = dict(done.table("bad_files.csv").itertuples(index=False))
    assert bad == {f"{place}a.png": "it changed while the job ran"}

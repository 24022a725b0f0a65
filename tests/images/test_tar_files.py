"""Members of tar files, where they lie, and files that are damaged, cut short, compressed or none."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

import pytest

from gpu_cluster.images.tar_files import DamagedTarError, TarFile
from tests.tars import of_kind, write_tar

CONTENTS = [(f"folder/{number}.bin", bytes([number]) * (700 * number)) for number in range(6)]


@pytest.fixture
def tar(tmp_path):
    return write_tar(tmp_path / "a.tar", CONTENTS)


def names(path: Path) -> tuple[list[str], str]:
    """Return the names of the members, and why the rest cannot be read."""
    found: list[str] = []
    with TarFile(path) as opened:
        try:
            for member in opened.members():
                found.append(member.name)
        except DamagedTarError as error:
            return found, str(error)
    return found, ""


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_come_in_their_order_with_where_they_lie(tmp_path, form):
    long = "x" * 255
    written = [*CONTENTS, (long, b"long")] if form != tarfile.USTAR_FORMAT else CONTENTS
    path = write_tar(tmp_path / "a.tar", written, format=form)
    with TarFile(path) as opened:
        found = [(member.name, opened.read(member.offset, member.size)) for member in opened.members()]
    assert found == written


def test_links_folders_and_devices_are_left_out(tmp_path):
    others = [
        of_kind("folder", tarfile.DIRTYPE),
        of_kind("link.png", tarfile.SYMTYPE, "/etc/passwd"),
        of_kind("hard.png", tarfile.LNKTYPE, "folder/1.bin"),
        of_kind("device.png", tarfile.CHRTYPE),
        of_kind("pipe.png", tarfile.FIFOTYPE),
    ]
    path = write_tar(tmp_path / "a.tar", [*CONTENTS, *others])
    assert names(path) == ([name for name, _ in CONTENTS], "")


def test_of_a_file_that_is_cut_short_what_comes_before_is_found(tmp_path, tar):
    (tmp_path / "b.tar").write_bytes(tar.read_bytes()[:4000])
    found, why = names(tmp_path / "b.tar")
    assert found == [name for name, _ in CONTENTS[: len(found)]]
    assert 0 < len(found) < len(CONTENTS)
    assert why == f"damaged or cut short after {len(found)} files"


def test_a_file_that_ends_between_two_members_counts_as_cut_short(tmp_path, tar):
    content = tar.read_bytes()
    end = len(content.rstrip(b"\0")) // 512 * 512 + 512
    (tmp_path / "b.tar").write_bytes(content[:end])
    assert names(tmp_path / "b.tar") == ([name for name, _ in CONTENTS], "damaged or cut short after 6 files")


def test_a_damaged_header_ends_what_is_found(tmp_path, tar):
    with tarfile.open(tar) as opened:
        at = opened.getmembers()[3].offset
    content = bytearray(tar.read_bytes())
    content[at + 100 : at + 160] = b"\xff" * 60
    (tmp_path / "b.tar").write_bytes(content)
    assert names(tmp_path / "b.tar") == ([name for name, _ in CONTENTS[:3]], "damaged or cut short after 3 files")


def test_a_header_that_says_any_size_is_not_believed(tmp_path):
    header = tarfile.TarInfo("a.png")
    header.size = 1 << 62
    path = tmp_path / "a.tar"
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    assert names(path) == ([], "damaged or cut short after 0 files")


def test_a_header_of_extended_facts_of_any_size_is_not_read(tmp_path):
    header = tarfile.TarInfo("a.png")
    header.type, header.size = tarfile.XHDTYPE, 1 << 40
    path = tmp_path / "a.tar"
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    found, why = names(path)
    assert found == []
    assert why


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty, and so no tar file"),
        (b"hello" * 1000, "not a tar file"),
        (gzip.compress(bytes(10240)), "a tar file compressed with gzip"),
    ],
    ids=["empty", "text", "gzip"],
)
def test_what_is_no_tar_file_is_said_to_be_none(tmp_path, content, why):
    (tmp_path / "a.tar").write_bytes(content)
    assert names(tmp_path / "a.tar")[1].startswith(why)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_headers_that_only_say_more_of_the_next_one_do_not_end_the_job(tmp_path, kind):
    facts = b"12 path=abc\n"
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, len(facts)
    path = write_tar(tmp_path / "chain.tar", [("a.txt", b"a")])
    end = len(tarfile.TarInfo("a.txt").tobuf()) + 512
    chain = (header.tobuf(tarfile.USTAR_FORMAT) + facts.ljust(512, b"\0")) * 5000
    path.write_bytes(path.read_bytes()[:end] + chain)
    assert names(path) == (["a.txt"], "damaged or cut short after 1 files")

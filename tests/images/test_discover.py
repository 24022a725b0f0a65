"""From folders and files to a Manifest. Nothing here is decoded, so the files need not be pictures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpu_cluster.config import InputConfig, shipped_data
from gpu_cluster.errors import DataError
from gpu_cluster.events import Observer
from gpu_cluster.images.discover import discover
from gpu_cluster.images.formats import suffixes
from gpu_cluster.staging import staged
from tests.helpers import memory_folder, write_pictures
from tests.images.files import find, touch


def test_a_folder_is_searched_to_its_depths(tmp_path):
    touch(tmp_path, "a.png", "b/c.jpg", "b/d/e/f.webp")
    manifest, _ = find(tmp_path)
    assert manifest.paths == ("a.png", "b/c.jpg", "b/d/e/f.webp")
    assert manifest.root == tmp_path


@pytest.mark.parametrize("suffix", sorted(suffixes()))
def test_every_suffix_is_found_in_upper_and_mixed_case(tmp_path, suffix):
    touch(tmp_path, f"a{suffix}", f"b{suffix.upper()}", f"c{suffix.title()}")
    assert len(find(tmp_path)[0]) == 3


def test_files_of_other_kinds_are_passed_over(tmp_path):
    touch(tmp_path, "a.png", "b.txt", "c.csv", "d", "png", "e.png.part")
    assert find(tmp_path)[0].paths == ("a.png",)


def test_a_file_named_on_its_own_is_taken_whatever_its_suffix(tmp_path):
    (file,) = touch(tmp_path, "picture")
    assert find(file)[0].paths == ("picture",)


def test_several_folders_and_files_are_joined_below_what_they_share(tmp_path):
    touch(tmp_path, "one/a.png", "two/deep/b.png", "two/c.png", "three/d.png", "four/e.png")
    manifest, _ = find(tmp_path / "one", tmp_path / "two", tmp_path / "three" / "d.png")
    assert manifest.root == tmp_path
    assert manifest.paths == ("one/a.png", "three/d.png", "two/c.png", "two/deep/b.png")


def test_paths_with_two_dots_lead_to_paths_without_them(tmp_path):
    touch(tmp_path, "one/a.png", "two/b.png")
    manifest, _ = find(tmp_path / "one" / ".." / "two", tmp_path / "one")
    assert (manifest.root, manifest.paths) == (tmp_path, ("one/a.png", "two/b.png"))


def test_what_is_named_twice_is_found_once(tmp_path):
    files = touch(tmp_path, "in/a.png", "in/b.png")
    manifest, _ = find(tmp_path / "in", tmp_path / "in", files[0], tmp_path)
    assert manifest.paths == ("in/a.png", "in/b.png")


def test_what_is_named_twice_in_two_ways_is_found_once(tmp_path):
    touch(tmp_path, "in/a.png", "in/b.png", "by/c.png")
    manifest, _ = find(tmp_path / "in", tmp_path / "by" / ".." / "in", tmp_path / "by" / ".." / "in" / "a.png")
    assert [os.path.basename(path) for path in manifest.paths] == ["a.png", "b.png"]


def test_every_row_leads_back_to_its_file(tmp_path):
    files = touch(tmp_path, "one/a.png", "two/b.png")
    manifest, _ = find(tmp_path / "one", files[1])
    assert [manifest.file(row) for row in range(2)] == files


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    touch(tmp_path, "a.png", ".b.png", ".cache/c.png", "d/.e.png", "d/.thumbnails/f.png")
    assert find(tmp_path)[0].paths == ("a.png",)


def test_earlier_run_folders_are_passed_over_with_all_they_hold(tmp_path):
    touch(tmp_path, "a.png")
    with staged(tmp_path / "run") as stage:
        touch(stage.path, "run.json", "bad_files.csv", "plots/elbow.png", "cover.png")
    (tmp_path / "link").symlink_to("run")
    assert find(tmp_path)[0].paths == ("a.png",)


def test_run_folders_of_the_version_before_are_passed_over_by_what_their_record_says(tmp_path):
    touch(tmp_path, "a.png", "run/bad_files.csv", "run/plots/elbow.png", "run/cover.png")
    (tmp_path / "run" / "run.json").write_text('{"gpu_cluster": "0.1.0", "config": {}}')
    assert find(tmp_path)[0].paths == ("a.png",)


@pytest.mark.parametrize("names", [("run.json",), ("run.json", "bad_files.csv"), ("inventory.json",)])
def test_a_folder_that_only_looks_like_a_run_is_searched(tmp_path, names):
    touch(tmp_path, "a.png", *(f"mine/{name}" for name in names), "mine/b.png", "mine/plots/c.png")
    assert find(tmp_path)[0].paths == ("a.png", "mine/b.png", "mine/plots/c.png")


def test_a_link_to_a_folder_is_followed(tmp_path):
    touch(tmp_path, "elsewhere/a.png", "in/b.png")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    assert find(tmp_path / "in")[0].paths == ("b.png", "link/a.png")


def test_a_loop_of_links_ends_and_gives_every_file_once(tmp_path):
    touch(tmp_path, "a.png", "in/b.png")
    (tmp_path / "in" / "up").symlink_to(tmp_path)
    (tmp_path / "in" / "self").symlink_to(".")
    assert find(tmp_path)[0].paths == ("a.png", "in/b.png")


def test_files_are_in_the_order_of_the_bytes_of_their_paths(tmp_path):
    # As text the last two would change places, and by most locales "a" comes before "B".
    in_order = [b"B.png", b"a.png", b"a/z.png", b"a0.png", b"b.png", b"\x80.png", "é.png".encode()]
    touch(tmp_path, *(os.fsdecode(name) for name in reversed(in_order)))
    assert [os.fsencode(path) for path in find(tmp_path)[0].paths] == in_order


def test_without_images_named_the_sample_set_is_taken_and_the_user_is_told():
    manifest, notices = find()
    assert manifest.root == shipped_data() / "flowers"
    assert len(manifest) == 210
    assert any("210 drawn flowers" in notice for notice in notices)


def test_a_path_that_is_absent_is_an_error_that_names_it(tmp_path):
    with pytest.raises(DataError, match=r"absent' does not exist"):
        find(tmp_path / "absent")


def test_a_path_below_a_file_is_an_error_that_names_it(tmp_path):
    (file,) = touch(tmp_path, "a.png")
    with pytest.raises(DataError, match=r"a\.png/b' does not exist"):
        find(file / "b")


def test_a_name_longer_than_names_can_be_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"too long"):
        find(tmp_path / ("a" * 300))


def test_a_folder_without_images_is_an_error_that_says_what_is_looked_for(tmp_path):
    touch(tmp_path, "notes.txt", ".hidden.png")
    with pytest.raises(DataError, match=r"no images in .*expected image files, by their content .* or their name"):
        find(tmp_path)


def deep(folder: Path, depth: int, files: dict[int, str]) -> None:
    """Make so many folders, one in the other, with files at some depths, however long paths become."""
    parent = os.open(folder, os.O_RDONLY)
    for level in range(1, depth + 1):
        os.mkdir("dd", dir_fd=parent)
        child = os.open("dd", os.O_RDONLY, dir_fd=parent)
        os.close(parent)
        parent = child
        if level in files:
            os.close(os.open(files[level], os.O_CREAT | os.O_WRONLY, dir_fd=parent))
    os.close(parent)


def test_a_folder_is_searched_however_deep_it_is_and_what_is_deeper_than_paths_can_be_is_bad():
    with memory_folder() as folder:
        deep(folder, 1400, {1100: "b.png", 1400: "c.png"})
        touch(folder, "z.png")
        manifest, _ = find(folder)
    deepest, cut, other = manifest.paths
    assert (deepest, other) == ("dd/" * 1100 + "b.png", "z.png")
    assert cut.startswith("dd/" * 1300)
    assert manifest.bad == {1: "a folder that cannot be read: File name too long"}


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "huge", "gone"])
def test_a_list_that_cannot_be_read_is_an_error_that_names_it(tmp_path, kind):
    name = tmp_path / "list"
    if kind == "pipe":
        os.mkfifo(name)
    elif kind == "folder":
        name.mkdir()
    elif kind == "device":
        name.symlink_to("/dev/zero")
    elif kind == "huge":
        name.touch()
        os.truncate(name, 100 << 30)
    with pytest.raises(DataError, match=r"cannot read --input-list '.*list': .*; expected a file with one image file"):
        find(input_list=name)


def test_a_list_of_nothing_but_separators_is_empty(tmp_path):
    (tmp_path / "list").write_bytes(b"")
    os.truncate(tmp_path / "list", 1 << 20)
    with pytest.raises(DataError, match="is empty; expected one image file per line"):
        find(input_list=tmp_path / "list")


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="this system has no /dev/fd")
def test_a_list_may_come_from_a_pipe_of_the_shell(tmp_path):
    pictures = write_pictures(tmp_path / "in", 2)
    here, there = os.pipe()
    try:
        os.write(there, b"\0".join(os.fsencode(one) for one in pictures))
        os.close(there)
        config = InputConfig(input_list=Path(f"/dev/fd/{here}"))
        found = discover(config, Observer())
    finally:
        os.close(here)
    assert [found.file(row) for row in range(len(found))] == pictures

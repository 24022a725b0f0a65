"""From folders and files to a Manifest. Nothing here is decoded, so the files need not be pictures."""

from __future__ import annotations

import os

import pytest

from gpu_cluster.config import shipped_data
from gpu_cluster.errors import DataError
from gpu_cluster.images.decode import suffixes
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
    touch(tmp_path, "a.png", "run/run.json", "run/bad_files.csv", "run/plots/elbow.png", "run/cover.png")
    assert find(tmp_path)[0].paths == ("a.png",)


def test_a_folder_that_only_looks_like_a_run_is_searched(tmp_path):
    touch(tmp_path, "a.png", "mine/run.json", "mine/b.png")
    assert find(tmp_path)[0].paths == ("a.png", "mine/b.png")


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

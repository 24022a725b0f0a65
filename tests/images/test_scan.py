"""From folders, files and labels to a Manifest. Nothing here is decoded, so the files need not be pictures."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from gpu_cluster.config import InputConfig, shipped_data
from gpu_cluster.errors import DataError
from gpu_cluster.events import Observer, Recorder
from gpu_cluster.images.decode import suffixes
from gpu_cluster.images.discover import discover
from gpu_cluster.images.scan import scan
from gpu_cluster.images.source import open_source
from gpu_cluster.manifest import Manifest

ODD_NAMES = [
    "a space.png",
    " leading space.png",
    "trailing space .png",
    "a,comma.png",
    'a"double quote.png',
    '"quoted".png',
    "an'apostrophe.png",
    "a\nnewline.png",
    "a\r\nreturn and newline.png",
    "a\ttab.png",
    "a;semicolon.png",
    "a\\backslash.png",
    "-dash.png",
    "#hash.png",
    "~tilde.png",
    "$HOME.png",
    "%41.png",
    "[brackets]*.png",
    "{0}.png",
    "naïve.png",
    "nai\u0308ve.png",
    "写真.png",
    "🌼.png",
    os.fsdecode(b"caf\xe9.png"),
    os.fsdecode(b"\xff\xfe.png"),
]


def touch(folder: Path, *names: str) -> list[Path]:
    """Write a file of its own content for each name, which may lie in subfolders."""
    files = [folder / name for name in names]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.fsencode(file))
    return files


def table(file: Path, *lines: str, encoding: str = "utf-8") -> Path:
    text = "".join(f"{line}\n" for line in lines)
    file.write_bytes(text.encode(encoding, "surrogateescape"))
    return file


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def find(*images: Path, **options: Any) -> tuple[Manifest, list[str]]:
    """Return the manifest and what the user was told."""
    recorder = Recorder()
    return discover(InputConfig(images=images, **options), recorder), recorder.notices


# Which files


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


# Labels


def test_without_labels_there_are_none(tmp_path):
    touch(tmp_path, "a.png")
    manifest, notices = find(tmp_path)
    assert manifest.labels is None
    assert manifest.label_source is None
    assert notices == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table_labels_the_files_with_or_without_a_byte_order_mark(tmp_path, encoding):
    touch(tmp_path / "in", "a.png", "b.png")
    labels = table(tmp_path / "l.csv", "file,label", "b.png,röd", "a.png,blue", encoding=encoding)
    manifest, notices = find(tmp_path / "in", labels=labels)
    assert manifest.labels == ("blue", "röd")
    assert manifest.label_source == str(labels)
    assert notices == []


def test_a_table_may_end_its_lines_as_windows_does(tmp_path):
    touch(tmp_path / "in", "a.png", "b.png")
    labels = table(tmp_path / "l.csv", "file,label\r", "a.png,x\r", "b.png,y\r")
    assert find(tmp_path / "in", labels=labels)[0].labels == ("x", "y")


def test_a_table_may_name_files_absolutely(tmp_path):
    a, b = touch(tmp_path / "in", "a.png", "deep/b.png")
    labels = table(tmp_path / "l.csv", "file,label", f"{a},x", f"{b},y")
    assert find(tmp_path / "in", labels=labels)[0].labels == ("x", "y")


def test_a_table_may_name_files_relative_to_the_images(tmp_path):
    touch(tmp_path / "in", "one/a.png", "two/a.png")
    labels = table(tmp_path / "l.csv", "file,label", "one/a.png,x", "./two/../two/a.png,y")
    assert find(tmp_path / "in", labels=labels)[0].labels == ("x", "y")


def test_a_table_may_name_files_relative_to_itself(tmp_path):
    touch(tmp_path / "in", "one/a.png", "two/a.png")
    labels = table(tmp_path / "l.csv", "file,label", "in/one/a.png,x", "in/two/a.png,y")
    assert find(tmp_path / "in", labels=labels)[0].labels == ("x", "y")


def test_a_table_may_name_files_without_their_folder_where_only_one_has_the_name(tmp_path):
    touch(tmp_path / "in", "one/a.png", "two/b.png")
    labels = table(tmp_path / "l.csv", "file,label", "a.png,x", "b.png,y")
    assert find(tmp_path / "in", labels=labels)[0].labels == ("x", "y")


def test_a_bare_name_that_two_files_have_labels_neither(tmp_path):
    touch(tmp_path / "in", "one/a.png", "two/a.png", "two/b.png")
    labels = table(tmp_path / "l.csv", "file,label", "a.png,x", "b.png,y")
    manifest, _ = find(tmp_path / "in", labels=labels)
    assert manifest.labels == (None, None, "y")
    assert manifest.n_labels_without_file == 1


def test_the_file_right_in_the_folder_is_meant_before_others_of_its_name(tmp_path):
    touch(tmp_path / "in", "a.png", "one/a.png")
    labels = table(tmp_path / "l.csv", "file,label", "a.png,x", "one/a.png,y")
    assert find(tmp_path / "in", labels=labels)[0].labels == ("x", "y")


def test_quotes_commas_and_newlines_in_a_label_are_kept(tmp_path):
    touch(tmp_path / "in", "a.png", "b.png", "c.png")
    labels = table(tmp_path / "l.csv", "file,label", 'a.png,"rose, red"', 'b.png,"the ""queen"""', 'c.png,"two\nlines"')
    assert find(tmp_path / "in", labels=labels)[0].labels == ("rose, red", 'the "queen"', "two\nlines")


def test_labels_that_look_like_numbers_stay_as_they_are_written(tmp_path):
    touch(tmp_path / "in", "a.png", "b.png", "c.png")
    labels = table(tmp_path / "l.csv", "file,label", "a.png,007", "b.png,1e3", "c.png,NA")
    assert find(tmp_path / "in", labels=labels)[0].labels == ("007", "1e3", "NA")


def test_other_columns_are_ignored_wherever_they_stand(tmp_path):
    touch(tmp_path / "in", "a.png", "b.png")
    labels = table(tmp_path / "l.csv", "n,label,size,file", "1,x,10,a.png", "2,y,20,b.png,and more")
    assert find(tmp_path / "in", labels=labels)[0].labels == ("x", "y")


def test_the_columns_may_have_other_names(tmp_path):
    touch(tmp_path / "in", "a.png", "b.png")
    labels = table(tmp_path / "l.csv", "file,label,image id,species", "b.png,no,a.png,x", "a.png,no,b.png,y")
    manifest, _ = find(tmp_path / "in", labels=labels, file_col="image id", label_col="species")
    assert manifest.labels == ("x", "y")


@pytest.mark.parametrize("name", [*ODD_NAMES, "a\rreturn.png"], ids=ascii)
def test_an_odd_name_is_found_by_a_table_that_names_it(tmp_path, name):
    touch(tmp_path / "in", name, "other.png")
    labels = table(tmp_path / "l.csv", "file,label", f"{quoted(name)},x", "other.png,y")
    manifest, _ = find(tmp_path / "in", labels=labels)
    assert dict(zip(manifest.paths, manifest.labels or (), strict=True)) == {name: "x", "other.png": "y"}


def test_all_odd_names_are_found_together(tmp_path):
    touch(tmp_path / "in", *ODD_NAMES)
    rows = [f"{quoted(name)},{number}" for number, name in enumerate(ODD_NAMES)]
    manifest, _ = find(tmp_path / "in", labels=table(tmp_path / "l.csv", "file,label", *rows))
    expected = {name: str(number) for number, name in enumerate(ODD_NAMES)}
    assert dict(zip(manifest.paths, manifest.labels or (), strict=True)) == expected


def test_a_folder_of_an_odd_name_is_searched_and_labelled(tmp_path):
    folder = tmp_path / os.fsdecode(b'caf\xe9\n, "x"')
    (file,) = touch(folder, "a.png")
    labels = table(tmp_path / "l.csv", "file,label", f"{quoted(str(file))},x")
    assert find(folder, labels=labels)[0].labels == ("x",)


def test_spaces_around_names_and_labels_in_a_table_do_no_harm(tmp_path):
    touch(tmp_path / "in", "a.png", "b.png")
    labels = table(tmp_path / "l.csv", "file,label", "a.png , x", " b.png,y ")
    assert find(tmp_path / "in", labels=labels)[0].labels == ("x", "y")


def test_a_table_of_the_layout_of_kaggles_flowers_is_found_in_the_folder(tmp_path):
    touch(tmp_path, "0001.png", "0002.png", "0003.png")
    table(tmp_path / "flower_labels.csv", "file,label", "0001.png,0", "0002.png,9", "0003.png,0")
    manifest, notices = find(tmp_path)
    assert manifest.labels == ("0", "9", "0")
    assert manifest.label_source == str(tmp_path / "flower_labels.csv")
    assert notices == [f"Labels found in {tmp_path / 'flower_labels.csv'}"]


def test_a_table_without_the_columns_is_not_taken_for_the_labels(tmp_path):
    touch(tmp_path, "a.png")
    table(tmp_path / "other.csv", "file,size", "a.png,12")
    (tmp_path / "empty.csv").touch()
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)))
    assert find(tmp_path)[0].labels is None


def test_a_table_found_that_names_none_of_the_images_is_passed_over_and_the_user_is_told(tmp_path):
    touch(tmp_path, "a.png")
    table(tmp_path / "other.csv", "file,label", "z.png,x")
    manifest, notices = find(tmp_path)
    assert manifest.labels is None
    assert notices == [f"{tmp_path / 'other.csv'} names none of the images; going on without labels"]


def test_two_tables_that_could_hold_the_labels_are_an_error_that_names_both(tmp_path):
    touch(tmp_path, "a.png")
    table(tmp_path / "one.csv", "file,label", "a.png,x")
    table(tmp_path / "two.CSV", "label,file", "x,a.png")
    with pytest.raises(DataError, match=r"one\.csv'.*two\.CSV'.*--labels"):
        find(tmp_path)


def test_a_table_given_is_taken_whatever_else_lies_in_the_folder(tmp_path):
    touch(tmp_path, "a.png")
    table(tmp_path / "one.csv", "file,label", "a.png,x")
    two = table(tmp_path / "two.csv", "file,label", "a.png,y")
    assert find(tmp_path, labels=two)[0].labels == ("y",)


def test_the_names_of_folders_can_be_the_labels(tmp_path):
    touch(tmp_path, "rose/a.png", "tulip/b.png", "tulip/red/c.png", "d.png")
    manifest, notices = find(tmp_path, labels_from_folders=True)
    assert dict(zip(manifest.paths, manifest.labels or (), strict=True)) == {
        "rose/a.png": "rose",
        "tulip/b.png": "tulip",
        "tulip/red/c.png": "red",
        "d.png": None,
    }
    assert notices == ["1 files have no label in folder names"]


def test_the_names_of_the_folders_given_can_be_the_labels(tmp_path):
    touch(tmp_path, "rose/a.png", "tulip/b.png")
    manifest, _ = find(tmp_path / "rose", tmp_path / "tulip", labels_from_folders=True)
    assert manifest.labels == ("rose", "tulip")


def test_labels_from_folders_without_folders_is_an_error(tmp_path):
    touch(tmp_path, "a.png")
    with pytest.raises(DataError, match=r"--labels-from-folders expects images in folders"):
        find(tmp_path, labels_from_folders=True)


def test_labels_without_a_file_and_files_without_a_label_are_counted(tmp_path):
    touch(tmp_path / "in", "a.png", "b.png", "c.png", "d.png")
    labels = table(tmp_path / "l.csv", "file,label", "a.png,x", "b.png,", "gone.png,y", "y.png,y", "z.png,", ",x")
    manifest, notices = find(tmp_path / "in", labels=labels)
    assert manifest.labels == ("x", None, None, None)
    assert manifest.n_labels_without_file == 3
    assert manifest.n_files_without_label == 3
    assert notices == [
        f"3 rows of {labels} name a file that was not found",
        f"3 files have no label in {labels}",
    ]


def test_two_labels_of_a_file_are_an_error_that_shows_them(tmp_path):
    touch(tmp_path / "in", "a.png")
    labels = table(tmp_path / "l.csv", "file,label", "a.png,x", "./a.png,y")
    with pytest.raises(DataError, match=r"l\.csv' gives '\./a\.png' two labels, 'x' and 'y'"):
        find(tmp_path / "in", labels=labels)


@pytest.mark.parametrize("rows", [("a.png,x", "a.png,x"), ("a.png,x", "a.png,"), ("a.png,", "a.png,x")])
def test_a_file_named_twice_with_one_label_has_that_label(tmp_path, rows):
    touch(tmp_path / "in", "a.png")
    labels = table(tmp_path / "l.csv", "file,label", *rows)
    assert find(tmp_path / "in", labels=labels)[0].labels == ("x",)


@pytest.mark.parametrize(
    ("header", "missing", "option"),
    [("name,label", "file", "--file-col"), ("file,species", "label", "--label-col"), ("file;label", "file", "--file")],
)
def test_a_table_without_a_column_is_an_error_that_says_which_there_are(tmp_path, header, missing, option):
    touch(tmp_path / "in", "a.png")
    labels = table(tmp_path / "l.csv", header, "a.png,x")
    has = ", ".join(repr(column) for column in header.split(","))
    with pytest.raises(DataError) as caught:
        find(tmp_path / "in", labels=labels)
    assert f"l.csv' has no column '{missing}'; it has {has}; name it with {option}" in str(caught.value)


def test_an_empty_table_is_an_error(tmp_path):
    touch(tmp_path / "in", "a.png")
    with pytest.raises(DataError, match=r"has no column 'file'; it has no header"):
        find(tmp_path / "in", labels=table(tmp_path / "l.csv"))


def test_a_table_given_that_names_none_of_the_images_is_an_error_that_shows_what_is_expected(tmp_path):
    touch(tmp_path / "in", "deep/a.png")
    labels = table(tmp_path / "l.csv", "file,label", "z.png,x")
    with pytest.raises(DataError, match=r"'file' of .*l\.csv' names none of the 1 images; .*such as 'deep/a\.png'"):
        find(tmp_path / "in", labels=labels)


def test_a_table_given_that_names_images_but_no_label_is_said_to(tmp_path):
    touch(tmp_path / "in", "a.png")
    labels = table(tmp_path / "l.csv", "file,label", "a.png,", "z.png,x")
    with pytest.raises(DataError, match=r"names 1 of the images but gives none a label; .* in its column 'label'"):
        find(tmp_path / "in", labels=labels)


@pytest.mark.parametrize("name", ["absent.csv", "in"])
def test_a_table_that_cannot_be_read_is_an_error_that_names_it(tmp_path, name):
    touch(tmp_path / "in", "a.png")
    with pytest.raises(DataError, match=rf"cannot read the labels .*{name}"):
        find(tmp_path / "in", labels=tmp_path / name)

"""Labels: from a table named or found, or from the names of folders."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path

import pytest

from gpu_cluster.errors import DataError
from gpu_cluster.files import escaped
from tests.images.files import ODD_NAMES, find, touch


def table(file: Path, *lines: str, encoding: str = "utf-8") -> Path:
    text = "".join(f"{line}\n" for line in lines)
    file.write_bytes(text.encode(encoding, "surrogateescape"))
    return file


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


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
    manifest, notices = find(tmp_path / "in", labels=labels)
    assert manifest.labels == (None, None, "y")
    assert (manifest.n_ambiguous_labels, manifest.n_labels_without_file) == (1, 0)
    assert notices == [
        f"1 row of {labels} gives no label, because several files have the name: 'a.png' can be one/a.png, two/a.png; "
        "write the folder too, as in one/a.png"
    ]


def test_a_table_of_nothing_but_names_that_several_files_have_is_an_error_that_says_so(tmp_path):
    touch(tmp_path / "in", "1/a.png", "2/a.png", "3/a.png", "1/b.png", "2/b.png")
    labels = table(tmp_path / "l.csv", "file,label", "a.png,x", "b.png,y")
    with pytest.raises(
        DataError, match=r"^2 rows of '.*' give no label, .* 'a\.png' can be 1/a\.png, 2/a\.png and 1 more"
    ):
        find(tmp_path / "in", labels=labels)


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


def test_a_table_may_name_files_as_windows_does_where_no_file_has_the_name_with_the_backslash(tmp_path):
    touch(tmp_path / "in", "a/1.png", "b/2.png", "c\\3.png", "c/3.png")
    labels = table(tmp_path / "l.csv", "file,label", "a\\1.png,x", "b\\2.png,y", "c\\3.png,z")
    manifest, notices = find(tmp_path / "in", labels=labels)
    assert dict(zip(manifest.paths, manifest.labels or (), strict=True)) == {
        "a/1.png": "x",
        "b/2.png": "y",
        "c/3.png": None,
        "c\\3.png": "z",
    }
    assert notices == []


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
    assert notices == [f"{tmp_path / 'other.csv'} names none of the pictures; going on without labels"]


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
    assert notices == []
    assert manifest.n_files_without_label == 1


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
    assert notices == [f"3 rows of {labels} name a file that was not found: gone.png, y.png, z.png"]


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
    [("name,label", "file", "--file-col"), ("file,species", "label", "--label-col")],
)
def test_a_table_without_a_column_is_an_error_that_says_which_there_are(tmp_path, header, missing, option):
    touch(tmp_path / "in", "a.png")
    labels = table(tmp_path / "l.csv", header, "a.png,x")
    has = ", ".join(repr(column) for column in header.split(","))
    with pytest.raises(DataError) as caught:
        find(tmp_path / "in", labels=labels)
    assert f"l.csv' has no column '{missing}'; it has {has}; name it with {option}" in str(caught.value)


def test_a_column_that_differs_in_its_capitals_is_said_to_be_meant(tmp_path):
    touch(tmp_path / "in", "a.png")
    with pytest.raises(DataError, match=r"no column 'file'; .* name it with --file-col \(did you mean 'File'\?\)"):
        find(tmp_path / "in", labels=table(tmp_path / "l.csv", "File;Label", "a.png;x"))


def test_a_table_without_a_header_is_said_to_have_none(tmp_path):
    touch(tmp_path / "in", "a.png")
    with pytest.raises(DataError, match=r"has no header: its first line is 'a\.png', 'x' .*: file;label$"):
        find(tmp_path / "in", labels=table(tmp_path / "l.csv", "a.png;x", "b.png;y"))


@pytest.mark.parametrize("end", ["", "\r"], ids=["unix", "windows"])
def test_the_line_of_excel_that_names_the_separator_is_no_header(tmp_path, end):
    touch(tmp_path, "a.png", "b.png")
    table(
        tmp_path / "l.csv", f"sep=;{end}", f"file;label{end}", f"a.png;x{end}", f"b.png;y,z{end}", encoding="utf-8-sig"
    )
    # It is found in the folder too, where only the header is looked at.
    assert find(tmp_path)[0].labels == ("x", "y,z")


@pytest.mark.parametrize("options", [{"label_col": "species"}, {"labels_encoding": "cp1251", "file_col": "image"}])
def test_options_for_a_table_are_told_when_there_is_none(tmp_path, options):
    touch(tmp_path, "a.png")
    notice = find(tmp_path, **options)[1][-1]
    assert all(f"--{name.replace('_', '-')}" in notice for name in options)
    assert "not used, because no labels CSV was found" in notice


def test_an_empty_table_is_an_error(tmp_path):
    touch(tmp_path / "in", "a.png")
    with pytest.raises(DataError, match=r"has no column 'file'; it has no header"):
        find(tmp_path / "in", labels=table(tmp_path / "l.csv"))


def test_a_table_given_that_names_none_of_the_images_is_an_error_that_shows_what_is_expected(tmp_path):
    touch(tmp_path / "in", "deep/a.png")
    labels = table(tmp_path / "l.csv", "file,label", "z.png,x")
    with pytest.raises(
        DataError,
        match=r"'file' of .*l\.csv' names none of the pictures found \(1\); .*such as 'deep/a\.png', found 'z\.png'",
    ):
        find(tmp_path / "in", labels=labels)


def test_a_table_given_that_names_images_but_no_label_is_said_to(tmp_path):
    touch(tmp_path / "in", "a.png")
    labels = table(tmp_path / "l.csv", "file,label", "a.png,", "z.png,x")
    with pytest.raises(DataError, match=r"names 1 picture but gives none a label; .* in its column 'label'"):
        find(tmp_path / "in", labels=labels)


@pytest.mark.parametrize("name", ["absent.csv", "in", "pipe", "device", "huge"])
def test_a_table_that_cannot_be_read_is_an_error_that_names_it(tmp_path, name):
    touch(tmp_path / "in", "a.png")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    table(tmp_path / "huge", "file,label", "a.png,x")
    os.truncate(tmp_path / "huge", 100 << 30)
    with pytest.raises(DataError, match=rf"cannot read the labels .*{name}"):
        find(tmp_path / "in", labels=tmp_path / name)


def test_a_table_with_a_line_that_does_not_end_is_an_error(tmp_path):
    touch(tmp_path / "in", "a.png")
    labels = table(tmp_path / "l.csv", "file,label", "a.png,x")
    os.truncate(labels, 2 << 20)
    with pytest.raises(DataError, match=r"cannot read the labels .*: it has a line of more than 1,048,576 characters"):
        find(tmp_path / "in", labels=labels)


def test_a_table_that_is_not_utf8_may_hold_what_is_no_line_of_a_table(tmp_path):
    touch(tmp_path / "in", "a.png")
    (tmp_path / "l.csv").write_bytes(b'file,label\na.png,caf\xe9\nb.png,"' + b"x" * 140_000 + b'"\n')
    with pytest.raises(DataError, match=r"are not UTF-8, .*--labels-encoding"):
        find(tmp_path / "in", labels=tmp_path / "l.csv")


def test_a_table_of_zeros_is_an_error_of_one_line(tmp_path):
    touch(tmp_path / "in", "a.png")
    (tmp_path / "l.csv").write_bytes(bytes(1 << 20))
    with pytest.raises(DataError, match="there are NUL bytes in it; expected a CSV"):
        find(tmp_path / "in", labels=tmp_path / "l.csv")


def test_a_table_may_name_files_as_the_tables_of_a_run_do(tmp_path):
    files = [os.fsdecode(b"caf\xe9.png"), "bad\\xff.png"]
    touch(tmp_path, *files)
    assert escaped(files[1]) == "bad\\x5cxff.png"
    labels = table(
        tmp_path / "l.csv", "file,label", *(f"{escaped(name)},{number}" for number, name in enumerate(files))
    )
    manifest, _ = find(tmp_path, labels=labels)
    assert manifest.labels is not None
    found = dict(zip(manifest.paths, manifest.labels, strict=True))
    assert found == {files[0]: "0", files[1]: "1"}


# Tables as spreadsheets write them


@pytest.mark.parametrize("separator", [";", "\t", "|"], ids=ascii)
def test_the_separator_is_found_out(tmp_path, separator):
    touch(tmp_path, "a.png", "b, c.png")
    lines = [separator.join(row) for row in (("n", "label", "file"), ("1", "x, y", "a.png"), ("2", "z", "b, c.png"))]
    table(tmp_path / "l.csv", *lines)
    # It is found in the folder too, where only the header is looked at.
    assert find(tmp_path)[0].labels == ("x, y", "z")


def test_a_table_of_semicolons_without_a_column_is_an_error_that_names_its_columns_and_the_semicolon(tmp_path):
    touch(tmp_path / "in", "a.png")
    labels = table(tmp_path / "l.csv", "Datei;Art", "a.png;x")
    with pytest.raises(
        DataError, match=r"has no column 'file'; it has 'Datei', 'Art' \(separated by ';'\); .*--file-col"
    ):
        find(tmp_path / "in", labels=labels)


def test_unicode_text_as_excel_writes_it_is_read(tmp_path):
    touch(tmp_path / "in", "a.png", "写真.png")
    labels = table(tmp_path / "l.txt", "file\tlabel\r", "a.png\tПлатье\r", "写真.png\t帽子\r", encoding="utf-16")  # noqa: RUF001
    assert find(tmp_path / "in", labels=labels)[0].labels == ("Платье", "帽子")


# The words that a table has in each encoding that Windows uses by default somewhere.
IN_CODE_PAGES = {
    "cp1251": ("Платье", "Шляпа", "Обувь"),
    "cp1252": ("Robe d’été", "Manteau à capuche"),  # noqa: RUF001
    "cp1250": ("Spódnica", "Płaszcz"),
    "cp1253": ("Φόρεμα", "Πουκάμισο"),
    "cp1254": ("Gömlek", "Ayakkabı", "Şapka"),  # noqa: RUF001
    "cp932": ("ドレス", "シャツ", "帽子"),
    "gb18030": ("连衣裙", "衬衫", "帽子"),
    "cp949": ("드레스", "셔츠", "모자"),
}


@pytest.mark.parametrize(("encoding", "words"), IN_CODE_PAGES.items(), ids=IN_CODE_PAGES)
def test_labels_that_are_not_utf8_are_never_guessed_but_shown_as_they_read(tmp_path, encoding, words):
    names = [f"{number}.png" for number in range(len(words))]
    touch(tmp_path / "in", *names)
    rows = [f"{name};{word}" for name, word in zip(names, words, strict=True)]
    labels = table(tmp_path / "l.csv", "file;label", *rows, encoding=encoding)
    with pytest.raises(DataError, match=r"l\.csv' are not UTF-8.*--labels-encoding") as caught:
        find(tmp_path / "in", labels=labels)
    # One of the readings is the right one, and the user sees which.
    assert f"gives {', '.join(map(repr, words))}" in str(caught.value)
    assert find(tmp_path / "in", labels=labels, labels_encoding=encoding)[0].labels == words


def test_a_mark_of_utf8_before_labels_that_are_not_utf8_hides_nothing(tmp_path):
    touch(tmp_path / "in", "a.png")
    labels = tmp_path / "l.csv"
    labels.write_bytes(b"\xef\xbb\xbffile,label\na.png," + "Röcke".encode("cp1252"))
    with pytest.raises(DataError, match=r"l\.csv' are not UTF-8.*gives 'Röcke'"):
        find(tmp_path / "in", labels=labels)


def test_file_names_of_another_encoding_that_are_not_found_are_not_passed_over_as_files_that_are_gone(tmp_path):
    touch(tmp_path / "in", "Hüte.png", "b.png")
    labels = table(tmp_path / "l.csv", "file,label", "Hüte.png,x", "b.png,y", encoding="cp1252")
    with pytest.raises(DataError, match=r"are not UTF-8.*'Hüte\.png'"):
        find(tmp_path / "in", labels=labels)
    assert find(tmp_path / "in", labels=labels, labels_encoding="cp1252")[0].labels == ("x", "y")


def test_names_of_columns_that_are_not_utf8_are_shown_as_they_read(tmp_path):
    touch(tmp_path / "in", "a.png", "b.png")
    header, columns = "Файл;Метка", {"file_col": "Файл", "label_col": "Метка"}
    labels = table(tmp_path / "l.csv", header, "a.png;x", "b.png;y", encoding="cp1251")
    with pytest.raises(DataError, match=r"are not UTF-8.*--labels-encoding.*cp1251 gives 'Файл', 'Метка'"):
        find(tmp_path / "in", labels=labels)
    assert find(tmp_path / "in", labels=labels, labels_encoding="cp1251", **columns)[0].labels == ("x", "y")


def test_no_two_encodings_are_shown_with_the_same_words(tmp_path):
    touch(tmp_path / "in", *(f"{number}.png" for number in range(4)))
    # cp1251 and mac_cyrillic read small letters alike, and only the capital differently.
    words = ("роза", "мак", "тюльпан", "Лилия")
    rows = [f"{number}.png,{word}" for number, word in enumerate(words)]
    with pytest.raises(DataError) as caught:
        find(tmp_path / "in", labels=table(tmp_path / "l.csv", "file,label", *rows, encoding="cp1251"))
    readings = re.findall(r" gives ([^;)]*)", str(caught.value))
    assert len(readings) == len(set(readings)) > 1
    assert "'Лилия'" in str(caught.value)


def test_an_encoding_that_is_not_that_of_the_table_is_an_error(tmp_path):
    touch(tmp_path / "in", "a.png")
    labels = table(tmp_path / "l.csv", "file,label", "a.png,röd", encoding="cp1252")
    with pytest.raises(DataError, match=r"l\.csv' are not utf-8: .* --labels-encoding"):
        find(tmp_path / "in", labels=labels, labels_encoding="utf-8")


@pytest.mark.parametrize("name", ["labels.xlsx", "labels.csv"])
def test_a_workbook_is_an_error_that_says_how_to_save_it(tmp_path, name):
    touch(tmp_path / "in", "a.png")
    with zipfile.ZipFile(tmp_path / name, "w") as workbook:
        workbook.writestr("xl/workbook.xml", "<workbook/>")
    with pytest.raises(DataError, match=r"is a spreadsheet .*, not a CSV; save it in Excel with .*'CSV UTF-8'"):
        find(tmp_path / "in", labels=tmp_path / name)


def test_the_table_that_is_used_is_not_among_the_files_that_are_passed_over(tmp_path):
    touch(tmp_path, "a.png", "notes.txt", "deep/more.txt")
    table(tmp_path / "l.csv", "file,label", "a.png,x")
    assert find(tmp_path)[0].passed_over == ("deep/more.txt", "notes.txt")

"""Addresses and members of tar files: what they name, and what of them may be shown."""

from __future__ import annotations

import pytest

from gpu_cluster import addresses


@pytest.mark.parametrize("text", ["s3://bucket/a.jpg", "https://host/a", "gs://b", "memory://a/b.png", "abfs://c@d/e"])
def test_an_address_is_told_from_a_path(text):
    assert addresses.is_address(text)


@pytest.mark.parametrize("text", ["photos/a.jpg", "/a/b", "C:/a", "a::b", "x:/y", "photos", "a.tar::s3"])
def test_a_path_is_no_address(text):
    assert not addresses.is_address(text)


@pytest.mark.parametrize("text", ["https://user:word@host/a", "s3://key:secret@bucket/a", "https://user@host/a"])
def test_credentials_in_an_address_are_refused_and_not_repeated(text):
    with pytest.raises(ValueError, match="no user name and no password") as caught:
        addresses.check_address(text)
    for secret in ("word", "secret@", "key:", "user"):
        assert secret not in str(caught.value).replace("user name", "").replace("password", "")


def test_an_address_in_an_address_is_refused_and_not_repeated():
    with pytest.raises(ValueError, match="no other address in it") as caught:
        addresses.check_address("zip://*::https://user:word@host/x.zip")
    assert "word" not in str(caught.value)
    assert addresses.check_address("http://[::1]:80/a::b.jpg") == "http://[::1]:80/a::b.jpg"


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("a b#c.jpg", "s3://bucket/lists/a b#c.jpg"),
        ("x//a.jpg", "s3://bucket/lists/x//a.jpg"),
        ("../../../a.jpg", "s3://bucket/a.jpg"),
        ("/a.jpg", "s3://bucket/a.jpg"),
        ("gs://other/a.jpg", "gs://other/a.jpg"),
    ],
)
def test_a_name_in_a_list_starts_from_the_folder_of_the_list(name, address):
    assert addresses.named_by("s3://bucket/lists/list.txt", name) == address


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("a.jpg", "https://host/lists/a.jpg"),
        ("../a.jpg", "https://host/a.jpg"),
        ("//other/a.jpg", "https://other/a.jpg"),
        ("file:/etc/a.jpg", "https://host/lists/file:/etc/a.jpg"),
    ],
)
def test_a_name_in_a_list_of_a_web_server_is_a_link(name, address):
    assert addresses.named_by("https://host/lists/list.txt?token=abc", name) == address


@pytest.mark.parametrize("name", ["https://[/a.jpg", "https://[x]/a.jpg"])
def test_an_address_whose_server_has_no_name_is_refused(name):
    with pytest.raises(ValueError, match=r"server whose name is none; found '\["):
        addresses.named_by("https://host/list.txt", name)


@pytest.mark.parametrize("name", ["file:///etc/a.jpg", "local:///etc/a.jpg", "https://user:word@host/a.jpg"])
@pytest.mark.parametrize("listed_at", ["https://host/list.txt", "s3://bucket/list.txt"])
def test_a_list_on_a_server_names_no_files_of_this_machine_and_no_credentials(listed_at, name):
    with pytest.raises(ValueError, match="found") as caught:
        addresses.named_by(listed_at, name)
    assert "word@" not in str(caught.value)


@pytest.mark.parametrize(
    ("signed", "shown"),
    [
        ("https://h/a.jpg?X-Amz-Signature=1&X-Amz-Date=2&X-Amz-Credential=3", "https://h/a.jpg"),
        ("https://h/a.jpg?sv=2024&se=2027&sp=r&sig=abc", "https://h/a.jpg"),
        ("https://h/a.jpg?X-Goog-Signature=1&Expires=3", "https://h/a.jpg"),
        ("https://h/a?id=3&access_token=abc", "https://h/a?id=3"),
        ("https://h/a?id=3&page=4", "https://h/a?id=3&page=4"),
        ("https://h/a.jpg#part", "https://h/a.jpg"),
        ("s3://bucket/a?b.jpg", "s3://bucket/a?b.jpg"),
        ("az://box/a.jpg?sv=2024&sig=abc", "az://box/a.jpg"),
    ],
)
def test_what_lets_a_reader_in_is_not_shown(signed, shown):
    assert addresses.public(signed) == shown
    assert addresses.public(shown) == shown


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{0..2}.tar", ["0.tar", "1.tar", "2.tar"]),
        ("s3://b/{008..010}.tar", ["s3://b/008.tar", "s3://b/009.tar", "s3://b/010.tar"]),
        ("{1..2}/{0..1}.tar", ["1/0.tar", "1/1.tar", "2/0.tar", "2/1.tar"]),
    ],
)
def test_numbers_in_braces_stand_for_names(text, names):
    assert addresses.expanded(text) == names


@pytest.mark.parametrize("text", ["{3..1}.tar", "{0..9999999}.tar"])
def test_braces_that_make_no_sense_are_refused(text):
    with pytest.raises(ValueError, match="braces"):
        addresses.expanded(text)


def test_a_member_of_a_tar_file_is_told_from_other_names():
    assert addresses.member_of("x/0.tar::a/b.png") == ("x/0.tar", "a/b.png")
    assert addresses.member_of("s3://b/0.tar::a::b.png") == ("s3://b/0.tar", "a::b.png")
    assert addresses.member_of("a::b.png") is None


@pytest.mark.parametrize(
    ("location", "folder", "name"),
    [
        ("rose/1.jpg", "rose", "1.jpg"),
        ("1.jpg", "", "1.jpg"),
        ("s3://b/x/rose/1.jpg", "rose", "1.jpg"),
        ("0.tar::rose/1.jpg", "rose", "1.jpg"),
        ("x/0.tar::1.jpg", "", "1.jpg"),
    ],
)
def test_the_folder_and_the_name_of_a_location(location, folder, name):
    assert addresses.folder_name(location) == folder
    assert addresses.base_name(location) == name


def test_the_common_folder_of_addresses():
    assert addresses.common_folder("s3://b/x/1.jpg", "s3://b/x/y/2.jpg") == "s3://b/x"
    assert addresses.common_folder("s3://b/1.jpg", "s3://c/2.jpg") == ""
    assert addresses.common_folder("s3://b/x/1.jpg", "s3://b/x/1.jpg") == "s3://b/x"


@pytest.mark.parametrize(
    ("location", "tar", "name"),
    [
        ("a/b.tar::x/1.png", "a/b.tar", "x/1.png"),
        ("A.TAR::c.tar::1.png", "A.TAR", "c.tar::1.png"),
        ("https://h/b.tar?id=3::1.png", "https://h/b.tar?id=3", "1.png"),
        ("s3://b/a.tar::c.tar?d::1.png", "s3://b/a.tar", "c.tar?d::1.png"),
    ],
)
def test_a_location_in_a_tar_file_has_two_parts(location, tar, name):
    assert addresses.member_of(location) == (tar, name)
    assert addresses.in_tar(tar, name) == location


@pytest.mark.parametrize("location", ["a.png", "a.tar", "a::b.png", "a.tar?x::b.png", "https://h/a.png?b=a.tar"])
def test_other_locations_are_in_no_tar_file(location):
    assert addresses.member_of(location) is None

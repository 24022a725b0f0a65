"""What the pages of folders link to, as the usual web servers make them."""

from __future__ import annotations

from gpu_cluster.images.web_page import links_in

PAGE = "http://server/photos/"


def test_relative_absolute_and_whole_links_below_the_page_are_found():
    page = b'<a href="a.png">a</a> <a href="/photos/b.png">b</a> <A HREF=http://server/photos/inner/>inner</A>'
    assert links_in(page, PAGE) == [f"{PAGE}a.png", f"{PAGE}b.png", f"{PAGE}inner/"]


def test_links_to_elsewhere_to_the_page_itself_and_to_other_orders_of_it_are_left_out():
    page = b'<a href="../">up</a> <a href="?C=M;O=D">by date</a> <a href="#top">top</a> <a href="/other/a.png">a</a>'
    page += b'<a href="http://elsewhere/photos/a.png">a</a> <a href="./">here</a> <a href="http://[">wrong</a>'
    assert links_in(page, PAGE) == []


def test_a_link_is_found_once_and_as_it_is_written():
    page = b'<a href="a%20b.png"><img></a><a href="a%20b.png">a b</a><a href="c&amp;d.png">c</a><a name="x">x</a>'
    assert links_in(page, PAGE) == [f"{PAGE}a%20b.png", f"{PAGE}c&d.png"]


def test_the_page_of_a_folder_without_a_slash_is_that_of_the_folder():
    assert links_in(b'<a href="a.png">a</a>', "http://server/photos") == [f"{PAGE}a.png"]


def test_the_page_of_a_folder_can_be_named_by_its_own_name():
    assert links_in(b'<a href="a.png">a</a><a href="index.html">here</a>', f"{PAGE}index.html") == [
        f"{PAGE}a.png",
        f"{PAGE}index.html",
    ]


def test_what_is_no_page_links_to_nothing():
    assert links_in(bytes(range(256)), PAGE) == []

"""What a notebook shows of a run: the verdict, groups and plots, and what a hostile name or label cannot do."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import gpu_cluster
from gpu_cluster.report.groups import contingency
from gpu_cluster.report.notebook import notebook_view
from gpu_cluster.run_folder import FinishedRun
from gpu_cluster.verdict import judge
from tests.helpers import TINY, write_pictures
from tests.report.test_page_in_browser import CHROMIUM, DRIVER, Browser

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>' \" onmouseover=alert(3).png"


class Elements(HTMLParser):
    """The elements of a piece of HTML with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.found if tag == name]


def view(folder: Path) -> Elements:
    html = notebook_view(folder)
    assert html is not None
    return Elements(html)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> gpu_cluster.RunResult:
    """A run on pictures whose names and labels are HTML."""
    place = tmp_path_factory.mktemp("hostile")
    files = write_pictures(place / "in", 6)
    files[0] = files[0].rename(files[0].with_name(HOSTILE.replace("/", "\u2215")))
    labels = pd.DataFrame({"file": [file.name for file in files], "label": "<b onclick=alert(4)>label</b>"})
    labels.to_csv(place / "labels.csv", index=False)
    return gpu_cluster.run(place / "in", **TINY, labels=place / "labels.csv", out=place / "run")


def test_it_says_the_verdict_and_shows_each_group_with_its_most_typical_pictures(sample_run):
    found, run = view(sample_run.folder), FinishedRun(sample_run.folder)
    metrics = run.metrics
    assert judge(metrics["k_asked"], 210, metrics["k_agreement"]).words in found.text
    table = contingency(run)
    assert table is not None
    for group, size in enumerate(metrics["cluster_sizes"]):
        assert f"Group {group}: {size} pictures, {table.in_words(group, size)}" in found.text
    medoids = run.pictures.sort_values("distance").groupby("cluster")["path"].first()
    assert set(medoids) <= {image["title"] for image in found.named("img")}


def test_it_is_small_and_all_of_it_is_in_it(sample_run):
    html = notebook_view(sample_run.folder) or ""
    assert len(html) < 400_000
    images = [image["src"] or "" for image in Elements(html).named("img")]
    assert len(images) == 12 * 6 + 2
    sizes = [Image.open(io.BytesIO(base64.b64decode(image.partition("base64,")[2]))).size for image in images]
    assert all(max(size) <= 72 for size in sizes[:-2])
    assert all(max(size) == 720 for size in sizes[-2:])


def test_it_has_no_script_and_loads_nothing_whatever_the_names_are(hostile):
    html = hostile._repr_html_()
    assert html is not None
    found = Elements(html)
    assert {tag for tag, _ in found.found} <= {"div", "p", "strong", "img", "a", "code", "bdi"}
    attributes = {name for _, named in found.found for name in named}
    assert attributes <= {"style", "src", "alt", "title", "href", "target", "rel"}
    assert all((image["src"] or "").startswith("data:image/") for image in found.named("img"))
    assert any("<script>" in (image["title"] or "") for image in found.named("img"))
    assert "mostly <b onclick=alert(4)>label</b> (100%)" in found.text


@pytest.fixture
def browser() -> Iterator[Browser]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs Chromium and its driver (Debian: apt-get install chromium chromium-driver)")
    browser = Browser()
    yield browser
    browser.driver.quit()


def test_a_browser_shows_every_picture_of_it_and_asks_for_nothing_else(browser, hostile, tmp_path):
    page = tmp_path / "cell.html"
    page.write_text(f'<!doctype html><link rel="icon" href="data:,"><meta charset="utf-8">{hostile._repr_html_()}')
    browser.open(page)
    assert browser.requested() == [page.as_uri()]
    assert browser.complaints() == []
    widths = browser.driver.execute_script("return [...document.images].map((one) => one.naturalWidth)")
    assert len(widths) == 6 + 2
    assert min(widths) > 30
    assert browser.driver.execute_script("return document.body.scrollWidth <= window.innerWidth")


def test_the_link_is_relative_where_the_run_is_below_the_working_folder(hostile, monkeypatch, tmp_path):
    monkeypatch.chdir(hostile.folder.parent)
    assert [link["href"] for link in view(hostile.folder).named("a")] == ["run/report.html"]
    monkeypatch.chdir(tmp_path)
    assert [link["href"] for link in view(hostile.folder).named("a")] == [(hostile.folder / "report.html").as_uri()]


def changed(folder: Path, what: str) -> None:
    """Damage a run, or take something away."""
    if what == "metrics":
        (folder / "metrics.json").write_text("{")
    elif what == "all":
        shutil.rmtree(folder)
    elif what == "large plot":
        Image.new("1", (5_000, 5_000)).save(folder / "plots" / "elbow.png")
    elif what == "plot":
        (folder / "plots" / "scatter.png").write_bytes(b"GIF89a")
    else:
        content = json.loads((folder / "metrics.json").read_text())
        (folder / "metrics.json").write_text(json.dumps(content | {"k": 10**9}))


@pytest.mark.parametrize("what", ["metrics", "all", "plot", "large plot", "groups"])
def test_of_a_run_that_is_gone_or_damaged_the_notebook_shows_the_repr_instead(hostile, tmp_path, what):
    shutil.copytree(hostile.folder, tmp_path / "run")
    changed(tmp_path / "run", what)
    assert notebook_view(tmp_path / "run") is None


def test_without_its_page_there_is_no_link_and_without_small_copies_there_are_grey_squares(hostile, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(hostile.folder, run)
    (run / "report.html").unlink()
    empty = pa.table({"path": pa.array([], pa.string()), "jpeg": pa.array([], pa.binary())})
    pq.write_table(empty, run / "thumbnails.parquet")
    found = view(run)
    assert found.named("a") == []
    assert len({image["src"] for image in found.named("img")}) == 1 + 2


@pytest.mark.slow
def test_more_groups_than_are_shown_are_counted(tmp_path):
    write_pictures(tmp_path / "in", 14)
    said = {}
    for k in (13, 14):
        options: dict[str, Any] = TINY | {"k": k, "k_range": f"{k}:{k}"}
        folder = gpu_cluster.run(tmp_path / "in", **options, out=tmp_path / f"run-{k}", cache=tmp_path / "store").folder
        said[k] = view(folder).text
    assert "1 smaller group is in the report." in said[13]
    assert "2 smaller groups are in the report." in said[14]
    (folder / "report.html").unlink()
    assert "2 smaller groups are not shown." in view(folder).text


def test_a_result_that_was_not_written_by_a_run_has_no_view(hostile):
    assert replace(hostile, view=None)._repr_html_() is None

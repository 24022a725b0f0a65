"""report.html in a real browser: what a reader does with it, and what a hostile file name or label cannot do."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

import gpu_cluster
from gpu_cluster.jobs.report import report
from gpu_cluster.report import pictures
from gpu_cluster.verdict import judge
from tests.helpers import FLOWERS, N_FLOWERS, Finished, called, picture, write_pictures

# A browser that is started, and jobs for it to show: together they take more than 10 s.
pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
SMALL: dict[str, Any] = {"features": "vgg16", "image_size": 32, "k": 3, "k_range": "3:3", "n_init": 2}


class Browser:
    """Chromium without a window, and all that it asked for and complained of."""

    def __init__(self) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM or ""
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,1000"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        self.is_unchanged = False

    def open(self, file: Path) -> None:
        """Open a page anew; who only looks at it may leave it to the next as unchanged."""
        self.is_unchanged = False
        self.requested()
        self.driver.get(file.as_uri())
        # On a busy machine, the driver does not always wait for the whole page.
        WebDriverWait(self.driver, 60).until(
            lambda driver: driver.execute_script("return document.readyState") == "complete"
        )

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def style(self, selector: str, name: str) -> str:
        return self.find(selector).value_of_css_property(name)

    def n_shown(self) -> int:
        # Drawing waits for the next frame.
        self.driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        return int(self.find("#map").get_dom_attribute("data-shown") or -1)

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self._log("browser")]

    def requested(self) -> list[str]:
        """Return every address asked for since the last time, but for what is in the page itself."""
        events = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith("data:")]

    def _log(self, kind: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.driver.get_log(kind)  # type: ignore[no-untyped-call]
        return found

    def emulate(self, name: str, **options: Any) -> None:
        self.driver.execute_cdp_cmd(f"Emulation.{name}", options)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None or DRIVER is None:
        message = "needs Chromium and its driver (Debian: apt-get install chromium chromium-driver)"
        assert "GPU_CLUSTER_REQUIRE_BROWSER" not in os.environ, message
        pytest.skip(message)
    browser = Browser()
    yield browser
    browser.driver.quit()


@pytest.fixture
def seen(chromium: Browser, sample_run: Finished) -> Browser:
    """The sample set's page for tests that only look at it: it is opened once for those that follow each other."""
    if not chromium.is_unchanged:
        chromium.open(sample_run.folder / "report.html")
        chromium.is_unchanged = True
    assert chromium.complaints() == []
    return chromium


@pytest.fixture
def browser(chromium: Browser, sample_run: Finished) -> Iterator[Browser]:
    """The sample set's page, just opened; whatever a test did to the browser is undone."""
    chromium.open(sample_run.folder / "report.html")
    yield chromium
    assert chromium.complaints() == []
    chromium.emulate("clearDeviceMetricsOverride")
    chromium.emulate("setEmulatedMedia", features=[])


def data(browser: Browser) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(browser.find("#data").get_property("textContent"))  # type: ignore[arg-type]
    return found


def loneliest(browser: Browser) -> int:
    """Return the picture that is farthest from any other on the map: nothing else is hit in its place."""
    places = positions(browser)
    apart = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    return int(apart.min(axis=1).argmax())


def positions(browser: Browser) -> np.ndarray:
    """Return where each picture is drawn at first, in pixels from the map's corner."""
    shares = np.frombuffer(base64.b64decode(data(browser)["tsne"]), "<u2").reshape(-1, 2) / 65535
    size, margin = browser.find("#map").size, 14
    room = np.array([size["width"], size["height"]]) - 2 * margin
    return margin + np.column_stack([shares[:, 0], 1 - shares[:, 1]]) * room


def point_at(browser: Browser, number: int) -> ActionChains:
    x, y = positions(browser)[number]
    map_, size = browser.find("#map"), browser.find("#map").size
    # The offset is from the middle of what is in view of the map: all of it.
    browser.driver.execute_script("arguments[0].scrollIntoView()", map_)
    return ActionChains(browser.driver).move_to_element_with_offset(
        map_, round(x - size["width"] / 2), round(y - size["height"] / 2)
    )


def test_the_page_asks_for_nothing_but_itself(browser, sample_run):
    assert browser.requested() == [(sample_run.folder / "report.html").as_uri()]
    assert browser.n_shown() == N_FLOWERS


def test_the_page_says_first_whether_the_groups_are_clear(seen, sample_run):
    metrics = sample_run.json("metrics.json")
    verdict = judge(metrics["k"], metrics["n_images"], metrics["k_agreement"])
    first, second = seen.all("header p")[:2]
    assert first.text == verdict.words
    assert f"verdict: {verdict}" in sample_run.out.splitlines()
    assert second.text.startswith(f"210 pictures in {metrics['k']} groups. This number of groups is the one at which")
    assert f"adjusted Rand index {metrics['external']['adjusted_rand']:.2f}" in second.text


def test_the_groups_come_before_the_map_and_the_charts(seen):
    sections = [section.get_dom_attribute("id") for section in seen.all("main > section")]
    assert sections.index("groups-section") < sections.index("map-section") < sections.index("k-section")


def test_no_caption_is_cut(seen):
    cut = seen.driver.execute_script(
        "return [...document.querySelectorAll('figcaption')].filter(c => c.scrollHeight > c.clientHeight + 1).length"
    )
    assert cut == 0


def test_a_card_a_cluster_and_the_table_of_classes(seen, sample_run):
    metrics = sample_run.json("metrics.json")
    assert len(seen.all("article")) == metrics["k"]
    assert seen.find("article h3").text == f"Group 0: {metrics['cluster_sizes'][0]} pictures"
    cells = seen.driver.execute_script(
        "return [...document.querySelectorAll('#classes tbody tr')].map("
        "row => [...row.querySelectorAll('td')].map(cell => cell.innerText))"
    )
    assert [[int(cell or 0) for cell in row] for row in cells] == metrics["class_by_cluster"]["counts"]


def test_every_picture_is_described_and_opens_its_file_from_where_the_page_is(browser, sample_run):
    links = browser.all("figure a")
    assert len(links) > 100
    for link in links[:: len(links) // 10]:
        name = link.find_element(By.TAG_NAME, "img").get_dom_attribute("alt").split(", group")[0]
        assert link.get_property("href") == (FLOWERS / name).as_uri()
        assert link.get_dom_attribute("target") == "_blank"
    link.click()
    browser.driver.switch_to.window(browser.driver.window_handles[-1])
    assert browser.find("img").size["width"] > 0
    assert browser.driver.current_url == (FLOWERS / name).as_uri()
    browser.driver.close()
    browser.driver.switch_to.window(browser.driver.window_handles[0])


def test_a_portable_page_shows_the_pictures_without_links(chromium, sample_run, tmp_path):
    folder = Path(shutil.copytree(sample_run.folder, tmp_path / "run"))
    assert called("report", folder, "--portable").code == 0
    chromium.open(folder / "report.html")
    assert chromium.all("figure a") == []
    pictures = chromium.all("figure img")
    assert len(pictures) > 100
    assert all(int(one.get_property("naturalWidth") or 0) > 0 for one in pictures[::10])
    list_ = chromium.find("details.all")
    list_.find_element(By.TAG_NAME, "summary").click()
    tiles = WebDriverWait(chromium.driver, 5).until(
        lambda _: list_.find_elements(By.CSS_SELECTOR, ".tiles [title] canvas")
    )
    assert len(tiles) > 10
    assert list_.find_elements(By.CSS_SELECTOR, ".tiles a") == []
    # The keys of the map: a step to the next picture, and the one that would open its file.
    chromium.find("#map").send_keys("no")
    assert chromium.find("#said").text
    assert not chromium.find("#open").is_displayed()
    assert len(chromium.driver.window_handles) == 1
    assert chromium.requested() == [(folder / "report.html").as_uri()]
    assert chromium.complaints() == []


def test_all_pictures_of_a_group_are_in_the_page_some_at_a_time(browser, sample_run):
    size = sample_run.json("metrics.json")["cluster_sizes"][0]
    list_ = browser.find("details.all")
    assert list_.find_element(By.TAG_NAME, "summary").text == f"All {size} pictures"
    list_.find_element(By.TAG_NAME, "summary").click()
    links = WebDriverWait(browser.driver, 5).until(lambda _: list_.find_elements(By.CSS_SELECTOR, ".tiles a"))
    table = sample_run.table("assignments.csv").query("cluster == 0").sort_values("distance")
    assert [link.get_dom_attribute("title") for link in links] == table["path"].tolist()
    assert links[0].get_property("href") == (FLOWERS / table["path"].iloc[0]).as_uri()
    assert not list_.find_element(By.CSS_SELECTOR, ".more").is_displayed()


def test_zooming_shows_small_copies_and_all_brings_every_group_back(browser):
    def n_copies() -> int:
        browser.n_shown()
        return int(browser.find("#map").get_dom_attribute("data-copies") or -1)

    assert n_copies() == 0
    browser.find("#groups button").click()
    for _ in range(2):
        browser.find("#zoom-in").click()
    assert n_copies() > 0
    browser.find("#zoom-all").click()
    assert (browser.n_shown(), n_copies()) == (N_FLOWERS, 0)
    # Nothing looks chosen, the button that shows all of them least of all.
    assert not browser.all("[aria-pressed=true]")


def test_a_picture_of_the_map_can_be_opened(browser):
    browser.find("#map").send_keys("n")
    assert browser.find("#open").get_property("href") == (FLOWERS / data(browser)["names"][0]).as_uri()


def test_hovering_shows_the_picture_its_name_and_its_groups(browser):
    number = loneliest(browser)
    point_at(browser, number).perform()
    content = data(browser)
    lines = browser.find("#tip-words").text.splitlines()
    assert lines[0] == content["names"][number]
    assert lines[1] == f"group {content['cluster'][number]}"
    assert lines[2] == content["labels"][content["label"][number]]
    pixels = browser.driver.execute_script(
        "return [...document.getElementById('tip-picture').getContext('2d').getImageData(0, 0, 96, 96).data]"
    )
    shown = np.array(pixels, np.uint8).reshape(96, 96, 4)[..., :3]
    flower = FLOWERS / content["names"][number]
    expected = Image.open(flower).convert("RGB").resize((96, 96))
    # A JPEG at quality 72 of the same picture; others of the set are 30 and more apart.
    assert np.abs(shown.astype(int) - np.asarray(expected).astype(int)).mean() < 15


def test_a_group_can_be_shown_alone_and_all_again(browser):
    sizes = np.bincount(data(browser)["cluster"])
    button = browser.all("#groups button")[2]
    button.click()
    assert browser.n_shown() == sizes[2]
    assert button.get_dom_attribute("aria-pressed") == "true"
    assert browser.find("#said").text == "only group 2"
    browser.find("#all-groups").click()
    assert browser.n_shown() == N_FLOWERS
    assert button.get_dom_attribute("aria-pressed") == "false"


def test_clicking_a_picture_shows_its_group_alone(browser):
    number = loneliest(browser)
    point_at(browser, number).click().perform()
    content = data(browser)
    assert browser.n_shown() == content["cluster"].count(content["cluster"][number])


def test_colours_can_be_those_of_the_labels(browser):
    def picture_of_the_map() -> str:
        browser.n_shown()
        return str(browser.driver.execute_script("return document.getElementById('map').toDataURL()"))

    before = picture_of_the_map()
    browser.find("input[value=label]").click()
    assert picture_of_the_map() != before
    assert browser.all("#groups button")[0].text == "allium (21)"


def test_the_layout_can_be_principal_components(browser):
    before = browser.driver.execute_script("return document.getElementById('map').toDataURL()")
    browser.find("input[value=pca]").click()
    assert browser.n_shown() == N_FLOWERS
    assert browser.driver.execute_script("return document.getElementById('map').toDataURL()") != before


def test_all_of_the_map_works_by_keyboard(browser):
    map_ = browser.find("#map")
    map_.send_keys("n", "n")
    content = data(browser)
    assert browser.find("#said").text.startswith(f"{content['names'][1]}, group {content['cluster'][1]}")
    map_.send_keys(Keys.ENTER)
    assert browser.n_shown() == content["cluster"].count(content["cluster"][1])
    map_.send_keys(Keys.ESCAPE)
    assert browser.n_shown() == N_FLOWERS
    map_.send_keys(*"++++++", Keys.ARROW_LEFT)
    assert browser.n_shown() < N_FLOWERS
    map_.send_keys("0")
    assert browser.n_shown() == N_FLOWERS


def test_before_the_first_picture_comes_the_last(browser):
    browser.find("#map").send_keys("p")
    assert browser.find("#said").text.startswith(data(browser)["names"][-1])


def test_every_control_of_the_map_can_be_reached_by_tab(browser):
    browser.find("nav a[href='#map-section']").click()
    browser.driver.execute_script(
        "window.reached = []; document.addEventListener('focusin', event => window.reached.push(event.target.id))"
    )
    ActionChains(browser.driver).send_keys(Keys.TAB * 16).perform()
    reached = browser.driver.execute_script("return window.reached")
    assert {"map", "zoom-in", "zoom-out", "zoom-all", "all-groups"} <= set(reached)


def test_zooming_by_wheel_and_button_shows_less_and_all_again(browser):
    for _ in range(6):
        browser.find("#zoom-in").click()
    assert browser.n_shown() < N_FLOWERS
    browser.find("#zoom-all").click()
    assert browser.n_shown() == N_FLOWERS


def test_dark_mode_is_dark(browser):
    def brightness(colour: str) -> float:
        return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3

    assert brightness(browser.style("body", "background-color")) > 240
    browser.emulate("setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert brightness(browser.style("body", "background-color")) < 40
    assert brightness(browser.style("body", "color")) > 200


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_is_wider_than_a_phone(browser, width):
    browser.emulate("setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=2, mobile=True)
    assert browser.driver.execute_script("return document.documentElement.scrollWidth") == width
    assert browser.n_shown() == N_FLOWERS


# Text that is anybody's
HOSTILE = [
    "<script>window.pwned=1</script>.png",
    '"><img src=x onerror="window.pwned=1">.png',
    "' onmouseover='window.pwned=1.png",
    "</script><script>window.pwned=1</script>.png",
    "{{ 7 * 7 }}.png",
    "new\nline\x1b[31m.png",
    "<!--<script>.png",
    "x\\..\\..\\up.png",
    "\u202egnp.exe.png",
    "back`${window.pwned=1}`tick.png",
]


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A run whose file names, folder and labels are an attacker's."""
    folder = tmp_path / "<b onclick=alert(1)>&quot;"
    for number, name in enumerate(HOSTILE):
        label = re.sub("/", "", name)
        file = folder / f"{label}" / f"a{number}.png" if number % 2 else folder / name.replace("/", "")
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(file, "png")
    (folder / "<script>window.pwned=2<script>.png").write_text("no picture")
    return gpu_cluster.run(folder, **SMALL, labels_from_folders=True, out=tmp_path / "run").folder


def test_no_name_or_label_is_ever_executed(chromium, hostile):
    before = set(hostile.parent.iterdir())
    report(hostile)
    chromium.open(hostile / "report.html")
    for key in "nnnnnnnnnn":
        chromium.find("#map").send_keys(key)
    chromium.find("input[value=label]").click()
    assert chromium.driver.execute_script("return window.pwned") is None
    assert chromium.complaints() == []
    assert chromium.requested() == [(hostile / "report.html").as_uri()]
    names = data(chromium)["names"]
    assert len(names) == len(HOSTILE)
    assert "new\\nline\\x1b[31m.png" in " ".join(names)
    assert "{{ 7 * 7 }}" in " ".join(names)
    assert set(hostile.parent.iterdir()) == before
    assert "not an image" in chromium.find("#bad").text
    there = {file.as_uri() for file in (hostile.parent / "<b onclick=alert(1)>&quot;").rglob("*")}
    links = {link.get_property("href") for link in chromium.all("figure a")}
    assert len(links) == len(HOSTILE)
    assert links <= there
    for list_ in chromium.all("details.all"):
        list_.find_element(By.TAG_NAME, "summary").click()
    tiles = WebDriverWait(chromium.driver, 5).until(lambda _: chromium.all(".tiles a"))
    # The script leaves some signs as they are that Python escapes.
    assert {unquote(str(link.get_property("href"))) for link in tiles} <= set(map(unquote, there))
    assert chromium.driver.execute_script("return window.pwned") is None


def test_the_policy_of_the_page_stops_what_would_be_injected(chromium, sample_run, tmp_path):
    content = (sample_run.folder / "report.html").read_text()
    (tmp_path / "report.html").write_text(content.replace("</main>", "</main><script>window.pwned = 1</script>"))
    chromium.open(tmp_path / "report.html")
    assert chromium.driver.execute_script("return window.pwned") is None
    assert "Content Security Policy" in "".join(chromium.complaints())


def test_above_a_number_the_page_shows_a_sample_and_says_so(tmp_path, monkeypatch, chromium):
    monkeypatch.setattr(pictures, "MOST_SHOWN", 8)
    monkeypatch.setattr(pictures, "MOST_THUMBNAILS", 5)
    write_pictures(tmp_path / "in", 12)
    run = gpu_cluster.run(tmp_path / "in", **SMALL, out=tmp_path / "run").folder
    chromium.open(run / "report.html")
    words = chromium.find("#map-section p").text
    assert "The map shows 8 of 12 pictures: the nearest to the centres" in words
    assert "5 of them have a small copy." in words
    assert chromium.n_shown() == 8
    thumbs = data(chromium)["thumb"]
    assert sorted(number for number in thumbs if number >= 0) == [0, 1, 2, 3, 4]
    summary = chromium.find("details.all summary")
    assert summary.text.startswith("The nearest 1 of ")
    summary.click()
    assert "gpu-cluster run --config run.json --thumbnails" in chromium.find("details.all p").text

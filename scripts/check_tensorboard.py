"""Opens the export of a run for TensorBoard in a real TensorBoard, and compares what it serves and shows with the run.

TensorBoard is no part of the packages for the tests; install it in an environment of its own:

    python3 -m venv /tmp/tensorboard && /tmp/tensorboard/bin/pip install tensorboard
    .venv/bin/gpu-cluster export RUN --to tensorboard --out EXPORT
    .venv/bin/python scripts/check_tensorboard.py RUN EXPORT --tensorboard /tmp/tensorboard/bin/tensorboard

It asks the plugin's own addresses for the vectors, the table and the sprite. If there are Chromium and its driver, it
opens the projector too, reads its points, and writes a picture of it with `--screenshot FILE`. The exit code is 1 if
anything is not as in the run.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import numpy as np
from PIL import Image

from gpu_cluster.embedding.of_run import embeddings_of_run
from gpu_cluster.events import Observer
from gpu_cluster.report.html import visible
from gpu_cluster.run_folder import FinishedRun

# Every element of a page, also those in the trees of others.
_ALL = """
const all = [];
(function walk(root) {
  for (const one of root.querySelectorAll('*')) { all.push(one); if (one.shadowRoot) walk(one.shadowRoot); }
})(document);
"""
_PATIENCE_S = 90


@contextmanager
def served(program: str, export: Path) -> Iterator[str]:
    """Serve an export by TensorBoard, on a port that is free; give the block its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, "--logdir", str(export), "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def asked(address: str, what: str, **query: str) -> bytes:
    with urlopen(f"{address}/data/plugin/projector/{what}?{urlencode(query)}") as answer:
        content: bytes = answer.read()
    return content


def first_answer(address: str) -> Any:
    """Return the runs that the projector knows, as soon as TensorBoard answers."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return json.loads(asked(address, "runs"))
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def shown(address: str, screenshot: Path | None) -> list[dict[str, Any]]:
    """Open the projector in a browser; return what it says of each of its points."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    # The projector draws with WebGL, here without a card.
    software = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1500,1000", *software):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.get(f"{address}/#projector")
        wait = WebDriverWait(driver, _PATIENCE_S)
        # The projector is in a frame of a frame.
        for _ in range(2):
            frame = wait.until(lambda driver: driver.execute_script(_ALL + "return all.find(e => e.matches('iframe'))"))
            driver.switch_to.frame(frame)
        points = wait.until(
            lambda driver: driver.execute_script(
                _ALL
                + "const found = all.find(e => e.dataSet && e.dataSet.spriteAndMetadataInfo);"
                + "return found ? found.dataSet.points.map(point => point.metadata) : null;"
            )
        )
        # It still draws, and moves what it has drawn into place.
        time.sleep(5)
        if screenshot is not None:
            driver.switch_to.default_content()
            driver.save_screenshot(str(screenshot))
        return list(points)
    finally:
        driver.quit()


def compared(run: FinishedRun, address: str, cache: Path | None) -> Iterator[tuple[str, bool]]:
    """Yield what was compared with the run, and whether it is the same."""
    knows = first_answer(address) == ["."]
    yield "the projector knows the export", knows
    if not knows:
        return
    (info,) = json.loads(asked(address, "info", run="."))["embeddings"]
    n, d = info["tensorShape"]
    query = {"run": ".", "name": info["tensorName"]}
    table = asked(address, "metadata", **query).decode().splitlines()
    header = table[0].split("\t")
    lines = [dict(zip(header, line.split("\t"), strict=True)) for line in table[1:]]
    row_of = {visible(path): row for row, path in enumerate(run.pictures["path"])}
    rows = np.array([row_of[line["path"]] for line in lines])
    of_run = run.pictures.iloc[rows]
    yield (
        f"{n:,} points of {len(run.pictures):,} pictures, in their order",
        n == len(rows) and bool((np.diff(rows) > 0).all()),
    )
    yield "the cluster of each", [line["cluster"] for line in lines] == [str(one) for one in of_run["cluster"]]
    labels = [visible(label) if isinstance(label, str) else "" for label in of_run["label"]]
    yield "the label of each", [line.get("label", "") for line in lines] == labels
    vectors = np.frombuffer(asked(address, "tensor", **query), np.float32).reshape(n, d)
    with embeddings_of_run(run, Observer(), cache=cache) as x:
        yield f"the vector of each, {d:,} numbers, to the last bit", np.array_equal(vectors, x.take(rows))
    with Image.open(io.BytesIO(asked(address, "sprite_image", **query))) as sprite:
        side = info["sprite"]["singleImageDim"][0]
        yield f"a sprite of {sprite.width} x {sprite.height} pixels", (sprite.width // side) ** 2 >= n


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("export", type=Path, help="what gpu-cluster export --to tensorboard wrote")
    parser.add_argument("--tensorboard", default="tensorboard", help="the program")
    parser.add_argument("--cache", type=Path, help="the store that has the embeddings of the run")
    parser.add_argument("--screenshot", type=Path, help="where to write a picture of the projector (PNG)")
    arguments = parser.parse_args()
    run, good = FinishedRun(arguments.run), True
    with served(arguments.tensorboard, arguments.export) as address:
        for what, is_same in compared(run, address, arguments.cache):
            print(f"{'ok' if is_same else 'WRONG'}: {what}", flush=True)
            good = good and is_same
        if shutil.which("chromedriver"):
            points = shown(address, arguments.screenshot)
            paths = [visible(path) for path in run.pictures["path"]]
            is_same = {str(point["path"]) for point in points} <= set(paths) and len(points) > 0
            print(f"{'ok' if is_same else 'WRONG'}: the browser shows {len(points):,} points, each with its path")
            good = good and is_same
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()

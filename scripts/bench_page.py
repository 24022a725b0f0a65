"""Measures report.html for many pictures: its size, the time to write it, and the time until Chromium can use it.

Runs the job on the sample set. Then it repeats the pictures in the tables of the run until there are N, with each copy
moved a little on the map, and writes the page. Needs Chromium and its driver (Debian: chromium, chromium-driver).

    .venv/bin/python -m scripts.bench_page [--images N]
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

import gpu_cluster
from gpu_cluster.config import shipped_data
from gpu_cluster.events import Observer
from gpu_cluster.manifest import Manifest
from gpu_cluster.report.page import write_page
from gpu_cluster.run_folder import FinishedRun


def multiply(folder: Path, n: int) -> None:
    """Repeat the rows of the tables of a run folder until there are n rows."""
    random = np.random.default_rng(0)
    pictures = pd.read_parquet(folder / "assignments.parquet")
    times = -(-n // len(pictures))
    many = pd.concat([pictures] * times, ignore_index=True)[:n].copy()
    for name in ("tsne1", "tsne2", "pc1", "pc2", "distance"):
        many[name] += random.normal(scale=pictures[name].std() / 20, size=n).astype(np.float32)
    many.to_parquet(folder / "assignments.parquet", index=False)
    manifest = pd.read_parquet(folder / "manifest.parquet")
    pd.concat([manifest] * times, ignore_index=True)[:n].to_parquet(folder / "manifest.parquet", index=False)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["n_images"] = n
    metrics["class_by_cluster"]["counts"] = [
        [count * times for count in row] for row in metrics["class_by_cluster"]["counts"]
    ]
    (folder / "metrics.json").write_text(json.dumps(metrics))


def until_interactive(file: Path) -> tuple[float, float]:
    """Return the milliseconds from opening the page to the end of its script, and from a map step to its next frame."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,1000"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.get(file.as_uri())
        ready = driver.execute_script("return performance.getEntriesByName('interactive')[0].startTime")
        driver.find_element(By.ID, "map").send_keys("n")
        frame = driver.execute_async_script(
            "const [done] = arguments, start = performance.now();"
            "document.getElementById('zoom-in').click();"
            "requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - start)))"
        )
        return float(ready), float(frame)
    finally:
        driver.quit()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=50_000, help="pictures (default: 50000)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = gpu_cluster.run(image_size=64, out=Path(name) / "run").folder
        multiply(folder, arguments.images)
        start = time.perf_counter()
        file = write_page(FinishedRun(folder), Observer(), found=Manifest(shipped_data() / "flowers", ()))
        written_s = time.perf_counter() - start
        size = file.stat().st_size / 1e6
        ready, frame = until_interactive(file)
    print(f"{arguments.images:,} pictures: {size:.1f} MB, written in {written_s:.1f} s")
    print(f"in Chromium: usable after {ready / 1000:.2f} s, a zoom is drawn after {frame:.0f} ms")


if __name__ == "__main__":
    main()

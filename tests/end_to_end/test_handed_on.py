"""Results that are handed on: --portable leaves no path of this machine, --safe-csv no formula for a spreadsheet."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from gpu_cluster.config import shipped_data
from gpu_cluster.run_folder import FinishedRun
from tests.helpers import Finished, called, picture

TINY = ("--features", "vgg16", "--image-size", "32", "--k", "2", "--k-range", "2:2", "--n-init", "2")
FORMULAS = ("=1+1.png", "+1.png", "-1.png", "@1.png", "'=1.png", "'1.png", "x;=1.png")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home folder of a user, who is in it and has all that a job uses there."""
    home = tmp_path_factory.mktemp("machine") / "home" / "somebody"
    pictures = home / "my pictures"
    pictures.mkdir(parents=True)
    for seed, name in enumerate(FORMULAS):
        picture(seed).save(pictures / name)
    # Nearly the same as another one.
    picture(0).save(pictures / "@1.jpg", quality=95)
    shutil.copy(pictures / "+1.png", pictures / "copy.png")
    (pictures / "=bad.png").write_bytes(b"")
    rows = [f'"{name}","{label}"' for name, label in zip(FORMULAS, ("=A1", "-b", "@c", "d", "=A1"), strict=False)]
    (home / "names.csv").write_text("\n".join(["file,label", *rows]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("USER", "somebody")
        patch.chdir(home)
        yield home


@pytest.fixture(scope="module")
def run(home: Path) -> Finished:
    options = ("--labels", "names.csv", *TINY, "--cache", home / "store", "--portable", "--safe-csv")
    done = called("run", home / "my pictures", *options, out=home / "run")
    assert done.code == 0, done.err
    return done


@pytest.fixture
def received(run, tmp_path: Path) -> Path:
    """The run folder on another machine, where there is nothing else of it."""
    return Path(shutil.copytree(run.folder, tmp_path / "received"))


def said(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield every byte of every file in a folder, also of what is packed in them."""
    for file in sorted(folder.rglob("*")):
        if file.is_dir():
            continue
        content = file.read_bytes()
        yield file.name, content
        if file.suffix == ".parquet":
            table = pq.read_table(file)
            yield from ((file.name, key + b"=" + value) for key, value in (table.schema.metadata or {}).items())
            values = (value for column in table.columns for value in column.to_pylist())
            yield from ((file.name, value if isinstance(value, bytes) else str(value).encode()) for value in values)
        if file.suffix == ".png":
            yield file.name, str(Image.open(file).info).encode()
        if file.suffix == ".npz":
            yield from ((file.name, name.encode() + array.tobytes()) for name, array in np.load(file).items())
        if file.suffix == ".html":
            yield from ((file.name, base64.b64decode(one)) for one in re.findall(rb"base64,([\w+/]+=*)", content))


def paths_in(folder: Path, *places: Path) -> list[tuple[str, str]]:
    """Return what names this machine or its user: the file, and the name."""
    names = {str(place) for place in places} | {str(shipped_data()), os.getcwd(), "somebody"}
    found = {(file, name) for file, content in said(folder) for name in names if name.encode() in content}
    host = re.compile(rf"\b{re.escape(socket.gethostname())}\b")
    text = (file for file in folder.rglob("*") if file.suffix in (".json", ".jsonl", ".csv", ".md"))
    return sorted(found | {(file.name, "host") for file in text if host.search(file.read_text())})


def links(page: Path) -> list[str]:
    return re.findall(r'<figure><a href="([^"]*)"', page.read_text())


def test_nothing_in_a_portable_run_names_the_machine_or_its_user(home, run):
    assert paths_in(run.folder, home, home / "store") == []
    record = run.json("run.json")
    assert record["root"] is None
    assert record["left_out"] == {"images": ["my pictures"], "labels": ["names.csv"]}
    assert record["command"].startswith("gpu-cluster run 'my pictures' --labels names.csv")
    assert run.json("metrics.json")["labels"]["source"] == "names.csv"
    page = (run.folder / "report.html").read_text()
    assert "What is in my pictures" in page
    assert links(run.folder / "report.html") == []
    assert page.count('<figure><img src="data:image/jpeg') > 0


def test_a_colleague_makes_the_page_again_with_and_without_links(home, run, received):
    assert called("report", received).code == 0
    assert paths_in(received, home) == []
    page = (received / "report.html").read_text()
    assert page == (run.folder / "report.html").read_text()
    assert called("report", received, "--root", home / "my pictures").code == 0
    assert all("somebody" in link for link in links(received / "report.html"))
    assert links(received / "report.html")
    assert called("report", received, "--portable").code == 0
    assert (received / "report.html").read_text() == page
    assert paths_in(received, home) == []


def test_predict_takes_a_portable_run_and_leaves_no_path_either(home, run, received, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    given = ("--report", "--portable", "--safe-csv", "--cache", home / "store", "--out", out / "new.csv")
    done = called("predict", received, home / "my pictures", *given)
    assert done.code == 0, done.err
    assert sorted(file.name for file in out.iterdir()) == ["new.bad_files.csv", "new.csv", "new.html"]
    assert paths_in(out, home) == []
    assert links(out / "new.html") == []
    table = pd.read_csv(out / "new.csv")
    assert "'=1+1.png" in set(table["path"])
    assert set(table["cluster_label"].dropna()) <= {"'=A1", "'-b", "'@c", "d"}
    assert pd.read_csv(out / "new.bad_files.csv")["path"].tolist() == ["'=bad.png"]


@pytest.mark.slow
def test_compare_leaves_no_path_either(home, run):
    out = home / "compared"
    given = ("--features", "colours", "--algorithms", "kmeans", "--k", "2", "--image-size", "32", "--portable")
    done = called(
        "compare", home / "my pictures", "--labels", "names.csv", *given, "--cache", home / "store", "--out", out
    )
    assert done.code == 0, done.err
    assert paths_in(out, home) == []


def test_repeating_a_portable_run_asks_for_what_its_record_leaves_out(home, run, received, tmp_path):
    given = ("--cache", home / "store", "--out", tmp_path / "again", "--config", received / "run.json")
    done = called("run", *given)
    assert done.code == 2
    assert "expected FOLDER (in that run: 'my pictures'), --labels PATH (in that run: 'names.csv')" in done.err
    done = called("run", home / "my pictures", *given)
    assert done.code == 2
    assert "expected --labels PATH (in that run: 'names.csv')" in done.err
    done = called("run", home / "my pictures", "--labels", "names.csv", *given)
    assert done.code == 0, done.err
    assert (tmp_path / "again" / "assignments.csv").read_bytes() == (run.folder / "assignments.csv").read_bytes()
    assert paths_in(tmp_path / "again", home) == []


def test_portable_refuses_pictures_whose_common_folder_is_above_the_users_own(home, tmp_path):
    picture(1).save(tmp_path / "a.png")
    done = called("run", home / "my pictures", tmp_path, "--portable", "--out", home / "refused")
    assert done.code == 2
    assert "--portable: the paths in the tables would begin at" in done.err
    assert not (home / "refused").exists()


def test_an_earlier_run_is_made_portable_by_report(sample_run, tmp_path):
    folder = Path(shutil.copytree(sample_run.folder, tmp_path / "run"))
    places = (sample_run.folder, sample_run.folder.parent)
    named = {"events.jsonl", "metrics.json", "report.html", "run.json", "thumbnails.parquet"}
    assert {file for file, _ in paths_in(folder, *places)} == named
    assert called("report", folder, "--portable").code == 0
    assert paths_in(folder, *places) == []
    # On the sample set no path was given, so that nothing is left out.
    assert json.loads((folder / "run.json").read_text())["left_out"] == {}


def test_text_for_a_spreadsheet_begins_no_formula_and_is_read_back(run):
    assignments = pd.read_csv(run.folder / "assignments.csv")
    shown = {"'=1+1.png", "'+1.png", "'-1.png", "'@1.png", "''=1.png", "'1.png", "x;=1.png", "copy.png", "'@1.jpg"}
    assert set(assignments["path"]) == shown
    assert set(assignments["label"].dropna()) == {"'=A1", "'-b", "'@c", "d"}
    assert pd.read_csv(run.folder / "bad_files.csv")["path"].tolist() == ["'=bad.png"]
    # Numbers are as they are, also those below 0; every cell is in quotes.
    there = pd.read_parquet(run.folder / "assignments.parquet")
    for name in ("cluster", "distance", "pc1", "tsne2"):
        assert (assignments[name].astype(there[name].dtype) == there[name]).all(), name
    assert (there["pc1"] < 0).any()
    lines = (run.folder / "assignments.csv").read_text().splitlines()
    assert all(line.startswith('"') and line.endswith('"') for line in lines)
    assert set(there["path"]) == {*FORMULAS, "copy.png", "@1.jpg"}
    pairs = FinishedRun(run.folder).near_duplicates
    assert {"=1+1.png", "@1.jpg"} in [{one, other} for one, other in zip(pairs["path"], pairs["other"], strict=True)]

"""A job that is run again: what is kept is not computed again, nor is an engine loaded for it."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gpu_cluster import RunResult, embed, run
from gpu_cluster.events import Observer
from gpu_cluster.store.maintenance import verify
from tests.helpers import (
    COMMAND,
    TINY,
    TINY_OPTIONS,
    age,
    assignments,
    called,
    kept,
    n_computed,
    picture,
    write_pictures,
)


def test_pictures_added_are_all_that_is_computed(tmp_path, sample_images):
    (tmp_path / "in").mkdir()
    for file in sample_images[:40:2]:
        shutil.copy(file, tmp_path / "in")
    run(tmp_path / "in", **TINY, out=tmp_path / "run")
    # Between the others by name: every later row moves.
    for file in sample_images[1:21:2]:
        shutil.copy(file, tmp_path / "in")
    result = run(tmp_path / "in", **TINY, out=tmp_path / "run")
    assert n_computed(result) == 10
    assert len(assignments(result)) == 30


@pytest.mark.slow
def test_pictures_added_and_removed_again_leave_the_result_as_it_was(tmp_path, sample_images):
    (tmp_path / "in").mkdir()
    for file in sample_images[:40:2]:
        shutil.copy(file, tmp_path / "in")
    first = assignments(run(tmp_path / "in", image_size=32, k=4, out=tmp_path / "first"))
    added = [Path(shutil.copy(file, tmp_path / "in")) for file in sample_images[1:21:2]]
    run(tmp_path / "in", image_size=32, k=4, out=tmp_path / "second")
    for file in added:
        file.unlink()
    result = run(tmp_path / "in", image_size=32, k=4, out=tmp_path / "third")
    third = assignments(result)
    assert n_computed(result) == 0
    assert third["cluster"].tolist() == first["cluster"].tolist()
    # 1e-4 is the bound that is promised; the embeddings are the same to the bit.
    np.testing.assert_allclose(third["distance"], first["distance"], rtol=0, atol=1e-4)


ENGINES_LOADED = """
import json, sys
from gpu_cluster.cli.main import main
sys.argv = ["gpu-cluster", "run", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    print(json.dumps([end.code, sorted({"tensorflow", "keras", "ncnn", "fsspec", "aiohttp"} & set(sys.modules))]))
"""


def code_and_engines_loaded(*arguments: str | Path) -> list[Any]:
    """Run the command line in a process of its own; return its code, and which engines and network libraries it has."""
    command = [sys.executable, "-c", ENGINES_LOADED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "loaded"), [("tensorflow", ["keras", "tensorflow"]), ("ncnn", ["ncnn"])])
def test_a_first_run_imports_its_engine_and_no_other(tmp_path, engine, loaded):
    write_pictures(tmp_path / "in", 3)
    arguments = (tmp_path / "in", *TINY_OPTIONS, "--engine", engine, "--out", tmp_path / "run")
    assert code_and_engines_loaded(*arguments) == [0, loaded]
    # The other one's embeddings are not taken, and those of this one need no engine.
    assert code_and_engines_loaded(*arguments) == [0, []]
    other = "ncnn" if engine == "tensorflow" else "tensorflow"
    assert code_and_engines_loaded(*arguments[:-4], "--engine", other, "--out", tmp_path / "other")[1] != []


def test_a_rerun_imports_no_engine_and_has_no_speed(tmp_path):
    write_pictures(tmp_path / "in", 3)
    first = run(tmp_path / "in", **TINY, out=tmp_path / "first")
    assert n_computed(first) == json.loads((first.folder / "run.json").read_text())["n_computed"] == 3
    arguments = (tmp_path / "in", *TINY_OPTIONS, "--out", tmp_path / "run")
    assert code_and_engines_loaded(*arguments) == [0, []]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["n_computed"], record["images_per_s"]) == (0, None)


@pytest.mark.slow
def test_a_rerun_that_sweeps_and_scores_labels_imports_no_engine(tmp_path):
    for folder in ("daisy", "rose"):
        write_pictures(tmp_path / "in" / folder, 6)
    run(tmp_path / "in", image_size=32, labels_from_folders=True, out=tmp_path / "first")
    arguments = (tmp_path / "in", "--image-size", "32", "--labels-from-folders", "--out", tmp_path / "run")
    assert code_and_engines_loaded(*arguments) == [0, []]


@pytest.mark.slow
def test_the_verdict_on_a_damaged_file_is_kept_and_reported_again_without_an_engine(tmp_path):
    files = write_pictures(tmp_path / "in", 4)
    # The header is whole, so only decoding tells.
    files[2].write_bytes(files[2].read_bytes()[:-100])
    first = run(tmp_path / "in", **TINY, out=tmp_path / "first")
    arguments = (tmp_path / "in", *TINY_OPTIONS, "--out", tmp_path / "run")
    assert code_and_engines_loaded(*arguments) == [0, []]
    reported = "path,reason\n002.png,PNG that is damaged or cut short: Truncated File Read\n"
    assert (first.folder / "bad_files.csv").read_text() == reported
    assert (tmp_path / "run" / "bad_files.csv").read_text() == reported


@pytest.mark.slow
def test_nothing_but_damaged_files_is_reported_again_without_an_engine(tmp_path):
    for file in write_pictures(tmp_path / "in", 2):
        file.write_bytes(file.read_bytes()[:-100])
    arguments = (tmp_path / "in", "--image-size", "32", "--quiet", "--out", tmp_path / "run")
    assert code_and_engines_loaded(*arguments)[0] == 3
    assert code_and_engines_loaded(*arguments) == [3, []]


# What else the store is asked


def test_force_computes_everything_again_gives_the_same_and_keeps_every_picture_once(tmp_path, cache):
    write_pictures(tmp_path / "in", 6)
    first = run(tmp_path / "in", **TINY, out=tmp_path / "first")
    second = run(tmp_path / "in", **TINY, force=True, out=tmp_path / "second")
    assert n_computed(second) == 6
    assert (second.folder / "assignments.csv").read_bytes() == (first.folder / "assignments.csv").read_bytes()
    # The same shard has the same bytes, and so the same name.
    assert len(kept(cache)) == len(set(kept(cache))) == 6


def test_another_recipe_is_computed_for_itself_and_both_are_kept(tmp_path):
    write_pictures(tmp_path / "in", 4)
    results = [run(tmp_path / "in", **TINY, fit=fit, out=tmp_path / "run") for fit in ("crop", "stretch", "crop")]
    assert [n_computed(result) for result in results] == [4, 4, 0]


def test_a_store_without_the_file_of_its_key_loses_no_shard_when_it_is_verified(tmp_path, cache):
    write_pictures(tmp_path / "in", 4)
    run(tmp_path / "in", **TINY, out=tmp_path / "run")
    # What `cache info` shows; each shard holds its key too.
    for file in cache.glob("embeddings/*/_key.json"):
        file.unlink()
    called("cache", "verify")
    assert len(kept(cache)) == 4


def test_without_a_cache_nothing_is_kept_and_everything_is_computed_again(tmp_path, cache):
    write_pictures(tmp_path / "in", 6)
    run(tmp_path / "in", **TINY, no_cache=True, out=tmp_path / "run")
    assert n_computed(run(tmp_path / "in", **TINY, no_cache=True, out=tmp_path / "run")) == 6
    assert not cache.exists()


def test_a_store_named_is_used_and_no_other_also_where_it_was_moved_to(tmp_path, cache):
    write_pictures(tmp_path / "in", 6)
    run(tmp_path / "in", **TINY, cache=tmp_path / "store", out=tmp_path / "run")
    assert len(kept(tmp_path / "store")) == 6
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    assert n_computed(run(tmp_path / "in", **TINY, cache=tmp_path / "elsewhere", out=tmp_path / "run")) == 0
    assert not cache.exists()
    assert not (tmp_path / "store").exists()


@pytest.fixture(scope="module")
def with_a_copy(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A run, with a store beside it, on four pictures, a copy of one of them and an empty file."""
    place = tmp_path_factory.mktemp("copy")
    files = write_pictures(place / "in", 4)
    shutil.copy(files[1], place / "in" / "copy.png")
    (place / "in" / "empty.jpg").touch()
    return run(place / "in", **TINY, cache=place / "store", out=place / "run")


def test_duplicates_are_embedded_once(with_a_copy):
    assert n_computed(with_a_copy) == 4
    assert len(kept(with_a_copy.folder.with_name("store"))) == 4


def test_duplicates_are_rows_like_those_that_they_are_copies_of(with_a_copy):
    found = assignments(with_a_copy).set_index("path")
    same = ["cluster", "distance", "pc1", "pc2", "content_hash"]
    assert len(found) == 5
    assert list(found.loc["copy.png", same]) == list(found.loc["001.png", same])


def test_duplicates_are_marked_in_the_manifest_with_what_they_are_copies_of(with_a_copy):
    found = pd.read_parquet(with_a_copy.folder / "manifest.parquet").set_index("path")
    assert found["status"].tolist() == ["ok"] * 4 + ["duplicate", "bad"]
    assert found.loc["copy.png", "reason"] == "same content as 001.png"


def test_the_record_of_a_run_counts_what_was_found_good_bad_and_twice(with_a_copy):
    record = json.loads((with_a_copy.folder / "run.json").read_text())
    assert record["files"] == {"found": 6, "ok": 4, "bad": 1, "duplicate": 1, "passed_over": 0}


def test_copies_of_a_picture_that_is_kept_are_not_computed_in_another_folder(tmp_path):
    write_pictures(tmp_path / "in", 4)
    run(tmp_path / "in", **TINY, out=tmp_path / "run")
    shutil.copytree(tmp_path / "in", tmp_path / "elsewhere")
    assert n_computed(run(tmp_path / "elsewhere", **TINY, out=tmp_path / "run")) == 0


@pytest.mark.slow
@pytest.mark.parametrize("first_of_second", [0, 8], ids=["the same pictures", "overlapping pictures"])
def test_two_processes_at_once_share_a_store_and_both_are_right(tmp_path, cache, first_of_second):
    files = write_pictures(tmp_path / "in", 24)
    lists = (files[:16], files[first_of_second : first_of_second + 16])
    processes = []
    for number, named in enumerate(lists):
        (tmp_path / f"{number}.txt").write_text("\n".join(map(str, named)))
        given = ["run", "--input-list", f"{number}.txt", "--shard-size", "4", *TINY_OPTIONS, "--out", f"run-{number}"]
        processes.append(subprocess.Popen([COMMAND, *given], cwd=tmp_path, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    tables = [pd.read_parquet(tmp_path / f"run-{number}" / "assignments.parquet") for number in range(2)]
    assert [len(table) for table in tables] == [16, 16]
    assert verify(cache, Observer())[1] == []
    right = dict(zip(files, embed(files, image_size=32, no_cache=True), strict=True))
    for named in lists:
        kept = embed(named, image_size=32)
        expected = np.stack([right[file] for file in named])
        # TensorFlow's result for an image changes by up to 4e-8 of its size with the batch it is in.
        np.testing.assert_allclose(kept, expected, atol=1e-6 * float(np.abs(expected).max()))


# What is taken from an earlier run


def outputs(folder: Path) -> dict[str, bytes]:
    """Return the files of a run folder but those that hold times, and the plots and tables in them."""
    timed = {"run.json", "events.jsonl", "sweep.csv", "report.html", "inventory.json"}
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in timed
    }


def page_without_times(folder: Path) -> str:
    """Return the page of a run without its times, its notices and the name of its folder."""
    page = (folder / "report.html").read_text().replace(str(folder), "")
    page = re.sub(r"\d+\.\d s\b|<ul>(<li><bdi>The store holds[^<]*</bdi></li>)+</ul>", "", page)
    return "\n".join(line for line in page.splitlines() if line)


def taken(folder: Path) -> list[str]:
    """Return the kinds of what a run has taken from the store, of results of an earlier run."""
    begin = "The store holds of an earlier run what is the same: "
    notices = json.loads((folder / "run.json").read_text())["notices"]
    return [kind for one in notices if one.startswith(begin) for kind in one.removeprefix(begin).split(", ")]


EVERYTHING = ["sweep", "t-SNE", "plots", "contact sheets"]
LABELLED: dict[str, Any] = {**TINY, "labels_from_folders": True}


@pytest.fixture
def two_folders(tmp_path: Path) -> Path:
    """Pictures in two folders, which are old enough for the scan to trust their times."""
    for folder in ("daisy", "rose"):
        age(write_pictures(tmp_path / "in" / folder, 6))
    for number, file in enumerate(sorted((tmp_path / "in" / "rose").iterdir())):
        picture(100 + number).save(file)
    age(sorted((tmp_path / "in" / "rose").iterdir()))
    return tmp_path / "in"


def test_a_rerun_is_the_same_to_the_byte_and_draws_nothing(tmp_path, two_folders):
    first = run(two_folders, **LABELLED, out=tmp_path / "first").folder
    code = "import sys; from gpu_cluster import run; run(**eval(sys.argv[1])); print(sorted(sys.modules))"
    options = {**LABELLED, "images": str(two_folders), "out": str(tmp_path / "second")}
    done = subprocess.run([sys.executable, "-c", code, repr(options)], capture_output=True, text=True, check=True)
    second = tmp_path / "second"
    assert (taken(first), taken(second)) == ([], EVERYTHING)
    assert outputs(first) == outputs(second)
    # The seconds of each k too are those of the first run.
    assert (first / "sweep.csv").read_bytes() == (second / "sweep.csv").read_bytes()
    assert page_without_times(first) == page_without_times(second)
    loaded = {name.partition(".")[0] for name in ast.literal_eval(done.stdout)}
    assert not {"matplotlib", "tensorflow", "keras", "ncnn", "skimage"} & loaded


def test_nothing_is_taken_without_the_store_or_with_force(tmp_path, two_folders):
    run(two_folders, **LABELLED, out=tmp_path / "first")
    for option in ("no_cache", "force"):
        options: dict[str, Any] = {**LABELLED, option: True}
        assert taken(run(two_folders, **options, out=tmp_path / option).folder) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"seed": 1}, set()),
        ({"whitening": 0.1}, set()),
        ({"layout_sample": 6}, {"sweep"}),
        ({"n_init": 3}, {"t-SNE"}),
        ({"silhouette_sample": 6}, {"t-SNE"}),
        ({"k": 3}, {"t-SNE"}),
        ({"thumbnails": 3}, {"sweep", "t-SNE"}),
        ({"labels_from_folders": False}, {"sweep", "t-SNE"}),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, dict) else "",
)
def test_what_an_option_changes_is_made_again(tmp_path, cache, two_folders, change, same):
    run(two_folders, **LABELLED, out=tmp_path / "first")
    options = {**LABELLED, **change}
    changed = run(two_folders, **options, out=tmp_path / "second").folder
    assert set(taken(changed)) & {"sweep", "t-SNE"} == same
    # The same embeddings, and nothing else that is kept.
    shutil.copytree(cache / "embeddings", tmp_path / "other" / "embeddings")
    fresh = run(two_folders, **{**options, "cache": tmp_path / "other"}, out=tmp_path / "third").folder
    assert taken(fresh) == []
    assert outputs(changed) == outputs(fresh)


def test_a_picture_that_changes_is_shown_as_it_is_now(tmp_path, cache, two_folders):
    run(two_folders, **LABELLED, out=tmp_path / "first")
    picture(7777).save(two_folders / "rose" / "000.png")
    changed = run(two_folders, **LABELLED, out=tmp_path / "second").folder
    assert taken(changed) == []
    shutil.copytree(cache / "embeddings", tmp_path / "other" / "embeddings")
    fresh = run(two_folders, **LABELLED, cache=tmp_path / "other", out=tmp_path / "third").folder
    assert outputs(changed) == outputs(fresh)


def test_labels_that_change_are_drawn_as_they_are_now(tmp_path, two_folders):
    table = tmp_path / "labels.csv"
    names = sorted(path.relative_to(two_folders).as_posix() for path in two_folders.rglob("*.png"))
    drawn = []
    for number, label in enumerate(("tulip", "lily", "tulip")):
        table.write_text("file,label\n" + "".join(f"{name},{label}{i % 2}\n" for i, name in enumerate(names)))
        found = run(two_folders, **TINY, labels=table, out=tmp_path / f"{number}").folder
        drawn.append((found / "plots" / "scatter_labels.png").read_bytes())
    assert drawn[0] == drawn[2] != drawn[1]

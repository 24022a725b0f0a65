"""A job that is run again: what is kept is not computed again, nor is an engine loaded for it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gpu_cluster import RunResult, embed, run
from gpu_cluster.events import Observer
from gpu_cluster.store.maintenance import verify
from tests.forks import Forked, run_program
from tests.helpers import (
    TINY,
    TINY_OPTIONS,
    age,
    assignments,
    called,
    kept,
    listing,
    n_computed,
    picture,
    write_pictures,
)


@pytest.mark.slow
def test_pictures_added_are_all_that_is_computed_and_removed_again_they_leave_the_result_as_it_was(
    tmp_path, sample_images
):
    (tmp_path / "in").mkdir()
    for file in sample_images[:24:2]:
        shutil.copy(file, tmp_path / "in")
    options = {**TINY, "k": 4}
    first = assignments(run(tmp_path / "in", **options, out=tmp_path / "first"))
    # Between the others by name: every later row moves.
    added = [Path(shutil.copy(file, tmp_path / "in")) for file in sample_images[1:13:2]]
    second = run(tmp_path / "in", **options, out=tmp_path / "second")
    assert n_computed(second) == 6
    assert len(assignments(second)) == 18
    for file in added:
        file.unlink()
    result = run(tmp_path / "in", **options, out=tmp_path / "third")
    third = assignments(result)
    assert n_computed(result) == 0
    assert third["cluster"].tolist() == first["cluster"].tolist()
    # 1e-4 is the bound that is promised; the embeddings are the same to the bit.
    np.testing.assert_allclose(third["distance"], first["distance"], rtol=0, atol=1e-4)


# What every job imports is imported once, in a new interpreter, and each group of jobs is a fork of it.
LOADED = """
import json, os, sys
import pandas, pyarrow.parquet, sklearn.cluster, sklearn.decomposition, sklearn.manifold, sklearn.metrics
import gpu_cluster.jobs.run
from gpu_cluster.cli.main import main
watched = {"tensorflow", "keras", "ncnn", "fsspec", "aiohttp", "matplotlib", "skimage"}
for group in json.loads(sys.argv[1]):
    process = os.fork()
    if process:
        os.waitpid(process, 0)
        continue
    found = []
    for arguments in group:
        sys.argv = ["gpu-cluster", "run", *arguments]
        try:
            main()
        except SystemExit as end:
            found.append([end.code, sorted(watched & set(sys.modules))])
    print("found:", json.dumps(found))
    break
"""
FOUND = "found: "


def codes_and_libraries_loaded(*groups: Sequence[Sequence[str | Path]]) -> list[Any]:
    """Run groups of jobs, one after the other, each group in a process of its own.

    Return for each job its code, and which engines and which libraries for the network and for plots its process has
    loaded so far.
    """
    given = json.dumps([[[os.fspath(one) for one in arguments] for arguments in group] for group in groups])
    done = subprocess.run([sys.executable, "-c", LOADED, given], capture_output=True, text=True, check=True)
    return [json.loads(line.removeprefix(FOUND)) for line in done.stdout.splitlines() if line.startswith(FOUND)]


def sweeping_and_scoring_labels(place: Path) -> tuple[str | Path, ...]:
    for folder in ("daisy", "rose"):
        write_pictures(place / "in" / folder, 6)
    given = ("--features", "vgg16", "--image-size", "32", "--k-range", "2:4", "--n-init", "2")
    return place / "in", *given, "--labels-from-folders"


def a_damaged_file(place: Path) -> tuple[str | Path, ...]:
    files = write_pictures(place / "in", 4)
    # The header is whole, so only decoding tells.
    files[2].write_bytes(files[2].read_bytes()[:-100])
    return place / "in", *TINY_OPTIONS


def nothing_but_damaged_files(place: Path) -> tuple[str | Path, ...]:
    for file in write_pictures(place / "in", 2):
        file.write_bytes(file.read_bytes()[:-100])
    return place / "in", *TINY_OPTIONS


@pytest.mark.slow
def test_a_first_run_imports_its_engine_and_no_other_and_a_rerun_none_whatever_it_reports(tmp_path):
    write_pictures(tmp_path / "in", 3)
    ncnn, tensorflow = (
        (tmp_path / "in", *TINY_OPTIONS, "--engine", engine, "--cache", tmp_path / "store", "--out", tmp_path / "run")
        for engine in ("ncnn", "tensorflow")
    )
    labels, damaged, nothing = (tmp_path / name for name in ("labels", "damaged", "nothing"))
    jobs = {
        labels: (sweeping_and_scoring_labels(labels), 0),
        damaged: (a_damaged_file(damaged), 0),
        nothing: (nothing_but_damaged_files(nothing), 3),
    }
    for place, (arguments, code) in jobs.items():
        assert called("run", *arguments, out=place / "first").code == code
    again = [(*arguments, "--out", place / "run") for place, (arguments, _) in jobs.items()]
    codes = [0, 0, *(code for _, code in jobs.values())]
    # The other one's embeddings are not taken, and those of this one need no engine.
    assert codes_and_libraries_loaded([ncnn], [ncnn, tensorflow], [ncnn, tensorflow, *again]) == [
        [[0, ["matplotlib", "ncnn"]]],
        [[0, []], [0, ["keras", "matplotlib", "tensorflow"]]],
        [[code, []] for code in codes],
    ]
    record = json.loads((labels / "run" / "run.json").read_text())
    assert (record["n_computed"], record["images_per_s"]) == (0, None)
    reported = "path,reason\n002.png,PNG that is damaged or cut short: Truncated File Read\n"
    for name in ("first", "run"):
        assert (damaged / name / "bad_files.csv").read_text() == reported


# What else the store is asked


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A run on six pictures, with the store that it made beside it."""
    place = tmp_path_factory.mktemp("six")
    write_pictures(place / "in", 6)
    result = run(place / "in", **TINY, cache=place / "store", out=place / "run")
    assert n_computed(result) == 6
    return result


@pytest.fixture
def pictures(six, cache: Path) -> Path:
    """The pictures of this run; a copy of its store is the one of the test."""
    shutil.copytree(six.folder.with_name("store"), cache)
    return Path(six.folder.with_name("in"))


def test_force_computes_everything_again_gives_the_same_and_keeps_every_picture_once(tmp_path, cache, six, pictures):
    second = run(pictures, **TINY, force=True, out=tmp_path / "second")
    assert n_computed(second) == 6
    assert taken(second.folder) == []
    assert (second.folder / "assignments.csv").read_bytes() == (six.folder / "assignments.csv").read_bytes()
    # The same shard has the same bytes, and so the same name.
    assert len(kept(cache)) == len(set(kept(cache))) == 6


def test_another_recipe_is_computed_for_itself_and_both_are_kept(tmp_path, six, pictures):
    assert six.config.embed.fit == "crop"
    results = [run(pictures, **TINY, fit=fit, out=tmp_path / "run") for fit in ("stretch", "crop")]
    assert [n_computed(result) for result in results] == [6, 0]


def test_a_store_without_the_file_of_its_key_loses_no_shard_when_it_is_verified(cache, pictures):
    # What `cache info` shows; each shard holds its key too.
    for file in cache.glob("embeddings/*/_key.json"):
        file.unlink()
    called("cache", "verify")
    assert len(kept(cache)) == 6


def test_without_a_cache_nothing_is_taken_and_nothing_is_kept(tmp_path, cache, pictures):
    before = listing(cache)
    result = run(pictures, **TINY, no_cache=True, out=tmp_path / "run")
    assert n_computed(result) == 6
    assert taken(result.folder) == []
    assert listing(cache) == before


def test_a_store_named_is_used_and_no_other_also_where_it_was_moved_to(tmp_path, cache, six):
    named = six.folder.with_name("store")
    assert len(kept(named)) == 6
    shutil.copytree(named, tmp_path / "elsewhere")
    again = run(six.folder.with_name("in"), **TINY, cache=tmp_path / "elsewhere", out=tmp_path / "run")
    assert n_computed(again) == 0
    assert not cache.exists()


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


def test_copies_of_a_picture_that_is_kept_are_not_computed_in_another_folder(tmp_path, pictures):
    shutil.copytree(pictures, tmp_path / "elsewhere")
    assert n_computed(run(tmp_path / "elsewhere", **TINY, out=tmp_path / "run")) == 0


@pytest.mark.slow
def test_two_processes_at_once_share_a_store_and_both_are_right(tmp_path, cache):
    files = write_pictures(tmp_path / "in", 20)
    # Both make the first shards at the same time; of the others, each has some that are not the other's.
    lists = (files[:16], [*files[:8], *files[12:]])
    processes = []
    for number, named in enumerate(lists):
        (tmp_path / f"{number}.txt").write_text("\n".join(map(str, named)))
        given = ["run", "--input-list", f"{number}.txt", "--shard-size", "4", *TINY_OPTIONS, "--out", f"run-{number}"]
        processes.append(Forked(*given, cwd=tmp_path))
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    tables = [pd.read_parquet(tmp_path / f"run-{number}" / "assignments.parquet") for number in range(2)]
    assert [len(table) for table in tables] == [16, 16]
    assert verify(cache, Observer())[1] == []
    recipe: dict[str, Any] = {"features": "vgg16", "image_size": 32}
    right = dict(zip(files, embed(files, **recipe, no_cache=True), strict=True))
    for named in lists:
        kept = embed(named, **recipe)
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


def write_two_folders(place: Path) -> Path:
    """Write pictures in two folders, which are old enough for the scan to trust their times."""
    for folder in ("daisy", "rose"):
        write_pictures(place / folder, 6)
    for number, file in enumerate(sorted((place / "rose").iterdir())):
        picture(100 + number).save(file)
    age(sorted(place.glob("*/*")))
    return place


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A run on two folders of pictures, with its store beside it."""
    place = tmp_path_factory.mktemp("labelled")
    return run(write_two_folders(place / "in"), **LABELLED, cache=place / "store", out=place / "run")


@pytest.fixture
def two_folders(labelled, cache: Path) -> Path:
    """The pictures of this run; a copy of its store is the one of the test."""
    shutil.copytree(labelled.folder.with_name("store"), cache)
    return Path(labelled.folder.with_name("in"))


def test_a_rerun_in_another_process_is_the_same_to_the_byte_and_draws_nothing(labelled):
    # The page has relative links to the pictures, and the command with its store.
    first, second, store, pictures = (labelled.folder.with_name(name) for name in ("run", "second", "store", "in"))
    code = "import sys; from gpu_cluster import run; run(**eval(sys.argv[1]))"
    options = {**LABELLED, "images": str(pictures), "cache": str(store), "out": str(second)}
    run_program(code, repr(options)).check_returncode()
    assert (taken(first), taken(second)) == ([], EVERYTHING)
    assert outputs(first) == outputs(second)
    # The seconds of each k too are those of the first run.
    assert (first / "sweep.csv").read_bytes() == (second / "sweep.csv").read_bytes()
    assert page_without_times(first) == page_without_times(second)


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
    options = {**LABELLED, **change}
    changed = run(two_folders, **options, out=tmp_path / "changed").folder
    assert set(taken(changed)) & {"sweep", "t-SNE"} == same
    # The same embeddings, and nothing else that is kept.
    shutil.copytree(cache / "embeddings", tmp_path / "other" / "embeddings")
    fresh = run(two_folders, **{**options, "cache": tmp_path / "other"}, out=tmp_path / "fresh").folder
    assert taken(fresh) == []
    assert outputs(changed) == outputs(fresh)


def test_a_picture_that_changes_is_shown_as_it_is_now(tmp_path, cache, two_folders):
    place = Path(shutil.copytree(two_folders, tmp_path / "in"))
    # The scan keeps what it found of these files, and all else is kept already.
    run(place, **LABELLED, out=tmp_path / "first")
    picture(7777).save(place / "rose" / "000.png")
    changed = run(place, **LABELLED, out=tmp_path / "second").folder
    assert taken(changed) == []
    shutil.copytree(cache / "embeddings", tmp_path / "other" / "embeddings")
    fresh = run(place, **LABELLED, cache=tmp_path / "other", out=tmp_path / "third").folder
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

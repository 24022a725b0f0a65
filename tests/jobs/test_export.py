"""The job `export`: folders for the groups, and tables; what is written, what never is, and how it is undone."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import pytest

import gpu_cluster
from gpu_cluster import ConfigError, DataError, InterruptedJobError, JobError, Observer
from gpu_cluster.clustering.model import checksum
from gpu_cluster.config import InputConfig, shipped_data
from gpu_cluster.export_folder import Filling
from gpu_cluster.facts import FileFacts
from gpu_cluster.files import escaped, unescaped
from gpu_cluster.images.labels import labelled
from gpu_cluster.images.source import Listing, Source, Stat
from gpu_cluster.manifest import Manifest
from gpu_cluster.report.exports import folders
from tests.helpers import (
    TINY,
    Noticing,
    called,
    listing,
    memory_folder,
    permissions_count,
    picture,
    without_override,
)
from tests.helpers import gpu_cluster as command

EARLIER = Path(__file__).parents[1] / "earlier"
FLOWERS = shipped_data() / "flowers"

# Names of pictures, and what they become: the same where every system takes them.
NAMES = {
    # There is an A.png too, which comes before it.
    "a.png": "a (2).png",
    "sub/deep/a.png": "sub/deep/a.png",
    "é 花.png": "é 花.png",
    "=1+1.png": "=1+1.png",
    "b" * 251 + ".png": "b" * 251 + ".png",
    "new\nline.png": "new_line.png",
    "g\udce9rard.png": "g%E9rard.png",
    "CON.png": "_CON.png",
    "12:30.png": "12_30.png",
    "back\\slash.png": "back_slash.png",
    "dots./b.png": "dots_/b.png",
    "é\udce9" * 60 + ".png": "é%E9" * 50 + ".png",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on pictures with names of all kinds, one of them twice, and on a file that is no picture."""
    place = tmp_path_factory.mktemp("export")
    for seed, name in enumerate(NAMES):
        file = place / "in" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(file)
    shutil.copy(place / "in" / "a.png", place / "in" / "A.png")
    (place / "in" / "bad.png").write_text("no picture")
    return gpu_cluster.run(place / "in", **TINY, out=place / "run", cache=place / "store").folder


@pytest.fixture(scope="module")
def clusters(run) -> Mapping[str, int]:
    """The cluster of each picture by its path."""
    loaded = gpu_cluster.load_run(run)
    return dict(zip(loaded.paths, loaded.clusters.tolist(), strict=True))


@pytest.fixture
def moved(run, tmp_path) -> tuple[Path, Path]:
    """A copy of the run and one of its pictures, whose times are those of now."""
    shutil.copytree(run.parent / "in", tmp_path / "moved")
    return Path(shutil.copytree(run, tmp_path / "run")), tmp_path / "moved"


def listed(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "export.csv", dtype=str, na_filter=False)


def pictures_in(out: Path) -> dict[str, Path]:
    """Return the files and links in the folder of an export by the path of the picture, as its list has them."""
    table = listed(out)
    rows = table[table["kind"] != "file"]
    return {unescaped(path): out / target for path, target in zip(rows["path"], rows["target"], strict=True)}


# Folders


def test_each_picture_is_a_link_in_the_folder_of_its_group_and_keeps_its_path(run, clusters, tmp_path):
    before = listing(run.parent)
    done = gpu_cluster.export(run, out=tmp_path / "out")
    found = pictures_in(tmp_path / "out")
    assert set(found) == set(clusters)
    for path, cluster in clusters.items():
        assert found[path] == tmp_path / "out" / str(cluster) / NAMES.get(path, path)
        assert os.readlink(found[path]) == str(run.parent / "in" / path)
    assert (done.n, dict(done.missing), done.exit_code) == (13, {}, 0)
    assert listing(run.parent) == before
    assert sorted(os.listdir(tmp_path)) == ["out"]


def test_names_become_ones_that_every_system_takes_and_the_list_has_both(run, clusters, tmp_path):
    observer = Noticing()
    gpu_cluster.export(run, out=tmp_path / "out", observer=observer)
    table = listed(tmp_path / "out").set_index("path")["target"]
    for path, safe in NAMES.items():
        assert table[escaped(path)] == f"{clusters[path]}/{safe}"
    assert len(set(table.str.casefold())) == len(table)
    assert "8 pictures have another name in the export" in observer.notices[-1]


def test_a_duplicate_goes_with_its_group_and_a_bad_file_is_named_in_a_table(run, clusters, tmp_path):
    done = gpu_cluster.export(run, out=tmp_path / "out")
    found = pictures_in(tmp_path / "out")
    assert found["A.png"].read_bytes() == found["a.png"].read_bytes()
    assert clusters["A.png"] == clusters["a.png"]
    assert done.n_bad == 1
    table = pd.read_csv(tmp_path / "out" / "not_exported.csv")
    assert table["path"].tolist() == ["bad.png"]
    assert not list((tmp_path / "out").rglob("bad.png"))


def test_a_copy_has_the_bytes_and_the_time_of_its_picture(run, tmp_path):
    gpu_cluster.export(run, out=tmp_path / "out", link="copy")
    for path, file in pictures_in(tmp_path / "out").items():
        assert not file.is_symlink()
        assert file.read_bytes() == (run.parent / "in" / path).read_bytes()
        assert file.stat().st_mtime_ns == (run.parent / "in" / path).stat().st_mtime_ns


def test_a_hard_link_is_the_picture_itself(run, tmp_path):
    gpu_cluster.export(run, out=tmp_path / "out", link="hard")
    for path, file in pictures_in(tmp_path / "out").items():
        assert file.samefile(run.parent / "in" / path)
        assert not file.is_symlink()


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="needs a second file system")
def test_hard_links_to_another_disk_are_refused_with_what_to_do_and_nothing_is_left(run):
    with memory_folder() as folder:
        with pytest.raises(JobError, match="use --link symlink or --link copy"):
            gpu_cluster.export(run, out=folder / "out", link="hard")
        assert os.listdir(folder) == []


# Names of groups


def write_names(file: Path, *names: str) -> Path:
    table = pd.DataFrame({"cluster": range(len(names)), "name": names})
    table.to_csv(file, index=False)
    return file


def test_groups_get_the_names_of_a_table_and_those_with_one_name_become_one(run, tmp_path):
    gpu_cluster.export(run, out=tmp_path / "out", names=write_names(tmp_path / "names.csv", "cats", "cats"))
    assert sorted(os.listdir(tmp_path / "out")) == ["cats", "export.csv", "export.json", "not_exported.csv"]
    assert len(pictures_in(tmp_path / "out")) == 13


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("..", "."), {"_", "_ (2)"}),
        (("/etc/passwd", "../../up"), {"_etc_passwd", "_._.._up"}),
        (("a:b", "a?b"), {"a_b", "a_b (2)"}),
        (("Cats", "cats"), {"Cats", "cats (2)"}),
        (("export.csv", "not_exported.csv"), {"export (2).csv", "not_exported (2).csv"}),
        (("new\nline", "CON"), {"new_line", "_CON"}),
        (("é" * 300, "é" * 299), {"é" * 127, "é" * 125 + " (2)"}),
        ((".hidden", "dots.."), {"_hidden", "dots__"}),
    ],
    ids=["dots", "paths", "same when safe", "case", "our own", "newline and device", "long", "hidden"],
)
def test_whatever_groups_are_called_their_folders_are_in_the_target_and_apart(run, tmp_path, names, expected):
    table = write_names(tmp_path / "names.csv", *names)
    gpu_cluster.export(run, out=tmp_path / "place" / "out", names=table)
    found = set(os.listdir(tmp_path / "place" / "out")) - {"export.csv", "export.json", "not_exported.csv"}
    assert found == expected
    assert sorted(os.listdir(tmp_path)) == ["names.csv", "place"]
    assert os.listdir(tmp_path / "place") == ["out"]
    assert len(pictures_in(tmp_path / "place" / "out")) == 13


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("number,name\n0,a\n", "expected a CSV with the columns cluster and name"),
        ("cluster,name\n2,a\n", "from 0 to 1; found '2'"),
        ("cluster,name\n-1,a\n", "from 0 to 1; found '-1'"),
        ("cluster,name\n0,a\n0,b\n", "each cluster once; found 0 twice"),
        (b"cluster,name\n0,\xe9\n", "expected UTF-8"),
    ],
    ids=["columns", "too high", "below 0", "twice", "encoding"],
)
def test_a_table_of_names_that_does_not_fit_is_refused(run, tmp_path, content, message):
    (tmp_path / "names.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        gpu_cluster.export(run, out=tmp_path / "out", names=tmp_path / "names.csv")
    assert not (tmp_path / "out").exists()


def test_a_group_has_its_number_and_the_label_that_at_least_half_of_its_labelled_pictures_have(tmp_path):
    run = Path(shutil.copytree(EARLIER / "second" / "run", tmp_path / "run"))
    table = pd.read_parquet(run / "assignments.parquet")
    table["cluster"] = [0, 0, 0, 0, 1, 1, 1, 2]
    table["label"] = ["rose", "rose", "lily", None, "rose", "lily", "tulip", None]
    table.to_parquet(run / "assignments.parquet")
    model = json.loads((run / "model" / "model.json").read_text()) | {"cluster_labels": ["rose", "rose", None]}
    model["sha256"] = checksum(model, (run / "model" / "arrays.npz").read_bytes())
    (run / "model" / "model.json").write_text(json.dumps(model))
    done = gpu_cluster.export(run, out=tmp_path / "out", root=FLOWERS)
    assert dict(done.groups) == {"0-rose": 4, "1": 3, "2": 1}


# What is there already


def test_a_second_export_to_the_same_folder_is_refused_and_changes_nothing(run, tmp_path):
    gpu_cluster.export(run, out=tmp_path / "out")
    before = listing(tmp_path)
    with pytest.raises(ConfigError, match=r"is not empty.*--overwrite.*--undo"):
        gpu_cluster.export(run, out=tmp_path / "out")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_somebody_else_is_never_touched(run, tmp_path, overwrite):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="expected a new or an empty folder"):
        gpu_cluster.export(run, out=tmp_path / "out", overwrite=overwrite)
    assert listing(tmp_path) == {"out": None, "out/mine.txt": b"mine"}


def test_overwrite_replaces_an_earlier_export(run, tmp_path):
    names = write_names(tmp_path / "names.csv", "cats", "dogs")
    gpu_cluster.export(run, out=tmp_path / "out", link="copy")
    gpu_cluster.export(run, out=tmp_path / "out", names=names, overwrite=True)
    assert {file.parent.name for file in (tmp_path / "out").glob("*/*.png")} == {"cats", "dogs"}
    assert all(file.is_symlink() for file in pictures_in(tmp_path / "out").values())
    assert sorted(os.listdir(tmp_path)) == ["names.csv", "out"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes these rights from root")
def test_an_earlier_export_that_cannot_be_deleted_gets_another_name_and_the_new_one_is_done(run, tmp_path):
    gpu_cluster.export(run, out=tmp_path / "out")
    (tmp_path / "out" / "0").chmod(0o500)
    with permissions_count():
        done = called("export", run, "--link", "copy", "--overwrite", out=tmp_path / "out")
    assert done.code == 0, done.err
    assert f"what is left of it is now '{tmp_path / 'out.1'}'" in done.err
    assert sorted(os.listdir(tmp_path)) == ["out", "out.1"]
    assert len(pictures_in(tmp_path / "out")) == 13
    (tmp_path / "out.1" / "0").chmod(0o700)


@pytest.mark.parametrize("change", ["another file", "a changed copy"])
def test_overwrite_refuses_an_export_that_holds_somebodys_work(run, tmp_path, change):
    gpu_cluster.export(run, out=tmp_path / "out", link="copy")
    file = tmp_path / "out" / "mine.txt" if change == "another file" else pictures_in(tmp_path / "out")["a.png"]
    file.write_bytes(b"work")
    before = listing(tmp_path)
    with pytest.raises(ConfigError, match="deletes nothing else than what an export wrote"):
        gpu_cluster.export(run, out=tmp_path / "out", overwrite=True)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("out", ["file", "file/out", "run/out", "loop", "loop/out", "nowhere/out"])
@pytest.mark.parametrize("to", ["folders", "labels"])
def test_a_place_where_no_folder_can_be_is_refused(moved, tmp_path, out, to):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("absent")
    before = listing(tmp_path)
    with pytest.raises(ConfigError):
        gpu_cluster.export(moved[0], to=to, out=tmp_path / out)
    assert listing(tmp_path) == before


def test_a_file_that_is_a_link_back_to_itself_is_refused(run, tmp_path):
    (tmp_path / "a.csv").symlink_to("a.csv")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=r"is there already|would be replaced"):
            gpu_cluster.export(run, to="csv", out=tmp_path / "a.csv", overwrite=overwrite)
    assert listing(tmp_path) == {"a.csv": "a.csv"}


@pytest.mark.parametrize("to", ["folders", "csv"])
def test_the_run_folder_holds_nothing_but_the_run(moved, to):
    before = listing(moved[0])
    with pytest.raises(ConfigError, match=r"lies in the run folder|is not empty"):
        gpu_cluster.export(moved[0], to=to, out=moved[0])
    assert listing(moved[0]) == before


def test_what_takes_the_name_meanwhile_stays_and_is_named(run, tmp_path):
    class Taking(Observer):
        def progress(self, stage: str, done: int, total: int) -> None:
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "mine.txt").write_text("mine")

    with pytest.raises(JobError, match="something else took the name"):
        gpu_cluster.export(run, out=tmp_path / "out", observer=Taking())
    assert listing(tmp_path) == {"out": None, "out/mine.txt": b"mine"}


# Undone


@pytest.mark.parametrize("link", ["symlink", "copy", "hard"])
def test_undo_leaves_what_was_there_before(run, tmp_path, link):
    before = listing(run.parent)
    gpu_cluster.export(run, out=tmp_path / "new" / "out", link=link)
    undone = gpu_cluster.undo_export(tmp_path / "new" / "out")
    assert (undone.removed, undone.changed, undone.gone, undone.left) == (14, (), 0, None)
    assert listing(tmp_path) == {"new": None}
    assert listing(run.parent) == before


def test_undo_keeps_what_was_changed_or_added_and_the_list(run, tmp_path):
    gpu_cluster.export(run, out=tmp_path / "out", link="copy")
    found = pictures_in(tmp_path / "out")
    found["a.png"].write_bytes(b"edited")
    found["CON.png"].unlink()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    undone = gpu_cluster.undo_export(tmp_path / "out")
    kept = found["a.png"].relative_to(tmp_path / "out")
    assert (undone.removed, undone.changed, undone.gone) == (12, (str(kept),), 1)
    assert set(listing(tmp_path / "out")) == {"export.csv", "export.json", "mine.txt", str(kept), str(kept.parent)}
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_undo_leaves_the_folder_of_what_was_added_and_no_list(run, tmp_path):
    gpu_cluster.export(run, out=tmp_path / "out")
    group = pictures_in(tmp_path / "out")["sub/deep/a.png"].parent
    (group / "mine.txt").write_text("mine")
    undone = gpu_cluster.undo_export(tmp_path / "out")
    assert undone.left == group.parent.parent.name
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert files == [group / "mine.txt"]


def test_undo_keeps_the_list_for_a_folder_that_was_renamed(run, clusters, tmp_path):
    gpu_cluster.export(run, out=tmp_path / "out")
    (tmp_path / "out" / "0").rename(tmp_path / "out" / "tulips")
    in_it = list(clusters.values()).count(0)
    undone = called("export", "--undo", tmp_path / "out")
    assert f"no longer there: {in_it}\n" in undone.out
    assert "holds 'tulips'; if that is a folder of the export under another name, give it its own name" in undone.out
    (tmp_path / "out" / "tulips").rename(tmp_path / "out" / "0")
    gpu_cluster.undo_export(tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_a_name_with_a_newline_is_one_line_of_what_undo_says(run, tmp_path):
    gpu_cluster.export(run, out=tmp_path / "out")
    (tmp_path / "out" / "a\nb").write_text("mine")
    with (tmp_path / "out" / "export.csv").open("a") as stream:
        stream.write(f'"a\nb",file,,,,9,{"0" * 32}\n')
    undone = called("export", "--undo", tmp_path / "out")
    assert "changed since, so left as they are: 1 (a\\nb)\n" in undone.out


def test_undo_follows_no_link_that_took_the_place_of_a_folder(run, tmp_path):
    gpu_cluster.export(run, out=tmp_path / "out", link="copy")
    folder = pictures_in(tmp_path / "out")["sub/deep/a.png"].parent
    shutil.move(folder, tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    undone = gpu_cluster.undo_export(tmp_path / "out")
    assert undone.gone == 1
    assert (tmp_path / "elsewhere" / "a.png").is_file()


def test_a_dry_run_of_undo_counts_and_removes_nothing(run, tmp_path):
    gpu_cluster.export(run, out=tmp_path / "out")
    before = listing(tmp_path)
    assert gpu_cluster.undo_export(tmp_path / "out", dry_run=True).removed == 14
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    "target",
    ["../mine.txt", "/mine.txt", "a/../../mine.txt", "./mine.txt", "export.json", "a/" * 50_000 + "a"],
    ids=["above", "absolute", "above a folder", "here", "our own", "deep"],
)
def test_a_list_that_names_what_no_export_can_have_written_is_refused_whole(run, tmp_path, target):
    gpu_cluster.export(run, out=tmp_path / "out")
    (tmp_path / "mine.txt").write_text("")
    with (tmp_path / "out" / "export.csv").open("a") as stream:
        stream.write(f"{target},file,,,,0,{'0' * 32}\n")
    before = listing(tmp_path)
    with pytest.raises(DataError, match="nothing was removed"):
        gpu_cluster.undo_export(tmp_path / "out")
    assert listing(tmp_path) == before


def test_a_folder_that_is_no_export_is_not_undone(run, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="is no folder of an export"):
        gpu_cluster.undo_export(tmp_path)
    with pytest.raises(DataError, match="is no folder of an export"):
        gpu_cluster.undo_export(tmp_path / "absent")
    assert (tmp_path / "mine.txt").exists()


# Dry run


@pytest.mark.parametrize("to", ["folders", "csv", "parquet", "json", "labels", "embeddings", "tensorboard", "fiftyone"])
def test_a_dry_run_says_what_it_would_do_and_writes_nothing(run, tmp_path, to):
    before = listing(run.parent)
    done = called("export", run, "--to", to, "--out", tmp_path / "new" / "out", "--dry-run")
    assert done.code == 0, done.err
    assert "nothing was written" in done.out
    assert listing(tmp_path) == {}
    assert listing(run.parent) == before


def test_a_dry_run_of_folders_names_each_picture_and_its_place(run, clusters, tmp_path):
    done = called("export", run, "--out", tmp_path / "out", "--dry-run")
    assert f"symlink {clusters['CON.png']}/_CON.png <- CON.png\n" in done.out
    assert "<- new\\nline.png\n" in done.out


# Pictures that have moved or changed


def test_pictures_are_found_where_they_are_now_and_one_with_another_time_is_the_same(moved, tmp_path):
    run, pictures = moved
    os.utime(pictures / "a.png", ns=(10**18, 10**18))
    done = gpu_cluster.export(run, out=tmp_path / "out", root=pictures)
    assert done.exit_code == 0
    assert os.readlink(pictures_in(tmp_path / "out")["a.png"]) == str(pictures / "a.png")


@pytest.mark.parametrize("link", ["symlink", "copy", "hard"])
def test_what_is_gone_or_changed_is_left_out_with_the_reason_and_code_3(moved, tmp_path, link):
    run, pictures = moved
    (pictures / "CON.png").unlink()
    picture(99).save(pictures / "dots." / "b.png")
    arguments = ("export", run, "--link", link, "--root", pictures, "--out", tmp_path / "out")
    done = called(*arguments)
    assert done.code == 3
    assert "not exported: 2 pictures of the run (CON.png: not there; dots./b.png: changed since the run" in done.out
    assert len(pictures_in(tmp_path / "out")) == 11
    table = pd.read_csv(tmp_path / "out" / "not_exported.csv").set_index("path")["reason"]
    assert table["CON.png"] == "not there"
    assert set(table.index) == {"CON.png", "dots./b.png", "bad.png"}
    assert not list((tmp_path / "out").glob("*/dots_"))
    assert called(*arguments, "--dry-run", "--overwrite").code == 3


def test_pictures_that_are_all_gone_are_an_error_and_nothing_is_left(moved, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"found none of them.*give --root DIR"):
        gpu_cluster.export(moved[0], out=tmp_path / "new" / "out", root=tmp_path / "empty")
    assert sorted(os.listdir(tmp_path)) == ["empty", "moved", "run"]


def test_a_run_that_names_a_picture_outside_of_its_folder_is_refused(moved, tmp_path):
    run, pictures = moved
    table = pd.read_parquet(run / "assignments.parquet")
    table.loc[0, "path"] = "../secret.png"
    table.to_parquet(run / "assignments.parquet")
    picture(1).save(tmp_path / "secret.png")
    with pytest.raises(DataError, match="leads out of it"):
        gpu_cluster.export(run, out=tmp_path / "out", root=pictures)
    assert not (tmp_path / "out").exists()


# A disk that is full, a kill, an interruption


def _mounted(folder: Path, size: str) -> bool:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    return (
        shutil.which("mount") is not None and subprocess.run(command, check=False, capture_output=True).returncode == 0
    )


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for some of the pictures."""
    folder = tmp_path / "disk"
    if not _mounted(folder, "24k"):
        pytest.skip("may not mount a file system here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("options", [{"link": "copy"}, {"to": "csv"}, {"to": "embeddings"}], ids=str)
def test_a_full_disk_leaves_nothing_and_says_so(run, full_disk, options):
    (full_disk / "other").write_bytes(bytes(20 << 10))
    with pytest.raises(JobError, match=r"No space left on device.*nothing was left"):
        gpu_cluster.export(run, out=full_disk / "new" / "out", **options)
    assert os.listdir(full_disk) == ["other"]


@contextmanager
def files_of_at_most(n_bytes: int) -> Iterator[None]:
    """Let no file grow beyond a size; Python is told so by an error, and not killed by the signal for it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_limit_on_the_size_of_files_leaves_nothing(run, tmp_path):
    with files_of_at_most(500), pytest.raises(JobError, match="File too large"):
        gpu_cluster.export(run, out=tmp_path / "out", link="copy")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes these rights from root")
def test_a_folder_without_the_right_to_write_is_refused(run, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    done = command("export", run, out=tmp_path / "closed" / "out", before=without_override)
    assert done.code == 2
    assert "no permission to write" in done.err


KILLED = """
import os, signal, sys
import gpu_cluster

class Killing(gpu_cluster.Observer):
    def progress(self, stage, done, total):
        if done == 5:
            os.kill(os.getpid(), signal.SIGKILL)

gpu_cluster.export(sys.argv[1], out=sys.argv[2], link="copy", observer=Killing())
"""


def test_a_kill_leaves_nothing_of_the_name_and_the_next_export_clears_what_it_left(run, tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, run, tmp_path / "out"], check=False)
    assert done.returncode == -9
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".out.")
    assert len(list((tmp_path / left).rglob("*.png"))) == 5
    # That of another name, and one that somebody made, stay.
    (tmp_path / ".out.12345678").mkdir()
    gpu_cluster.export(run, out=tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == [".out.12345678", "out"]


def test_an_export_that_a_killed_one_had_moved_aside_gets_its_name_back(run, tmp_path):
    gpu_cluster.export(run, out=tmp_path / "out")
    marker = json.loads((tmp_path / "out" / "export.json").read_text())
    (tmp_path / "out" / "export.json").write_text(json.dumps(marker | {"temporary": ".out.old.12345678"}))
    (tmp_path / "out").rename(tmp_path / ".out.old.12345678")
    with pytest.raises(JobError, match="something else took the name"):
        gpu_cluster.export(run, out=tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]
    assert len(pictures_in(tmp_path / "out")) == 13


class Stopping(Observer):
    def stopping(self) -> bool:
        return True


class StoppingLater(Observer):
    """Asks to stop when the export has begun."""

    def __init__(self) -> None:
        self.begun = False

    def progress(self, stage: str, done: int, total: int) -> None:
        self.begun = True

    def stopping(self) -> bool:
        return self.begun


@pytest.mark.parametrize("observer", [Stopping(), StoppingLater()], ids=["at once", "later"])
@pytest.mark.parametrize("link", ["symlink", "copy"])
def test_an_interrupted_export_leaves_nothing(run, tmp_path, observer, link):
    with pytest.raises(InterruptedJobError):
        gpu_cluster.export(run, out=tmp_path / "new" / "out", link=link, observer=observer)
    assert os.listdir(tmp_path) == []


# Pictures that are no files of this machine


class InMemory(Source):
    """Pictures that are no files."""

    def __init__(self, content: Mapping[str, bytes]) -> None:
        self._content = content

    def list(self) -> Listing:
        return Listing(set(self._content))

    def stat(self, location: str, facts: FileFacts | None = None) -> Stat:
        return Stat(len(self._content[location]), None)

    def open(self, location: str, facts: FileFacts | None = None) -> tuple[IO[bytes], Stat]:
        return io.BytesIO(self._content[location]), self.stat(location)

    def local_path(self, location: str) -> Path | None:
        return None


@pytest.fixture
def elsewhere(run) -> tuple[Source, list[folders.Planned]]:
    loaded = gpu_cluster.load_run(run)
    planned = folders.plan(loaded.assignments, loaded.manifest, ["0", "1"])
    return InMemory({one.location: (run.parent / "in" / one.location).read_bytes() for one in planned}), planned


def test_pictures_that_are_no_files_can_be_copied(elsewhere, run, tmp_path):
    source, planned = elsewhere
    filling = Filling(tmp_path)
    folders.check_link("copy", source, planned)
    assert folders.fill(filling, planned, source, "copy", Observer()) == {}
    for one in planned:
        assert (tmp_path / one.target).read_bytes() == (run.parent / "in" / one.location).read_bytes()


@pytest.mark.parametrize("link", ["symlink", "hard"])
def test_links_to_pictures_that_are_no_files_are_refused_with_what_to_do(elsewhere, link):
    with pytest.raises(ConfigError, match="use --link copy"):
        folders.check_link(link, *elsewhere)


# Tables


def test_a_table_has_the_rows_of_the_run_and_the_group_of_each(run, tmp_path):
    gpu_cluster.export(
        run, to="parquet", out=tmp_path / "a.parquet", names=write_names(tmp_path / "names.csv", "cats", "dogs")
    )
    table = pd.read_parquet(tmp_path / "a.parquet")
    own = gpu_cluster.load_run(run).assignments
    pd.testing.assert_frame_equal(table.drop(columns="group"), own)
    assert table["group"].tolist() == [("cats", "dogs")[cluster] for cluster in own["cluster"]]


def test_csv_and_json_give_the_same_numbers_back(run, tmp_path):
    own = gpu_cluster.load_run(run).assignments
    for to in ("csv", "json"):
        gpu_cluster.export(run, to=to, out=tmp_path)
    written = pd.read_csv(tmp_path / "pictures.csv", dtype={"distance": np.float32, "group": str}, na_filter=False)
    content = json.loads((tmp_path / "pictures.json").read_text(encoding="utf-8"))
    for rows in (written.to_dict("records"), content["pictures"]):
        assert [row["path"] for row in rows] == own["path"].tolist()
        assert [np.float32(row["distance"]) for row in rows] == own["distance"].tolist()
        assert [row["group"] for row in rows] == own["cluster"].astype(str).tolist()
    assert [one["name"] for one in content["groups"]] == ["0", "1"]
    assert content["pictures"][0]["label"] is None


def test_names_that_are_not_utf8_are_in_json_as_in_every_table(run, tmp_path):
    gpu_cluster.export(run, to="json", out=tmp_path / "a.json")
    paths = [row["path"] for row in json.loads((tmp_path / "a.json").read_bytes())["pictures"]]
    assert "g\\xe9rard.png" in paths
    assert "new\nline.png" in paths


def test_labels_are_read_again_by_a_run(run, clusters, tmp_path):
    names = ("=cats", "dogs, and others")
    table = write_names(tmp_path / "names.csv", *names)
    gpu_cluster.export(run, to="labels", out=tmp_path / "labels.csv", names=table)
    manifest = Manifest(run.parent / "in", tuple(clusters))
    found = labelled(manifest, InputConfig(labels=tmp_path / "labels.csv"), Observer())
    assert found.labels is not None
    assert list(found.labels) == [names[cluster] for cluster in clusters.values()]


def test_a_safe_csv_holds_no_formula(run, tmp_path):
    gpu_cluster.export(run, to="csv", out=tmp_path / "a.csv", safe_csv=True)
    assert '"\'=1+1.png"' in (tmp_path / "a.csv").read_text()


@pytest.mark.parametrize("to", ["csv", "parquet", "json", "labels"])
def test_a_file_that_is_there_is_replaced_only_if_asked_and_if_it_is_such_a_table(run, tmp_path, to):
    (tmp_path / "out").mkdir()
    first = gpu_cluster.export(run, to=to, out=tmp_path / "out").out
    content = first.read_bytes()
    with pytest.raises(ConfigError, match="is there already"):
        gpu_cluster.export(run, to=to, out=first)
    gpu_cluster.export(run, to=to, out=first, overwrite=True)
    assert first.read_bytes() == content
    first.write_text("mine")
    with pytest.raises(ConfigError, match="would be replaced"):
        gpu_cluster.export(run, to=to, out=first, overwrite=True)
    assert first.read_text() == "mine"
    assert os.listdir(tmp_path / "out") == [first.name]


def test_a_file_of_another_kind_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match=r"expected a file that ends in \.csv, or a folder"):
        gpu_cluster.export(run, to="csv", out=tmp_path / "a.txt")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_there_is_made_for_a_table(run, tmp_path):
    assert gpu_cluster.export(run, to="labels", out=tmp_path / "new").out == tmp_path / "new" / "labels.csv"


# Files of other tools


def test_embeddings_come_back_from_both_files_as_the_store_has_them(run, tmp_path):
    gpu_cluster.export(run, to="embeddings", out=tmp_path / "out")
    own = gpu_cluster.load_run(run)
    array = np.load(tmp_path / "out" / "embeddings.npy")
    table = pd.read_parquet(tmp_path / "out" / "embeddings.parquet")
    assert table["path"].tolist() == own.assignments["path"].tolist()
    assert np.array_equal(np.stack(table["embedding"].to_list()), array)
    files = [run.parent / "in" / path for path in own.paths]
    options: Any = {key: TINY[key] for key in ("features", "image_size")}
    assert np.array_equal(array, gpu_cluster.embed(files, cache=run.parent / "store", **options))


@pytest.mark.parametrize("to", ["embeddings", "tensorboard", "fiftyone"])
def test_the_files_of_other_tools_are_listed_and_can_be_undone(run, tmp_path, to):
    done = gpu_cluster.export(run, to=to, out=tmp_path / "out")
    assert done.n == 13
    files = {str(path.relative_to(done.out)) for path in done.out.rglob("*") if path.is_file()}
    assert set(listed(done.out)["target"]) == files - {"export.csv", "export.json"}
    gpu_cluster.export(run, to=to, out=tmp_path / "out", overwrite=True)
    assert gpu_cluster.undo_export(done.out).changed == ()
    assert os.listdir(tmp_path) == []


# Runs of earlier versions, and what does not fit


@pytest.mark.parametrize("version", ["first", "second"])
def test_runs_of_earlier_versions_are_exported(version, tmp_path):
    run = EARLIER / version / "run"
    assert gpu_cluster.export(run, out=tmp_path / "out", root=FLOWERS).n == 8
    assert gpu_cluster.export(run, to="labels", out=tmp_path / "labels.csv").n == 8
    embeddings = gpu_cluster.export(run, to="embeddings", out=tmp_path / "x", cache=EARLIER / version / "store")
    assert embeddings.n == 8


def test_a_portable_run_asks_where_the_pictures_are(tmp_path):
    with pytest.raises(ConfigError, match="does not say where its pictures are: give --root DIR"):
        gpu_cluster.export(EARLIER / "second" / "run", out=tmp_path / "out")


def test_an_export_of_a_portable_run_names_no_folder_of_the_run(tmp_path):
    run = EARLIER / "second" / "run"
    gpu_cluster.export(run, to="json", out=tmp_path / "a.json")
    assert str(EARLIER) not in (tmp_path / "a.json").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "csv", "link": "copy"}, "--link belongs to --to folders"),
        ({"safe_csv": True}, "--safe-csv belongs to --to csv"),
        ({"to": "csv", "root": "."}, "--to csv looks at none"),
        ({"to": "embeddings", "names": "a.csv"}, "leave out --names"),
        ({"cache": "store"}, "--to folders needs none; leave out --cache"),
        ({"to": "webdataset"}, "--to: expected 'folders', 'tensorboard'"),
    ],
    ids=str,
)
def test_options_that_belong_to_another_form_are_refused(run, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        gpu_cluster.export(run, out=tmp_path / "out", **options)


@pytest.mark.parametrize(
    "arguments",
    [(), ("RUN",), ("--out", "a"), ("RUN", "--undo", "a"), ("--undo", "a", "--to", "csv")],
    ids=" ".join,
)
def test_a_command_that_lacks_or_mixes_what_it_needs_is_refused(tmp_path, arguments):
    assert called("export", *arguments, cwd=tmp_path).code == 2
    assert os.listdir(tmp_path) == []


def test_the_command_line_exports_and_undoes_and_says_so(run, tmp_path):
    done = called("export", run, "--out", tmp_path / "out")
    assert (done.code, done.out.splitlines()[-1]) == (0, f"exported: 13 pictures to {tmp_path / 'out'}")
    assert "not exported: 1 file that the run could not read" in done.out
    undone = called("export", "--undo", tmp_path / "out")
    assert (undone.code, undone.out) == (0, f"removed: 14 files and links of the export in {tmp_path / 'out'}\n")

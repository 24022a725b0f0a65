"""report.html: written by a run and again from its folder, and what it shows of names and pictures."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import gpu_cluster
from gpu_cluster.config import RunConfig
from gpu_cluster.errors import DataError
from gpu_cluster.files import printable
from gpu_cluster.images.places import open_source
from gpu_cluster.images.thumbnails import Thumbnails
from gpu_cluster.jobs.report import report
from gpu_cluster.options import build_config, command_line
from gpu_cluster.report import page
from gpu_cluster.report.groups import labels
from gpu_cluster.report.html import Links, breakable, visible
from gpu_cluster.run_folder import FinishedRun
from tests.forks import run_program
from tests.helpers import Noticing, called, listing, picture, write_pictures
from tests.servers import faulty_server

SMALL: dict[str, Any] = {"features": "vgg16", "image_size": 32, "k": 3, "k_range": "3:3", "n_init": 2}


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a b.png", "a b.png"), ("é漢.png", "é漢.png"), ("a\nb\t", "a\\nb\\t"), ("\u202e", "\\u202e"), ("\x00", "\\x00")],
)
def test_what_does_not_print_is_shown_as_an_escape(text, shown):
    assert visible(text) == shown


# Written again


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on six pictures that no test changes."""
    place = tmp_path_factory.mktemp("tiny")
    write_pictures(place / "in", 6)
    return gpu_cluster.run(place / "in", **SMALL, out=place / "run").folder


def test_the_page_is_written_again_from_the_folder(sample_run):
    # Beside the run, because the links to the pictures are relative where they can be.
    run = sample_run.folder.with_name("written-again")
    shutil.copytree(sample_run.folder, run)
    (run / "report.html").unlink()
    done = called("report", run)
    assert done.code == 0
    assert done.out.strip() == f"report: {(run / 'report.html').as_uri()}"
    # The comparison stands alone: pytest would take minutes to show where two texts of megabytes differ.
    is_same = (run / "report.html").read_bytes() == (sample_run.folder / "report.html").read_bytes()
    assert is_same


@pytest.fixture
def moved(tmp_path: Path, tiny: Path) -> tuple[Path, Path]:
    """A copy of the run on six pictures whose pictures are in another place now, and that place."""
    pictures = Path(shutil.copytree(tiny.parent / "in", tmp_path / "elsewhere"))
    run = Path(shutil.copytree(tiny, tmp_path / "run"))
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"root": str(tmp_path / "in")}))
    run_of = FinishedRun(run)
    (run / "thumbnails.parquet").write_bytes(run_of.thumbnails_file(tmp_path / "in", run_of.thumbnails[1]))
    return run, pictures


def images(page: Path) -> list[str]:
    """Return every JPEG in a page."""
    return re.findall(r"data:image/jpeg;base64,[^\"]+", page.read_text())


def test_a_page_keeps_its_pictures_when_the_files_have_moved_and_says_that_links_lead_nowhere(moved, tiny):
    run, _ = moved
    observer = Noticing()
    report(run, observer)
    assert images(run / "report.html") == images(tiny / "report.html")
    (notice,) = observer.notices
    assert re.search(r"no longer in '.*/in': the report keeps its small copies .* --root DIR", notice)


def test_with_a_root_the_pictures_are_read_there_and_linked_from_then_on(moved, tiny):
    run, pictures = moved
    (run / "thumbnails.parquet").unlink()
    done = called("report", run, "--root", pictures)
    assert (done.code, done.err) == (0, "")
    assert images(run / "report.html") == images(tiny / "report.html")
    assert 'href="../elsewhere/000.png"' in (run / "report.html").read_text()
    page = (run / "report.html").read_bytes()
    report(run)
    assert (run / "report.html").read_bytes() == page


def test_pictures_that_are_back_where_the_run_found_them_are_linked_there_again(moved):
    run, pictures = moved
    report(run, root=pictures)
    pictures.rename(pictures.parent / "in")
    observer = Noticing()
    report(run, observer)
    assert observer.notices == []
    assert 'href="../in/000.png"' in (run / "report.html").read_text()


def test_without_the_pictures_and_without_copies_nothing_is_replaced(moved):
    run, pictures = moved
    (run / "thumbnails.parquet").unlink()
    before = listing(run)
    done = called("report", run)
    assert done.code == 2
    assert re.search(r"expected its 6 pictures in '.*/in', found none of them \(the first is '000.png'\)", done.err)
    assert "--root DIR" in done.err
    # Other pictures of the same names are not those of the run.
    for seed, file in enumerate(sorted(pictures.iterdir())):
        picture(100 + seed).save(file)
    for root in (pictures, run / "plots"):
        assert "found none of them" in called("report", run, "--root", root).err
    assert "expected the folder that holds the pictures now" in called("report", run, "--root", run / "none").err
    assert listing(run) == before


def test_pictures_that_were_deleted_since_are_told_and_kept(moved, tiny):
    run, pictures = moved
    (pictures / "002.png").unlink()
    observer = Noticing()
    report(run, observer, root=pictures)
    assert images(run / "report.html") == images(tiny / "report.html")
    assert "1 picture of the report is not in" in observer.notices[0]
    assert "'002.png'" in observer.notices[0]
    (run / "thumbnails.parquet").unlink()
    report(run, root=pictures)
    assert images(run / "report.html") != images(tiny / "report.html")


def test_a_folder_that_is_no_run_is_an_error_that_says_what_is_expected(tmp_path):
    expected = "is no run folder: expected the folder that `gpu-cluster run` left; "
    with pytest.raises(DataError, match=expected + r"it holds no run\.json"):
        report(tmp_path)
    with pytest.raises(DataError, match=expected + "it does not exist"):
        report(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []


def test_the_folder_above_runs_and_a_file_of_a_run_lead_to_the_run(tmp_path):
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "run.json").touch()
    (tmp_path / "runs" / "one" / "report.html").touch()
    with pytest.raises(DataError, match="it holds the runs one; name one of them"):
        report(tmp_path / "runs")
    with pytest.raises(DataError, match=r"it is a file; the run folder is '.*runs/one'"):
        report(tmp_path / "runs" / "one" / "report.html")


@pytest.mark.parametrize("name", ["run.json", "metrics.json", "sweep.csv", "near_duplicates.csv", "manifest.parquet"])
def test_a_file_that_holds_something_else_is_an_error_that_names_the_folder(tmp_path, tiny, name):
    shutil.copytree(tiny, tmp_path / "run")
    (tmp_path / "run" / name).write_text("[]" if name.endswith(".json") else "a,b\n1,2\n")
    with pytest.raises(DataError, match=r"cannot make a report of '.*run': expected the folder that"):
        report(tmp_path / "run")
    assert (tmp_path / "run" / "report.html").read_bytes() == (tiny / "report.html").read_bytes()


# A folder that somebody else made


def renamed(run: Path, path: str) -> None:
    """Give the first picture of a run another path."""
    for name in ("assignments.parquet", "manifest.parquet"):
        table = pd.read_parquet(run / name)
        table.loc[0, "path"] = path
        table.to_parquet(run / name)


@pytest.fixture
def foreign(tmp_path: Path, tiny: Path) -> Path:
    """A run without small copies, whose pictures lie beside a private one."""
    shutil.copytree(tiny.parent / "in", tmp_path / "in")
    picture(99).save(tmp_path / "private.png")
    run = Path(shutil.copytree(tiny, tmp_path / "run"))
    (run / "thumbnails.parquet").unlink()
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"root": str(tmp_path / "in")}))
    return run


@pytest.mark.parametrize("given", [False, True], ids=["its root", "a root given"])
@pytest.mark.parametrize("path", ["../private.png", "a/../../private.png", "{}/private.png"])
def test_no_path_leads_out_of_the_folder_of_the_pictures(tmp_path, foreign, path, given):
    renamed(foreign, path.format(tmp_path))
    before = listing(foreign)
    with pytest.raises(DataError, match=r"expected paths inside the folder of its pictures, found one that leads out"):
        report(foreign, root=tmp_path / "in" if given else None)
    done = called("predict", foreign, tmp_path / "in", "--report", "--out", tmp_path / "p.csv")
    assert (done.code, (tmp_path / "p.csv").exists()) == (2, False)
    assert listing(foreign) == before


def test_the_page_of_a_run_folder_that_names_addresses_asks_no_server(foreign):
    with faulty_server({"a.png": b"content"}) as server:
        table = pd.read_parquet(foreign / "assignments.parquet")
        addresses = [f"{server.address}a.png", f"{server.address}a.tar::a.png"]
        table["path"] = [addresses[row] if row < len(addresses) else path for row, path in enumerate(table["path"])]
        table.to_parquet(foreign / "assignments.parquet")
        observer = Noticing()
        report(foreign, observer)
        assert server.requests == []
    assert observer.notices[0].startswith("2 pictures of the report are not in")


def test_an_escape_stands_for_no_dot_and_no_slash(foreign):
    # Tables escape neither, so this is the name of a picture that is not there.
    renamed(foreign, "\\x2e./private.png")
    observer = Noticing()
    report(foreign, observer)
    assert "1 picture of the report is not in" in observer.notices[0]
    assert "\\x2e./private.png" not in FinishedRun(foreign).thumbnails[1]


def test_a_picture_that_is_not_the_one_of_the_run_is_not_shown(tmp_path, foreign):
    # A link in the folder of the pictures, or another root in the record, lead where no path of a table may.
    (tmp_path / "in" / "000.png").unlink()
    (tmp_path / "in" / "000.png").symlink_to(tmp_path / "private.png")
    observer = Noticing()
    report(foreign, observer)
    assert "1 picture of the report is not in" in observer.notices[0]
    assert "000.png" not in FinishedRun(foreign).thumbnails[1]
    assert "001.png" in FinishedRun(foreign).thumbnails[1]


def test_a_picture_that_is_a_link_to_the_same_content_is_shown(tmp_path, foreign):
    (tmp_path / "in" / "000.png").rename(tmp_path / "moved.png")
    (tmp_path / "in" / "000.png").symlink_to(tmp_path / "moved.png")
    report(foreign)
    assert "000.png" in FinishedRun(foreign).thumbnails[1]


def bomb(file: Path) -> None:
    """Write a table of 2 GB into 50 kB: one long text in every row."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 2_000, pa.int32()), pa.array(["x" * 1_000_000]))
    pq.write_table(pa.table({"path": text, "jpeg": [b""] * 2_000}, metadata={"root": "/"}), file)


def rows(file: Path) -> None:
    """Write a table of 50 million rows into a few bytes."""
    nothing = pa.nulls(50_000_000, pa.int8())
    pq.write_table(pa.table({"path": nothing, "jpeg": nothing}, metadata={"root": "/"}), file)


def lists(file: Path) -> None:
    pq.write_table(pa.table({"path": [["a"]], "jpeg": [b"a"]}, metadata={"root": "/"}), file)


def sparse(file: Path) -> None:
    file.touch()
    os.truncate(file, 1 << 40)


HOSTILE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a pipe": ("run.json", os.mkfifo, "run.json is a pipe, a socket or a device; expected a file"),
    "no end": ("metrics.json", lambda file: file.symlink_to("/dev/zero"), "metrics.json is a link; expected a file"),
    "a table that is a pipe": ("assignments.parquet", os.mkfifo, "assignments.parquet is a pipe"),
    "copies that are a pipe": ("thumbnails.parquet", os.mkfifo, "thumbnails.parquet is a pipe"),
    "a plot that is a link": ("plots/elbow.png", lambda file: file.symlink_to("/etc/passwd"), "elbow.png is a link"),
    "a plot that is none": ("plots/elbow.png", lambda file: file.write_text("root:x:0"), "expected a PNG"),
    "a text without measure": ("run.json", sparse, "is too large"),
    "nested": (
        "run.json",
        lambda file: file.write_text("[" * 100_000),
        "nested too deeply: expected at most",
    ),
    "columns": ("sweep.csv", lambda file: file.write_text("," * 1_000_000), "expected the names of the columns"),
    "texts": ("thumbnails.parquet", bomb, r"takes at most 64 MiB, found 1,9\d\d MiB in a file of"),
    "rows": ("thumbnails.parquet", rows, "takes at most 64 MiB, found 762 MiB"),
    "lists": ("thumbnails.parquet", lists, "found one of lists"),
}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_file_that_would_fill_the_memory_or_never_end_is_refused_without_either(foreign, hostile):
    name, make, message = HOSTILE[hostile]
    (foreign / name).unlink(missing_ok=True)
    make(foreign / name)
    page = (foreign / "report.html").read_bytes()
    pool = pa.default_memory_pool()
    most_before = pool.max_memory()
    with pytest.raises(DataError, match=rf"cannot make a report of '.*run'.*{message}"):
        report(foreign)
    assert pool.max_memory() <= max(most_before, 128 << 20)
    assert (foreign / "report.html").read_bytes() == page


def test_more_groups_than_pictures_are_refused(foreign):
    metrics = json.loads((foreign / "metrics.json").read_text())
    (foreign / "metrics.json").write_text(json.dumps(metrics | {"k": 9_000_000_000}))
    with pytest.raises(DataError, match=r"expected from 1 to 6 groups in metrics\.json.*found 9000000000"):
        report(foreign)


def test_a_limit_on_pixels_that_no_option_allows_is_refused(foreign):
    record = json.loads((foreign / "run.json").read_text())
    record["config"]["input"]["max_pixels"] = 0
    (foreign / "run.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="max_pixels"):
        report(foreign)


def test_a_kept_copy_that_is_no_small_jpeg_is_made_again(foreign):
    report(foreign)
    place, copies = FinishedRun(foreign).thumbnails
    large, other = io.BytesIO(), io.BytesIO()
    picture(0, (4_000, 20)).save(large, "jpeg")
    picture(0).save(other, "png")
    wrong = copies | {"000.png": large.getvalue(), "001.png": other.getvalue(), "002.png": b"%!PS"}
    (foreign / "thumbnails.parquet").write_bytes(FinishedRun.thumbnails_file(place, wrong))
    report(foreign)
    assert FinishedRun(foreign).thumbnails[1] == copies


def test_a_page_that_cannot_be_written_is_a_failure_that_says_where(tmp_path, tiny):
    shutil.copytree(tiny, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    (tmp_path / "run" / "report.html").mkdir()
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    done = called("report", tmp_path / "run")
    assert done.code == 1
    assert done.err.startswith("error: cannot write '")
    assert "report.html': Is a directory" in done.err
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before


def test_the_limit_of_the_run_on_pixels_holds_for_its_page(tmp_path):
    files = write_pictures(tmp_path / "in", 6)
    run = gpu_cluster.run(tmp_path / "in", **SMALL, max_pixels=48 * 40, out=tmp_path / "run").folder
    picture(0, (49, 40)).save(files[0])
    pages = []
    for gone in (False, True):
        if gone:
            files[0].unlink()
        (run / "thumbnails.parquet").unlink()
        report(run)
        pages.append((run / "report.html").read_bytes())
    assert pages[0] == pages[1]


def test_a_name_longer_than_names_may_be_where_each_byte_is_an_escape_has_its_thumbnail(tmp_path):
    raw = tmp_path / os.fsdecode(b"\xff" * 100 + b".png")
    picture(0).save(raw, "png")
    shown = printable(raw.name)
    picture(0).save(tmp_path / "plain.png")
    assert len(shown) > 255
    source = open_source(tmp_path)
    copies = Thumbnails(source, [shown, "plain.png"])
    copies.make([0, 1], 64)
    assert copies.uri(0) == copies.uri(1)
    assert len(copies.copies()) == 2


# What the page says


def test_links_are_relative_where_page_and_pictures_have_a_folder_in_common(tmp_path):
    assert Links(tmp_path / "my photos", tmp_path / "runs" / "one").to("a b/#1?.png") == (
        "../../my%20photos/a%20b/%231%3F.png"
    )
    assert Links(Path("/photos"), Path("/runs/one")).to("a.png") == "file:///photos/a.png"
    raw = tmp_path / os.fsdecode(b"caf\xe9.png")
    raw.touch()
    assert Links(tmp_path, tmp_path / "run").to(printable(raw.name)) == "../caf%E9.png"


@pytest.mark.slow
def test_every_label_of_a_group_is_counted(tmp_path):
    for number in range(12):
        (tmp_path / "in" / f"label {number}").mkdir(parents=True)
        picture(number).save(tmp_path / "in" / f"label {number}" / "a.png")
    picture(0).save(tmp_path / "in" / "label 3" / "b.png")
    run = gpu_cluster.run(
        tmp_path / "in", image_size=32, k=1, k_range="1:1", n_init=2, labels_from_folders=True, out=tmp_path / "run"
    )
    found = labels(FinishedRun(run.folder), 0)
    assert found is not None
    assert [label["name"] for label in found["named"]] == [
        "label 3",
        "label 0",
        *(f"label {n}" for n in (1, 10, 11, 2)),
    ]
    assert (found["named"][0]["count"], found["named"][0]["percent"]) == ("2", "15%")
    assert (found["n_others"], found["in_others"], found["without"]) == (6, "6", 0)
    assert "and 6 others: 6" in (run.folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("cosine", "words"),
    [(0.9973, "99.7% alike"), (0.99999, "99.9% alike"), (1.0, "100.0% alike"), (0.97, "97.0% alike")],
)
def test_near_duplicates_are_so_many_percent_alike_and_only_the_same_are_100(cosine, words):
    assert page._alike(cosine) == words


def test_near_duplicates_come_with_what_to_do(tmp_path):
    write_pictures(tmp_path / "in", 5)
    picture(0).resize((50, 42)).save(tmp_path / "in" / "000 again.png")
    run = gpu_cluster.run(tmp_path / "in", **SMALL, out=tmp_path / "run").folder
    content = (run / "report.html").read_text()
    assert re.search(r"<p>9\d\.\d% alike</p>", content)
    assert "move it out of the folder and run again" in content


@pytest.mark.slow
def test_copies_with_two_labels_and_the_nearest_other_groups_are_named(tmp_path):
    for folder in ("rose", "tulip"):
        write_pictures(tmp_path / "in" / folder, 4)
    for number in (1, 2, 3):
        picture(10 + number).save(tmp_path / "in" / "tulip" / f"00{number}.png")
    shutil.copy(tmp_path / "in" / "rose" / "001.png", tmp_path / "in" / "rose" / "again.png")
    run = gpu_cluster.run(tmp_path / "in", **SMALL, labels_from_folders=True, out=tmp_path / "run").folder
    content = (run / "report.html").read_text()
    # tulip/000.png is the picture rose/000.png; the other copy has the label of its original.
    assert "But 1 of them has another label than that file" in content
    said = "same content as rose/000.png, but its label is tulip, and the label of that file is rose"
    assert re.findall(r"same content as [^<]*", content) == ["same content as rose/001.png", said]
    table = pd.read_csv(run / "assignments.csv")
    least = table.sort_values("silhouette", kind="stable").dropna(subset="silhouette")["cluster"]
    named = re.findall(r", group (\d), or group (\d), silhouette", content)
    assert [int(own) for own, _ in named] == least.tolist()
    assert all(own != other for own, other in named)


@pytest.mark.parametrize(
    ("name", "breaks"),
    [("bluebell/image_0241.jpg", "bluebell/|image_|0241|.jpg"), ("a.b", "a|.b"), ("a<b_", "a&lt;b_"), ("é", "é")],
)
def test_names_break_between_their_parts(name, breaks):
    assert str(breakable(name)) == breaks.replace("|", "<wbr>")


def test_the_command_is_the_one_that_repeats_the_run(tmp_path):
    config = build_config(RunConfig, images=(tmp_path / "my photos",), preset="notebook", k_range="2:9", no_cache=True)
    expected = f"gpu-cluster run '{tmp_path / 'my photos'}' --preset notebook --no-cache --k-range 2:9"
    assert command_line(config) == expected


@pytest.mark.slow
def test_a_page_that_cannot_be_written_costs_nothing_but_the_page(tmp_path):
    # Every table and plot of so few pictures fits; the page, which holds the plot of the sweep and more, does not.
    program = """
import resource
from gpu_cluster.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (180 << 10, 180 << 10))
main()
"""
    write_pictures(tmp_path / "in", 60)
    run = tmp_path / "run"
    given = ("--features", "vgg16", "--image-size", "32", "--k", "3", "--k-range", "2:4", "--n-init", "2", "--no-cache")
    done = run_program(program, "run", tmp_path / "in", *given, "--out", run)
    assert done.returncode == 0, done.stderr
    assert "report.html could not be written, which `gpu-cluster report` can do later: File too large" in done.stdout
    assert "report: " not in done.stdout
    assert len(pd.read_csv(run / "assignments.csv")) == 60
    assert not any("report" in path.name for path in run.iterdir())
    assert called("report", run).code == 0
    assert (run / "report.html").stat().st_size > 180 << 10

"""The embeddings of a finished run, found again: the same numbers in the same order, or an error that helps."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import gpu_cluster as api
from gpu_cluster.backend import CpuBackend
from gpu_cluster.clustering import kmeans
from gpu_cluster.clustering.model import load_model
from gpu_cluster.clustering.reduce import apply
from gpu_cluster.config import GivenConfig
from gpu_cluster.embedding.of_run import embeddings_of_run
from gpu_cluster.errors import ConfigError, DataError
from gpu_cluster.events import Observer
from gpu_cluster.run_folder import FinishedRun
from tests.colour_profiles import p3_profile
from tests.helpers import TINY, called, shards_of, write_pictures

EARLIER = Path(__file__).parents[1] / "earlier"
N = 14


def embeddings(folder: Path, **options: Any) -> np.ndarray:
    with embeddings_of_run(FinishedRun(folder), Observer(), **options) as x:
        return np.concatenate([block for _rows, block in x.blocks()])


def clustered(result: api.RunResult) -> np.ndarray:
    assert result.findings is not None
    return np.asarray(result.findings.embeddings.x.whole())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures; and a copy, a broken file, a picture with a profile, and one whose name is not UTF-8."""
    folder = tmp_path_factory.mktemp("of-run")
    files = write_pictures(folder / "in", N)
    shutil.copy(files[3], folder / "in" / "copy.png")
    (folder / "in" / "broken.png").write_bytes(files[0].read_bytes()[:90])
    Image.open(files[5]).save(files[5], icc_profile=p3_profile())
    files[6].rename(os.fsdecode(os.fsencode(folder / "in") + b"/na\xefve.png"))
    return folder


@pytest.fixture(scope="module")
def run(place: Path) -> api.RunResult:
    """A run with joined features, which no test changes."""
    joined = {**TINY, "features": "vgg16:2+efficientnet-lite2"}
    return api.run(place / "in", **joined, out=place / "run", cache=place / "store", shard_size=4)


@pytest.fixture(scope="module")
def run_of_given(place: Path, run: api.RunResult) -> api.RunResult:
    """The same with the embeddings in a file, in another order and with more rows than pictures."""
    names = [*map(os.fsencode, reversed(os.listdir(place / "in"))), b"another.png"]
    (place / "x.txt").write_bytes(b"\n".join(names))
    np.save(place / "x.npy", np.random.default_rng(0).normal(size=(len(names), 24)).astype(np.float32))
    given = {name: value for name, value in TINY.items() if name.startswith(("k", "n_"))}
    return api.run(place / "in", embeddings=place / "x.npy", **given, out=place / "run-of-given", no_cache=True)


def test_they_are_those_that_the_run_clustered_in_the_order_of_its_assignments(run):
    found = embeddings(run.folder)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, clustered(run))
    assert len(found) == len(FinishedRun(run.folder).pictures) == N + 1


def test_parts_of_them_are_read_by_their_rows(run):
    with embeddings_of_run(FinishedRun(run.folder), Observer()) as x:
        np.testing.assert_array_equal(x.take(np.array([7, 2, 2])), clustered(run)[[7, 2, 2]])


def test_no_network_is_loaded_for_them(run):
    program = (
        "import sys; from pathlib import Path; from gpu_cluster.embedding.of_run import embeddings_of_run as of; "
        "from gpu_cluster.run_folder import FinishedRun; from gpu_cluster.events import Observer\n"
        "with of(FinishedRun(Path(sys.argv[1])), Observer()) as x: print(len(x.whole()))\n"
        "print([name for name in ('tensorflow', 'ncnn', 'keras') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, run.folder], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == [str(N + 1), "[]"]


def test_what_the_store_lacks_is_counted_and_the_command_that_the_error_names_computes_it(run, place, tmp_path):
    store = shutil.copytree(place / "store", tmp_path / "store")
    lost = shards_of(store)[0]
    lost.unlink()
    with pytest.raises(DataError, match=r"lacks the embeddings of \d of the 15 pictures of") as raised:
        embeddings(run.folder, cache=store)
    command = shlex.split(str(raised.value).split("`")[1])
    assert command[:2] == ["gpu-cluster", "run"]
    done = called(*command[1:], out=tmp_path / "again")
    assert done.code == 0, done.err
    np.testing.assert_allclose(embeddings(run.folder, cache=store), clustered(run), atol=1e-6)


def test_a_store_that_is_not_there_lacks_all_and_is_not_made(run, tmp_path):
    with pytest.raises(DataError, match="lacks the embeddings of 15 of the 15 pictures"):
        embeddings(run.folder, cache=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_run_without_a_store_is_named_as_the_reason(run, tmp_path):
    folder = shutil.copytree(run.folder, tmp_path / "run")
    record = json.loads((folder / "run.json").read_text())
    record["config"]["store"] |= {"cache": None, "no_cache": True}
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="because the run was made with --no-cache"):
        embeddings(folder)


def test_those_of_a_file_are_read_from_it_again(run_of_given):
    np.testing.assert_array_equal(embeddings(run_of_given.folder), clustered(run_of_given))


def test_a_file_that_was_changed_is_refused_with_both_checksums(run_of_given, place, tmp_path):
    shutil.copy(place / "x.txt", tmp_path)
    np.save(tmp_path / "x.npy", np.load(place / "x.npy") + 1)
    with pytest.raises(DataError, match=r"is not the file that the run .* was given: expected the sha256"):
        embeddings(run_of_given.folder, given=GivenConfig(embeddings=tmp_path / "x.npy"))


def test_other_names_for_the_same_file_are_refused(run_of_given, place, tmp_path):
    shutil.copy(place / "x.npy", tmp_path)
    names = (place / "x.txt").read_bytes()
    (tmp_path / "x.txt").write_bytes(names.replace(b"002.png", b"gone.png"))
    with pytest.raises(DataError, match="its names give other pictures"):
        embeddings(run_of_given.folder, given=GivenConfig(embeddings=tmp_path / "x.npy"))


def test_a_portable_run_of_a_file_asks_for_it(run_of_given, place, tmp_path):
    folder = shutil.copytree(run_of_given.folder, tmp_path / "run")
    assert called("report", folder, "--portable").code == 0
    with pytest.raises(ConfigError, match="give it with --embeddings FILE"):
        embeddings(folder)
    found = embeddings(folder, given=GivenConfig(embeddings=place / "x.npy"))
    np.testing.assert_array_equal(found, clustered(run_of_given))


def test_an_array_in_memory_cannot_be_found_again_and_the_error_says_what_to_do(run_of_given, tmp_path):
    folder = shutil.copytree(run_of_given.folder, tmp_path / "run")
    record = json.loads((folder / "run.json").read_text())
    record["config"]["given"] |= {"embeddings": None, "embeddings_in_memory": True}
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"were an array in memory.*write it with numpy\.save"):
        embeddings(folder)


@pytest.mark.parametrize("version", ["first", "second"])
def test_those_of_earlier_versions_give_the_clusters_of_their_runs(version):
    folder, backend = EARLIER / version / "run", CpuBackend()
    model, pictures = load_model(folder / "model", backend), FinishedRun(folder).pictures
    with embeddings_of_run(FinishedRun(folder), Observer(), cache=EARLIER / version / "store") as x:
        space, _pcs = apply(model.reduction, x, backend)
    labels = kmeans.nearest(space, model.centres, backend)
    assert labels.tolist() == pictures["cluster"].tolist()
    distances = np.sqrt(kmeans.squared_distances(space, model.centres, labels, backend))
    np.testing.assert_allclose(distances, pictures["distance"], atol=1e-5)

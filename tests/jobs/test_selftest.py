"""The self test: the CPU's column here, and the comparison with a second device that is right or wrong on purpose."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gpu_cluster.backend import Backend, CpuBackend, look_for_gpu
from gpu_cluster.config import RunConfig
from gpu_cluster.embedding import extractors, features
from gpu_cluster.errors import ConfigError, DeviceError
from gpu_cluster.events import Observer, Recorder
from gpu_cluster.images import discover
from gpu_cluster.jobs.prepare import find_labelled, opened
from gpu_cluster.jobs.selftest import embed_with, measure, selftest
from gpu_cluster.jobs.selftest_verdict import Measured, SelftestVerdict, compare, compare_precision, compare_runs
from gpu_cluster.manifest import Manifest
from gpu_cluster.options import build_config
from tests.helpers import FLOWERS, called

# What they share, the measurements on the CPU, takes seconds.
pytestmark = pytest.mark.slow

without_gpu = pytest.mark.skipif(
    all(finding.ok for finding in look_for_gpu()), reason="a GPU can be used here; these are about its absence"
)


def verdict_of(rows: Any) -> SelftestVerdict:
    return SelftestVerdict(tuple(rows), {}, {}, None)


def in_space(name: str, **changes: Callable[[Any], Any]) -> Callable[[Measured], Measured]:
    """Return what changes the results of one space."""

    def change(measured: Measured) -> Measured:
        found = measured.spaces[name]
        changed = replace(found, **{field: of(getattr(found, field)) for field, of in changes.items()})
        return replace(measured, spaces={**measured.spaces, name: changed})

    return change


def swapped(rows: np.ndarray) -> np.ndarray:
    """Put two rows, of pictures of one kind, in each other's place."""
    found = rows.copy()
    found[[3, 4]] = found[[4, 3]]
    return found


def not_a_number(rows: np.ndarray) -> np.ndarray:
    found = rows.copy()
    found[5, 7] = np.nan
    return found


# Three pictures of each kind of the sample set: a self test of all of them takes half a minute.
FEW = tuple(sorted(FLOWERS.glob("*.png"))[::7])


@pytest.fixture(scope="module")
def cpu() -> Measured:
    """What is measured on the CPU, of few pictures of the sample set."""
    given: dict[str, Any] = {"images": FEW, "labels": FLOWERS / "flower_labels.csv"}
    # Steps are timed on some batches each.
    config = build_config(RunConfig, k=10, image_size=32, batch_size=4, no_cache=True, **given)

    def prepared(
        weights: features.Weights, _backend: Backend, _manifest: Manifest
    ) -> extractors.Extractor | extractors.Joined:
        return features.extractor_of(config.embed, weights)

    with opened(config, Recorder(), lambda: find_labelled(config.input, Observer()), prepared) as job:
        return measure(CpuBackend(), job)


@without_gpu
def test_without_a_gpu_the_cpu_column_is_filled_and_it_says_what_was_not_tried(tmp_path, monkeypatch):
    (tmp_path / "flowers").mkdir()
    for file in (*FEW, FLOWERS / "flower_labels.csv"):
        shutil.copy(file, tmp_path / "flowers")
    monkeypatch.setattr(discover, "sample_set", lambda: tmp_path / "flowers")
    done = called("selftest", "--image-size", "32", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found == json.loads((tmp_path / "gpu-cluster-selftest.json").read_text())
    assert found["passed"]
    assert found["not_tried"].startswith("the GPU was not tried: no GPU can be used (driver: ")
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["adjusted_rand"]["gpu"] is None
    assert all(row["cpu"] == "same bytes" for name, row in rows.items() if name.startswith("two runs, "))
    assert {"decode, pictures/s", "network, pictures/s", "hand-over, pictures/s"} <= set(rows)
    assert found["machine"]["found"]["driver"]


def test_a_file_that_cannot_be_written_is_wrong_use_before_work_starts(tmp_path):
    done = called("selftest", "--out", tmp_path / "nowhere" / "verdict.json")
    assert done.code == 2
    assert "--out: expected a file in a folder that can be written" in done.err


@without_gpu
def test_a_gpu_asked_for_and_missing_is_an_error():
    with pytest.raises(DeviceError, match="no GPU can be used"):
        selftest("gpu")


def test_a_device_that_does_the_same_passes(cpu):
    verdict = verdict_of(compare(cpu, cpu))
    assert verdict.passed
    names = [row.name for row in verdict.rows if row.ok]
    assert names[:4] == ["embeddings", "PCA, two components", "inertia, every k", "labels, 1 - ARI"]
    assert {"silhouette", "davies_bouldin", "homogeneity", "adjusted_rand"} <= set(names)
    assert "labels, 1 - ARI, not of unit length" in names


def test_the_second_space_is_not_of_unit_length(cpu):
    lengths = np.linalg.norm(cpu.starts["not of unit length"], axis=1)
    assert lengths.min() > 5


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("embeddings", lambda m: replace(m, embeddings=m.embeddings * 1.001)),
        ("embeddings", lambda m: replace(m, precision="tf32", embeddings=m.embeddings * 1.004)),
        ("embeddings", lambda m: replace(m, precision="float16", embeddings=swapped(m.embeddings))),
        ("embeddings", lambda m: replace(m, precision="float16", embeddings=not_a_number(m.embeddings))),
        ("PCA, two components", in_space("", pcs=lambda pcs: -pcs)),
        ("PCA, two components", in_space("", pcs=swapped)),
        ("inertia, every k", in_space("", inertias=lambda inertias: [*inertias[:-1], inertias[-1] * 1.02])),
        ("inertia, every k", in_space("", inertias=lambda inertias: [*inertias[:-1], float("nan")])),
        ("labels, 1 - ARI", in_space("", labels=lambda labels: np.roll(labels, 1))),
        (
            "labels, 1 - ARI, not of unit length",
            in_space("not of unit length", labels=lambda labels: np.roll(labels, 1)),
        ),
        ("silhouette", in_space("", scores=lambda scores: {**scores, "silhouette": scores["silhouette"] + 0.03})),
        ("peak memory", lambda m: replace(m, claimed_bytes=m.peak_bytes - 1)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_device_that_differs_misses_in_that_row_alone(cpu, name, change):
    verdict = verdict_of(compare(cpu, change(cpu)))
    assert not verdict.passed
    assert [row.name for row in verdict.rows if row.ok is False] == [name]
    assert json.loads(json.dumps(verdict.as_json()))["passed"] is False


def test_every_precision_has_its_own_tolerance(cpu):
    x = cpu.embeddings
    assert compare_precision("float32", x, x * np.float32(1 + 5e-5)).ok
    assert compare_precision("tf32", x, x * np.float32(1 + 2e-3)).ok
    for precision, factor in (("float32", 1 + 5e-4), ("tf32", 1 + 4e-3), ("float16", 1 + 6e-3)):
        assert compare_precision(precision, x, x * np.float32(factor)).ok is False


def test_two_runs_with_the_same_bytes_pass_on_every_device(cpu):
    for name in ("cpu", "gpu"):
        rows = list(compare_runs(name, cpu, cpu))
        assert all(row.ok for row in rows)
        assert {row.cpu or row.gpu for row in rows} == {"same bytes"}


def test_on_the_cpu_one_byte_of_difference_is_a_miss_and_on_a_gpu_it_is_told(cpu):
    changed = cpu.embeddings.copy()
    changed[0, 0] = np.nextafter(changed[0, 0], np.float32(1))
    again = replace(cpu, embeddings=changed)
    (missed,) = [row for row in compare_runs("cpu", cpu, again) if row.ok is False]
    assert (missed.name, missed.cpu) == ("two runs, embeddings", f"1 of {changed.size:,} values differ")
    rows = list(compare_runs("gpu", cpu, again))
    assert all(row.ok for row in rows)
    assert rows[0].gpu == missed.cpu


def test_on_a_gpu_two_runs_that_differ_by_more_than_rounding_are_a_miss(cpu):
    changed = in_space("", silhouettes=lambda values: values + np.float32(0.01))(cpu)
    (missed,) = [row for row in compare_runs("gpu", cpu, changed) if row.ok is False]
    assert missed.name == "two runs, silhouettes"


def test_another_precision_is_embedded_by_itself():
    # The CPU has one precision; that of the options is what the engine gets.
    config = build_config(RunConfig, k=10, image_size=32, no_cache=True)

    def prepared(
        weights: features.Weights, _backend: Backend, _manifest: Manifest
    ) -> extractors.Extractor | extractors.Joined:
        return features.extractor_of(config.embed, weights)

    with (
        opened(config, Recorder(), lambda: find_labelled(config.input, Observer()), prepared) as job,
        pytest.raises(ConfigError, match="the cpu computes in float32; found 'float16'"),
    ):
        embed_with({"precision": "float16"}, CpuBackend(), job)


def test_every_tolerance_has_a_reason(cpu):
    assert all(row.reason for row in compare(cpu, cpu) if row.tolerance is not None)


def test_what_left_the_device_is_told(cpu):
    # Starts are drawn from the projected rows; the embeddings themselves stay.
    assert (30, 2304) not in cpu.transfers
    assert (30, 8) in cpu.transfers

"""The self test: the CPU's column here, and the comparison with a second device that is right or wrong on purpose."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from gpu_cluster.backend import Backend, CpuBackend, look_for_gpu
from gpu_cluster.config import RunConfig
from gpu_cluster.embedding import extractors, vgg16
from gpu_cluster.errors import DeviceError
from gpu_cluster.events import Observer, Recorder
from gpu_cluster.jobs.prepare import find_labelled, opened
from gpu_cluster.jobs.selftest import Measured, Verdict, compare, measure, selftest
from gpu_cluster.manifest import Manifest
from gpu_cluster.options import build_config
from tests.helpers import gpu_cluster

without_gpu = pytest.mark.skipif(
    all(finding.ok for finding in look_for_gpu()), reason="a GPU can be used here; these are about its absence"
)


@pytest.fixture(scope="module")
def cpu() -> Measured:
    config = build_config(RunConfig, k=10, image_size=32, no_cache=True)

    def prepared(weights: vgg16.Weights, _backend: Backend, _manifest: Manifest) -> extractors.Extractor:
        return extractors.of_vgg16(weights, config.embed)

    with opened(config, Recorder(), lambda: find_labelled(config.input, Observer()), prepared) as job:
        return measure(CpuBackend(), job)


@without_gpu
@pytest.mark.slow
def test_without_a_gpu_the_cpu_column_is_filled_and_it_says_what_was_not_tried(tmp_path):
    done = gpu_cluster("selftest", "--image-size", "32", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1].startswith("the GPU was not tried: no GPU can be used (driver: ")
    found = json.loads((tmp_path / "gpu-cluster-selftest.json").read_text())
    assert found["passed"]
    assert {row["name"]: row["gpu"] for row in found["rows"]}["adjusted_rand"] is None


@without_gpu
def test_a_gpu_asked_for_and_missing_is_an_error():
    with pytest.raises(DeviceError, match="no GPU can be used"):
        selftest("gpu")


def test_a_device_that_does_the_same_passes(cpu):
    verdict = Verdict(tuple(compare(cpu, cpu)), {}, None)
    assert verdict.passed
    names = [row.name for row in verdict.rows if row.ok]
    assert names[:4] == ["embeddings", "PCA, two components", "inertia, every k", "labels, 1 - ARI"]
    assert {"silhouette", "davies_bouldin", "homogeneity", "adjusted_rand"} <= set(names)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("embeddings", lambda m: replace(m, embeddings=m.embeddings * 1.001)),
        ("PCA, two components", lambda m: replace(m, pcs=-m.pcs)),
        ("inertia, every k", lambda m: replace(m, inertias=[*m.inertias[:-1], m.inertias[-1] * 1.02])),
        ("labels, 1 - ARI", lambda m: replace(m, labels=np.roll(m.labels, 1))),
        ("silhouette", lambda m: replace(m, scores={**m.scores, "silhouette": m.scores["silhouette"] + 0.03})),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_device_that_differs_misses_in_that_row_alone(cpu, name, change):
    verdict = Verdict(tuple(compare(cpu, change(cpu))), {}, None)
    assert not verdict.passed
    assert [row.name for row in verdict.rows if row.ok is False] == [name]
    assert json.loads(json.dumps(verdict.as_json()))["passed"] is False


def test_every_tolerance_has_a_reason(cpu):
    assert all(row.reason for row in compare(cpu, cpu) if row.tolerance is not None)


def test_what_left_the_device_is_told(cpu):
    # Starts are drawn from the projected rows; the embeddings themselves stay.
    assert (210, 1024) not in cpu.transfers
    assert (210, 14) in cpu.transfers

"""Whether groups are clear: one judgement, from Python, on the terminal and on the page."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import make_blobs

import gpu_cluster
from gpu_cluster.backend import CpuBackend
from gpu_cluster.clustering.sweep import sweep_k
from gpu_cluster.config import ClusterConfig, ScoreConfig, SweepConfig
from gpu_cluster.events import Observer
from gpu_cluster.verdict import CLEAR_AGREEMENT, WEAK_AGREEMENT, Clarity, Verdict, judge
from tests.helpers import TINY, write_pictures


@pytest.mark.parametrize(
    ("agreement", "clarity", "begins"),
    [
        (1.0, Clarity.CLEAR, "Clear groups: "),
        (CLEAR_AGREEMENT, Clarity.CLEAR, "Clear groups: "),
        (CLEAR_AGREEMENT - 0.001, Clarity.WEAK, "Weak groups: "),
        (WEAK_AGREEMENT, Clarity.WEAK, "Weak groups: "),
        (WEAK_AGREEMENT - 0.001, Clarity.NONE, "No clear groups: "),
        (-0.1, Clarity.NONE, "No clear groups: "),
    ],
)
def test_groups_are_clear_weak_or_none_by_the_agreement_of_restarts(agreement, clarity, begins):
    verdict = judge(5, 100, agreement)
    assert verdict.clarity == clarity
    assert str(verdict).startswith(begins)


@pytest.mark.parametrize(
    ("k", "n", "agreement", "why"),
    [
        (5, 100, None, "was not started several times"),
        (2, 100, 1.0, "two groups are found again in almost any pictures"),
        (20, 100, 1.0, "fewer than 8 pictures in a group"),
        (1, 100, 1.0, "One group"),
        (1, 1, None, "One group"),
    ],
)
def test_where_agreement_says_nothing_nothing_is_claimed(k, n, agreement, why):
    verdict = judge(k, n, agreement)
    assert verdict.clarity == Clarity.NOT_JUDGED
    assert why in str(verdict)


def verdict_on(x: np.ndarray) -> Verdict:
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    sweep = sweep_k(x, SweepConfig(), ClusterConfig(), ScoreConfig(), seed=0, backend=CpuBackend(), observer=Observer())
    return judge(sweep.best_k, len(x), sweep.agreement)


def test_numbers_without_groups_have_none_and_far_apart_groups_are_clear():
    assert verdict_on(np.random.default_rng(0).normal(size=(240, 16))).clarity == Clarity.NONE
    assert verdict_on(make_blobs(240, 16, centers=5, random_state=0)[0]).clarity == Clarity.CLEAR


def test_a_result_says_it_in_python(tmp_path):
    write_pictures(tmp_path / "in", 6)
    result = gpu_cluster.run(tmp_path / "in", **TINY, out=tmp_path / "run")
    assert result.verdict.clarity == "not judged"
    assert str(result.verdict) in (tmp_path / "run" / "report.html").read_text()

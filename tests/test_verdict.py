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
from gpu_cluster.verdict import (
    CLEAR_AGREEMENT,
    WEAK_AGREEMENT,
    Clarity,
    Verdict,
    beside_verdict,
    judge,
    nearly_equal,
    why_not_clear,
)
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
        (5, 100, None, "run again with 5 in --k-range and --n-init 10"),
        (2, 100, 1.0, "two groups are found again in almost any pictures"),
        (20, 100, 1.0, "too few pictures to say"),
        # k = 3 may be chosen from so few, but is not judged.
        (3, 3, 1.0, "Not judged: too few pictures to say"),
        (3, 23, 1.0, "fewer than 8 in a group on average"),
        (2, 15, None, "too few pictures to say"),
        (1, 100, 1.0, "One group"),
        (1, 1, None, "One group"),
    ],
)
def test_where_agreement_says_nothing_nothing_is_claimed(k, n, agreement, why):
    verdict = judge(k, n, agreement)
    assert verdict.clarity == Clarity.NOT_JUDGED
    assert why in str(verdict)


def test_groups_of_8_pictures_are_judged():
    assert judge(3, 24, 1.0).clarity == Clarity.CLEAR


@pytest.mark.parametrize(
    ("agreements", "words"),
    [
        ({8: 0.843, 9: 0.843, 10: 0.845, 11: 0.8, 12: 0.840}, "8, 9 and 12 groups agree almost as well as 10"),
        ({9: 0.83, 10: 0.845, 11: 0.836}, "11 groups agree almost as well as 10"),
        ({9: 0.83, 10: 0.845}, None),
    ],
)
def test_numbers_of_groups_that_agree_almost_as_well_are_named(agreements, words):
    assert nearly_equal(10, agreements) == words


def test_what_the_verdict_says_is_not_said_again_beside_it():
    for agreement, begins in ((0.6, "Weak groups, k 2 to 9"), (0.2, "No clear groups, k 2 to 9")):
        doubt = why_not_clear(5, 100, agreement, "2 to 9")
        assert doubt is not None
        assert doubt.startswith(begins)
        assert beside_verdict([doubt, "another"]) == ["another."]
    assert why_not_clear(5, 100, 0.9, "2 to 9") is None
    assert why_not_clear(3, 9, 0.2, "2 to 9") is None


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

"""Which k is chosen from a space whose groups are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import make_blobs

from gpu_cluster.backend import CpuBackend
from gpu_cluster.clustering.sweep import sweep_k
from gpu_cluster.config import ClusterConfig, ScoreConfig, SweepConfig
from gpu_cluster.events import Observer, Recorder
from gpu_cluster.results import Sweep
from scripts.k_criteria import criteria


def blobs(centres: np.ndarray, spread: float = 0.05) -> np.ndarray:
    x, _ = make_blobs([40] * len(centres), centers=centres, cluster_std=spread, random_state=0)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def swept(x: np.ndarray, observer: Observer | None = None, **options: Any) -> Sweep:
    given: dict[str, Any] = {"seed": 0, "backend": CpuBackend(), "observer": observer or Observer()}
    return sweep_k(x, SweepConfig(**options), ClusterConfig(), ScoreConfig(), **given)


def test_two_near_groups_are_not_taken_for_one_where_restarts_find_both_whatever_the_start():
    centres = np.vstack([np.eye(4), [0, 0, 0.6, 1]])
    found = swept(blobs(centres), k_range="2:8")
    agreement = {point.k: point.agreement for point in found.points}
    assert agreement[4] == agreement[5] == 1
    assert found.best_k == 5


def test_copies_of_few_pictures_are_as_many_groups():
    found = swept(np.repeat(np.eye(4, dtype=np.float32), 30, axis=0), k_range="2:10")
    assert found.best_k == 4


@pytest.mark.parametrize(
    ("k_range", "words"),
    [
        (
            "2:4",
            "The silhouette is highest at 4, the end of the range: there may be more groups than 3; try --k-range 2:8",
        ),
        ("2:6", "Restarts agree most at 6, the end of the range: there may be more groups than 6; try --k-range 2:12"),
        ("2:9", None),
    ],
)
def test_a_range_that_ends_too_soon_is_told(k_range, words):
    # Three families, of two groups each.
    centres = np.vstack([np.eye(3), np.eye(3) + 0.5 * np.roll(np.eye(3), 1, axis=0)])
    events = Recorder()
    swept(blobs(centres), events, k_range=k_range)
    assert [notice for notice in events.notices if "end of the range" in notice] == ([words] if words else [])


def test_other_numbers_that_agree_almost_as_well_are_named_and_change_nothing():
    centres = np.vstack([np.eye(4), [0, 0, 0.6, 1]])
    found = swept(blobs(centres), k_range="4:5")
    assert (found.best_k, found.doubts[0]) == (5, "4 groups agree almost as well as 5")


@pytest.mark.parametrize(("k", "choice"), [(3, "6"), (6, "6 too")])
def test_beside_a_given_k_stands_the_one_that_the_sweep_would_choose(k, choice):
    (doubt,) = swept(blobs(np.eye(6)), k=k, k_range="2:8").doubts
    assert doubt == (
        f"k = {k} was given: the verdict says only whether restarts of k-means find the same groups again; from 2 to "
        f"8, the sweep would choose {choice}"
    )


def test_of_few_pictures_no_other_k_is_named_beside_a_given_one():
    assert swept(blobs(np.eye(3))[::8], k=4, k_range="2:6").doubts == ()


def test_the_criteria_of_the_bench_find_groups_far_apart():
    found = criteria(blobs(np.eye(6)), range(2, 13), seed=0)
    chosen = {name: chooser(range(2, 13)) for name, chooser in found.items()}
    assert chosen == dict.fromkeys(chosen, 6), chosen
    assert {chooser(range(2, 6)) for chooser in found.values()} <= set(range(2, 6))

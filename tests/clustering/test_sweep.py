"""Which k is chosen from a space whose groups are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import make_blobs

from gpu_cluster.backend import CpuBackend
from gpu_cluster.clustering.sweep import check_ks, sweep_k
from gpu_cluster.config import ClusterConfig, ScoreConfig, SweepConfig
from gpu_cluster.errors import ConfigError
from gpu_cluster.events import Observer, Recorder
from gpu_cluster.results import Sweep
from scripts.k_criteria import criteria, of_restarts, smallest_within_error


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


def test_above_the_sample_restarts_are_those_of_the_sample_and_the_inertia_that_of_all_rows():
    x = blobs(np.eye(6), spread=0.2)
    events = Recorder()
    full, found = swept(x, k_range="2:9"), swept(x, events, k_range="2:9", sweep_sample=120)
    assert (full.n_restarted, found.n_restarted, found.n_silhouette) == (240, 120, 240)
    assert found.best_k == full.best_k == 6
    assert found.fit is not None
    for ours, whole in zip(found.points, full.points, strict=True):
        assert ours.inertia == pytest.approx(whole.inertia, rel=0.1)
    assert events.notices[0] == (
        "Restarts of k-means on a random sample of 120 of 240 images, and their agreement on 240; the best restart is "
        "carried on with all images"
    )


def test_above_the_sample_a_k_whose_restarts_missed_the_groups_finds_them_from_those_of_the_next_k():
    # With this seed, the one random start for 12 clusters misses two of the groups, and that for 13 finds all.
    x, _ = make_blobs(900, 2, centers=12, cluster_std=0.3, random_state=1)
    x = x.astype(np.float32)
    config: dict[str, Any] = {"seed": 1, "backend": CpuBackend(), "observer": Observer()}

    def inertias(k_range: str) -> dict[int, float]:
        sweep = SweepConfig(k_range=k_range, sweep_sample=600)
        points = sweep_k(x, sweep, ClusterConfig(n_init=1), ScoreConfig(), **config).points
        return {point.k: point.inertia for point in points}

    alone, with_next = inertias("12:12"), inertias("12:14")
    assert with_next[12] < 0.95 * alone[12]


def test_up_to_the_sample_nothing_is_sampled():
    x = blobs(np.eye(4))
    events = Recorder()
    at, above = swept(x, events, k_range="2:6", sweep_sample=len(x)), swept(x, k_range="2:6")
    assert [notice for notice in events.notices if "sample" in notice] == []
    assert [(p.inertia, p.silhouette, p.agreement) for p in at.points] == [
        (p.inertia, p.silhouette, p.agreement) for p in above.points
    ]


def test_silhouettes_of_a_long_range_are_computed_in_groups(monkeypatch):
    x = blobs(np.eye(4))
    whole = swept(x, k_range="2:12").points
    monkeypatch.setattr("gpu_cluster.clustering.sweep.blocks", lambda _n, width: iter([slice(0, 3200 // width)]))
    parts = swept(x, k_range="2:12").points
    assert [point.silhouette for point in parts] == pytest.approx([point.silhouette for point in whole], abs=1e-7)
    assert [point.inertia for point in parts] == [point.inertia for point in whole]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sweep_sample": 14}, "14 images are too few for the range of k, 2:15, which reaches 15; give at least 15"),
        ({"sweep_sample": 20, "k": 30}, "20 images are too few for k = 30; give at least 30, or a smaller k"),
        (
            {"sweep_sample": 20, "k_range": "2:30:4"},
            "20 images are too few for the range of k, 2:30:4, which",
        ),
    ],
)
def test_a_sample_that_is_smaller_than_the_range_is_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        check_ks(SweepConfig(**options), 200)


def test_a_sample_of_as_many_images_as_there_are_is_not_refused():
    check_ks(SweepConfig(sweep_sample=14), 14)


def test_the_criteria_of_the_bench_find_groups_far_apart():
    x, ks = blobs(np.eye(6))[::2], range(2, 8)
    found = criteria(x, ks, seed=0) | of_restarts(x, ks, seed=0)
    chosen = {name: chooser(ks) for name, chooser in found.items()}
    assert chosen == dict.fromkeys(chosen, 6), chosen
    assert {chooser(range(2, 6)) for chooser in found.values()} <= set(range(2, 6))


def test_agreements_within_one_error_of_the_highest_are_taken_as_equal():
    values = {3: [0.5, 0.6], 4: [0.85, 0.86], 5: [0.81, 1.0], 6: [0.9, 0.92]}
    choose = smallest_within_error(values, n_restarts=2)
    # The highest mean, 0.91, has a standard error of 0.01.
    assert choose(range(3, 7)) == 5
    assert choose(range(3, 5)) == 4

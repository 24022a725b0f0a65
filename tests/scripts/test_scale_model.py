"""The model of docs/scale.md: its units, its direction, what it calls the bottleneck, and figures from elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from scripts.scale_model import (
    CACHED,
    CARDS,
    NETWORK_FLOPS,
    PHASES,
    PICTURES,
    STAGES,
    Card,
    Constants,
    Plan,
    bottleneck,
    cores_to_feed,
    driver_bytes,
    duration,
    fitted,
    on_file_system,
    phase_seconds,
    stage_seconds,
    tables,
    total_seconds,
)

A100 = CARDS["A100"]


def test_the_network_has_as_many_operations_as_was_published():
    """He et al. 2015, table 1 and text: 15.3 billion multiply-adds for VGG-16."""
    side, given, found = 224, 3, 0
    for widths in ([64] * 2, [128] * 2, [256] * 3, [512] * 3, [512] * 3):
        for width in widths:
            found, given = found + side * side * 9 * given * width, width
        side //= 2
    assert 2 * found == NETWORK_FLOPS
    assert round(found / 1e9, 1) == 15.3


def test_a_network_at_the_published_speed_takes_operations_divided_by_operations_a_second():
    constants = Constants(card_share=1.0)
    seconds = stage_seconds(Plan(10_000_000, 4096, 16, A100, shard_size=1), constants)["network"]
    assert seconds * 4096 == pytest.approx(10_000_000 * 30.7e9 / 156e12, rel=0.01)


def test_a_hundred_million_pictures_have_a_space_of_13_gb_on_the_driver():
    assert driver_bytes(100_000_000) - 110 * 100_000_000 == pytest.approx(12.8e9)


def test_the_stages_are_all_there_and_take_seconds():
    seconds = stage_seconds(Plan(1000, card=A100))
    assert tuple(seconds) == STAGES
    assert all(seconds[stage] > 0 for stage in STAGES)
    assert stage_seconds(Plan(1000))["transfer"] == 0
    assert tuple(phase_seconds(Plan(1000))) == PHASES


@pytest.mark.parametrize("card", [None, A100], ids=["CPU", "A100"])
def test_more_pictures_take_longer_and_more_workers_never_do(card):
    for constants in (Constants(), CACHED, on_file_system(20e9)):
        times = [total_seconds(Plan(n, 8, 16, card), constants) for n in (10**5, 10**6, 10**7, 10**8, 10**9)]
        assert times == sorted(times)
        # As many pictures as there are whole shards for all of them: no round of shards leaves a worker idle.
        fewer = [total_seconds(Plan(64 * 4096 * 10, workers, 16, card), constants) for workers in (1, 4, 16, 64)]
        assert fewer == sorted(fewer, reverse=True)


def test_a_worker_without_a_shard_helps_nobody():
    plans = [Plan(3 * 256, workers, 1, shard_size=256) for workers in (2, 3, 4)]
    two, three, four = (stage_seconds(plan)["network"] for plan in plans)
    assert two == pytest.approx(2 * three)
    assert four == pytest.approx(three)


def test_twice_everything_takes_as_long_for_twice_as_many_pictures():
    once = stage_seconds(Plan(4096 * 8, 1, 16, A100))
    twice = stage_seconds(Plan(4096 * 16, 2, 16, A100))
    assert twice["network"] == pytest.approx(once["network"])
    assert twice["decode"] == pytest.approx(once["decode"])
    # The file system is one for all.
    assert twice["read"] == pytest.approx(2 * once["read"])


@pytest.mark.parametrize(
    ("plan", "constants", "named"),
    [
        (Plan(10**6, 1, 16, A100), on_file_system(20e9), "network"),
        (Plan(10**6, 1, 4, A100), on_file_system(20e9), "decode"),
        (Plan(10**6, 1, 16, A100, PICTURES["12MP"]), on_file_system(20e9), "decode"),
        (Plan(10**6, 64, 16, A100), Constants(), "scan: read"),
        (Plan(10**8, 64, 16, A100), on_file_system(100e9), "scan: driver"),
        (Plan(10**6, 1, 16, replace(A100, link_bandwidth=1e6)), on_file_system(20e9), "transfer"),
        (Plan(10_000, 1, 2), CACHED, "network"),
        (
            Plan(10_000, 1, 2),
            replace(CACHED, network_core_s=0, decode_factor=0, store_core_s=0, start_s=0, shard_s=0),
            "sweep",
        ),
        (Plan(10**9, 250_000, 1e6, Card(1e18, 1e9, 1e12, 1e6)), replace(CACHED, driver_file_s=0), "fit"),
    ],
)
def test_the_bottleneck_is_named(plan, constants, named):
    assert bottleneck(plan, constants) == named


def test_cores_that_feed_a_card_leave_it_and_the_decoding_as_fast():
    cores = cores_to_feed(A100, PICTURES["3MP"])
    seconds = stage_seconds(Plan(4096, 1, cores, A100, PICTURES["3MP"]))
    assert seconds["decode"] == pytest.approx(seconds["network"])


def test_the_sweep_grows_with_its_passes_only():
    on_2_cores = [stage_seconds(Plan(n))["sweep"] for n in (20_000, 1_020_000)]
    assert on_2_cores[1] - on_2_cores[0] == pytest.approx(1_000_000 * Constants().sweep_row_s)
    few, many = (stage_seconds(Plan(n, card=A100))["sweep"] for n in (20_000, 10_000_000))
    assert many < 1.1 * few
    # A space that does not fit the card is read over the link, in every pass.
    streamed = stage_seconds(Plan(10**9, card=A100))["sweep"]
    assert streamed - few > 6 * 128 * 10**9 / A100.link_bandwidth


def test_fitted_constants_give_the_measured_seconds_back():
    plan = Plan(10_000, 2, 1, picture=PICTURES["500x375"])
    measured = {"scan": 2.0, "embed": 900.0, "reduce": 0.7, "sweep": 4.0, "fit": 0.5}
    found = fitted(plan, measured, CACHED)
    assert phase_seconds(plan, found) == pytest.approx(measured)
    only = fitted(plan, {"scan": 2.0}, CACHED)
    assert phase_seconds(plan, only)["embed"] == phase_seconds(plan, CACHED)["embed"]


def test_fitted_to_10_000_embeddings_it_predicts_1_000_000():
    """The figures are those of README, by `scripts.bench_scale` on 2 cores; the least that a user would plan with."""
    small, large = Plan(10_000, 1, 2), Plan(1_000_000, 1, 2)
    found = phase_seconds(large, fitted(small, {"reduce": 0.5, "sweep": 6.2, "fit": 0.3}, CACHED))
    assert found["sweep"] == pytest.approx(10.9, rel=0.25)
    assert found["fit"] == pytest.approx(1.1 + 1.3, rel=0.25)
    # 0.5 s has one digit.
    assert found["reduce"] == pytest.approx(24.2, rel=0.4)


@pytest.mark.parametrize(
    ("plan", "measured", "says"),
    [
        (Plan(100), {"embedding": 1.0}, r"found \['embedding'\]"),
        (Plan(100, card=A100), {"scan": 1.0}, "a run without cards"),
        (Plan(100), {"embed": 1.0}, "less than the 5.1 s until its workers have started"),
    ],
)
def test_what_cannot_be_fitted_is_refused(plan, measured, says):
    with pytest.raises(ValueError, match=says):
        fitted(plan, measured)


@pytest.mark.parametrize(
    ("seconds", "words"), [(5, "5 s"), (90, "1.5 min"), (3600, "1.0 h"), (36_000, "10 h"), (200_000, "2.3 d")]
)
def test_durations_are_in_words(seconds, words):
    assert duration(seconds) == words


def test_the_page_shows_the_tables_that_the_script_prints():
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
    for table in tables("1MP", 16).split("\n\n"):
        assert table in page

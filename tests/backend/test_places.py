"""Where k-means runs: on the card, streamed from the host, or on several cards; the choice needs no card."""

from __future__ import annotations

import pytest

from gpu_cluster.backend.places import Where, choose_kmeans

GB = 10**9
MILLION = 10**6
# What an A100 of 40 GB and an H100 of 80 GB have left beside the network.
SMALL, LARGE = 35 * GB, 70 * GB


@pytest.mark.parametrize(
    ("n", "free", "cards", "where"),
    [
        # The largest folder that this is written for: 12.8 GB, and 6.4 GB for what belongs to the rows.
        (100 * MILLION, SMALL, [], Where.CARD),
        (100 * MILLION, 16 * GB, [], Where.STREAMED),
        (100 * MILLION, 16 * GB, [16 * GB] * 8, Where.STREAMED),
        (500 * MILLION, SMALL, [], Where.STREAMED),
        (500 * MILLION, SMALL, [SMALL], Where.STREAMED),
        (500 * MILLION, SMALL, [SMALL] * 2, Where.STREAMED),
        (500 * MILLION, SMALL, [SMALL] * 4, Where.CARDS),
        (1000 * MILLION, LARGE, [LARGE] * 8, Where.CARDS),
        # The fullest card decides.
        (1000 * MILLION, LARGE, [LARGE] * 7 + [GB], Where.STREAMED),
        # A block of this size is read by every device, so a card that is full is no reason to read it in parts.
        (1 * MILLION, 0, [], Where.CARD),
    ],
)
def test_the_place_is_chosen_by_size_and_free_memory(n, free, cards, where):
    assert choose_kmeans(n, 32, free, cards).where is where


def test_the_reason_names_the_sizes_that_were_compared():
    assert choose_kmeans(500 * MILLION, 32, SMALL, [SMALL] * 2).reason == (
        "500,000,000 x 32 float32, 64.0 GB, need 96.0 GB of the card with what belongs to the rows, and 35.0 are free; "
        "each of 2 cards needs 48.0 GB for its share, and 35.0 are free"
    )


def test_a_space_that_fits_stays_on_the_card_whatever_others_are_there():
    assert choose_kmeans(10 * MILLION, 32, SMALL, [LARGE] * 8).where is Where.CARD

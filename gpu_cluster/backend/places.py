"""Chooses where the k-means of a space that may not fit a card runs: on it, streamed from the host, or on several.

Input: numbers of rows and bytes. Output: a place and why it was chosen, in words. This module must not know a library:
the choice is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from gpu_cluster.backend.rows import WINDOW_BYTES

# What a card needs for each row beside the row's own numbers, in bytes: the labels and distances of ours and of cuML's,
# each in blocks and joined, the norms, the weights, and the two plotted columns.
BYTES_A_ROW = 64
# Up to this size a space is streamed from the host even where there are several cards: PCI Express moves some 10 GB a
# second, so an iteration takes a few seconds, and nothing has to be sent to other processes.
STREAMED_BYTES = 1 << 35


class Where(StrEnum):
    """Where k-means runs on all rows."""

    CARD = "the card"
    STREAMED = "the card, streamed from the host"
    CARDS = "several cards"


@dataclass(frozen=True)
class KMeansPlace:
    """Where k-means runs, and in words why there."""

    where: Where
    reason: str


def choose_kmeans(n: int, m: int, free_bytes: int, cards: Sequence[int] = ()) -> KMeansPlace:
    """Choose where the k-means of a space (n, m) float32 runs.

    Parameters
    ----------
    free_bytes
        Free memory of the driver's card.
    cards
        Free memory of each card that workers have; a card counts once.
    """
    matrix = 4 * n * m
    size = f"{n:,} x {m} float32, {matrix / 1e9:.1f} GB"
    if matrix <= WINDOW_BYTES or matrix + BYTES_A_ROW * n <= free_bytes:
        return KMeansPlace(Where.CARD, f"{size}, fit the card: {free_bytes / 1e9:.1f} GB are free")
    needed = (matrix + BYTES_A_ROW * n) / 1e9
    why = f"{size}, need {needed:.1f} GB of the card with what belongs to the rows, and {free_bytes / 1e9:.1f} are free"
    if len(cards) < 2:
        return KMeansPlace(Where.STREAMED, why)
    if matrix <= STREAMED_BYTES:
        return KMeansPlace(
            Where.STREAMED,
            f"{why}; up to {STREAMED_BYTES / 1e9:.0f} GB, an iteration is a few seconds of reading from the host",
        )
    share = -(-n // len(cards)) * (4 * m + BYTES_A_ROW)
    needs = f"each of {len(cards)} cards needs {share / 1e9:.1f} GB for its share, and {min(cards) / 1e9:.1f} are free"
    return KMeansPlace(Where.CARDS if share <= min(cards) else Where.STREAMED, f"{why}; {needs}")

"""Judges whether the groups of a run are clear: the only place that turns the agreement of restarts into words.

The terminal, the page and `RunResult.verdict` use it. This module must not know how the agreement was computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

# If the restarts agree less than this, the groups depend on the start: they are not clear. Of the choices of k above
# it, 96% are at most 1 off (docs/recipe.md).
CLEAR_AGREEMENT = 0.65

# If the restarts agree less than this, the groups may mean nothing. In random numbers without any groups (as many
# columns as `run` would keep, k from 3 to 15, 8 seeds), the highest agreement was 0.32 to 0.55 for 60 rows, 0.32 to
# 0.48 for 120, 0.21 to 0.40 for 240, and 0.12 to 0.21 for 720.
WEAK_AGREEMENT = 0.5

# Fewest images in a cluster, on average, for a k that agreement may choose.
IMAGES_A_CLUSTER = 8


# The other k whose agreement is at most this much below that of the chosen k are named beside it: another seed could
# have chosen one of them.
NEARLY_EQUAL = 0.01


class Clarity(StrEnum):
    """How clear the groups of a run are."""

    CLEAR = "clear"
    WEAK = "weak"
    NONE = "none"
    NOT_JUDGED = "not judged"


# How the words about groups that are not clear begin.
_NOT_CLEAR = {Clarity.WEAK: "Weak groups", Clarity.NONE: "No clear groups"}


@dataclass(frozen=True)
class Verdict:
    """Whether the groups are clear, and the same in plain words; `str(verdict)` is the words."""

    clarity: Clarity
    words: str

    def __str__(self) -> str:
        """Return the words."""
        return self.words


def means_something(k: int, n: int) -> bool:
    """Return whether agreement between restarts may choose k clusters of n images.

    In almost all data, the restarts agree for k = 2. They also agree when k is so large that each cluster holds few
    images. Of few images, only k = 3 may be chosen, which is then not judged.
    """
    return 3 <= k <= max(3, n // IMAGES_A_CLUSTER)


def has_few_images(k: int, n: int) -> bool:
    """Return whether k clusters of n images hold so few images that the agreement of restarts says nothing."""
    return n < IMAGES_A_CLUSTER * k


def judge(k: int, n: int, agreement: float | None) -> Verdict:
    """Judge k clusters of n images.

    Parameters
    ----------
    agreement
        Mean adjusted Rand index of the best restart of k-means with the others at this k, at most 1; None if this k was
        not in the sweep, or with only one restart.
    """
    if k < 2 or n < 2:
        return Verdict(Clarity.NOT_JUDGED, "One group: there is nothing to compare.")
    if has_few_images(k, n):
        why = (
            "too few pictures to say whether these groups are clear, with fewer than "
            f"{IMAGES_A_CLUSTER} in a group on average"
        )
    elif agreement is None:
        why = (
            f"k-means was not started several times with {k} groups. To judge them, run again with {k} in --k-range "
            "and --n-init 10"
        )
    elif k == 2:
        why = "two groups are found again in almost any pictures"
    else:
        return _by(agreement)
    return Verdict(Clarity.NOT_JUDGED, f"Not judged: {why}.")


def why_not_clear(k: int, n: int, agreement: float | None, tried: str) -> str | None:
    """Return in numbers what the verdict says in words, if it is that the groups are not clear; `tried` names the k."""
    clarity = judge(k, n, agreement).clarity
    if clarity not in _NOT_CLEAR:
        return None
    return (
        f"{_NOT_CLEAR[clarity]}, k {tried}: at {k}, where restarts agree most, their agreement is only "
        f"{agreement or 0:.2f}"
    )


def beside_verdict(doubts: Sequence[str]) -> list[str]:
    """Return, as sentences, the doubts about a chosen k that the verdict, which stands beside them, has not said."""
    return [f"{doubt}." for doubt in doubts if not doubt.startswith(tuple(_NOT_CLEAR.values()))]


def nearly_equal(k: int, agreements: Mapping[int, float]) -> str | None:
    """Return which other numbers of groups agree almost as well as k; None if there are none.

    Parameters
    ----------
    agreements
        The agreement of restarts at each k that may be chosen; this k is one of them.
    """
    others = [other for other in sorted(agreements) if other != k and agreements[other] >= agreements[k] - NEARLY_EQUAL]
    if not others:
        return None
    *first, last = map(str, others)
    return f"{', '.join(first)}{' and ' if first else ''}{last} groups agree almost as well as {k}"


def _by(agreement: float) -> Verdict:
    how = f"(agreement {agreement:.2f}, where 1 is the same groups and 0 is chance)"
    if agreement >= CLEAR_AGREEMENT:
        return Verdict(
            Clarity.CLEAR, f"Clear groups: k-means finds mostly the same groups from every random start {how}."
        )
    if agreement >= WEAK_AGREEMENT:
        return Verdict(
            Clarity.WEAK,
            f"{_NOT_CLEAR[Clarity.WEAK]}: another random start of k-means gives partly other groups {how}. Look "
            "at the pictures before you rely on a group.",
        )
    return Verdict(
        Clarity.NONE,
        f"{_NOT_CLEAR[Clarity.NONE]}: another random start of k-means gives other groups {how}. These groups are one "
        "of many ways to divide the pictures.",
    )

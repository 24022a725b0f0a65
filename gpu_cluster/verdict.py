"""Judges whether the groups of a run are clear: the only place that turns the agreement of restarts into words.

The terminal, the page and `RunResult.verdict` use it. This module must not know how the agreement was computed.
"""

from __future__ import annotations

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


# How a doubt about the chosen k begins that says, in numbers, what the verdict says in words.
NO_CLEAR_NUMBER = "No clear number of groups"


class Clarity(StrEnum):
    """How clear the groups of a run are."""

    CLEAR = "clear"
    WEAK = "weak"
    NONE = "none"
    NOT_JUDGED = "not judged"


@dataclass(frozen=True)
class Verdict:
    """Whether the groups are clear, and the same in plain words; `str(verdict)` is the words."""

    clarity: Clarity
    words: str

    def __str__(self) -> str:
        """Return the words."""
        return self.words


def means_something(k: int, n: int) -> bool:
    """Return whether agreement between restarts means something for k clusters of n images.

    In almost all data, the restarts agree for k = 2. They also agree when k is so large that each cluster holds few
    images.
    """
    return 3 <= k <= max(3, n // IMAGES_A_CLUSTER)


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
    if agreement is None:
        why = "k-means was not started several times with this number of groups (--k-range, --n-init)"
    elif k == 2:
        why = "two groups are found again in almost any pictures"
    elif not means_something(k, n):
        why = f"with fewer than {IMAGES_A_CLUSTER} pictures in a group on average, restarts say little"
    else:
        return _by(agreement)
    return Verdict(Clarity.NOT_JUDGED, f"It is not known whether these groups are clear: {why}.")


def _by(agreement: float) -> Verdict:
    how = f"(agreement {agreement:.2f}, where 1 is the same groups and 0 is chance)"
    if agreement >= CLEAR_AGREEMENT:
        return Verdict(
            Clarity.CLEAR, f"Clear groups: k-means finds mostly the same groups from every random start {how}."
        )
    if agreement >= WEAK_AGREEMENT:
        return Verdict(
            Clarity.WEAK,
            f"Weak groups: another random start of k-means gives partly other groups {how}. Look at the pictures "
            "before you rely on a group.",
        )
    return Verdict(
        Clarity.NONE,
        f"No clear groups: another random start of k-means gives other groups {how}. These groups are one of many ways "
        "to divide the pictures.",
    )

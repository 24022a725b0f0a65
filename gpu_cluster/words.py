"""Words that messages, tables and the report have in common. This module must not know the rest of the package."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


def count(n: int, what: str, several: str | None = None) -> str:
    """Return a number with its noun: `1 picture`, `2,000 pictures`; `several` is the plural if it is not `what` + s."""
    return f"{n:,} {what if n == 1 else several or what + 's'}"


def did_you_mean(word: Any, known: Iterable[str]) -> str:
    """Return ` (did you mean 'k_range'?)` for the known word that is most like this one, or '' if none is like it."""
    found = get_close_matches(str(word).lower(), list(known), n=1, cutoff=0.7)
    return f" (did you mean {found[0]!r}?)" if found else ""

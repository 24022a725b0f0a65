"""Words that messages, tables and the report have in common. This module must not know the rest of the package."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any


def count(n: int, what: str, several: str | None = None) -> str:
    """Return a number with its noun: `1 picture`, `2,000 pictures`; `several` is the plural if it is not `what` + s."""
    return f"{n:,} {what if n == 1 else several or what + 's'}"


def did_you_mean(word: Any, known: Iterable[str]) -> str:
    """Return ` (did you mean 'k_range'?)` for the known word that is most like this one, or '' if none is like it."""
    found = get_close_matches(str(word).lower(), list(known), n=1, cutoff=0.7)
    return f" (did you mean {found[0]!r}?)" if found else ""


def given_in_words(given: Mapping[str, Any]) -> str:
    """Return what a record says of embeddings that were given: who made them, how many, and in which file."""
    by = "" if given["by"] is None else f" by {given['by']}"
    return f"given{by}: {given['n']:,} x {given['n_features']:,} {given['dtype']} in {given['path'] or 'memory'}"


# What a spreadsheet takes for a formula, after the marks that this module has put before it.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")


def for_spreadsheet(text: str) -> str:
    """Return a text that a spreadsheet shows and does not compute: an apostrophe stands before what begins a formula.

    This is what https://owasp.org/www-community/attacks/CSV_Injection advises.
    """
    return f"'{text}" if _FORMULA.match(text) else text


def from_spreadsheet(text: str) -> str:
    """Return the text that `for_spreadsheet` was given."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


#: Characters that a terminal obeys or that show text in another order than it has: control characters except newline
#: and tab, the marks that embed, override or isolate a direction, and halves of surrogate pairs, which are not text.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escaped(text: str) -> str:
    r"""Return text for a terminal: unsafe characters become escapes that can be read, such as `\x1b` and `\u202e`."""
    return UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)

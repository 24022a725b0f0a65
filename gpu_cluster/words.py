"""Words for numbers, in messages, tables and the report. Knows nothing else of the package."""


def count(n: int, what: str, several: str | None = None) -> str:
    """Return a number with its noun: `1 picture`, `2,000 pictures`; `several` is the plural if it is not `what` + s."""
    return f"{n:,} {what if n == 1 else several or what + 's'}"

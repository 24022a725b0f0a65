"""Finds out how many processor cores this process may use."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Return the number of processor cores that this process may use, at least 1."""
    # macOS has no `sched_getaffinity`.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

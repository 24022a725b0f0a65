"""The base class of the records that jobs return and stages pass on: it gives them a short `repr`.

The `repr` that `dataclass` makes holds every file and every array, which fills a notebook with pages of text. This
module must not know any of the records.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import fields
from itertools import islice
from typing import Any


class Record:
    """A dataclass whose `repr` names its fields and shortens their values; the class is declared with `repr=False`."""

    def __repr__(self) -> str:
        values = (f"{one.name}={_SHORT.repr(getattr(self, one.name))}" for one in fields(self))  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(values)})"


class _Short(reprlib.Repr):
    def repr_instance(self, x: Any, level: int) -> str:
        if isinstance(x, Record):
            return f"{type(x).__name__}(...)"
        if hasattr(x, "shape") and hasattr(x, "dtype"):
            # The values of an array on a GPU would have to be copied to be shown.
            return f"<{x.dtype} array of shape {tuple(x.shape)}>"
        if isinstance(x, Sequence):
            return self.repr_tuple(tuple(islice(x, self.maxtuple + 1)), level)
        return super().repr_instance(x, level)


_SHORT = _Short()
_SHORT.maxtuple = _SHORT.maxlist = _SHORT.maxdict = 3
_SHORT.maxstring = _SHORT.maxother = 100

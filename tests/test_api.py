"""The Python functions: what is given wrongly is an error of gpu_cluster that says what was expected, as on a command
line, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import gpu_cluster as api
from tests.helpers import listing, write_pictures

PATHS = "expected a folder of images, an image file, or several of them; found "

WRONG: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], str]] = {
    "number for pictures": (api.run, (42,), {}, f"{PATHS}42"),
    "nothing for pictures": (api.run, (None,), {}, f"{PATHS}None"),
    "bytes for pictures": (api.run, (b"in",), {}, f"{PATHS}b'in'"),
    "numbers for pictures": (api.compare, ([1, 2],), {}, f"{PATHS}[1, 2]"),
    "number to embed": (api.embed, (42,), {}, f"{PATHS}42"),
    "number for a run": (api.predict, (42, "in"), {"out": "a.csv"}, "run: expected a path; found 42"),
    "number for a table": (api.predict, ("run", "in"), {"out": 42}, "out: expected a path; found 42"),
    "number for a config": (api.run, ("in",), {"config": 42}, "config: expected the path of a TOML file"),
    "number for a folder": (api.run, ("in",), {"out": 42}, "--out: expected a path; found 42"),
    "pair for a range": (api.run, ("in",), {"k_range": (2, 5)}, "found (2, 5) (did you mean '2:5'?)"),
    "pictures moved since": (
        api.run,
        (),
        {"config": "moved.toml"},
        "absent', which 'moved.toml' names, does not exist; if the pictures were moved, name the folder that holds "
        "them now: gpu-cluster run FOLDER --config moved.toml",
    ),
    "list for a range": (api.run, ("in",), {"k_range": [2, 4, 6, 8]}, "(did you mean '2:8:2'?)"),
    "uneven list for a range": (
        api.run,
        ("in",),
        {"k_range": [2, 4, 8]},
        "found [2, 4, 8] (numbers cannot be listed one by one; '2:8' tries these",
    ),
    "number for a range": (api.run, ("in",), {"k_range": 5}, "--k-range: a range of k is A:B or A:B:STEP"),
    "range downwards": (api.run, ("in",), {"k_range": "5:2"}, "--k-range: a range of k goes upwards"),
    "text for a number": (api.run, ("in",), {"k": "six"}, "--k: expected a whole number; found 'six'"),
    "half a group": (api.run, ("in",), {"k": 2.5}, "--k: expected a whole number; found 2.5"),
    "no group": (api.run, ("in",), {"k": 0}, "--k: expected a value greater than or equal to 1; found 0"),
    "neither number nor word": (
        api.run,
        ("in",),
        {"pca": "non"},
        "--pca: expected a whole number, 'auto' or 'none'; found 'non' (did you mean 'none'?)",
    ),
    "option mistyped": (
        api.run,
        ("in",),
        {"krange": "2:5"},
        "unknown option 'krange' of run (did you mean 'k_range'?)",
    ),
    "value mistyped": (
        api.run,
        ("in",),
        {"select": "agrement"},
        "--select: expected 'agreement', 'elbow' or 'silhouette'; found 'agrement' (did you mean 'agreement'?)",
    ),
    "feature mistyped": (
        api.compare,
        ("in",),
        {"features": "vgg16-avrage"},
        "--features: unknown 'vgg16-avrage' (did you mean 'vgg16-average'?)",
    ),
    "encoding unknown": (api.run, ("in",), {"labels_encoding": "utf8x"}, "--labels-encoding: expected the name of"),
}


@pytest.mark.parametrize(("function", "given", "options", "message"), WRONG.values(), ids=WRONG)
def test_what_is_given_wrongly_is_an_error_that_says_what_was_expected(
    tmp_path, monkeypatch, function, given, options, message
):
    write_pictures(tmp_path / "in", 6)
    (tmp_path / "moved.toml").write_text('[input]\nimages = ["absent"]\n')
    monkeypatch.chdir(tmp_path)
    before = listing(tmp_path)
    with pytest.raises((api.ConfigError, api.DataError)) as caught:
        function(*given, **options)
    assert message in str(caught.value)
    assert listing(tmp_path) == before

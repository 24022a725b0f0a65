"""Every call that the package makes to a GPU library, read from its source, and the signatures it must fit.

Runs without those libraries: they cannot compute without a card, and most machines do not have them installed. Run as a
program in an environment that has them, it writes `signatures.json`.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[2] / "gpu_cluster"
SNAPSHOT = Path(__file__).with_name("signatures.json")
WHEELS = ("cuml-cu12", "cudf-cu12", "cupy-cuda12x", "dask", "dask-cuda", "distributed", "rmm-cu12", "tensorflow")
LIBRARIES = ("cupy", "cuml", "cudf", "dask", "dask_cuda", "distributed", "raft_dask", "rmm", "tensorflow")

# Where a call hands options on that it does not name itself. `cuml.dask` hands them to each worker's `KMeansMG`, which
# hands them to `KMeans`; `LocalCUDACluster` to `LocalCluster`, and this one to each worker's `Nanny`.
HANDED_ON = {
    "cuml.dask.cluster.KMeans": ("cuml.cluster.KMeans",),
    "dask_cuda.LocalCUDACluster": ("distributed.LocalCluster", "distributed.Nanny"),
    "distributed.LocalCluster": ("distributed.Nanny",),
}

# What a table that `Backend.frames` made is asked for, and where.
_TABLE_METHODS = {"tables.py": "to_parquet", "gpu.py": "to_pandas"}


@dataclass(frozen=True)
class Call:
    """A call of `target` (a dotted name) in the source, by the shape of its arguments."""

    target: str
    n_positional: int
    keywords: tuple[str, ...]
    where: str


@dataclass(frozen=True)
class Read:
    """An attribute that is read of a fitted estimator."""

    target: str
    where: str


def source_calls() -> list[Call]:
    """Return the calls to GPU libraries in the whole package, those by way of `xp` and `frames` included."""
    return [call for file in sorted(PACKAGE.rglob("*.py")) for call in _Reader(file).calls()]


def source_reads() -> list[Read]:
    """Return what is read of cuML's fitted estimators."""
    files = [PACKAGE / "backend" / name for name in ("gpu.py", "multi_gpu.py")]
    return [read for file in files for read in _Reader(file).reads()]


class _Reader:
    def __init__(self, file: Path) -> None:
        self._file = file
        self._nodes = tuple(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        self._names = dict(self._imports())
        self._names |= dict(self._subclasses())

    def _imports(self) -> Iterator[tuple[str, str]]:
        """Yield each local name of a GPU library and what it stands for; `xp` stands for CuPy everywhere."""
        yield "xp", "cupy"
        for node in self._nodes:
            if isinstance(node, ast.Import):
                for name in node.names:
                    if name.name.split(".")[0] in LIBRARIES:
                        # `import a.b` gives the file the name `a`.
                        root = name.name.split(".")[0]
                        yield name.asname or root, name.name if name.asname else root
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES:
                for name in node.names:
                    yield name.asname or name.name, f"{node.module}.{name.name}"

    def _subclasses(self) -> Iterator[tuple[str, str]]:
        """Yield each class of ours that is constructed as the library's class which it extends."""
        for node in self._nodes:
            if isinstance(node, ast.ClassDef):
                bases = [base for base in map(self._target, node.bases) if base]
                makes_itself = any(isinstance(one, ast.FunctionDef) and one.name == "__init__" for one in node.body)
                if bases and not makes_itself:
                    yield node.name, bases[0]

    def calls(self) -> Iterator[Call]:
        for node in self._nodes:
            if isinstance(node, ast.Call) and (target := self._target(node.func)):
                where = f"{self._file.relative_to(PACKAGE)}:{node.lineno}"
                keywords = tuple(keyword.arg for keyword in node.keywords if keyword.arg)
                yield Call(target, len(node.args), keywords, where)

    def reads(self) -> Iterator[Read]:
        for function in self._nodes:
            if isinstance(function, ast.FunctionDef):
                yield from self._reads_in(function)

    def _reads_in(self, function: ast.FunctionDef) -> Iterator[Read]:
        estimators = {}
        for node in ast.walk(function):
            # fit = Estimator(...).fit(x)
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.value, ast.Call)
                and isinstance(node.targets[0], ast.Name)
            ):
                target = self._target(node.value.func)
                if target and target.endswith(".fit"):
                    estimators[node.targets[0].id] = target.removesuffix(".fit")
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in estimators:
                yield Read(f"{estimators[node.value.id]}.{node.attr}", f"{self._file.name}:{node.lineno}")

    def _target(self, function: ast.expr) -> str | None:  # noqa: PLR0911 - a table of forms
        """Resolve what is called to a dotted name of a GPU library, or None."""
        if isinstance(function, ast.Name):
            return self._names.get(function.id)
        if not isinstance(function, ast.Attribute):
            return None
        if isinstance(function.value, ast.Call):
            made = self._target(function.value.func)
            return f"{made}.{function.attr}" if made and made.split(".")[-1][0].isupper() else None
        dotted = ast.unparse(function)
        if dotted.startswith("backend.xp."):
            return "cupy." + dotted.removeprefix("backend.xp.")
        if dotted.startswith("backend.frames."):
            return "cudf." + dotted.removeprefix("backend.frames.")
        if function.attr == _TABLE_METHODS.get(self._file.name):
            return f"cudf.DataFrame.{function.attr}"
        first, _, rest = dotted.partition(".")
        return f"{self._names[first]}.{rest}" if first in self._names else None


def resolve(target: str) -> Any:
    """Import what a dotted name stands for.

    Raises
    ------
    AttributeError
        When the library has no such thing.
    """
    path, *parts = target.split(".")
    found: Any = importlib.import_module(path)
    for part in parts:
        path = f"{path}.{part}"
        # Attributes first: cuml.metrics.cluster has functions that bear the names of its modules.
        found = getattr(found, part) if hasattr(found, part) else _imported(path)
    return found


def _imported(path: str) -> Any:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        raise AttributeError(path) from error


def parameters(target: str) -> list[tuple[str, int, bool]] | None:
    """Return name, kind and whether there is a default of each parameter; None for what has no signature (ufuncs)."""
    found = resolve(target)
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return None
    return [(name, int(p.kind), p.default is not p.empty) for name, p in signature.parameters.items()]


def bind(call: Call, found: list[tuple[str, int, bool]] | None) -> None:
    """Check that a call fits a signature.

    Raises
    ------
    TypeError
        When it does not, as Python would say it.
    """
    if found is None:
        return
    made = inspect.Signature(
        [
            inspect.Parameter(name, _KINDS[kind], default=None if has_default else inspect.Parameter.empty)
            for name, kind, has_default in found
        ]
    )
    # A method is looked up on its class: `self` stands before what the source gives.
    is_method = bool(found) and found[0][0] == "self"
    made.bind(*[None] * (call.n_positional + is_method), **dict.fromkeys(call.keywords))


def not_known(call: Call, signatures: dict[str, Any]) -> list[str]:
    """Return the options of a call that neither what is called nor what it hands them on to has a name for."""
    known: set[str] = set()
    for target in (call.target, *HANDED_ON.get(call.target, ())):
        known |= {name for name, kind, _default in signatures[target] if _KINDS[kind] not in _VARIADIC}
    return [name for name in call.keywords if name not in known]


_VARIADIC = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
_KINDS = {int(kind): kind for kind in inspect._ParameterKind}


def snapshot() -> dict[str, Any]:
    """Read the signatures of everything called from the installed libraries."""
    called = {call.target for call in source_calls()}
    targets = sorted(called.union(*HANDED_ON.values(), HANDED_ON))
    return {
        "versions": {wheel: version(wheel) for wheel in WHEELS},
        "signatures": {target: parameters(target) for target in targets},
    }


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(snapshot(), indent=1) + "\n")

"""What `--portable` leaves out of the files of a job: every path that begins at the root of the file system.

Such a path names the user, their machine or their customers. This module turns the record of a run, and any other text,
into what may be handed on. It must not know which files there are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gpu_cluster.addresses import is_address
from gpu_cluster.errors import ConfigError
from gpu_cluster.files import printable

Rewrite = Callable[[str], str]

# The options that hold paths, by section. Those of the first kind decide what a run computes: to repeat it, they have
# to be given again.
_NEEDED = {
    "input": ("images", "input_list", "labels"),
    "embed": ("weights",),
    "given": ("embeddings", "embedding_names"),
}
_OTHERS = {"store": ("cache",)}

_URI = re.compile(r"file:/*(?=/)")
# A path in quotes, in which there may be spaces; and one without, which begins a word and ends with it.
_QUOTED = re.compile(r"""(['"])/(?:(?!\1).)*\1""")
_BARE = re.compile(r"""(?<![\w.~/<>)\]])/(?:[^\s/'"<>,;:]+/)*[^\s/'"<>,;:]+/?""")


def unchanged(text: str) -> str:
    """Return the text; this is the rewriting of a job that is not portable."""
    return text


def rewriting(config: Mapping[str, Any], *paths: Path) -> Rewrite:
    """Return a function that replaces every absolute path in a text: by its last name, or by its end below a known one.

    Parameters
    ----------
    config
        The config of the job, as `run.json` records it.
    paths
        Other paths that the job uses, such as the folder of the pictures.
    """
    known = {str(path): path.name for path in (*paths, *map(Path, _paths_in(config)))}
    known |= {os.path.realpath(path): name for path, name in known.items()}
    known |= {os.getcwd(): ".", str(_home()): "~"}
    # The longest first, because it may lie in another one.
    in_order = sorted(((path, name) for path, name in known.items() if len(path) > 1), key=lambda one: -len(one[0]))

    def rewrite(text: str) -> str:
        text = _URI.sub("", text)
        for path, name in in_order:
            for form in {path, printable(path)}:
                # Only whole names, from their beginning: /data/a is in neither /data/ab nor my/data/a.
                text = re.sub(rf"(?<![\w.~/-]){re.escape(form)}(?![\w-])", lambda _, name=name: name, text)  # type: ignore[misc]
        text = _QUOTED.sub(lambda found: f"{found[1]}{_last(found[0][1:-1])}{found[1]}", text)
        return _BARE.sub(lambda found: _last(found[0]), text)

    return rewrite


def _home() -> Path:
    """Return the user's home folder; `~`, which is in no path, if there is none, as for a user without a name."""
    return Path(os.path.expanduser("~"))


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _paths_in(config: Mapping[str, Any]) -> Iterator[str]:
    for section, names in (*_NEEDED.items(), *_OTHERS.items()):
        for name in names:
            yield from _as_list(config.get(section, {}).get(name))


def _as_list(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def portable_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a `run.json` without absolute paths.

    `root` is null, and `left_out` names the options whose paths have to be given again, with the last names of these.
    """
    if record["root"] is None:
        return dict(record)
    config, root = record["config"], Path(record["root"])
    rewrite = rewriting(config, root, *weights_in(record))
    left_out = {
        name: [Path(path).name for path in _as_list(config[section][name])]
        for section, names in _NEEDED.items()
        for name in names
        if config.get(section, {}).get(name)
    }
    found = {name: value if name == "config" else rewritten(value, rewrite) for name, value in record.items()}
    return found | {
        "config": _without_paths(config),
        "root": None,
        "root_name": record["root_name"],
        "left_out": left_out,
    }


def weights_in(record: Mapping[str, Any]) -> list[Path]:
    """Return the files of weights that a record names."""
    files = [record.get("weights"), *record.get("weights_of_others", ())]
    return [Path(file["path"]) for file in files if file]


def _without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(config)
    for section, names in (*_NEEDED.items(), *_OTHERS.items()):
        if section in found:
            found[section] = {
                name: value if name not in names else [] if isinstance(value, list | tuple) else None
                for name, value in found[section].items()
            }
    if "given" in found:
        # It is said of the file, which is named anew.
        found["given"] = {**found["given"], "embedded_by": None}
    if "report" in found:
        found["report"] = {**found["report"], "portable": True}
    return found


def rewritten(value: Any, rewrite: Rewrite) -> Any:
    """Return a value that JSON can hold with every text in it rewritten, but not the keys."""
    if isinstance(value, str):
        return rewrite(value)
    if isinstance(value, Mapping):
        return {key: rewritten(inner, rewrite) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rewritten(inner, rewrite) for inner in value]
    return value


def check_root(root: Path, paths: Iterable[str]) -> None:
    """Refuse a folder of pictures below which the tables would name the user's own folder; addresses name none.

    Raises
    ------
    ConfigError
        When it is the root of the file system, the user's home folder, or one that this lies in: of several folders,
        it is the common one.
    """
    if all(map(is_address, paths)):
        return
    home = _home()
    if root == Path(root.anchor) or home.is_relative_to(root) or home.resolve().is_relative_to(root.resolve()):
        first = next(iter(paths), "")
        raise ConfigError(
            f"--portable: the paths in the tables would begin at {printable(str(root))!r} (the first is "
            f"{printable(first)!r}), and so name folders above your pictures; name one folder that holds all of them"
        )

"""Nothing that a terminal would obey reaches it from names, labels, a model or the options: only the command's own."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
from pathlib import Path

import pytest

from tests.forks import Forked
from tests.helpers import called, gpu_cluster

TITLE, CLEAR, COLOUR, REVERSED = "\x1b]0;OWNED\x07", "\x1b[2J", "\x1b[31m", "a\u202eb"

# What the command itself sends: colours and attributes, moving the cursor, clearing a line, hiding the cursor.
OWN = re.compile(r"\x1b\[(\??[0-9;]*)([mAKlhGHC])|[\r\n]")


@pytest.fixture
def hostile(tmp_path, sample_images) -> Path:
    """A folder with pictures of the sample set, whose name and whose labels hold escape sequences."""
    folder = tmp_path / f"pictures{CLEAR}"
    folder.mkdir()
    for image in sample_images[:8]:
        shutil.copy(image, folder)
    labels = [(TITLE, REVERSED)[number % 2] for number in range(8)]
    rows = [f'{image.name},"{label}"' for image, label in zip(sample_images, labels, strict=False)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]), encoding="utf-8")
    return folder


def run_of(hostile: Path, store: Path) -> list[str | Path]:
    tiny: list[str | Path] = ["--features", "vgg16", "--image-size", "64", "--k", "2", "--k-range", "2:2"]
    tiny += ["--n-init", "2", "--cache", store]
    return ["run", hostile, "--labels", hostile.parent / "labels.csv", *tiny, "--out", hostile.parent / f"out{CLEAR}"]


def unsafe(text: str) -> list[str]:
    return re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)


def test_labels_and_names_reach_a_file_without_an_escape_sequence(hostile, sample_run, sample_store):
    done = gpu_cluster(*run_of(hostile, sample_store), "--verbose")
    assert done.code == 0, done.err
    assert unsafe(done.out) == unsafe(done.err) == []
    assert r"\x1b]0;OWNED" in done.out
    assert r"a\u202eb" in done.out
    assert rf"{hostile.parent}/out\x1b[2J" in done.out


def test_a_terminal_gets_only_the_commands_own_sequences(hostile, sample_run, sample_store):
    ours, theirs = pty.openpty()
    env = os.environ | {"TERM": "xterm"}
    given = run_of(hostile, sample_store)
    with Forked(*given, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        seen = b""
        # The other end of a terminal is closed by an error.
        while True:
            try:
                seen += os.read(ours, 65536)
            except OSError:
                break
    os.close(ours)
    text = seen.decode()
    assert process.returncode == 0, text
    assert "\x1b[1m" in text, "no sequence of its own: this was no terminal"
    assert r"\x1b]0;OWNED" in text
    assert r"a\u202eb" in text
    sequences = {found.group(2) for found in OWN.finditer(text)}
    assert "J" not in sequences
    assert unsafe(OWN.sub("", text)) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--k-range", COLOUR),
        ("run", f"none{CLEAR}"),
        (f"none{CLEAR}",),
        ("run", f"--none{CLEAR}"),
        ("run", "--config", f"none{CLEAR}.json", "--debug"),
        ("run", "--device", REVERSED),
        ("predict", f"none{CLEAR}", REVERSED),
        ("cache", REVERSED),
    ],
    ids=lambda arguments: " ".join(arguments).encode("unicode_escape").decode(),
)
def test_errors_show_arguments_without_an_escape_sequence(arguments):
    done = called(*arguments)
    assert done.code == 2
    assert unsafe(done.out + done.err) == []


def test_the_fields_of_a_model_are_shown_without_an_escape_sequence(tmp_path, sample_run, sample_images):
    run = tmp_path / "run"
    shutil.copytree(sample_run.folder, run)
    model = json.loads((run / "model" / "model.json").read_text())
    (run / "model" / "model.json").write_text(json.dumps(model | {"sha256": f"{CLEAR}{REVERSED}"}))
    done = called("predict", run, sample_images[0], "--out", tmp_path / "new.csv")
    assert done.code == 2
    assert r"\x1b[2Ja\u202eb" in done.err
    assert unsafe(done.err) == []


@pytest.mark.parametrize("form", ["--json", ""])
def test_settings_hold_the_same_value_as_an_escape_of_their_format(tmp_path, form):
    import tomllib

    name = f"{tmp_path}/{CLEAR}\x7f\x85{REVERSED}"
    done = called("config", "show", name, *([form] if form else []))
    assert unsafe(done.out) == []
    if form:
        found = next(one["value"] for one in json.loads(done.out) if one["option"] == "images")
    else:
        found = tomllib.loads(done.out)["input"]["images"]
    assert found == [name]

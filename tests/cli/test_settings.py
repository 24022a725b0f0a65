"""What `config show` prints: every option, its value and where it came from."""

from __future__ import annotations

import json
import tomllib

import pytest

from gpu_cluster.config import RunConfig
from gpu_cluster.options import build_config, options_of
from tests.helpers import called


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """Every layer says something: the command line, a file, a preset; and the defaults are below."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "options.toml").write_text('[embed]\nfit = "crop"\nbatch_size = 8\n[sweep]\nk = 5\n')
    return ("config", "show", "photos", "-k", "6", "--preset", "notebook", "--config", "options.toml")


def test_every_option_is_shown_with_the_layer_that_its_value_came_from(shown):
    done = called(*shown, "--json")
    assert done.code == 0, done.err
    found = {one["option"]: (one["value"], one["source"]) for one in json.loads(done.out)}
    assert set(found) == set(options_of(RunConfig))
    assert found["k"] == (6, "command line")
    assert found["preset"] == ("notebook", "command line")
    assert found["fit"] == ("crop", "file options.toml")
    assert found["batch_size"] == (8, "file options.toml")
    assert found["resize"] == ("nearest", "preset notebook")
    assert found["n_init"] == (10, "default")
    assert found["labels"] == (None, "default")


def test_the_text_says_the_same_and_is_a_file_that_gives_the_same_run(shown, tmp_path):
    text = called(*shown).out
    assert "k = 6                                     # command line\n" in text
    assert "# labels is not set                       # default\n" in text
    assert tomllib.loads(text)["sweep"]["k"] == 6
    (tmp_path / "saved.toml").write_text(text)
    expected = build_config(RunConfig, "options.toml", images=("photos",), k=6, preset="notebook")
    assert build_config(RunConfig, tmp_path / "saved.toml") == expected


def test_it_takes_every_option_of_run_and_its_errors(shown):
    assert called(*shown, "--quiet", "--verbose", "--debug", "--open", "--out", "o", "--json").code == 0
    done = called("config", "show", "--resize", "cubic")
    assert done.code == 2
    assert "--resize: " in done.err

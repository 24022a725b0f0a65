"""The help: every command, every option, on a narrow terminal too; and what a shell completes from it."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import typer

from gpu_cluster.cli.commands import app
from gpu_cluster.config import RunConfig
from gpu_cluster.options import INTERNAL, options_of
from tests.helpers import COMMAND, called


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command and every group with the words that call it."""
    yield words, command
    for name in getattr(command, "commands", {}):
        yield from commands(command.get_command(None, name), (*words, name))


EVERY = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("width", [60, 120])
@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_every_option_is_shown_whole_and_every_line_fits(monkeypatch, words, width):
    monkeypatch.setenv("COLUMNS", str(width))
    done = called(*words, "-h")
    assert done.code == 0
    for parameter in EVERY[words].params:
        if parameter.param_type_name == "option" and not parameter.hidden:
            names = ", ".join([*sorted(parameter.opts, key=len), *parameter.secondary_opts])
            assert re.search(rf"^  {re.escape(names)}( |$)", done.out, re.MULTILINE), names
    # The examples are lines to copy, so they are not wrapped.
    explained, _, example = done.out.partition("\n  Example")
    assert max(map(len, explained.splitlines())) <= width
    assert f"  gpu-cluster {words[0] if words else ''}" in example


def test_a_switch_has_no_value_and_an_option_has_one(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    lines = called("run", "--help").out.splitlines()
    assert {"  --no-cache", "  --labels-from-folders", "  -k, --k NUMBER", "  --labels PATH"} <= set(lines)


WORDS = {"select", "resize", "device", "fit", "precision", "pooling", "scaling", "preset"}


@pytest.mark.parametrize("name", sorted(WORDS))
def test_the_words_that_an_option_takes_are_those_of_the_config(monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "60")
    annotation = options_of(RunConfig)[name].field.annotation
    words = [word for word in get_args(annotation) if isinstance(word, str)] or get_args(get_args(annotation)[0])
    assert f"  --{name} {'|'.join(words)}\n" in called("run", "--help").out


def test_help_is_a_command_too():
    assert called("help").out == called("--help").out
    assert called("help", "run").out == called("run", "-h").out
    assert called("help", "cache", "prune").out == called("cache", "prune", "-h").out
    assert called("help", "runn").err == "error: No such command 'runn'. Did you mean 'run'?\n"


def test_a_group_without_a_command_shows_its_help():
    done = called("cache")
    assert (done.code, done.err, done.out) == (0, "", called("cache", "--help").out)


def test_no_option_of_the_config_is_left_out_of_the_help():
    shown = called("run", "--help").out
    assert [name for name, option in options_of(RunConfig).items() if option.flag not in shown] == [
        name for name in options_of(RunConfig) if name in INTERNAL
    ]


COMPLETED = """
PATH="$1:$PATH"
gpu-cluster --install-completion > /dev/null
source "$HOME/.bashrc"
completed() {
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
    $(complete -p gpu-cluster | sed 's/.*-F \\([^ ]*\\) .*/\\1/') gpu-cluster
    echo "${COMPREPLY[*]}"
}
completed gpu-cluster pre
completed gpu-cluster run --sweep-sp
completed gpu-cluster run --select ""
"""


@pytest.mark.slow
def test_bash_completes_commands_options_and_words(tmp_path):
    command = ["bash", "-c", COMPLETED, "bash", str(COMMAND.parent)]
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.stdout.splitlines() == ["predict", "--sweep-space", "agreement elbow silhouette"], done.stderr

"""The consoles of Rich, on which all text but single lines is printed. They are loaded when they are needed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, TextIO, cast

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook
from rich.segment import Segment

from gpu_cluster.cli import native
from gpu_cluster.cli.output import Patient
from gpu_cluster.words import escaped


class _Escaped:
    """What a console is to print, with every unsafe character in its text as an escape."""

    def __init__(self, content: ConsoleRenderable) -> None:
        self._content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self._content, options):
            # Rich's own control codes are segments of their own; colours are added to the text later.
            yield segment if segment.control else Segment(escaped(segment.text), segment.style)


class _Escaping(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Escaped(renderable) for renderable in renderables]


def open_console(*, patient: bool = True, **options: Any) -> Console:
    """Return a console on standard output; if it is not patient, a command whose only result is the text fails."""
    stream = cast(TextIO, Patient(sys.stdout)) if patient else sys.stdout
    return _escaping(Console(file=stream, highlight=False, **options))


def errors_console() -> Console:
    """Return the console on standard error: always the same one, so that a line does not break a progress bar."""
    return _errors_console(native.errors())


@lru_cache(maxsize=1)
def _errors_console(stream: TextIO) -> Console:
    return _escaping(Console(file=cast(TextIO, Patient(stream)), highlight=False, soft_wrap=True))


def _escaping(made: Console) -> Console:
    made.push_render_hook(_Escaping())
    return made

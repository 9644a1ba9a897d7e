"""Problems as text for people, as JSON, and as annotations for GitHub."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Literal

import msgspec

from oumi_kernel.errors import Place, Problem
from oumi_kernel.loading.document import COMMAND_LINE

Form = Literal["text", "json", "github"]
WIDTH = 100


def render_problems(problems: Sequence[Problem], form: Form = "text") -> str:
    """Return problems in the form asked for, in the order of the file."""
    ordered = sorted(problems, key=_order)
    if form == "json":
        return msgspec.json.format(msgspec.json.encode({"problems": ordered}), indent=2).decode()
    render = _github if form == "github" else _text
    blocks = [render(problem) for problem in ordered]
    if form == "text":
        blocks.append(_counts(ordered))
    return "\n".join(blocks)


def _order(problem: Problem) -> tuple[bool, int, str, int, int]:
    """Sort errors before warnings, lines of files before flags before whole files."""
    place = problem.place or Place("")
    rank = 0 if place.line else 1 if place.text else 2
    return problem.severity == "warning", rank, place.source, place.line, place.column


def _text(problem: Problem) -> str:
    owner = f"  (from {problem.distribution})" if problem.distribution else ""
    where = f"{problem.place}: " if problem.place else ""
    path = f"{problem.path}: " if problem.path else ""
    lines = [f"{where}{problem.severity}[{problem.code}] {path}{problem.message}{owner}"]
    lines += _excerpt(problem.place, problem.hint) if problem.place and problem.place.text else _plain(problem.hint)
    return "\n".join(_printable(line) for line in lines)


def _plain(hint: str) -> list[str]:
    return [f"    {hint}"] if hint else []


def _excerpt(place: Place, hint: str) -> list[str]:
    if not place.line:
        return [f"     | {place.text[:WIDTH]}", *([f"     | {hint}"] if hint else [])]
    start = max(0, place.column - WIDTH + 20)
    before = place.text[start : place.column - 1]
    pointer = f"{' ' * sum(map(_cells, before))}^ " if place.column <= len(place.text) + 1 else ""
    return [f"{place.line:>4} | {place.text[start : start + WIDTH]}", f"     | {pointer}{hint}".rstrip()]


def _cells(character: str) -> int:
    """Return how many columns of a terminal a character takes."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _printable(text: str) -> str:
    """Replace what a terminal would obey instead of show, line breaks aside."""
    return "".join(character if character.isprintable() or character == "\n" else " " for character in text)


def _github(problem: Problem) -> str:
    place = problem.place or Place("")
    position = f",line={place.line},col={place.column}" if place.line else ""
    is_file = bool(place.source) and place.source != COMMAND_LINE
    properties = f" file={_escape(place.source, ':,')}{position}" if is_file else ""
    owner = f" (from {problem.distribution})" if problem.distribution else ""
    text = " ".join(filter(None, (f"{problem.path}: {problem.message}{owner}", problem.hint)))
    return f"::{problem.severity}{properties}::{_escape(text)}"


def _escape(text: str, also: str = "") -> str:
    for character in "%\r\n" + also:
        text = text.replace(character, f"%{ord(character):02X}")
    return text


def _counts(problems: Sequence[Problem]) -> str:
    errors = sum(problem.severity == "error" for problem in problems)
    warnings = len(problems) - errors
    return f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}"

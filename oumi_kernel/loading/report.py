"""Problems as text for people, as JSON, and as annotations for GitHub."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from oumi_kernel.errors import Place, Problem

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


def _order(problem: Problem) -> tuple[bool, bool, str, int, int]:
    place = problem.place or Place("")
    return problem.severity == "warning", problem.place is None, place.source, place.line, place.column


def _text(problem: Problem) -> str:
    owner = f"  (from {problem.distribution})" if problem.distribution else ""
    where = f"{problem.place}: " if problem.place else ""
    path = f"{problem.path}: " if problem.path else ""
    lines = [f"{where}{problem.severity}[{problem.code}] {path}{problem.message}{owner}"]
    lines += _excerpt(problem.place, problem.hint) if problem.place and problem.place.text else _plain(problem.hint)
    return "\n".join(lines)


def _plain(hint: str) -> list[str]:
    return [f"    {hint}"] if hint else []


def _excerpt(place: Place, hint: str) -> list[str]:
    number = f"{place.line:>4}" if place.line else "    "
    start = max(0, place.column - WIDTH + 20)
    text = _printable(place.text[start : start + WIDTH])
    if not place.line:
        return [f"{number} | {text}", *([f"     | {hint}"] if hint else [])]
    return [f"{number} | {text}", f"     | {' ' * (place.column - 1 - start)}^ {hint}".rstrip()]


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def _github(problem: Problem) -> str:
    place = problem.place or Place("")
    position = f",line={place.line},col={place.column}" if place.line else ""
    properties = f" file={_escape(place.source, ':,')}{position}" if place.line else ""
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

"""What the patterns of the section mean in a model: every one must match something."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from torch import nn
from transformers.pytorch_utils import Conv1D

from oumi_kernel import ConfigError, Problem

ALL_LINEAR = "all-linear"
SHOWN = 12
_EXPERTS = ("gate_proj", "up_proj", "down_proj", "gate_up_proj", "w1", "w2", "w3")
"""Names that the matrices of experts have where each is a module of its own."""
Matcher = Callable[[str, str], bool]


class Names(msgspec.Struct, frozen=True):
    """The names of a model before an adapter is put into it.

    Attributes:
        kind: The class of the model.
        modules: Its modules.
        parameters: Its parameters.
        linear: Those of its modules that multiply by a matrix, without the head.
    """

    kind: str
    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    linear: tuple[str, ...]


def names_of(model: Any) -> Names:
    """Return the names of a model."""
    head = model.get_output_embeddings()
    return Names(
        kind=type(model).__name__,
        modules=tuple(name for name, _ in model.named_modules() if name),
        parameters=tuple(name for name, _ in model.named_parameters()),
        linear=tuple(
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and module is not head
        ),
    )


def by_parts(pattern: str, name: str) -> bool:
    """Say whether a name is a pattern, or ends with it on whole parts."""
    return name == pattern or name.endswith(f".{pattern}")


def by_end(pattern: str, name: str) -> bool:
    """Say whether a name ends with a pattern."""
    return name.endswith(pattern)


def by_expression(pattern: str, name: str) -> bool:
    """Say whether a regular expression describes a whole name."""
    return re.fullmatch(pattern, name) is not None


MATCHERS: Mapping[str, Matcher] = {
    "lora_target_modules": by_parts,
    "lora_exclude_modules": by_expression,
    "lora_modules_to_save": by_end,
    "lora_target_parameters": by_parts,
}
"""Key of the section -> how the library reads each item of its list."""


def check_patterns(names: Names, section: Mapping[str, Any]) -> None:
    """Refuse patterns that match nothing.

    Args:
        names: The names of the model.
        section: Keys of `MATCHERS` -> their values.

    Raises:
        ConfigError: Some match nothing, or are no regular expressions; says what is near.
    """
    problems: list[Problem] = []
    for key, value in section.items():
        _refuse_list_as_text(key, value)
        among = names.parameters if key == "lora_target_parameters" else names.modules
        for path, pattern, matcher in patterns_of(key, value):
            try:
                is_found = any(matcher(pattern, name) for name in among)
            except re.error as error:
                message = f"'{pattern}' is no regular expression: {error}."
                problems.append(Problem(code="wrong-value", path=path, message=message))
                continue
            if not is_found:
                problems.append(_no_match(path, pattern, key, names))
    if problems:
        raise ConfigError(problems)


def patterns_of(key: str, value: Sequence[str] | str | None) -> Iterable[tuple[str, str, Matcher]]:
    """Yield (path, pattern, how it is read) for each pattern of a key; `all-linear` is none."""
    if value is None or value in (ALL_LINEAR, [ALL_LINEAR]):
        return
    if isinstance(value, str):
        yield f"peft.{key}", value, by_expression
        return
    for index, pattern in enumerate(value):
        yield f"peft.{key}[{index}]", pattern, MATCHERS[key]


def counts(key: str, value: Sequence[str] | str | None, among: Sequence[str]) -> dict[str, int]:
    """Return pattern -> how many of the names it matches; for `all-linear`, all of them."""
    if value in (ALL_LINEAR, [ALL_LINEAR]):
        return {ALL_LINEAR: len(among)}
    return {pattern: sum(matcher(pattern, name) for name in among) for _, pattern, matcher in patterns_of(key, value)}


def _refuse_list_as_text(key: str, value: Any) -> None:
    """Refuse names with commas between them: the library would read them as one pattern."""
    if isinstance(value, str) and "," in value and not set(value) & set("()[]{}|*+?\\"):
        message = f"'{value}' is text: one pattern, which no module's name matches."
        hint = f"Write a list: [{', '.join(part.strip() for part in value.split(','))}]."
        raise ConfigError(Problem(code="wrong-value", path=f"peft.{key}", message=message, hint=hint))


def _no_match(path: str, pattern: str, key: str, names: Names) -> Problem:
    if key == "lora_target_parameters":
        noun, known = "parameter", names.parameters
        listed = _ends(name for name in names.parameters if "expert" in name) or _ends(names.parameters)
    else:
        noun, known = "module", names.modules
        listed = _ends(names.linear)
    close = difflib.get_close_matches(pattern, sorted({*known, *_ends(known)}), 1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    if key == "lora_exclude_modules" and any(by_parts(pattern, name) for name in known):
        hint = f"It is a regular expression for whole names: write '.*{re.escape(pattern)}'. "
    experts = [name for name in names.parameters if name.rpartition(".")[0].endswith("experts")]
    if key == "lora_target_modules" and experts and pattern.rpartition(".")[2] in _EXPERTS:
        parts = dict.fromkeys(".".join(name.split(".")[-3:]) for name in experts if not name.endswith("bias"))
        hint = f"Experts are parameters in this model: set lora_target_parameters: [{', '.join(parts)}]. "
    kind = "Parameters" if noun == "parameter" else "Linear modules"
    message = f"'{pattern}' matches no {noun} of {names.kind}."
    return Problem(code="no-match", path=path, message=message, hint=f"{hint}{kind}: {', '.join(listed[:SHOWN])}.")


def _ends(names: Iterable[str]) -> list[str]:
    """Return the last part of each name, without numbers, once, in their order."""
    return list(dict.fromkeys(end for name in names if not (end := name.rpartition(".")[2]).isdigit()))

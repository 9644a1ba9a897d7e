"""Other spellings of keys, applied to the raw tree before it is typed; positions move with the values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from oumi_kernel.errors import Problem
from oumi_kernel.loading.describe import shown
from oumi_kernel.loading.document import Document


class Alias(msgspec.Struct, frozen=True):
    """Another spelling of a key.

    Attributes:
        old: The other spelling.
        new: The key that it stands for.
        also: Further keys that it sets, with their values.
        value: Turns the written value into the key's; returning None means that nothing was chosen.
    """

    old: str
    new: str
    also: dict[str, Any] = {}
    value: Callable[[Any], Any] = lambda written: written


def _when_true(meaning: Any) -> Callable[[Any], Any]:
    return lambda written: meaning if written is True else (None if written is False else written)


ALIASES = (
    Alias("peft.r", "peft.lora_r"),
    Alias("peft.target_modules", "peft.lora_target_modules"),
    Alias("peft.bnb_4bit_use_double_quant", "peft.use_bnb_nested_quant"),
    Alias("peft.load_in_4bit", "peft.q_lora", {"peft.q_lora_bits": 4}, _when_true(True)),
    Alias("peft.load_in_8bit", "peft.q_lora", {"peft.q_lora_bits": 8}, _when_true(True)),
    Alias("peft.enable_peft", "training.use_peft"),
    Alias("training.bf16", "training.mixed_precision_dtype", {}, _when_true("bf16")),
    Alias("training.fp16", "training.mixed_precision_dtype", {}, _when_true("fp16")),
    Alias("training.trainer_kwargs.max_seq_length", "training.trainer_kwargs.max_length"),
)
SWITCHES = frozenset({"peft.load_in_4bit", "peft.load_in_8bit", "training.bf16", "training.fp16"})


def apply_aliases(document: Document) -> Iterator[Problem]:
    """Replace other spellings by the keys that they stand for; yield a problem where both say different things."""
    for alias in ALIASES:
        found, written = document.get(alias.old)
        if not found:
            continue
        if alias.old in SWITCHES and not isinstance(written, bool):
            got = document.environment.get(alias.old) or shown(written)
            yield _problem(document, alias.old, "wrong-type", f"expected true or false, got {got}.")
            document.remove(alias.old)
            continue
        meaning = alias.value(written)
        if meaning is None:
            document.remove(alias.old)
            continue
        meant = {alias.new: meaning} | alias.also
        clash = next(_clashes(document, meant), "")
        if clash:
            yield _problem(document, alias.old, "conflict", f"means {clash}.")
            document.remove(alias.old)
            continue
        try:
            document.move(alias.old, meant)
        except KeyError:  # a section is no mapping, which is reported when it is typed
            document.remove(alias.old)


def _clashes(document: Document, meant: dict[str, Any]) -> Iterator[str]:
    for key, value in meant.items():
        there, current = document.get(key)
        if there and current is not None and _plain(current) != _plain(value):
            other = document.origin(key).note
            says = f"{other} means {shown(current)}" if other else f"{key} is there too and says {shown(current)}"
            yield f"{key}: {shown(value)}, but {says}"


def _plain(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _problem(document: Document, path: str, code: str, message: str) -> Problem:
    return Problem(code=code, path=path, message=message, place=document.key_place(path))

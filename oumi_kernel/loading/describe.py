"""What a type accepts, in plain English, and why a value was refused."""

from __future__ import annotations

import difflib
from enum import Enum
from typing import Any

from msgspec import inspect

SHOWN = 60


def choices(type_: Any) -> tuple[str, ...]:
    """Return the closed set of words that a type accepts; empty for other types."""
    return _choices(inspect.type_info(type_))


def same_words(value: Any, type_: Any) -> list[str]:
    """Return the choices of a type that a word means: in any case, `-` read as `_`."""
    if not isinstance(value, str):
        return []
    word = value.strip().lower().replace("-", "_")
    return [choice for choice in choices(type_) if choice.lower() == word]


def expectation(type_: Any) -> str:
    """Return what a type accepts: `a whole number >= 1, or null`."""
    return _expectation(inspect.type_info(type_))


def refusal(type_: Any, value: Any, expression: str | None = None) -> tuple[str, str, str]:
    """Return (code, message, hint) for a value that a type refused.

    A value that came from the environment may be a secret: its `expression` is shown instead.
    """
    words = choices(type_)
    got = f"the value of {expression}" if expression else shown(value)
    if words and isinstance(value, str):
        near = "" if expression else did_you_mean(value, words)
        return "unknown-choice", f"{got} is not a valid choice.", f"{near}choices: {', '.join(words)}"
    info = inspect.type_info(type_)
    hint = ""
    if (value is None or isinstance(value, bool)) and _accepts(info, inspect.StrType):
        hint = "put it in quotes if it is meant as text"
    if _accepts(info, inspect.BoolType) and str(value).lower() in ("yes", "no", "on", "off"):
        hint = "write true or false"
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    ranges = (inspect.IntType, inspect.FloatType) if is_whole else inspect.FloatType
    code = "out-of-range" if _is_number(value) and _accepts(info, ranges) else "wrong-type"
    return code, f"expected {_expectation(info)}, got {got}.", hint


def did_you_mean(word: str, words: tuple[str, ...] | list[str]) -> str:
    """Return `did you mean 'x'? ` for the nearest of `words`, or nothing."""
    lower = {candidate.lower(): candidate for candidate in words}
    close = difflib.get_close_matches(word.lower(), list(lower), 1, 0.6)
    return f"did you mean '{lower[close[0]]}'? " if close else ""


def shown(value: Any) -> str:
    """Return a value as a message shows it: short, and named as YAML names it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def enum_words(enum: type[Enum]) -> list[str]:
    """Return the words by which messages name an enum's members: the value where it says the name, else the name."""
    return [str(member.value) if str(member.value).lower() == member.name.lower() else member.name for member in enum]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _members(info: Any) -> tuple[Any, ...]:
    info = info.type if isinstance(info, inspect.Metadata) else info
    return info.types if isinstance(info, inspect.UnionType) else (info,)


def _accepts(info: Any, kinds: Any) -> bool:
    return any(isinstance(member, kinds) for member in _members(info))


def _choices(info: Any) -> tuple[str, ...]:
    words: list[str] = []
    for member in _members(info):
        if isinstance(member, inspect.EnumType):
            words += enum_words(member.cls)
        elif isinstance(member, inspect.LiteralType):
            words += [value for value in member.values if isinstance(value, str)]
        elif isinstance(member, inspect.StrType):
            return ()
    return tuple(words)


def _expectation(info: Any) -> str:
    extra = (info.extra_json_schema or {}) if isinstance(info, inspect.Metadata) else {}
    if examples := extra.get("examples"):
        return f"one of {', '.join(map(str, examples))}"
    parts = [_one(member) for member in _members(info)]
    parts.sort(key=lambda part: part == "null")
    return ", or ".join(dict.fromkeys(parts))


def _one(info: Any) -> str:
    if isinstance(info, inspect.Metadata):
        return _expectation(info)
    if isinstance(info, inspect.IntType | inspect.FloatType):
        noun = "a whole number" if isinstance(info, inspect.IntType) else "a number"
        return noun + _bounds(info)
    if isinstance(info, inspect.ListType):
        return f"a list of {_plural(_expectation(info.item_type))}"
    if isinstance(info, inspect.LiteralType):
        return ", or ".join(map(str, info.values))
    if isinstance(info, inspect.EnumType):
        return f"one of {', '.join(enum_words(info.cls))}"
    simple = {
        inspect.BoolType: "true or false",
        inspect.StrType: "text",
        inspect.NoneType: "null",
        inspect.DictType: "a mapping",
        inspect.StructType: "a mapping",
    }
    return simple.get(type(info), "another value")


def _bounds(info: Any) -> str:
    low = f" >= {info.ge}" if info.ge is not None else f" > {info.gt}" if info.gt is not None else ""
    if info.le is not None and info.le >= 2**63 - 1:  # what no machine can hold; nobody needs to read it
        return low
    high = f" <= {info.le}" if info.le is not None else f" < {info.lt}" if info.lt is not None else ""
    return f"{low} and{high}" if low and high else low + high


def _plural(noun: str) -> str:
    return {"a mapping": "mappings", "a whole number": "whole numbers", "a number": "numbers"}.get(noun, noun)

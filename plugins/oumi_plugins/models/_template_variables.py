"""Variables of chat templates that a configuration sets."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, meta
from transformers import PreTrainedTokenizerBase

from oumi_kernel import ConfigError, Problem

_GENERATION = re.compile(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}")
_FUNCTIONS = {"raise_exception", "strftime_now"}
"""What the library gives to templates besides variables."""
_DOCUMENTS = "documents"


def check_variables(tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any]) -> None:
    """Refuse variables that the chat template never reads, or that are not the configuration's to set.

    Raises:
        ConfigError: There is such a variable, or there is no template.
    """
    if not variables:
        return
    if not tokenizer.chat_template:
        raise _problem("", "the tokenizer has no chat template, so nothing reads these.", "Set model.chat_template.")
    known = template_variables(tokenizer)
    reserved = {*inspect.signature(type(tokenizer).apply_chat_template).parameters, "messages"} - {_DOCUMENTS}
    for name in variables:
        if name in reserved:
            raise _problem(name, f"'{name}' is set for each conversation; it cannot be set here.")
        if name not in known:
            names = sorted(known - reserved)
            close = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean '{close[0]}'? " if close else ""
            message = f"the chat template never reads a variable '{name}'."
            raise _problem(name, message, f"{hint}It reads: {', '.join(names) or 'none'}.")


def template_variables(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Return the names of the variables that a tokenizer's chat templates take from outside."""
    found: Any = tokenizer.chat_template
    names: set[str] = set()
    for source in found.values() if isinstance(found, dict) else [found]:
        environment = Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True)
        names |= meta.find_undeclared_variables(environment.parse(_GENERATION.sub("", source)))
    return names - _FUNCTIONS


def _problem(name: str, message: str, hint: str = "") -> ConfigError:
    path = f"model.chat_template_kwargs.{name}" if name else "model.chat_template_kwargs"
    return ConfigError(Problem(code="unknown-key", path=path, message=message, hint=hint))

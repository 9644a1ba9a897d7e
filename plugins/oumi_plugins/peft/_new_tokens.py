"""Rows of tokens that were added to a model: with an adapter nothing else would train them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from oumi_kernel import ConfigError, Problem

_log = logging.getLogger("oumi_plugins.peft.new_tokens")
FIELD = "trainable_token_indices"
SHOWN = 5
"""Tokens that a message names."""


def with_new_tokens(
    settings: Mapping[str, Any], model: Any, added: Mapping[str, int], known: Collection[str]
) -> dict[str, Any]:
    """Return a method's settings under which the rows of all added tokens train.

    The library trains and saves single rows (`trainable_token_indices`). They are chosen in the embeddings and, where
    that has weights of its own, in the head: a token whose row there is random could be read, but not be generated.

    Args:
        settings: Fields of the method's config.
        model: The model that is to be adapted.
        added: Token -> row.
        known: The fields that the method's config has.

    Raises:
        ConfigError: The method trains no rows, or the settings leave some out.
    """
    if not added:
        return dict(settings)
    names = _layers(model)
    untrained = [name for name in names if not _is_saved_whole(name, settings.get("modules_to_save") or ())]
    if not untrained:
        return dict(settings)
    if FIELD not in known:
        path = "peft.lora_modules_to_save"
        hint = f"Set {path}: [{', '.join(name.rpartition('.')[2] for name in names)}], or take peft_method: lora."
        raise _refusal(path, f"this method leaves the rows of {_listed(added)} random", hint)
    given = settings.get(FIELD)
    if given is not None:
        _check_covered(given, names, added)
        return dict(settings)
    rows = list(added.values())
    _log.info("%s: %d new rows train in %s", _listed(added), len(rows), " and ".join(untrained))
    return {**settings, FIELD: dict.fromkeys(untrained, rows)}


def _layers(model: Any) -> list[str]:
    """Return the name of the embeddings, and of the head unless it shares their weights."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    layers = [embeddings]
    if head is not None and head.weight is not embeddings.weight:
        layers.append(head)
    names = {id(module): name for name, module in model.named_modules()}
    return [names[id(layer)] for layer in layers]


def _is_saved_whole(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.endswith(f".{module}") for module in modules)


def _check_covered(
    given: Sequence[int] | Mapping[str, Sequence[int]], names: Sequence[str], added: Mapping[str, int]
) -> None:
    chosen = given if isinstance(given, Mapping) else {names[0]: given}
    for name in names:
        rows = {row for module, listed in chosen.items() if _is_saved_whole(name, [module]) for row in listed}
        left_out = {token: row for token, row in added.items() if row not in rows}
        if left_out:
            message = f"leaves the rows of {_listed(left_out)} in {name} random"
            listed = ", ".join(f"{name}: {list(added.values())}" for name in names)
            hint = f"Leave it out, and all of them train; or write {{{listed}}}."
            raise _refusal(f"peft.peft_kwargs.{FIELD}", message, hint)


def _listed(added: Mapping[str, int]) -> str:
    shown = ", ".join(f"{token} ({row})" for token, row in list(added.items())[:SHOWN])
    more = f" and {len(added) - SHOWN} more" if len(added) > SHOWN else ""
    return f"the added tokens {shown}{more}" if len(added) > 1 else f"the added token {shown}"


def _refusal(path: str, message: str, hint: str) -> ConfigError:
    return ConfigError(Problem(code="not-served", path=path, message=f"{message}.", hint=hint))

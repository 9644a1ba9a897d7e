"""Rows of tokens that were added to a model: with an adapter nothing else would train them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from oumi_kernel import ConfigError, Problem

FIELD = "trainable_token_indices"
SHOWN = 5
"""Tokens that a message names."""


class NewTokens:
    """The tokens whose rows nothing has trained yet, and the layers that have these rows."""

    def __init__(self, model: Any, added: Mapping[str, int]) -> None:
        """Look at the model before it is adapted.

        The layers are the embeddings and, unless it shares their weights, the head: a token whose row is random there
        can be read, but not be generated.

        Args:
            model: The model.
            added: Token -> row.
        """
        embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
        names = {id(module): name for name, module in model.named_modules()}
        is_tied = head is None or head.weight is embeddings.weight
        self._layers = [names[id(layer)] for layer in ([embeddings] if is_tied else [embeddings, head])]
        self._added = added

    def trained(self, settings: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
        """Return a method's settings under which the rows of all of them train.

        Args:
            settings: Fields of the method's config.
            known: The fields that it has.

        Raises:
            ConfigError: The method trains no single rows.
        """
        whole = settings.get("modules_to_save") or ()
        layers = [name for name in self._layers if not _is_one_of(name, whole)]
        if not self._added or not layers or settings.get(FIELD) is not None:
            return dict(settings)
        if FIELD not in known:
            path = "peft.lora_modules_to_save"
            listed = ", ".join(name.rpartition(".")[2] for name in self._layers)
            hint = f"Set {path}: [{listed}], or take peft_method: lora."
            message = f"this method leaves the rows of {_listed(self._added)} as they are, random."
            raise ConfigError(Problem(code="not-served", path=path, message=message, hint=hint))
        rows = list(self._added.values())
        return {**settings, FIELD: dict.fromkeys(layers, rows)}

    def check(self, config: Any) -> None:
        """Refuse an adapter that leaves a row random.

        Raises:
            ConfigError: Its rows were chosen by hand, or by an earlier run, and are not all.
        """
        chosen = getattr(config, FIELD, None) or {}
        chosen = chosen if isinstance(chosen, Mapping) else {self._layers[0]: chosen}
        for layer in self._layers:
            if _is_one_of(layer, getattr(config, "modules_to_save", None) or ()):
                continue
            rows = {row for name, listed in chosen.items() if _is_one_of(layer, [name]) for row in listed}
            left_out = {token: row for token, row in self._added.items() if row not in rows}
            if left_out:
                message = f"the rows of {_listed(left_out)} in {layer} stay as they are, random."
                listed = ", ".join(f"{name}: {list(self._added.values())}" for name in self._layers)
                hint = f"A new adapter trains all of them if the key is left out; else write {{{listed}}}."
                raise ConfigError(
                    Problem(code="not-served", path=f"peft.peft_kwargs.{FIELD}", message=message, hint=hint)
                )


def _is_one_of(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.endswith(f".{module}") for module in modules)


def _listed(added: Mapping[str, int]) -> str:
    shown = ", ".join(f"{token} ({row})" for token, row in list(added.items())[:SHOWN])
    more = f" and {len(added) - SHOWN} more" if len(added) > SHOWN else ""
    return f"the added tokens {shown}{more}" if len(added) > 1 else f"the added token {shown}"

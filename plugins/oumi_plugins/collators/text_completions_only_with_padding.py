"""Batches of text that train on the assistant's turns only."""

from __future__ import annotations

import logging
from typing import Any

from oumi_kernel import CollatorComponent, hookimpl
from oumi_kernel.contracts import Collator, Run
from oumi_plugins.collators.text_with_padding import PaddingParams

_log = logging.getLogger(__name__)


class CompletionsParams(PaddingParams):
    """Parameters of a padding collator that trains on completions."""

    response_template: str | None = None
    """Taken for the sake of older recipes, without effect: the assistant's tokens are read off the chat template."""

    instruction_template: str | None = None
    """Without effect, for the same reason."""

    end_of_turn_template: str | None = None
    """Without effect, for the same reason."""


class TextCompletionsOnlyWithPadding(CollatorComponent):
    """Pads a batch to its longest example; trains on the assistant's turns unless `train_target` says otherwise."""

    params_type = CompletionsParams
    train_target = "all_assistant_turns"

    @hookimpl
    def oumi_build_collator(self, params: CompletionsParams, tokenizer: Any, run: Run) -> Collator:
        """Return the collator, after a warning about templates that are not used."""
        from oumi_plugins.collators._padding import build_collator

        for name in ("response_template", "instruction_template", "end_of_turn_template"):
            if getattr(params, name) is not None:
                _log.warning(
                    "collator_kwargs.%s has no effect: the assistant's tokens are read off the chat template itself.",
                    name,
                )
        return build_collator(tokenizer, params.pad_to_multiple_of, run)

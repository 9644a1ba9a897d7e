"""Batches of text that train on the assistant's turns only."""

from __future__ import annotations

from collections.abc import Iterator

from oumi_plugins.collators.text_with_padding import PaddingParams, TextWithPadding


class CompletionsParams(PaddingParams):
    """Parameters of a padding collator that trains on completions."""

    response_template: str | None = None
    """Not needed: which tokens are the assistant's is read off the chat template itself."""

    instruction_template: str | None = None
    """Not needed, for the same reason."""

    end_of_turn_template: str | None = None
    """Not needed, for the same reason."""

    def check(self) -> Iterator[tuple[str, str]]:
        """Refuse templates that would not be used."""
        for name in ("response_template", "instruction_template", "end_of_turn_template"):
            if getattr(self, name) is not None:
                yield name, "remove it: the assistant's tokens are read off the chat template itself."


class TextCompletionsOnlyWithPadding(TextWithPadding):
    """Pads a batch to its longest example; trains on the assistant's turns unless `train_target` says otherwise."""

    params_type = CompletionsParams
    train_target = "all_assistant_turns"

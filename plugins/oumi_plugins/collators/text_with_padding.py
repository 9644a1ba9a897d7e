"""Batches of text, padded to the longest example of each batch."""

from __future__ import annotations

from typing import Any

from oumi_kernel import CollatorComponent, Params, hookimpl
from oumi_kernel.contracts import Collator, Run
from oumi_kernel.schema import PositiveInt


class PaddingParams(Params):
    """Parameters of a padding collator."""

    pad_to_multiple_of: PositiveInt | None = None
    """Pad to a multiple of this many tokens."""


class TextWithPadding(CollatorComponent):
    """Pads a batch to its longest example; trains on the whole conversation unless `train_target` says otherwise."""

    params_type = PaddingParams
    train_target = "all_tokens"

    @hookimpl
    def oumi_build_collator(self, params: PaddingParams, tokenizer: Any, run: Run) -> Collator:
        """Return the collator."""
        from oumi_plugins.collators._padding import build_collator

        return build_collator(tokenizer, params.pad_to_multiple_of, run)

"""What is known of an adapter that was merged into its base."""

from __future__ import annotations

import msgspec


class Merged(msgspec.Struct, frozen=True, kw_only=True):
    """What was found when an adapter was merged: the largest differences between logits on fixed prompts.

    Attributes:
        prompts: Number of prompts.
        tokens: Tokens of all prompts.
        dtype: Number format of the base's files, in which the merged weights are written.
        effect: By how much the adapter moves the base's logits.
        difference: Between adapter and merged weights, both in float32 or wider.
        tolerance: What `difference` may be.
        rounding: Between adapter and merged weights as they are written; None where nothing was rounded.
        rounding_tolerance: What `rounding` may be.
    """

    prompts: int
    tokens: int
    dtype: str
    effect: float
    difference: float
    tolerance: float
    rounding: float | None = None
    rounding_tolerance: float = 0.0

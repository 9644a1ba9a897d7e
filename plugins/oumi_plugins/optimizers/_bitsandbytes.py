"""Optimizers of bitsandbytes, by the names of their classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import bitsandbytes
from torch.optim import Optimizer

from oumi_plugins.optimizers._paired import paired


def build(kind: str, whole: str, groups: Sequence[dict[str, Any]], settings: Mapping[str, Any]) -> Optimizer:
    """Return an optimizer of bitsandbytes; norms, biases and embeddings get a state of 32 bits.

    Args:
        kind: The class for weights.
        whole: The class of the same method with a state of 32 bits.
        groups: The parameter groups.
        settings: Arguments of both.
    """
    if kind == whole:
        return getattr(bitsandbytes.optim, kind)(groups, **settings)
    rest = [group for group in groups if group.get("kind") == "rest"]
    weights = [group for group in groups if group.get("kind") != "rest"]
    parts = ((kind, weights), (whole, rest))
    return paired([getattr(bitsandbytes.optim, name)(part, **settings) for name, part in parts if part])

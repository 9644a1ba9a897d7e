"""Accuracy where it is hard: on rare tokens, which have high ids in most vocabularies."""

from typing import Any


def rare_token_accuracy(predictions: Any, labels: Any, *, above: int = 1000) -> float:
    """Return the share of right predictions among labels with an id of `above` or more (int64 tensors (tokens,))."""
    rare = labels >= above
    return float((predictions == labels)[rare].float().mean()) if rare.any() else 0.0

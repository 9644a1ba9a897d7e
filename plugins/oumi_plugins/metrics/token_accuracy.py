"""How often the most likely token is the right one."""

from __future__ import annotations

from typing import Any


def token_accuracy(predictions: Any, labels: Any) -> float:
    """Return the share of supervised tokens that the model ranks first."""
    return (predictions == labels).float().mean().item()

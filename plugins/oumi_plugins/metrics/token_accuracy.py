"""How often the most likely token is the right one."""

from __future__ import annotations


def token_accuracy(predictions, labels) -> float:  # noqa: ANN001 - int64 tensors (tokens,), unseen here
    """Return the share of supervised tokens that the model ranks first."""
    return (predictions == labels).float().mean().item()

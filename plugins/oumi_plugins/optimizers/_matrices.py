"""Which parameters are matrices within the model: what some optimizers are made for, and no others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

Groups = list[dict[str, Any]]


def divided(groups: Sequence[dict[str, Any]], chosen: Callable[[str, Tensor], bool]) -> tuple[Groups, Groups]:
    """Return groups of the matrices within the model that are chosen by name and tensor, and groups of all the rest.

    Embeddings, the head, and tensors of one or three dimensions are among the rest.
    """
    matrices: Groups = []
    rest: Groups = []
    for group in groups:
        inside = group.get("kind", "weights") == "weights"
        parts: tuple[list[Any], list[Any]] = ([], [])
        for name, tensor in group["params"]:
            parts[not (inside and tensor.ndim == 2 and chosen(name, tensor))].append((name, tensor))
        for part, into in zip(parts, (matrices, rest), strict=True):
            if part:
                into.append({**group, "params": part})
    return matrices, rest

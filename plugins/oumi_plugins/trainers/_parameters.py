"""Parameter groups: what decays and what does not."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return groups of the trainable parameters as (name, tensor); biases, norms and embeddings do not decay."""
    exempt: set[int] = set()
    for module in model.modules():
        if isinstance(module, nn.Embedding) or "norm" in type(module).__name__.lower():
            exempt |= {id(parameter) for parameter in module.parameters(recurse=False)}
        if isinstance(getattr(module, "base_layer", None), nn.Embedding):  # an adapter around embeddings, or its rows
            exempt |= {id(parameter) for parameter in module.parameters()}
    decay: list[tuple[str, nn.Parameter]] = []
    rest: list[tuple[str, nn.Parameter]] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_exempt = id(parameter) in exempt or name.rpartition(".")[2] == "bias"
            (rest if is_exempt else decay).append((name, parameter))
    groups = [{"params": decay, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]

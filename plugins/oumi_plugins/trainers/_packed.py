"""Linear layers whose weights are packed, as quantised ones are: what they take, and how they are counted.

A packed weight has another shape than its layer's product, and constants that are neither parameters nor buffers.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


def is_packed(module: nn.Module) -> bool:
    """Return whether a module is a linear layer with a packed weight."""
    if not isinstance(module, nn.Linear):
        return False
    weight = module.weight
    return weight.shape != (module.out_features, module.in_features) or not weight.is_floating_point()


def elements(model: nn.Module) -> dict[int, int]:
    """Return id of a packed weight -> numbers that it stands for."""
    packed: list[Any] = [module for module in model.modules() if is_packed(module)]
    return {id(module.weight): module.in_features * module.out_features for module in packed}


def constants_bytes(model: nn.Module) -> int:
    """Return the bytes that packed weights take beside themselves: what a model saves that is no tensor of its own."""
    packed = [module for module in model.modules() if is_packed(module)]
    return sum(_extra_bytes(module) for module in packed)


def _extra_bytes(module: nn.Module) -> int:
    own = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    saved: dict[str, torch.Tensor] = module.state_dict(keep_vars=True)
    return sum(tensor.numel() * tensor.element_size() for tensor in saved.values() if id(tensor) not in own)


def unpacked(skeleton: Any) -> Any:
    """Return a copy of a model on the device `meta` with plain layers in the place of packed ones; itself if none is.

    A plain layer keeps for the backward pass what the packed one does: nothing, where that multiplies in floats; its
    input, where it quantises that as well (weights of whole bytes).
    """
    dtype = skeleton.get_input_embeddings().weight.dtype
    packed: list[Any] = [module for module in skeleton.modules() if is_packed(module)]
    return copy.deepcopy(skeleton, {id(module): _Plain(module, dtype) for module in packed}) if packed else skeleton


class _Plain(nn.Linear):
    """A layer that computes in the number format of its weight, whatever autocast says, and returns its input's."""

    def __init__(self, packed: Any, dtype: torch.dtype) -> None:
        bias = packed.bias is not None
        super().__init__(packed.in_features, packed.out_features, bias=bias, device="meta", dtype=dtype)
        self.requires_grad_(False)
        self.weight.requires_grad_(packed.weight.numel() == self.weight.numel())

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(self.weight.dtype)).to(input.dtype)

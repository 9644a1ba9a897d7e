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
    """Return a copy of a model on the device `meta` whose packed layers compute without kernels; itself if none is.

    They allocate what the real ones do: the weight in numbers, for each product, and what is kept in between. A layer
    of whole bytes keeps its input, where torch's hooks do not see it, and keeps it when layers are computed again.
    """
    dtype = skeleton.get_input_embeddings().weight.dtype
    packed: list[Any] = [module for module in skeleton.modules() if is_packed(module)]
    return copy.deepcopy(skeleton, {id(module): _Plain(module, dtype) for module in packed}) if packed else skeleton


class _Plain(nn.Linear):
    """A layer whose weight is in numbers, which are not counted, and which computes as a packed one does."""

    def __init__(self, packed: Any, dtype: torch.dtype) -> None:
        bias = packed.bias is not None
        super().__init__(packed.in_features, packed.out_features, bias=bias, device="meta", dtype=dtype)
        self.requires_grad_(False)
        self._computes_in = getattr(packed, "compute_dtype", None) or dtype
        self._keeps_input = packed.weight.numel() == self.weight.numel()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        with torch.autocast(input.device.type, enabled=False):
            states = input.to(self._computes_in)
            result: Any = _Product.apply(states, self.weight, self._keeps_input)
            bias: Any = self.bias
            return (result if bias is None else result + bias.to(result.dtype)).to(input.dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, weight: torch.Tensor, keeps_input: bool) -> torch.Tensor:
        ctx.weight, ctx.kept = weight, states if keeps_input else None
        return torch.nn.functional.linear(states, torch.empty_like(weight, dtype=states.dtype))

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - the base declares a name that it does not use
        ctx: Any, *grads: torch.Tensor
    ) -> tuple[torch.Tensor, None, None]:
        (grad,) = grads
        return torch.matmul(grad, torch.empty_like(ctx.weight, dtype=grad.dtype)), None, None

"""Tensors that are divided between processes (torch's `DTensor`): a part, the whole, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this process holds of a tensor: itself, if it is not divided."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def own_bytes(tensor: torch.Tensor) -> int:
    """Return the bytes that this process holds of a tensor."""
    part = own_part(tensor)
    return part.numel() * part.element_size()


def gathered(tensor: torch.Tensor, *, keep: bool) -> torch.Tensor | None:
    """Return a whole tensor in the host's memory to those that keep it; every process must call this."""
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().cpu() if keep else None


def gathered_tree(tree: Mapping[Any, Any], *, keep: bool) -> dict[Any, Any]:
    """Return mappings with whole tensors; every process must call this, and those that do not keep them get None."""
    return {
        key: gathered_tree(value, keep=keep)
        if isinstance(value, Mapping)
        else gathered(value, keep=keep)
        if isinstance(value, torch.Tensor)
        else value
        for key, value in tree.items()
    }


def divided_like(whole: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
    """Return a whole tensor, which every process has, as `held` is divided; nothing is sent."""
    if not isinstance(held, DTensor):
        return whole
    return distribute_tensor(whole.to(held.device), held.device_mesh, held.placements, src_data_rank=None)


def state_beside(whole: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Return what an optimizer keeps beside a parameter: divided as that is where it has its shape, else in full."""
    if not isinstance(parameter, DTensor) or not whole.ndim:
        return whole
    if whole.shape == parameter.shape:
        return divided_like(whole, parameter)
    mesh = parameter.device_mesh
    return distribute_tensor(whole.to(parameter.device), mesh, [Replicate()] * mesh.ndim, src_data_rank=None)

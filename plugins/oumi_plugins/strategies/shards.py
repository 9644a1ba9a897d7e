"""Tensors that are divided between processes (torch's `DTensor`): a part, the whole, and the way back."""

from __future__ import annotations

from typing import Any


def own_part(tensor: Any) -> Any:
    """Return what this process holds of a tensor: itself, if it is not divided."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else getattr(tensor, "ds_tensor", tensor)  # of DeepSpeed


def gathered(tensor: Any, *, keep: bool) -> Any:
    """Return a whole tensor in the host's memory; an empty one where it is not kept. Every process must call this."""
    import torch
    from torch.distributed.tensor import DTensor

    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().cpu() if keep else torch.empty(0)


def divided_like(whole: Any, held: Any) -> Any:
    """Return a whole tensor, which every process has, as `held` is divided; nothing is sent."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(held, DTensor):
        return whole
    return distribute_tensor(whole.to(held.device), held.device_mesh, held.placements, src_data_rank=None)


def state_beside(whole: Any, parameter: Any) -> Any:
    """Return what an optimizer keeps beside a parameter: divided as that is where it has its shape, else as it is."""
    return divided_like(whole, parameter) if whole.shape == parameter.shape else whole

"""The share that one process has of what a strategy divides (see `oumi_kernel.rehearsal.Division`), in bytes."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from oumi_kernel.rehearsal import Division

FLOAT32 = 4


def share(size: int, processes: int) -> int:
    """Return what each of several processes has of a number of bytes."""
    return -(-size // processes)


def held_bytes(tensors: Iterable[torch.Tensor], division: Division) -> int:
    """Return the bytes of all of some parameters or their gradients, in the number format in which they are held."""
    return sum(_width(tensor, division) * tensor.numel() for tensor in tensors)


def gradient_shares(trained: Iterable[torch.Tensor], division: Division) -> list[int]:
    """Return the bytes of each gradient that a process keeps on its device."""
    processes = division.gradients
    here = "gradients" not in division.host
    return [share(held_bytes([one], division), processes) if here else 0 for one in trained]


def divides_gradients(division: Division) -> bool:
    """Return whether whole gradients are let go in the backward pass."""
    return division.gradients > 1 or "gradients" in division.host


def number_format(division: Division) -> torch.dtype | None:
    """Return the number format in which the model computes; None: that of its weights, or as autocast says."""
    return getattr(torch, division.number_format) if division.number_format else None


def _width(tensor: torch.Tensor, division: Division) -> int:
    converted = number_format(division) if division.float32_copies and tensor.is_floating_point() else None
    return converted.itemsize if converted else tensor.element_size()

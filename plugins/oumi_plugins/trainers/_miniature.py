"""A small model in the place of one without weights: what an optimizer, a schedule and a strategy are tried on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from oumi_kernel.contracts import Session

SIDES = {0: (), 1: (61,), 2: (67, 71), 3: (17, 19, 23)}
"""Dimensions -> shape of a small parameter: different primes, by which a dimension is known again in the state of an
optimizer; a matrix has more than 4,096 elements, as libraries of 8-bit optimizers keep smaller ones in 32 bits."""
OTHER_SIDES = (2, 3, 5, 7, 11, 13)


class Unasked:
    """The objective of a rehearsal (see `_loop.Objective`): batches are made, but a miniature computes nothing."""

    def __init__(self, ignore: int) -> None:
        self._ignore = ignore

    def begin(self, session: Session) -> None:
        """Do not ask the model how it computes losses: it has no weights."""

    def compile(self) -> None:
        """Compile nothing."""

    def supervise(self, batch: Mapping[str, torch.Tensor]) -> tuple[dict[str, Any], int]:
        """Return a collated batch as it is, and its supervised tokens."""
        return dict(batch), int((batch["labels"][:, 1:] != self._ignore).sum())

    def loss(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Raise: there is no loss without weights."""
        raise NotImplementedError

    def token_losses(self, batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Raise: there is no loss without weights."""
        raise NotImplementedError


def miniature(skeleton: nn.Module) -> nn.Module:
    """Return a copy of `skeleton` on the CPU whose parameters have as many dimensions as its own, but small ones."""
    return filled(skeleton, lambda tensor: torch.zeros(small(tensor.ndim), dtype=tensor.dtype, device="cpu"))


def small(dimensions: int) -> tuple[int, ...]:
    """Return the shape of a small parameter."""
    return SIDES.get(dimensions, OTHER_SIDES[:dimensions])


def filled(skeleton: nn.Module, make: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    """Return a copy of a model with other tensors; what was tied or frozen is again.

    Args:
        skeleton: A model on the device `meta`.
        make: Returns the tensor that takes the place of one.
    """
    parameters = {id(p): nn.Parameter(make(p), requires_grad=p.requires_grad) for p in skeleton.parameters()}
    buffers = {id(buffer): make(buffer) for buffer in skeleton.buffers()}
    return copy.deepcopy(skeleton, {**parameters, **buffers})  # what is known as copied is taken for its copy

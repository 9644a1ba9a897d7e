"""Whether an optimizer treats each number of a weight by itself: only such an optimizer can be given parts of weights.

Asked of the optimizer itself: it steps a matrix, and then the same numbers as two strips; an optimizer that looks at
rows, columns, norms or blocks of a weight, or keeps a state of another shape, tells itself apart.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

SHAPE, CUT = (96, 128), 5000
"""Large enough for an optimizer that treats small weights as others; cut where no row and no block ends."""
STEPS = 2
RATE = 0.01
"""A learning rate with which steps are larger than rounding; a warm-up's is zero at first."""
ROUNDING = 1e-3
"""What steps may differ by, relative to their size; blocks of 8 bits differ by ten times as much."""


def is_elementwise(optimizer: Any, device: torch.device) -> bool:
    """Return whether stepping parts of a weight is the same as stepping the weight; leaves the optimizer as it was."""
    if hasattr(optimizer, "parts") or callable(getattr(optimizer, "eval", None)):
        return False
    generator = torch.Generator().manual_seed(0)
    first, *gradients = torch.randn(STEPS + 1, *SHAPE, generator=generator).to(device)
    with _borrowed(optimizer):
        whole = _stepped(optimizer, [first.clone()], [[gradient] for gradient in gradients])
        strips = [_cut(gradient) for gradient in gradients]
        parts = _stepped(optimizer, [part.clone() for part in _cut(first)], strips)
    if whole is None or parts is None:
        return False
    moved, alone = (weights - first.flatten() for weights in (whole[0].flatten(), torch.cat(parts)))
    return bool((moved - alone).norm() <= ROUNDING * moved.norm())


def _stepped(
    optimizer: Any, weights: list[torch.Tensor], gradients: Sequence[Sequence[torch.Tensor]]
) -> list[torch.Tensor] | None:
    """Return weights after a step for each list of gradients; None if the optimizer cannot, or keeps another shape."""
    optimizer.state.clear()
    optimizer.param_groups[0]["params"] = weights
    for of_step in gradients:
        for weight, gradient in zip(weights, of_step, strict=True):
            weight.grad = gradient.clone()
        try:
            optimizer.step()
        except (ValueError, RuntimeError, IndexError, KeyError, AssertionError):
            return None
    for weight in weights:
        kept = [value for value in optimizer.state[weight].values() if isinstance(value, torch.Tensor)]
        if any(value.ndim and value.shape != weight.shape for value in kept):
            return None
    return weights


def _cut(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    flat = tensor.flatten()
    return flat[:CUT], flat[CUT:]


@contextmanager
def _borrowed(optimizer: Any) -> Generator[None]:
    """Have the optimizer without its weights, and put everything back."""
    state, groups = dict(optimizer.state), [dict(group) for group in optimizer.param_groups]
    for group in optimizer.param_groups[1:]:
        group["params"] = []
    optimizer.param_groups[0]["lr"] = RATE
    try:
        yield
    finally:
        optimizer.state.clear()
        optimizer.state.update(state)
        for group, before in zip(optimizer.param_groups, groups, strict=True):
            group.clear()
            group.update(before)

"""Cross-entropy of a linear head in chunks: the logits of all tokens are never in memory at once.

Where a gradient is asked for it is computed together with the loss, chunk by chunk, and only scaled in the backward
pass. Shapes: P predicting positions, C positions of a chunk, D hidden width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812 - torch's own convention

CHUNK_BYTES = {"cpu": 8 * 2**20}
"""Memory of one chunk of float32 logits by kind of device: on a CPU, what its caches hold."""
OTHER_CHUNK_BYTES = 256 * 2**20
FEWEST = 128
"""Positions of a chunk at least: products of fewer rows are slow."""


def chunk_of(vocabulary: int, device: torch.device) -> int:
    """Return how many positions make a chunk."""
    return max(FEWEST, CHUNK_BYTES.get(device.type, OTHER_CHUNK_BYTES) // (4 * vocabulary))


def summed_loss(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Return the sum of the negative log-likelihoods in nats, float32 (float64 of a model in float64).

    Args:
        hidden: What the head reads, (P, D).
        weight: The head's weight, (V, D). Both are taken to autocast's number format where it is on.
        targets: The right tokens, int64 (P,).
        smoothing: Share of each target's probability that is spread over the whole vocabulary (arXiv 1512.00567).
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    with torch.autocast(device, enabled=False):
        return _SummedLoss.apply(hidden, weight, targets, smoothing)  # pyright: ignore[reportReturnType]


def token_losses(
    hidden: torch.Tensor, head: torch.nn.Linear, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (losses float32, predictions int64), each (P,), without a gradient."""
    losses, predictions = [], []
    size = chunk_of(head.out_features, hidden.device)
    for states, right in zip(hidden.split(size), targets.split(size), strict=True):
        logits = head(states).float()
        losses.append(F.cross_entropy(logits, right, reduction="none"))
        predictions.append(logits.argmax(-1))
    return torch.cat(losses), torch.cat(predictions)


class _SummedLoss(torch.autograd.Function):
    """Loss and gradient of a chunk from one computation of its logits."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, smoothing: float
    ) -> torch.Tensor:
        needs_hidden, needs_weight, *_ = ctx.needs_input_grad
        exact = torch.promote_types(weight.dtype, torch.float32)
        total = torch.zeros((), dtype=exact, device=hidden.device)
        hidden_grad = torch.empty_like(hidden) if needs_hidden else None
        weight_grad = torch.zeros_like(weight, dtype=exact) if needs_weight else None
        size = chunk_of(len(weight), hidden.device)
        for start in range(0, len(hidden), size):
            states = hidden[start : start + size]
            logits = torch.mm(states, weight.t()).to(exact)
            loss, logits_grad = _chunk(logits, targets[start : start + size, None], smoothing)
            total += loss
            logits_grad = logits_grad.to(hidden.dtype)
            if hidden_grad is not None:
                torch.mm(logits_grad, weight, out=hidden_grad[start : start + size])
            if weight_grad is not None and weight_grad.dtype == logits_grad.dtype:
                weight_grad.addmm_(logits_grad.t(), states)
            elif weight_grad is not None:
                weight_grad += torch.mm(logits_grad.t(), states)
        ctx.gradients, ctx.weight_dtype = (hidden_grad, weight_grad), weight.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - the base declares a name that it does not use
        ctx: Any, *grads: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        (scale,), (hidden, weight) = grads, ctx.gradients
        ctx.gradients = None  # scaled in place, so used once
        scaled = None if hidden is None else hidden.mul_(scale)
        return scaled, None if weight is None else weight.mul_(scale).to(ctx.weight_dtype), None, None


def _chunk(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed loss of a chunk, and its gradient by the logits in their memory.

    Args:
        logits: (C, V); overwritten.
        targets: The right tokens, int64 (C, 1).
        smoothing: See `summed_loss`.
    """
    right = logits.gather(1, targets)
    expected = torch.lerp(right, logits.mean(1, keepdim=True), smoothing) if smoothing else right
    highest = logits.amax(1, keepdim=True)
    exponentials = logits.sub_(highest).exp_()
    total = exponentials.sum(1, keepdim=True)
    loss = (total.log() + highest - expected).sum()
    grad = exponentials.div_(total)
    if smoothing:
        grad.sub_(smoothing / grad.shape[1])
    return loss, grad.scatter_add_(1, targets, torch.full_like(right, smoothing - 1.0))

"""A plain torch trainer of one process: one row at a time, no padding, no accumulation. The oracle of the loop's tests.

It shares no code with the product: the loss of a step is the sum over the rows of the step, divided by their tokens.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

IGNORE = -100


def row_loss(model, ids: list[int], labels: list[int], smoothing: float = 0.0) -> tuple[torch.Tensor, int]:
    """Return (sum of negative log-likelihoods, tokens) of one row, alone."""
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
    targets = torch.tensor(labels[1:])
    loss = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing)
    return loss, int((targets != IGNORE).sum())


def batches_of(rows: list, size: int) -> list[list]:
    """Cut rows into optimizer steps; the last one may be smaller."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def train(
    model,
    epochs: list[list],
    *,
    rows_per_step: int,
    optimizer,
    schedule=None,
    max_norm: float | None = None,
    smoothing=0.0,
):
    """Train on each epoch's rows in order; return the mean loss of each step."""
    losses = []
    for rows in epochs:
        for step in batches_of(rows, rows_per_step):
            tokens = sum(sum(label != IGNORE for label in row["labels"][1:]) for row in step)
            total = 0.0
            for row in step:
                loss, _ = row_loss(model, row["input_ids"], row["labels"], smoothing)
                (loss / tokens).backward()
                total += loss.item()
            if max_norm is not None:
                gradients = [p.grad for p in model.parameters() if p.grad is not None]
                norm = math.sqrt(sum(float(g.double().pow(2).sum()) for g in gradients))
                for gradient in gradients:
                    gradient.mul_(min(1.0, max_norm / (norm + 1e-6)))
            optimizer.step()
            if schedule is not None:
                schedule.step()
            optimizer.zero_grad()
            losses.append(total / tokens)
    return losses


def evaluate(model, rows: list) -> float:
    """Return the sum of all token losses over their number."""
    total, tokens = 0.0, 0
    with torch.no_grad():
        for row in rows:
            loss, count = row_loss(model, row["input_ids"], row["labels"])
            total, tokens = total + float(loss), tokens + count
    return total / tokens

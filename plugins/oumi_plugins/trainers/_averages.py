"""Optimizers that train other weights than the model is meant to have: they keep an average of them.

Such an optimizer (schedule-free ones) has `eval()`, which puts the average into the model, and `train()`, which goes
back to what is trained. Whatever evaluates or saves the model must see the average.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any


@contextmanager
def averaged(optimizer: Any) -> Generator[None]:
    """Have the averaged weights in the model, if the optimizer has such, and afterwards the trained ones again."""
    use_averages(optimizer)
    try:
        yield
    finally:
        use_trained(optimizer)


def use_averages(optimizer: Any) -> None:
    """Put the averaged weights into the model, if the optimizer has such."""
    if callable(getattr(optimizer, "eval", None)):
        optimizer.eval()


def use_trained(optimizer: Any) -> None:
    """Put the weights that are trained into the model; steps need them there."""
    if callable(getattr(optimizer, "train", None)):
        optimizer.train()

"""What a run writes at a time, and what it holds in memory to write it."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import torch
from torch import nn

from oumi_kernel.adapters import base_of
from oumi_kernel.config import PeftSaveMode
from oumi_kernel.contracts import Session
from oumi_kernel.merging import base_alone

WIDE = 4
"""Bytes of a number of the base while an adapter is merged into it."""


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """Weights that are written, in bytes.

    Attributes:
        checkpoint: Of a checkpoint: the model, or the adapter alone whatever the mode.
        model: Of the final model, in its mode.
        base: What the base of the final model takes in main memory, which is read again; 0 where it is not.
    """

    checkpoint: int
    model: int
    base: int = 0


def written(session: Session, weights: int) -> Written:
    """Return what a run writes.

    Args:
        session: The session of a rehearsal.
        weights: Bytes of the model that is trained.
    """
    run, kernel = session.run, session.kernel
    saved = next((r.facts["saved_bytes"] for r in kernel.reports(run).values() if "saved_bytes" in r.facts), None)
    if saved is None:
        return Written(checkpoint=weights, model=weights)
    mode = run.config.peft.peft_save_mode
    if mode is PeftSaveMode.ADAPTER_ONLY:
        return Written(checkpoint=saved, model=saved)
    loader, alone = base_alone(kernel, run, base_of(run), run.config.model.model_revision)
    base: nn.Module = loader.build_skeleton(session.tokenizer, {}, alone)
    size = bytes_of(base.parameters())
    if mode is PeftSaveMode.ADAPTER_AND_BASE_MODEL:
        return Written(checkpoint=saved, model=saved + size, base=size)
    wide = sum(WIDE * parameter.numel() for parameter in base.parameters())
    return Written(checkpoint=saved, model=size, base=max(size, wide))


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

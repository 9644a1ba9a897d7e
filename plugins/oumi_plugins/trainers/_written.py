"""What a run writes at a time, and what it holds in memory to write it."""

from __future__ import annotations

import re
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


ONE_FILE = 5 * 10**9
"""Bytes of weights in a file, where there are several: what most models are divided into."""


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


def written(session: Session, skeleton: nn.Module, weights: int) -> Written:
    """Return what a run writes.

    Args:
        session: The session of a rehearsal.
        skeleton: The model that is trained, without weights.
        weights: Its bytes.
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
    return Written(checkpoint=saved, model=size, base=_merging(skeleton, base))


def _merging(adapted: nn.Module, base: nn.Module) -> int:
    """Return what a base takes while an adapter is merged into it: files that are mapped, and copies of weights.

    Weights of fewer bits are all copied into wider ones, and a file is let go of when the last of its weights was; of
    others those that the adapter changes are copied, and the files stay.
    """
    changed = {
        re.sub(r"\.base_layer\b|^base_model\.model\.", "", name)
        for name, _ in adapted.named_parameters()
        if ".base_layer." in name
    }
    narrow = [parameter for parameter in base.parameters() if parameter.itemsize < WIDE]
    others = [
        parameter for name, parameter in base.named_parameters() if name in changed and parameter.itemsize >= WIDE
    ]
    files = bytes_of(base.parameters())
    return (min(files, ONE_FILE) if narrow else files) + sum(WIDE * one.numel() for one in narrow) + bytes_of(others)


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

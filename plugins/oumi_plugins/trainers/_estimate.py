"""What one process will need: memory at its peak, and disk. An estimate, from the model without weights.

With `P` the model's parameters (tied ones once) and `T` those that train:

- weights: the bytes of `P` and of the buffers, as they are.
- gradients: the bytes of `T`, in the number format of the weights; of the largest of `T` where each is freed when its
  weight was stepped.
- optimizer: it takes a step on tensors without storage (see `_optimizer_state`); nothing is known about it by name.
- activations and logits: the largest micro-batch of the first epoch goes forward and backward through the model and the
  loss of the run on tensors without storage (see `_simulation`), and what is alive is counted.

At the peak, weights and optimizer state are there, and the most that the micro-batch had at one time, gradients among
it. On a CPU, where the strategy has glibc keep what is freed, what is kept does not fit all that comes: shares of both
come on top, as they were measured (see `_needs`). A checkpoint is written from a copy of the weights or of the
optimizer's state, when there are no activations, and from memory that was kept.

A strategy of several processes says how it divides that (`Divides`): each process has its share of weights, gradients
and optimizer state, whole units of weights for a time, and the activations of its own micro-batch.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from oumi_kernel.contracts import Session
from oumi_kernel.rehearsal import Amount, Estimate
from oumi_plugins.trainers._fitting import advice
from oumi_plugins.trainers._forward import Forward
from oumi_plugins.trainers._free import free_memory
from oumi_plugins.trainers._needs import Needs, largest
from oumi_plugins.trainers._packed import elements
from oumi_plugins.trainers._simulation import Usage
from oumi_plugins.trainers._written import Written
from oumi_plugins.trainers.memory import LESS
from oumi_plugins.trainers.sft import SftParams


def estimate(
    session: Session, skeleton: nn.Module, params: SftParams, asked: Forward, notes: Sequence[str]
) -> Estimate:
    """Return what one process needs.

    Args:
        session: The session of a rehearsal; its model is the miniature.
        skeleton: The model on the device `meta`.
        params: Checkpoints that are kept, and what saves memory.
        asked: How a model of this architecture computes losses.
        notes: What else is known about the first step.
    """
    training = session.run.config.training
    needs = Needs(session, skeleton, params, asked)
    usage = needs.usage(training)
    kept, peak = needs.kept(usage, training), needs.peak(usage, training)
    examples = largest(session.examples["train"], training, session.run.world)
    passes = _passes(usage, sum(len(one["input_ids"]) for one in examples))
    device, free = free_memory()
    if free is not None and device == "cpu":  # which the processes of a machine share
        free //= session.run.world.size // session.run.world.nodes
    if free is not None and peak > free:
        held = {amount.what: amount.bytes or 0 for amount in needs.device if amount.what in LESS}
        held["activations and logits"] = sum(amount.bytes or 0 for amount in passes)
        notes = [*notes, *advice(held, training, needs.peak_with, free)]
    packed, parameters = elements(skeleton), list(skeleton.parameters())
    return Estimate(
        processes=session.run.world.size,
        parameters=sum(packed.get(id(parameter), parameter.numel()) for parameter in parameters),
        trained=sum(parameter.numel() for parameter in needs.trained),
        device=device,
        memory=(
            *needs.device,
            *passes,
            *([Amount(what="allocator", bytes=kept, how="freed memory that is kept for speed")] if kept else []),
        ),
        peak_bytes=peak,
        free_bytes=free,
        host=needs.host,
        traffic=needs.division.traffic,
        disk=tuple(_disk(session, needs.files, needs.state.saved_bytes, params.save_total_limit)),
        free_disk_bytes=shutil.disk_usage(_nearest(session.run.output_dir)).free,
        notes=tuple(notes),
    )


def _passes(usage: Usage | str, tokens: int) -> tuple[Amount, Amount]:
    if isinstance(usage, str):
        unknown = f"not known: {usage}"
        return Amount(what="activations", bytes=None, how=unknown), Amount(what="logits", bytes=None, how=unknown)
    return (
        Amount(what="activations", bytes=usage.activations, how=f"{tokens:,} tokens of the largest micro-batch"),
        Amount(what="logits", bytes=usage.logits, how="with the gradient of the head, which is made with the loss"),
    )


def _disk(session: Session, files: Written, state: int, keep: int | None) -> list[Amount]:
    """Return what the output folder will hold at most; a checkpoint is complete before an older one is deleted."""
    training, plan = session.run.config.training, session.plan
    by_steps = plan.total_steps // training.save_steps if training.save_steps else 0
    by_epochs = plan.total_steps // plan.steps_per_epoch if training.save_epoch else 0
    written = by_steps + by_epochs
    at_once = written if keep is None else min(written, keep + 1)
    one = files.checkpoint + state
    amounts = [Amount(what="checkpoints", bytes=at_once * one, how=f"{at_once:,} at once of {one:,} bytes each")]
    if training.save_final_model:
        amounts.append(Amount(what="final model", bytes=files.model, how="safetensors"))
    return amounts


def _nearest(folder: Path) -> Path:
    """Return the folder itself, or the nearest above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())

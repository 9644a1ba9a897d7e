"""What one process will need: memory at its peak, and disk. An estimate, from the model without weights.

With `P` the model's parameters (tied ones once) and `T` those that train:

- weights: the bytes of `P` and of the buffers, as they are. Where a strategy divides weights, gradients and optimizer
  state between processes it says what one of them holds of each.
- gradients: the bytes of `T`, in the number format of the weights; of the largest of `T` where each is freed when its
  weight was stepped.
- optimizer: it takes a step on tensors without storage (see `_optimizer_state`); nothing is known about it by name.
- activations and logits: the largest micro-batch of the first epoch goes forward and backward through the model and the
  loss of the run on tensors without storage (see `_simulation`), and what is alive is counted.

At the peak, weights and optimizer state are there, and the most that the micro-batch had at one time, gradients among
it. On a CPU, where the strategy has glibc keep what is freed, what is kept does not fit all that comes: `KEPT` of all
but the weights comes on top, as it was measured. A checkpoint is written from a copy of the weights or of the
optimizer's state, when there are no activations, and from memory that was kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from oumi_kernel.config import TrainingParams
from oumi_kernel.contracts import Session, World
from oumi_kernel.rehearsal import Amount, DividesModel, Division, Estimate
from oumi_plugins.trainers._examples import token_counts
from oumi_plugins.trainers._fitting import advice
from oumi_plugins.trainers._forward import Forward
from oumi_plugins.trainers._free import free_memory
from oumi_plugins.trainers._optimizer_state import state_of
from oumi_plugins.trainers._order import OrderedBatches
from oumi_plugins.trainers._packed import constants_bytes, elements
from oumi_plugins.trainers._simulation import Usage, simulate
from oumi_plugins.trainers._written import Written, bytes_of, written
from oumi_plugins.trainers.sft import SftParams

KEPT = 0.25
"""Share of what comes and goes that glibc holds beside it when it keeps freed memory: 0.2 to 0.27 was measured."""


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
    needs = _Needs(session, skeleton, params, asked)
    usage = needs.usage(training)
    kept, peak = needs.kept(usage, training), needs.peak(usage, training)
    examples = _largest(session.examples["train"], training, session.run.world)
    gradients = _gradients(needs.trained, params, needs.held)
    state = None if needs.state.known is None else round(needs.state.known * needs.held.share)
    parts = f", 1/{1 / needs.held.share:.0f} of it here, and what is gathered" if needs.held.share < 1 else ""
    passes = _passes(usage, sum(len(one["input_ids"]) for one in examples))
    device, free = free_memory()
    if free is not None and peak > free:
        held = {"weights": needs.weights, "gradients": gradients.bytes or 0, "optimizer state": state or 0}
        held["activations and logits"] = sum(amount.bytes or 0 for amount in passes)
        notes = [*notes, *advice(held, training, needs.peak_with, free)]
    packed, parameters = elements(skeleton), list(skeleton.parameters())
    return Estimate(
        parameters=sum(packed.get(id(parameter), parameter.numel()) for parameter in parameters),
        trained=sum(parameter.numel() for parameter in needs.trained),
        device=device,
        memory=(
            Amount(what="weights", bytes=needs.weights, how=f"every parameter once{parts}"),
            gradients,
            Amount(what="optimizer state", bytes=state, how="as a step without numbers leaves it"),
            *passes,
            *([Amount(what="allocator", bytes=kept, how="freed memory that is kept for speed")] if kept else []),
        ),
        peak_bytes=peak,
        free_bytes=free,
        disk=tuple(_disk(session, needs.files, needs.state.saved_bytes, params.save_total_limit)),
        free_disk_bytes=shutil.disk_usage(_nearest(session.run.output_dir)).free,
        notes=tuple(notes),
    )


class _Needs:
    """What a run needs whatever its settings, and what it needs with some of them."""

    def __init__(self, session: Session, skeleton: nn.Module, params: SftParams, asked: Forward) -> None:
        self._session, self._skeleton, self._params, self._asked = session, skeleton, params, asked
        parameters = list(skeleton.parameters())
        self.trained = [parameter for parameter in parameters if parameter.requires_grad]
        self.state = state_of(session, skeleton)
        beside = bytes_of(skeleton.buffers()) + constants_bytes(skeleton)
        whole = Division(weights=bytes_of(parameters), gradients=bytes_of(self.trained))
        divides = isinstance(session.strategy, DividesModel)
        self.held = session.strategy.division(skeleton) if divides else whole
        self._spared = whole.gradients - self.held.gradients
        self.weights = self.held.weights + beside
        self.files = written(session, whole.weights + beside)
        self._keeps_freed: bool = getattr(session.strategy, "keeps_freed_memory", False)

    def usage(self, settings: TrainingParams) -> Usage | str:
        """Return what the largest micro-batch needs, or why that is not known."""
        session = self._session
        batch = session.collators["train"](_largest(session.examples["train"], settings, session.run.world))
        return simulate(self._skeleton, batch, settings, self._params, self._asked)

    def kept(self, usage: Usage | str, settings: TrainingParams) -> int:
        """Return the bytes that are held beside what a step needs."""
        keeps = self._keeps_freed and not settings.enable_gradient_checkpointing
        return round(KEPT * self._stepping(usage, settings)) if keeps else 0

    def peak(self, usage: Usage | str, settings: TrainingParams) -> int:
        """Return the most at one time: in a step, or while a checkpoint is written."""
        saved = self.state.saved_bytes
        saving = _saving(settings, self.files, saved) + round(saved * self.held.share)
        return self.weights + max(self._stepping(usage, settings) + self.kept(usage, settings), saving)

    def peak_with(self, settings: TrainingParams) -> int | None:
        """Return the peak with other settings; None where it is not known."""
        usage = self.usage(settings)
        return self.peak(usage, settings) if isinstance(usage, Usage) else None

    def _stepping(self, usage: Usage | str, settings: TrainingParams) -> int:
        most = self.held.gradients
        if isinstance(usage, Usage):
            forward = usage.forward - (self._spared if settings.gradient_accumulation_steps > 1 else 0)
            most = max(forward, usage.backward - self._spared)
        return round(self.state.bytes * self.held.share) + most


def _gradients(trained: Sequence[torch.Tensor], params: SftParams, held: Division) -> Amount:
    if params.optimizer_in_backward:
        return Amount(what="gradients", bytes=max(bytes_of([one]) for one in trained), how="one parameter at a time")
    return Amount(what="gradients", bytes=held.gradients, how="parameters that train")


def _passes(usage: Usage | str, tokens: int) -> tuple[Amount, Amount]:
    if isinstance(usage, str):
        unknown = f"not known: {usage}"
        return Amount(what="activations", bytes=None, how=unknown), Amount(what="logits", bytes=None, how=unknown)
    return (
        Amount(what="activations", bytes=usage.activations, how=f"{tokens:,} tokens of the largest micro-batch"),
        Amount(what="logits", bytes=usage.logits, how="with the gradient of the head, which is made with the loss"),
    )


def _largest(examples: Sequence[Any], training: TrainingParams, world: World) -> list[Any]:
    """Return the examples of the micro-batch of the first epoch that has most tokens."""
    lengths = token_counts(examples)
    batches = OrderedBatches(lengths, training.per_device_train_batch_size, seed=training.data_seed, world=world)
    largest = max((batch for batch in batches if batch), key=lambda batch: int(lengths[batch].sum()))
    return [examples[index] for index in largest]


def _saving(training: TrainingParams, files: Written, state: int) -> int:
    """Return the bytes of the copy from which a checkpoint or the model is written, and of a base read again here."""
    checkpoints = bool(training.save_steps or training.save_epoch)
    base = 0 if torch.cuda.is_available() else files.base
    return max(
        max(files.checkpoint, state) if checkpoints else 0,
        max(files.checkpoint, base) if training.save_final_model else 0,
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

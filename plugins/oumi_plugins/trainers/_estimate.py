"""What one process will need: memory at its peak, and disk. An estimate, from the model without weights.

With `P` the model's parameters (tied ones once) and `T` those that train:

- weights: the bytes of `P` and of the buffers, as they are.
- gradients: the bytes of `T`, in the number format of the weights.
- optimizer: the optimizer takes a step on the miniature, and each tensor of its state is scaled by the dimensions of
  the parameter that it belongs to (see `_state`); nothing is known about optimizers by name.
- activations: what autograd keeps for the backward pass of one row of `n` tokens, counted by running the model on
  tensors without storage (torch's `FakeTensorMode`) at three lengths; through these goes `a + b n + c n^2`. A
  micro-batch keeps `a + b sum(n) + c sum(n^2)` over its rows, which are not padded; the largest micro-batch of the
  first epoch counts. With gradient checkpointing: the layers' inputs, and one layer in full.
  Where the configuration names no attention, rows that are short enough have their scores written out on a CPU.
- logits: one chunk in float32 (see `_cross_entropy`), and the gradient of the head, which is made with the loss.

At the peak, weights and optimizer state are there, and the larger of activations with logits (at the end of a forward
pass) and gradients (at the end of a backward pass, with a layer that is computed again); with gradient accumulation
the gradients of earlier micro-batches are there as well. A checkpoint is written from a copy of the weights or of the
optimizer's state, when there are no activations.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from oumi_kernel.config import PeftSaveMode, TrainingParams
from oumi_kernel.contracts import Session
from oumi_kernel.rehearsal import Amount, Estimate
from oumi_plugins.trainers._activations import Activations, activations_of
from oumi_plugins.trainers._attention import LONGEST_EXPLICIT
from oumi_plugins.trainers._cross_entropy import chunk_of
from oumi_plugins.trainers._free import free_memory
from oumi_plugins.trainers._packed import constants_bytes, elements
from oumi_plugins.trainers._preview import micro_batches


def estimate(session: Session, skeleton: nn.Module, keep: int | None, notes: Sequence[str]) -> Estimate:
    """Return what one process needs.

    Args:
        session: The session of a rehearsal; its model is the miniature.
        skeleton: The model on the device `meta`.
        keep: Checkpoints that are kept; None: all.
        notes: What else is known about the first step.
    """
    training = session.run.config.training
    parameters = list(skeleton.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    weights = _bytes([*parameters, *skeleton.buffers()]) + constants_bytes(skeleton)
    gradients, packed = _bytes(trained), elements(skeleton)
    written = gradients if _saves_adapter_alone(session, skeleton) else weights
    state = _optimizer_bytes(session, parameters)
    lengths = _lengths(session.examples["train"])
    tokens, squares = _largest(lengths, training)
    kept = activations_of(skeleton, training, attention=_attention(session, int(lengths.max())))
    activations = kept.of(tokens, squares) if isinstance(kept, Activations) else None
    chunk, logits = _logits(skeleton, tokens)
    accumulates = training.gradient_accumulation_steps > 1
    again = kept.again.of(tokens, squares) if isinstance(kept, Activations) and kept.again else 0
    forward, backward = (activations or 0) + logits, gradients + again
    working = gradients + forward if accumulates else max(forward, backward)
    peak = weights + (state or 0) + max(working, _saving(training, weights, state or 0))
    device, free = free_memory()
    folder = _nearest(session.run.output_dir)
    return Estimate(
        parameters=sum(packed.get(id(parameter), parameter.numel()) for parameter in parameters),
        trained=sum(parameter.numel() for parameter in trained),
        device=device,
        memory=(
            Amount(what="weights", bytes=weights, how="every parameter once"),
            Amount(what="gradients", bytes=gradients, how="parameters that train"),
            Amount(what="optimizer state", bytes=state, how="as a step on a small model left it"),
            Amount(what="activations", bytes=activations, how=_how(kept, tokens)),
            Amount(what="logits", bytes=logits, how=f"{chunk:,} tokens at a time, and the head's gradient"),
        ),
        peak_bytes=peak,
        free_bytes=free,
        disk=tuple(_disk(session, written, state or 0, keep)),
        free_disk_bytes=shutil.disk_usage(folder).free,
        notes=tuple(notes),
    )


def _optimizer_bytes(session: Session, parameters: Sequence[torch.Tensor]) -> int | None:
    """Return the bytes of the optimizer's state for the real parameters; None where it cannot be tried."""
    small, optimizer = list(session.prepared.model.parameters()), session.prepared.optimizer
    if len(small) != len(parameters):  # a strategy has put them together
        return None
    for parameter in small:
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    try:
        optimizer.step()
    except (RuntimeError, TypeError, ValueError):  # one that needs more than gradients
        return None
    finally:
        optimizer.zero_grad(set_to_none=True)
    return sum(_state(optimizer.state.get(one, {}), one, real) for one, real in zip(small, parameters, strict=True))


def _state(state: Mapping[str, Any], small: torch.Tensor, real: torch.Tensor) -> int:
    """Return the bytes of one parameter's state, from the state that a small parameter of as many dimensions has.

    A side of a state's tensor that is a side of the small parameter, or all of its elements, is so for the real one
    too; any other side is what it is for every parameter.
    """
    sides = dict(zip(small.shape, real.shape, strict=True)) | {small.numel(): real.numel()}
    tensors = [value for value in state.values() if isinstance(value, torch.Tensor)]
    return sum(math.prod(sides.get(side, side) for side in t.shape) * t.element_size() for t in tensors)


def _largest(lengths: Any, training: TrainingParams) -> tuple[int, int]:
    """Return tokens, and sum of squared lengths, of the largest micro-batch of the first epoch."""
    batches = micro_batches(lengths, training)
    return max((int(batch.sum()), int((batch**2).sum())) for batch in batches)


def _lengths(examples: Sequence[Any]) -> Any:
    known = getattr(examples, "lengths", None)
    return np.array([len(example["input_ids"]) for example in examples] if known is None else known, np.int64)


def _saving(training: TrainingParams, weights: int, state: int) -> int:
    """Return the bytes of the copy from which a checkpoint or the model is written."""
    checkpoints = bool(training.save_steps or training.save_epoch)
    return max(weights if checkpoints or training.save_final_model else 0, state if checkpoints else 0)


def _saves_adapter_alone(session: Session, model: nn.Module) -> bool:
    """Return whether only what trains is written."""
    return hasattr(model, "peft_config") and session.run.config.peft.peft_save_mode is PeftSaveMode.ADAPTER_ONLY


def _disk(session: Session, weights: int, state: int, keep: int | None) -> list[Amount]:
    """Return what the output folder will hold at most; a checkpoint is complete before an older one is deleted."""
    training, plan = session.run.config.training, session.plan
    by_steps = plan.total_steps // training.save_steps if training.save_steps else 0
    by_epochs = plan.total_steps // plan.steps_per_epoch if training.save_epoch else 0
    written = by_steps + by_epochs
    at_once = written if keep is None else min(written, keep + 1)
    one = weights + state
    amounts = [Amount(what="checkpoints", bytes=at_once * one, how=f"{at_once:,} at once of {one:,} bytes each")]
    if training.save_final_model:
        amounts.append(Amount(what="final model", bytes=weights, how="safetensors"))
    return amounts


def _how(kept: Activations | str, tokens: int) -> str:
    if isinstance(kept, str):
        return f"not known: {kept}"
    return f"{tokens:,} tokens of the largest micro-batch" + (", recomputed by layer" if kept.again else "")


def _logits(model: Any, tokens: int) -> tuple[int, int]:
    """Return (positions, bytes) of a chunk of logits, the bytes with the gradient of a head that trains."""
    weight = model.get_output_embeddings().weight
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    positions = min(tokens, chunk_of(len(weight), device))
    return positions, 4 * (positions * len(weight) + (weight.numel() if weight.requires_grad else 0))


def _attention(session: Session, longest: int) -> str | None:
    """Return the implementation of transformers that keeps what ours does; None where the configuration names one."""
    if session.run.config.model.attn_implementation is not None:
        return None
    return "eager" if longest <= LONGEST_EXPLICIT and not torch.cuda.is_available() else "sdpa"


def _bytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _nearest(folder: Path) -> Path:
    """Return the folder itself, or the nearest above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())

"""What autograd keeps for a backward pass, counted without computing anything: tensors have shapes and no storage."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import msgspec
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, UnsupportedFakeTensorException
from torch.autograd.graph import saved_tensors_hooks
from transformers.modeling_layers import GradientCheckpointingLayer

from oumi_kernel.config import MixedPrecisionDtype, TrainingParams
from oumi_plugins.trainers._miniature import filled
from oumi_plugins.trainers._packed import unpacked

MEASURED = (32, 64, 128)
"""Lengths of rows, in tokens, at which is counted."""
DTYPES = {MixedPrecisionDtype.BF16: torch.bfloat16, MixedPrecisionDtype.FP16: torch.float16}


class Activations(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a micro-batch: `fixed + per_token sum(n) + per_pair sum(n^2)` bytes over rows of `n` tokens.

    Attributes:
        fixed: Bytes that do not depend on the rows, such as copies of weights in a smaller number format.
        per_token: Bytes of a token.
        per_pair: Bytes of a pair of tokens of one row, where attention keeps its scores.
        again: Where all but the layers' inputs is computed again in the backward pass: what one layer then keeps.
    """

    fixed: float
    per_token: float
    per_pair: float
    again: Activations | None = None

    def of(self, tokens: int, squares: int) -> int:
        """Return the bytes of a micro-batch, from its tokens and the sum of its rows' squared lengths."""
        return max(0, round(self.fixed + self.per_token * tokens + self.per_pair * squares))


def activations_of(skeleton: Any, training: TrainingParams, *, attention: str | None) -> Activations | str:
    """Return what a model keeps; or why that cannot be counted.

    Args:
        skeleton: The model on the device `meta`.
        training: Number format, and whether activations are computed again.
        attention: The implementation of attention to count with; None: the model's.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = DTYPES.get(training.mixed_precision_dtype)
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def empty(tensor: torch.Tensor) -> torch.Tensor:
        with mode:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)

    try:
        model: Any = filled(unpacked(skeleton), empty).train()
        if attention is not None:
            model.set_attn_implementation(attention)
        with mode:
            counts = [
                _kept(model, length, torch.autocast(device, dtype) if dtype else nullcontext(), device)
                for length in MEASURED
            ]
    except (RuntimeError, TypeError, ValueError, AttributeError, UnsupportedFakeTensorException) as error:
        return " ".join(str(error).split())[:200]
    found = _through(counts)
    return _recomputed(found, skeleton) if training.enable_gradient_checkpointing else found


def _kept(model: nn.Module, tokens: int, context: AbstractContextManager[Any], device: str) -> int:
    """Return the bytes that one row keeps; logits are left to the loss."""
    own = {id(tensor.untyped_storage()) for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        # transformers builds a mask for all heads here, as it cannot see that the row is alone; a run needs none
        is_mask = not tensor.requires_grad and tensor.numel() == tokens**2
        if id(storage) not in own and not is_mask:
            kept[id(storage)] = storage  # that it is held keeps its number from being used again
        return tensor

    ids = torch.zeros((1, tokens), dtype=torch.int64, device=device)
    with saved_tensors_hooks(keep, lambda tensor: tensor), context:
        model(input_ids=ids, use_cache=False, logits_to_keep=1)
    return sum(storage.nbytes() for storage in kept.values())


def _through(counts: list[int]) -> Activations:
    """Return the parabola through the counts at `MEASURED`."""
    (x0, x1, x2), (y0, y1, y2) = MEASURED, counts
    slope, next_slope = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    square = (next_slope - slope) / (x2 - x0)
    linear = slope - square * (x0 + x1)
    return Activations(fixed=y0 - linear * x0 - square * x0**2, per_token=linear, per_pair=square)


def _recomputed(found: Activations, model: Any) -> Activations:
    layers = sum(isinstance(module, GradientCheckpointingLayer) for module in model.modules())
    if not layers:
        return found
    width = model.get_input_embeddings().weight
    one = Activations(fixed=0.0, per_token=found.per_token / layers, per_pair=found.per_pair / layers)
    inputs = layers * width.shape[-1] * width.element_size()
    # autocast keeps its copies of weights to the end of the forward pass
    return Activations(fixed=found.fixed, per_token=one.per_token + inputs, per_pair=one.per_pair, again=one)

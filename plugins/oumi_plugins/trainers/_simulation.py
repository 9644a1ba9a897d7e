"""One micro-batch, forward and backward, on tensors that have shapes and no storage: what a device would have to hold.

The model, its attention, the loss in chunks, what is computed again and what is stepped in the backward pass are those
of the run; only the tensors are torch's `FakeTensor`. So there is no formula to keep up with any of them.

Of layers that are alike only some compute, and count for the others (see `_alike`).

Where gradients are divided between processes, each whole one is let go as soon as it is there, and a process's share
of it is counted from then on.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import msgspec
import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from oumi_kernel.config import TrainingParams
from oumi_kernel.rehearsal import Division
from oumi_plugins.strategies.precision import mixed_precision
from oumi_plugins.trainers import _attention
from oumi_plugins.trainers._alike import compute_some
from oumi_plugins.trainers._forward import REFUSALS, Forward
from oumi_plugins.trainers._miniature import filled
from oumi_plugins.trainers._packed import unpacked
from oumi_plugins.trainers._recomputing import recompute_activations
from oumi_plugins.trainers._shares import divides_gradients, gradient_shares, number_format
from oumi_plugins.trainers.sft import SftParams

UNKNOWN = (
    *REFUSALS,
    AssertionError,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
"""What is raised where a shape depends on numbers, or an operation needs storage."""


ALONE = "oumi_alone"
"""Torch's attention of a row that is alone, which needs no mask: transformers cannot see that it is without numbers."""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a micro-batch needs beside weights and optimizer state, in bytes.

    Attributes:
        activations: What the layers keep for the backward pass, when the head begins.
        logits: What the head takes beside that.
        forward: The most at one time up to the loss, gradients of earlier micro-batches among it.
        backward: The most at one time in the backward pass, gradients among it.
    """

    activations: int
    logits: int
    forward: int
    backward: int


class Live(TorchDispatchMode):
    """Counts the bytes of the storages that are alive on a device, from when it begins.

    Args:
        device: The kind of device.
        known: Tensors that are not counted.
    """

    def __init__(self, device: str, known: list[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.most = self._highest = 0
        self._device = device
        self._known = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do an operation, and count what it returns that was not there."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == self._device:
                self._note(tensor.untyped_storage())
        return result

    def hold(self, size: int) -> None:
        """Count bytes of which there is no tensor here."""
        self.now += size
        self.most = max(self.most, self.now)
        self._highest = max(self._highest, self.now)

    def highest(self) -> int:
        """Return the most at one time since this was asked before, whoever asked for the peak."""
        highest, self._highest = self._highest, self.now
        return highest

    def peak(self) -> int:
        """Return the most at one time since this was asked before."""
        most, self.most = self.most, self.now
        return most

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = StorageWeakRef(storage).cdata
        if key in self._known:
            return
        self._known.add(key)
        self.hold(storage.nbytes())
        weakref.finalize(storage, self._free, key, storage.nbytes()).atexit = False

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def simulate(
    skeleton: nn.Module,
    batch: Mapping[str, Any],
    training: TrainingParams,
    params: SftParams,
    asked: Forward,
    division: Division,
) -> Usage | str:
    """Return what a micro-batch needs; or why that cannot be found out.

    Args:
        skeleton: The model on the device `meta`.
        batch: The micro-batch as its collator returns it.
        training: Number format, accumulation, and whether activations are computed again.
        params: What else saves memory.
        asked: How a model of this architecture computes losses.
        division: What the strategy does with its gradients, and the number format in which it computes.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    computed = number_format(division)

    def empty(tensor: torch.Tensor) -> torch.Tensor:
        converted = isinstance(tensor, nn.Parameter) and tensor.is_floating_point()
        with mode:
            return torch.empty(tensor.shape, dtype=(converted and computed) or tensor.dtype, device=device)

    reason = ""
    for some in (True, False):  # all layers compute where some cannot stand for others
        _attention.forget_masks()
        try:
            plain = unpacked(skeleton)
            model: Any = filled(plain, empty).train()
            for module in model.modules():
                vars(module).pop("forward", None)  # a kernel in its place, which does not run without storage
            _switch_on(model, training, params)
            forward = asked.like_this(model)
            placed = {
                name: empty(value) if isinstance(value, torch.Tensor) else value
                for name, value in _laid(forward, model, batch).items()
            }
            inputs = [value for value in placed.values() if isinstance(value, torch.Tensor)]
            live = Live(device, [*model.parameters(), *model.buffers(), *inputs])
            shares = gradient_shares((one for one in plain.parameters() if one.requires_grad), division)
            computing = nullcontext() if computed else mixed_precision(training, device)
            with mode, live:
                if some:
                    compute_some(model, live)
                _begin_gradients(model, shares if divides_gradients(division) else None, live, training)
                return _counted(model, forward, placed, live, computing)
        except UNKNOWN as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
        finally:
            _attention.forget_masks()
    return reason


def _laid(forward: Forward, model: Any, batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a collated batch as a model reads it, and let one whose rows are alone read them without a mask."""
    laid = forward.supervise(batch)[0]
    if len(laid.get("lengths", ())) == 1 and model.config._attn_implementation == "sdpa":
        ALL_ATTENTION_FUNCTIONS.register(ALONE, _alone)
        ALL_MASK_ATTENTION_FUNCTIONS.register(ALONE, lambda *_, **__: None)
        model.set_attn_implementation(ALONE)
    return laid


def _alone(module: nn.Module, *states: torch.Tensor, **options: Any) -> Any:
    query, key, value, _ = states
    return sdpa_attention_forward(module, query, key, value, None, **options)


def _switch_on(model: Any, training: TrainingParams, params: SftParams) -> None:
    # numbers that are drawn twice have no effect on shapes, and a generator has no state here
    options = training.gradient_checkpointing_kwargs | {"preserve_rng_state": False}
    recompute_activations(model, msgspec.structs.replace(training, gradient_checkpointing_kwargs=options), params)
    if params.optimizer_in_backward:
        for parameter in (parameter for parameter in model.parameters() if parameter.requires_grad):
            parameter.register_post_accumulate_grad_hook(_let_go)


def _let_go(parameter: torch.Tensor) -> None:
    parameter.grad = None


def _begin_gradients(model: nn.Module, shares: Sequence[int] | None, live: Live, training: TrainingParams) -> None:
    """Make what earlier micro-batches left, and divide those of this one.

    Args:
        model: The model.
        shares: Bytes of each gradient that this process keeps; None: each is whole.
        live: What counts them.
        training: How many micro-batches there are.
    """
    accumulated = training.gradient_accumulation_steps > 1
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if shares is None:
        for parameter in trained if accumulated else ():
            parameter.grad = torch.empty_like(parameter)
        return
    if accumulated:
        live.hold(sum(shares))

    def keep(size: int, parameter: torch.Tensor) -> None:
        _let_go(parameter)
        live.hold(0 if accumulated else size)

    for parameter, size in zip(trained, shares, strict=True):
        parameter.register_post_accumulate_grad_hook(partial(keep, size))


def _counted(
    model: nn.Module,
    forward: Forward,
    placed: Mapping[str, Any],
    live: Live,
    computing: AbstractContextManager[Any],
) -> Usage:
    earlier = live.now
    kept: list[int] = []
    (forward.decoder or model).register_forward_hook(lambda *_: kept.append(live.now - earlier))
    with computing:
        loss = forward.loss(placed)
    most = live.peak()
    (loss / 1).backward()
    return Usage(activations=kept[0], logits=max(0, most - earlier - kept[0]), forward=most, backward=live.peak())

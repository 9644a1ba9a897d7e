"""Gradient checkpointing: activations are computed again in the backward pass instead of kept.

Torch's activation checkpointing, switched on by transformers layer by layer. `full` keeps the input of a layer and
computes all of it again; `selective` also keeps what is dear to compute (see `keep_products`).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from oumi_kernel import ConfigError, Problem
from oumi_kernel.config import TrainingParams
from oumi_plugins.trainers.sft import SftParams

CHECKPOINTING = ("use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop")
SWITCH = "training.enable_gradient_checkpointing"
_aten = torch.ops.aten
PRODUCTS = frozenset({_aten.mm.default, _aten.addmm.default, _aten.bmm.default})
"""Matrix products: of linear layers, and of attention's weights with its values. Its scores, `baddbmm`, are as large as
rows are long, squared, so they are computed again."""
ATTENTION = frozenset(
    {
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
    }
)
"""What torch's fused attention is made of."""


def recompute_activations(model: Any, training: TrainingParams, params: SftParams) -> None:
    """Switch it on if the configuration does.

    Args:
        model: The model.
        training: Whether, and what torch's activation checkpointing takes; `use_reentrant` among it.
        params: What is computed again, of which layers, and where the rest is kept.

    Raises:
        ConfigError: It does not take an option, or the model cannot do it.
    """
    if not training.enable_gradient_checkpointing:
        return
    options: dict[str, Any] = {"use_reentrant": False} | training.gradient_checkpointing_kwargs
    _check(options, params)
    if params.gradient_checkpointing_mode == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, keep_products)
    which: dict[str, Any] = {}
    if params.gradient_checkpointing_every > 1:
        which["every_n_layers"] = params.gradient_checkpointing_every
    if params.activation_offload:
        which["offload"] = True
    try:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options, **which)
    except (ValueError, TypeError) as error:  # a model's own method may not take `which`
        raise ConfigError(Problem(code="not-served", path=SWITCH, message=str(error))) from error
    if options["use_reentrant"]:  # the reentrant kind gives no gradient where no input asks for one
        model.enable_input_require_grads()


def keep_products(context: Any, operation: Any, *arguments: Any, **named: Any) -> CheckpointPolicy:
    """Return that the results of matrix products and of attention are kept, and that all else is computed again.

    Attention with dropout is computed again: what is kept draws no random numbers the second time, and what comes after
    it would draw others than it did.
    """
    keeps = operation in PRODUCTS or (operation in ATTENTION and not _dropout(operation, arguments, named))
    return CheckpointPolicy.MUST_SAVE if keeps else CheckpointPolicy.PREFER_RECOMPUTE


def _dropout(operation: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> float:
    """Return the share of weights that an attention of torch's drops."""
    names = [argument.name for argument in operation._schema.arguments]
    return (dict(zip(names, arguments, strict=False)) | named).get("dropout_p", 0.0)


def _check(options: dict[str, Any], params: SftParams) -> None:
    for name in options:
        if name not in CHECKPOINTING:
            message = f"torch's activation checkpointing has no '{name}'. It has {', '.join(CHECKPOINTING)}."
            path = f"training.gradient_checkpointing_kwargs.{name}"
            raise ConfigError(Problem(code="unknown-key", path=path, message=message))
    if options["use_reentrant"] and params.gradient_checkpointing_mode == "selective":
        message = "the reentrant kind computes whole layers again; it cannot select."
        path = "training.trainer_kwargs.gradient_checkpointing_mode"
        hint = "Leave training.gradient_checkpointing_kwargs.use_reentrant out."
        raise ConfigError(Problem(code="not-served", path=path, message=message, hint=hint))

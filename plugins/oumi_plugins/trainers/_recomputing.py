"""Gradient checkpointing: activations are computed again in the backward pass instead of kept."""

from __future__ import annotations

from typing import Any

from oumi_kernel import ConfigError, Problem

CHECKPOINTING = ("use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop")


def recompute_activations(model: Any, options: dict[str, Any]) -> None:
    """Switch it on.

    Args:
        model: The model.
        options: What torch's activation checkpointing takes; `use_reentrant` among it.

    Raises:
        ConfigError: It does not take an option, or the model cannot do it.
    """
    for name in options:
        if name not in CHECKPOINTING:
            message = f"torch's activation checkpointing has no '{name}'. It has {', '.join(CHECKPOINTING)}."
            path = f"training.gradient_checkpointing_kwargs.{name}"
            raise ConfigError(Problem(code="unknown-key", path=path, message=message))
    try:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    except ValueError as error:
        path = "training.enable_gradient_checkpointing"
        raise ConfigError(Problem(code="not-served", path=path, message=str(error))) from error
    if options["use_reentrant"]:  # the reentrant kind gives no gradient where no input asks for one
        model.enable_input_require_grads()

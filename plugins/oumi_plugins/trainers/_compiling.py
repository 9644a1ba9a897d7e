"""Which parts of a model are compiled one by one."""

from __future__ import annotations

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from oumi_kernel import ConfigError, Problem


def repeated_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers that a model is a stack of: code that one of them was compiled to serves all.

    Raises:
        ConfigError: It has none that transformers marks as such.
    """
    layers: list[nn.Module] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        message = f"{type(model).__name__} has no layers that can be compiled one by one."
        path = "training.trainer_kwargs.compile_scope"
        raise ConfigError(Problem(code="not-served", path=path, message=message, hint="Set compile_scope: model."))
    return layers

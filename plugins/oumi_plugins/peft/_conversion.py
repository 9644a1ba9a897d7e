"""Adapters that begin with a part of the model, which they take out of it: PiSSA and OLoRA.

Such a model computes `W - s B0 A0 + s B A`. What is saved is the ordinary adapter of twice the rank that says the same
beside the model as it was, `W + s [B, -B0] [A; A0]`: it opens without the start being found again, which is slow, and
for some starts another each time.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from oumi_kernel import CheckpointError, ConfigError, Problem

STARTS = ("pissa", "olora")
FIRST, SECOND = "lora_A", "lora_B"


def changes_the_model(config: Any) -> bool:
    """Say whether an adapter with this config takes its start out of the model."""
    return str(getattr(config, "init_lora_weights", "")).lower().startswith(STARTS)


def check_start(model: Any, config: Any) -> None:
    """Refuse ranks that a start cannot have, or that the saved adapter could not say.

    Raises:
        ConfigError: A rank is larger than a matrix, or ranks and scales differ while use_rslora divides by roots.
    """
    small = [
        name
        for name, module in model.named_modules()
        if isinstance(getattr(module, "r", None), dict) and any(w.shape[0] < module.r[k] for k, w in _firsts(module))
    ]
    if small:
        message = f"the rank is larger than the matrices of {small[0]}, from which the adapter begins."
        raise ConfigError(Problem(code="out-of-range", path="peft.lora_r", message=message, hint="Lower it."))
    if config.use_rslora and (config.rank_pattern or config.alpha_pattern):
        message = "use_rslora with ranks or scales of their own cannot be saved for an adapter that begins so."
        hint = "Set peft.lora_init_weights: default, or remove rank_pattern and alpha_pattern."
        raise ConfigError(Problem(code="not-served", path="peft.peft_kwargs.use_rslora", message=message, hint=hint))


def without_start(state: Mapping[str, torch.Tensor], initial: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights of the ordinary adapter."""
    found = dict(state)
    for name, tensor in state.items():
        if f".{FIRST}." in name:
            found[name] = torch.cat([tensor, initial[name].to(tensor.device)], dim=0)
        elif f".{SECOND}." in name:
            found[name] = torch.cat([tensor, -initial[name].to(tensor.device)], dim=1)
    return found


def with_start(
    saved: Mapping[str, torch.Tensor], initial: Mapping[str, torch.Tensor], place: Path
) -> dict[str, torch.Tensor]:
    """Return the weights that train, from those of the ordinary adapter.

    Raises:
        CheckpointError: It began from another start, so that this model is not the one that it belongs to.
    """
    found = dict(saved)
    for name, start in initial.items():
        if name not in saved or saved[name].ndim != start.ndim:
            continue
        size = start.shape[0] if f".{FIRST}." in name else start.shape[-1]
        axis = 0 if f".{FIRST}." in name else 1
        found[name], began = (part.contiguous() for part in saved[name].tensor_split([size], dim=axis))
        if not torch.equal(began, start if axis == 0 else -start):
            raise CheckpointError(
                f"{place}: the adapter began from other directions of the model than this run finds ('{name}'). "
                "Go on with the same libraries on the same kind of machine, or begin anew with model.adapter_model."
            )
    return found


def ordinary_config(config: Any) -> Any:
    """Return the config of the ordinary adapter: twice the rank at the same scale."""
    ordinary = copy.deepcopy(config)
    ordinary.init_lora_weights, ordinary.inference_mode = True, True
    ordinary.r *= 2
    ordinary.lora_alpha *= math.sqrt(2) if config.use_rslora else 2
    ordinary.rank_pattern = {name: 2 * rank for name, rank in (config.rank_pattern or {}).items()}
    ordinary.alpha_pattern = {name: 2 * alpha for name, alpha in (config.alpha_pattern or {}).items()}
    return ordinary


def _firsts(module: Any) -> list[tuple[str, torch.Tensor]]:
    return [(name, layer.weight) for name, layer in getattr(module, FIRST, {}).items()]

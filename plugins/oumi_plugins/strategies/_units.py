"""Which modules of a model become units of sharding: what one of them holds is gathered and freed together.

Whatever is in no unit belongs to the whole model, and is gathered as long as that computes: embeddings and the head,
whose weights are read by more than one module, always do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from oumi_kernel import ConfigError, Problem
from oumi_kernel.config.fsdp import AutoWrapPolicy, FSDPParams

CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
"""Modules that nobody calls."""
SHOWN = 8


def units_of(model: nn.Module, params: FSDPParams) -> list[nn.Module]:
    """Return the units, each before one that holds it.

    Raises:
        ConfigError: There are none of the classes asked for, or one cannot be divided.
    """
    policy = params.auto_wrap_policy
    if policy is AutoWrapPolicy.TRANSFORMER_BASED_WRAP:
        units = _of_classes(model, params)
    elif policy is AutoWrapPolicy.SIZE_BASED_WRAP:
        units = list(_of_size(model, params.min_num_params))
    else:
        units = []
    _check(model, units)
    return units


def apart(model: nn.Module, units: list[nn.Module]) -> list[list[nn.Parameter]]:
    """Return the parameters of each unit that are in none within it, and at last those that are in no unit."""
    seen: set[int] = set()
    found: list[list[nn.Parameter]] = []
    for unit in (*units, model):
        found.append([parameter for parameter in unit.parameters() if id(parameter) not in seen])
        seen.update(map(id, found[-1]))
    return found


def _of_classes(model: nn.Module, params: FSDPParams) -> list[nn.Module]:
    asked = [name.strip().rpartition(".")[2] for name in (params.transformer_layer_cls or "").split(",") if name]
    names = asked or _declared(model)
    found = [module for module in model.modules() if type(module).__name__ in names]
    missing = [name for name in names if not any(type(module).__name__ == name for module in found)]
    if (asked and missing) or not found:
        layers = sorted({type(child).__name__ for module in model.modules() for child in _repeated(module)})
        subject = f"the model has no {', '.join(missing)}." if asked else "the model does not say what its layers are."
        listing = f"Its repeated modules: {', '.join(layers[:SHOWN]) or 'none'}."
        path = "fsdp.transformer_layer_cls"
        raise ConfigError(Problem(code="wrong-value", path=path, message=subject, hint=listing))
    return found[::-1]


def _declared(model: nn.Module) -> list[str]:
    """Return the classes that a model of transformers says not to divide between devices: its layers."""
    for module in model.modules():
        declared: Any = getattr(module, "_no_split_modules", None)
        if declared and isinstance(declared, list | tuple | set):
            return sorted(declared)
    return []


def _repeated(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, nn.ModuleList) and len({type(child) for child in module}) == 1:
        yield next(iter(module))


def _of_size(model: nn.Module, fewest: int) -> Iterator[nn.Module]:
    """Yield modules of at least so many parameters that are in no unit within (as torch's size-based policy)."""
    apart = _shared(model)

    def walk(module: nn.Module) -> Iterator[nn.Module]:
        rest = {id(p): p.numel() for p in module.parameters()}
        if not hasattr(module, "base_layer"):  # an adapter may compute with the weights of what it adapts
            for child in module.children():
                for unit in walk(child):
                    yield unit
                    for parameter in unit.parameters():
                        rest.pop(id(parameter), None)
        if sum(rest.values()) >= fewest and not isinstance(module, CONTAINERS) and not apart & rest.keys():
            yield module

    for unit in walk(model):
        if unit is not model:
            yield unit


def _shared(model: Any) -> set[int]:
    """Return the parameters of embeddings and head, and all that stand in more than one place."""
    ends = [
        getattr(model, name)() for name in ("get_input_embeddings", "get_output_embeddings") if hasattr(model, name)
    ]
    found = {id(parameter) for end in ends if isinstance(end, nn.Module) for parameter in end.parameters()}
    places: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            places[id(parameter)] = places.get(id(parameter), 0) + 1
    return found | {key for key, count in places.items() if count > 1}


def _check(model: nn.Module, units: list[nn.Module]) -> None:
    """Refuse what FSDP2 cannot divide, before it says so in its own words.

    Raises:
        ConfigError: A parameter is a single number, or weights that train together have several number formats.
    """
    for name, parameter in model.named_parameters():
        if not parameter.ndim:
            raise ConfigError(_problem(f"{name} is a single number, which FSDP2 cannot divide."))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for together in apart(model, units):
        formats: dict[torch.dtype, str] = {}
        for parameter in together:
            if parameter.requires_grad:
                formats.setdefault(parameter.dtype, names[id(parameter)])
        if len(formats) > 1:
            shown = ", ".join(f"{name} in {str(dtype).removeprefix('torch.')}" for dtype, name in formats.items())
            raise ConfigError(_problem(f"weights that train together have several number formats: {shown}."))


def _problem(message: str) -> Problem:
    hint = "Train with DDP (fsdp.enable_fsdp: false)."
    return Problem(code="not-served", path="fsdp.enable_fsdp", message=message, hint=hint)

"""Keep a library that patches classes to the one model that it was asked to patch.

Libraries of kernels change what stands in transformers' modules: a class, or a function that the forward methods of
its attention call. Every model of the process would get that. Here what they changed is put back, and a function that
they changed is given to the modules of the one model.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

Changes = list[tuple[ModuleType, str, Any]]


def changed_modules(model: nn.Module, patch: Callable[[], None]) -> list[str]:
    """Call `patch`, and return the dotted names of the modules of `model` that compute otherwise since.

    Whatever it changed in modules of transformers and torch is as it was before.
    """
    before = {name: _computing(module) for name, module in model.named_modules()}
    for modeling, name, new in _put_back(patch):
        if isinstance(new, FunctionType):
            for module in model.modules():
                _give(module, modeling, name, new)
    return [name for name, module in model.named_modules() if _computing(module) != before.get(name)]


def _computing(module: nn.Module) -> tuple[nn.Module, Any]:
    return module, vars(module).get("forward")


def _put_back(patch: Callable[[], None]) -> Changes:
    """Call `patch`, undo what it changed in modules of libraries, and return that."""
    modules = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("transformers.models.") and name.rpartition(".")[2].startswith("modeling_")
    ]
    before = {module: dict(vars(module)) for module in [*modules, torch.nn, torch.nn.functional]}
    try:
        patch()
    finally:
        changes: Changes = [
            (module, name, vars(module).get(name))
            for module, names in before.items()
            for name, value in names.items()
            if vars(module).get(name) is not value
        ]
        for module, name, _ in changes:
            setattr(module, name, before[module][name])
    return changes


def _give(module: nn.Module, modeling: ModuleType, name: str, new: FunctionType) -> None:
    """Let a module call `new` where its forward method calls the function `name` of the file that defines it."""
    forward = type(module).forward
    if not isinstance(forward, FunctionType) or forward.__globals__ is not vars(modeling):
        return
    if name not in forward.__code__.co_names:
        return
    # without the name of a module, by which a compiler would look the function up in the library again
    names = {key: value for key, value in vars(modeling).items() if key != "__name__"} | {name: new}
    own = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    own.__kwdefaults__ = forward.__kwdefaults__
    functools.update_wrapper(own, forward)
    module.forward = MethodType(own, module)

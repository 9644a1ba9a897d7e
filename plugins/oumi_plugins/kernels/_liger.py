"""Which kernels of Liger a model gets, whether they fit it and this machine, and what is said about them."""

from __future__ import annotations

import copy
import difflib
import inspect
import logging
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
from torch import nn
from transformers import PretrainedConfig
from triton.runtime.errors import InterpreterError

from oumi_kernel import ConfigError, Problem
from oumi_kernel.contracts import Run
from oumi_plugins.kernels._instance import changed_modules
from oumi_plugins.kernels._machine import is_interpreted, key_of
from oumi_plugins.kernels.liger import LOSSES, LigerParams

_log = logging.getLogger("oumi_plugins.kernels.liger")
PARTS = tuple(name for name in LigerParams.__struct_fields__ if name not in LOSSES)
ACTIVATIONS = {"swiglu": {"silu", "swish"}, "geglu": {"gelu_pytorch_tanh", "gelu_python_tanh"}}
"""Part -> the activations of a model that its kernel computes. Liger checks them only in modules that it builds."""


def check_model_name(run: Run) -> None:
    """Refuse a model whose type Liger does not know, before anything is read but its configuration.

    Raises:
        ConfigError: Liger has no kernels for it.
    """
    model = run.config.model
    name, revision = run.locate(model.model_name), model.model_revision or "main"
    try:
        found, _ = PretrainedConfig.get_config_dict(name, revision=revision)
    except (OSError, ValueError):
        return  # its loader knows better where it is, or says what is wrong; `put_into` asks again
    if found.get("model_type"):
        _functions(found["model_type"], run)


def put_into(model: Any, params: LigerParams, run: Run) -> None:
    """Put in the kernels that are asked for, and log which modules got one.

    Raises:
        ConfigError: Liger does not know the model, a part that is asked for does not fit it, or no module got one.
    """
    kind = model.config.model_type
    function = _functions(kind, run)
    offered = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if isinstance(parameter.default, bool)
    }
    for name in PARTS:
        if getattr(params, name) and name not in offered:
            has = ", ".join(part for part in PARTS if part in offered)
            raise _refusal(name, run, f"Liger has no {name} for models of type '{kind}'. It has {has}.")
    done: dict[str, list[str]] = {}
    for name in (part for part in PARTS if part in offered):
        asked = getattr(params, name)
        if not (offered[name] if asked is None else asked):
            continue
        modules, reason = _put(name, function, offered, model)
        if modules:
            done[name] = modules
        elif asked:
            raise _refusal(name, run, f"no module of {type(model).__name__} can take it: {reason}.")
        else:
            _log.info("liger: %s is left as it is: %s", name, reason)
    if not done:
        message = f"no module of {type(model).__name__} took a kernel of Liger."
        hint = "Switch it off, or switch a part of it on in its parameters."
        raise ConfigError(Problem(code="no-match", path=key_of(run), message=message, hint=hint))
    _refuse_what_is_not_interpreted(model, done, run)
    found = ", ".join(f"{name} in {len(modules)} modules" for name, modules in done.items())
    _log.info("liger-kernel %s computes %s", version("liger-kernel"), found)
    _log.debug("liger: %s", done)


def _put(name: str, function: Callable[..., None], offered: dict[str, bool], model: Any) -> tuple[list[str], str]:
    """Return the dotted names of the modules that got one part, or why none did."""
    config = model.config.get_text_config()
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    if activation not in ACTIVATIONS.get(name, {activation}):
        return [], f"its activation is {activation}, which the kernel does not compute"
    try:
        modules = changed_modules(model, lambda: function(model=model, **dict.fromkeys(offered, False) | {name: True}))
    except NotImplementedError as error:
        return [], " ".join(str(error).split()).rstrip(".")
    return modules, "Liger patches none of its modules"


def _functions(kind: str, run: Run) -> Callable[..., None]:
    """Return Liger's function for a type of model.

    Raises:
        ConfigError: There is none.
    """
    if kind in MODEL_TYPE_TO_APPLY_LIGER_FN:
        return MODEL_TYPE_TO_APPLY_LIGER_FN[kind]
    known = sorted(MODEL_TYPE_TO_APPLY_LIGER_FN)
    close = difflib.get_close_matches(kind, known, 3)
    near = f" Nearest: {', '.join(close)}." if close else ""
    message = f"liger-kernel {version('liger-kernel')} has no kernels for models of type '{kind}'.{near}"
    hint = f"Switch it off. It has kernels for {', '.join(known)}."
    raise ConfigError(Problem(code="not-served", path=key_of(run), message=message, hint=hint))


def _refuse_what_is_not_interpreted(model: nn.Module, done: dict[str, list[str]], run: Run) -> None:
    """Under Triton's interpreter, try one module of each part that is a layer of its own; it lacks what some need."""
    if not is_interpreted():
        return
    for name in (name for name in done if name != "rope"):  # a part of attention, and it is known to run
        module = copy.deepcopy(model.get_submodule(done[name][0])).to_empty(device="cpu")
        some = next(module.parameters(), torch.zeros(1, 8))
        try:
            with torch.no_grad():
                module(torch.zeros(1, 2, some.shape[-1], dtype=some.dtype))
        except (InterpreterError, TypeError) as error:  # TypeError: experts take more than states
            raise _refusal(name, run, f"Triton's interpreter cannot run this kernel: {error}.") from error


def _refusal(name: str, run: Run, message: str) -> ConfigError:
    hint = f"Set {name}: false."
    return ConfigError(Problem(code="not-served", path=f"{_parameters(run)}.{name}", message=message, hint=hint))


def _parameters(run: Run) -> str:
    return "model.kernel_kwargs" if run.config.model.enable_liger_kernel else "model.kernels.liger"

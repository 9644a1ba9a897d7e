"""What is known about a model without its weights: configuration, modules, and whether they can be built."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from oumi_kernel import ConfigError, Problem
from oumi_kernel.adapters import base_of
from oumi_kernel.config import ModelParams
from oumi_kernel.contracts import Run
from oumi_kernel.plugins.slots import filled_splits
from oumi_plugins.models._names import not_found, revision
from oumi_plugins.models._quantisable import check_quantisable, check_saved

ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of layers that look at tokens by their positions."""
SET_ELSEWHERE = {
    "attn_implementation": "model.attn_implementation",
    "dtype": "model.torch_dtype_str",
    "quantization_config": "peft.q_lora",
    "revision": "model.model_revision",
    "torch_dtype": "model.torch_dtype_str",
    "trust_remote_code": "model.trust_remote_code",
}
"""Arguments of a model that are no part of its configuration -> the key that sets them."""


def check_model(params: ModelParams, run: Run) -> PretrainedConfig:
    """Return the model's configuration after building it without weights, which finds mistakes before data is read.

    Raises:
        ConfigError: It cannot be found or is no causal language model, an argument is unknown, its attention cannot
            be computed, a pattern of `freeze_layers` matches nothing, or it cannot keep packed examples apart.
    """
    if params.device_map not in (None, "auto"):
        message = f"'{params.device_map}': the strategy places the model."
        raise ConfigError(
            Problem(code="not-served", path="model.device_map", message=message, hint="Write auto or null.")
        )
    if params.attn_implementation == "flex_attention" and not torch.accelerator.is_available():
        message = "flex_attention has no backward pass on a CPU."
        hint = "null takes the fastest for this machine; sdpa and eager run everywhere."
        raise ConfigError(Problem(code="not-served", path="model.attn_implementation", message=message, hint=hint))
    config = _config(params, run)
    check_saved(config, run.config.peft)
    skeleton = _skeleton(config, params)
    _refuse_packs(skeleton, run)
    if run.config.peft.q_lora:
        check_quantisable(skeleton, run.config.peft)
    for name, modules in matches(skeleton, params.freeze_layers).items():
        if not any(True for module in modules for _ in module.parameters()):
            index = params.freeze_layers.index(name)
            message = f"'{name}' names modules without parameters."
            raise ConfigError(Problem(code="no-match", path=f"model.freeze_layers[{index}]", message=message))
    return config


def _refuse_packs(model: Any, run: Run) -> None:
    """Refuse packs for a model whose layers carry a state from one token to the next, or know no borders."""
    packed = [name for name, split in filled_splits(run.config) if split.pack]
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    is_apart = getattr(type(model), "_supports_attention_backend", False) and kinds <= ATTENTION
    if packed and (not is_apart or getattr(type(model), "_is_stateful", False)):
        message = f"{type(model).__name__} reads across the borders of packed examples."
        hint = "Remove pack: batches of separate examples are right for every model."
        raise ConfigError(Problem(code="not-served", path=f"data.{packed[0]}.pack", message=message, hint=hint))


def matches(model: nn.Module, patterns: list[str]) -> dict[str, list[nn.Module]]:
    """Return pattern -> modules whose dotted name it is, or begins, ends or contains on whole parts.

    Raises:
        ConfigError: A pattern matches no module; names the nearest.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    found = {
        pattern: [module for name, module in modules.items() if f".{pattern}." in f".{name}."] for pattern in patterns
    }
    problems = [
        Problem(
            code="no-match",
            path=f"model.freeze_layers[{index}]",
            message=f"'{pattern}' matches no module of {type(model).__name__}.",
            hint=_near(pattern, list(modules)),
        )
        for index, pattern in enumerate(patterns)
        if not found[pattern]
    ]
    if problems:
        raise ConfigError(problems)
    return found


def _near(pattern: str, names: list[str]) -> str:
    parts = sorted({*names, *(name.rpartition(".")[2] for name in names)})
    close = difflib.get_close_matches(pattern, parts, 3)
    children = [name for name in names if name.count(".") < 2 and not name[-1].isdigit()]
    return f"did you mean '{close[0]}'?" if close else f"Modules: {', '.join(children[:12])}."


def _config(params: ModelParams, run: Run) -> PretrainedConfig:
    name = base_of(run)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=params.trust_remote_code, revision=revision(params))
    except (OSError, ValueError, ImportError) as error:
        raise not_found("model.model_name", name, "model", error) from error
    _refuse_other_kinds(config)
    changes = dict(params.model_kwargs)
    if changes.pop("disable_dropout", False):
        changes |= {key: 0.0 for key, value in _settings(config).items() if _is_dropout(key, value)}
    for key, value in changes.items():
        _change(config, key, value)
    return config


def _refuse_other_kinds(config: PretrainedConfig) -> None:
    kind = config.model_type
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        message = f"'{kind}' is a vision-language model; none of the installed model loaders builds those."
    else:
        message = f"'{kind}' is no causal language model that transformers knows."
    hint = "Name a model that generates text from text."
    raise ConfigError(Problem(code="not-served", path="model.model_name", message=message, hint=hint))


def _change(config: PretrainedConfig, key: str, value: Any) -> None:
    """Set one value of a configuration that the configuration knows.

    Raises:
        ConfigError: It does not know the key, or refuses the value.
    """
    path = f"model.model_kwargs.{key}"
    known = _settings(config)
    if key in SET_ELSEWHERE or key not in known:
        close = difflib.get_close_matches(key, known, 1)
        hint = f"set {SET_ELSEWHERE[key]}." if key in SET_ELSEWHERE else f"did you mean '{close[0]}'?" if close else ""
        message = f"{type(config).__name__} has no '{key}'."
        raise ConfigError(Problem(code="unknown-key", path=path, message=message, hint=hint))
    try:
        if key in ("rope_scaling", "rope_parameters") and isinstance(value, dict):
            _scale_positions(config, value)
        else:
            setattr(config, key, value)
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        message = f"{value!r} is refused: {' '.join(str(error).split())}"
        raise ConfigError(Problem(code="wrong-value", path=path, message=message)) from error


def _scale_positions(config: Any, scaling: dict[str, Any]) -> None:
    """Change how rotary positions are scaled, and keep their base, which the library drops when only scaling is set."""
    before = config.rope_parameters or {}
    base = {key: before[key] for key in ("rope_theta", "partial_rotary_factor") if key in before}
    config.rope_parameters = base | scaling
    config.standardize_rope_params()
    kind, known = config.rope_parameters.get("rope_type"), ("default", *ROPE_INIT_FUNCTIONS)
    if kind not in known:
        raise ValueError(f"no scaling is named {kind!r}; known: {', '.join(known)}.")
    config.validate_rope()


def _settings(config: PretrainedConfig) -> dict[str, Any]:
    """Return the values of a configuration that may be changed, under their names and other spellings."""
    own = {key: value for key, value in config.to_dict().items() if not key.startswith("_")}
    own |= dict.fromkeys(config.attribute_map)
    return own | ({"rope_scaling": None} if "rope_parameters" in own else {})


def _is_dropout(key: str, value: Any) -> bool:
    return isinstance(value, float) and ("dropout" in key or key.endswith("pdrop"))


def _skeleton(config: PretrainedConfig, params: ModelParams) -> nn.Module:
    """Return the model without memory for its weights."""
    arguments = {} if params.attn_implementation is None else {"attn_implementation": params.attn_implementation}
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=params.trust_remote_code, **arguments)
    except (ImportError, ValueError, OSError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        message = " ".join(str(error).split())
        if isinstance(error, KeyError | TypeError | AttributeError | ArithmeticError):
            if not params.model_kwargs:
                raise  # nothing that a configuration says explains it
            path, hint, message = "model.model_kwargs", "", f"the model cannot be built with these: {message}."
        elif params.attn_implementation is not None and ("attention" in message.lower() or "attn" in message):
            path, hint = "model.attn_implementation", "null takes the model's choice; sdpa and eager need nothing more."
        else:
            path, hint = "model.model_name", ""
        raise ConfigError(Problem(code="no-model", path=path, message=message, hint=hint)) from error

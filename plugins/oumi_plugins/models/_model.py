"""Models: loading, precision, attention, frozen layers."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from oumi_kernel import ConfigError, Problem
from oumi_kernel.config import ModelParams
from oumi_kernel.contracts import Run
from oumi_plugins.models._tokenizer import new_tokens, not_found

DTYPES = {
    torch.float64: ("f64", "float64", "double"),
    torch.float32: ("f32", "float32", "float"),
    torch.bfloat16: ("bf16", "bfloat16"),
    torch.float16: ("f16", "float16", "half"),
    torch.uint8: ("uint8",),
}


def build_model(params: ModelParams, tokenizer: Any, arguments: Mapping[str, Any], run: Run) -> nn.Module:
    """Load or create the model of a model section.

    Raises:
        ConfigError: It cannot be found or is no causal language model, an argument is unknown, or a pattern of
            `freeze_layers` matches nothing.
    """
    if params.device_map not in (None, "auto"):
        message = f"'{params.device_map}': the strategy places the model; write auto or null."
        raise ConfigError(Problem(code="not-served", path="model.device_map", message=message))
    name = run.locate(params.model_name)
    config = _config(params, name)
    dtype = _dtype(params.torch_dtype_str)
    options = {"config": config, "dtype": dtype, "trust_remote_code": params.trust_remote_code} | dict(arguments)
    if params.attn_implementation is not None:
        options["attn_implementation"] = params.attn_implementation
    try:
        if params.load_pretrained_weights:
            model = AutoModelForCausalLM.from_pretrained(name, revision=params.model_revision or "main", **options)
        else:
            torch.manual_seed(run.config.training.seed)
            options["dtype"] = config.dtype or torch.float32 if dtype == "auto" else dtype
            model = AutoModelForCausalLM.from_config(options.pop("config"), **options)
    except OSError as error:
        raise not_found("model.model_name", name, "model", error) from error
    except (ImportError, ValueError) as error:
        path = "model.attn_implementation" if params.attn_implementation else "model.model_name"
        raise ConfigError(Problem(code="no-model", path=path, message=str(error))) from error
    if new_tokens(tokenizer, model.get_input_embeddings().num_embeddings):
        model.resize_token_embeddings(len(tokenizer))
    freeze(model, params.freeze_layers)
    return model


def freeze(model: nn.Module, patterns: list[str]) -> None:
    """Stop the parameters of every module that a pattern names from training.

    A pattern names a module by its dotted name, or by a whole part of it from the start or the end.

    Raises:
        ConfigError: A pattern matches no module.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    for index, pattern in enumerate(patterns):
        found = [module for name, module in modules.items() if f".{pattern}." in f".{name}."]
        if not found:
            close = difflib.get_close_matches(pattern, list(modules), 3, 0.4)
            top = [name for name in modules if "." not in name]
            hint = f"near names: {', '.join(close)}" if close else f"modules at the top: {', '.join(top)}"
            message = f"'{pattern}' matches no module of {type(model).__name__}."
            path = f"model.freeze_layers[{index}]"
            raise ConfigError(Problem(code="no-match", path=path, message=message, hint=hint))
        for module in found:
            module.requires_grad_(False)


def _config(params: ModelParams, name: str) -> PretrainedConfig:
    try:
        config = AutoConfig.from_pretrained(
            name, trust_remote_code=params.trust_remote_code, revision=params.model_revision or "main"
        )
    except (OSError, ValueError) as error:
        raise not_found("model.model_name", name, "model", error) from error
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not getattr(config, "auto_map", None):
        message = f"'{config.model_type}' is no causal language model that transformers knows."
        hint = "Vision-language models need a component that is not there yet."
        raise ConfigError(Problem(code="not-served", path="model.model_name", message=message, hint=hint))
    for key, value in params.model_kwargs.items():
        if not hasattr(config, key):
            close = difflib.get_close_matches(key, [k for k in dir(config) if not k.startswith("_")], 1)
            hint = f"did you mean '{close[0]}'?" if close else ""
            message = f"{type(config).__name__} has no '{key}'."
            raise ConfigError(Problem(code="unknown-key", path=f"model.model_kwargs.{key}", message=message, hint=hint))
        setattr(config, key, value)
    return config


def _dtype(name: str) -> torch.dtype | str:
    lower = name.lower()
    return next((dtype for dtype, names in DTYPES.items() if lower in names), "auto")

"""Models: weights, precision, attention, embeddings of added tokens, frozen modules."""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from oumi_kernel import ConfigError, OutOfMemoryError, Problem
from oumi_kernel.adapters import base_of
from oumi_kernel.config import ModelParams
from oumi_kernel.contracts import Run
from oumi_plugins.models._architecture import matches
from oumi_plugins.models._bars import bars_on_a_terminal
from oumi_plugins.models._names import not_found, revision
from oumi_plugins.models._quantised import let_go_of_file, quantise_skeleton, saved_quantised, settle, with_head_whole

_log = logging.getLogger("oumi_plugins.models.model")
DTYPES = {
    torch.float64: ("f64", "float64", "double"),
    torch.float32: ("f32", "float32", "float"),
    torch.bfloat16: ("bf16", "bfloat16"),
    torch.float16: ("f16", "float16", "half"),
}


def build_model(
    params: ModelParams, config: PretrainedConfig, tokenizer: Any, arguments: Mapping[str, Any], run: Run
) -> tuple[nn.Module, dict[str, int]]:
    """Load or create the model of a model section, on the CPU unless `arguments` place it.

    Random weights, of a model that is not loaded and of tokens that the model does not have, depend on
    `training.seed` alone.

    Returns:
        The model, and pattern of `freeze_layers` -> modules that it matches.

    Raises:
        ConfigError: Its weights cannot be found, or some are missing.
    """
    if params.model_revision and Path(base_of(run)).is_dir():
        _log.warning("model.model_revision: no effect: '%s' is a folder, which has one state.", params.model_name)
    options = _options(params, arguments)
    quantisation = options.pop("quantization_config", None)
    if quantisation is not None and not saved_quantised(config):
        with torch.device("meta"):
            options["quantization_config"] = with_head_whole(quantisation, _new(config, options))
    with _seeded(run.config.training.seed):
        model = _pretrained(params, run, config, options) if params.load_pretrained_weights else _new(config, options)
        if "quantization_config" in options:
            let_go_of_file(model)
        if len(tokenizer) > len(model.get_input_embeddings().weight):
            model.resize_token_embeddings(len(tokenizer))
    return _ready(model, params)


def build_skeleton(
    params: ModelParams, config: PretrainedConfig, tokenizer: Any, arguments: Mapping[str, Any], run: Run
) -> tuple[nn.Module, dict[str, int]]:
    """Return what `build_model` would, on the device `meta`: of weight files only names and shapes are read.

    Weights of a hub's model that are not here yet are not fetched; whether any are missing is then not checked.

    Raises:
        ConfigError: Its weights cannot be found, or some are missing.
    """
    options, meta = _options(params, arguments), torch.device("meta")
    quantisation = options.pop("quantization_config", None)
    model = None
    if params.load_pretrained_weights and not saved_quantised(config):
        try:
            model = _pretrained(params, run, config, options | {"device_map": meta, "local_files_only": True})
        except ConfigError:
            if Path(base_of(run)).exists():
                raise
            _log.info("the weights of %s are not on this machine; the run will fetch them.", params.model_name)
    with meta:
        model = _new(config, options) if model is None else model
        if len(tokenizer) > len(model.get_input_embeddings().weight):
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)  # there is nothing to take a mean of
    if quantisation is not None:
        quantise_skeleton(model, saved_quantised(config) or quantisation)
    return _ready(model, params)


def _options(params: ModelParams, arguments: Mapping[str, Any]) -> dict[str, Any]:
    options = {"dtype": _dtype(params.torch_dtype_str), "trust_remote_code": params.trust_remote_code, **arguments}
    if params.attn_implementation is not None:
        options["attn_implementation"] = params.attn_implementation
    return options


def _new(config: PretrainedConfig, options: Mapping[str, Any]) -> Any:
    dtype = config.dtype or torch.float32 if options["dtype"] == "auto" else options["dtype"]
    return AutoModelForCausalLM.from_config(config, **{**options, "dtype": dtype})


def _ready(model: Any, params: ModelParams) -> tuple[nn.Module, dict[str, int]]:
    settle(model)
    model.config.use_cache = False  # a cache of keys and values is for generation; packed sequences leak through it
    found = matches(model, params.freeze_layers)
    for modules in found.values():
        for module in modules:
            module.requires_grad_(False)
    return model, {pattern: len(modules) for pattern, modules in found.items()}


def _pretrained(params: ModelParams, run: Run, config: PretrainedConfig, options: dict[str, Any]) -> Any:
    name = base_of(run)
    try:
        with bars_on_a_terminal():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                name, config=config, revision=revision(params), output_loading_info=True, **options
            )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            message = f"out of memory while the weights of '{name}' were read: {' '.join(str(error).split())[:200]}"
            raise OutOfMemoryError(
                f"{message}. Set model.torch_dtype_str: bfloat16, or take a smaller model."
            ) from error
        raise not_found("model.model_name", name, "model", error) from error
    model, found = loaded
    missing = sorted(found["missing_keys"])
    if missing:
        message = f"the weights of '{name}' lack {len(missing)} of {type(model).__name__}, among them '{missing[0]}'."
        hint = "They would be random. Get the whole model, or set load_pretrained_weights: false to train from scratch."
        raise ConfigError(Problem(code="no-model", path="model.model_name", message=message, hint=hint))
    return model


@contextmanager
def _seeded(seed: int) -> Generator[None]:
    """Draw random numbers from `seed`, and leave those of everybody else as they were."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def _dtype(name: str) -> torch.dtype | str:
    """Return the number format that a name means.

    Raises:
        ConfigError: It is no format of floating-point numbers, so nothing can be trained in it.
    """
    lower = name.lower()
    if lower == "auto":
        return lower
    for dtype, names in DTYPES.items():
        if lower in names:
            return dtype
    message = f"weights of {name} cannot be trained."
    hint = f"Formats: {', '.join(names[1] for names in DTYPES.values())}, auto."
    raise ConfigError(Problem(code="wrong-value", path="model.torch_dtype_str", message=message, hint=hint))

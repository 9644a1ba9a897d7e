"""Whether a model can be quantised as `peft` asks, found from the model without weights, before anything is loaded."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PretrainedConfig
from transformers.quantizers.quantizers_utils import should_convert_module

from oumi_kernel import ConfigError, Problem
from oumi_kernel.config import PeftParams
from oumi_plugins.models._quantised import linear_layers, with_head_whole

_log = logging.getLogger("oumi_plugins.models.model")
SMALL = 0.5
"""Share of the weights below which it is said how few are quantised."""


def check_saved(config: PretrainedConfig, peft: PeftParams) -> None:
    """Check what `peft` says about quantisation against a model that was saved quantised.

    Such weights are loaded as they are, so that the keys can only repeat how they were made.

    Raises:
        ConfigError: They do not, or the weights are quantised in a way that no adapter is trained on here.
    """
    saved: Any = getattr(config, "quantization_config", None)
    if saved is None:
        return
    saved = saved if isinstance(saved, dict) else saved.to_dict()
    method = str(saved.get("quant_method", "in an unknown way"))
    if method != "bitsandbytes":
        message = f"its weights are saved quantised ({method}), and adapters are not trained on such weights."
        hint = "Name the model in its original precision; peft.q_lora quantises that."
        raise ConfigError(_problem("model.model_name", message, hint))
    if not peft.q_lora:
        message = "its weights are saved quantised (bitsandbytes), and only adapters are trained on such weights."
        raise ConfigError(_problem("model.model_name", message, "Set peft.q_lora: true."))
    made = _keys_of(saved)
    asked = {key: getattr(peft, key) for key in made}
    problems = [
        _problem(f"peft.{key}", f"{asked[key]}, but the weights are saved with {value}.", f"Set {key}: {value}.")
        for key, value in made.items()
        if str(asked[key]).lower() != str(value).lower()
    ]
    if peft.llm_int8_skip_modules:
        message = "the weights are saved quantised, so that it is settled which are."
        problems.append(_problem("peft.llm_int8_skip_modules", message, "Remove it."))
    if problems:
        raise ConfigError(problems)


def _keys_of(saved: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of `peft` that quantise as a saved configuration of bitsandbytes says."""
    if saved.get("load_in_8bit"):
        return {"q_lora_bits": 8}
    asked = BitsAndBytesConfig(**saved)
    return {
        "q_lora_bits": 4,
        "bnb_4bit_quant_type": asked.bnb_4bit_quant_type,
        "use_bnb_nested_quant": asked.bnb_4bit_use_double_quant,
        "bnb_4bit_quant_storage": str(asked.bnb_4bit_quant_storage).removeprefix("torch."),
        "bnb_4bit_compute_dtype": str(asked.bnb_4bit_compute_dtype).removeprefix("torch."),
    }


def check_quantisable(model: Any, peft: PeftParams) -> None:
    """Check what `peft` says about quantisation against the modules of a model on the device `meta`.

    Raises:
        ConfigError: A pattern matches nothing or cannot be read, nothing is left to quantise, a weight cannot be
            stored in the format asked for, or a module or parameter is to train that is quantised.
    """
    layers = linear_layers(model)
    problems = list(_wrong_patterns(model, layers, peft))
    if problems:
        raise ConfigError(problems)
    quantised = _quantised(model, layers, peft)
    problems = [*_wrong_sizes(quantised, peft), *_trained(model, quantised, peft)]
    if not quantised:
        message = f"{type(model).__name__} has no linear layer left to quantise."
        hint = "Remove peft.llm_int8_skip_modules, or set q_lora: false."
        problems.append(_problem("peft.q_lora", message, hint))
    if problems:
        raise ConfigError(problems)
    all_of_them = sum(parameter.numel() for parameter in model.parameters())
    share = sum(layer.weight.numel() for layer in quantised.values()) / all_of_them
    if share < SMALL:
        _log.warning(
            "peft.q_lora: only %.0f %% of the weights are quantised: bitsandbytes quantises linear layers, and not "
            "the output head, embeddings, or experts that are stored as one tensor.",
            100 * share,
        )


def _quantised(model: Any, layers: dict[str, Any], peft: PeftParams) -> dict[str, Any]:
    asked = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=peft.llm_int8_skip_modules)
    kept = [
        *(with_head_whole(asked, model).llm_int8_skip_modules or ()),
        *(getattr(model, "_keep_in_fp32_modules", None) or ()),
    ]
    return {name: layer for name, layer in layers.items() if should_convert_module(name, kept)}


def _wrong_patterns(model: nn.Module, layers: dict[str, Any], peft: PeftParams) -> Iterator[Problem]:
    ends = sorted({name.rpartition(".")[2] for name in layers})
    for index, pattern in enumerate(peft.llm_int8_skip_modules or ()):
        path = f"peft.llm_int8_skip_modules[{index}]"
        try:
            matches = any(not should_convert_module(name, [pattern]) for name in layers)
        except re.error as error:
            yield _problem(path, f"'{pattern}' is no pattern: {error}.", "A name, its end, or a regular expression.")
            continue
        if not matches:
            close = difflib.get_close_matches(pattern, [*ends, *layers], 1)
            hint = f"Did you mean '{close[0]}'?" if close else f"A whole name is {next(iter(layers), 'none')}."
            message = (
                f"'{pattern}' matches no linear layer of {type(model).__name__}, by its end or from its beginning."
            )
            yield _problem(path, message, f"Linear layers: {', '.join(ends)}. {hint}")


def _wrong_sizes(quantised: dict[str, Any], peft: PeftParams) -> Iterator[Problem]:
    """Two 4-bit weights are a byte, and the bytes of a layer are read as numbers of the storage's format."""
    if peft.q_lora_bits != 4:
        return
    bits = torch.empty((), dtype=getattr(torch, peft.bnb_4bit_quant_storage.lower())).element_size() * 8
    for name, layer in quantised.items():
        if layer.weight.numel() * 4 % bits:
            shape = tuple(layer.weight.shape)
            message = f"the 4-bit weights of {name}, {shape}, are no whole number of {peft.bnb_4bit_quant_storage}."
            hint = f"Set it to uint8, or add '{name}' to peft.llm_int8_skip_modules."
            yield _problem("peft.bnb_4bit_quant_storage", message, hint)
            return


def _trained(model: nn.Module, quantised: dict[str, Any], peft: PeftParams) -> Iterator[Problem]:
    """Find what is to train as it is, but is quantised or holds what is; peft takes names by their ends."""
    modules = {f"{name}.": name for name, _ in model.named_modules() if name}
    weights = {f"{name}.weight.": name for name in quantised}
    for key, given, candidates in (
        ("lora_modules_to_save", peft.lora_modules_to_save, modules),
        ("lora_target_parameters", peft.lora_target_parameters, weights),
    ):
        for index, asked in enumerate(given or ()):
            meant = [name for end, name in candidates.items() if end.endswith(f"{asked}.")]
            found = next((layer for name in meant for layer in quantised if f"{layer}.".startswith(f"{name}.")), None)
            if found is not None:
                message = f"'{asked}' names {found}, which is quantised, so that it cannot train."
                skip = asked.removesuffix(".weight") if candidates is weights else asked
                skip = skip if any(name.endswith(skip) for name in quantised) else f".*{skip}"
                hint = f"Add '{skip}' to peft.llm_int8_skip_modules, or make it one of peft.lora_target_modules."
                yield _problem(f"peft.{key}[{index}]", message, hint)


def _problem(path: str, message: str, hint: str) -> Problem:
    return Problem(code="not-served", path=path, message=message, hint=hint)

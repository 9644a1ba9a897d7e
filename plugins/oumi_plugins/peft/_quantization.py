"""What a model is loaded with when its frozen weights are quantised, and with what that cannot be combined."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from typing import Any

import msgspec
import peft
import torch
from torch import nn
from transformers import BitsAndBytesConfig

from oumi_kernel import ConfigError, Params, Problem
from oumi_kernel.config import PeftParams, TrainingParams
from oumi_kernel.config.derived import dtype_name
from oumi_kernel.contracts import Run
from oumi_kernel.report import Report

GIVE_FLOAT32 = {"IA3Config": (4, 8), "AdaLoraConfig": (8,)}
"""Methods whose layers on weights of so many bits give float32, whatever they are given."""


def model_arguments(config_class: str, params: Params, run: Run) -> dict[str, Any]:
    """Return the arguments with which the model is loaded: none unless its weights are quantised.

    Args:
        config_class: The method's config class in the library.
        params: The method's own parameters.
        run: The run.

    Raises:
        ConfigError: The method cannot adapt quantised weights, or not those of this model.
    """
    section = run.config.peft
    if not section.q_lora:
        return {}
    if not adapts_quantised(config_class):
        message = f"peft's {config_class} cannot adapt quantised layers."
        raise _refused("peft.peft_method", message, "Set q_lora: false, or peft_method: lora.")
    if section.q_lora_bits == 8 and getattr(params, "use_dora", False) and not torch.cuda.is_available():
        message = "DoRA cannot read 8-bit weights on a CPU: bitsandbytes moves their scales after the first product."
        raise _refused("peft.q_lora_bits", message, "Set it to 4, or use_dora to false.")
    dtype = dtype_name(run.config.model.torch_dtype_str)
    if section.q_lora_bits in GIVE_FLOAT32.get(config_class, ()) and dtype in ("bfloat16", "float16"):
        bits = section.q_lora_bits
        message = f"peft's {config_class} gives float32 on weights of {bits} bits, and the other layers {dtype}."
        hint = "Set it to float32, with training.mixed_precision_dtype: bf16."
        raise _refused("model.torch_dtype_str", message, hint)
    _hush(run.config.training)
    return {"quantization_config": quantisation(section)}


def quantisation(section: PeftParams) -> BitsAndBytesConfig:
    """Return the keys of the section as transformers takes them."""
    if section.q_lora_bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=section.llm_int8_skip_modules)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=section.llm_int8_skip_modules,
        bnb_4bit_quant_type=section.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=section.use_bnb_nested_quant,
        bnb_4bit_quant_storage=dtype_name(section.bnb_4bit_quant_storage),
        bnb_4bit_compute_dtype=dtype_name(section.bnb_4bit_compute_dtype),
    )


def with_quantised(report: Report, model: Any) -> Report:
    """Return a report that also says which layers are quantised, how, and what their weights take now."""
    library: Any = importlib.import_module("bitsandbytes")
    kinds = (library.nn.Linear4bit, library.nn.Linear8bitLt)
    layers: list[Any] = [module for module in model.modules() if isinstance(module, kinds)]
    four = next((layer.weight for layer in layers if isinstance(layer, kinds[0])), None)
    facts: dict[str, Any] = {
        "layers": len(layers),
        "bits": 8 if four is None else 4,
        "parameters": sum(layer.in_features * layer.out_features for layer in layers),
        "bytes": sum(map(_bytes, layers)),
    }
    facts["bytes_before"] = facts["parameters"] * model.config.dtype.itemsize
    kind = f"{facts['bits']} bits"
    if four is not None:
        facts |= {"type": four.quant_type, "nested": four.compress_statistics}
        kind += f" ({four.quant_type}{', nested' if four.compress_statistics else ''})"
    sizes = f"{facts['bytes']:,} bytes instead of {facts['bytes_before']:,}"
    line = f"on {len(layers):,} linear layers in {kind}: {sizes}"
    return msgspec.structs.replace(report, lines=(*report.lines, line), facts={**report.facts, "peft.q_lora": facts})


def _bytes(layer: nn.Module) -> int:
    """Return the bytes of a layer's weight with its constants, which are saved with it."""
    saved: dict[str, torch.Tensor] = layer.state_dict(keep_vars=True)
    return sum(t.numel() * t.element_size() for name, t in saved.items() if name.partition(".")[0] != "bias")


def adapts_quantised(config_class: str) -> bool:
    """Return whether the library says that a method adapts layers of bitsandbytes, or leaves layers alone.

    Some other methods run on such layers without an error, and compute with packed weights as if they were numbers.
    """
    kind = getattr(peft, config_class)
    if issubclass(kind, peft.PromptLearningConfig):
        return True
    package = kind.__module__.rpartition(".")[0]
    if importlib.util.find_spec(f"{package}.bnb") is not None:
        return True
    return hasattr(importlib.import_module(f"{package}.model"), "get_quantization_kwargs")


def _hush(training: TrainingParams) -> None:
    """Let bitsandbytes warn only where details are asked for: it warns in every forward pass of an 8-bit layer."""
    asked = logging.getLevelNamesMapping()[training.dep_log_level.upper()]
    logging.getLogger("bitsandbytes").setLevel(asked if asked < logging.WARNING else max(asked, logging.ERROR))


def _refused(path: str, message: str, hint: str) -> ConfigError:
    return ConfigError(Problem(code="not-served", path=path, message=message, hint=hint))

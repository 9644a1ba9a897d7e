"""Linear layers whose weights are quantised: which they are, how they look without weights, and what is set on them.

The weights are made by bitsandbytes when transformers loads a model with a `BitsAndBytesConfig`.
"""

from __future__ import annotations

import copy
import importlib
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import AutoHfQuantizer
from transformers.quantizers.base import get_keys_to_not_convert

FOUR_BITS = ("blocksize", "compress_statistics", "quant_type", "quant_storage")
"""What bitsandbytes is told of a 4-bit weight."""
PACKS_ANEW = "support_avx512bf16_for_cpu"
"""What says of a 4-bit layer that it packs its weight anew for inference."""


def saved_quantised(config: PretrainedConfig) -> BitsAndBytesConfig | None:
    """Return how the weights of a model were quantised before they were saved; None: they were not."""
    saved: Any = getattr(config, "quantization_config", None)
    return BitsAndBytesConfig(**saved) if isinstance(saved, dict) else saved


def with_head_whole(quantisation: BitsAndBytesConfig, model: PreTrainedModel) -> BitsAndBytesConfig:
    """Return a quantisation that leaves out the output head and tied weights as well as what it leaves out.

    The library leaves them out only where nothing else is left out, and a tied head that is quantised cannot compute.
    """
    kept = copy.deepcopy(quantisation)
    kept.llm_int8_skip_modules = sorted({*(kept.llm_int8_skip_modules or ()), *get_keys_to_not_convert(model)})
    return kept


def quantise_skeleton(model: PreTrainedModel, quantisation: BitsAndBytesConfig) -> None:
    """Give a model on the device `meta` the layers, parameters and constants that it has when it is loaded quantised.

    The constants stand where `state_dict` finds them; nothing is computed.
    """
    config, dtype = with_head_whole(quantisation, model), model.dtype
    quantiser: Any = AutoHfQuantizer.from_config(config, pre_quantized=False)
    _fill_tables()
    before = dict(model.named_modules())
    quantiser.preprocess_model(model=model, device_map={"": "meta"}, dtype=dtype)
    for name, layer in list(model.named_modules()):
        if layer is before.get(name):
            continue
        _pack(layer, dtype)
        if layer.bias is not None:
            layer.bias = before[name].bias
    quantiser.postprocess_model(model)
    model.hf_quantizer = quantiser


def _fill_tables() -> None:
    """Let bitsandbytes make the tables that it keeps for the life of the process of numbers, not of those of `meta`."""
    library: Any = importlib.import_module("bitsandbytes")
    library.functional.quantize_4bit(torch.zeros(1, 64), compress_statistics=True)


def _pack(layer: Any, dtype: torch.dtype) -> None:
    """Replace the weight of a layer of bitsandbytes, on `meta`, by a packed one with its constants, on `meta` too."""
    library: Any = importlib.import_module("bitsandbytes")
    old, weight = layer.weight, layer.weight.data.to(dtype)
    if isinstance(old, library.nn.Int8Params):
        packed, scales, _ = library.functional.int8_vectorwise_quant(weight.to(torch.float16))
        layer.weight = library.nn.Int8Params(packed, requires_grad=False, CB=packed, SCB=scales)
        return
    settings = {name: getattr(old, name) for name in FOUR_BITS}
    packed, state = library.functional.quantize_4bit(weight, **settings)
    if state.offset is not None:
        state.offset = torch.zeros((), device="cpu")  # its value is read when the constants are listed
    layer.weight = library.nn.Params4bit(
        packed, requires_grad=False, quant_state=state, module=layer, bnb_quantized=True, **settings
    )
    layer.quant_state = state
    # DoRA copies a layer to read it, and the library's own copy begins on the CPU, where this weight cannot follow
    layer.weight.__deepcopy__ = lambda memo, weight=layer.weight: weight


def let_go_of_file(model: nn.Module) -> None:
    """Copy weights that lie in the mapped file of the whole model, which stays in memory as long as one does."""
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and type(parameter) is nn.Parameter:
            parameter.data = parameter.data.clone()


def settle(model: nn.Module) -> None:
    """Set what a quantised layer needs to be trained and evaluated in turns.

    On CPUs with bfloat16 instructions, bitsandbytes packs a 4-bit weight anew for inference when a layer is first
    called for it: constants are rounded, and from then on no gradient goes through the layer.
    """
    for module in model.modules():
        if hasattr(module, PACKS_ANEW):
            setattr(module, PACKS_ANEW, False)


def linear_layers(model: nn.Module) -> dict[str, Any]:
    """Return name -> layer of what bitsandbytes may quantise."""
    return {
        name: module for name, module in model.named_modules() if type(module) is nn.Linear or type(module) is Conv1D
    }

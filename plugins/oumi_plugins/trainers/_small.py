"""A small model of the same architecture as one without weights: it computes as the real one would, in other sizes.

Whether sequences laid end to end are kept apart follows from the code of an architecture, its attention and its kinds
of layers, not from how wide or deep it is, nor from what its weights are.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

HEADS, INNER, VOCABULARY = 4, 32, 128
"""Heads, width within a layer, and tokens."""
INNERS = "intermediate_size moe_intermediate_size shared_expert_intermediate_size intermediate_size_mlp".split()
VOCABULARIES = "vocab_size vocab_size_per_layer_input".split()
SMALL, LARGEST = 2_000_000, 50_000_000
"""Parameters of a model that is small as it is, and of one that still counts as small when it was made so."""
UNBUILDABLE = (ArithmeticError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError)
"""What configurations and models raise for sizes that do not go together."""


class NotSmall(Exception):
    """An architecture of which no small model could be built, and why."""


def small_model(skeleton: nn.Module, device: torch.device) -> PreTrainedModel:
    """Return a model of the class, configuration and number format of `skeleton`, with small sizes and random weights.

    Args:
        skeleton: The model on the device `meta`, whatever is put around it.
        device: Where the small one computes.

    Raises:
        NotSmall: There is none.
    """
    real = next((module for module in skeleton.modules() if isinstance(module, PreTrainedModel)), None)
    if real is None:
        raise NotSmall(f"{type(skeleton).__name__} is no model of transformers")
    dtype, reasons = next(real.parameters()).dtype, list[str]()
    for shrink in (None, _all_sizes, _leave_out_layers):
        config = copy.deepcopy(real.config)
        try:
            if shrink is not None:
                shrink(config)
            with torch.device("meta"):
                size = sum(parameter.numel() for parameter in type(real)(copy.deepcopy(config)).parameters())
            if size > (LARGEST if shrink else SMALL):
                reasons.append(f"{size:,} parameters")
                continue
            _compute(_built(real, config, torch.float32, device))
            return _built(real, config, dtype, device)
        except UNBUILDABLE as error:
            reasons.append(" ".join(str(error).split())[:100])
    raise NotSmall(f"{type(real).__name__} cannot be built in small ({'; '.join(reasons[1:])})")


def _built(real: PreTrainedModel, config: Any, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return type(real)._from_config(copy.deepcopy(config), dtype=dtype).to(device)


def _compute(model: PreTrainedModel) -> None:
    """Have the model compute anything, in the number format that all can compute in."""
    dtype = torch.bfloat16 if model.device.type == "cuda" else None  # flash attention takes 16 bits only
    with torch.no_grad(), torch.autocast(model.device.type, dtype, enabled=dtype is not None):
        model(input_ids=torch.tensor([[1, 2, 3]], device=model.device), use_cache=False)


def _all_sizes(config: Any) -> None:
    """Make the sizes small that cost memory. What concerns positions stays as it is, the width of a head included."""
    text = config.get_text_config()
    heads, groups = text.num_attention_heads, getattr(text, "num_key_value_heads", None)
    few = min(HEADS, heads)
    text.hidden_size = few * (getattr(text, "head_dim", None) or text.hidden_size // heads)
    text.num_attention_heads = few
    if groups is not None:
        text.num_key_value_heads = few if groups == heads else 1 if groups == 1 else max(1, few // 2)
    for name in INNERS:
        value = getattr(text, name, None)
        if isinstance(value, int):
            setattr(text, name, min(value, INNER))
        elif isinstance(value, list):
            setattr(text, name, [min(each, INNER) for each in value])
    _leave_out_layers(config)


def _leave_out_layers(config: Any) -> None:
    """Keep the first layer of each kind, and two at least; and only the first tokens of the vocabulary."""
    text = config.get_text_config()
    for name in VOCABULARIES:
        if isinstance(getattr(text, name, None), int):
            setattr(text, name, min(getattr(text, name), VOCABULARY))
    if getattr(text, "pad_token_id", None) is not None:
        text.pad_token_id = min(text.pad_token_id, VOCABULARY - 1)
    parts = [getattr(config, name, None) for name in config.sub_configs]
    for part in (text, *(part for part in parts if hasattr(part, "num_hidden_layers") and part is not text)):
        _keep_kinds(part)


def _keep_kinds(config: Any) -> None:
    count = config.num_hidden_layers
    lists = {name: value for name, value in config.to_dict().items() if isinstance(value, list) and len(value) == count}
    kinds = [repr([value[layer] for value in lists.values()]) for layer in range(count)]
    kept = sorted({kinds.index(kind) for kind in kinds} | set(range(min(2, count))))
    for name, value in lists.items():
        setattr(config, name, [value[layer] for layer in kept])
    config.num_hidden_layers = len(kept)

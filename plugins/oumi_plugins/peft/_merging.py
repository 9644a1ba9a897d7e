"""Merging an adapter into its base, and showing that both compute the same.

It is done in float32 whatever the base's files hold: each weight is then rounded once, to the format that it had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from oumi_kernel import CheckpointError, ConfigError, NumericsError, OutOfMemoryError
from oumi_kernel.merged import Merged
from oumi_plugins.peft._adapter import quiet
from oumi_plugins.peft._starts import why_not_here

PROMPTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Question: What is the capital of France?\nAnswer:",
    "def add(a: int, b: int) -> int:\n    return a + b\n",
    "1, 2, 3, 5, 8, 13, 21,",
    "Der Regen in Spanien fällt hauptsächlich in der Ebene.",
    "你好世界",
    '{"name": "Ada", "year": 1815, "tags": ["mathematics"]}',
    "Once upon a time, in a house by the sea, there lived",
)
EXACT = 1e-5
"""Largest difference of float32 logits that is rounding, for logits of 1; in proportion for larger ones."""
ROUNDED = 16
"""The same for weights rounded to 16 bits, in units of their precision."""
REFUSALS = (ValueError, NotImplementedError, AttributeError, TypeError)
"""What the library raises for a method, or a setting, whose adapter cannot be merged."""


def merge_adapter(model: Any, adapter: Path, tokenizer: Any) -> tuple[nn.Module, Merged]:
    """Merge a saved adapter into `model`, its base, in place.

    Args:
        model: The base, its weights not quantised.
        adapter: The folder of the adapter.
        tokenizer: The tokenizer of the prompts on which both are compared.

    Returns:
        The model, every weight in the format that it had, and what the comparison found.

    Raises:
        ConfigError: The base is quantised or has an adapter, or the adapter's method cannot be merged.
        CheckpointError: The adapter does not fit the base, or is not whole.
        NumericsError: Adapter and merged weights disagree.
        OutOfMemoryError: The base does not fit into memory in float32.
    """
    config = PeftConfig.from_pretrained(str(adapter))
    _refuse_unsuitable(model, config, adapter)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    written = model.dtype
    _widen(model)
    ids = [*_prompts(tokenizer, model), *_rows(config)]
    alone = _logits(model.eval(), ids)
    adapted = _attached(model, adapter)
    with_adapter = _logits(adapted, ids)
    effect = _distance(alone, with_adapter)
    _untie(adapted)
    merged = _merged(adapted)
    difference = _distance(_logits(merged, ids), with_adapter)
    scale = max(1.0, *map(_largest, with_adapter))
    _demand(difference, EXACT * scale, "merged weights in float32")
    rounding, allowed = None, ROUNDED * torch.finfo(written).eps * scale
    if written.itemsize < 4:
        _round(merged, dtypes)
        rounding = _distance(_logits(merged, ids), with_adapter)
        _demand(rounding, allowed, f"merged weights rounded to {_name(written)}")
    _narrow(merged, dtypes)
    found = Merged(
        prompts=len(ids),
        tokens=sum(map(len, ids)),
        dtype=_name(written),
        effect=effect,
        difference=difference,
        tolerance=EXACT * scale,
        rounding=rounding,
        rounding_tolerance=allowed,
    )
    return merged, found


def _refuse_unsuitable(model: Any, config: Any, adapter: Path) -> None:
    name = model.name_or_path
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ConfigError(
            f"the base {name} has an adapter itself. Merge that first, and give the result: --base MODEL."
        )
    quantised = getattr(model.config, "quantization_config", None)
    if quantised is not None:
        kind = quantised.get("quant_method") if isinstance(quantised, dict) else quantised.quant_method
        raise ConfigError(
            f"the base {name} is quantised ({getattr(kind, 'value', kind)}); merging into it would round what the "
            "adapter learned away. Needed is the model that it was made from, in 16 or 32 bits: --base MODEL."
        )
    if why := why_not_here(getattr(config, "init_lora_weights", None)):
        raise ConfigError(f"{adapter} began by LoftQ, and does so again when it is opened. {why} Merge it on one.")
    if config.is_prompt_learning:
        raise ConfigError(
            f"{adapter} is an adapter of the method {_method(config)}, which learns what stands before a prompt and "
            "changes no weight: there is nothing to merge. Use it as an adapter."
        )


def _widen(model: nn.Module) -> None:
    """Turn weights of fewer bits into float32, one after another."""
    try:
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.dtype.itemsize < 4:
                parameter.data = parameter.data.float()
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        count = sum(parameter.numel() for parameter in model.parameters())
        raise OutOfMemoryError(
            f"out of memory: a merge holds the base in float32, {4 * count / 2**30:.1f} GiB. Merge on a larger machine."
        ) from error


def _attached(model: nn.Module, adapter: Path) -> Any:
    """Return the model with its adapter, every weight of which was found in the file."""
    try:
        found = load_file(adapter / SAFETENSORS_WEIGHTS_NAME)
        with quiet():
            adapted = PeftModel.from_pretrained(model, str(adapter)).eval()
            held = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    except (OSError, SafetensorError, RuntimeError, ValueError, IndexError, KeyError) as error:
        raise CheckpointError(f"{adapter} does not fit {model.name_or_path}: {' '.join(str(error).split())}") from error
    for names, meaning in (
        (held.keys() - found, "lacks"),
        (found.keys() - held.keys() - set(adapted.state_dict()), "has unknown"),
    ):
        if names:
            raise CheckpointError(f"{adapter} {meaning} {len(names)} weights, among them '{min(names)}'.")
    for name, tensor in held.items():
        if not bool(torch.isfinite(found[name]).all()):
            raise CheckpointError(f"{adapter}: the weight '{name}' is not finite.")
        if not torch.equal(tensor, found[name].to(tensor.dtype)):
            raise CheckpointError(f"{adapter}: the weight '{name}' was not taken over by {model.name_or_path}.")
    return adapted


def _untie(adapted: Any) -> None:
    """Give a head that shares the embeddings' weights its own where an adapter changes only one of them."""
    model = adapted.get_base_model()
    layers: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    is_adapted = any(isinstance(layer, BaseTunerLayer) for layer in layers)
    embeddings, head = (getattr(layer, "base_layer", layer) for layer in layers)
    if is_adapted and embeddings.weight is head.weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)


def _merged(adapted: Any) -> Any:
    try:
        with quiet():
            model = adapted.merge_and_unload(safe_merge=True)
            return model.eval()
    except REFUSALS as error:
        method = _method(adapted.active_peft_config)
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"an adapter of the method {method} cannot be merged with these settings: {reason}"
        ) from error


def _round(model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    """Round each weight to its format, and keep it in the one that is computed in."""
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(dtypes.get(name, parameter.dtype)).to(parameter.dtype)


def _narrow(model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(dtypes.get(name, parameter.dtype))


def _prompts(tokenizer: Any, model: Any) -> list[torch.Tensor]:
    """Return token ids of the prompts, int64 (tokens,), those beyond the model's rows left out."""
    rows = model.get_input_embeddings().weight.shape[0]
    found = [torch.tensor(tokenizer(text)["input_ids"], dtype=torch.int64) for text in PROMPTS]
    return [kept for ids in found if len(kept := ids[ids < rows])]


def _rows(config: Any) -> list[torch.Tensor]:
    """Return a prompt of the tokens that an adapter has rows for, if there are any."""
    indices = getattr(config, "trainable_token_indices", None) or []
    rows = sorted({row for rows in indices.values() for row in rows} if isinstance(indices, dict) else indices)
    return [torch.tensor(rows, dtype=torch.int64)] if rows else []


@torch.no_grad()
def _logits(model: Any, prompts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [model(input_ids=ids.unsqueeze(0), use_cache=False).logits[0] for ids in prompts]


def _distance(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> float:
    return _largest(torch.cat([(a - b).flatten() for a, b in zip(left, right, strict=True)]))


def _largest(values: torch.Tensor) -> float:
    """Return the largest absolute value; not a number if any is not."""
    return float(values.abs().max())


def _demand(difference: float, allowed: float, what: str) -> None:
    if not difference <= allowed:  # also if it is not a number
        raise NumericsError(
            f"adapter and {what} disagree: their logits differ by up to {difference:.3g}, and {allowed:.2g} is "
            "allowed. Nothing was written."
        )


def _method(config: Any) -> str:
    return str(getattr(config.peft_type, "value", config.peft_type))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

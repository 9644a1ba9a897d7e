"""Rules about quantised weights (`peft.q_lora`): what cannot work, said before anything is read; what does nothing.

What follows from the keys alone is here; what follows from the model's modules is said by who builds the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from oumi_kernel.config.derived import dtype_name
from oumi_kernel.config.peft import PeftParams
from oumi_kernel.config.training import MixedPrecisionDtype
from oumi_kernel.config.training_config import TrainingConfig
from oumi_kernel.errors import Problem

COMPUTES_IN = ("float32", "bfloat16", "float16")
"""Number formats for which there are kernels of 4-bit matrix products; others give random numbers without an error."""
DECOMPOSING = ("pissa", "olora", "loftq")
"""Initialisations that take the adapter out of the weights and leave the rest of it in them."""
ONLY_4_BIT = ("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage", "bnb_4bit_compute_dtype")
ONLY_QUANTISED = ("q_lora_bits", "llm_int8_skip_modules", *ONLY_4_BIT)


def quantised_weights_need_an_adapter(config: TrainingConfig) -> Iterator[Problem]:
    """Steps of an optimizer are smaller than the steps between quantised values, so such weights cannot train."""
    is_off = (config.peft.peft_method or "").strip().lower() == "none" or config.training.use_peft is False
    if config.peft.q_lora and is_off:
        key = "training.use_peft" if config.training.use_peft is False else "peft.peft_method"
        message = f"quantised weights do not train, and {key} turns the adapter off."
        yield _error("peft.q_lora", message, hint=f"Remove {key}, or set q_lora: false to train every weight.")


def quantised_weights_are_trained_ones(config: TrainingConfig) -> Iterator[Problem]:
    """Random weights that are quantised stay random."""
    if _is_on(config) and not config.model.load_pretrained_weights:
        message = "quantised weights do not train, so random ones would stay random."
        yield _error("model.load_pretrained_weights", message, hint="Set it to true, or peft.q_lora to false.")


def quantised_weights_come_from_common_floats(config: TrainingConfig) -> Iterator[Problem]:
    """There is no kernel that makes 4-bit weights of float64."""
    if _is_on(config) and config.peft.q_lora_bits == 4 and dtype_name(config.model.torch_dtype_str) == "float64":
        hint = "Set it to float32 or bfloat16, or peft.q_lora_bits to 8."
        yield _error("model.torch_dtype_str", "weights in float64 cannot be quantised to 4 bits.", hint=hint)


def quantised_layers_compute_in_common_floats(config: TrainingConfig) -> Iterator[Problem]:
    """Bitsandbytes takes any number format here, and returns what happens to be in memory for most of them."""
    peft = config.peft
    if _is_on(config) and peft.q_lora_bits == 4 and dtype_name(peft.bnb_4bit_compute_dtype) not in COMPUTES_IN:
        message = f"a 4-bit layer cannot compute in {peft.bnb_4bit_compute_dtype}; it can in {', '.join(COMPUTES_IN)}."
        nearest = "float32" if dtype_name(peft.bnb_4bit_compute_dtype) == "float64" else "bfloat16"
        yield _error("peft.bnb_4bit_compute_dtype", message, hint=f"Set it to {nearest}.")


def quantised_weights_are_stored_in_a_format(config: TrainingConfig) -> Iterator[Problem]:
    """There is nothing from which a storage could be chosen."""
    peft = config.peft
    if _is_on(config) and peft.q_lora_bits == 4 and dtype_name(peft.bnb_4bit_quant_storage) == "auto":
        hint = "Set it to uint8; with FSDP, to the format of model.torch_dtype_str."
        yield _error("peft.bnb_4bit_quant_storage", "4-bit weights need a number format to be stored in.", hint=hint)


def quantised_weights_are_not_taken_apart(config: TrainingConfig) -> Iterator[Problem]:
    """What is left of a weight would be quantised once more, and the saved adapter would fit no model that exists."""
    given = config.peft.lora_init_weights.lower().partition("_")[0].replace("pisa", "pissa")
    if _is_on(config) and given in DECOMPOSING:
        message = f"'{config.peft.lora_init_weights}' changes the base weights; quantised ones are fixed."
        hint = "Set it to DEFAULT or EVA, which leave them as they are, or q_lora to false."
        yield _error("peft.lora_init_weights", message, hint=hint)


def quantised_shards_have_one_dtype(config: TrainingConfig) -> Iterator[Problem]:
    """FSDP gathers the weights of a layer as one tensor of one number format, and nothing that is kept beside them."""
    peft, model_dtype = config.peft, dtype_name(config.model.torch_dtype_str)
    is_sharded = config.fsdp.enable_fsdp and _is_on(config)
    if is_sharded and peft.q_lora_bits == 4 and dtype_name(peft.bnb_4bit_quant_storage) != model_dtype:
        message = f"FSDP needs the model's number format here, {model_dtype}, not {peft.bnb_4bit_quant_storage}."
        hint = "Set model.torch_dtype_str and peft.bnb_4bit_quant_storage to bfloat16."
        yield _error("peft.bnb_4bit_quant_storage", message, hint=hint)
    if is_sharded and peft.q_lora_bits == 8:
        message = "FSDP cannot divide 8-bit weights, whose scales are kept beside them."
        hint = "Set it to 4 and peft.bnb_4bit_quant_storage to the format of model.torch_dtype_str, or train with DDP."
        yield _error("peft.q_lora_bits", message, hint=hint)


def quantised_layers_compute_as_the_others_do(config: TrainingConfig) -> Iterator[Problem]:
    """The default of the format in which quantised layers compute does not follow that of the model."""
    peft, mixed = config.peft, config.training.mixed_precision_dtype
    others = dtype_name(config.model.torch_dtype_str if mixed is MixedPrecisionDtype.NONE else str(mixed.value))
    is_slow = others in ("bfloat16", "float16") and dtype_name(peft.bnb_4bit_compute_dtype) == "float32"
    if _is_on(config) and peft.q_lora_bits == 4 and is_slow:
        message = f"4-bit layers compute in float32 while the others compute in {others}, which is slow on a GPU."
        hint = f"Set it to {others}."
        yield _error("peft.bnb_4bit_compute_dtype", message, hint=hint, severity="warning")


def keys_of_quantisation_wait_for_it(config: TrainingConfig) -> Iterator[Problem]:
    """What only says how to quantise does nothing where nothing is; in 8 bits the keys of 4 bits do nothing."""
    peft, defaults = config.peft, PeftParams()
    if not peft.q_lora:
        keys, reason = ONLY_QUANTISED, "peft.q_lora is false"
    elif peft.q_lora_bits != 4:
        keys, reason = ONLY_4_BIT, f"peft.q_lora_bits is {peft.q_lora_bits}"
    else:
        return
    for key in keys:
        if getattr(peft, key) != getattr(defaults, key):
            yield _error(f"peft.{key}", f"no effect while {reason}.", severity="warning")


QUANTISATION_RULES: tuple[Callable[[TrainingConfig], Iterator[Problem]], ...] = (
    quantised_weights_need_an_adapter,
    quantised_weights_are_trained_ones,
    quantised_weights_come_from_common_floats,
    quantised_layers_compute_in_common_floats,
    quantised_weights_are_stored_in_a_format,
    quantised_weights_are_not_taken_apart,
    quantised_shards_have_one_dtype,
    quantised_layers_compute_as_the_others_do,
    keys_of_quantisation_wait_for_it,
)


def _is_on(config: TrainingConfig) -> bool:
    """Return whether weights are quantised, as far as no key turns the adapter off."""
    return config.peft.q_lora and next(quantised_weights_need_an_adapter(config), None) is None


def _error(path: str, message: str, *, hint: str = "", severity: str = "error") -> Problem:
    problem = Problem(code="rule", path=path, message=message, hint=hint)
    return msgspec.structs.replace(problem, severity=severity)

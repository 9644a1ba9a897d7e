"""The YAML section `peft`: adapters and quantisation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from oumi_kernel.schema import ConfigEnum, Fraction, Params, PositiveInt

DtypeName = Annotated[str, Meta(pattern=r"^(?i:float32|float16|bfloat16|float64|uint8|int8|auto)$")]


class LoraTaskType(ConfigEnum):
    """What the adapted model is for."""

    CAUSAL_LM = "CAUSAL_LM"
    SEQ_CLS = "SEQ_CLS"
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
    TOKEN_CLS = "TOKEN_CLS"  # noqa: S105 - a task, not a secret
    QUESTION_ANS = "QUESTION_ANS"
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"


class PeftSaveMode(ConfigEnum):
    """What is saved at the end."""

    ADAPTER_ONLY = "adapter_only"
    ADAPTER_AND_BASE_MODEL = "adapter_and_base_model"
    MERGED = "merged"


class PeftParams(Params):
    """Parameter-efficient fine-tuning. A section with any key in it turns it on."""

    peft_method: str | None = None
    """Name of the method; `none` turns it off. Null: LoRA when this section is not empty."""

    peft_kwargs: dict[str, Any] = {}
    """Parameters of the method itself, such as use_dora for LoRA."""

    lora_r: PositiveInt = 8
    """Rank of the update matrices."""

    lora_alpha: PositiveInt = 8
    """Scale of the update, which is multiplied by lora_alpha / lora_r."""

    lora_dropout: Fraction = 0.0
    """Probability with which an input of the adapter is dropped."""

    lora_target_modules: list[str] | str | None = None
    """Modules that get an adapter: names, a pattern, or all-linear. Null: the method's choice for the architecture."""

    lora_exclude_modules: list[str] | None = None
    """Patterns of modules that get none."""

    lora_target_parameters: list[str] | None = None
    """Parameters, not modules, that get an adapter, such as the experts of a mixture."""

    lora_modules_to_save: list[str] | None = None
    """Modules that train in full and are saved with the adapter."""

    lora_bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases train."""

    lora_init_weights: Annotated[
        str,
        Meta(pattern=r"^(?i:default|random|gaussian|eva|pis{1,2}a|pissa_niter(_[1-9][0-9]*)?|loftq|olora)$"),
    ] = "DEFAULT"
    """How the adapter starts: DEFAULT (no change to the model), RANDOM, GAUSSIAN, EVA, PISSA, PISSA_NITER_N with N
    iterations, LOFTQ, OLORA."""

    lora_task_type: LoraTaskType = LoraTaskType.CAUSAL_LM
    """What the adapted model is for."""

    q_lora: bool = False
    """Whether the frozen weights are quantised. Needs the extra `quant`."""

    q_lora_bits: Literal[4, 8] = 4
    """Bits of a quantised weight."""

    bnb_4bit_quant_type: Literal["fp4", "nf4"] = "fp4"
    """The 4-bit format: fp4, or nf4 for normally distributed weights."""

    llm_int8_skip_modules: list[str] | None = None
    """Modules that are not quantised."""

    use_bnb_nested_quant: bool = False
    """Whether the constants of the quantisation are quantised too."""

    bnb_4bit_quant_storage: DtypeName = "uint8"
    """The number format in which 4-bit weights are stored."""

    bnb_4bit_compute_dtype: DtypeName = "float32"
    """The number format in which a quantised layer computes."""

    peft_save_mode: PeftSaveMode = PeftSaveMode.ADAPTER_ONLY
    """What is saved: the adapter, adapter and base model, or the base model with the adapter merged in."""

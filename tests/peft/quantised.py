"""A quantised model with an adapter from transformers, bitsandbytes and peft alone: the oracle of these tests."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tests.conftest import QUICKSTART

TINY = QUICKSTART / "model"
TARGETS = ["q_proj", "v_proj", "down_proj"]
LORA = ("--peft.lora_r=4", "--peft.lora_alpha=16", f"--peft.lora_target_modules=[{', '.join(TARGETS)}]")
WAYS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "fp4": ((), {"load_in_4bit": True}),
    "nf4": (("--peft.bnb_4bit_quant_type=nf4",), {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
    "nested": (
        ("--peft.bnb_4bit_quant_type=nf4", "--peft.use_bnb_nested_quant=true"),
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    ),
    "stored in bfloat16": (
        ("--peft.bnb_4bit_quant_storage=bfloat16",),
        {"load_in_4bit": True, "bnb_4bit_quant_storage": torch.bfloat16},
    ),
    "computed in bfloat16": (
        ("--peft.bnb_4bit_compute_dtype=BFLOAT16",),
        {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.bfloat16},
    ),
    "8 bits": (("--peft.q_lora_bits=8",), {"load_in_8bit": True}),
    "some whole": (
        ("--peft.llm_int8_skip_modules=[v_proj]",),
        # the library quantises a tied head where anything else is named
        {"load_in_4bit": True, "llm_int8_skip_modules": ["v_proj", "lm_head"]},
    ),
}
"""Name -> flags of a run, and arguments of `BitsAndBytesConfig`, that mean the same."""


def base(way: str, **options: Any) -> Any:
    """Return the quantised model, in the mode of training: bitsandbytes packs anew what is called in the other."""
    config = BitsAndBytesConfig(**WAYS[way][1])
    return AutoModelForCausalLM.from_pretrained(TINY, quantization_config=config, **options).train()


def adapted(way: str, seed: int = 42) -> Any:
    """Return it with the adapter that `LORA` asks for."""
    model = base(way)
    torch.manual_seed(seed)
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=16, target_modules=TARGETS))


def flags(way: str) -> tuple[str, ...]:
    """Return the flags of a run that does the same."""
    return ("--peft.q_lora=true", *LORA, *WAYS[way][0])

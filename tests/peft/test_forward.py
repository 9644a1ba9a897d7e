"""The forward pass looks through the library's wrapper: flat batches, and the head in chunks where it is as it was."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import peft
import pytest
from transformers import AutoModelForCausalLM

from oumi_plugins.trainers._forward import Forward
from tests.peft.conftest import TINY


def chosen(config: Any) -> Forward:
    forward = Forward(peft.get_peft_model(AutoModelForCausalLM.from_pretrained(TINY), config), ignore=-100)
    forward.choose(None, nullcontext)
    return forward


@pytest.mark.parametrize(
    ("fields", "in_chunks"),
    [
        ({"target_modules": ["q_proj"]}, True),
        ({"target_modules": "all-linear", "init_lora_weights": False}, True),
        ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, True),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, False),
        ({"target_modules": ["lm_head"]}, False),
    ],
)
def test_batches_are_flat_and_the_head_is_in_chunks_unless_it_is_adapted(
    fields: dict[str, Any], in_chunks: bool
) -> None:
    forward = chosen(peft.LoraConfig(task_type="CAUSAL_LM", **fields))
    assert forward.is_flat
    assert (forward._head is not None) is in_chunks


def test_a_prompt_needs_padded_batches() -> None:
    forward = chosen(peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    assert not forward.is_flat
    assert forward._head is None
    assert forward.why_padded
